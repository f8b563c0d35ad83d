"""Rejection sampling of vectors with a critic: the accepted vectors are more similar to real vectors.

A sampled vector x is accepted with probability min(1, exp(r(x) - t)). r(x) is log(density of real vectors / density of the
source) at x, up to a constant, and t is a threshold (Verine et al. 2024). docs/outline-gan.md explains this rule and the
estimate of r.
"""

import math

import torch
from torch import Tensor

from outlines.errors import OutlinesError
from outlines.models.base import CannotReject, Draw, TextModel

MAX_MEAN_DRAWS = 100.0
NUM_CALIBRATION, CALIBRATION_SEED = 8192, 17  # number and seed of the vectors that determine t
PRIOR_DEVIATION = 10.0  # of the slope's Gaussian prior, nats per standard deviation of the scores; keeps the slope finite


def fit_slope(real_scores: Tensor, fake_scores: Tensor) -> float:
    """Return the slope of the log density ratio (real over fake) in nats per unit of score, from logistic regression."""
    scores = torch.cat([real_scores, fake_scores]).cpu().double()
    deviation = float(scores.std())
    if not deviation > 0:
        return 0.0
    inputs = torch.stack([(scores - scores.mean()) / deviation, torch.ones_like(scores)], dim=1)
    is_real = (torch.arange(len(scores)) < len(real_scores)).double()
    prior, weights = scores.new_tensor([PRIOR_DEVIATION ** -2, 0.0]), scores.new_zeros(2)
    for _ in range(50):
        probability = (inputs @ weights).sigmoid()
        gradient = inputs.T @ (is_real - probability) - prior * weights
        curvature = (inputs.T * (probability * (1 - probability))) @ inputs + torch.diag(prior)
        weights = weights + torch.linalg.solve(curvature, gradient)
    return float(weights[0]) / deviation


def threshold(log_ratios: Tensor, mean_draws: float) -> float:
    """Return the t at which the mean of min(1, exp(r - t)) over log ratios r [N] is 1 / mean_draws, found by bisection."""
    ratios = log_ratios.cpu().double()
    low = float(ratios.min())  # accepts every vector
    high = float(ratios.logsumexp(dim=0)) - math.log(len(ratios)) + math.log(mean_draws)  # accepts at most 1 / mean_draws
    for _ in range(100):
        middle = (low + high) / 2
        accepts_more = float((ratios - middle).clamp(max=0).exp().mean()) * mean_draws > 1
        low, high = (middle, high) if accepts_more else (low, middle)
    return high


@torch.no_grad()
def rejecting(model: TextModel, draw: Draw, mean_draws: float) -> Draw:
    """Return a function like `draw` that returns only accepted vectors: one of `mean_draws` vectors, on average.

    Raises CannotReject if the model has no usable critic.
    """
    if not 1 <= mean_draws <= MAX_MEAN_DRAWS:
        raise OutlinesError(f"rejection must be from 1 to {MAX_MEAN_DRAWS:g}, not {mean_draws:g}.")
    if mean_draws == 1:
        return draw

    def drawn(num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        vectors = draw(num, rng)
        if vectors is None:
            raise CannotReject(f"{model.family!r} models have no vectors, so --rejection is not available. Remove it.")
        return vectors, model.log_density_ratio(vectors).cpu().double()

    log_ratios = drawn(NUM_CALIBRATION, torch.Generator().manual_seed(CALIBRATION_SEED))[1]
    if not log_ratios.isfinite().all():
        raise CannotReject("The critic's scores are not finite. Sample without rejection.")
    accepted_from = threshold(log_ratios, mean_draws)

    def accept(num: int, rng: torch.Generator) -> Tensor:
        parts: list[Tensor] = []
        while (missing := num - sum(map(len, parts))) > 0:
            vectors, ratios = drawn(num, rng)
            accepted = torch.rand(num, generator=rng, dtype=torch.float64) < (ratios - accepted_from).exp()
            parts.append(vectors[accepted.to(vectors.device)][:missing])
        return torch.cat(parts)

    return accept
