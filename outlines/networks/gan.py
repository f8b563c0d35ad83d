"""The generator of outlines and its critic.

The generator maps noise to outlines and starts where a density fitted without any adversary already stands:

    outline = centre[k] + factor · noise + mlp(noise, centre[k])

with k drawn with the shares of k-means centres, one within-cluster factor shared by all, and the MLP's last layer zero
at the start. Everything but the shares is then trained. With one centre it starts at the fitted Gaussian; with none at
noise, as an ordinary GAN does. A centre can be the sum of two, each drawn for itself: what outlines lie away from their
centres is no Gaussian, and a second k-means of it says more than its covariance, while K × J sums lie no nearer to the
training outlines than K centres do. All of it lives in scaled units (networks/scaling.py): mean 0, one isotropic scale.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.errors import OutlinesError

K_MEANS_ITERATIONS = 15


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians with one shared covariance; in scaled units.

    centres [K, D], shares [K], factor [D, D]. With offsets [J, D], each of which may be added to any centre, and their
    shares [J], it is one of K × J Gaussians.
    """

    centres: Tensor
    shares: Tensor
    factor: Tensor
    offsets: Tensor | None = None
    offset_shares: Tensor | None = None


def fit_mixture(outlines: Tensor, num_centres: int, seed: int, num_offsets: int = 0,
                progress: Callable[[int, int], None] | None = None) -> Mixture:
    """Fit centres by Lloyd's k-means, and one factor of the covariance of what is left within the clusters.

    outlines: [N, D] in scaled units. One centre gives the maximum-likelihood Gaussian. num_offsets: centres of a second
    k-means, of what the first one leaves (multiple stage vector quantisation: Juang and Gray 1982); the factor is then of
    what both leave. factor · factorᵀ is that covariance, divided by N - K - J. progress: called with (iterations done,
    of how many). Memory: N × D for the outlines and a chunk of N × K distances.
    """
    num_rows = len(outlines)
    if not 0 < num_centres + num_offsets < num_rows:
        raise OutlinesError(f"a mixture of {num_centres + num_offsets} centres needs more than {num_rows} outlines: "
                            "lower --num-centres or bring a larger corpus")
    done, total = 0, K_MEANS_ITERATIONS * (2 if num_offsets else 1)

    def iterated() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    centres, shares, residual = _k_means(outlines, num_centres, seed, iterated)
    offsets = offset_shares = None
    if num_offsets:
        # Of a cluster of one nothing is left: that says how few rows it had, not how far rows lie from their centres.
        left = residual[residual.abs().sum(dim=1) > 0]
        if len(left) <= num_offsets:
            raise OutlinesError(f"{num_offsets} offsets need more than {len(left)} outlines away from their centres: "
                                "lower --num-offsets or bring a larger corpus")
        offsets, offset_shares, residual = _k_means(left, num_offsets, seed, iterated)
    covariance = residual.T @ residual / max(1, num_rows - num_centres - num_offsets)
    values, directions = torch.linalg.eigh(covariance.double())
    factor = (directions * values.clamp(min=0).sqrt()).to(outlines.dtype)
    return Mixture(centres, shares, factor, offsets, offset_shares)


