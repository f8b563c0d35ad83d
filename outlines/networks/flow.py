"""A flow-matching generator of outlines: it moves points, sampled from a fitted mixture, along a learned velocity.

    x(0) = centre[k] + factor · noise,    dx/dt = velocity(x, t),    outline = x(1)

In training, each path is a straight line from a point to an outline.
Source: Lipman et al., Flow Matching for Generative Modeling (2023).
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.networks.gan import Generator, GeneratorConfig, MixtureNoise
from outlines.networks.generator import GENERATORS, OutlineGenerator
from outlines.networks.mixture import Mixture, nearest_centre

VelocityField = Callable[[Tensor, Tensor], Tensor]  # maps points [B, D] and times [B] to velocities [B, D]
TOLERANCE, MOST_ITERATIONS = 1e-4, 200  # inverse of a step: largest error (scaled units), maximum number of iterations


@dataclass(frozen=True)
class FlowConfig:
    """The sizes of a FlowGenerator."""

    outline_dim: int
    num_centres: int  # 1: start at one fitted Gaussian; more: at a mixture
    hidden_dim: int
    num_blocks: int
    num_steps: int  # Heun steps from the mixture to the outline


class Velocity(nn.Module):
    """Maps points [B, D] and times [B] to velocities [B, D]. Scale, shift and gate of each residual block depend on time.

    condition_dim: width P of a condition [B, P] that it also reads; 0: none.

    Source: the adaptive normalisation of Peebles and Xie, Scalable Diffusion Models with Transformers (2023). The last layer
    starts at zero, so an untrained flow does not move the points.
    """

    def __init__(self, outline_dim: int, hidden_dim: int, num_blocks: int, condition_dim: int = 0):
        super().__init__()
        self.first, self.last = nn.Linear(outline_dim + condition_dim, hidden_dim), nn.Linear(hidden_dim, outline_dim)
        self.of_time = nn.Sequential(nn.Linear(64, 64), nn.SiLU())
        self.adapt = nn.ModuleList(nn.Linear(64, 3 * hidden_dim) for _ in range(num_blocks))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.SiLU(),
                                                  nn.Linear(hidden_dim, hidden_dim)) for _ in range(num_blocks))
        for layer in (*self.adapt, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, points: Tensor, times: Tensor, condition: Tensor | None = None) -> Tensor:
        # Not computed in __init__: hardening.build_module runs it on the meta device, where this imports torch's compiler.
        frequencies = 1000 * torch.exp(torch.arange(32, device=times.device) * (-math.log(1000) / 31))
        angles = times[:, None] * frequencies
        embedded = self.of_time(torch.cat([angles.sin(), angles.cos()], dim=1))
        hidden = self.first(points if condition is None else torch.cat([points, condition], dim=1))
        for adapt, block in zip(self.adapt, self.blocks, strict=True):
            shift, scale, gate = adapt(embedded).chunk(3, dim=1)
            hidden = hidden + (1 + gate) * block(functional.layer_norm(hidden, hidden.shape[1:]) * (1 + scale) + shift)
        return self.last(hidden)


class FlowGenerator(OutlineGenerator):
    """Maps noise to outlines in scaled units, by Heun steps along the velocity."""

    config_class: ClassVar[type[Any]] = FlowConfig
    config: FlowConfig
    learns_moments = True  # Matched moments made a flow's outlines easier to recognise: docs/generators.md.

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.config = config
        self.start = Generator(GeneratorConfig(config.outline_dim, config.num_centres, 0, 1, 1)).requires_grad_(False)
        self.velocity = Velocity(config.outline_dim, config.hidden_dim, config.num_blocks)

    @classmethod
    def configure(cls, outline_dim: int, num_rows: int, options: Mapping[str, Any]) -> FlowConfig:
        start = Generator.configure(outline_dim, num_rows, {**options, "num_offsets": 0})
        return FlowConfig(outline_dim, max(1, start.num_centres), options["flow_hidden_dim"], options["flow_blocks"],
                          options["flow_sampling_steps"])

    def start_at(self, mixture: Mixture) -> None:
        self.start.start_at(Mixture(mixture.centres, mixture.shares, mixture.factor))

    def draw(self, num: int, rng: torch.Generator) -> MixtureNoise:
        return self.start.draw(num, rng)

    def nearest(self, outlines: Tensor) -> Tensor:
        """Return the index [B] of the centre that is nearest to each outline [B, D]."""
        return nearest_centre(outlines, self.start.centres)

    def pair(self, own: Tensor, normal: Tensor) -> Tensor:
        """Return the first points [B, D] of the paths of B outlines.

        own: [B], index of each outline's nearest centre. normal: [B, D], standard normal noise.
        """
        return self.start.around(self.start.centres[own], normal)

    def forward(self, noise: MixtureNoise) -> Tensor:
        return self._moved(self.start(noise))

    def around(self, centre: Tensor, normal: Tensor) -> Tensor:
        """Return outlines [B, D] for normal noise [B, D] and centres [B, D] (points, not indices)."""
        return self._moved(self.start.around(centre, normal))

    def inverse(self, outlines: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise that generates outlines [N, D]: normal values [N, D] and the likeliest centres [N, D].

        Each step of the sampler is inverted, so `around` maps the result back to these outlines, up to small errors.
        """
        points = outlines
        for begin, end in reversed(steps_of(self.config.num_steps)):
            points = self.heun_step_back(points, begin, end)
        # Noise has no effect in directions in which the outlines hardly vary. The pseudoinverse returns zero there.
        inverse, centres, log_shares = torch.linalg.pinv(self.start.factor), self.start.centres, self.start.shares.log()
        nearest = [((row - centres) @ inverse.T).square().sum(dim=1).sub(2 * log_shares).argmin() for row in points]
        centre = centres[torch.stack(nearest)]
        return (points - centre) @ inverse.T, centre

    def _moved(self, points: Tensor) -> Tensor:
        return moved(self.velocity, points, self.config.num_steps)

    def heun_step_back(self, points: Tensor, begin: float, end: float) -> Tensor:
        """Return the points [B, D] at time `begin` that `heun_step` moves to `points` [B, D] at time `end`.

        A Heun step from `end` to `begin` is close to this inverse, but not equal to it. Fixed-point iteration removes the
        remaining error. With long steps, the iteration could oscillate, so it is damped more where the error grows.
        """
        found = heun_step(self.velocity, points, end, begin)
        damping, previous = points.new_full((len(points), 1), 0.5), points.new_full((len(points), 1), math.inf)
        for _ in range(MOST_ITERATIONS):
            error = points - heun_step(self.velocity, found, begin, end)
            size = error.abs().amax(dim=1, keepdim=True)
            if float(size.max()) < TOLERANCE:
                break
            damping, previous = torch.where(size > previous, damping / 2, damping), size
            found = found + damping * error
        return found


