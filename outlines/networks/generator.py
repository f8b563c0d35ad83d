"""Generators map noise to outlines: the interface of every generator, and the registry of their kinds.

To add a kind, write one file that adds a subclass of OutlineGenerator to `GENERATORS`, and import the file in
networks/__init__.py. If the kind is trained, not only fitted, add a line to
train/methods/generator_stages.py.
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
    learns_moments: ClassVar[bool] = False
    """whether training alone leads to the right mean and covariance; if not, they are matched after training"""

    @classmethod
    @abstractmethod
    def configure(cls, outline_dim: int, num_rows: int, options: Mapping[str, Any]) -> Any:
        """Return the config. num_rows: number of outlines to which the generator is fitted. options: a run's options."""

    @abstractmethod
    def draw(self, num: int, rng: torch.Generator) -> Any:
        """Return noise for `num` outlines. It is sampled on the device of `rng` and moved to the module's device.

        It is a tensor, or an object that supports `noise[slice]` (noise of some of the outlines) and `noise * scale`.
        """

    @abstractmethod
    def forward(self, noise: Any) -> Tensor:
        """Return outlines [B, D] in scaled units, before normalisation."""

    def fit(self, outlines: Tensor, seed: int) -> None:
        """Fit the generator to training outlines [N, D] before training, if the kind needs this."""
        return

    def start_at(self, mixture: Mixture) -> None:
        """Make the untrained generator sample from a mixture, if the kind supports this."""
        return

    def compose_affine(self, matrix: Tensor, shift: Tensor) -> None:
        """Change the weights so that each output x becomes matrix · x + shift, if supported. matrix: [D, D], invertible."""
        return


GENERATORS = Registry("generator")


def build_generator(shape: Mapping[str, Any]) -> Any:
    """Return an untrained OutlineGenerator. shape: `kind`, and the fields of the kind's config."""
    kind: Any = GENERATORS[str(shape["kind"])]
    return kind(kind.config_class(**{name: value for name, value in shape.items() if name != "kind"}))
