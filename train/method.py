"""The interface between the loop and the families: a Method is a model and a list of stages."""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from outlines.errors import OutlinesError
from outlines.models.base import TextModel
from outlines.models.registry import discover, save_model
from train import methods
from train.config import SIZES, DecoderOptions, RunConfig, presets_of
from train.data import Batch, Dataset
from train.runtime.progress import Progress, Reporter
from train.runtime.ranks import Ranks

EVALUATION_SAMPLES = 8  # number of sentences that each validation generates


class NotFinite(OutlinesError):
    """A loss, gradient or weight is NaN or infinite."""


class Update:
    """One optimiser step on a loss, with the gradient summed over ranks and clipped."""

    def __init__(self, ranks: Ranks, clip_norm: float):
        self.ranks, self.clip_norm = ranks, clip_norm

    def __call__(self, name: str, optimizer: Optimizer, loss: Tensor) -> Tensor:
        """Make one update and return the gradient norm before clipping. loss: this rank's share of the global loss.

        Raises NotFinite, before any weight changes, if the loss or the norm is not finite.
        """
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        value = loss.detach().clone()
        self.ranks.sum_([*gradients, value])
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        # Both numbers are read together because each read waits for the GPU.
        numbers = torch.stack([value.float(), norm.float()]).tolist()
        for quantity, number in zip(("loss", "gradient norm"), numbers, strict=True):
            if not math.isfinite(number):
                raise NotFinite(f"{name}: the {quantity} is {number}")
        optimizer.step()
        return norm


@dataclass(frozen=True)
class Validation:
    """The results of a validation.

    figures: metrics by log key. criterion: the stage keeps the weights with the lowest criterion. levels: metrics of
    baselines that do not change; they are logged, but not printed. histograms, pictures: for TensorBoard, by key.
    vectors: [N, D], from which samples are written; None: the model draws vectors.
    """

    figures: Mapping[str, float]
    criterion: float
    levels: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Tensor] = field(default_factory=dict)
    pictures: Mapping[str, Figure] = field(default_factory=dict)
    vectors: Tensor | None = None


class Stage(ABC):
    """A part of training with its own batches and schedule. Stages run one after another."""

    name: str
    num_steps: int
    batch_size: int  # number of rows (sentences or outlines) in a global batch
    batch_flag = "--decoder-batch-size"
    validate_every: int
    modules: dict[str, nn.Module]  # the trained modules; the loop restores their best weights at the end of the stage
    optimizers: dict[str, Optimizer]
    like_length = False  # whether the sentences of a batch have similar lengths; otherwise batches are random
    passes = 1  # approximate number of passes of a row through the modules per step; for the estimate of the run's duration
    patience = 0  # number of validations without improvement after which the stage ends early; 0: never
    validates_start = False  # whether to validate before the first step, so that the initial weights can be the best ones
    several_updates = False
    """whether a step makes several updates; then undoing a failed step needs a copy of the weights"""

    def begin(self, progress: Progress) -> None:
        """Prepare the stage before its first step. Must not write files, because a signal may interrupt it at any point."""
        return

    @abstractmethod
    def step(self, step: int, batch: Batch, update: Update) -> dict[str, Tensor]:
        """Make the updates of a step. Return this rank's share of each global mean, by log key; norm/…: the whole norm."""

    @abstractmethod
    def validate(self) -> Validation:
        """Return the results on the validation split. Deterministic; does not change weights."""

    def finish(self, directory: Path) -> None:
        """Complete the model when all stages have ended, on the first rank only. directory: the run's directory."""
        return