def _k_means(rows: Tensor, num_centres: int, seed: int, iterated: Callable[[], None]) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [K, D], the rows' shares of them [K], and what is left of each row [N, D]; calls `iterated` after each
    iteration."""
    rng = torch.Generator().manual_seed(seed)
    centres = rows[torch.randperm(len(rows), generator=rng)[:num_centres]].clone()
    for _ in range(K_MEANS_ITERATIONS):
        nearest = nearest_centre(rows, centres)
        counts = torch.bincount(nearest, minlength=num_centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        # A centre that lost all its rows stays where it is; its share will be zero.
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        iterated()
        if num_centres == 1:
            break
    nearest = nearest_centre(rows, centres)
    shares = torch.bincount(nearest, minlength=num_centres).double() / len(rows)
    return centres, shares.to(rows.dtype), rows - centres[nearest]


def nearest_centre(outlines: Tensor, centres: Tensor, chunk: int = 8192) -> Tensor:
    """Index [N] of the centre [K, D] nearest to each outline [N, D], in Euclidean distance."""
    half_norms = centres.square().sum(dim=1) / 2
    return torch.cat([(rows @ centres.T - half_norms).argmax(dim=1) for rows in outlines.split(chunk)])


def moment_map(outlines: Tensor, like: Tensor, most: float = 2.0) -> tuple[Tensor, Tensor]:
    """The affine map, matrix [D, D] and shift [D], that gives outlines [N, D] the mean and covariance of `like` [M, D].

    Of all that do, the one that moves them least (optimal transport between Gaussians: Olkin and Pukelsheim, The Distance
    between Two Random Vectors with Given Dispersion Matrices, 1982); symmetric, positive definite, in float64. It
    stretches by no more than `most`: a direction that the outlines lack altogether is not made from noise.
    """
    def root(covariance: Tensor, power: float) -> Tensor:
        values, directions = torch.linalg.eigh(covariance)
        floor = values.mean() * 1e-9
        return (directions * values.clamp(min=floor).pow(power)) @ directions.T

    mean, wanted_mean = outlines.double().mean(dim=0), like.double().mean(dim=0)
    covariance, wanted = torch.cov(outlines.double().T), torch.cov(like.double().T)
    half, inverse = root(covariance, 0.5), root(covariance, -0.5)
    values, directions = torch.linalg.eigh(inverse @ root(half @ wanted @ half, 0.5) @ inverse)
    matrix = (directions * values.clamp(max=most)) @ directions.T
    return matrix, wanted_mean - matrix @ mean


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator's shape."""

    outline_dim: int
    num_centres: int
    """0 starts at noise, 1 at the fitted Gaussian, more at a mixture"""
    num_offsets: int = 0
    """centres of the second level, of which each may be added to any of the first"""
    hidden_dim: int = 512
    num_layers: int = 3


@dataclass(frozen=True)
class Noise:
    """The generator's input: normal values [B, D], the drawn centres [B] and offsets [B] (0 where there are none)."""

    normal: Tensor
    centre: Tensor
    offset: Tensor

    def __getitem__(self, rows: slice) -> "Noise":
        return Noise(self.normal[rows], self.centre[rows], self.offset[rows])


def mlp(input_dim: int, hidden_dim: int, num_layers: int, output_dim: int) -> nn.Sequential:
    """Values [B, input_dim] to [B, output_dim] through hidden layers that treat every example alone."""
    layers: list[nn.Module] = []
    for index in range(num_layers):
        layers += [nn.Linear(hidden_dim if index else input_dim, hidden_dim), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(hidden_dim, output_dim))


