"""Is the vector that a decoder is given used, and if not, why not.

Posterior collapse has two shapes (Goyal et al., Z-Forcing, 2017): the signal from a sentence x to q(z|x) =
N(mu(x), sigma²(x)) is *too weak*, mu and sigma are the same for every x; or it is *too noisy*, mu depends on x but
the z that the decoder meets is unstable, because sigma is large beside the spread of mu, or because mu moves from
update to update. `diagnose` measures both and what the decoder makes of z, and passes a verdict on every dimension
and on the model. docs/posterior-collapse.md explains each instrument.

The same instruments serve a vector without noise, an outline or a code: logvar is then None, noise is 0, KL and
mutual information do not exist.

Shapes: N sentences of one held-out split, P probe sentences, Z latent width. nll, kl and information are nats per
sentence, unless they end in `_per_token`. Posteriors are taken in float64 on the CPU.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig, sample
from outlines.decoding.scoring import nll_of_rows
from outlines.errors import OutlinesError
from outlines.networks.decoder import Decoder

ACTIVE_VARIANCE = 0.01
"""Var_x[mu], in units of the prior's variance, above which mu depends on x: the threshold of Burda et al. (2016), who
found the dimensions of trained models to lie far to either side of it."""
CONSTANT_SIGMA = 0.1
"""Standard deviation over x of log sigma below which sigma is a constant: it varies by less than a tenth."""
MIN_INFORMATION = 0.05
"""Nats about the sentence below which z says nothing: sigma is more than 3 spreads of mu, and mu explains less than a
tenth of the variance of z."""
MIN_MODEL_INFORMATION = math.log(2)
"""Nats about the sentence that the whole of z must tell to be used: the answer to one yes-or-no question."""
MAX_DRIFT = 1.0
"""Spreads by which mu may move between evaluations: from there on a sentence's old z says less about its new one than
the mean of all sentences does. A mu drawn anew every time moves by √2 spreads."""
MIN_GAP = 0.01
"""Nats per token that the nll must rise with another sentence's z: one per cent of perplexity. A dimension alone must
reach an even share, MIN_GAP / Z, so that one rule serves a z of 2 dimensions and an outline of 384."""
MIN_ERRORS = 3.0
"""Standard errors by which a gap must differ from 0: so many dimensions are tested that 2 would often be chance."""

Posterior = tuple[Tensor, Tensor | None]
"""mu and logvar = log sigma², both [N, Z]; logvar None for a vector without noise."""


@overload
def _checked(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def _checked(mu: Tensor, logvar: Tensor | None) -> Posterior: ...
def _checked(mu: Tensor, logvar: Tensor | None) -> Posterior:
    """A posterior in float64 on the CPU; a wrong shape or a number that is not finite is an error."""
    if mu.ndim != 2 or len(mu) < 2 or (logvar is not None and logvar.shape != mu.shape):
        shapes = [list(part.shape) for part in (mu, logvar) if part is not None]
        raise OutlinesError(f"collapse: mu and logvar must be [N, Z], two or more sentences, not {shapes}")
    if not all(bool(part.isfinite().all()) for part in (mu, logvar) if part is not None):
        raise OutlinesError("collapse: mu or logvar holds NaN or infinity")
    return mu.detach().cpu().double(), None if logvar is None else logvar.detach().cpu().double()


def _draw(mu: Tensor, logvar: Tensor | None, rng: torch.Generator) -> Tensor:
    """One z [N, Z] for each posterior; mu itself where there is no noise."""
    if logvar is None:
        return mu
    return mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=rng, dtype=mu.dtype)


def kl_by_dim(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(q(z|x) || N(0, I)) of each dimension, the mean over x: nats per sentence [Z]; the sum is the whole KL.

    Exact for the sentences given; no ceiling. It measures the distance from the *prior*: a posterior that is the same
    for every x but lies off the prior has a large KL and tells the decoder nothing. See `mutual_information`.
    mu, logvar: [N, Z]. Source: Kingma and Welling, Auto-Encoding Variational Bayes (2014), appendix B.
    """
    mu, logvar = _checked(mu, logvar)
    return (mu.square() + logvar.exp() - 1 - logvar).mean(dim=0) / 2


