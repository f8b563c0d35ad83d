"""Runs whose decoder is a pretrained language model: every family trains, resumes, is reported and used."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from generate.__main__ import main as generate
from outlines import load
from outlines.corpus.lm_tokenizer import LMTokenizer
from outlines.errors import OutlinesError
from outlines.networks.pretrained import PretrainedDecoder
from tests.train.test_training import weights
from train.__main__ import main as train
from train.commands.train import parse, plan_of
from train.config import RunConfig

TINY = ["--preset", "tiny", "--decoder-steps", "20", "--num-evaluation", "20", "--evaluator-steps", "5", "--quiet"]


@pytest.fixture(scope="module")
def corpora(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return 150 sentences as text, and as pairs."""
    directory, sentences = tmp_path_factory.mktemp("corpora"), tiny_corpus.read_text().splitlines()[:150]
    (directory / "text.txt").write_text("\n".join(sentences) + "\n")
    pairs = [{"text": sentence, "condition": other} for sentence, other in itertools.pairwise(sentences)]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return {"text": directory / "text.txt", "pairs": directory / "pairs.jsonl"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "runs"


@pytest.fixture(scope="module")
def run_of(corpora: dict[str, Path], recurrent_encoder: Path, tiny_gpt2: Path, runs: Path) -> Any:
    """Return a function that trains a family once, with a GPT-2, and returns the run's directory."""
    def trained(family: str, *options: str) -> Path:
        out = runs / "-".join([family, *(option.strip("-") for option in options if option.startswith("--"))])
        if not out.exists():
            corpus = corpora["pairs" if family == "conditional" else "text"]
            encoder = ["--encoder", f"recurrent:{recurrent_encoder}"] if family in ("outlines", "conditional") else []
            decoder = [] if "--decoder" in options else ["--decoder", f"hf:{tiny_gpt2}"]
            train([family, *TINY, *decoder, "--corpus", str(corpus), *encoder, *options, "--out", str(out),
                   "--runs", str(runs)])
        return out
    return trained


@pytest.mark.parametrize("family", ["lm", "outlines", "vae", *(
    pytest.param(family, marks=pytest.mark.full) for family in ("arae", "conditional", "encoder"))])
def test_every_family_with_a_decoder_trains_and_is_reported(family: str, run_of: Any) -> None:
    run = run_of(family)
    pipeline = load(run, "cpu")
    assert isinstance(pipeline.model.decoder, PretrainedDecoder) and isinstance(pipeline.tokenizer, LMTokenizer)
    stored = {path.name: path.stat().st_size for path in (run / "model").iterdir()}
    report = (run / "report.md").read_text()
    if family != "encoder":
        assert "samples" in report
        if family != "conditional":
            assert len(pipeline.sample(3)) == 3
    assert stored["tensors.safetensors"] < 2_000_000


def test_a_resumed_run_equals_an_uninterrupted_one(run_of: Any, runs: Path) -> None:
    run = run_of("lm")
    again = shutil.copytree(run, runs / "resumed")
    _, *later = sorted((again / "checkpoints").iterdir())
    for path in (again / "model", *later):
        shutil.rmtree(path)
    for name in ("report.json", "report.md"):
        (again / name).unlink()
    train(["--resume", str(again), "--quiet"])
    assert weights(again) == weights(run)


def test_a_finished_run_is_used_in_every_way(run_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of("outlines")
    pipeline = load(run, "cpu")
    assert pipeline.walks == ("linear", "spherical", "noise", "gradient")
    one, two = "A man is in a kitchen.", "Two women walk."
    for walk in pipeline.walks:
        found = pipeline.interpolate(one, two, walk, num=3)
        assert len(found.vectors) and len(found.sentences)  # with random weights, a gradient walk can end at once
    rebuilt = pipeline.reconstruct([one, two])
    vectors = pipeline.encode([one, two])
    batch = pipeline.rows([one, two])
    assert [part.num_targets for part in rebuilt] == [len(row) + 1 for row in batch]
    assert pipeline.decode(vectors) == [part.rebuilt for part in rebuilt]
    vectors.requires_grad_()
    from outlines.corpus.batching import collate
    pipeline.model.decoder.nll(collate(batch, pipeline.tokenizer.special), vectors).sum().backward()
    assert vectors.grad is not None and vectors.grad.abs().sum() > 0
    capsys.readouterr()
    for words in (["--num", "3", "--guidance", "0.7"], ["--num", "2", "--beam", "2"], ["--num", "2", "--with-score"],
                  ["--num", "2", "--rejection", "2"]):
        generate([str(run), *words])
        assert len(capsys.readouterr().out.splitlines()) >= int(words[1])
    generate(["complete", str(run), "A ma", "--num", "4"])
    assert all(line.startswith("A ma") for line in capsys.readouterr().out.splitlines())


@pytest.mark.full
def test_evaluate_and_a_second_run_over_the_decoder(run_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, lm = run_of("outlines"), run_of("lm")
    train(["evaluate", str(run), str(lm), "--num-samples", "20", "--temperatures", "1", "--reverse-steps", "5", "--quiet"])
    assert "reverse" in capsys.readouterr().out
    again = run_of("outlines", "--decoder-from", str(run), "--seed", "2")
    ours, theirs = load(run, "cpu").model.decoder.state_dict(), load(again, "cpu").model.decoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_decoder_can_use_the_tokenizer(run_of: Any, tiny_llama: Path) -> None:
    run = run_of("lm", "--decoder", "gru", "--tokenizer", f"hf:{tiny_llama}")
    pipeline = load(run, "cpu")
    assert pipeline.model.decoder.config.kind == "gru" and isinstance(pipeline.tokenizer, LMTokenizer)


def test_the_language_model_must_be_unchanged(run_of: Any, tiny_gpt2: Path) -> None:
    run, file = run_of("lm"), tiny_gpt2 / "config.json"
    before = file.read_bytes()
    try:
        file.write_bytes(before + b"\n")
        with pytest.raises(OutlinesError, match="not the language model that this run was trained with"):
            load(run, "cpu")
    finally:
        file.write_bytes(before)


def planned(*words: object) -> RunConfig:
    options = parse([*map(str, words)])
    return plan_of(options).runs["."][1]


def test_the_tokenizer_and_the_training_follow_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           tiny_gpt2: Path) -> None:
    monkeypatch.chdir(tiny_gpt2.parent)
    config = planned("lm", "--preset", "tiny", "--decoder", f"hf:{tiny_gpt2.name}")
    assert config.corpus.tokenizer == config.model.decoder == f"hf:{tiny_gpt2}"
    assert (config.corpus.vocab_size, config.model.decoder_batch_size, config.model.decoder_learning_rate) == (0, 32, 1e-3)
    assert planned("lm", "--decoder", "smollm2", "--decoder-batch-size", 8).model.decoder_batch_size == 8
    assert planned("lm", "--decoder", "transformer").model.decoder_learning_rate == 4e-3


@pytest.mark.parametrize("words", [
    ["--tokenizer", "smollm2"], ["--vocab-size", "500"], ["--lowercase"], ["--embed-dim", "8"], ["--hidden-dim", "8"],
    ["--dropout", "0.1"], ["--word-start", "counts"]])
def test_options_without_effect_are_errors(words: list[str]) -> None:
    with pytest.raises(OutlinesError, match=f"{words[0]} has no effect here"):
        planned("lm", "--decoder", "smollm2", *words)
    if words[0] == "--embed-dim":  # of the encoder
        assert planned("vae", "--decoder", "smollm2", *words).model.embed_dim == 8


def test_other_errors_of_names_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text('lm_tuning = "frozen"\n')
    assert planned("lm", "--decoder", "smollm2", "--config", tmp_path / "options.toml").model.lm_tuning == "frozen"
    with pytest.raises(OutlinesError, match=r"--lm-tuning has no effect here \(decoder 'gru' does not use it\)"):
        planned("lm", "--config", tmp_path / "options.toml")
    with pytest.raises(OutlinesError, match=r"--decoder hf: unknown decoder 'hf'\. Did you mean 'hf:'"):
        planned("lm", "--decoder", "hf")
