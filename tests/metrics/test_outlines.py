"""Fréchet distance, k-NN precision and recall, two-sample test, nearest neighbours: by hand, by reference."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from outlines.errors import OutlinesError
from outlines.metrics.outlines import (
    frechet_distance,
    knn_precision_recall,
    two_sample_accuracy,
    wilson_interval,
)


def gaussian(seed: int, rows: int, dim: int) -> np.ndarray:
    """Rows of a Gaussian whose dimensions differ in spread and correlate."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(100 + dim).normal(size=(dim, dim)) * np.geomspace(1, 0.05, dim)
    return rng.normal(size=(rows, dim)) @ mix + np.linspace(0, 1, dim)


def ring(seed: int, rows: int) -> np.ndarray:
    """Unit vectors of a plane, in 8 dimensions: as far from Gaussian as it gets."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * math.pi, rows)
    plane = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([plane, 0.05 * rng.normal(size=(rows, 6))], axis=1)


@pytest.mark.parametrize("dim", [16, 64])
def test_frechet_distance_equals_the_matrix_square_root(dim):
    a, b = gaussian(0, 500, dim), 1.3 * gaussian(1, 400, dim) + 0.2
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    root = sqrtm(covariance_a @ covariance_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariance_a + covariance_b - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_by_hand():
    # In one dimension: (difference of means)^2 + (difference of standard deviations)^2.
    a = np.array([[-1.0], [1.0]])
    assert frechet_distance(a, 2 * a + 3) == pytest.approx(3 ** 2 + (8 ** 0.5 - 2 ** 0.5) ** 2)
    b = gaussian(0, 50, 4)
    assert frechet_distance(b, b + np.array([3.0, 4, 0, 0])) == pytest.approx(25)  # a shift's squared length
    assert frechet_distance(b, b[::-1].copy()) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_with_fewer_rows_than_dimensions():
    a = gaussian(0, 10, 64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    # Spans at right angles: (C_a C_b) = 0, so that the distance is both traces and the means.
    x, y = np.zeros((3, 4)), np.zeros((3, 4))
    x[:, 0], y[:, 1] = (-1, 0, 1), (-2, 0, 2)
    assert frechet_distance(x, y) == pytest.approx(1 + 4)


def brute_force_coverage(points: np.ndarray, centers: np.ndarray, k: int) -> float:
    inside = 0
    radii = [sorted(np.linalg.norm(centers - center, axis=1))[k] for center in centers]
    for point in points:
        inside += (np.linalg.norm(centers - point, axis=1) <= radii).any()
    return inside / len(points)


@pytest.mark.parametrize("k, chunk", [(1, 7), (3, 1024), (5, 150)])
def test_precision_and_recall_equal_brute_force(k, chunk):
    real, fake = gaussian(0, 150, 5), 0.8 * gaussian(1, 150, 5) + 0.8
    expected = brute_force_coverage(fake, real, k), brute_force_coverage(real, fake, k)
    assert all(0.05 < share < 0.98 for share in expected) and expected[0] != expected[1]
    assert knn_precision_recall(real, fake, k=k, chunk=chunk) == pytest.approx(expected, abs=1e-6)


def test_precision_and_recall_by_hand():
    real = np.array([[0.0], [1.0], [2.0], [10.0]])  # radii for k = 1: 1, 1, 1, 8 -> [-1, 3] and [2, 18]
    fake = np.array([[-2.0], [0.5], [17.0], [19.0]])  # 2.5, 2.5, 2, 2 -> [-4.5, 0.5], [-2, 3], [15, 21]
    assert knn_precision_recall(real, fake, k=1) == (2 / 4, 3 / 4)


def test_precision_sees_bad_rows_and_recall_sees_missing_ones():
    cluster = gaussian(0, 200, 6)
    real = np.concatenate([cluster[:100], cluster[100:] + 50])
    one_mode = gaussian(1, 200, 6)
    half_noise = np.concatenate([real[:100] + 1e-6, np.full((100, 6), -80.0) + gaussian(2, 100, 6)])
    precision, recall = knn_precision_recall(real, one_mode)
    assert precision > 0.9 and recall < 0.55
    assert knn_precision_recall(real, half_noise).precision == 0.5
    assert knn_precision_recall(real, real) == (1, 1)


def test_an_exact_copy_is_inside_a_ball_of_radius_0():
    real = gaussian(0, 60, 32) * 1e3
    repeated = np.repeat(real[:6], 10, axis=0)  # every 5th neighbour of a row is the row itself
    assert knn_precision_recall(real, repeated, k=5, chunk=11) == (1, 0.1)


def test_two_sample_accuracy_of_one_distribution_is_chance():
    result = two_sample_accuracy(ring(0, 1000), ring(1, 1000), seed=0)
    assert result.low < 0.5 < result.high
    assert result.num_test == 1000 and result.high - result.low < 0.07


def test_two_sample_accuracy_sees_what_a_fitted_gaussian_lacks():
    real = ring(0, 1000)
    rng = np.random.default_rng(1)
    fitted = rng.multivariate_normal(real.mean(0), np.cov(real.T), 1000)
    assert frechet_distance(real, fitted) < 0.02  # which cannot see it
    assert two_sample_accuracy(real, fitted).low > 0.8


def folded(seed: int, num: int) -> np.ndarray:
    """A curved sheet of 4 dimensions in 24."""
    shape = np.random.default_rng(99)
    inner, outer = shape.normal(size=(4, 48)), shape.normal(size=(48, 24)) / 48 ** 0.5
    rng = np.random.default_rng(seed)
    return np.tanh(rng.normal(size=(num, 4)) @ inner) @ outer + 0.1 * rng.normal(size=(num, 24))


def test_two_sample_accuracy_sees_what_a_mixture_lacks():
    """A mixture of Gaussians at many of the real rows, with the spread of the rows around their nearest centre."""
    real, learnt, centres = folded(0, 500), folded(1, 1000), folded(2, 100)
    near = ((learnt[:, None, :] - centres) ** 2).sum(axis=2).argmin(axis=1)
    within = np.cov((learnt - centres[near]).T)

    def mixture(seed: int, num: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return centres[rng.integers(len(centres), size=num)] + rng.multivariate_normal(np.zeros(24), within, num)

    result = two_sample_accuracy(real, mixture(3, 500), (learnt, mixture(4, 1000)))
    assert result.low > 0.6 and result.num_test == 1000
    floor = two_sample_accuracy(real, folded(5, 500), (learnt[:500], folded(6, 500)))
    assert floor.low < 0.5 < floor.high
    # A half of so few rows does not show it.
    few = two_sample_accuracy(real[:200], mixture(3, 200))
    assert few.accuracy < result.accuracy


def test_two_sample_accuracy_detects_a_shift_and_ignores_the_scale():
    a, b = ring(0, 200), ring(1, 200) + 0.4 * np.eye(8)[0]
    result = two_sample_accuracy(a, b)
    assert 0.55 < result.low < result.accuracy < 1
    assert two_sample_accuracy(1024 * a, 1024 * b) == result  # a power of two: not even the rounding differs


def test_two_sample_accuracy_is_a_function_of_its_seed_and_leaves_the_global_state():
    a, b = torch.from_numpy(ring(0, 100)), torch.from_numpy(ring(1, 100))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = two_sample_accuracy(a, b, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert two_sample_accuracy(a, b, seed=1) == first
    assert two_sample_accuracy(a, b, seed=2) != first


def test_wilson_interval():
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)


@pytest.mark.parametrize("metric", [frechet_distance, knn_precision_recall, two_sample_accuracy])
def test_wrong_outlines_are_errors(metric):
    good = gaussian(0, 30, 4)
    bad = good.copy()
    bad[7, 2] = math.nan
    with pytest.raises(OutlinesError, match="1 of 30 outlines contain NaN"):
        metric(good, bad)
    with pytest.raises(OutlinesError, match="outlines of each set, has 1"):
        metric(good, good[:1])


def test_inputs_stay_as_they_were():
    a, b = torch.from_numpy(gaussian(0, 40, 4)), torch.from_numpy(gaussian(1, 40, 4))
    copies = a.clone(), b.clone()
    frechet_distance(a, b), knn_precision_recall(a, b), two_sample_accuracy(a, b)
    assert torch.equal(a, copies[0]) and torch.equal(b, copies[1])