class Steps(NamedTuple):
    """A posterior with a latent at every step, as one draw of each sentence went through it; [N, T, Z] each.

    In units of the prior at that step, which may hang on what was written and drawn before: where the posterior is the
    prior, mu and logvar are 0 and `drawn` is N(0, 1), a sample of nothing. Past a sentence's end they are so too.
    lengths: [N], the steps of each sentence, the one that writes eos included.
    """

    mu: Tensor
    logvar: Tensor
    drawn: Tensor
    lengths: Tensor

    def real(self, values: Tensor) -> Tensor:
        """Of values [N, T, Z] those of real steps, [their number, Z]."""
        return values[torch.arange(values.shape[1]) < self.lengths[:, None]]


def kl_by_position(steps: Steps) -> Tensor:
    """KL(q(z_t|x, z before) || p(z_t| what was before)) at each position, nats a step [longest sentence].

    The mean over the sentences that have such a step. Exact given each sentence's draw of the z before; no ceiling.
    """
    mu, logvar = steps.mu.double(), steps.logvar.double()
    kl = (mu.square() + logvar.exp() - 1 - logvar).sum(dim=2) / 2
    reached = torch.arange(kl.shape[1]) < steps.lengths[:, None]
    return ((kl * reached).sum(dim=0) / reached.sum(dim=0).clamp_min(1))[:int(steps.lengths.max())]


