"""Messages that name paths."""

import shlex
from pathlib import Path

from outlines.errors import no_run, quoted


def test_a_path_is_one_word_of_a_command() -> None:
    for path in ("runs/001", "two words/é", "it's", "$HOME", "a;b", "ru\nns"):
        assert shlex.split(f"python -m generate {quoted(Path(path))}")[3:] == [path]


def test_a_directory_of_runs_lists_them(tmp_path: Path) -> None:
    assert str(no_run(tmp_path)) == f"{tmp_path}: no run here (no run.json). Check the path."
    for name in ("002-lm", "001-two words", "003-seeds/seed-1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").touch()
    assert str(no_run(tmp_path)) == (
        f"{tmp_path}: no run here (no run.json). It contains 3 runs: '{tmp_path}/001-two words', {tmp_path}/002-lm, "
        f"{tmp_path}/003-seeds/seed-1. Choose one of them.")
    for number in range(20):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "run.json").touch()
    assert "contains 23 runs" in str(no_run(tmp_path)) and ", .... Choose" not in str(no_run(tmp_path))
