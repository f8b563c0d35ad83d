"""Runs that start from the decoder of a finished run, on another corpus: --decoder-from and --init-from."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from outlines import load
from outlines.checkpoint import read_state
from outlines.corpus import grammar
from train.__main__ import main
from train.commands.train import parse, plan_of
from train.runtime.run_directory import checkpoints


@pytest.fixture(scope="module")
def other_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a corpus with another distribution of words than that of `tiny_run`."""
    path = tmp_path_factory.mktemp("other") / "short.txt"
    path.write_text("".join(f"{sentence}\n" for sentence in grammar.sentences(2000, seed=9) if len(sentence) < 60))
    return path


@pytest.fixture(scope="module")
def over_its_decoder(tiny_run: Path, other_corpus: Path, recurrent_encoder: Path,
                     tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on another corpus with `tiny_run`'s decoder."""
    run = tmp_path_factory.mktemp("over") / "run"
    assert main(["--preset", "tiny", "--corpus", str(other_corpus), "--decoder-from", str(tiny_run), "--out", str(run),
                 "--encoder", f"recurrent:{recurrent_encoder}", "--quiet"]) == 0
    return run


def tensors(run: Path, part: str) -> dict[str, torch.Tensor]:
    found = {name.partition(".model.")[2]: tensor for name, tensor in read_state(run / "model")[0].items()}
    return {name: tensor for name, tensor in found.items() if name.startswith(part)}


def test_a_decoder_over_another_corpus_keeps_weights_scaling_and_tokenizer(tiny_run: Path, over_its_decoder: Path) -> None:
    for part in ("decoder.", "scaling."):
        own, theirs = tensors(over_its_decoder, part), tensors(tiny_run, part)
        assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    assert not torch.equal(tensors(over_its_decoder, "mixture.")["mixture.centres"],
                           tensors(tiny_run, "mixture.")["mixture.centres"])
    hashes, theirs = (json.loads((run / "run.json").read_text())["hashes"] for run in (over_its_decoder, tiny_run))
    assert hashes["tokenizer"] == theirs["tokenizer"] and hashes["corpus"] != theirs["corpus"]


def test_a_sentence_is_reconstructed_as_by_the_source(tiny_run: Path, over_its_decoder: Path) -> None:
    sentences = ["A man walks.", "Two girls are playing."]
    first, second = (load(run, "cpu") for run in (tiny_run, over_its_decoder))
    assert torch.equal(first.encode(sentences), second.encode(sentences))
    assert first.decode(first.encode(sentences)) == second.decode(second.encode(sentences))


def test_the_report_says_what_was_pretrained(tiny_run: Path, over_its_decoder: Path) -> None:
    report = (over_its_decoder / "report.md").read_text()
    assert f"The decoder was pretrained in {tiny_run} on scenes.txt. The LM baseline starts from the same weights" in report


@pytest.mark.parametrize("left", [0, 2])
def test_a_resumed_run_over_another_decoder_is_the_same(over_its_decoder: Path, tmp_path: Path, left: int) -> None:
    run = tmp_path / "run"
    shutil.copytree(over_its_decoder, run)
    shutil.rmtree(run / "model")
    for path in checkpoints(run)[left:]:
        shutil.rmtree(path)
    (run / "report.json").unlink()
    assert main(["--resume", str(run), "--quiet"]) == 0
    own, theirs = read_state(run / "model")[0], read_state(over_its_decoder / "model")[0]
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("family", ["outlines", "lm", "vae"])
def test_fine_tuning_starts_at_the_weights_of_the_source(family: str, tiny_run: Path, other_corpus: Path,
                                                         tmp_path: Path) -> None:
    settings = tmp_path / "still.toml"
    settings.write_text("decoder_learning_rate = 0.0\n")
    assert main([family, "--preset", "tiny", "--corpus", str(other_corpus), "--init-from", str(tiny_run), "--out",
                 str(tmp_path / "run"), "--config", str(settings), "--quiet"]) == 0
    own, theirs = tensors(tmp_path / "run", "decoder."), tensors(tiny_run, "decoder.")
    copied = {name for name in own if name in theirs and torch.equal(own[name], theirs[name])}
    read_vectors = {"decoder.first_state.weight", "decoder.every_step.weight", "decoder.every_readout.weight"}
    assert copied == theirs.keys() if family == "outlines" else {"decoder.embedding.weight", "decoder.readout.weight",
                                                                 "decoder.gru.weight_ih_l0"} <= copied
    assert own.keys() - copied <= read_vectors and (family != "lm" or not own.keys() & read_vectors)


def test_fine_tuning_improves_the_source(tiny_run: Path, other_corpus: Path, tmp_path: Path) -> None:
    assert main(["--preset", "tiny", "--corpus", str(other_corpus), "--init-from", str(tiny_run), "--out",
                 str(tmp_path / "run"), "--quiet"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    nll = [line["valid/reconstruction_nll_per_token"] for line in lines if "valid/reconstruction_nll_per_token" in line]
    assert min(nll[1:]) < nll[0]


@pytest.mark.parametrize(("flags", "message"), [
    (["--embed-dim", "32"], "--embed-dim: RUN was trained with embed_dim = 16, not 32. Leave the option out."),
    (["--vocab-size", "99"], "--vocab-size has no effect, because RUN has its own tokenizer. Leave it out."),
    (["--word-start", "counts"], "--word-start has no effect here"),
    (["--decoder-from", "RUN"], "--decoder-from has no effect with --init-from")])
def test_options_that_contradict_the_source(flags: list[str], message: str, tiny_run: Path, other_corpus: Path,
                                            capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = [str(tiny_run) if flag == "RUN" else flag for flag in flags]
    assert main(["--preset", "tiny", "--corpus", str(other_corpus), "--init-from", str(tiny_run), "--runs", str(tmp_path),
                 *given]) == 2
    error = capsys.readouterr().err
    assert message.replace("RUN", str(tiny_run)) in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_decoder_over_another_corpus_keeps_the_options_of_its_training(tiny_run: Path, other_corpus: Path, tmp_path: Path,
                                                                         capsys: pytest.CaptureFixture[str]) -> None:
    """Such as the smallest strength: `generate` must refuse strengths that the decoder was not trained for."""
    source = tmp_path / "source"
    shutil.copytree(tiny_run, source)
    description = json.loads((source / "run.json").read_text())
    trained_with = {"min_strength": 0.25, "exact_outlines": 0.75, "outline_dropout": 0.2}
    description["model"] |= trained_with
    (source / "run.json").write_text(json.dumps(description))
    arguments = ["--corpus", str(other_corpus), "--decoder-from", str(source)]
    model = plan_of(parse(arguments)).runs["."][1].model
    assert {name: getattr(model, name) for name in trained_with} == trained_with
    assert main([*arguments, "--min-strength", "0.5", "--quiet"]) == 2
    assert f"{source} was trained with min_strength = 0.25, not 0.5" in capsys.readouterr().err


def test_a_damaged_tokenizer_of_the_source_is_detected(tiny_run: Path, other_corpus: Path, recurrent_encoder: Path,
                                                       tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_run, source)
    data = bytearray((source / "tokenizer.model").read_bytes())
    data[len(data) // 2] ^= 1
    (source / "tokenizer.model").write_bytes(data)
    assert main(["--preset", "tiny", "--corpus", str(other_corpus), "--init-from", str(source), "--quiet",
                 "--out", str(tmp_path / "run"), "--encoder", f"recurrent:{recurrent_encoder}"]) == 2
    assert "tokenizer.model: damaged" in capsys.readouterr().err
