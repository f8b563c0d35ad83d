"""What the adversary brought: a generator beside its untrained controls, in one verdict and in words.

The controls are the mixture and the one Gaussian (outline_model.py); real outlines, of sentences that are not those
compared with, say what can be reached. All are measured alike: as many outlines, against the same held-out ones.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from torch import Tensor

MARGIN = 0.02
"""By which a harmonic mean of precision and recall must be higher: two standard errors of the difference between two
shares near 0.9, each of 2,000 outlines."""
MAX_RECALL_LOSS = 0.1
"""Recall below that of real outlines, and of the mixture, by which modes are missing and not only thinned out."""
LEFT_OF_START = 0.5
"""Share of the start's harmonic mean below which a training has wrecked what it started from."""
MAX_MEMORISED = 0.5
"""Share of what the critic tells apart that it has learnt by heart, above which it judges training outlines alone."""


class GanVerdict(StrEnum):
    """What became of a generator."""

    BETTER_THAN_MIXTURE = "better than the mixture"
    BETTER_THAN_GAUSSIAN = "better than the Gaussian"
    NO_BETTER = "no better"
    MODE_DROPPING = "mode-dropping"
    DIVERGED = "diverged"
    CRITIC_OVERFITTED = "critic overfitted"


class Quality(NamedTuple):
    """Of one source's outlines: k-NN precision and recall, and nats per token of what is decoded from them, if known."""

    precision: float
    recall: float
    decoded_nll: float | None = None

    @property
    def harmonic(self) -> float:
        """The harmonic mean of precision and recall, so that neither can be bought with the other."""
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-9)

    def better_than(self, other: "Quality") -> bool:
        """By MARGIN in the harmonic mean and, where both are known, with likelier sentences."""
        likelier = self.decoded_nll is None or other.decoded_nll is None or self.decoded_nll < other.decoded_nll
        return self.harmonic >= other.harmonic + MARGIN and likelier


def memorised_share(training: Tensor, held_out: Tensor, generated: Tensor) -> float:
    """Of the distance between training and generated outlines' mean scores, the share that held-out ones fall short.

    0: held-out outlines score as training ones do. 1: as generated ones: the critic has learnt its training outlines by
    heart. Scores: [N], [M], [K]. A shortfall within three standard errors, or a critic that scores generated outlines no
    lower than training ones, counts as 0.
    """
    short = float(training.mean() - held_out.mean())
    error = math.sqrt(float(training.var()) / len(training) + float(held_out.var()) / len(held_out))
    apart = float(training.mean() - generated.mean())
    return short / apart if apart > 0 and short > 3 * error else 0.0


def judge_generator(generator: Quality, mixture: Quality, gaussian: Quality, real: Quality, start: Quality | None,
                    memorised: float) -> GanVerdict:
    """The verdict, the first of these that holds.

    diverged                   a figure is not finite
    mode-dropping              recall lies MAX_RECALL_LOSS below both the real outlines' and the mixture's, with a precision
                               above the Gaussian's (else nothing says that what is there is right)
    diverged                   less than LEFT_OF_START of the start's harmonic mean is left
    better than the mixture    `Quality.better_than` it
    critic overfitted          the critic has learnt more than MAX_MEMORISED by heart, which may be why it is no better
    better than the Gaussian   `Quality.better_than` it
    no better                  otherwise

    start: what the generator started at, a control; None for noise.
    """
    figures = [memorised, *(value for value in generator if value is not None)]
    if not all(map(math.isfinite, figures)):
        return GanVerdict.DIVERGED
    if (generator.recall < min(real.recall, mixture.recall) - MAX_RECALL_LOSS
            and generator.precision >= gaussian.precision + MARGIN):
        return GanVerdict.MODE_DROPPING
    if start is not None and generator.harmonic < LEFT_OF_START * start.harmonic:
        return GanVerdict.DIVERGED
    if generator.better_than(mixture):
        return GanVerdict.BETTER_THAN_MIXTURE
    if memorised > MAX_MEMORISED:
        return GanVerdict.CRITIC_OVERFITTED
    return GanVerdict.BETTER_THAN_GAUSSIAN if generator.better_than(gaussian) else GanVerdict.NO_BETTER


@dataclass(frozen=True)
class GanDiagnosis:
    """A verdict and the figures that it rests on."""

    verdict: GanVerdict
    generator: Quality
    mixture: Quality
    gaussian: Quality
    real: Quality
    memorised: float

    def in_words(self) -> str:
        """Two or three sentences, figures included."""
        names = {"mixture": self.mixture, "Gaussian": self.gaussian, "real outlines": self.real}

        def beside(field: str, decimals: int) -> str:
            others = ", ".join(f"{name} {getattr(quality, field):.{decimals}f}" for name, quality in names.items())
            return f"{getattr(self.generator, field):.{decimals}f} ({others})"

        parts = [f"The generator is {MEANINGS[self.verdict]}: precision {beside('precision', 3)}, "
                 f"recall {beside('recall', 3)}."]
        if all(quality.decoded_nll is not None for quality in (self.generator, *names.values())):
            parts.append(f"What is decoded from it has {beside('decoded_nll', 3)} nats per token.")
        parts.append(f"Of what the critic tells apart, {self.memorised:.0%} is training outlines learnt by heart.")
        return " ".join(parts)


MEANINGS = {GanVerdict.BETTER_THAN_MIXTURE: "better than the mixture",
            GanVerdict.BETTER_THAN_GAUSSIAN: "better than the Gaussian, not than the mixture",
            GanVerdict.NO_BETTER: "no better than the Gaussian",
            GanVerdict.MODE_DROPPING: "dropping modes",
            GanVerdict.DIVERGED: "diverged",
            GanVerdict.CRITIC_OVERFITTED: "not better than the mixture, and its critic is overfitted"}


def diagnose_generator(generator: Quality, mixture: Quality, gaussian: Quality, real: Quality, start: Quality | None,
                       memorised: float) -> GanDiagnosis:
    """`judge_generator` with its figures."""
    return GanDiagnosis(judge_generator(generator, mixture, gaussian, real, start, memorised), generator, mixture, gaussian,
                        real, memorised)
