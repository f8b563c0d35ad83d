"""Metrics of posterior collapse: does the vector depend on the sentence, and does the decoder use the vector?

docs/posterior-collapse.md explains these metrics; `metrics/collapse_verdict.py` turns them into a verdict. A posterior is
q(z|x) = N(mu(x), sigma²(x)). A vector without noise (an outline or a code) has logvar None, no KL and no mutual information.
Shapes: N held-out sentences, Z latent dimensions, T steps. nll, kl and information are nats per sentence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from outlines.decoding.decode import Sampler
from outlines.decoding.sample import SamplingConfig
from outlines.decoding.scoring import nll_of_rows
from outlines.errors import OutlinesError
from outlines.networks.decoder import Decoder
from outlines.networks.losses import kl_to_standard_normal

ACTIVE_VARIANCE = 0.01  # Var_x[mu] above which a dimension is active, in units of the prior's variance (Burda et al. 2016).
MIN_ERRORS = 3.0
"""A gap must exceed this number of standard errors. Of hundreds of gaps, many exceed 2 standard errors by chance."""

Posterior = tuple[Tensor, Tensor | None]
"""mu [N, Z] and logvar = log sigma² [N, Z]; logvar is None for a vector without noise"""


def checked(*posterior: Tensor | None) -> Any:
    """Return mu and logvar in float64 on the CPU. Raises OutlinesError for non-finite values."""
    if not all(part is None or part.isfinite().all() for part in posterior):
        raise OutlinesError("Posterior collapse cannot be measured: mu or logvar contains NaN or infinity. "
                            "Train again with a lower learning rate.")
    return [None if part is None else part.detach().cpu().double() for part in posterior]


def draw_posterior(mu: Tensor, logvar: Tensor | None, rng: torch.Generator) -> Tensor:
    """Return one sample z of each posterior, [N, Z]. Without noise (logvar None), return mu itself."""
    return mu if logvar is None else mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=rng, dtype=mu.dtype)


def kl_by_dim(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(q(z|x) || N(0, I)) of each dimension, averaged over x: [Z] (Kingma and Welling 2014, appendix B)."""
    return kl_to_standard_normal(*checked(mu, logvar)).mean(dim=0)


class Steps(NamedTuple):
    """Posteriors of a model with a latent at every step, standardised by the prior of each step: [N, T, Z].

    Each posterior is conditioned on one sample of the earlier latents. `drawn` contains one sample of each posterior. At
    steps after the end of a sentence, mu and logvar are 0, and `drawn` is N(0, 1).
    """

    mu: Tensor
    logvar: Tensor
    drawn: Tensor
    lengths: Tensor  # number of steps of each sentence [N], including the step that predicts eos

    def real(self, values: Tensor) -> Tensor:
        """Select the real steps from values [N, T, Z]: [number of real steps, Z]."""
        return values[torch.arange(values.shape[1]) < self.lengths[:, None]]


def kl_by_position(steps: Steps) -> Tensor:
    """Return KL(q(z_t|x, earlier z) || p(z_t|earlier tokens and z)) of each step t: [T].

    The KL of a step is averaged over the sentences that have this step.
    """
    kl = kl_to_standard_normal(steps.mu.double(), steps.logvar.double()).sum(dim=2)
    reached = torch.arange(kl.shape[1]) < steps.lengths[:, None]
    return ((kl * reached).sum(dim=0) / reached.sum(dim=0).clamp_min(1))[:int(steps.lengths.max())]


def active_positions(steps: Steps) -> int:
    """Return the number of positions with at least one active dimension. Positions of a single sentence do not count."""
    means = (steps.mu[steps.lengths > position, position] for position in range(int(steps.lengths.max())))
    return sum(len(mu) > 1 and active_units(mu) > 0 for mu in means)


@dataclass(frozen=True)
class MutualInformation:
    """I(x; z) under q, in nats."""

    nats: float
    error: float  # standard error of `nats`
    ceiling: float  # log N, the largest value the estimate can have
    marginal_kl: float  # KL(q(z) || prior): the part of the KL that does not depend on the sentence


