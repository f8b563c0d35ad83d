"""The training command: the report that it prints at the end."""

from pathlib import Path

import pytest

from train.__main__ import main


def test_the_closing_report_fits_on_a_screen(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", str(tiny_run), "--quiet"]) == 0
    shown = capsys.readouterr().out
    figures, samples = shown.split("ten samples at T = 0.7:\n")
    assert max(map(len, figures.splitlines())) <= 120
    assert len(shown.splitlines()) <= 50 and len(samples.split("\n\n")[0].splitlines()) == 10
    assert "The generator " in figures and "outlines: The vector is " in figures


def test_the_full_report_has_what_the_screen_has_not(tiny_run: Path) -> None:
    text = (tiny_run / "report.md").read_text()
    for part in ("| unique |", "distinct-2: distinct bigrams / bigrams", "Critic memorisation: ", "NLL gap (new vector)",
                 " dimensions, swapped one at a time on "):
        assert part in text
