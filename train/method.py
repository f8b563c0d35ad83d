"""The seam: what the loop knows of a family.

A Method owns its modules, its optimisers, its stages and what a step of each is. The loop owns batches, schedules,
logging, evaluation and checkpoints, and never asks which method it has.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from outlines.errors import OutlinesError
from outlines.models.base import TextModel
from outlines.models.registry import discover, save_model
from train import methods
from train.config import RunConfig, unknown_name
from train.data import Batch, Dataset
from train.runtime.progress import Progress, Reporter
from train.runtime.ranks import Ranks


@dataclass(frozen=True)
class Stage:
    """A stretch of training with its own batches and schedule; stages follow one another.

    optimizers: the names of those it steps. modules: the names of those it trains; at its end the loop puts back
    their weights from the validation with the lowest `criterion`. like_length: batches of like length, or uniform.
    patience: validations without a new best after which the stage ends early; 0 never.
    """

    name: str
    num_steps: int
    batch_size: int
    like_length: bool
    validate_every: int
    criterion: str
    optimizers: tuple[str, ...]
    modules: tuple[str, ...]
    patience: int = 0


class Views(NamedTuple):
    """What a validation has to show beside its figures, by key.

    levels: figures that stay, such as a control's: lines for the eye, which no progress line repeats.
    """

    histograms: Mapping[str, Tensor] = MappingProxyType({})
    pictures: Mapping[str, Figure] = MappingProxyType({})
    levels: Mapping[str, float] = MappingProxyType({})


class NotFinite(OutlinesError):
    """A loss or gradient is NaN or infinite, or weights are. No weight has changed by it."""


class Update:
    """One optimiser step on a loss: finite or refused, summed over ranks, clipped."""

    def __init__(self, ranks: Ranks, clip_norm: float):
        self.ranks = ranks
        self.clip_norm = clip_norm

    def __call__(self, name: str, optimizer: Optimizer, loss: Tensor) -> Tensor:
        """Step `optimizer` on a scalar loss, this rank's share of the global one; returns the gradient norm.

        Raises NotFinite, before any weight has changed, naming the term.
        """
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        value = loss.detach().clone()
        self.ranks.sum_([*gradients, value])
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        # One look at both numbers: on a GPU each look waits for the device.
        loss_is_finite, norm_is_finite = torch.isfinite(torch.stack([value.float(), norm.float()])).tolist()
        if not loss_is_finite:
            raise NotFinite(f"{name}: the loss is {float(value)}")
        if not norm_is_finite:
            raise NotFinite(f"{name}: the gradient norm is {float(norm)}")
        optimizer.step()
        return norm


class Snapshot:
    """What a step of a stage may change, so that a step which turns out bad half-way can be taken back whole.

    That is the weights the stage trains, their optimisers' states, and every buffer. The copies stay where they are
    from step to step, so taking one is a copy within memory.
    """

    def __init__(self, method: "Method", stage: Stage):
        self._optimizers = [method.optimizers[name] for name in stage.optimizers]
        weights = [parameter for name in stage.modules for parameter in method.modules[name].parameters()]
        weights += [parameter for optimizer in self._optimizers for group in optimizer.param_groups
                    for parameter in group["params"]]
        buffers = [buffer for module in method.modules.values() for buffer in module.buffers()]
        self._fixed = list({id(tensor): tensor for tensor in [*weights, *buffers]}.values())
        self._copied: list[Tensor] = []
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def take(self) -> None:
        states = [value for optimizer in self._optimizers for state in optimizer.state.values()
                  for value in state.values() if isinstance(value, Tensor)]
        self._with_state = [set(optimizer.state) for optimizer in self._optimizers]
        self._copied = [*self._fixed, *states]
        if len(self._copies) == len(self._copied):
            torch._foreach_copy_(self._copies, self._copied)
        else:  # An optimiser has no state before its first step.
            self._copies = [tensor.detach().clone() for tensor in self._copied]

    @torch.no_grad()
    def put_back(self) -> None:
        torch._foreach_copy_(self._copied, self._copies)
        for optimizer, with_state in zip(self._optimizers, self._with_state, strict=True):
            for parameter in set(optimizer.state) - with_state:
                del optimizer.state[parameter]
            optimizer.zero_grad(set_to_none=True)


class Method(ABC):
    """One family in training. A subclass in train/methods is found by its `family`."""

    family: ClassVar[str]
    config_class: ClassVar[type]
    presets: ClassVar[dict[str, dict[str, Any]]]
    uses_outlines: ClassVar[bool] = False
    own_title: ClassVar[str] = ""
    own_columns: ClassVar[dict[str, tuple[str, int]]] = {}
    """of the table that this family alone has in its report: title and decimals, by the keys of `own_rows`"""
    layout: ClassVar[dict[str, dict[str, list[Any]]]] = {}
    """charts of TensorBoard's custom scalars: categories → charts → kind and tags, as patterns that match the whole tag"""

    model: TextModel
    stages: tuple[Stage, ...]
    modules: dict[str, nn.Module]
    """everything with weights that a checkpoint must hold, by name"""
    optimizers: dict[str, Optimizer]

    @abstractmethod
    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        """Build modules and optimisers; weights depend on the seed alone."""

    def begin(self, stage: Stage, progress: Progress) -> None:
        """Called once, before a stage's first step; not again when a run is resumed inside the stage.

        It may be stopped anywhere and called anew by a later process, so it writes no files. progress: what to call with
        (done, total) where it takes long.
        """
        return

    @abstractmethod
    def step(self, stage: Stage, batch: Batch, update: Update) -> dict[str, Tensor]:
        """Take one step of a stage; returns named terms as scalars, this rank's share of the global mean."""

    def finish(self, directory: Path) -> None:
        """Write the finished model to the run's directory; the model itself last, for its presence says finished."""
        save_model(directory / "model", self.model)

    @abstractmethod
    def validate(self, stage: Stage) -> dict[str, float]:
        """Figures on the validation split, the stage's criterion among them; deterministic, no weight changed.

        What the next validation compares itself with may be kept in a buffer of `modules`.
        """

    @classmethod
    def own_rows(cls, config: RunConfig, model: TextModel, data: Dataset, reporter: Reporter) -> list[dict[str, Any]]:
        """The rows of the family's own table, on the test split; each with its `source`. By default there is none."""
        return []

    def views(self, stage: Stage) -> Views:
        """What the validation just made has to show beside its figures; by default nothing."""
        return Views()


def adamw(modules: Iterable[nn.Module], learning_rate: float, betas: tuple[float, float],
          weight_decay: float) -> Optimizer:
    """AdamW over the trainable parameters of modules; `initial_lr` is what the loop's schedule scales."""
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW([{"params": parameters, "initial_lr": learning_rate}], lr=learning_rate, betas=betas,
                             weight_decay=weight_decay, fused=parameters[0].device.type != "mps")


def find_method(family: str) -> type[Method]:
    """The method that trains a family; raises OutlinesError with the nearest name."""
    known = all_methods()
    if family not in known:
        raise unknown_name("family", family, known)
    return known[family]


def all_methods() -> dict[str, type[Method]]:
    """Every method in train/methods, by family."""
    return discover(Method, methods)
