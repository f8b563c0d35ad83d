from dataclasses import replace

import numpy as np
import pytest
import torch

import outlines
from generate.__main__ import main as generate
from outlines.decoding.best_of import LENGTH_POWER, best_of
from outlines.decoding.sample import SamplingConfig
from outlines.decoding.scoring import nll_of_rows
from outlines.errors import OutlinesError
from outlines.inference.pipeline import Pipeline
from outlines.models.lm import LanguageModel
from outlines.networks.gru import GRUConfig
from outlines.pretrained import ENGLISH_BEST_OF

SAMPLING = SamplingConfig(temperature=1.0, max_len=6)
BEST = replace(SAMPLING, best_of=4)


def drawn(pipeline: Pipeline, num: int, **choice: object) -> list[str]:
    sampling = SamplingConfig(temperature=1.0, max_len=6, **choice)  # type: ignore[arg-type]
    return [line.text for line in pipeline.sentences(num, 3, sampling)]


def test_the_best_sentence_of_each_group_is_kept_with_its_vector(pipeline: Pipeline) -> None:
    ids, vectors = next(pipeline.model.generate(12, 3, SAMPLING))
    assert vectors is not None
    nll, num_targets = nll_of_rows(pipeline.model.decoder, [np.array(row) for row in ids], torch.zeros_like(vectors))
    scores = (nll / num_targets ** LENGTH_POWER).reshape(3, 4)
    kept, their_vectors = best_of(pipeline.model.decoder, ids, vectors, BEST)
    chosen = [4 * group + int(row.argmin()) for group, row in enumerate(scores)]
    assert kept == [ids[row] for row in chosen] and their_vectors is not None
    assert torch.equal(their_vectors, vectors[chosen])
    assert best_of(pipeline.model.decoder, ids, vectors, SAMPLING) == (ids, vectors)


def test_of_equal_sentences_the_first_is_kept_in_every_batch(pipeline: Pipeline) -> None:
    ids, vectors = next(pipeline.model.generate(200, 3, SAMPLING))
    assert vectors is not None
    for start in (0, 60, 120, 180):  # nll_of_rows scores 128 sentences at once
        equal = [*ids[:start], *[ids[0]] * 8, *ids[start:192]]
        kept = best_of(pipeline.model.decoder, equal, vectors, BEST)[1]
        assert kept is not None and torch.equal(kept[start // 4:start // 4 + 2], vectors[[start, start + 4]])


def test_a_decoder_that_always_reads_its_vector_scores_with_it(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = pipeline.model.decoder
    ids, vectors = next(pipeline.model.generate(40, 3, SAMPLING))
    blind = best_of(decoder, ids, vectors, BEST)[0]
    for name, value in (("min_strength", 1.0), ("vector_dropout", 0.0)):
        monkeypatch.setitem(decoder.config.__dict__, name, value)
    nll, num_targets = nll_of_rows(decoder, [np.array(row) for row in ids], 0.5 * vectors)
    rows = (nll / num_targets ** LENGTH_POWER).reshape(10, 4).argmin(axis=1) + np.arange(0, 40, 4)
    assert best_of(decoder, ids, vectors, replace(BEST, strength=0.5))[0] == [ids[row] for row in rows] != blind


def test_a_sentence_depends_only_on_seed_and_number(pipeline: Pipeline) -> None:
    kept = drawn(pipeline, 300, best_of=3)
    assert kept[:20] == drawn(pipeline, 20, best_of=3) and kept != drawn(pipeline, 300)
    sampling = SamplingConfig(temperature=1.0, max_len=6, best_of=3)
    assert kept == [line.text for line in pipeline.sentences(300, 3, sampling, batch_size=37, workers=2)]
    every = drawn(pipeline, 900)
    assert all(text in every[3 * i:3 * i + 3] for i, text in enumerate(kept))


def test_the_shipped_model_keeps_the_best_of_eight(capsys: pytest.CaptureFixture[str]) -> None:
    english = outlines.load("english", "cpu")
    assert english.chosen(SAMPLING).best_of == ENGLISH_BEST_OF == 8
    assert drawn(english, 3) == drawn(english, 3, best_of=8) != drawn(english, 3, best_of=1)
    assert generate(["english", "--num", "2"]) == 0
    usual = capsys.readouterr().out
    assert generate(["english", "--num", "2", "--best-of", "8", "--temperature", "0.3"]) == 0
    assert capsys.readouterr().out == usual == "".join(f"{text}\n" for text in english.sample(2))


def test_an_outline_that_is_given_has_no_best_of(pipeline: Pipeline) -> None:
    with pytest.raises(OutlinesError, match="here the vectors are given"):
        pipeline.decode(torch.zeros(2, 16), best_of=4)


def test_a_language_model() -> None:
    torch.manual_seed(0)
    model = LanguageModel(decoder=GRUConfig(vocab_size=20, vector_dim=0, embed_dim=8, hidden_dim=8)).eval()
    ids, vectors = next(model.generate(4, 3, BEST))
    every = next(model.generate(16, 3, SAMPLING))[0]
    assert vectors is None and all(row in every[4 * i:4 * i + 4] for i, row in enumerate(ids))
    with pytest.raises(OutlinesError, match="writes only one sentence, so best-of has no effect"):
        next(model.generate(4, 3, replace(BEST, temperature=0)))


def test_drafts_and_beam_search_have_no_best_of_by_default() -> None:
    english = outlines.load("english", "cpu")
    assert english.chosen(replace(SAMPLING, drafts=2)).best_of == english.chosen(replace(SAMPLING, beam=2)).best_of == 1


def test_other_models_write_one(pipeline: Pipeline) -> None:
    assert pipeline.chosen(SAMPLING).best_of == 1 and drawn(pipeline, 5) == drawn(pipeline, 5, best_of=1)


def test_bounds() -> None:
    with pytest.raises(OutlinesError, match="best-of must be from 1 to 1024, not 0"):
        SamplingConfig(best_of=0)