def active_positions(steps: Steps, threshold: float = ACTIVE_VARIANCE) -> int:
    """Count the positions at which the mu of at least one dimension varies over sentences by more than `threshold`.

    The counterpart of `active_units` for time: where the posterior is the prior, mu is 0 in every sentence. Sentences
    without such a step are left out, and so are positions that fewer than two have.
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
    ceiling: float  # log N: what the estimate cannot exceed
    marginal_kl: float  # KL(q(z) || prior): the KL's other part, about which sentence it is says nothing


def mutual_information(mu: Tensor, logvar: Tensor, rng: torch.Generator, num_draws: int = 1,
                       chunk: int = 512) -> MutualInformation:
    """I(x; z) under q: how much z tells about which of the N sentences it came from.

    E_x E_q(z|x) [log q(z|x) - log q(z)], with q(z) = (1/N) sum_j q(z|x_j) over the *whole* split: Monte Carlo over
    `num_draws` z for each x, exact in the sum over j. It never exceeds log N, the ceiling, and as an estimate for all
    sentences that could be written it is biased downwards, the more so the nearer it comes: a mean over minibatches of
    B sentences would be capped at log B. The KL minus I is KL(q(z) || prior), too large where I is at its ceiling.
    One dimension's information: pass one column. Costs N² Z num_draws products, in blocks of chunk × N.
    mu, logvar: [N, Z]. Source: Hoffman and Johnson, ELBO surgery (2016), equation 6.
    """
    mu, logvar = _checked(mu, logvar)
    total_kl = float(kl_by_dim(mu, logvar).sum())
    mu = mu - mu.mean(dim=0)  # differences alone matter, and near the origin the squares below cancel least
    precision = (-logvar).exp()
    # log q(z|x_j) = offset_j + z · mu_j / sigma_j² - z² / (2 sigma_j²), and a constant that cancels.
    offsets = -(logvar + mu.square() * precision).sum(dim=1) / 2
    terms = torch.zeros(len(mu), dtype=mu.dtype)
    for _ in range(num_draws):
        z = _draw(mu, logvar, rng)
        for rows in torch.arange(len(mu)).split(chunk):
            log_q = offsets + z[rows] @ (mu * precision).T - z[rows].square() @ precision.T / 2
            # Taken from the same sum as the others, so that no rounding lifts a term above log N.
            own = log_q.gather(1, rows[:, None])[:, 0]
            terms[rows] += (own - log_q.logsumexp(dim=1) + math.log(len(mu))) / num_draws
    nats, error = float(terms.mean()), float(terms.std()) / math.sqrt(len(mu))
    return MutualInformation(nats, error, math.log(len(mu)), total_kl - nats)


def active_units(mu: Tensor, threshold: float = ACTIVE_VARIANCE) -> int:
    """Count the dimensions whose mu varies with the sentence: variance over x above `threshold`, 0..Z.

    It knows nothing of sigma: a dimension may be active and drowned in noise, or, where sigma is far below 1, inactive
    and precise. mu: [N, Z], the whole held-out split.
    Source: Burda et al., Importance Weighted Autoencoders (2016), section 5.
    """
    return int((_checked(mu, None)[0].var(dim=0) > threshold).sum())


class SignalNoise(NamedTuple):
    """What of each dimension [Z] depends on the sentence, and what does not."""

    signal: Tensor  # Var_x[mu], in squared units of z
    noise: Tensor  # E_x[sigma²], in squared units of z
    snr: Tensor  # signal / noise
    information: Tensor  # ½ log(1 + snr), nats
    sigma_variation: Tensor  # standard deviation over x of log sigma


def signal_noise(mu: Tensor, logvar: Tensor | None) -> SignalNoise:
    """Signal, noise, their ratio and ½ log(1 + ratio) nats, of each dimension.

    Exact for the sentences given (variances over N - 1). The information is I(x; z) of the dimension alone where mu is
    Gaussian over x and sigma a constant; for another mu of that spread it is an upper bound; where sigma differs much
    between sentences it is too low, because the mean of sigma² is that of the noisiest. Without noise (logvar None) the
    resolution of float32 stands in for it, which caps the information at about 16 nats.
    mu, logvar: [N, Z].
    """
    mu, logvar = _checked(mu, logvar)
    signal = mu.var(dim=0)
    noise = torch.zeros_like(signal) if logvar is None else logvar.exp().mean(dim=0)
    variation = torch.zeros_like(signal) if logvar is None else logvar.std(dim=0) / 2
    resolution = torch.finfo(torch.float32).eps ** 2 * mu.square().mean(dim=0)
    snr = signal / noise.maximum(resolution).clamp_min(torch.finfo(mu.dtype).tiny)
    return SignalNoise(signal, noise, snr, snr.log1p() / 2, variation)


class Drift(NamedTuple):
    """How far the posteriors of fixed sentences move between evaluations, per dimension [Z], in spreads of mu."""

    mu: Tensor
    sigma: Tensor


def drift(evaluations: Sequence[Posterior]) -> Drift:
    """How far mu and sigma of the same probe sentences move from one evaluation to the next.

    Root mean square, over sentences and pairs of successive evaluations, of the step of mu and of the step of sigma,
    each over the spread of mu (the root of Var_x[mu], averaged over the evaluations): in units of what tells sentences
    apart. The squares of both add up to the squared 2-Wasserstein distance between old and new posterior. A frozen
    encoder has 0; a mu drawn anew every time √2; there is no ceiling. Where mu hardly varies the unit vanishes and the
    figure says nothing.
    It sees every movement, also a shift or rotation of the whole space, which a decoder can follow; it does not see
    whether one did (the latent gap does), nor what happened between two evaluations.
    evaluations: two or more, oldest first, each mu [P, Z] and logvar [P, Z] or None.
    """
    if len(evaluations) < 2 or len({mu.shape for mu, _ in evaluations}) != 1:
        raise OutlinesError("drift: needs two or more evaluations of the same probe sentences")
    checked = [_checked(mu, logvar) for mu, logvar in evaluations]
    means = torch.stack([mu for mu, _ in checked])
    sigmas = torch.stack([torch.zeros_like(mu) if logvar is None else (logvar / 2).exp() for mu, logvar in checked])
    spread = means.var(dim=1).mean(dim=0).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    steps = (part.diff(dim=0).square().mean(dim=(0, 1)).sqrt() / spread for part in (means, sigmas))
    return Drift(*steps)


def other_rows(num_rows: int, num_swaps: int, rng: torch.Generator) -> Tensor:
    """For each row, the numbers of `num_swaps` other rows: [num_swaps, N]; each line is a permutation that moves all.

    Lines are turns of one random circle, not of the split's own order: in captions, neighbours describe one picture.
    """
    if not 1 <= num_swaps < num_rows:
        raise OutlinesError(f"collapse: {num_swaps} swaps need more sentences than {num_rows}")
    circle = torch.randperm(num_rows, generator=rng)
    others = torch.empty(num_swaps, num_rows, dtype=torch.long)
    for turn in range(num_swaps):
        others[turn, circle] = circle.roll(turn + 1)
    return others


class Gap(NamedTuple):
    """By how much the nll rises, in nats per token, with its standard error over sentences."""

    per_token: float
    error: float

    def reaches(self, threshold: float) -> bool:
        """Whether it is at least `threshold` and cannot be chance."""
        return self.per_token >= threshold and self.per_token > MIN_ERRORS * self.error


def _gap(own: np.ndarray, changed: np.ndarray, num_targets: np.ndarray) -> Gap:
    """The rise from `own` to `changed` nll [N] over all targets, a ratio of sums, and that ratio's standard error."""
    per_token = float((changed - own).sum() / num_targets.sum())
    deviations = changed - own - per_token * num_targets
    return Gap(per_token, float(deviations.std(ddof=1) / math.sqrt(len(own)) / num_targets.mean()))


