"""Generators trained by flow matching, from the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from outlines import load
from outlines.models.outlines import OutlineModel
from outlines.networks.flow import FlowGenerator
from tests.train.test_training import weights
from train.__main__ import main as train
from train.commands.train import parse, plan_of
from train.methods.outlines import OutlineOptions

OPTIONS = """
flow_steps = 12
flow_validate_every = 6
flow_hidden_dim = 16
"""


@pytest.mark.parametrize(("generator", "precision"), [("flow", "bfloat16"), ("flow-gan", "float32")])
def test_a_flow_is_trained_sampled_and_resumed(generator: str, precision: str, tiny_arguments: list[str],
                                               tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text(OPTIONS + ("flow_weight = 0.5\n" if generator == "flow-gan" else ""))
    arguments = [*tiny_arguments, "--precision", precision, "--runs", str(tmp_path), "--generator", generator, "--config",
                 str(tmp_path / "options.toml"), "--decoder-steps",
                 "10", "--evaluator-steps", "5"]
    assert train([*arguments, "--out", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {"generator", "mixture", "gaussian"} <= {row["source"] for row in report["rows"]}
    assert ("memorised" in report["generator"]) and report["generator"]["verdict"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines if "train/flow_loss" in line} == (
        {"flow"} if generator == "flow" else {"flow", "gan"})
    run = load(tmp_path / "run")
    assert len(run.sample(3)) == 3
    model = run.model
    assert isinstance(model, OutlineModel) and isinstance(model.generator, FlowGenerator)
    assert (model.critic is None) == (generator == "flow")
    assert any(parameter.abs().sum() > 0 for parameter in model.generator.velocity.last.parameters())
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "run", resumed)
    shutil.rmtree(resumed / "model")
    for checkpoint in sorted((resumed / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    assert train(["--resume", str(resumed)]) == 0
    assert weights(resumed) == weights(tmp_path / "run")


def test_a_preset_can_stand_for_its_family() -> None:
    for words in (["flow"], ["flow", "--preset", "small"], ["flow-gan", "--preset", "tiny"]):
        given = words[2:]  # the size, if any
        short, full = (plan_of(parse(line)) for line in (words, ["outlines", "--preset", *given, words[0]]))
        assert short.runs == full.runs and short.name == full.name
        model = short.runs["."][1].model
        assert isinstance(model, OutlineOptions) and model.generator == words[0]


def test_a_gan_keeps_its_flow_if_no_validation_is_better(tiny_arguments: list[str], tmp_path: Path) -> None:
    # The GAN's learning rate is so small that its validations equal the flow's.
    (tmp_path / "options.toml").write_text(OPTIONS + "gan_learning_rate = 1e-12\n")
    for generator in ("flow", "flow-gan"):
        options = [*tiny_arguments, "--runs", str(tmp_path), "--generator", generator, "--decoder-steps", "10",
                   "--evaluator-steps", "5"]
        if generator == "flow":
            (tmp_path / "flow.toml").write_text(OPTIONS)
        config = "flow.toml" if generator == "flow" else "options.toml"
        assert train([*options, "--config", str(tmp_path / config), "--out", str(tmp_path / generator)]) == 0
    flow, gan = (load(tmp_path / name).model for name in ("flow", "flow-gan"))
    assert isinstance(flow, OutlineModel) and isinstance(gan, OutlineModel)
    kept = gan.generator.state_dict()
    for name, tensor in flow.generator.state_dict().items():
        assert torch.allclose(tensor, kept[name], atol=1e-6), name


def test_options_of_another_generator_have_no_effect(tiny_arguments: list[str], tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    assert train([*tiny_arguments, "--generator", "flow", "--gan-steps", "5", "--out", str(tmp_path / "run")]) == 2
    assert "--gan-steps has no effect here (with generator flow). Leave it out." in capsys.readouterr().err
    (tmp_path / "options.toml").write_text(OPTIONS)
    assert train([*tiny_arguments, "--config", str(tmp_path / "options.toml"), "--generator", "gan"]) == 2
    assert "has no effect here (with generator gan)" in capsys.readouterr().err
