"""Rejection of drawn vectors by a critic, so that those which are kept are nearer to the real ones.

With p the density of real vectors and q that of the source, a draw x is kept with probability

    min(1, exp(r(x) - t)),    r(x) = log p(x) / q(x), up to a constant,

t chosen so that one of `mean_draws` is kept on average. What is kept has a density in proportion to min(p, eᵗ q): with a
high t that of real vectors itself; of all rules that keep so many it comes nearest to them (Verine et al., Optimal
Budgeted Rejection Sampling for Generative Models, 2024). The constant goes into t, so only differences of r matter.

Where r comes from. R3's critic sees pairs: σ(D(x) - D(y)) is how surely x is the real one of the two, and at the optimum
D(x) - D(y) = r(x) - r(y). So exp(D), with no sigmoid to invert as in Azadi et al., Discriminator Rejection Sampling
(2019), would be the ratio; but a gradient penalty keeps D flat, and a Wasserstein critic is no log ratio at all. So it is
only assumed that r rises with D along a line, and the line's slope is measured on vectors that the critic has not seen:
held-out real ones against as many generated ones, by logistic regression, as Turner et al. (Metropolis-Hastings
Generative Adversarial Networks, 2019) calibrate a discriminator.
"""

import math

import torch
from torch import Tensor

from outlines.errors import OutlinesError
from outlines.models.base import CannotReject, Draw, TextModel

MAX_MEAN_DRAWS = 100.0
NUM_CALIBRATION, CALIBRATION_SEED = 8192, 17
"""Draws of the source that t is set on, and their seed: t is one for all seeds of a sampling."""
PRIOR_DEVIATION = 10.0
"""Of the slope, in nats for one deviation of the scores: keeps it finite where scores part the two sets without a fault."""


def fit_slope(real_scores: Tensor, fake_scores: Tensor, num_iterations: int = 50) -> float:
    """Nats of log density ratio, real over fake, for one unit of the score: logistic regression with an intercept.

    real_scores: [N]; fake_scores: [M]. 0 where all scores are equal. By Newton's method in float64, with a normal prior
    of PRIOR_DEVIATION on the slope.
    """
    scores = torch.cat([real_scores, fake_scores]).double().cpu()
    deviation = float(scores.std())
    if not deviation > 0:
        return 0.0
    inputs = torch.stack([(scores - scores.mean()) / deviation, torch.ones_like(scores)], dim=1)
    is_real = (torch.arange(len(scores)) < len(real_scores)).double()
    prior = torch.tensor([PRIOR_DEVIATION ** -2, 0.0], dtype=torch.float64)
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(num_iterations):
        probability = (inputs @ weights).sigmoid()
        gradient = inputs.T @ (is_real - probability) - prior * weights
        curvature = (inputs.T * (probability * (1 - probability))) @ inputs + torch.diag(prior)
        weights = weights + torch.linalg.solve(curvature, gradient)
    return float(weights[0]) / deviation


def threshold(log_ratios: Tensor, mean_draws: float) -> float:
    """The t at which the mean of min(1, exp(r - t)) over draws' log ratios r [N] is 1 / mean_draws; by bisection."""
    ratios = log_ratios.double()
    low = float(ratios.min())  # keeps every draw
    high = float(ratios.logsumexp(dim=0)) - math.log(len(ratios)) + math.log(mean_draws)  # keeps one of mean_draws or fewer
    for _ in range(100):
        middle = (low + high) / 2
        if float((ratios - middle).clamp(max=0).exp().mean()) * mean_draws > 1:
            low = middle
        else:
            high = middle
    return high


@torch.no_grad()
def rejecting(model: TextModel, draw: Draw, mean_draws: float) -> Draw:
    """`draw`, of the model's own source, with one of `mean_draws` vectors kept on average.

    What it gives is decided by the generator it is handed alone, as with `draw` itself. Raises CannotReject where the
    model has no critic, or one whose scores say nothing.
    """
    if not 1 <= mean_draws <= MAX_MEAN_DRAWS:
        raise OutlinesError(f"rejection: the mean number of draws must be from 1 (keep all) to {MAX_MEAN_DRAWS:g}, "
                            f"not {mean_draws:g}")

    def drawn(num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        vectors = draw(num, rng)
        assert vectors is not None, "a source of a family with a critic gives vectors"
        return vectors, model.log_density_ratio(vectors).double().cpu()

    log_ratios = drawn(NUM_CALIBRATION, torch.Generator().manual_seed(CALIBRATION_SEED))[1]
    if not log_ratios.isfinite().all():
        raise CannotReject("the critic of this run gives scores that are not finite: nothing can be rejected by it")
    kept_from = threshold(log_ratios, mean_draws)

    def keep(num: int, rng: torch.Generator) -> Tensor:
        parts: list[Tensor] = []
        while (missing := num - sum(map(len, parts))) > 0:
            vectors, ratios = drawn(num, rng)
            chance = (ratios - kept_from).exp()
            kept = torch.rand(num, generator=rng, dtype=torch.float64) < chance
            parts.append(vectors[kept.to(vectors.device)][:missing])
        return torch.cat(parts)

    return keep
