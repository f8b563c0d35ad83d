"""The adversarially trained generator of outlines, and its critic.

By default, the generator starts as a fitted mixture (networks/mixture.py), in which centre k has probability share[k], and
learns the residual, the output of the MLP:

    outline = centre[k] + factor · noise + mlp(noise, centre[k])
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.devices import float64
from outlines.networks.generator import GENERATORS, OutlineGenerator
from outlines.networks.mixture import Mixture


@dataclass(frozen=True)
class GeneratorConfig:
    """The sizes of a Generator."""

    outline_dim: int
    num_centres: int  # 0: nothing is fitted; 1: start at one fitted Gaussian; more: at a mixture
    num_offsets: int = 0  # centres of the second level; each can be added to each centre of the first
    hidden_dim: int = 512
    num_layers: int = 3


@dataclass(frozen=True)
class MixtureNoise:
    """The noise that a Generator reads. normal: [B, D]. centre, offset: indices [B]; 0 if the generator has none."""

    normal: Tensor
    centre: Tensor
    offset: Tensor

    def __getitem__(self, rows: slice) -> "MixtureNoise":
        return MixtureNoise(self.normal[rows], self.centre[rows], self.offset[rows])

    def __mul__(self, scale: float) -> "MixtureNoise":
        return MixtureNoise(self.normal * scale, self.centre, self.offset)


def mlp(input_dim: int, hidden_dim: int, num_layers: int, output_dim: int, zero: bool = False) -> nn.Sequential:
    """Return an MLP [B, input_dim] → [B, output_dim] that never mixes examples. zero: before training, it returns zeros."""
    layers: list[nn.Module] = []
    for index in range(num_layers):
        layers += [nn.Linear(hidden_dim if index else input_dim, hidden_dim), nn.LeakyReLU(0.2)]
    last = nn.Linear(hidden_dim, output_dim)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class Generator(OutlineGenerator):
    """Maps noise to outlines in scaled units."""

    config_class: ClassVar[type[Any]] = GeneratorConfig
    config: GeneratorConfig
    shares: Tensor
    offset_shares: Tensor

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        width, num_centres = config.outline_dim, config.num_centres
        self.mlp = mlp(width * (2 if num_centres else 1), config.hidden_dim, config.num_layers, width, num_centres > 0)
        if num_centres:
            self.centres = nn.Parameter(torch.zeros(num_centres, width))
            self.factor = nn.Parameter(torch.eye(width))
            self.register_buffer("shares", torch.full((num_centres,), 1 / num_centres))
            if config.num_offsets:
                self.offsets = nn.Parameter(torch.zeros(config.num_offsets, width))
                self.register_buffer("offset_shares", torch.full((config.num_offsets,), 1 / config.num_offsets))

    @classmethod
    def configure(cls, outline_dim: int, num_rows: int, options: Mapping[str, Any]) -> GeneratorConfig:
        most = num_rows // 20
        num_centres = {"mixture": max(2, min(options["num_centres"], most)), "gaussian": 1, "noise": 0}[options["start"]]
        num_offsets = min(options["num_offsets"], most) if options["start"] == "mixture" else 0
        return GeneratorConfig(outline_dim, num_centres, num_offsets, options["gan_hidden_dim"], options["gan_num_layers"])

    def mixture(self) -> Mixture:
        """Return the current mixture of a generator that has centres."""
        offsets = (self.offsets, self.offset_shares) if self.config.num_offsets else (None, None)
        return Mixture(self.centres, self.shares, self.factor, *offsets)

    @torch.no_grad()
    def start_at(self, mixture: Mixture) -> None:
        self.centres.copy_(mixture.centres)
        self.factor.copy_(mixture.factor)
        self.shares.copy_(mixture.shares)
        if mixture.offsets is not None and mixture.offset_shares is not None:
            self.offsets.copy_(mixture.offsets)
            self.offset_shares.copy_(mixture.offset_shares)

    @torch.no_grad()
    def compose_affine(self, matrix: Tensor, shift: Tensor) -> None:
        first: Any = self.mlp[0]
        last: Any = self.mlp[-1]
        matrix, shift = float64(matrix), float64(shift)
        if self.config.num_centres:
            # The MLP also reads the centres, which the map changes, so its first layer must invert the map.
            width = self.config.outline_dim
            of_centre = torch.linalg.solve(matrix, float64(first.weight[:, width:]), left=False)
            first.weight[:, width:] = of_centre
            first.bias.sub_((of_centre @ shift).to(first.bias))
            self.centres.copy_(float64(self.centres) @ matrix.T + shift)
            self.factor.copy_(matrix @ float64(self.factor))
            if self.config.num_offsets:
                self.offsets.copy_(float64(self.offsets) @ matrix.T)
        last.weight.copy_(matrix @ float64(last.weight))
        last.bias.copy_(matrix @ float64(last.bias) + (0 if self.config.num_centres else shift))

    def draw(self, num: int, rng: torch.Generator) -> MixtureNoise:
        normal = torch.randn(num, self.config.outline_dim, generator=rng, device=rng.device)
        centre = offset = torch.zeros(num, dtype=torch.long, device=rng.device)
        if self.config.num_centres:
            centre = _draw_by_shares(self.shares, num, rng)
        if self.config.num_offsets:
            offset = _draw_by_shares(self.offset_shares, num, rng)
        device = next(self.parameters()).device
        return MixtureNoise(normal.to(device), centre.to(device), offset.to(device))

    def forward(self, noise: MixtureNoise) -> Tensor:
        if not self.config.num_centres:
            return self.mlp(noise.normal)
        centre = functional.embedding(noise.centre, self.centres)
        if self.config.num_offsets:
            centre = centre + functional.embedding(noise.offset, self.offsets)
        return self.around(centre, noise.normal)

    def around(self, centre: Tensor, normal: Tensor) -> Tensor:
        """Return outlines [B, D] for normal noise [B, D] and centres [B, D] (points, not indices)."""
        if not self.config.num_centres:
            return self.mlp(normal)
        return centre + normal @ self.factor.T + self.mlp(torch.cat([normal, centre], dim=1))


GENERATORS["gan"] = Generator


def _draw_by_shares(shares: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """Return random indices [num], with probabilities proportional to `shares` [K]."""
    edges = float64(shares).cumsum(0)  # on the GPU if possible, because moving the shares to the CPU would synchronise
    uniform = torch.rand(num, generator=rng, dtype=torch.float64, device=rng.device).to(edges.device)
    return torch.searchsorted(edges, uniform * edges[-1], right=True)


class Critic(nn.Module):
    """Maps outlines [B, D] in scaled units to unbounded scores [B]. It never mixes the examples of a batch."""

    def __init__(self, outline_dim: int, hidden_dim: int = 512, num_layers: int = 3):
        super().__init__()
        self.mlp = mlp(outline_dim, hidden_dim, num_layers, 1)

    def forward(self, outlines: Tensor) -> Tensor:
        return self.mlp(outlines)[:, 0]


@torch.no_grad()
def update_ema(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Set each parameter of `average` to decay · average + (1 - decay) · current, and copy the buffers of `current`."""
    torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)
    for kept, buffer in zip(average.buffers(), current.buffers(), strict=True):
        kept.copy_(buffer)
