"""A pretrained language model as a judge and as an encoder, against loops over single tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from outlines import causal_lm
from outlines.errors import OutlinesError
from outlines.metrics.text import words
from tests.tiny_causal_lm import tiny_causal_lm
from train.evaluation import pretrained
from train.evaluation.pretrained import PretrainedLM

TEXT = ["A dog runs.", "", "Two women in red coats are standing near a fountain, and a man watches them.", "Snow",
        "A man reads."]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainedLM:
    return PretrainedLM(f"hf:{tiny_causal_lm(request.param, tiny_corpus, tmp_path_factory.mktemp(request.param))}")


def ids_of(lm: PretrainedLM, sentence: str) -> list[int]:
    return lm._tokenizer.encode(sentence, add_special_tokens=False)


@torch.no_grad()
def by_hand(lm: PretrainedLM, sentences: list[str]) -> tuple[float, int]:
    """Return the NLL and the number of tokens: one token at a time, one sentence at a time."""
    total, count = 0.0, 0
    for sentence in sentences:
        read = [lm._tokenizer.bos_token_id]
        for token in ids_of(lm, sentence):
            logits = lm._model(input_ids=torch.tensor([read])).logits[0, -1]
            total, count, read = total - float(logits.log_softmax(dim=0)[token]), count + 1, [*read, token]
    return total, count


def test_the_score_equals_a_loop_over_single_tokens(lm: PretrainedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    total, count = by_hand(lm, TEXT)
    num_words = sum(len(words(sentence)) for sentence in TEXT)
    for size in (1, 2, 64):
        monkeypatch.setattr(pretrained, "BATCH_SIZE", size)
        assert lm.score(TEXT).figures("mine") == pytest.approx(
            {"mine_nll_per_word": total / num_words, "mine_nll_per_token": total / count}, rel=1e-5)
    assert lm.score(["", ""]).figures("mine") == lm.score([]).figures("mine") == {}


def test_only_the_first_sentences_that_are_not_too_long_count(lm: PretrainedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "NUM_JUDGED", 3)
    assert lm.score(TEXT) == lm.score(TEXT[:3])
    monkeypatch.setattr(pretrained, "MAX_LEN", len(ids_of(lm, TEXT[2])) - 1)
    assert lm.score(TEXT[:3]) == lm.score(TEXT[:2])


def test_the_token_between_texts_begins_a_sentence(lm: PretrainedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lm._begin == lm._tokenizer.bos_token_id
    monkeypatch.setattr(causal_lm, "BETWEEN_TEXTS", lm._tokenizer.convert_ids_to_tokens(7))
    monkeypatch.delitem(vars(lm), "_begin")
    assert lm._begin == 7
    monkeypatch.delitem(vars(lm), "_begin")


@torch.no_grad()
def test_features_are_the_last_states_of_the_sentences(lm: PretrainedLM) -> None:
    found = lm.encode(TEXT)
    assert found.shape == (len(TEXT), 16) and found.dtype == np.float32
    for sentence, features in zip(TEXT, found, strict=True):
        ids = torch.tensor([ids_of(lm, sentence) or [lm._begin]])
        states = lm._model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
        assert np.allclose(states.numpy(), features, atol=1e-5)


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(OutlinesError, match="no such directory"):
        PretrainedLM("hf:/nowhere")
    with pytest.raises(OutlinesError, match="Unknown language model 'gpt2'"):
        PretrainedLM("gpt2")


@pytest.mark.full
def test_smollm2_detects_shuffled_and_misspelt_words() -> None:
    try:
        lm = PretrainedLM("smollm2")
    except OutlinesError as error:
        pytest.skip(str(error))
    text = ["A man in a red jacket is skiing down a mountain.", "Two children are building a castle in the sand.",
            "A woman is reading a book on a bench in the park.", "Several people are waiting for a train."]
    shuffled = [" ".join(reversed(sentence.split())) for sentence in text]
    misspelt = [sentence.replace("ing", "nig") for sentence in text]
    real, *planted = (lm.score(sentences).figures("own")["own_nll_per_word"] for sentences in (text, shuffled, misspelt))
    assert min(planted) > real + 1