class Snapshot:
    """A copy of everything that a step may change, to undo a step that fails between two updates."""

    def __init__(self, method: "Method", stage: Stage):
        self._optimizers = list(stage.optimizers.values())
        weights = [parameter for module in stage.modules.values() for parameter in module.parameters()
                   if parameter.requires_grad]
        weights += [parameter for optimizer in self._optimizers for group in optimizer.param_groups
                    for parameter in group["params"]]
        buffers = [buffer for module in method.modules.values() for buffer in module.buffers()]
        self._fixed = list({id(tensor): tensor for tensor in [*weights, *buffers]}.values())
        self._copied: list[Tensor] = []
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def copy(self) -> None:
        states = [value for optimizer in self._optimizers for state in optimizer.state.values()
                  for value in state.values() if isinstance(value, Tensor)]
        self._with_state = [set(optimizer.state) for optimizer in self._optimizers]
        self._copied = [*self._fixed, *states]
        if len(self._copies) == len(self._copied):
            torch._foreach_copy_(self._copies, self._copied)
        else:  # An optimiser has no state before its first step.
            self._copies = [tensor.detach().clone() for tensor in self._copied]

    @torch.no_grad()
    def restore(self) -> None:
        torch._foreach_copy_(self._copied, self._copies)
        for optimizer, with_state in zip(self._optimizers, self._with_state, strict=True):
            for parameter in set(optimizer.state) - with_state:
                del optimizer.state[parameter]
            optimizer.zero_grad(set_to_none=True)


class Method(ABC):
    """Trains one family. Subclasses in train/methods are found by their `family`."""

    family: ClassVar[str]
    config_class: ClassVar[type[DecoderOptions]]
    presets: ClassVar[dict[str, dict[str, Any]]]
    own_title: ClassVar[str] = ""  # title of the family's table (`own_rows`); tables.toml lists its columns by family
    layout: ClassVar[dict[str, Any]] = {}  # layout of TensorBoard's custom scalars, from `charts`

    model: TextModel
    stages: tuple[Stage, ...]
    modules: dict[str, nn.Module]  # everything that a checkpoint must hold: trained and fixed modules

    def __init_subclass__(cls) -> None:
        cls.presets = presets_of(cls.family)

    @abstractmethod
    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        """Build the model and the stages. Apart from options and data, the initial weights depend only on the seed."""

    def assemble(self, *stages: Any, **fixed: nn.Module) -> None:
        """Set the stages and the modules. fixed: modules that no stage trains."""
        self.stages = stages
        self.modules = {name: module for stage in stages for name, module in stage.modules.items()} | fixed

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Return the optimisers of all stages, by name."""
        return {name: optimizer for stage in self.stages for name, optimizer in stage.optimizers.items()}

    def finish(self, directory: Path) -> None:
        """Call `finish` of every stage, then write `model/`. This directory marks the run as finished."""
        for stage in self.stages:
            stage.finish(directory)
        save_model(directory / "model", self.model)

    @classmethod
    def own_rows(cls, config: RunConfig, model: TextModel, data: Dataset, reporter: Reporter) -> list[dict[str, Any]]:
        """Return the rows of the family's own table in the report; each row has the key `source`."""
        return []


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Exclude modules from training inside the block. Gradients pass through the modules, but are not stored in them."""
    trained = [weights for module in modules for weights in module.parameters() if weights.requires_grad]
    for weights in trained:
        weights.requires_grad_(False)
    try:
        yield
    finally:
        for weights in trained:
            weights.requires_grad_(True)


def draw_seed() -> int:
    """Return a random seed from torch's global random number generator, which the loop seeds before each step."""
    return int(torch.randint(2**62, ()))


def adamw(modules: Iterable[nn.Module], learning_rate: float, betas: tuple[float, float] = (0.9, 0.99),
          weight_decay: float = 0.01) -> Optimizer:
    """Return AdamW over the trainable parameters of modules. The loop's schedule scales `initial_lr`."""
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": parameters, "initial_lr": learning_rate}], lr=learning_rate, betas=betas,
                             weight_decay=weight_decay, fused=parameters[0].device.type != "mps")


def find_method(family: str) -> type[Method]:
    """Return the method that trains a family. Raises OutlinesError for an unknown name."""
    return all_methods()[family]


def implied_families() -> dict[str, str]:
    """Return the family of every preset that is not a size.

    Such a preset can replace the family: `train flow` trains the family outlines with the preset flow.
    """
    return {name: family for family, method in all_methods().items() for name in method.presets if name not in SIZES}


def all_methods() -> dict[str, type[Method]]:
    """Return every method by family."""
    return discover(Method, methods)
