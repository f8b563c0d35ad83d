import math

import pytest
import torch

from outlines.metrics.gan_verdict import GanVerdict, Quality, judge_generator, memorised_share

MIXTURE, GAUSSIAN, REAL = Quality(0.80, 0.96, 3.6), Quality(0.10, 0.90, 3.8), Quality(0.92, 0.93, 3.3)


@pytest.mark.parametrize(("generator", "start", "memorised", "expected"), [
    (Quality(0.93, 0.92, 3.5), MIXTURE, 0.0, "better than the mixture"),
    (Quality(0.93, 0.92, 3.7), MIXTURE, 0.0, "better than the Gaussian"),  # its sentences are further from real outlines'
    (Quality(0.93, 0.92, 2.9), MIXTURE, 0.0, "better than the Gaussian"),  # likelier than real outlines': too vague
    (Quality(0.93, 0.92, 3.1), MIXTURE, 0.0, "better than the mixture"),
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
    (Quality(0.93, 0.92, 3.5), MIXTURE, 0.8, "better than the mixture"),  # even with a critic that memorised
])
def test_gan_verdict(generator: Quality, start: Quality | None, memorised: float, expected: str) -> None:
    assert judge_generator(generator, MIXTURE, GAUSSIAN, REAL, start, memorised).verdict == expected


def test_recall_is_compared_with_the_lower_one_of_real_outlines_and_mixture() -> None:
    real = Quality(0.95, 0.70, 3.3)  # so small a set that real outlines reach no more
    found = judge_generator(Quality(0.9, 0.65, 3.4), Quality(0.5, 0.9, 3.6), GAUSSIAN, real, None, 0.0)
    assert found.verdict != GanVerdict.MODE_DROPPING


@pytest.mark.parametrize(("generator", "start", "memorised", "reason"), [
    (Quality(0.93, 0.92, 3.5), MIXTURE, 0.0, "Its F1 of precision and recall is 0.925, the mixture's 0.873, and "
     "its sentences have an NLL of 3.500 nats per token, the mixture's 3.600, the real outlines' 3.300."),
    (Quality(0.93, 0.92, 3.7), MIXTURE, 0.0, "Its F1 of precision and recall is 0.925, the mixture's 0.873, but "
     "its sentences have an NLL of 3.700 nats per token, the mixture's 3.600, the real outlines' "
     "3.300."),
    (Quality(0.10, 0.90, 3.8), GAUSSIAN, 0.0, "Its F1 of precision and recall is 0.180, the Gaussian's 0.180; "
     "better means at least 0.02 higher."),
    (Quality(0.95, 0.60, 3.2), MIXTURE, 0.0, "Its recall is 0.600, more than 0.1 below 0.930, the lower recall of "
     "mixture and real outlines."),
    (Quality(0.05, 0.20, 4.5), MIXTURE, 0.0, "Its F1 of precision and recall is 0.080, less than 0.5 of the start's 0.873."),
    (Quality(0.81, 0.96, 3.5), MIXTURE, 0.8, "Its critic memorisation is 80%, above the threshold of 50%.")])
def test_words_name_the_figure_that_decided(generator: Quality, start: Quality, memorised: float, reason: str) -> None:
    found = judge_generator(generator, MIXTURE, GAUSSIAN, REAL, start, memorised)
    words = str(found.to_json()["words"])
    assert found.reason == reason and words.startswith("The generator ") and words.endswith(reason)


@pytest.mark.parametrize(("held_out", "expected"), [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (1.2, 0.0)])
def test_memorised_share_of_planted_scores(held_out: float, expected: float) -> None:
    noise = 0.1 * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    training, unseen, generated = noise + torch.tensor([[1.0], [held_out], [0.0]])
    assert memorised_share(training, unseen, generated) == pytest.approx(expected, abs=0.02)


def test_a_shortfall_within_chance_is_not_memorised() -> None:
    scores = torch.tensor([1.0, 0, 1, 0, 1])
    assert memorised_share(scores, scores - 0.2, scores - 1) == 0
    assert memorised_share(scores - 1, scores - 2, scores) == 0  # a critic that scores generated outlines higher