def latent_gap(decoder: Decoder, rows: Sequence[np.ndarray], vectors: Tensor, *others: Tensor) -> Gap:
    """nll of sentences given other vectors minus nll given their own, per token; the mean over the sets of `others`.

    0: the decoder does not care; below 0: others serve better. What a decoder can *gain* from z is at most I(x; z); the
    gap has no ceiling, because a wrong z also misleads.
    rows: token ids of N sentences. vectors, others: [N, Z], in the order of the rows. The decoder in evaluation mode.
    """
    own, num_targets = nll_of_rows(decoder, rows, vectors)
    changed = np.mean([nll_of_rows(decoder, rows, other)[0] for other in others], axis=0)
    return _gap(own, changed, num_targets)


def latent_gap_by_dim(decoder: Decoder, rows: Sequence[np.ndarray], vectors: Tensor, others: Tensor,
                      num_dims: int | None = None) -> list[Gap]:
    """The latent gap of each dimension alone [Z]: the others keep the sentence's own values.

    They do not add up to the whole gap: what two dimensions both say is missed from neither. Arguments as for
    `latent_gap`; scores the rows Z + 1 times.
    num_dims: Z, where vectors hold it once a step, [N, T · Z]: a dimension is then changed at all steps.
    """
    own, num_targets = nll_of_rows(decoder, rows, vectors)
    gaps, num_dims = [], num_dims or vectors.shape[1]
    for dim in range(num_dims):
        changed = vectors.clone()
        changed[:, dim::num_dims] = others[:, dim::num_dims]
        gaps.append(_gap(own, nll_of_rows(decoder, rows, changed)[0], num_targets))
    return gaps


def edit_distance(a: Sequence[int], b: Sequence[int]) -> float:
    """Token insertions, deletions and replacements from a to b over the longer length, in 0..1 (Levenshtein 1966)."""
    previous = list(range(len(b) + 1))
    for row, token in enumerate(a, start=1):
        current = [row]
        for column, other in enumerate(b, start=1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (token != other)))
        previous = current
    return previous[-1] / max(1, len(a), len(b))


class OutputChange(NamedTuple):
    """How much greedy output changes with the vector."""

    distinct: float  # distinct outputs over all: 1 / num where the vector changes nothing, 1 at most
    edit_distance: float  # mean normalised edit distance, in tokens, between two vectors' outputs: 0..1
    num: int


def output_change(decoder: Decoder, vectors: Tensor, rng: torch.Generator,
                  max_len: int = SamplingConfig.max_len) -> OutputChange:
    """Decode each vector [N, Z] greedily: the share of distinct outputs, and the mean edit distance over N pairs.

    Greedy, so that z alone can make outputs differ. The distinct share falls as vectors are added: compare equal N.
    """
    device = next(decoder.parameters()).device
    outputs = sample(decoder, vectors.to(device), torch.zeros(len(vectors), max_len, device=device),
                     SamplingConfig(temperature=0, max_len=max_len))
    others = other_rows(len(vectors), 1, rng)[0].tolist()
    distances = [edit_distance(output, outputs[other]) for output, other in zip(outputs, others, strict=True)]
    return OutputChange(len(set(map(tuple, outputs))) / len(outputs), float(np.mean(distances)), len(outputs))


class Verdict(StrEnum):
    """What becomes of the vector, or of one dimension of it."""

    USED = "used"
    TOO_WEAK = "too weak"
    TOO_NOISY_SAMPLING = "too noisy (sampling)"
    TOO_NOISY_DRIFT = "too noisy (drift)"
    IGNORED = "ignored by the decoder"


