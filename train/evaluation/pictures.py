"""Plots of posterior collapse: signal and noise of each dimension, and metrics of collapse over training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

HISTORIES = {"valid/kl": "KL to the prior, nats per sentence",
             "valid/mutual_information": "mutual information with the sentence, nats", "valid/active_units": "active units",
             "valid/latent_gap_per_token": "NLL gap (swapped vector), nats per token"}


def draw_signal_noise(axes: Axes, signal: Sequence[float], noise: Sequence[float]) -> None:
    """Plot signal and noise of each dimension, sorted by falling signal-to-noise ratio."""
    ratios = np.array(signal) / np.maximum(noise, 1e-30)
    order = np.argsort(-ratios)
    for values, name, marker in ((signal, "signal: Var[mu]", "o"), (noise, "noise: E[sigma²]", "x")):
        axes.semilogy(np.maximum(np.array(values)[order], 1e-10), marker, markersize=4, label=name)
    axes.set_xlabel("dimension, sorted by signal-to-noise ratio")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def signal_noise_picture(signal: Sequence[float], noise: Sequence[float]) -> Figure:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    draw_signal_noise(figure.subplots(), signal, noise)
    return figure


def kl_picture(kl_by_position: Sequence[float]) -> Figure:
    """Return a plot of the KL to the prior at each position of a sentence. kl_by_position: nats per step."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(kl_by_position)), kl_by_position)
    axes.set(xlabel="position", ylabel="KL to the prior, nats per step")
    axes.grid(alpha=0.3)
    return figure


def collapse_picture(histories: Mapping[str, Sequence[dict[str, Any]]],
                     dims: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Return plots of the collapse metrics over training and, below, of signal and noise of each family's first seed.

    histories: by run (FAMILY or FAMILY/SEED), the lines of its metrics.jsonl. dims: by run, its signal and noise.
    """
    families = list(dict.fromkeys(label.partition("/")[0] for label in histories))
    shades = colormaps["tab10" if len(families) <= 10 else "tab20"]
    drawn = {family: label for label in reversed(list(dims)) for family in [label.partition("/")[0]]}
    first = [drawn[family] for family in families if family in drawn]
    rows = 2 + (len(first) + 1) // 2
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, 2).flatten()
    curves: dict[str, Line2D] = {}
    for axes, (key, title) in zip(panels, HISTORIES.items(), strict=False):
        for label, lines in histories.items():
            family = label.partition("/")[0]
            points = [(line["examples"], line[key]) for line in lines if key in line]
            if points:
                curves[family], = axes.plot(*zip(*points, strict=True), color=shades(families.index(family)), marker="o",
                                            markersize=3)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("training sentences seen")
        axes.grid(alpha=0.3)
    if curves:
        figure.legend(curves.values(), curves.keys(), loc="outside upper center", ncols=6, fontsize=9)
    for axes, label in zip(panels[4:], first, strict=False):
        if axes is not panels[4]:
            axes.sharey(panels[4])
        draw_signal_noise(axes, *dims[label])
        axes.set_title(f"{label} after training", fontsize=10)
    for axes in panels[4 + len(first):]:
        axes.set_axis_off()
    return figure
