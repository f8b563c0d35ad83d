"""Generators over one decoder: --decoder-from, and the ablation's table."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from outlines.checkpoint import read_state, write_state
from train.__main__ import main
from train.commands.ablate import _time
from train.method import NotFinite
from train.methods.gan_stage import GanStage
from train.methods.outlines import OutlinesMethod


@pytest.fixture(scope="module")
def ablation(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ablation") / "out"
    assert main(["ablate", str(tiny_run), "--vary", "objective=r3,wgan-gp", "start=gaussian", "gan-steps=4", "seed=1,2",
                 "--out", str(out), "--quiet"]) == 0
    return out


def test_decoder_from_gives_the_same_generator(tiny_run: Path, tiny_arguments: list[str], tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main([*tiny_arguments, "--decoder-from", str(tiny_run), "--runs", str(tiny_run.parent), "--out", str(again),
                 "--quiet"]) == 0
    first, second = (read_state(run / "model")[0] for run in (tiny_run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(json.loads(line)["stage"] == "decoder" for line in (again / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize(("flags", "message"), [
    (["--hidden-dim", "32"], "hidden_dim = 24, not 32"), (["--min-strength", "0.5"], "min_strength = 0.0, not 0.5"),
    (["--max-len", "9"], "max_len = 64, not 9")])
def test_a_decoder_that_does_not_fit(tiny_run: Path, tiny_arguments: list[str], flags: list[str], message: str,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*tiny_arguments, "--decoder-from", str(tiny_run), "--runs", str(tiny_run.parent), "--quiet", *flags]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_decoder_from_an_unsuitable_run_is_refused(tiny_run: Path, tiny_arguments: list[str], tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(run: Path) -> str:
        assert main([*tiny_arguments, "--decoder-from", str(run), "--runs", str(tiny_run.parent), "--quiet"]) == 2
        return capsys.readouterr().err

    def not_reached(*arguments: object) -> None:
        raise AssertionError("the corpus was prepared first")

    monkeypatch.setattr("train.session.open_dataset", not_reached)
    assert "no run here" in refused(tmp_path / "none")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(tiny_run / "run.json", unfinished)
    assert "has not finished" in refused(unfinished)
    other = json.loads((tiny_run / "run.json").read_text()) | {"family": "lm"}
    (unfinished / "run.json").write_text(json.dumps(other))
    assert "a run of 'lm'" in refused(unfinished)


def test_table_has_controls_and_every_combination(ablation: Path) -> None:
    report = (ablation / "report.md").read_text()
    rows = [line.split(" |")[0].removeprefix("| ").strip() for line in report.splitlines() if line.startswith("| ")]
    assert rows == ["source", "real outlines", "mixture", "gaussian", "objective r3, start gaussian, gan-steps 4",
                    "objective wgan-gp, start gaussian, gan-steps 4"]
    columns = next(line for line in report.splitlines() if line.startswith("| source"))
    for column in ("precision", "recall", "Fréchet", "two-sample", "T = 0.7", "training seconds",
                   "nearest training outline", "MAUVE", "µs per outline", "verdict"):
        assert column in columns
    assert report.count("python -m train ablate") == 4


def test_the_command_of_a_row_reproduces_it(ablation: Path, tmp_path: Path) -> None:
    rows = json.loads((ablation / "rows.json").read_text())["rows"]
    key, row = list(rows.items())[-1]
    command = shlex.split(row["command"])
    assert command[:3] == ["python", "-m", "train"]
    command[command.index("--out") + 1] = str(tmp_path / "again")
    assert main([*command[3:], "--quiet"]) == 0
    again = json.loads((tmp_path / "again" / "rows.json").read_text())["rows"]
    assert set(again) == {"real outlines", "mixture", "gaussian", key}
    apart = {"command", "seconds", "cpu_seconds", "microseconds"}
    assert {name: value for name, value in again[key].items() if name not in apart} == {
        name: value for name, value in row.items() if name not in apart}


def test_rows_of_one_seed_share_their_fitted_baselines(ablation: Path, tiny_run: Path) -> None:
    runs = {path.parent.name: json.loads(path.read_text()) for path in ablation.glob("*/run.json")}
    sources = {name: Path(run["model"]["decoder_from"]).name for name, run in runs.items()}
    assert {sources[name] for name in sources if name.endswith("seed_1")} == {tiny_run.name}
    first, second = (name for name in sources if name.endswith("seed_2"))
    assert {sources[first], sources[second]} in ({tiny_run.name, first}, {tiny_run.name, second})


def test_the_seconds_of_a_row_are_summed_over_its_stages(tmp_path: Path) -> None:
    lines = [("flow", 50, 10), ("flow", 100, 20), ("gan", 50, 5), ("gan", 60, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(
        json.dumps({"stage": stage, "step": step, "speed/steps_per_sec": speed, "speed/cpu_sec_per_step": 0.5}) + "\n"
        for stage, step, speed in lines))
    assert _time(tmp_path) == {"steps": 160, "seconds": 5 + 2.5 + 10 + 1, "cpu_seconds": 80}


def test_only_the_outlines_can_be_measured(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("draw", "quick_judges", "load_encoder"):
        monkeypatch.setattr(f"train.commands.ablate.{name}", lambda *_, **__: pytest.fail("a sentence was measured"))
    out = ["--outlines-only", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(["ablate", str(tiny_run), "--vary", "gan-steps=4", *out]) == 0
    printed = capsys.readouterr().out
    columns = next(line for line in printed.splitlines() if line.startswith("| source"))
    assert "nearest training outline" in columns and "NLL" not in columns and "verdict" not in columns
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    assert len(rows) == 4 and all(row["outline_precision"] >= 0 for row in rows.values())
    assert "--outlines-only" in rows["gan-steps 4, seed 1"]["command"]
    assert main(["ablate", str(tiny_run), "--vary", "gan-steps=4", "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert "contains rows with --outlines-only" in capsys.readouterr().err


def test_measured_rows_are_not_measured_again(ablation: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("train.commands.ablate.measured", lambda *_: pytest.fail("measured again"))
    assert main(["ablate", str(tiny_run), "--vary", "objective=r3", "start=gaussian", "gan-steps=4", "--out", str(ablation),
                 "--quiet"]) == 0
    assert "objective wgan-gp" in capsys.readouterr().out  # the table is of all that the directory holds


def test_a_diverged_run_has_a_row(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    def step(*_: object) -> None:
        raise NotFinite("critic loss: the loss is nan")

    monkeypatch.setattr(GanStage, "step", step)
    monkeypatch.setattr("train.commands.ablate.measured", lambda *_: {})
    assert main(["ablate", str(tiny_run), "--vary", "gan-steps=10", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert re.search(r"^\| gan-steps 10 +\| diverged \|$", capsys.readouterr().out, re.MULTILINE)


def test_unsuitable_directories_are_refused(ablation: Path, tiny_run: Path, tmp_path: Path,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    def refused(run: Path, out: Path) -> str:
        assert main(["ablate", str(run), "--out", str(out), "--quiet"]) == 2
        return capsys.readouterr().err

    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    assert "contains a run" in refused(tiny_run, other)
    tensors, meta = read_state(other / "model")
    write_state(other / "model", {name: tensor + 1 for name, tensor in tensors.items()}, meta)
    assert "contains the ablation of another run" in refused(other, ablation)
    shutil.rmtree(other / "model")
    assert "training has not finished" in refused(other, tmp_path / "out")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--vary", "gan-stepz=4"], "'gan_steps'"), (["--vary", "gan-steps"], "Write each option once"),
    (["--vary", "gan-steps=4", "gan_steps=5"], "Write each option once"),
    (["--vary", "encoder-name=x"], "unknown option to vary: 'encoder_name'"),
    (["--vary", "encoder=multilingual-minilm"], "because all generators use RUN's decoder"),
    (["--vary", "gan-steps=many"], "Use a whole number"),
    (["--vary", "generator=flow", "objective=r3,wgan-gp"], "--vary objective has no effect (with generator flow)"),
    (["--vary", "start=nowhere"], "Use mixture or gaussian or noise"), (["--rejection", "x"], "Write numbers with commas")])
def test_bad_arguments(tiny_run: Path, tmp_path: Path, arguments: list[str], message: str,
                       capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", str(tiny_run), *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_every_chart_has_its_curves(tiny_run: Path) -> None:
    keys = {key for line in (tiny_run / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    for title, (_, patterns) in OutlinesMethod.layout["generator and critic"].items():
        assert all(any(re.match(pattern, key) for key in keys) for pattern in patterns), title
    for source in ("mixture", "gaussian", "real"):
        assert {f"valid/precision_{source}", f"valid/recall_{source}", f"valid/decoded_nll_per_token_{source}"} <= keys


def test_the_report_has_a_verdict(tiny_run: Path) -> None:
    found = json.loads((tiny_run / "report.json").read_text())["generator"]
    assert found["words"] in (tiny_run / "report.md").read_text() and found["verdict"]