def steps_of(num_steps: int) -> list[tuple[float, float]]:
    """Return the times (begin, end) of each step of the sampler."""
    return list(itertools.pairwise(torch.linspace(0, 1, num_steps + 1).tolist()))


def moved(velocity: VelocityField, points: Tensor, num_steps: int) -> Tensor:
    """Return points [B, D] at time 1, moved from points [B, D] at time 0 by Heun steps."""
    for begin, end in steps_of(num_steps):
        points = heun_step(velocity, points, begin, end)
    return points


def heun_step(velocity: VelocityField, points: Tensor, begin: float, end: float) -> Tensor:
    """Return points [B, D] at time `end`, one Heun step after points [B, D] at time `begin`."""
    times = points.new_ones(len(points))
    first = velocity(points, begin * times)
    ahead = velocity(points + (end - begin) * first, end * times)
    return points + (end - begin) * (first + ahead) / 2


def flow_matching_loss(velocity: VelocityField, begin: Tensor, end: Tensor, times: Tensor) -> Tensor:
    """Return the squared error (mean over dimensions) of the velocity on straight paths from begin to end, per example [B].

    begin, end: [B, D]. times: [B], from 0 to 1. Source: Lipman et al. (2023), eq. 23 without noise.
    """
    return (velocity(torch.lerp(begin, end, times[:, None]), times) - (end - begin)).square().mean(dim=1)


GENERATORS["flow"] = GENERATORS["flow-gan"] = FlowGenerator
