"""Quality against diversity over temperature: curves of forward and reverse NLL, gaps between curves, and a plot."""

import io
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from outlines.checkpoint import atomic_write
from outlines.metrics.curves import interpolated_gap
from train.evaluation.sampling import REAL_TEXT
from train.evaluation.tables import Figures, Line, num_seeds

JUDGES = {"": "the GRU language model", "_ngram": "the 5-gram model"}  # by the suffix of the keys in a row


def curves(lines: Sequence[Line], seed: int | None = None, judge: str = "") -> dict[str, list[tuple[float, float]]]:
    """Return the points (reverse nll, forward nll) of each label, one per temperature. seed: index; None: mean of seeds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        both = [line.figures[key] for key in (f"reverse{judge}_nll_per_token", f"forward{judge}_nll_per_token")
                if key in line.figures]
        common = min((len(each.values) for each in both), default=0)
        if line.temperature is not None and len(both) == 2 and (seed is None or seed < common):
            x, y = (each.mean if seed is None else each.values[seed] for each in both)
            found.setdefault(line.label, []).append((x, y))
    return found


def gaps(lines: Sequence[Line], against: str, judge: str = "") -> dict[str, Figures | None]:
    """Return the forward nll of `against` minus each label's forward nll, nats per token, at equal reverse nll.

    The gap is a mean over the common interval of reverse nlls. It has one value per seed or, if the numbers of seeds differ,
    one value for the means over seeds. None: at least for one seed, the curves do not overlap.
    """
    found: dict[str, Figures | None] = {}
    counts = {label: max(len(line.figures["forward_nll_per_token"].values) for line in lines if line.label == label)
              for label in curves(lines, judge=judge)}
    for label in counts:
        if label != against:
            each = [curves(lines, seed, judge)
                    for seed in (range(counts[label]) if counts[label] == counts.get(against) else [None])]
            values = [interpolated_gap(both[label], both[against]) for both in each if label in both and against in both]
            known = tuple(value for value in values if value is not None)
            found[label] = Figures(known) if len(known) == len(each) else None
    return found


def render_gaps(found: Mapping[str, Figures | None], against: str, judge: str = "") -> str:
    """Return the gaps as a Markdown list."""
    shown = [f"- {label}: " + ("not comparable (the curves do not overlap)" if gap is None else f"{gap:3} nats per token")
             for label, gap in found.items()]
    return "\n".join([f"Forward NLL of {against} minus forward NLL of the source, at equal reverse NLL, by {JUDGES[judge]}. "
                      f"Mean over the overlap of the two curves; positive: better than {against}.", "", *shown])


def picture(lines: Sequence[Line]) -> Figure:
    """Return a plot of forward against reverse NLL over temperature. A curve further down and left is better."""
    # Greedy decoding is left out, because the single greedy sentence of a language model would stretch the axes.
    lines = [line for line in lines if line.temperature != 0]
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for label, points in curves(lines).items():
        own = [line for line in lines if line.label == label and curves([line])]
        x_error, y_error = ([line.figures[key].deviation or 0.0 for line in own]
                            for key in ("reverse_nll_per_token", "forward_nll_per_token"))
        x, y = zip(*points, strict=True)
        axes.errorbar(x, y, xerr=x_error, yerr=y_error, marker="o", markersize=4, linewidth=1.2, capsize=2, label=label)
        for line, point in zip(own, points, strict=True):
            axes.annotate(f"{line.temperature:g}", point, fontsize=7, textcoords="offset points", xytext=(4, 4))
    for line in lines:
        if line.label == REAL_TEXT and "reverse_nll_per_token" in line.figures:
            axes.plot(line.figures["reverse_nll_per_token"].mean, line.figures["forward_nll_per_token"].mean, "k*",
                      markersize=11, label=REAL_TEXT)
    axes.set(xlabel="reverse NLL, nats per token (lower = more diverse)",
             ylabel="forward NLL, nats per token (lower = better quality)")
    axes.set_title(f"Quality against diversity over temperature ({num_seeds(lines)})", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def write_curves(directory: Path, lines: Sequence[Line]) -> None:
    """Write all values to tensorboard/, with 100 · T as the step. Plot the curves, if there are any, there and in curve.png.

    Deletes the files of an earlier evaluation.
    """
    events = directory / "tensorboard"  # A separate directory, so that only our own events are deleted.
    shutil.rmtree(events, ignore_errors=True)
    (directory / "curve.png").unlink(missing_ok=True)
    if curves(lines):
        figure = picture(lines)
        atomic_write(directory / "curve.png", png(figure))
        with SummaryWriter(str(events)) as writer:
            writer.add_figure("evaluation/curve", figure)
    for label in {line.label: None for line in lines}:
        with SummaryWriter(str(events / re.sub(r"[^\w.]+", "-", label).strip("-."))) as writer:
            for line in (line for line in lines if line.label == label):
                step = 100 if line.temperature is None else round(100 * line.temperature)
                for key, figures in line.figures.items():
                    writer.add_scalar(f"evaluation/{key}", figures.mean, step)


def png(figure: Figure) -> bytes:
    """Return the picture as a PNG file."""
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    return image.getvalue()
