"""Verdicts on a model's vector and on each dimension: used, too weak, too noisy, or ignored by the decoder.

The metrics are in `metrics/collapse.py`. Shapes: N sentences, Z dimensions, T steps.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig
from outlines.metrics import collapse
from outlines.metrics.collapse import Gap, MutualInformation, OutputChange, Posterior, SignalNoise, Steps
from outlines.networks.decoder import Decoder

CONSTANT_SIGMA = 0.1  # sigma counts as constant if log sigma has a smaller standard deviation over sentences
MIN_INFORMATION = 0.05  # nats; a dimension with less counts as empty. Sigma is then above 3 standard deviations of mu
MIN_MODEL_INFORMATION = math.log(2)
"""Least information of a used vector about the sentence, in nats: the answer to one yes-or-no question."""
MAX_DRIFT = 1.0
"""Standard deviations of mu. If the drift is larger, the mean of z over sentences predicts the new z of a sentence better
than the sentence's old z does."""
MIN_GAP = 0.01
"""Nats per token by which the nll must rise with another sentence's vector (1 % of perplexity). For one of Z dimensions, the
threshold is MIN_GAP / Z. So the same rule works for a z with 2 dimensions and an outline with 384 dimensions."""

NUM_SWAPS = 3  # number of other sentences' vectors that each sentence is scored with
NUM_OUTPUTS = 100  # number of vectors that are decoded greedily


class Verdict(StrEnum):
    """The verdict on the vector or on one of its dimensions."""

    USED = "used"
    TOO_WEAK = "too weak"
    TOO_NOISY_SAMPLING = "too noisy (sampling)"
    TOO_NOISY_DRIFT = "too noisy (drift)"
    IGNORED = "ignored by the decoder"


def judge(signal: float, sigma_variation: float, information: float, drift: float | None, used: bool) -> Verdict:
    """Return the verdict on one dimension. used: whether the nll depends on this dimension. drift: of mu, or None.

    A decoder that uses z has adapted to the drift of z, so `used` is checked before the drift.
    """
    if information < MIN_INFORMATION:
        constant = signal < collapse.ACTIVE_VARIANCE and sigma_variation < CONSTANT_SIGMA
        return Verdict.TOO_WEAK if constant else Verdict.TOO_NOISY_SAMPLING
    if used:
        return Verdict.USED
    return Verdict.TOO_NOISY_DRIFT if drift is not None and drift >= MAX_DRIFT else Verdict.IGNORED


def judge_model(dims: Sequence[Verdict], used: bool) -> Verdict:
    """Return the verdict on the model: used, or the most frequent verdict on the dimensions.

    Dimensions without information count only if no dimension has information.
    """
    informative = [dim for dim in dims if dim in (Verdict.TOO_NOISY_DRIFT, Verdict.IGNORED)]
    return Verdict.USED if used else Counter(informative or dims).most_common(1)[0][0]


def decide(gap: Gap, information: float, needed: float, name: str) -> tuple[bool, str]:
    """Return whether the vector is used, and a sentence with the value that decides this. information, needed: nats."""
    if information < needed:
        return False, f"{name} is {information:.3f} nats, below the threshold of {needed:.2f}."
    rise = f"With another sentence's vector, the NLL rises by {gap.per_token:.3f} ± {gap.error:.3f} nats per token, "
    if gap.per_token < MIN_GAP:
        return False, rise + f"below the threshold of {MIN_GAP}."
    if not gap.reaches(MIN_GAP):
        return False, rise + f"less than {collapse.MIN_ERRORS:g} standard errors above 0."
    return True, rise + f"above the threshold of {MIN_GAP}."


@dataclass(frozen=True)
class Dimension:
    """The verdict on one dimension, and its metrics. Without noise, kl is None. Without probes, the drifts are None."""

    verdict: Verdict
    kl: float | None
    signal: float
    noise: float
    snr: float
    information: float
    sigma_variation: float
    drift_mu: float | None
    drift_sigma: float | None
    gap: Gap  # measured on the first `num_dim_sentences` sentences


@dataclass(frozen=True)
class Diagnosis:
    """The verdict on the model, the verdicts on the dimensions, and all metrics. KL: nats per sentence.

    With a latent at every step, the KL is a sum over steps, and the information is that of one step times the mean length.
    """

    verdict: Verdict
    reason: str  # one sentence: the value that decided whether the vector is used, and the threshold
    dims: tuple[Dimension, ...]
    num_sentences: int
    num_dim_sentences: int  # number of sentences for the gaps of single dimensions
    kl: float | None  # KL(q(z|x) || prior); None without noise
    mutual_information: MutualInformation | None
    active_units: int
    gap: Gap  # with another sentence's vector
    gap_prior: Gap | None  # with a vector from the prior or generator; None if there is none
    output_change: OutputChange
    kl_by_position: tuple[float, ...] = ()  # nats per step; empty without a latent at every step
    active_positions: int | None = None

    def in_words(self) -> str:
        """Return the verdict in two sentences."""
        return f"The vector is {self.verdict}. {self.reason}"

    def details(self) -> list[str]:
        """Return sentences about the verdicts on dimensions and, with a latent at every step, about the steps."""
        counts = Counter(dim.verdict for dim in self.dims).most_common()
        found = [f"{len(self.dims)} dimensions, each swapped on its own in {self.num_dim_sentences} sentences: "
                 + ", ".join(f"{num} {verdict}" for verdict, num in counts) + "."]
        if kl := self.kl_by_position:
            found.append(f"The model has a latent at every step; together they are the vector. The KL is {min(kl):.2g} to "
                         f"{max(kl):.2g} nats per step, largest at position {kl.index(max(kl))}. mu depends on the sentence "
                         f"at {self.active_positions} of {len(kl)} positions. The mutual information is not computed.")
        return found


