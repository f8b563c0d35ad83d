"""Verdicts on the vector: used, too weak, too noisy, or ignored by the decoder; for the model and for each dimension.

The instruments are in `metrics/collapse.py`. Shapes as there: N sentences, Z dimensions, T steps.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig
from outlines.errors import OutlinesError
from outlines.metrics import collapse
from outlines.metrics.collapse import Gap, MutualInformation, OutputChange, Posterior, SignalNoise, Steps
from outlines.networks.decoder import Decoder

CONSTANT_SIGMA = 0.1
"""Standard deviation over x of log sigma below which sigma counts as constant."""
MIN_INFORMATION = 0.05
"""Nats below which a dimension says nothing: sigma exceeds 3 standard deviations of mu."""
MIN_MODEL_INFORMATION = math.log(2)
"""Nats that a used vector must carry about the sentence: the answer to one yes-or-no question."""
MAX_DRIFT = 1.0
"""Standard deviations of mu; beyond it, a sentence's old z predicts its new z worse than the mean over sentences."""
MIN_GAP = 0.01
"""Nats per token that the nll must rise with another sentence's vector (1 % of perplexity). One dimension must reach an
equal share, MIN_GAP / Z, so the rule fits a z of 2 dimensions and an outline of 384."""


class Verdict(StrEnum):
    """What happens to the vector, or to one dimension of it."""

    USED = "used"
    TOO_WEAK = "too weak"
    TOO_NOISY_SAMPLING = "too noisy (sampling)"
    TOO_NOISY_DRIFT = "too noisy (drift)"
    IGNORED = "ignored by the decoder"


def judge(signal: float, sigma_variation: float, information: float, drift: float | None, used: bool) -> Verdict:
    """Return the verdict on one dimension.

    If a drawn z says nothing about x, the dimension is too weak (mu and sigma are constant) or too noisy. A small mu with
    an even smaller sigma is a clear signal, so mu is never judged by its size. A decoder that uses z has followed its
    drift, so `used` is checked before the drift.
    signal, sigma_variation, information: as in `SignalNoise`. drift: of mu, or None if not measured.
    used: whether the nll depends on the dimension.
    """
    if information < MIN_INFORMATION:
        constant = signal < collapse.ACTIVE_VARIANCE and sigma_variation < CONSTANT_SIGMA
        return Verdict.TOO_WEAK if constant else Verdict.TOO_NOISY_SAMPLING
    if used:
        return Verdict.USED
    if drift is not None and drift >= MAX_DRIFT:
        return Verdict.TOO_NOISY_DRIFT
    return Verdict.IGNORED


def judge_model(dims: Sequence[Verdict], used: bool) -> Verdict:
    """Return the verdict on the model: used, or the most common reason of its dimensions.

    Dimensions that carry information decide if there are any, because weakness is then not the reason.
    """
    informative = [dim for dim in dims if dim in (Verdict.TOO_NOISY_DRIFT, Verdict.IGNORED)]
    return Verdict.USED if used else Counter(informative or dims).most_common(1)[0][0]


def decide(gap: Gap, information: float, needed: float, name: str) -> tuple[bool, str]:
    """Return whether the vector is used, and a sentence with the figure that decided and its threshold.

    information, needed: nats, called `name` in the sentence.
    """
    if information < needed:
        return False, f"{name} is {information:.3f} nats, below the threshold of {needed:.2f}."
    rise = f"With another sentence's vector, the NLL rises by {gap.per_token:.3f} ± {gap.error:.3f} nats per token, "
    if gap.per_token < MIN_GAP:
        return False, rise + f"below the threshold of {MIN_GAP}."
    if not gap.reaches(MIN_GAP):
        return False, rise + f"less than {collapse.MIN_ERRORS:g} standard errors above 0."
    return True, rise + f"above the threshold of {MIN_GAP}."


class Dimension(NamedTuple):
    """The verdict on one dimension and its figures; None if there is no noise or no probes were given."""

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
    """on the first `num_dim_sentences` sentences"""


