"""Drafts and rounds: with a planted decoder and encoder, and on a run."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import outlines
from generate.__main__ import main
from generate.options import parse
from outlines.decoding.sample import SamplingConfig
from outlines.errors import OutlinesError
from outlines.inference.correction import correct
from outlines.inference.pipeline import Pipeline

SENTENCES = ["Two dogs play in the park.", "A woman is reading a book.", "A man is cooking.", "Children swim in a lake."]
BIAS, NOISE = 20, 30  # degrees

# A planted decoder writes directions in the plane, in whole degrees: that of its vector, with a bias and, above temperature
# 0, a random error. The planted encoder reads them without any error. The decoder's units are a third of the encoder's.
PLANTED: Any = SimpleNamespace(to_encoder=lambda vectors: 3 * vectors,
                               from_encoder=lambda vectors: torch.nn.functional.normalize(vectors, dim=-1) / 3)


def write(vectors: Tensor, uniforms: Tensor, sampling: SamplingConfig) -> list[list[int]]:
    degrees = torch.rad2deg(torch.atan2(vectors[:, 1], vectors[:, 0])) + BIAS
    if sampling.temperature:
        degrees = degrees + NOISE * (2 * uniforms[:, 0] - 1)
    return [[int(degree) % 360] for degree in degrees.round()]


def encode(ids: list[list[int]]) -> Tensor:
    angles = torch.deg2rad(torch.tensor(ids, dtype=torch.float32)[:, 0])
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def planted_errors(num: int = 200, seed: int = 1, **choice: Any) -> Tensor:
    """Return the errors of corrected sentences in degrees, [num]."""
    angles = 2 * torch.pi * torch.rand(num, generator=torch.Generator().manual_seed(7))
    wanted = torch.stack([angles.cos(), angles.sin()], dim=1) / 3
    uniforms = torch.rand(num, 4, generator=torch.Generator().manual_seed(seed))
    written = encode(correct(PLANTED, write, encode, wanted, uniforms, SamplingConfig(**choice)))
    return torch.rad2deg(torch.cosine_similarity(written, wanted).clamp(-1, 1).acos())


def test_one_greedy_draft_is_the_greedy_sentence() -> None:
    assert torch.allclose(planted_errors(temperature=0), torch.tensor(float(BIAS)), atol=0.6)


@pytest.mark.parametrize("temperature", [0, 1])
def test_more_drafts_are_never_further_from_the_outline(temperature: float) -> None:
    errors = [planted_errors(temperature=temperature, drafts=drafts) for drafts in (1, 2, 4, 16, 64)]
    for fewer, more in itertools.pairwise(errors):
        assert (more <= fewer + 1e-3).all() and more.mean() < fewer.mean()
    assert errors[-1].mean() < 1


def test_rounds_remove_the_bias_of_a_decoder() -> None:
    errors = [planted_errors(temperature=0, rounds=rounds) for rounds in range(5)]
    for fewer, more in itertools.pairwise(errors):
        assert (more <= fewer + 1e-3).all()
    assert errors[1].mean() < 0.6 * BIAS and errors[4].mean() < 0.3 * BIAS


def test_each_sentence_depends_only_on_its_own_row() -> None:
    wanted, uniforms = torch.randn(30, 2), torch.rand(30, 4)
    config = SamplingConfig(drafts=5, rounds=2)
    together = correct(PLANTED, write, encode, wanted, uniforms, config)
    assert together[10:13] == correct(PLANTED, write, encode, wanted[10:13], uniforms[10:13], config)


def test_drafts_follow_the_decoders_distribution() -> None:
    """The planted decoder's errors are uniform. The drafts of each sentence are spread over all of them."""
    seen: list[list[int]] = []

    def recorded(ids: list[list[int]]) -> Tensor:
        seen.extend(ids)
        return encode(ids)

    wanted = torch.tensor([[1.0, 0.0]])
    correct(PLANTED, write, recorded, wanted, torch.rand(1, 4), SamplingConfig(drafts=600))
    degrees = torch.tensor(seen).flatten().float()
    assert len(degrees) == 600
    histogram = torch.histc(torch.where(degrees > 180, degrees - 360, degrees), 6, BIAS - NOISE, BIAS + NOISE) / 600
    assert torch.allclose(histogram, torch.full((6,), 1 / 6), atol=0.03)