def mutual_information(mu: Tensor, logvar: Tensor, rng: torch.Generator, num_draws: int = 1,
                       chunk: int = 512) -> MutualInformation:
    """Return an estimate of I(x; z) = E_x E_q(z|x) [log q(z|x) - log q(z)] with q(z) = (1/N) sum_j q(z|x_j).

    The expectations use `num_draws` samples of z per sentence; the sum over j is exact. Near the ceiling log N, the estimate
    is too low.
    Source: Hoffman and Johnson, ELBO surgery (2016), equation 6.
    """
    mu, logvar = checked(mu, logvar)
    total_kl = float(kl_by_dim(mu, logvar).sum())
    mu = mu - mu.mean(dim=0)  # Only differences of mu matter. Near the origin, rounding errors are smallest.
    precision = (-logvar).exp()
    # log q(z|x_j) = offset_j + z · mu_j / sigma_j² - z² / (2 sigma_j²), plus a constant that cancels.
    offsets = -(logvar + mu.square() * precision).sum(dim=1) / 2
    terms = torch.zeros(len(mu), dtype=mu.dtype)
    for _ in range(num_draws):
        z = draw_posterior(mu, logvar, rng)
        for rows in torch.arange(len(mu)).split(chunk):
            log_q = offsets + z[rows] @ (mu * precision).T - z[rows].square() @ precision.T / 2
            # log q(z|x) comes from the same matrix, so rounding cannot raise a term above log N.
            own = log_q.gather(1, rows[:, None])[:, 0]
            terms[rows] += (own - log_q.logsumexp(dim=1) + math.log(len(mu))) / num_draws
    nats, error = float(terms.mean()), float(terms.std()) / math.sqrt(len(mu))
    return MutualInformation(nats, error, math.log(len(mu)), total_kl - nats)


def active_units(mu: Tensor, threshold: float = ACTIVE_VARIANCE) -> int:
    """Return the number of dimensions with Var_x[mu] above `threshold` (Burda et al. 2016, section 5)."""
    return int((checked(mu)[0].var(dim=0) > threshold).sum())


class SignalNoise(NamedTuple):
    """Signal and noise of each dimension, [Z] each."""

    signal: Tensor  # Var_x[mu], squared units of z
    noise: Tensor  # E_x[sigma²], squared units of z
    snr: Tensor  # signal / noise
    information: Tensor  # ½ log(1 + snr), nats
    sigma_variation: Tensor  # standard deviation over x of log sigma


def signal_noise(mu: Tensor, logvar: Tensor | None) -> SignalNoise:
    """Return the signal, the noise, snr = signal / noise, and the information ½ log(1 + snr) nats of each dimension.

    The information equals I(x; z) of one dimension if mu is Gaussian over x and sigma is constant. It can be too high if mu
    is not Gaussian, and too low if sigma varies. Without noise, the precision of float32 limits it to about 16 nats.
    """
    mu, logvar = checked(mu, logvar)
    signal = mu.var(dim=0)
    noise = torch.zeros_like(signal) if logvar is None else logvar.exp().mean(dim=0)
    variation = torch.zeros_like(signal) if logvar is None else logvar.std(dim=0) / 2
    resolution = torch.finfo(torch.float32).eps ** 2 * mu.square().mean(dim=0)
    snr = signal / noise.maximum(resolution).clamp_min(torch.finfo(mu.dtype).tiny)
    return SignalNoise(signal, noise, snr, snr.log1p() / 2, variation)


class Drift(NamedTuple):
    """Change of mu and sigma from one evaluation to the next, same sentences: [Z] each, in standard deviations of mu."""

    mu: Tensor
    sigma: Tensor


def drift(evaluations: Sequence[Posterior]) -> Drift:
    """Return the root mean square change of mu and sigma from one evaluation to the next, for the same sentences.

    The drift of mu is 0 for a frozen encoder and √2 if mu is independent of the previous mu. It has no upper limit. A shift
    or rotation of the whole space also counts, although a decoder can adapt to it. The latent gap shows whether the decoder
    has adapted.
    evaluations: at least two, oldest first.
    """
    posteriors = [checked(mu, logvar) for mu, logvar in evaluations]
    means = torch.stack([mu for mu, _ in posteriors])
    sigmas = torch.stack([torch.zeros_like(mu) if logvar is None else (logvar / 2).exp() for mu, logvar in posteriors])
    spread = means.var(dim=1).mean(dim=0).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    steps = (part.diff(dim=0).square().mean(dim=(0, 1)).sqrt() / spread for part in (means, sigmas))
    return Drift(*steps)


