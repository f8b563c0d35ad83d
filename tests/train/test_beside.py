"""The second process on the other half of the CPU."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from outlines.checkpoint import read_state
from train import beside
from train.__main__ import main
from train.loop import Loop
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks
from train.runtime.signals import StopSignals
from train.session import Session, half_of_threads, run_config

SECONDS = 120.0


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two threads, and runs of any size are large enough."""
    monkeypatch.setattr("train.session.LEAST_SENTENCES", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def first_waits_for(pattern: str, root: Path, num: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the first training of this process wait until the other process has written `num` models; return the threads."""
    train, threads = Loop.run, list[int]()

    def waiting(loop: Loop) -> None:
        threads.append(torch.get_num_threads())
        started = time.monotonic()
        while len(list(root.glob(pattern))) < num:
            assert time.monotonic() - started < SECONDS, "the second process has trained nothing"
            time.sleep(0.1)
        train(loop)

    monkeypatch.setattr(Loop, "run", waiting)
    return threads


def trained_by(directory: Path) -> int:
    return int((directory / "lock").read_text())


def test_the_second_process_trains_judge_and_baseline(two_threads: None, tiny_arguments: list[str], tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    threads = first_waits_for("runs-cache/lm-*/model", tmp_path, 2, monkeypatch)
    assert main([*tiny_arguments, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    models = list(tmp_path.glob("runs-cache/lm-*"))
    assert len(models) == 2 and os.getpid() not in set(map(trained_by, models))
    assert threads == [1] and torch.get_num_threads() == 2
    assert "lm" in {row["source"] for row in json.loads((tmp_path / "run" / "report.json").read_text())["rows"]}


def test_the_second_process_trains_the_last_runs_of_a_group(two_threads: None, tiny_arguments: list[str], tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["compare", *tiny_arguments[1:], "--families", "outlines,lm", "--runs", str(tmp_path / "runs"), "--quiet"]
    together, one_by_one = tmp_path / "together", tmp_path / "one-by-one"
    torch.set_num_threads(1)  # then there is no second process
    assert main([*given, "--out", str(one_by_one)]) == 0
    torch.set_num_threads(2)
    first_waits_for("together/lm/model", tmp_path, 1, monkeypatch)
    assert main([*given, "--out", str(together)]) == 0
    assert (together / "report.md").exists()
    for family in ("outlines", "lm"):
        first, second = (read_state(out / family / "model")[0] for out in (together, one_by_one))
        assert all(torch.equal(first[name], second[name]) for name in first)  # one thread in both cases


def test_only_large_runs_on_a_cpu_share_their_threads(tiny_run: Path, two_threads: None) -> None:
    config = run_config(tiny_run)
    session = Session(tiny_run, Ranks(), Reporter(silent=True), StopSignals(), "cpu")
    assert half_of_threads(config, session) == 1
    assert half_of_threads(config, dataclasses.replace(session, all_threads=True)) == 0
    assert half_of_threads(config, dataclasses.replace(session, ranks=Ranks(0, 2))) == 0
    torch.set_num_threads(1)
    assert half_of_threads(config, session) == 0


def test_a_small_run_uses_all_threads(tiny_run: Path) -> None:
    session = Session(tiny_run, Ranks(), Reporter(silent=True), StopSignals(), "cpu")
    assert half_of_threads(run_config(tiny_run), session) == 0


def test_the_second_process_ends_with_the_first(tiny_run: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def noting(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(beside.subprocess, "Popen", noting)
    session = Session(tiny_run, Ranks(), Reporter(silent=True), StopSignals(), "cpu")
    with pytest.raises(RuntimeError, match="stopped"), beside.beside(tiny_run, session):
        raise RuntimeError("stopped")
    assert len(started) == 1 and started[0].poll() is not None


def test_the_second_process_ends_when_the_first_is_killed() -> None:
    second = ("import os, time; from train.beside import stop_with; stop_with(os.getppid()); "
              f"print('ready', flush=True); time.sleep({SECONDS})")
    first = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {second!r}])"
    with subprocess.Popen([sys.executable, "-c", first], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.kill()
        killed = time.monotonic()
        process.stdout.read()  # until the second process has ended, because it inherited this pipe
    assert time.monotonic() - killed < SECONDS / 2