def judge(signal: float, sigma_variation: float, information: float, drift: float | None, used: bool) -> Verdict:
    """One dimension's verdict.

    First, whether a drawn z says anything of x. If not, mu and sigma are both constants in x (weak) or not (noisy).
    Weakness is never judged by the size of mu alone: a mu of tiny spread beside a tinier sigma is a clear signal. If z
    does speak, what the decoder does comes before the drift: a decoder that uses z has followed it, wherever it went.
    signal, sigma_variation, information: as in `SignalNoise`. drift: of mu, in spreads, or None where not measured.
    used: whether the nll depends on the dimension.
    """
    if information < MIN_INFORMATION:
        constant = signal < ACTIVE_VARIANCE and sigma_variation < CONSTANT_SIGMA
        return Verdict.TOO_WEAK if constant else Verdict.TOO_NOISY_SAMPLING
    if used:
        return Verdict.USED
    if drift is not None and drift >= MAX_DRIFT:
        return Verdict.TOO_NOISY_DRIFT
    return Verdict.IGNORED


def judge_model(dims: Sequence[Verdict], used: bool) -> Verdict:
    """The model's verdict from those of its dimensions: used, or else the commonest reason why not.

    Where some dimensions do speak, theirs is the reason: it is not weakness that keeps the decoder from them.
    """
    speaking = [dim for dim in dims if dim in (Verdict.TOO_NOISY_DRIFT, Verdict.IGNORED)]
    return Verdict.USED if used else Counter(speaking or dims).most_common(1)[0][0]


@dataclass(frozen=True)
class Dimension:
    """One dimension's verdict and the figures behind it; None where there is no noise or no probes were given."""

    verdict: Verdict
    kl: float | None
    signal: float
    noise: float
    snr: float
    information: float
    sigma_variation: float
    drift_mu: float | None
    drift_sigma: float | None
    gap: Gap
    """over the first `num_dim_sentences` sentences of the diagnosis"""

    def reason(self) -> str:
        """The figures that decided, in one line."""
        gap = f"{self.gap.per_token:.2g} ± {self.gap.error:.1g} nats per token"
        return f"{self.verdict}: " + {
            Verdict.USED: f"with another sentence's value the nll rises by {gap}",
            Verdict.TOO_WEAK: f"the variance of mu is {self.signal:.2g} (below {ACTIVE_VARIANCE}) and log sigma varies by "
                              f"{self.sigma_variation:.2g} (below {CONSTANT_SIGMA})",
            Verdict.TOO_NOISY_SAMPLING: f"signal {self.signal:.3g} against noise {self.noise:.3g} leaves "
                                        f"{self.information:.2g} nats (below {MIN_INFORMATION})",
            Verdict.TOO_NOISY_DRIFT: f"between evaluations mu moves by {self.drift_mu or 0:.2g} spreads "
                                     f"({MAX_DRIFT:g} or more), and the nll rises by only {gap}",
            Verdict.IGNORED: f"signal {self.signal:.3g} against noise {self.noise:.3g}, but with another sentence's "
                             f"value the nll rises by only {gap}",
        }[self.verdict]


