"""A new generator or decoder is one class and one entry of a registry: toy ones, trained, sampled, evaluated and resumed."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generate.__main__ import main as generate
from outlines import load
from outlines.corpus.batching import TokenBatch
from outlines.models.outlines import OutlineModel
from outlines.networks.decoder import DECODERS, Decoder, DecoderConfig
from outlines.networks.generator import GENERATORS, OutlineGenerator
from outlines.networks.losses import bag_of_words_nll
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


@dataclass(frozen=True)
class BagConfig(DecoderConfig):
    kind: str = "toy-bag"
    embed_dim: int = 8


@dataclass(frozen=True)
class BagCache:
    logits: Tensor

    def select(self, rows: Tensor) -> "BagCache":
        return BagCache(self.logits[rows])


class Bag(Decoder):
    """A bag of words: every token has the same distribution, which depends only on the vector."""

    config_class = BagConfig
    config: BagConfig

    def __init__(self, config: BagConfig):
        super().__init__(config)
        self.hidden = nn.Linear(max(1, config.vector_dim), config.embed_dim)
        self.output = nn.Linear(config.embed_dim, config.vocab_size)

    def start(self, vector: Tensor | None, num: int) -> BagCache:
        vector = self.output.weight.new_zeros(num, 1) if vector is None else vector
        return BagCache(self.output(torch.tanh(self.hidden(vector))))

    def step(self, tokens: Tensor, cache: BagCache) -> Tensor:
        return cache.logits

    def nll(self, tokens: TokenBatch, vector: Tensor | None) -> Tensor:
        return bag_of_words_nll(self.start(vector, len(tokens.targets)).logits, tokens.targets, tokens.mask)


@pytest.fixture(scope="module")
def memory() -> Iterator[str]:
    GENERATORS["memory"] = Memory
    yield "memory"
    del GENERATORS["memory"]


@pytest.fixture(scope="module")
def bag() -> Iterator[str]:
    DECODERS["toy-bag"] = Bag
    yield "toy-bag"
    del DECODERS["toy-bag"]


@pytest.fixture(scope="module")
def bag_run(bag: str, tiny_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert train([*tiny_arguments, "--decoder", bag, "--decoder-steps", "10", "--gan-steps", "10", "--evaluator-steps", "5",
                  "--num-evaluation", "30", "--runs", str(runs), "--out", str(runs / "run"), "--quiet"]) == 0
    return runs / "run"


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
    # Outlines near training outlines are more precise than outlines of one Gaussian.
    assert found[0]["valid/precision"] >= found[0]["valid/precision_gaussian"]


def test_a_registered_generator_is_sampled(memory_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate([str(memory_run), "--num", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    pipeline = load(memory_run, "cpu")
    assert isinstance(pipeline.model, OutlineModel) and isinstance(pipeline.model.generator, Memory)
    assert pipeline.model.critic is None and "noise" not in pipeline.walks
    assert generate([str(memory_run), "--num", "3", "--rejection", "2"]) == 2
    assert "This outlines model has no critic for rejection sampling" in capsys.readouterr().err


@pytest.mark.parametrize("extended", ["memory_run", "bag_run"])
def test_an_extended_run_is_evaluated_again(extended: str, recurrent_encoder: Path, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(extended)
    assert train(["evaluate", str(run), "--sources", "generator", "--temperatures", "1", "--num-samples", "20",
                  "--reverse-steps", "5", "--encoder", f"recurrent:{recurrent_encoder}", "--quiet"]) == 0
    assert (run / "evaluation.json").exists()


@pytest.mark.parametrize("extended", ["memory_run", "bag_run"])
def test_an_extended_run_is_resumed(extended: str, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(extended)
    resumed = run.parent / "resumed"
    shutil.copytree(run, resumed)
    shutil.rmtree(resumed / "model")
    for checkpoint in sorted((resumed / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    assert train(["--resume", str(resumed), "--quiet"]) == 0
    assert weights(resumed) == weights(run)


def test_a_registered_decoder_is_trained_and_sampled(bag_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in (bag_run / "metrics.jsonl").read_text().splitlines()]
    nll = [line["valid/reconstruction_nll_per_token"] for line in lines if "valid/reconstruction_nll_per_token" in line]
    assert nll[-1] < math.log(450), "less than the NLL of a uniform distribution over the vocabulary"
    for arguments in (["--num", "3"], ["--num", "3", "--guidance", "0.5"], ["reconstruct", "--beam", "2"]):
        verb, *flags = arguments if arguments[0] == "reconstruct" else ["sample", *arguments]
        sentences = bag_run.parent / "sentences.txt"
        sentences.write_text("A man reads a book.\n")
        file = ["--file", str(sentences)] if verb == "reconstruct" else []
        assert generate([verb, str(bag_run), *file, *flags]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.strip() or verb == "sample"
    assert isinstance(load(bag_run, "cpu").model.decoder, Bag)


@pytest.mark.parametrize("flag, value", [("--hidden-dim", "32"), ("--dropout", "0.2")])
def test_options_that_a_registered_decoder_does_not_use_are_refused(bag: str, flag: str, value: str,
                                                                    tiny_arguments: list[str],
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    assert train([*tiny_arguments, "--decoder", bag, flag, value, "--quiet"]) == 2
    assert f"{flag} has no effect here (decoder {bag!r} does not use it)" in capsys.readouterr().err


def test_an_unknown_generator_is_an_error(tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train([*tiny_arguments, "--generator", "gam"]) == 2
    assert "--generator" in capsys.readouterr().err
