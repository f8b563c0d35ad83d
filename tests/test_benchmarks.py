"""The benchmarks can be imported, and their shared parts work."""

import importlib
from pathlib import Path

import pytest

from benchmarks import memory, rounds

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", [file.stem for file in sorted((ROOT / "benchmarks").glob("*.py"))])
def test_every_benchmark_can_be_imported(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_the_cases_of_the_memory_benchmark_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory.write_corpus(tmp_path / "corpus.txt", 3000)
    memory.case("prepare", tmp_path)
    memory.case("encode", tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == 2 and (tmp_path / "store" / "meta.json").exists()


def test_the_timer_returns_the_shortest_round_and_stops_at_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [0.0], [9.0, 3.0, 2.0, rounds.BUDGET_SEC, 1.0]  # the first one warms up
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])

    def arm() -> None:
        now[0] += durations.pop(0)

    assert rounds.shortest({"arm": arm}, num_rounds=10) == {"arm": 2.0} and durations == [1.0]