@dataclass(frozen=True)
class Diagnosis:
    """The model's verdict, its dimensions', and every figure behind them. nll, kl: nats per sentence."""

    verdict: Verdict
    dims: tuple[Dimension, ...]
    num_sentences: int
    num_dim_sentences: int
    """for the gaps of single dimensions"""
    kl: float | None
    """KL(q(z|x) || prior); None where there is no noise"""
    mutual_information: MutualInformation | None
    active_units: int
    gap: Gap
    """with another sentence's vector"""
    gap_prior: Gap | None
    """with a vector from the prior, or whatever stands for one; None where nothing does"""
    output_change: OutputChange

    def to_json(self) -> dict[str, Any]:
        """Every figure as JSON data; named tuples become objects."""
        return {field.name: _as_json(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def in_words(self) -> str:
        """The verdict for somebody who has just met the word collapse: a short paragraph."""
        counts = Counter(dim.verdict for dim in self.dims).most_common()
        words = [f"The vector is {self.verdict}: with another sentence's vector the nll rises by "
                 f"{self.gap.per_token:.3g} ± {self.gap.error:.1g} nats per token ({MIN_GAP} or more where it is used)."]
        if self.gap_prior:
            words.append(f"With a new one, of no sentence, it rises by {self.gap_prior.per_token:.3g}.")
        words.append(f"Of {len(self.dims)} dimensions, each changed alone on {self.num_dim_sentences} sentences, "
                     + ", ".join(f"{num} {verdict}" for verdict, num in counts) + ".")
        alike = [(dim.information, index) for index, dim in enumerate(self.dims) if dim.verdict == self.verdict]
        if alike:
            index = max(alike)[1]
            words.append(f"The clearest of these, dimension {index}, is {self.dims[index].reason()}.")
        else:
            words.append("None of them matters alone: they say little each, or the same.")
        if self.mutual_information and self.kl is not None:
            nats, error, ceiling, marginal_kl = self.mutual_information
            words.append(f"Of the KL of {self.kl:.3g} nats, {nats:.3g} ± {error:.1g} tell which sentence it is "
                         f"({MIN_MODEL_INFORMATION:.2f} or more where the vector is used; an estimate that cannot exceed "
                         f"{ceiling:.1f}), {marginal_kl:.3g} only say that z does not follow the prior.")
        words.append(f"{self.active_units} units are active. Of {self.output_change.num} vectors' greedy outputs "
                     f"{self.output_change.distinct:.0%} are distinct; two differ in {self.output_change.edit_distance:.0%} "
                     "of their tokens.")
        return " ".join(words)


@dataclass(frozen=True)
class StepDiagnosis(Diagnosis):
    """The same of a latent per step. A dimension's KL and information are those of all steps together, per sentence."""

    kl_by_position: tuple[float, ...]
    """nats a step"""
    active_positions: int

    def in_words(self) -> str:
        kl = self.kl_by_position
        return (f"{super().in_words()} There is a latent at every step, and its vector is all of them. The KL is "
                f"{self.kl:.3g} nats per sentence, {min(kl):.2g} to {max(kl):.2g} nats a step, the most at position "
                f"{kl.index(max(kl))}; mu depends on the sentence at {self.active_positions} of {len(kl)} positions. "
                "How much of the KL tells which sentence it is, is not computed.")


def _as_json(value: Any) -> Any:
    if isinstance(value, Dimension):
        return {field.name: _as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return value._asdict() if hasattr(value, "_asdict") else [_as_json(part) for part in value]
    return value


def diagnose(decoder: Decoder, rows: Sequence[np.ndarray], mu: Tensor, logvar: Tensor | None = None,
             probes: Sequence[Posterior] = (), prior: Tensor | None = None, seed: int = 0, num_swaps: int = 3,
             num_dim_rows: int = 256, num_outputs: int = 100, max_len: int = SamplingConfig.max_len) -> Diagnosis:
    """Apply every instrument and pass the verdict. Deterministic given the seed.

    The model is used where the vector says something (its mutual information reaches MIN_MODEL_INFORMATION; without
    noise, one dimension MIN_INFORMATION) and the decoder heeds it (the latent gap reaches MIN_GAP). A dimension can be
    used only in a model that is. All gaps are those of a *drawn* z, which is what the decoder was trained on.

    decoder: in evaluation mode. rows: token ids of N held-out sentences. mu, logvar: their posteriors [N, Z]; logvar
    None: mu is the vector itself. probes: posteriors of fixed sentences at successive evaluations, oldest first, for
    the drift; none: the drift is not measured. prior: vectors [N, Z] for `gap_prior`; None: N(0, I), or without logvar
    nothing. num_swaps: strangers whose vectors a sentence tries. num_dim_rows: sentences for the gaps of single
    dimensions, which score them Z + 1 times.
    """
    mu, logvar = _checked(mu, logvar)
    if len(rows) != len(mu):
        raise OutlinesError(f"collapse: {len(rows)} sentences, but {len(mu)} posteriors")
    rng = torch.Generator().manual_seed(seed)
    vectors = _draw(mu, logvar, rng).float()
    others = vectors[other_rows(len(vectors), num_swaps, rng)]
    if prior is None and logvar is not None:
        prior = torch.randn(vectors.shape, generator=rng)
    gap = latent_gap(decoder, rows, vectors, *others)
    gap_prior = None if prior is None else latent_gap(decoder, rows, vectors, prior)
    gaps = latent_gap_by_dim(decoder, rows[:num_dim_rows], vectors[:num_dim_rows], others[0, :num_dim_rows])
    strength = signal_noise(mu, logvar)
    information = None if logvar is None else mutual_information(mu, logvar, rng)
    speaks = (bool((strength.information >= MIN_INFORMATION).any()) if information is None else
              information.nats >= MIN_MODEL_INFORMATION)
    used = speaks and gap.reaches(MIN_GAP)

    kl = [None] * len(gaps) if logvar is None else kl_by_dim(mu, logvar).tolist()
    moved = zip(*(part.tolist() for part in drift(probes)), strict=True) if probes else [(None, None)] * len(gaps)
    dims = []
    for dim_kl, (signal, noise, snr, nats, variation), (drift_mu, drift_sigma), dim_gap in zip(
            kl, torch.stack(strength, dim=1).tolist(), moved, gaps, strict=True):
        verdict = judge(signal, variation, nats, drift_mu, used and dim_gap.reaches(MIN_GAP / len(gaps)))
        dims.append(Dimension(verdict, dim_kl, signal, noise, snr, nats, variation, drift_mu, drift_sigma, dim_gap))
    return Diagnosis(judge_model([dim.verdict for dim in dims], used), tuple(dims), len(rows), len(rows[:num_dim_rows]),
                     None if logvar is None else sum(kl), information, active_units(mu), gap, gap_prior,
                     output_change(decoder, vectors[:num_outputs], rng, max_len))


def diagnose_steps(decoder: Decoder, rows: Sequence[np.ndarray], steps: Steps, prior: Tensor, seed: int = 0,
                   num_swaps: int = 3, num_dim_rows: int = 256, num_outputs: int = 100,
                   max_len: int = SamplingConfig.max_len) -> StepDiagnosis:
    """As `diagnose`, of a decoder whose vector [N, T · Z] is a latent of Z dimensions for each of T steps.

    A stranger's latents are given step for step, in units of the prior: what the past alone says is in the prior, and so
    a posterior that says no more leaves no gap. Where the stranger has ended, they are the prior's own.
    Signal and noise are taken over all real steps as if each were a sentence; a dimension's information is that of a step
    times the steps of the mean sentence. The mutual information of whole sentences is not computed, for the posterior
    under another sentence's draws would have to be run anew for every pair; in its place the KL, which is no smaller,
    must reach MIN_MODEL_INFORMATION. What it may hide, a posterior off the prior that is the same for all, leaves no gap.
    Drift is not measured.
    """
    rng = torch.Generator().manual_seed(seed)
    num_dims, vectors = steps.mu.shape[2], steps.drawn.flatten(1)
    others = vectors[other_rows(len(vectors), num_swaps, rng)]
    gap, gap_prior = latent_gap(decoder, rows, vectors, *others), latent_gap(decoder, rows, vectors, prior)
    gaps = latent_gap_by_dim(decoder, rows[:num_dim_rows], vectors[:num_dim_rows], others[0, :num_dim_rows], num_dims)
    mu, logvar = steps.real(steps.mu), steps.real(steps.logvar)
    strength, mean_steps = signal_noise(mu, logvar), float(steps.lengths.double().mean())
    kl = (kl_by_dim(mu, logvar) * mean_steps).tolist()
    used = sum(kl) >= MIN_MODEL_INFORMATION and gap.reaches(MIN_GAP)
    dims = []
    for dim_kl, (signal, noise, snr, nats, variation), dim_gap in zip(
            kl, torch.stack(strength, dim=1).tolist(), gaps, strict=True):
        nats *= mean_steps
        verdict = judge(signal, variation, nats, None, used and dim_gap.reaches(MIN_GAP / num_dims))
        dims.append(Dimension(verdict, dim_kl, signal, noise, snr, nats, variation, None, None, dim_gap))
    return StepDiagnosis(judge_model([dim.verdict for dim in dims], used), tuple(dims), len(rows),
                         len(rows[:num_dim_rows]), sum(kl), None, active_units(mu), gap, gap_prior,
                         output_change(decoder, vectors[:num_outputs], rng, max_len),
                         tuple(kl_by_position(steps).tolist()), active_positions(steps))