@dataclass(frozen=True)
class Diagnosis:
    """The verdict on the model, the verdicts on its dimensions, and all figures. nll, kl: nats per sentence."""

    verdict: Verdict
    reason: str
    """the figure that decided whether the vector is used, with its threshold; one sentence"""
    dims: tuple[Dimension, ...]
    num_sentences: int
    num_dim_sentences: int
    """sentences behind the gaps of single dimensions"""
    kl: float | None
    """KL(q(z|x) || prior); None without noise"""
    mutual_information: MutualInformation | None
    active_units: int
    gap: Gap
    """with another sentence's vector"""
    gap_prior: Gap | None
    """with a vector from the prior or generator; None if there is none"""
    output_change: OutputChange

    def to_json(self) -> dict[str, Any]:
        """Return every figure as JSON data; named tuples become objects."""
        return {name: _as_json(value) for name, value in vars(self).items()}

    def in_words(self) -> str:
        """Return the verdict in two sentences."""
        return f"The vector is {self.verdict}. {self.reason}"

    def details(self) -> list[str]:
        """Return the verdicts on the dimensions, counted."""
        counts = Counter(dim.verdict for dim in self.dims).most_common()
        return [f"{len(self.dims)} dimensions, swapped one at a time on {self.num_dim_sentences} sentences: "
                + ", ".join(f"{num} {verdict}" for verdict, num in counts) + "."]


@dataclass(frozen=True)
class StepDiagnosis(Diagnosis):
    """A diagnosis of latents at every step. KL and information of a dimension are summed over steps, per sentence."""

    kl_by_position: tuple[float, ...]
    """nats per step"""
    active_positions: int

    def details(self) -> list[str]:
        kl = self.kl_by_position
        return [*super().details(),
                "The model has a latent at every step; the vector is all of them. The KL is "
                f"{min(kl):.2g} to {max(kl):.2g} nats per step, largest at position {kl.index(max(kl))}. mu depends on the "
                f"sentence at {self.active_positions} of {len(kl)} positions. The mutual information is not computed."]


def _as_json(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _as_json(part) for name, part in value._asdict().items()}
    return [_as_json(part) for part in value] if isinstance(value, tuple) else value


def _judge_dims(strength: SignalNoise, kl: Sequence[float | None], moved: Sequence[tuple[float | None, float | None]],
                gaps: Sequence[Gap], used: bool) -> tuple[Dimension, ...]:
    """Judge every dimension. moved: drift of mu and sigma. used: whether the model uses the vector."""
    dims = []
    for dim_kl, (signal, noise, snr, nats, variation), (drift_mu, drift_sigma), gap in zip(
            kl, torch.stack(strength, dim=1).tolist(), moved, gaps, strict=True):
        verdict = judge(signal, variation, nats, drift_mu, used and gap.reaches(MIN_GAP / len(gaps)))
        dims.append(Dimension(verdict, dim_kl, signal, noise, snr, nats, variation, drift_mu, drift_sigma, gap))
    return tuple(dims)