def other_rows(num_rows: int, num_swaps: int, rng: torch.Generator) -> Tensor:
    """Return the indices of `num_swaps` different other rows for each row, [num_swaps, N]. Each swap is a permutation."""
    if not 1 <= num_swaps < num_rows:
        raise OutlinesError(f"{num_rows} sentences are too few for {num_swaps} swaps of vectors. Use a larger test split.")
    # The rows are put in a random circle, because neighbouring captions in a file describe the same picture.
    circle = torch.randperm(num_rows, generator=rng)
    place = circle.argsort()
    return torch.stack([circle.roll(turn)[place] for turn in range(1, num_swaps + 1)])


@dataclass(frozen=True)
class Gap:
    """Rise of the nll if the decoder reads another vector, nats per token, and the standard error of this rise."""

    per_token: float
    error: float

    def reaches(self, threshold: float) -> bool:
        """Return whether the gap is at least `threshold` and more than MIN_ERRORS standard errors above 0."""
        return self.per_token >= threshold and self.per_token > MIN_ERRORS * self.error


def _gap(own: np.ndarray, changed: np.ndarray, num_targets: np.ndarray) -> Gap:
    """Return the rise from `own` to `changed` nll [N] per token (a ratio of sums) and the standard error of this ratio."""
    per_token = float((changed - own).sum() / num_targets.sum())
    deviations = changed - own - per_token * num_targets
    return Gap(per_token, float(deviations.std(ddof=1) / math.sqrt(len(own)) / num_targets.mean()))


def latent_gap(decoder: Decoder, rows: Sequence[np.ndarray], vectors: Tensor, *others: Tensor) -> Gap:
    """Return the nll of sentences given other vectors minus the nll given their own vectors, averaged over `others`.

    Unit: nats per token. 0: the decoder ignores the vector. There is no upper limit, because a wrong vector can mislead the
    decoder.
    rows: token ids of N sentences. vectors, others: [N, Z]. decoder: in evaluation mode.
    """
    own, num_targets = nll_of_rows(decoder, rows, vectors)
    return _gap(own, np.mean([nll_of_rows(decoder, rows, other)[0] for other in others], axis=0), num_targets)


def latent_gap_by_dim(decoder: Decoder, rows: Sequence[np.ndarray], vectors: Tensor, others: Tensor,
                      num_dims: int | None = None) -> list[Gap]:
    """Return the latent gap of each dimension: only this dimension has the values of `others`. Scores all rows Z + 1 times.

    num_dims: Z, if the vectors are [N, T · Z] with Z dimensions per step. Then a dimension is replaced at all steps.
    """
    own, num_targets = nll_of_rows(decoder, rows, vectors)
    gaps: list[Gap] = []
    num_dims = num_dims or vectors.shape[1]
    for dims in torch.arange(num_dims).split(max(1, 256 // len(rows))):  # with few rows, several dimensions share a batch
        changed = vectors.repeat(len(dims), 1, 1)
        for dim, part in zip(dims.tolist(), changed, strict=True):
            part[:, dim::num_dims] = others[:, dim::num_dims]
        nll, _ = nll_of_rows(decoder, [*rows] * len(dims), changed.flatten(0, 1))
        gaps += [_gap(own, of_dim, num_targets) for of_dim in nll.reshape(len(dims), -1)]
    return gaps


def edit_distance(a: Sequence[int], b: Sequence[int]) -> float:
    """Return the Levenshtein distance between a and b, divided by the length of the longer one: 0 to 1."""
    previous = list(range(len(b) + 1))
    for row, token in enumerate(a, start=1):
        current = [row]
        for column, other in enumerate(b, start=1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (token != other)))
        previous = current
    return previous[-1] / max(1, len(a), len(b))


@dataclass(frozen=True)
class OutputChange:
    """How much greedy output changes with the vector."""

    distinct: float  # number of distinct outputs / num; 1 / num if the vector changes nothing
    edit_distance: float  # mean `edit_distance` between the outputs of two vectors, 0 to 1
    num: int


def output_change(decoder: Decoder, vectors: Tensor, rng: torch.Generator,
                  max_len: int = SamplingConfig.max_len) -> OutputChange:
    """Return how much the greedy outputs of vectors [N, Z] differ. The edit distance is the mean over N pairs."""
    device = next(decoder.parameters()).device
    outputs = Sampler(decoder)(vectors.to(device), torch.zeros(len(vectors), max_len, device=device),
                               SamplingConfig(temperature=0, max_len=max_len))
    others = other_rows(len(vectors), 1, rng)[0].tolist()
    distances = [edit_distance(output, outputs[other]) for output, other in zip(outputs, others, strict=True)]
    return OutputChange(len(set(map(tuple, outputs))) / len(outputs), float(np.mean(distances)), len(outputs))
