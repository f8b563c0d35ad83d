"""Progress lines: the expected length of a run, early samples, and where the time went."""

import re
import time
from pathlib import Path

import pytest

from train import loop
from train.__main__ import main
from train.runtime.progress import Reporter


def test_nested_work_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reporter = Reporter(quiet=True)
    with reporter.timed("outer"):
        now[0] += 2
        with reporter.timed("inner"):
            now[0] += 3
    with reporter.timed("later"):
        now[0] += 1
    now[0] += 1
    assert reporter.times() == "time: 7 s (outer 5 s, later 1 s)"


def test_a_run_prints_length_samples_and_times(tiny_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(loop, "SHOWN_AFTER", -1)
    assert main([*tiny_arguments, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().err
    assert re.search(r"about \d+ min until", printed)
    validations = re.findall(r"^(?:decoder|gan) step .*\n((?:  .*\n)*)", printed, re.M)
    assert validations and all(shown.count("\n") == loop.NUM_SHOWN for shown in validations)
    assert re.search(r"time: \d+ s \(corpus and outlines \d+ s, decoder \d+ s, gan \d+ s, LM baseline \d+ s, judge \d+ s, "
                     r"evaluation \d+ s\)", printed)


def test_slow_steps_show_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 0.0, 10.0, 30.0, 90.0, 90.0, 95.0])
    monkeypatch.setattr("train.runtime.progress.time.monotonic", lambda: next(clock))
    reporter = Reporter()
    for number in (3, 4, 5, 1, 2):  # two steps were measured before; then other steps begin
        reporter.step("evaluate", number, 5)
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\x1b.*?m", "", line) for line in lines] == [
        "evaluate (3 of 5)", "evaluate (4 of 5, 20 s left)", "evaluate (5 of 5, 15 s left)",
        "evaluate (1 of 5)", "evaluate (2 of 5, 20 s left)"]


def test_a_resumed_stage_counts_only_its_own_steps(capsys: pytest.CaptureFixture[str],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("train.runtime.progress.time.monotonic", lambda: now[0])
    with Reporter().bar("train decoder", "steps", 900) as progress:
        now[0] = 10.0
        progress(950, 1000)
    assert capsys.readouterr().err.splitlines() == ["train decoder: 950 of 1,000 steps, 5/s, 10 s left"]
