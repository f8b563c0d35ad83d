"""A flow-matching generator of outlines: it moves draws of a fitted mixture to outlines, along a learned velocity.

    x(0) = centre[k] + factor · noise,    dx/dt = velocity(x, t),    outline = x(1)

Source: Lipman et al., Flow Matching for Generative Modeling (2023). Each path is a straight line from a draw to an outline.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.devices import float64
from outlines.networks.gan import Generator, GeneratorConfig, MixtureNoise
from outlines.networks.generator import GENERATORS, OutlineGenerator
from outlines.networks.mixture import Mixture, nearest_centre


@dataclass(frozen=True)
class FlowConfig:
    """Shape of a FlowGenerator."""

    outline_dim: int
    num_centres: int  # 1 starts at the fitted Gaussian, more at a mixture
    hidden_dim: int
    num_blocks: int
    num_steps: int  # Heun steps from the mixture to the outline


class Velocity(nn.Module):
    """The velocity [B, D] at points [B, D] and times [B]: residual blocks whose scale, shift and gate depend on the time.

    Source: the adaptive normalisation of Peebles and Xie, Scalable Diffusion Models with Transformers (2023). The last layer
    starts at zero, so an untrained flow is the mixture that it starts at.
    """

    frequencies: Tensor

    def __init__(self, outline_dim: int, hidden_dim: int, num_blocks: int):
        super().__init__()
        self.first, self.last = nn.Linear(outline_dim, hidden_dim), nn.Linear(hidden_dim, outline_dim)
        self.of_time = nn.Sequential(nn.Linear(64, 64), nn.SiLU())
        self.adapt = nn.ModuleList(nn.Linear(64, 3 * hidden_dim) for _ in range(num_blocks))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.SiLU(),
                                                  nn.Linear(hidden_dim, hidden_dim)) for _ in range(num_blocks))
        for layer in (*self.adapt, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("frequencies", 1000 * torch.exp(torch.arange(32) * (-math.log(1000) / 31)), persistent=False)

    def forward(self, points: Tensor, times: Tensor) -> Tensor:
        angles = times[:, None] * self.frequencies
        embedded = self.of_time(torch.cat([angles.sin(), angles.cos()], dim=1))
        hidden = self.first(points)
        for adapt, block in zip(self.adapt, self.blocks, strict=True):
            shift, scale, gate = adapt(embedded).chunk(3, dim=1)
            hidden = hidden + (1 + gate) * block(functional.layer_norm(hidden, hidden.shape[1:]) * (1 + scale) + shift)
        return self.last(hidden)


class FlowGenerator(OutlineGenerator):
    """Maps noise to outlines in scaled units, by Heun steps along the velocity."""

    config_class: ClassVar[type[Any]] = FlowConfig
    config: FlowConfig
    matrix: Tensor
    shift: Tensor

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.config = config
        self.start = Generator(GeneratorConfig(config.outline_dim, config.num_centres, 0, 1, 1)).requires_grad_(False)
        self.velocity = Velocity(config.outline_dim, config.hidden_dim, config.num_blocks)
        self.register_buffer("matrix", torch.eye(config.outline_dim))
        self.register_buffer("shift", torch.zeros(config.outline_dim))

    @classmethod
    def configure(cls, outline_dim: int, num_rows: int, options: Mapping[str, Any]) -> FlowConfig:
        start = Generator.configure(outline_dim, num_rows, {**options, "num_offsets": 0})
        return FlowConfig(outline_dim, max(1, start.num_centres), options["flow_hidden_dim"], options["flow_blocks"],
                          options["flow_sampling_steps"])

    def start_at(self, mixture: Mixture) -> None:
        self.start.start_at(Mixture(mixture.centres, mixture.shares, mixture.factor))

    @torch.no_grad()
    def compose_affine(self, matrix: Tensor, shift: Tensor) -> None:
        self.shift.copy_(matrix @ float64(self.shift) + shift)
        self.matrix.copy_(matrix @ float64(self.matrix))

    def draw(self, num: int, rng: torch.Generator) -> MixtureNoise:
        return self.start.draw(num, rng)

    def pair(self, outlines: Tensor, normal: Tensor) -> Tensor:
        """Return a draw [B, D] around each outline's own centre: where its path begins. normal: noise [B, D]."""
        centres = self.start.centres
        return self.start.around(centres[nearest_centre(outlines, centres)], normal)

    def forward(self, noise: MixtureNoise) -> Tensor:
        points = self.start(noise)
        edges = torch.linspace(0, 1, self.config.num_steps + 1).tolist()
        for begin, end in itertools.pairwise(edges):
            points = self.heun_step(points, begin, end)
        return points @ self.matrix.T + self.shift

    def heun_step(self, points: Tensor, begin: float, end: float) -> Tensor:
        """Return the points [B, D] at time `end` from those at `begin`."""
        times = points.new_ones(len(points))
        velocity = self.velocity(points, begin * times)
        ahead = self.velocity(points + (end - begin) * velocity, end * times)
        return points + (end - begin) * (velocity + ahead) / 2


def flow_matching_loss(velocity: Velocity, begin: Tensor, end: Tensor, times: Tensor) -> Tensor:
    """Return the squared error of the velocity on the straight path from begin to end, per example [B].

    begin, end: [B, D]. times: [B], from 0 to 1. Source: Lipman et al. (2023), eq. 23 without noise.
    """
    return (velocity(torch.lerp(begin, end, times[:, None]), times) - (end - begin)).square().mean(dim=1)


GENERATORS["flow"] = GENERATORS["flow-gan"] = FlowGenerator