def cosines(run: Pipeline, vectors: Tensor, texts: list[str]) -> Tensor:
    assert run.encoder is not None
    return torch.cosine_similarity(torch.from_numpy(run.encoder.encode(texts)), run.model.to_encoder(vectors))


def test_drafts_of_a_run(pipeline: Pipeline) -> None:
    vectors = pipeline.encode(SENTENCES)
    greedy = pipeline.decode(vectors)
    assert pipeline.decode(vectors, drafts=1) == greedy
    best = [cosines(pipeline, vectors, pipeline.decode(vectors, drafts=drafts)) for drafts in (1, 3, 12)]
    best += [cosines(pipeline, vectors, pipeline.decode(vectors, drafts=12, rounds=rounds)) for rounds in (1, 2)]
    for fewer, more in itertools.pairwise(best):
        assert (more >= fewer - 1e-5).all()
    assert (best[-1] > best[0] + 1e-3).any()
    corrected = [done.rebuilt for done in pipeline.reconstruct(SENTENCES, SamplingConfig(temperature=0, drafts=3))]
    assert corrected == pipeline.decode(vectors, drafts=3)


def test_drafts_on_the_command_line(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def written(verb: str, *arguments: object) -> list[str]:
        assert main([verb, str(tiny_run), *map(str, arguments), "--device", "cpu"]) == 0
        return capsys.readouterr().out.splitlines()

    run = outlines.load(tiny_run, "cpu", "float32")  # verbs without --precision use float32
    few = ("--max-len", 12)
    choice: dict[str, Any] = {"drafts": 4, "rounds": 1, "max_len": 12}
    corrected = run.decode(run.encode(SENTENCES), **choice)
    rebuilt = [line.split("\t")[-1] for line in written("reconstruct", *SENTENCES, "--drafts", 4, "--rounds", 1, *few)]
    assert rebuilt == corrected
    assert written("reconstruct", *SENTENCES, "--drafts", 1, *few) == written("reconstruct", *SENTENCES, *few)
    a, b, c, _ = SENTENCES
    assert written("analogy", a, b, c, "--drafts", 4, "--rounds", 1, *few) == run.decode(
        run.analogy(a, b, c)[None], **choice)
    walk = written("interpolate", a, b, "--num", 3, "--drafts", 4, "--format", "jsonl", *few)
    assert json.loads(walk[0])["text"] == run.decode(run.encode([a]), drafts=4, max_len=12)[0]
    assert len(written("vary", a, "--num", 3, "--drafts", 2, "--rounds", 1, *few)) == 3
    drawn = written("sample", "--num", 30, "--seed", 3, "--drafts", 3, *few)
    assert written("sample", "--num", 5, "--seed", 3, "--drafts", 3, *few) == drawn[:5]
    assert drawn != written("sample", "--num", 30, "--seed", 3, *few)


def test_kept_samples_are_nearer_to_their_outlines(pipeline: Pipeline) -> None:
    once, best = (next(pipeline.model.generate(50, 1, SamplingConfig(max_len=12, drafts=drafts), sampler=pipeline.write))
                  for drafts in (1, 4))
    assert once[1] is not None and best[1] is not None and torch.equal(once[1], best[1])
    before, after = (cosines(pipeline, vectors, pipeline.tokenizer.lines(ids)) for ids, vectors in (once, best))
    assert (after >= before - 1e-5).all() and after.mean() > before.mean() + 0.01


@pytest.mark.parametrize(("arguments", "message"), [
    (["reconstruct", "RUN", "A dog.", "--drafts", "N"], "--drafts: must be a whole number from 1 to 1024"),
    (["reconstruct", "RUN", "A dog.", "--drafts", "0"], "--drafts: must be a whole number from 1 to 1024"),
    (["RUN", "--drafts", "2", "--rounds", "1"], "--rounds has no effect here. Only the verbs reconstruct, interpolate"),
    (["complete", "RUN", "A dog", "--drafts", "2"], "--drafts has no effect here. Only the verbs sample, reconstruct"),
])
def test_bad_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(OutlinesError, match=message):
        parse(arguments)
