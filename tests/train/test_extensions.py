"""A new generator is one class and one call of `register`: a toy one, trained, sampled, evaluated and resumed."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generate.__main__ import main as generate
from outlines import load
from outlines.models.outlines import OutlineModel
from outlines.networks.generator import OutlineGenerator, generator_kinds, register
from tests.train.test_training import weights
from train.__main__ import main as train


@dataclass(frozen=True)
class MemoryConfig:
    outline_dim: int
    num_rows: int
    scale: float = 0.1


class Memory(OutlineGenerator):
    """Returns training outlines plus noise."""

    config_class = MemoryConfig
    rows: Tensor

    def __init__(self, config: MemoryConfig):
        super().__init__()
        self.config = config
        self.register_buffer("rows", torch.zeros(config.num_rows, config.outline_dim))

    @classmethod
    def configure(cls, outline_dim: int, num_rows: int, options: Mapping[str, Any]) -> MemoryConfig:
        return MemoryConfig(outline_dim, num_rows)

    def fit(self, outlines: Tensor, seed: int) -> None:
        self.rows.copy_(outlines)

    def draw(self, num: int, rng: torch.Generator) -> Tensor:
        """Normal values [num, D], and a uniform number that chooses the row."""
        normal, place = torch.randn(num, self.config.outline_dim, generator=rng), torch.rand(num, 1, generator=rng)
        return torch.cat([normal, place], dim=1)

    def forward(self, noise: Tensor) -> Tensor:
        chosen = (noise[:, -1].clamp(0, 0.999) * len(self.rows)).long()
        return self.rows[chosen] + self.config.scale * noise[:, :-1]


@pytest.fixture(scope="module")
def memory() -> Iterator[str]:
    register("memory", Memory)
    yield "memory"
    del generator_kinds()["memory"]


@pytest.fixture(scope="module")
def memory_run(memory: str, tiny_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert train([*tiny_arguments, "--generator", memory, "--decoder-steps", "10", "--evaluator-steps", "5",
                  "--num-evaluation", "30", "--runs", str(runs), "--out", str(runs / "run"), "--quiet"]) == 0
    return runs / "run"


def test_a_registered_generator_is_trained_and_evaluated(memory_run: Path) -> None:
    report = json.loads((memory_run / "report.json").read_text())
    rows = {row["source"]: row for row in report["rows"]}
    assert {"generator", "mixture", "gaussian"} <= set(rows)
    validated = [json.loads(line) for line in (memory_run / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in validated if "valid/precision" in line]
    assert len(found) == 1 and found[0]["stage"] == "fit"
    # Outlines near training outlines are more precise than those of one Gaussian.
    assert found[0]["valid/precision"] >= found[0]["valid/precision_gaussian"]


def test_a_registered_generator_is_sampled(memory_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate([str(memory_run), "--num", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    pipeline = load(memory_run, "cpu")
    assert isinstance(pipeline.model, OutlineModel) and isinstance(pipeline.model.generator, Memory)
    assert pipeline.model.critic is None and "noise" not in pipeline.walks
    assert generate([str(memory_run), "--num", "3", "--rejection", "2"]) == 2
    assert "has no critic" in capsys.readouterr().err


def test_a_registered_generator_is_evaluated_again(memory_run: Path, recurrent_encoder: Path) -> None:
    assert train(["evaluate", str(memory_run), "--sources", "generator", "--temperatures", "1", "--num-samples", "20",
                  "--encoder", f"recurrent:{recurrent_encoder}", "--quiet"]) == 0
    assert (memory_run / "evaluation.json").exists()


def test_a_registered_generator_is_resumed(memory_run: Path) -> None:
    resumed = memory_run.parent / "resumed"
    shutil.copytree(memory_run, resumed)
    shutil.rmtree(resumed / "model")
    for checkpoint in sorted((resumed / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    assert train(["--resume", str(resumed), "--quiet"]) == 0
    assert weights(resumed) == weights(memory_run)


def test_an_unknown_generator_is_an_error(tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train([*tiny_arguments, "--generator", "gam"]) == 2
    assert "--generator" in capsys.readouterr().err
