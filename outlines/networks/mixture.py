"""A mixture of Gaussians that is fitted to outlines without a GAN, and an affine map that matches mean and covariance."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from outlines.devices import float64
from outlines.errors import OutlinesError

K_MEANS_ITERATIONS = 15
MOST_STRETCH = 2.0  # largest factor by which `moment_map` stretches a direction


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians that all have the covariance factor · factorᵀ, in scaled units.

    centres: [K, D], with probabilities `shares` [K]. factor: [D, D]. offsets, optional: [J, D], with probabilities
    `offset_shares` [J]. Each offset can be added to each centre, so there are K × J Gaussians.
    """

    centres: Tensor
    shares: Tensor
    factor: Tensor
    offsets: Tensor | None = None
    offset_shares: Tensor | None = None


def fit_mixture(outlines: Tensor, num_centres: int, seed: int, num_offsets: int = 0,
                progress: Callable[[int, int], None] | None = None) -> Mixture:
    """Return a mixture for outlines [N, D]: centres from Lloyd's k-means, and a factor of the residuals' covariance.

    num_offsets: centres of a second k-means on the residuals of the first (multiple stage vector quantisation: Juang and
    Gray 1982). progress: called with (iterations done, maximum). Raises OutlinesError if too few residuals differ from zero.
    """
    done, total = itertools.count(1), K_MEANS_ITERATIONS * (2 if num_offsets else 1)

    def iterated() -> None:
        if progress:
            progress(next(done), total)

    centres, shares, residual = k_means(outlines, num_centres, seed, iterated)
    offsets = offset_shares = None
    if num_offsets:
        # In a cluster with only one row, the residual is 0, which contains no information about distances from centres.
        left = residual[residual.abs().sum(dim=1) > 0]
        if len(left) <= num_offsets:
            raise OutlinesError(f"Only {len(left)} outlines differ from their centres, too few for {num_offsets} offsets. "
                                "Lower --num-offsets or use a larger corpus.")
        offsets, offset_shares, residual = k_means(left, num_offsets, seed, iterated)
    num_free = max(1, len(outlines) - num_centres - num_offsets)
    values, directions = torch.linalg.eigh(float64(residual.T @ residual / num_free))
    factor = (directions * values.clamp(min=0).sqrt()).to(outlines)
    return Mixture(centres, shares, factor, offsets, offset_shares)


def k_means(rows: Tensor, num_centres: int, seed: int, iterated: Callable[[], None] = lambda: None,
            max_iterations: int = K_MEANS_ITERATIONS) -> tuple[Tensor, Tensor, Tensor]:
    """Return centres [K, D], their shares of the rows [K] and the residuals [N, D]; call `iterated` after each iteration.

    Lloyd's algorithm, started at K random rows. It stops when no row changes its centre.
    """
    rng = torch.Generator().manual_seed(seed)
    centres = rows[torch.randperm(len(rows), generator=rng)[:num_centres]].clone()
    previous = None
    for _ in range(max_iterations):
        nearest = nearest_centre(rows, centres)
        if previous is not None and torch.equal(nearest, previous):
            break
        previous = nearest
        counts = torch.bincount(nearest, minlength=num_centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        # A centre without rows stays where it is.
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        iterated()
        if num_centres == 1:
            break
    nearest = nearest_centre(rows, centres)
    shares = float64(torch.bincount(nearest, minlength=num_centres)) / len(rows)
    return centres, shares.to(rows), rows - centres[nearest]


def nearest_centre(outlines: Tensor, centres: Tensor, chunk: int = 8192) -> Tensor:
    """Return the index [N] of the nearest centre [K, D] of each outline [N, D], by Euclidean distance."""
    half_norms = centres.square().sum(dim=1) / 2
    return torch.cat([(rows @ centres.T - half_norms).argmax(dim=1) for rows in outlines.split(chunk)])


def moment_map(outlines: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return matrix and shift of the affine map that gives outlines [N, D] the mean and covariance of `like` [M, D].

    It is the optimal transport between Gaussians (Olkin and Pukelsheim, The Distance between Two Random Vectors with Given
    Dispersion Matrices, 1982), except that no direction is stretched by more than the factor MOST_STRETCH.
    """
    def root(covariance: Tensor, power: float) -> Tensor:
        values, directions = torch.linalg.eigh(covariance)
        return (directions * values.clamp(min=values.mean() * 1e-9).pow(power)) @ directions.T

    outlines, like = float64(outlines), float64(like)
    mean, wanted_mean = outlines.mean(dim=0), like.mean(dim=0)
    covariance, wanted = torch.cov(outlines.T), torch.cov(like.T)
    half, inverse = root(covariance, 0.5), root(covariance, -0.5)
    values, directions = torch.linalg.eigh(inverse @ root(half @ wanted @ half, 0.5) @ inverse)
    matrix = (directions * values.clamp(max=MOST_STRETCH)) @ directions.T
    return matrix, wanted_mean - matrix @ mean