def diagnose(decoder: Decoder, rows: Sequence[np.ndarray], mu: Tensor, logvar: Tensor | None = None,
             probes: Sequence[Posterior] = (), prior: Tensor | None = None, seed: int = 0, num_swaps: int = 3,
             num_dim_rows: int = 256, num_outputs: int = 100, max_len: int = SamplingConfig.max_len) -> Diagnosis:
    """Apply every instrument and return the verdict. Deterministic given the seed.

    The vector is used if it carries information (mutual information of at least MIN_MODEL_INFORMATION; without noise, one
    dimension with MIN_INFORMATION) and the latent gap reaches MIN_GAP. A dimension can be used only if the vector is.
    Gaps use a drawn z, because the decoder was trained on draws.

    decoder: in evaluation mode. rows: token ids of N held-out sentences. mu, logvar: [N, Z]; logvar None: mu is the vector.
    probes: posteriors of fixed sentences at successive evaluations, oldest first; empty: no drift. prior: vectors [N, Z]
    for `gap_prior`; None: N(0, I), or nothing without logvar. num_swaps: other vectors tried per sentence.
    num_dim_rows: sentences for the gaps of single dimensions, which are scored Z + 1 times.
    """
    mu, logvar = collapse.checked(mu, logvar)
    if len(rows) != len(mu):
        raise OutlinesError(f"collapse: {len(rows)} sentences, but {len(mu)} posteriors")
    rng = torch.Generator().manual_seed(seed)
    vectors = collapse.draw_posterior(mu, logvar, rng).float()
    others = vectors[collapse.other_rows(len(vectors), num_swaps, rng)]
    if prior is None and logvar is not None:
        prior = torch.randn(vectors.shape, generator=rng)
    gap = collapse.latent_gap(decoder, rows, vectors, *others)
    gap_prior = None if prior is None else collapse.latent_gap(decoder, rows, vectors, prior)
    gaps = collapse.latent_gap_by_dim(decoder, rows[:num_dim_rows], vectors[:num_dim_rows], others[0, :num_dim_rows])
    strength = collapse.signal_noise(mu, logvar)
    information, kl = None, None
    if logvar is None:
        used, reason = decide(gap, float(strength.information.max()), MIN_INFORMATION,
                              "The largest information of a dimension")
    else:
        information, kl = collapse.mutual_information(mu, logvar, rng), collapse.kl_by_dim(mu, logvar).tolist()
        used, reason = decide(gap, information.nats, MIN_MODEL_INFORMATION, "Its mutual information with the sentence")
    moved = torch.stack(collapse.drift(probes), dim=1).tolist() if probes else [(None, None)] * len(gaps)
    dims = _judge_dims(strength, kl or [None] * len(gaps), moved, gaps, used)
    return Diagnosis(judge_model([dim.verdict for dim in dims], used), reason, dims, len(rows), len(rows[:num_dim_rows]),
                     sum(kl) if kl else None, information, collapse.active_units(mu), gap, gap_prior,
                     collapse.output_change(decoder, vectors[:num_outputs], rng, max_len))


def diagnose_steps(decoder: Decoder, rows: Sequence[np.ndarray], steps: Steps, prior: Tensor, seed: int = 0,
                   num_swaps: int = 3, num_dim_rows: int = 256, num_outputs: int = 100,
                   max_len: int = SamplingConfig.max_len) -> StepDiagnosis:
    """Diagnose a decoder whose vector [N, T · Z] is a latent of Z dimensions for each of T steps.

    Swapped latents are exchanged step by step in units of the prior, so a posterior equal to the prior leaves no gap.
    After the other sentence's end they come from the prior. Signal and noise are computed over all real steps; a
    dimension's information is that of one step times the mean number of steps. The KL replaces the mutual information,
    which would need the posterior of every pair of sentences; the KL is never smaller. Drift is not measured.
    """
    rng = torch.Generator().manual_seed(seed)
    num_dims, vectors = steps.mu.shape[2], steps.drawn.flatten(1)
    others = vectors[collapse.other_rows(len(vectors), num_swaps, rng)]
    gap, gap_prior = collapse.latent_gap(decoder, rows, vectors, *others), collapse.latent_gap(decoder, rows, vectors, prior)
    gaps = collapse.latent_gap_by_dim(decoder, rows[:num_dim_rows], vectors[:num_dim_rows], others[0, :num_dim_rows],
                                      num_dims)
    mu, logvar = steps.real(steps.mu), steps.real(steps.logvar)
    mean_steps = float(steps.lengths.double().mean())
    strength = collapse.signal_noise(mu, logvar)
    strength = strength._replace(information=strength.information * mean_steps)
    kl = (collapse.kl_by_dim(mu, logvar) * mean_steps).tolist()
    used, reason = decide(gap, sum(kl), MIN_MODEL_INFORMATION, "Its KL to the prior")
    dims = _judge_dims(strength, kl, [(None, None)] * num_dims, gaps, used)
    return StepDiagnosis(judge_model([dim.verdict for dim in dims], used), reason, dims, len(rows),
                         len(rows[:num_dim_rows]), sum(kl), None, collapse.active_units(mu), gap, gap_prior,
                         collapse.output_change(decoder, vectors[:num_outputs], rng, max_len),
                         tuple(collapse.kl_by_position(steps).tolist()), collapse.active_positions(steps))
