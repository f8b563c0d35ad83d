"""The training command: the report that it prints at the end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from train.__main__ import main


def test_the_closing_report_fits_on_a_screen(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", str(tiny_run), "--quiet"]) == 0
    shown = capsys.readouterr().out
    figures, samples = shown.split("ten samples at T = 0.5:\n")
    assert max(map(len, figures.splitlines())) <= 120
    assert len(shown.splitlines()) <= 50 and len(samples.split("\n\n")[0].splitlines()) == 10
    assert "Samples" not in shown
    assert "The generator " in figures and "outlines: The vector is " in figures


def test_the_full_report_has_what_the_screen_has_not(tiny_run: Path) -> None:
    text = (tiny_run / "report.md").read_text()
    for part in ("| unique |", "distinct-2: number of different bigrams", "Critic memorisation: ", "NLL gap (new vector)",
                 " dimensions, each swapped on its own in "):
        assert part in text
    report = json.loads((tiny_run / "report.json").read_text())
    default, one = text.split("T = 0.5\n")[1].split("T = 1\n")
    assert [len(row["samples"]) for row in report["rows"]] == [20] * len(report["rows"])
    assert "| real text | real outlines | generator | mixture | gaussian | lm |" in default
    assert "| real text | real outlines | generator | lm |" in one


def test_an_option_of_another_family_in_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "options.toml"
    file.write_text("gan_steps = 4\n")
    assert main(["lm", "--config", str(file)]) == 2
    assert capsys.readouterr().err == ("error: gan_steps has no effect here. Only the families conditional and outlines "
                                       "have it. Leave it out.\n")
    file.write_text("seed = 4\n")
    assert main(["lm", "--config", str(file), "--seeds", "1,2"]) == 2
    assert "--seed has no effect with --seeds" in capsys.readouterr().err
    file.write_text("decoder_step = 4\n")
    assert main(["lm", "--config", str(file)]) == 2
    assert f"unknown option in {file}: 'decoder_step'. Did you mean 'decoder_steps'?" in capsys.readouterr().err


@pytest.mark.parametrize(("place", "advice"), [
    ("train.methods.outlines.OutlineModel.__init__", "a smaller model: lower the options whose names end in -dim."),
    ("train.data.encode_shards", "Free memory, use --device cpu (with --resume, too), or lower --num-evaluation."),
    ("train.methods.decoder_stage.DecoderStage.step", "or start a new run with a lower --decoder-batch-size."),
    ("train.methods.gan_stage.GanStage.step", "or start a new run with a lower --gan-batch-size."),
])
def test_a_lack_of_memory_is_one_line_and_the_run_can_go_on(
        place: str, advice: str, tiny_arguments: list[str], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nGPU 0 is full.")

    def failed(*arguments: str, advice: str) -> bool:
        assert main([*arguments, "--quiet"]) == 2
        said = capsys.readouterr().err
        return said.count("\n") == 1 and said.endswith(f" {advice}\n") and said.startswith(
            "error: Out of memory (CUDA out of memory. GPU 0 is full.). ")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        assert failed(*tiny_arguments, "--runs", str(tmp_path / "runs"), "--out", str(run), advice=advice)
    if "gan" in place:
        with monkeypatch.context() as patch:
            patch.setattr("train.loop.load_modules", fail)
            assert failed("--resume", str(run), advice="or use --device cpu; the checkpoints are intact.")
        assert main(["--resume", str(run), "--quiet"]) == 0
        weights = [(directory / "model" / "tensors.safetensors").read_bytes() for directory in (run, tiny_run)]
        assert weights[0] == weights[1]