class Generator(nn.Module):
    """Noise to outlines, in scaled units."""

    shares: Tensor
    offset_shares: Tensor

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        width, num_centres = config.outline_dim, config.num_centres
        self.mlp = mlp(width * (2 if num_centres else 1), config.hidden_dim, config.num_layers, width)
        if num_centres:
            self.centres = nn.Parameter(torch.zeros(num_centres, width))
            self.factor = nn.Parameter(torch.eye(width))
            self.register_buffer("shares", torch.full((num_centres,), 1 / num_centres))
            if config.num_offsets:
                self.offsets = nn.Parameter(torch.zeros(config.num_offsets, width))
                self.register_buffer("offset_shares", torch.full((config.num_offsets,), 1 / config.num_offsets))
            last = self.mlp[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @torch.no_grad()
    def start_at(self, mixture: Mixture) -> None:
        """Set all that a mixture has; with the MLP's last layer at zero, the generator is then the mixture."""
        self.centres.copy_(mixture.centres)
        self.factor.copy_(mixture.factor)
        self.shares.copy_(mixture.shares)
        if mixture.offsets is not None and mixture.offset_shares is not None:
            self.offsets.copy_(mixture.offsets)
            self.offset_shares.copy_(mixture.offset_shares)

    @torch.no_grad()
    def compose_affine(self, matrix: Tensor, shift: Tensor) -> None:
        """From now on matrix · outline + shift for outline, by the parameters there are. matrix: [D, D], invertible."""
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        matrix, shift = matrix.double(), shift.double()
        if self.config.num_centres:
            # The MLP reads the centre too, and is to find the one that it knows.
            first = self.mlp[0]
            assert isinstance(first, nn.Linear)
            width = self.config.outline_dim
            of_centre = torch.linalg.solve(matrix, first.weight[:, width:].double(), left=False)
            first.weight[:, width:] = of_centre
            first.bias.sub_((of_centre @ shift).to(first.bias))
            self.centres.copy_(self.centres.double() @ matrix.T + shift)
            self.factor.copy_(matrix @ self.factor.double())
            if self.config.num_offsets:
                self.offsets.copy_(self.offsets.double() @ matrix.T)
        last.weight.copy_(matrix @ last.weight.double())
        last.bias.copy_(matrix @ last.bias.double() + (0 if self.config.num_centres else shift))

    def draw(self, num: int, rng: torch.Generator, noise_scale: float = 1.0) -> Noise:
        """Noise for `num` outlines, drawn where `rng` is: with one on the CPU a seed means the same on every device.

        noise_scale: the standard deviation of the normal values; the centres' shares stay as they are.
        """
        normal = noise_scale * torch.randn(num, self.config.outline_dim, generator=rng, device=rng.device)
        centre = offset = torch.zeros(num, dtype=torch.long, device=rng.device)
        if self.config.num_centres:
            centre = _draw_by_shares(self.shares, num, rng)
        if self.config.num_offsets:
            offset = _draw_by_shares(self.offset_shares, num, rng)
        device = next(self.parameters()).device
        return Noise(normal.to(device), centre.to(device), offset.to(device))

    def forward(self, noise: Noise) -> Tensor:
        """Outlines [B, D] in scaled units, not yet normalised."""
        if not self.config.num_centres:
            return self.mlp(noise.normal)
        centre = functional.embedding(noise.centre, self.centres)
        if self.config.num_offsets:
            centre = centre + functional.embedding(noise.offset, self.offsets)
        return self.around(centre, noise.normal)

    def around(self, centre: Tensor, normal: Tensor) -> Tensor:
        """Outlines [B, D] for normal noise [B, D] and centres given as points [B, D]."""
        return centre + normal @ self.factor.T + self.mlp(torch.cat([normal, centre], dim=1))


def _draw_by_shares(shares: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """Indices [num], each drawn with its share; shares: [K]."""
    # Where the shares lie, for to bring them to the CPU is to wait for the GPU; but mps has no float64.
    where = torch.device("cpu") if shares.device.type == "mps" else shares.device
    uniform = torch.rand(num, generator=rng, dtype=torch.float64, device=rng.device).to(where)
    edges = shares.to(where).double().cumsum(0)
    return torch.searchsorted(edges, uniform * edges[-1], right=True)


class Critic(nn.Module):
    """An unbounded score [B] for outlines [B, D] in scaled units. It never mixes the examples of a batch."""

    def __init__(self, outline_dim: int, hidden_dim: int = 512, num_layers: int = 3):
        super().__init__()
        self.mlp = mlp(outline_dim, hidden_dim, num_layers, 1)

    def forward(self, outlines: Tensor) -> Tensor:
        return self.mlp(outlines)[:, 0]


@torch.no_grad()
def update_ema(average: nn.Module, current: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 - decay) · current, parameter by parameter; buffers are copied."""
    if not 0 <= decay < 1 or math.isnan(decay):
        raise OutlinesError(f"the decay of an exponential moving average lies in [0, 1), not at {decay}")
    torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)
    for kept, buffer in zip(average.buffers(), current.buffers(), strict=True):
        kept.copy_(buffer)
