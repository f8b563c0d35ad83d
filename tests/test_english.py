"""The model of everyday English that ships with the package: use by its name, integrity, and runs that start from it."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch

import outlines
from generate.__main__ import main as generate
from outlines import pretrained
from outlines.errors import OutlinesError
from outlines.pretrained import ENGLISH, SHIPPED, run_path
from train.__main__ import main as train

MOST_BYTES = 16 << 20


def files() -> list[Path]:
    return [file for file in SHIPPED[ENGLISH].rglob("*") if file.is_file()]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the shipped run, which replaces it during the test."""
    copy = tmp_path / "copy"
    shutil.copytree(SHIPPED[ENGLISH], copy)
    monkeypatch.setitem(pretrained.SHIPPED, ENGLISH, copy)
    return copy


def test_it_is_small_and_complete() -> None:
    assert sum(file.stat().st_size for file in files()) <= MOST_BYTES
    assert {"README.md", "manifest.json", "run.json", "tokenizer.model", "training.bloom"} <= {file.name for file in files()}


def test_run_json_has_no_paths_of_the_machine_that_trained_it() -> None:
    text = (SHIPPED[ENGLISH] / "run.json").read_text()
    assert "/" not in text and not {"cache", "command", "machine"} & json.loads(text).keys()


def test_without_a_run_generate_samples_english(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate([]) == 0
    sentences = capsys.readouterr().out.splitlines()
    assert len(sentences) == 10 and sum(" " in sentence for sentence in sentences) >= 8
    assert generate(["english", "--num", "10"]) == 0
    assert capsys.readouterr().out.splitlines() == sentences == outlines.load().sample(10)


def test_sampling_reads_no_encoder_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("sampling opened a connection, or loaded the encoder")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr("outlines.inference.pipeline.load_encoder", refused)
    assert len(outlines.load("english", "cpu").sample(3)) == 3


def test_it_reconstructs_everyday_sentences() -> None:
    run = outlines.load("english", "cpu")
    wanted = ["I don't know what to do.", "Where is the train station?", "He is reading a book.", "A dog is on a bed."]
    rebuilt = run.reconstruct(wanted)
    assert sum(row.bleu for row in rebuilt) / len(rebuilt) > 50
    assert len(run.interpolate(wanted[0], wanted[1], num=5).vectors) == 5


def test_a_run_with_this_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ENGLISH).mkdir()
    assert run_path(ENGLISH) == SHIPPED[ENGLISH]
    (tmp_path / ENGLISH / "run.json").touch()
    assert run_path(ENGLISH) == Path(ENGLISH)
    assert run_path("runs/none") == Path("runs/none")


def test_commands_that_need_the_training_text_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["evaluate", ENGLISH]) == 2
    assert "english ships without its training text, so this command is not available." in capsys.readouterr().err


def test_nearest_says_that_the_training_text_does_not_ship() -> None:
    with pytest.raises(OutlinesError, match="training sentences do not ship"):
        outlines.load("english", "cpu").nearest(["A dog runs."])


@pytest.mark.parametrize("name", ["run.json", "tokenizer.model", "training.bloom", "model/meta.json",
                                  "model/tensors.safetensors"])
def test_a_flipped_bit_is_detected(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(OutlinesError, match="damaged"):
        outlines.load("english", "cpu")


@pytest.mark.parametrize("flag", ["--decoder-from", pytest.param("--init-from", marks=pytest.mark.full)])
def test_a_run_starts_from_it(flag: str, tmp_path: Path) -> None:
    corpus = tmp_path / "own.txt"
    corpus.write_text("".join(f"I have {number} {thing} in my {place}.\n" for number in range(2, 30)
                              for thing in ("books", "dogs") for place in ("room", "car", "garden")))
    run = tmp_path / "run"
    assert train(["--preset", "tiny", "--corpus", str(corpus), flag, "english", "--out", str(run), "--quiet"]) == 0
    assert "The decoder was pretrained in english" in (run / "report.md").read_text()
    assert json.loads((run / "run.json").read_text())["model"][flag.strip("-").replace("-", "_")] == "english"
    own, theirs = outlines.load(run, "cpu"), outlines.load("english", "cpu")
    assert own.sample(2) and own.tokenizer.fingerprint == theirs.tokenizer.fingerprint
    weights = theirs.model.decoder.state_dict()
    same = all(torch.equal(weights[name], tensor) for name, tensor in own.model.decoder.state_dict().items())
    assert same == (flag == "--decoder-from")