def diagnose(decoder: Decoder, rows: Sequence[np.ndarray], mu: Tensor, logvar: Tensor | None = None,
             probes: Sequence[Posterior] = (), prior: Tensor | None = None, seed: int = 0, num_dim_rows: int = 256,
             max_len: int = SamplingConfig.max_len) -> Diagnosis:
    """Compute all metrics and return them with the verdict. The same seed gives the same result.

    The vector is used if it carries information and the latent gap reaches MIN_GAP. It carries information if the mutual
    information is at least MIN_MODEL_INFORMATION or, without noise, if one dimension has at least MIN_INFORMATION.
    decoder: in evaluation mode. rows: token ids of N held-out sentences. mu, logvar: [N, Z]; logvar None: mu is the vector.
    probes: posteriors of fixed sentences at successive evaluations, oldest first; empty: drift is not measured.
    prior: vectors [N, Z] for `gap_prior`; None: samples of N(0, I), or no `gap_prior` if logvar is None.
    num_dim_rows: number of sentences for the gaps of single dimensions.
    """
    mu, logvar = collapse.checked(mu, logvar)
    rng = torch.Generator().manual_seed(seed)
    vectors = collapse.draw_posterior(mu, logvar, rng).float()
    others = vectors[collapse.other_rows(len(vectors), NUM_SWAPS, rng)]
    strength, kl, information = collapse.signal_noise(mu, logvar), None, None
    evidence = float(strength.information.max()), MIN_INFORMATION, "The largest information of a dimension"
    if logvar is not None:
        prior = torch.randn(vectors.shape, generator=rng) if prior is None else prior
        kl, information = collapse.kl_by_dim(mu, logvar).tolist(), collapse.mutual_information(mu, logvar, rng)
        evidence = information.nats, MIN_MODEL_INFORMATION, "Its mutual information with the sentence"
    drift = torch.stack(collapse.drift(probes), dim=1).tolist() if probes else None
    found = _diagnose(decoder, rows, vectors, others, prior, strength, kl, drift, evidence, rng, num_dim_rows, max_len)
    return replace(found, mutual_information=information)


def diagnose_steps(decoder: Decoder, rows: Sequence[np.ndarray], steps: Steps, prior: Tensor, num_dim_rows: int = 256,
                   max_len: int = SamplingConfig.max_len) -> Diagnosis:
    """Return the diagnosis of a decoder whose vectors [N, T · Z] contain one latent of Z dimensions for each of T steps.

    The latents are standardised by the prior. For a gap, the latent of every step is replaced by another sentence's latent
    of the same step. The information of a dimension is its information in one step, times the mean number of steps. The KL
    is an upper bound on the mutual information and replaces it. Drift is not measured.
    """
    rng, vectors = torch.Generator().manual_seed(0), steps.drawn.flatten(1)
    others = vectors[collapse.other_rows(len(vectors), NUM_SWAPS, rng)]
    mu, logvar = steps.real(steps.mu), steps.real(steps.logvar)
    mean_steps = float(steps.lengths.double().mean())
    strength = collapse.signal_noise(mu, logvar)
    strength = strength._replace(information=strength.information * mean_steps)
    kl = (collapse.kl_by_dim(mu, logvar) * mean_steps).tolist()
    evidence = sum(kl), MIN_MODEL_INFORMATION, "Its KL to the prior"
    found = _diagnose(decoder, rows, vectors, others, prior, strength, kl, None, evidence, rng, num_dim_rows, max_len)
    return replace(found, kl_by_position=tuple(collapse.kl_by_position(steps).tolist()),
                   active_positions=collapse.active_positions(steps))


def _diagnose(decoder: Decoder, rows: Sequence[np.ndarray], vectors: Tensor, others: Tensor, prior: Tensor | None,
              strength: SignalNoise, kl: list[float] | None, drift: list[list[float]] | None,
              evidence: tuple[float, float, str], rng: torch.Generator, num_dim_rows: int, max_len: int) -> Diagnosis:
    """Measure the gaps, and return the verdicts on the model and on every dimension.

    others: [swaps, N, ...]. kl, drift: of each dimension. evidence: an information in nats, its threshold and its name.
    """
    gap = collapse.latent_gap(decoder, rows, vectors, *others)
    gap_prior = None if prior is None else collapse.latent_gap(decoder, rows, vectors, prior)
    part, num_dims = slice(num_dim_rows), len(strength.signal)
    gaps = collapse.latent_gap_by_dim(decoder, rows[part], vectors[part], others[0, part], num_dims)
    used, reason = decide(gap, *evidence)
    dims = []
    for dim, (signal, noise, snr, information, variation) in enumerate(torch.stack(strength, dim=1).tolist()):
        drift_mu, drift_sigma = drift[dim] if drift else (None, None)
        verdict = judge(signal, variation, information, drift_mu, used and gaps[dim].reaches(MIN_GAP / num_dims))
        dims.append(Dimension(verdict, kl[dim] if kl else None, signal, noise, snr, information, variation, drift_mu,
                              drift_sigma, gaps[dim]))
    return Diagnosis(judge_model([dim.verdict for dim in dims], used), reason, tuple(dims), len(rows), len(rows[part]),
                     sum(kl) if kl else None, None, int((strength.signal > collapse.ACTIVE_VARIANCE).sum()), gap, gap_prior,
                     collapse.output_change(decoder, vectors[:NUM_OUTPUTS], rng, max_len))
