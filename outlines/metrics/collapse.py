"""Instruments for posterior collapse: does the vector depend on the sentence, and does the decoder use it?

A posterior q(z|x) = N(mu(x), sigma²(x)) can be too weak (mu and sigma are the same for every x) or too noisy (mu depends
on x, but sigma is large or mu moves from update to update; Goyal et al., Z-Forcing, 2017). `metrics/diagnosis.py` turns
the instruments into a verdict; docs/posterior-collapse.md explains them. For a vector without noise (an outline or a
code), logvar is None, the noise is 0, and KL and mutual information do not exist.

Shapes: N held-out sentences, P probe sentences, Z latent dimensions. nll, kl and information are nats per sentence unless
the name ends in `_per_token`. Posteriors are converted to float64 on the CPU.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig
from outlines.decoding.sampler import Sampler
from outlines.decoding.scoring import nll_of_rows
from outlines.errors import OutlinesError
from outlines.networks.decoder import Decoder

ACTIVE_VARIANCE = 0.01
"""Var_x[mu] above which a dimension is active, in units of the prior's variance (Burda et al. 2016)."""
MIN_ERRORS = 3.0
"""Standard errors that a gap must exceed. With hundreds of dimensions tested, 2 would often be exceeded by chance."""

Posterior = tuple[Tensor, Tensor | None]
"""mu and logvar = log sigma², both [N, Z]; logvar is None for a vector without noise."""


@overload
def checked(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def checked(mu: Tensor, logvar: Tensor | None) -> Posterior: ...
def checked(mu: Tensor, logvar: Tensor | None) -> Posterior:
    """Return the posterior in float64 on the CPU. Raises OutlinesError for wrong shapes and non-finite values."""
    if mu.ndim != 2 or len(mu) < 2 or (logvar is not None and logvar.shape != mu.shape):
        shapes = [list(part.shape) for part in (mu, logvar) if part is not None]
        raise OutlinesError(f"collapse: mu and logvar must be [N, Z] with at least two sentences, not {shapes}")
    if not all(bool(part.isfinite().all()) for part in (mu, logvar) if part is not None):
        raise OutlinesError("collapse: mu or logvar contains NaN or infinity")
    return mu.detach().cpu().double(), None if logvar is None else logvar.detach().cpu().double()


def draw_posterior(mu: Tensor, logvar: Tensor | None, rng: torch.Generator) -> Tensor:
    """Return one z per posterior, [N, Z]; mu itself if there is no noise."""
    if logvar is None:
        return mu
    return mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=rng, dtype=mu.dtype)


