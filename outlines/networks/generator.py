"""Generators of outlines, noise → outlines: the interface of every kind, and the registry.

A new kind is one file that adds an OutlineGenerator to `GENERATORS`, and its import in networks/__init__.py.
A kind that is trained, not only fitted, also needs a line in GENERATOR_STAGES of train/methods/outlines.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outlines.networks.mixture import Mixture
from outlines.options import Registry


class OutlineGenerator(nn.Module, ABC):
    """Maps noise to outlines in scaled units (networks/scaling.py)."""

    config_class: ClassVar[type[Any]]  # a frozen dataclass of JSON values
    config: Any

    @classmethod
    @abstractmethod
    def configure(cls, outline_dim: int, num_rows: int, options: Mapping[str, Any]) -> Any:
        """Return the config for a run's options and a corpus with `num_rows` outlines to fit to."""

    @abstractmethod
    def draw(self, num: int, rng: torch.Generator) -> Any:
        """Return noise for `num` outlines on the module's device, drawn on the device of `rng`.

        The noise is a tensor, or an object that supports `noise[slice]` over outlines and `noise * scale`.
        """

    @abstractmethod
    def forward(self, noise: Any) -> Tensor:
        """Return outlines [B, D] in scaled units, before normalisation."""

    def fit(self, outlines: Tensor, seed: int) -> None:
        """Fit the generator to training outlines [N, D] before training, if the kind needs this."""
        return

    def start_at(self, mixture: Mixture) -> None:
        """Set the generator to a mixture before training, if the kind supports this."""
        return

    def compose_affine(self, matrix: Tensor, shift: Tensor) -> None:
        """Replace every generated outline x by matrix · x + shift, if the kind supports this. matrix: [D, D], invertible."""
        return


GENERATORS = Registry("generator")


def build_generator(shape: Mapping[str, Any]) -> Any:
    """Return an untrained OutlineGenerator. shape: the kind, and the fields of the config."""
    kind: Any = GENERATORS[str(shape["kind"])]
    return kind(kind.config_class(**{name: value for name, value in shape.items() if name != "kind"}))
