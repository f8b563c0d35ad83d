"""Quality against diversity over temperature: two families' curves, compared at equal diversity.

A family's curve has one point a temperature: (reverse nll, forward nll), both in the same unit (nats per
token). The forward nll, a language model of real text scoring the samples, falls with the temperature, and
diversity with it; the reverse nll, a language model of the samples scoring real text, then rises. Neither
alone ranks two families.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from outlines.errors import OutlinesError

Curve = Sequence[tuple[float, float]]


class CurveGap(NamedTuple):
    """By how many nats curve a's forward nll lies below curve b's at equal reverse nll; negative: above."""

    mean: float  # over the overlap of the reverse nlls
    at_low: float  # at the overlap's lower end: its most diverse point
    at_high: float  # at its upper end: its least diverse point
    low: float  # the overlap, as reverse nll
    high: float


def efficient_points(curve: Curve) -> list[tuple[float, float]]:
    """The points that no other point beats or equals in both nlls, by rising reverse (falling forward) nll.

    A temperature too high for a family worsens both; nobody would choose a point that another one beats.
    """
    if not curve or not all(math.isfinite(value) for point in curve for value in point):
        raise OutlinesError("temperature curve: needs one or more points, all finite")
    efficient: list[tuple[float, float]] = []
    for reverse, forward in sorted(curve):
        if not efficient or forward < efficient[-1][1]:
            efficient.append((reverse, forward))
    return efficient


def interpolated_gap(curve_a: Curve, curve_b: Curve) -> CurveGap | None:
    """At equal reverse nll, by how many nats curve a's forward nll lies below b's; None: not comparable.

    Each curve is cut down to its efficient points and joined by straight lines: forward nll as a function of
    reverse nll. The gap b - a is averaged over the interval of reverse nll that both curves reach (exactly:
    it is piecewise linear), and also given at both ends of it. Where they share a single value, the gap there
    is the mean; where they share none, nothing can be said at equal diversity. Nothing is extrapolated.
    One run's curve has the noise of its samples and its seed: the gap's spread over seeds is its error.
    Source: the comparison of Caccia et al., Language GANs Falling Short (2020), as one figure.
    """
    a, b = (np.array(efficient_points(curve)).T for curve in (curve_a, curve_b))
    low, high = max(a[0, 0], b[0, 0]), min(a[0, -1], b[0, -1])
    if low > high:
        return None
    knots = np.unique(np.clip(np.concatenate([a[0], b[0]]), low, high))
    gaps = np.interp(knots, *b) - np.interp(knots, *a)
    area = np.sum((gaps[1:] + gaps[:-1]) / 2 * np.diff(knots))
    mean = area / (high - low) if high > low else gaps[0]
    return CurveGap(float(mean), float(gaps[0]), float(gaps[-1]), float(low), float(high))
