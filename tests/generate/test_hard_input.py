"""Input that other people have: bad lines, words that are cut off, numbers at the edge, terminals without UTF-8."""

import contextlib
import gzip
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import outlines
from generate.__main__ import main
from generate.verbs import _read, _usable
from outlines.decoding.sample import SamplingConfig
from outlines.errors import OutlinesError
from outlines.inference.pipeline import Pipeline
from tests.conftest import environment

EDGES = [5e-324, 1e-45, 1e-40, 1e-300, 1e-6, 1e-3, 1e3, 1e38, 1e39, 1.7e308, float("inf"), float("nan"), -0.0, 0.0, 1.0]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(["temperature", "top_p", "noise_scale", "guidance"]), value=st.sampled_from(EDGES) | st.floats())
def test_every_number_samples_or_is_one_line(pipeline: Pipeline, name: str, value: float) -> None:
    try:
        sampling = SamplingConfig(**{"max_len": 4, name: value})  # type: ignore[arg-type]
        for sentence in pipeline.sentences(3, 1, sampling, scored=True):
            assert all(score is None or score == score for score in sentence[1:])
    except OutlinesError as error:
        assert "\n" not in str(error)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(radius=st.sampled_from(EDGES) | st.floats())
def test_every_radius_samples_or_is_one_line(pipeline: Pipeline, radius: float) -> None:
    vector = pipeline.model.vectors(1, torch.Generator().manual_seed(1), "generator")
    with contextlib.suppress(OutlinesError):
        assert vector is not None
        assert len(list(pipeline.sentences(2, 1, SamplingConfig(max_len=4), pipeline.around(vector[0], radius)))) == 2


@pytest.mark.parametrize("beginning", ["A wom", "A woman ", "Two d", "wom", "A caf\u00e9", "A \U0001f600"])
@pytest.mark.parametrize("beam", [0, 2])
def test_a_beginning_is_continued_inside_its_word(pipeline: Pipeline, beginning: str, beam: int) -> None:
    sampling = SamplingConfig(temperature=0.7, max_len=20, beam=beam)
    texts = [sentence.text for sentence in pipeline.sentences(30, 1, sampling, prefix=beginning)]
    assert all(text.startswith(beginning.rstrip()) for text in texts)
    if beginning.endswith(" "):
        assert all(text == beginning.rstrip() or text.startswith(beginning) for text in texts)


def test_bad_lines_are_reported_and_the_others_answered(tiny_run: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.txt").write_bytes(b"A dog runs.\n\x01\n" + b"word " * 300 + b"\nA \xff cat.\nA cat.\n")
    for verb, bad in (("reconstruct", (2, 3, 4)), ("nearest", (2, 4))):
        assert main([verb, str(tiny_run), "--file", str(tmp_path / "in.txt"), "--format", "jsonl", "--device", "cpu"]) == 0
        captured = capsys.readouterr()
        skipped = [line for line in captured.err.splitlines() if line.startswith("skipped")]
        assert len(skipped) == len(bad) and all(f"line {number}:" in line for number, line in zip(bad, skipped, strict=True))
        assert len([json.loads(line) for line in captured.out.splitlines()]) == 5 - len(bad)


def test_files_of_sentences_are_read_like_a_corpus(tmp_path: Path) -> None:
    for name, data in (("mac.txt", b"\xef\xbb\xbfA dog.\rA cat.\r"), ("gzip.txt", gzip.compress(b"A dog.\n\nA cat.\n"))):
        (tmp_path / name).write_bytes(data)
        assert [line for _, line in _read(tmp_path / name)] == ["A dog.", "A cat."]
    (tmp_path / "a.xlsx").write_bytes(b"PK\3\4")
    for name, message in (("a.xlsx", "a document"), (".", "Is a directory")):
        with pytest.raises(OutlinesError, match=message):
            list(_read(tmp_path / name))


def test_lines_that_are_all_bad_are_one_error() -> None:
    with pytest.raises(OutlinesError, match=r"^line 1: invalid.* The other line cannot be used either\.$"):
        list(_usable([("line 1", "a"), ("line 2", "b")], int_or_error))


def int_or_error(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise OutlinesError(str(error)) from error


def test_the_runs_own_maximum_length_is_the_default(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "max_len", 3)
    monkeypatch.setattr(pipeline, "num_cut", 0)
    texts = pipeline.sample(20)
    assert texts == pipeline.sample(20, max_len=3) != pipeline.sample(20, max_len=64)
    assert pipeline.num_cut > 0


def test_sentences_that_the_encoder_cannot_read_are_counted(tiny_run: Path, capsys: pytest.CaptureFixture[str],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = type(outlines.load(tiny_run, "cpu").encoder)
    monkeypatch.setattr(encoder, "unread", lambda self, texts: (float("ส" in texts[0]), float(len(texts[0]) > 60)))
    verbs = ["reconstruct"], ["nearest", "--num", "1"]
    for verb, *options in verbs:
        assert main([verb, str(tiny_run), "A dog runs.", "สวัสดี", "A dog runs." * 6, *options, "--device", "cpu"]) == 0
        assert "cannot read to their end: 2. " in capsys.readouterr().err
        assert main([verb, str(tiny_run), "A dog runs.", *options, "--device", "cpu"]) == 0
        assert "cannot read" not in capsys.readouterr().err


@pytest.mark.parametrize("module", ["train", "generate"])
def test_help_on_an_ascii_terminal(module: str) -> None:
    import subprocess
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True,
                          env={**environment(), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.returncode == 0 and done.stderr == b""


def test_a_notebook_has_no_file_descriptor(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    notebook = io.StringIO()
    for stream, status in ((notebook, 0), (Closed(), 141)):
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([str(tiny_run), "--num", "2", "--device", "cpu"]) == status
    assert notebook.getvalue().count("\n") == 2
