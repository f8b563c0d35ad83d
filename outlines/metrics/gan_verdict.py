"""The verdict on a generator compared with fitted baselines (the mixture, one Gaussian) and with real outlines."""

import math
from enum import StrEnum
from typing import NamedTuple

from torch import Tensor

from outlines.metrics.outlines import f1

MARGIN = 0.02
"""Smallest difference of F1 that counts: two standard errors, if both values are near 0.9, on 2,000 outlines each."""
MAX_RECALL_LOSS = 0.1  # modes are missing if recall is more than this below the recall of real outlines and of the mixture
LEFT_OF_START = 0.5  # a generator counts as diverged if its F1 is below this share of its F1 before training
MAX_MEMORISED = 0.5  # critic memorisation above which the critic counts as overfitted


class GanVerdict(StrEnum):
    """The verdict on a generator."""

    BETTER_THAN_MIXTURE = "better than the mixture"
    BETTER_THAN_GAUSSIAN = "better than the Gaussian"
    NO_BETTER = "no better"
    MODE_DROPPING = "mode-dropping"
    DIVERGED = "diverged"
    CRITIC_OVERFITTED = "critic overfitted"


MEANINGS = {GanVerdict.BETTER_THAN_MIXTURE: "is better than the mixture",
            GanVerdict.BETTER_THAN_GAUSSIAN: "is better than the Gaussian, but not than the mixture",
            GanVerdict.NO_BETTER: "is no better than the Gaussian",
            GanVerdict.MODE_DROPPING: "drops modes",
            GanVerdict.DIVERGED: "has diverged",
            GanVerdict.CRITIC_OVERFITTED: "is not better than the mixture, and its critic is overfitted"}


class Quality(NamedTuple):
    """k-NN precision and recall of a source's outlines, and NLL per token of the decoded sentences."""

    precision: float
    recall: float
    decoded_nll: float

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return f1(self.precision, self.recall)

    def compare(self, other: "Quality", real: "Quality", name: str) -> tuple[bool, str]:
        """Return whether this source is better than `other`, and the reason.

        Better: F1 is higher by at least MARGIN, and the decoded NLL is nearer to that of real outlines. A
        low NLL does not prove quality: from vague outlines, the decoder writes likely sentences without variety.
        """
        text = f"Its F1 of precision and recall is {self.f1:.3f}, the {name}'s {other.f1:.3f}"
        if not self.f1 >= other.f1 + MARGIN:
            return False, f"{text}; better means at least {MARGIN} higher."
        nearer = abs(self.decoded_nll - real.decoded_nll) < abs(other.decoded_nll - real.decoded_nll)
        nll = (f"its sentences have an NLL of {self.decoded_nll:.3f} nats per token, the {name}'s {other.decoded_nll:.3f}, "
               f"the real outlines' {real.decoded_nll:.3f}")
        return nearer, f"{text}, {'and' if nearer else 'but'} {nll}."


class GanDiagnosis(NamedTuple):
    """A verdict, its reason, and the critic memorisation."""

    verdict: GanVerdict
    reason: str  # one sentence: the value that decided the verdict, and the threshold
    memorised: float  # critic memorisation, see `memorised_share`

    def to_json(self) -> dict[str, object]:
        """Return JSON data for the report: the verdict, two sentences that explain it, and the critic memorisation."""
        return {"verdict": str(self.verdict), "words": f"The generator {MEANINGS[self.verdict]}. {self.reason}",
                "memorised": self.memorised}


def memorised_share(training: Tensor, held_out: Tensor, generated: Tensor) -> float:
    """Return the critic memorisation, a ratio of two differences between mean scores.

    It is (mean(training) - mean(held_out)) / (mean(training) - mean(generated)), or 0 if the numerator is at most three
    standard errors or the denominator is not positive. training, held_out, generated: the critic's scores of outlines, [N].
    """
    short = float(training.mean() - held_out.mean())
    error = math.sqrt(float(training.var()) / len(training) + float(held_out.var()) / len(held_out))
    apart = float(training.mean() - generated.mean())
    return short / apart if apart > 0 and short > 3 * error else 0.0


def judge_generator(generator: Quality, mixture: Quality, gaussian: Quality, real: Quality, start: Quality | None,
                    memorised: float) -> GanDiagnosis:
    """Return the verdict of the first row whose condition is true in the table of verdicts in docs/outline-gan.md.

    start: quality of the baseline at which the generator started; None: the generator started at noise.
    """
    def decide() -> tuple[GanVerdict, str]:
        if not all(map(math.isfinite, [memorised, *generator])):
            return GanVerdict.DIVERGED, "One of its figures is not finite."
        recall = min(real.recall, mixture.recall)
        # If the precision is lower, missing modes are not the only fault.
        if generator.recall < recall - MAX_RECALL_LOSS and generator.precision >= gaussian.precision + MARGIN:
            return GanVerdict.MODE_DROPPING, (f"Its recall is {generator.recall:.3f}, more than {MAX_RECALL_LOSS} below "
                                              f"{recall:.3f}, the lower recall of mixture and real outlines.")
        if start is not None and generator.f1 < LEFT_OF_START * start.f1:
            return GanVerdict.DIVERGED, (f"Its F1 of precision and recall is {generator.f1:.3f}, less than {LEFT_OF_START} "
                                         f"of the start's {start.f1:.3f}.")
        better, reason = generator.compare(mixture, real, "mixture")
        if better:
            return GanVerdict.BETTER_THAN_MIXTURE, reason
        if memorised > MAX_MEMORISED:
            return GanVerdict.CRITIC_OVERFITTED, (f"Its critic memorisation is {memorised:.0%}, above the threshold of "
                                                  f"{MAX_MEMORISED:.0%}.")
        better, less = generator.compare(gaussian, real, "Gaussian")
        return (GanVerdict.BETTER_THAN_GAUSSIAN, reason) if better else (GanVerdict.NO_BETTER, less)

    return GanDiagnosis(*decide(), memorised)
