import math

import pytest
import torch

from outlines.metrics.verdicts import GanVerdict, Quality, diagnose_generator, judge_generator, memorised_share

MIXTURE, GAUSSIAN, REAL = Quality(0.80, 0.96, 3.6), Quality(0.10, 0.90, 3.8), Quality(0.92, 0.93, 3.3)


@pytest.mark.parametrize(("generator", "start", "memorised", "expected"), [
    (Quality(0.93, 0.92, 3.5), MIXTURE, 0.0, "better than the mixture"),
    (Quality(0.93, 0.92, 3.7), MIXTURE, 0.0, "better than the Gaussian"),  # its sentences are less likely than the mixture's
    (Quality(0.93, 0.92), MIXTURE, 0.0, "better than the mixture"),  # ... which are not known here
    (Quality(0.81, 0.96, 3.5), MIXTURE, 0.0, "better than the Gaussian"),  # within the margin of the mixture
    (Quality(0.30, 0.90, 3.7), GAUSSIAN, 0.0, "better than the Gaussian"),
    (Quality(0.10, 0.90, 3.8), GAUSSIAN, 0.0, "no better"),
    (Quality(0.00, 0.00, 4.0), None, 0.0, "no better"),  # from noise, nowhere yet: no modes that others could be missing
    (Quality(0.95, 0.60, 3.2), MIXTURE, 0.0, "mode-dropping"),
    (Quality(0.70, 0.31, 3.7), GAUSSIAN, 0.0, "mode-dropping"),
    (Quality(1.00, 0.00, 2.0), MIXTURE, 0.0, "mode-dropping"),
    (Quality(0.95, 0.86, 3.2), MIXTURE, 0.0, "better than the mixture"),  # thinned out, but no mode is lost
    (Quality(0.05, 0.20, 4.5), MIXTURE, 0.0, "diverged"),
    (Quality(math.nan, 0.9, 3.5), MIXTURE, 0.0, "diverged"),
    (Quality(0.93, 0.92, math.inf), MIXTURE, 0.0, "diverged"),
    (Quality(0.81, 0.96, 3.5), MIXTURE, 0.8, "critic overfitted"),
    (Quality(0.93, 0.92, 3.5), MIXTURE, 0.8, "better than the mixture"),  # whatever its critic knows by heart
])
def test_verdicts(generator: Quality, start: Quality | None, memorised: float, expected: str) -> None:
    assert judge_generator(generator, MIXTURE, GAUSSIAN, REAL, start, memorised) == expected


def test_recall_above_the_real_outlines_is_not_owed() -> None:
    real = Quality(0.95, 0.70)  # so small a set that real outlines reach no more
    assert judge_generator(Quality(0.9, 0.65), Quality(0.5, 0.9), GAUSSIAN, real, None, 0.0) != GanVerdict.MODE_DROPPING


def test_words_hold_every_figure() -> None:
    words = diagnose_generator(Quality(0.931, 0.922, 3.456), MIXTURE, GAUSSIAN, REAL, MIXTURE, 0.03).in_words()
    assert words.startswith("The generator is better than the mixture: ")
    for figure in ("0.931", "0.922", "3.456", "0.800", "0.960", "3.600", "0.100", "0.920", "3.300", "3%"):
        assert figure in words
    assert "nats" not in diagnose_generator(Quality(0.9, 0.9), MIXTURE, GAUSSIAN, REAL, MIXTURE, 0.0).in_words()


@pytest.mark.parametrize(("held_out", "expected"), [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (1.2, 0.0)])
def test_memorised_share_of_planted_scores(held_out: float, expected: float) -> None:
    noise = 0.1 * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    training, unseen, generated = noise + torch.tensor([[1.0], [held_out], [0.0]])
    assert memorised_share(training, unseen, generated) == pytest.approx(expected, abs=0.02)


def test_what_may_be_chance_is_not_memorised() -> None:
    scores = torch.tensor([1.0, 0, 1, 0, 1])
    assert memorised_share(scores, scores - 0.2, scores - 1) == 0
    assert memorised_share(scores - 1, scores - 2, scores) == 0  # a critic that takes the generated ones for real
