"""MAUVE: against the numbers of the authors' package, by its properties, and by hand."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from outlines.errors import OutlinesError
from outlines.metrics.mauve import frontier_area, mauve
from outlines.networks.mixture import k_means


def places(seed: int, rows: Sequence[int], noise: float = 0.2, shift: float = 0.0) -> np.ndarray:
    """Features around places at right angles, in 12 dimensions. rows: the number of rows of each place."""
    centres = np.repeat(4 * np.eye(len(rows), 12), rows, axis=0)
    return centres + shift + noise * np.random.default_rng(seed).normal(size=centres.shape)


def modes(seed: int, num: int, shares: Sequence[int], noise: float = 0.3) -> np.ndarray:
    """Features of a mixture of Gaussians in 16 dimensions that overlap a little."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(len(shares), 16))
    which = rng.choice(len(shares), num, p=np.array(shares) / sum(shares))
    return centres[which] + noise * rng.normal(size=(num, 16))


# mauve-text 0.4.0 with its default settings, computed once: mauve and mauve_star. The three clusters are the three places,
# so every k-means finds them.
REFERENCE = [
    (places(1, (10, 10, 10)), places(2, (16, 10, 4)), 0.9409, 0.9513),
    (places(3, (10, 10, 10)), places(4, (20, 10, 0)), 0.4812, 0.6056),
    (places(5, (14, 8, 8)), places(6, (2, 4, 30)), 0.3745, 0.4256),
]


@pytest.mark.parametrize(("real", "fake", "expected", "expected_star"), REFERENCE)
def test_the_reference_gives_the_same_scores(real: np.ndarray, fake: np.ndarray, expected: float,
                                             expected_star: float) -> None:
    assert mauve(real, fake) == pytest.approx((expected, expected_star), abs=1e-4)


def test_the_reference_has_the_same_mean_over_seeds() -> None:
    """With 100 clusters, the score depends on the starts of k-means. mauve-text, seeds 0 to 11: deviation 0.0062, 0.0098."""
    real, fake = modes(3, 1000, [1] * 8), modes(4, 1000, [1] * 5)
    found = np.mean([mauve(real, fake, seed) for seed in range(12)], axis=0)
    assert found == pytest.approx((0.3924, 0.4828), abs=0.01)


@pytest.mark.parametrize(("p", "q", "expected"), [  # expected: the curve and its area by mauve-text 0.4.0
    ([5, 3, 2], [2, 3, 5], 0.8214099836116461),
    ([10, 0, 5], [5, 5, 0], 0.1445197143871771),
    ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
    ([7, 0], [0, 9], 0.0040720962619612555),
    ([100, 1], [99, 2], 0.9999508462790567),
    ([50, 30, 15, 5, 0, 0], [10, 20, 30, 5, 25, 10], 0.2942759142880037),
])
def test_area_under_the_frontier(p: list[int], q: list[int], expected: float) -> None:
    counts = torch.tensor(p), torch.tensor(q)
    assert frontier_area(*counts) == pytest.approx(expected, abs=1e-9)
    assert frontier_area(counts[1], counts[0]) == pytest.approx(expected, abs=1e-9), "symmetric"


def test_disjoint_histograms_by_hand() -> None:
    # KL(q | r) = -log(1 - w) and KL(p | r) = -log(w), so the frontier is (1 - w)^5, w^5.
    w = np.linspace(1e-6, 1 - 1e-6, 25)
    x, y = np.array([1, *(1 - w) ** 5, 0]), np.array([0, *w ** 5, 1])
    expected = ((x[:-1] - x[1:]) * (y[:-1] + y[1:]) / 2).sum()
    assert frontier_area(torch.tensor([3, 0]), torch.tensor([0, 8])) == pytest.approx(expected)


def test_equal_sets_score_one_and_disjoint_sets_zero() -> None:
    rows = modes(1, 500, [1] * 4)
    assert mauve(rows, rows) == pytest.approx((1.0, 1.0))
    assert mauve(rows, rows[::-1].copy()) == pytest.approx((1.0, 1.0))
    far = mauve(places(1, (100, 100, 0, 0)), places(2, (0, 0, 100, 100)))
    assert far.mauve < 0.005 and far.star < 0.02
    same = np.ones((40, 8))
    assert mauve(same, 3 * same) == pytest.approx((1.0, 1.0)), "only the direction of a feature counts"


def test_nearly_symmetric_and_the_scale_does_not_count() -> None:
    """The area is symmetric. k-means starts at other rows if the sets are swapped, so the whole score is only close."""
    real, fake, _, _ = REFERENCE[1]
    assert mauve(fake, real) == pytest.approx(mauve(real, fake), abs=1e-9)
    real, fake = modes(3, 1000, [1] * 8), modes(4, 1000, [1] * 5)
    assert mauve(fake, real) == pytest.approx(mauve(real, fake), abs=0.05)
    assert mauve(7 * real, 7 * fake) == pytest.approx(mauve(real, fake), abs=1e-3)


def test_the_score_falls_with_dropped_modes_and_with_noise() -> None:
    real = modes(1, 1000, [1] * 8)
    dropped = [mauve(real, modes(2, 1000, [1] * kept + [0] * (8 - kept))) for kept in (8, 6, 4, 1)]
    noisy = [mauve(real, modes(2, 1000, [1] * 8, noise)) for noise in (0.3, 0.5, 0.7, 1.5)]
    for scores in (dropped, noisy):
        assert scores[0].mauve > 0.9
        for more, less in itertools.pairwise(scores):
            assert less.mauve < more.mauve - 0.05 and less.star < more.star - 0.05


def test_deterministic_for_a_seed_and_the_random_state_is_left_alone() -> None:
    real, fake = torch.from_numpy(modes(3, 300, [1] * 8)), torch.from_numpy(modes(4, 300, [1] * 5))
    state = torch.get_rng_state()
    assert mauve(real, fake, seed=4) == mauve(real, fake, seed=4) == mauve(real.numpy(), fake.numpy(), seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert mauve(real, fake, seed=4) != mauve(real, fake, seed=5)


def test_errors() -> None:
    rows = modes(1, 40, [1] * 4)
    with pytest.raises(OutlinesError, match="MAUVE: needs 20 outlines of each set, has 19"):
        mauve(rows, rows[:19])
    rows[3, 2] = np.nan
    with pytest.raises(OutlinesError, match="MAUVE: 1 of 40 outlines contain NaN"):
        mauve(modes(1, 40, [1] * 4), rows)


def test_k_means_stops_when_nothing_changes() -> None:
    calls: list[int] = []
    rows = torch.from_numpy(places(1, (20, 20)))
    centres, shares, residual = k_means(rows, 2, 0, lambda: calls.append(1), max_iterations=500)
    assert len(calls) < 10 and shares.tolist() == [0.5, 0.5]
    again, _, unchanged = k_means(rows, 2, 0, max_iterations=len(calls))
    assert torch.equal(again, centres) and torch.equal(unchanged, residual)
