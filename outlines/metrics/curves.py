"""Curves of quality against diversity: one point (reverse nll, forward nll) per temperature, in nats per token."""

from collections.abc import Sequence

import numpy as np

Curve = Sequence[tuple[float, float]]


def efficient_points(curve: Curve) -> list[tuple[float, float]]:
    """Return the different points that no other point equals or beats in both nlls, in order of rising reverse nll."""
    efficient: list[tuple[float, float]] = []
    for reverse, forward in sorted(curve):
        if not efficient or forward < efficient[-1][1]:
            efficient.append((reverse, forward))
    return efficient


def interpolated_gap(curve_a: Curve, curve_b: Curve) -> float | None:
    """Return the forward nll of curve b minus that of curve a, at equal reverse nll, in nats; None without overlap.

    The efficient points of each curve are interpolated linearly, and the gap is averaged over the common interval of the
    reverse nll. Source: the comparison in Caccia et al., Language GANs Falling Short (2020), here reduced to one number.
    """
    a, b = (np.array(efficient_points(curve)).T for curve in (curve_a, curve_b))
    low, high = max(a[0, 0], b[0, 0]), min(a[0, -1], b[0, -1])
    if low > high:
        return None
    knots = np.unique(np.clip(np.concatenate([a[0], b[0]]), low, high))
    gaps = np.interp(knots, *b) - np.interp(knots, *a)
    return float(np.sum((gaps[1:] + gaps[:-1]) / 2 * np.diff(knots)) / (high - low) if high > low else gaps[0])