def kl_by_dim(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(q(z|x) || N(0, I)) of each dimension, averaged over x: [Z], nats per sentence.

    The KL measures the distance from the prior. A posterior that is the same for every x but differs from the prior has
    a large KL and tells the decoder nothing; see `mutual_information`.
    mu, logvar: [N, Z]. Source: Kingma and Welling, Auto-Encoding Variational Bayes (2014), appendix B.
    """
    mu, logvar = checked(mu, logvar)
    return (mu.square() + logvar.exp() - 1 - logvar).mean(dim=0) / 2


class Steps(NamedTuple):
    """Posteriors with a latent at every step, following one draw per sentence; each [N, T, Z].

    Values are in units of the prior at that step, which may depend on earlier tokens and latents. If the posterior equals
    the prior, mu and logvar are 0 and `drawn` is N(0, 1). The same holds for steps after the end of a sentence.
    """

    mu: Tensor
    logvar: Tensor
    drawn: Tensor
    lengths: Tensor
    """steps of each sentence [N], including the one that predicts eos"""

    def real(self, values: Tensor) -> Tensor:
        """Select the real steps from values [N, T, Z]: [number of real steps, Z]."""
        return values[torch.arange(values.shape[1]) < self.lengths[:, None]]


def kl_by_position(steps: Steps) -> Tensor:
    """Return KL(q(z_t|x, earlier z) || p(z_t|earlier tokens and z)) at each position: nats per step [longest sentence].

    The mean is over the sentences that have the step. Exact given each sentence's draw of the earlier latents.
    """
    mu, logvar = steps.mu.double(), steps.logvar.double()
    kl = (mu.square() + logvar.exp() - 1 - logvar).sum(dim=2) / 2
    reached = torch.arange(kl.shape[1]) < steps.lengths[:, None]
    return ((kl * reached).sum(dim=0) / reached.sum(dim=0).clamp_min(1))[:int(steps.lengths.max())]


def active_positions(steps: Steps, threshold: float = ACTIVE_VARIANCE) -> int:
    """Count the positions where mu of at least one dimension varies over sentences by more than `threshold`.

    Only sentences that have the step count; positions that fewer than two sentences have are skipped.
    """
    count = 0
    for position in range(int(steps.lengths.max())):
        mu = steps.mu[steps.lengths > position, position].double()
        count += len(mu) > 1 and bool((mu.var(dim=0) > threshold).any())
    return count


class MutualInformation(NamedTuple):
    """I(x; z) under q, in nats."""

    nats: float
    error: float  # standard error over sentences and draws
    ceiling: float  # log N, the largest value the estimate can have
    marginal_kl: float  # KL(q(z) || prior): the part of the KL that does not depend on the sentence


def mutual_information(mu: Tensor, logvar: Tensor, rng: torch.Generator, num_draws: int = 1,
                       chunk: int = 512) -> MutualInformation:
    """Estimate I(x; z) under q: how much z tells about which of the N sentences it was drawn for.

    I = E_x E_q(z|x) [log q(z|x) - log q(z)], with q(z) = (1/N) sum_j q(z|x_j) over all N sentences. Monte Carlo with
    `num_draws` z per sentence, exact in the sum over j. The ceiling is log N, and near it the estimate is too low.
    For one dimension, pass one column. Cost: N² Z num_draws products, in blocks of chunk × N.
    mu, logvar: [N, Z]. Source: Hoffman and Johnson, ELBO surgery (2016), equation 6.
    """
    mu, logvar = checked(mu, logvar)
    total_kl = float(kl_by_dim(mu, logvar).sum())
    mu = mu - mu.mean(dim=0)  # Only differences matter; near the origin the squares below cancel least.
    precision = (-logvar).exp()
    # log q(z|x_j) = offset_j + z · mu_j / sigma_j² - z² / (2 sigma_j²), plus a constant that cancels.
    offsets = -(logvar + mu.square() * precision).sum(dim=1) / 2
    terms = torch.zeros(len(mu), dtype=mu.dtype)
    for _ in range(num_draws):
        z = draw_posterior(mu, logvar, rng)
        for rows in torch.arange(len(mu)).split(chunk):
            log_q = offsets + z[rows] @ (mu * precision).T - z[rows].square() @ precision.T / 2
            # log q(z|x) comes from the same matrix, so rounding cannot lift a term above log N.
            own = log_q.gather(1, rows[:, None])[:, 0]
            terms[rows] += (own - log_q.logsumexp(dim=1) + math.log(len(mu))) / num_draws
    nats, error = float(terms.mean()), float(terms.std()) / math.sqrt(len(mu))
    return MutualInformation(nats, error, math.log(len(mu)), total_kl - nats)


def active_units(mu: Tensor, threshold: float = ACTIVE_VARIANCE) -> int:
    """Count the dimensions whose mu varies over sentences by more than `threshold`, 0..Z.

    The count ignores sigma: an active dimension can be drowned in noise. mu: [N, Z], the whole held-out split.
    Source: Burda et al., Importance Weighted Autoencoders (2016), section 5.
    """
    return int((checked(mu, None)[0].var(dim=0) > threshold).sum())


class SignalNoise(NamedTuple):
    """Signal and noise of each dimension, [Z] each."""

    signal: Tensor  # Var_x[mu], squared units of z
    noise: Tensor  # E_x[sigma²], squared units of z
    snr: Tensor  # signal / noise
    information: Tensor  # ½ log(1 + snr), nats
    sigma_variation: Tensor  # standard deviation over x of log sigma


def signal_noise(mu: Tensor, logvar: Tensor | None) -> SignalNoise:
    """Return signal, noise, their ratio and ½ log(1 + ratio) nats for each dimension.

    Variances are over N - 1. The information equals I(x; z) of one dimension if mu is Gaussian over x and sigma is
    constant; for any other mu with that variance it is an upper bound. Without noise, the resolution of float32 stands in
    for it, which limits the information to about 16 nats. mu, logvar: [N, Z].
    """
    mu, logvar = checked(mu, logvar)
    signal = mu.var(dim=0)
    noise = torch.zeros_like(signal) if logvar is None else logvar.exp().mean(dim=0)
    variation = torch.zeros_like(signal) if logvar is None else logvar.std(dim=0) / 2
    resolution = torch.finfo(torch.float32).eps ** 2 * mu.square().mean(dim=0)
    snr = signal / noise.maximum(resolution).clamp_min(torch.finfo(mu.dtype).tiny)
    return SignalNoise(signal, noise, snr, snr.log1p() / 2, variation)


class Drift(NamedTuple):
    """Movement of fixed sentences' posteriors between evaluations, per dimension [Z], in standard deviations of mu."""

    mu: Tensor
    sigma: Tensor


def drift(evaluations: Sequence[Posterior]) -> Drift:
    """Measure how far mu and sigma of the same probe sentences move from one evaluation to the next.

    Root mean square, over sentences and successive evaluations, of the change of mu and of sigma, divided by the standard
    deviation of mu over sentences. 0 for a frozen encoder, √2 if mu is redrawn every time, no ceiling. A shift or rotation
    of the whole space also counts, although a decoder can follow it; the latent gap shows whether it did.
    evaluations: at least two, oldest first; mu [P, Z], logvar [P, Z] or None.
    """
    if len(evaluations) < 2 or len({mu.shape for mu, _ in evaluations}) != 1:
        raise OutlinesError("drift: needs two or more evaluations of the same probe sentences")
    posteriors = [checked(mu, logvar) for mu, logvar in evaluations]
    means = torch.stack([mu for mu, _ in posteriors])
    sigmas = torch.stack([torch.zeros_like(mu) if logvar is None else (logvar / 2).exp() for mu, logvar in posteriors])
    spread = means.var(dim=1).mean(dim=0).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    steps = (part.diff(dim=0).square().mean(dim=(0, 1)).sqrt() / spread for part in (means, sigmas))
    return Drift(*steps)


def other_rows(num_rows: int, num_swaps: int, rng: torch.Generator) -> Tensor:
    """Return `num_swaps` other rows for each row, [num_swaps, N]; each line is a permutation without fixed points.

    Lines are rotations of one random circle, not of the file's order, because neighbouring captions describe one picture.
    """
    if not 1 <= num_swaps < num_rows:
        raise OutlinesError(f"collapse: {num_swaps} swaps need more sentences than {num_rows}")
    circle = torch.randperm(num_rows, generator=rng)
    others = torch.empty(num_swaps, num_rows, dtype=torch.long)
    for turn in range(num_swaps):
        others[turn, circle] = circle.roll(turn + 1)
    return others


class Gap(NamedTuple):
    """Rise of the nll with another vector, nats per token, and its standard error over sentences."""

    per_token: float
    error: float

    def reaches(self, threshold: float) -> bool:
        """Return whether the gap is at least `threshold` and more than MIN_ERRORS standard errors above 0."""
        return self.per_token >= threshold and self.per_token > MIN_ERRORS * self.error


def _gap(own: np.ndarray, changed: np.ndarray, num_targets: np.ndarray) -> Gap:
    """Return the rise from `own` to `changed` nll [N] per token, a ratio of sums, with that ratio's standard error."""
    per_token = float((changed - own).sum() / num_targets.sum())
    deviations = changed - own - per_token * num_targets
    return Gap(per_token, float(deviations.std(ddof=1) / math.sqrt(len(own)) / num_targets.mean()))


def latent_gap(decoder: Decoder, rows: Sequence[np.ndarray], vectors: Tensor, *others: Tensor) -> Gap:
    """Return the nll of sentences with other vectors minus the nll with their own, per token; the mean over `others`.

    0: the decoder ignores the vector. Below 0: the other vectors fit better. No ceiling, because a wrong vector misleads.
    rows: token ids of N sentences. vectors, others: [N, Z]. decoder: in evaluation mode.
    """
    own, num_targets = nll_of_rows(decoder, rows, vectors)
    changed = np.mean([nll_of_rows(decoder, rows, other)[0] for other in others], axis=0)
    return _gap(own, changed, num_targets)


def latent_gap_by_dim(decoder: Decoder, rows: Sequence[np.ndarray], vectors: Tensor, others: Tensor,
                      num_dims: int | None = None) -> list[Gap]:
    """Return the latent gap of each dimension when only this dimension is swapped; scores the rows Z + 1 times.

    The gaps do not sum to the whole gap: information that two dimensions share is missing in neither.
    num_dims: Z, if the vectors hold it once per step, [N, T · Z]; a dimension is then swapped at every step.
    """
    own, num_targets = nll_of_rows(decoder, rows, vectors)
    gaps, num_dims = [], num_dims or vectors.shape[1]
    for dim in range(num_dims):
        changed = vectors.clone()
        changed[:, dim::num_dims] = others[:, dim::num_dims]
        gaps.append(_gap(own, nll_of_rows(decoder, rows, changed)[0], num_targets))
    return gaps


def edit_distance(a: Sequence[int], b: Sequence[int]) -> float:
    """Return the Levenshtein distance between a and b divided by the longer length, 0..1."""
    previous = list(range(len(b) + 1))
    for row, token in enumerate(a, start=1):
        current = [row]
        for column, other in enumerate(b, start=1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (token != other)))
        previous = current
    return previous[-1] / max(1, len(a), len(b))


class OutputChange(NamedTuple):
    """How much greedy output changes with the vector."""

    distinct: float  # distinct outputs / outputs; 1 / num if the vector changes nothing
    edit_distance: float  # mean normalised edit distance between the outputs of two vectors, 0..1
    num: int


def output_change(decoder: Decoder, vectors: Tensor, rng: torch.Generator,
                  max_len: int = SamplingConfig.max_len) -> OutputChange:
    """Decode each vector [N, Z] greedily; return the share of distinct outputs and the mean edit distance over N pairs.

    Decoding is greedy, so only the vector can make outputs differ. The distinct share falls with N: compare equal N.
    """
    device = next(decoder.parameters()).device
    outputs = Sampler(decoder)(vectors.to(device), torch.zeros(len(vectors), max_len, device=device),
                               SamplingConfig(temperature=0, max_len=max_len))
    others = other_rows(len(vectors), 1, rng)[0].tolist()
    distances = [edit_distance(output, outputs[other]) for output, other in zip(outputs, others, strict=True)]
    return OutputChange(len(set(map(tuple, outputs))) / len(outputs), float(np.mean(distances)), len(outputs))
