"""The comparison: rows of figures → tables, a picture, JSON and TensorBoard, over one run or several seeds of several."""

import io
import json
import math
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from outlines.checkpoint import atomic_write
from outlines.metrics.curves import interpolated_gap
from train.evaluation.yardstick import REAL_TEXT, Row
from train.runtime.log import write_hparams
from train.runtime.run_directory import write_json

MAIN_COLUMNS = {
    "forward_nll_per_token": ("forward nll", 3), "reverse_nll_per_token": ("reverse nll", 3),
    "forward_ngram_nll_per_token": ("forward, 5-gram", 3), "reverse_ngram_nll_per_token": ("reverse, 5-gram", 3),
    "forward_ppl_per_word": ("forward ppl/word", 1), "reverse_ppl_per_word": ("reverse ppl/word", 1),
    "bleu_4": ("BLEU-4", 3), "self_bleu_4": ("self-BLEU-4", 3), "distinct_2": ("distinct-2", 3), "unique": ("unique", 3),
    "copied": ("copied", 3), "near_copies": ("near copies", 3), "length_distance": ("length distance", 2),
    "in_language": ("in language", 3), "grammar_nll": ("grammar nll", 2)}
BLEU_COLUMNS = {f"{kind}_{n}": (f"{title}-{n}", 3) for kind, title in (("bleu", "BLEU"), ("self_bleu", "self-BLEU"))
                for n in range(2, 6)}
OUTLINE_COLUMNS = {f"{name}_{figure}": (f"{title}{figure.replace('_', '-')}", 3)
                   for name, title in (("outline", ""), ("text", "text: "))
                   for figure in ("precision", "recall", "frechet", "two_sample")}
OUTLINE_COLUMNS["outline_nearest_cosine"] = ("nearest training outline", 3)
RECONSTRUCTION_COLUMNS = {
    "test/nll_per_token": ("nll/token", 3), "num_draws": ("draws", 0), "test/negative_elbo_per_token": ("-ELBO/token", 3),
    "test/reconstruction_nll_per_token": ("reconstruction nll/token", 3),
    "test/reconstruction_bleu": ("greedy reconstruction, BLEU", 2)}
VECTOR_COLUMNS = {
    "verdict": ("the vector is", 0), "test/kl": ("KL", 2), "test/mutual_information": ("mutual information", 2),
    "test/mutual_information_ceiling": ("... at most", 1), "test/active_units": ("active units", 0),
    "test/active_positions": ("active positions", 0),
    "test/latent_gap_per_token": ("nll/token more, given another's vector", 3),
    "test/prior_gap_per_token": ("... one of prior or generator", 3), "test/distinct_outputs": ("distinct outputs", 2),
    "test/output_change": ("output change", 2)}
QUICK_COLUMNS = {"outline_precision": ("precision", 3), "outline_recall": ("recall", 3),
                 "forward_nll_per_token": ("forward nll/token", 3),
                 **{key: MAIN_COLUMNS[key] for key in ("distinct_2", "self_bleu_4", "unique", "copied", "in_language",
                                                       "grammar_nll")}}


@dataclass(frozen=True)
class Figures:
    """One quantity over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; None of one seed, which has no spread to show."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __format__(self, decimals: str) -> str:
        mean = f"{self.mean:.{decimals}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{decimals}f}"


@dataclass(frozen=True)
class Line:
    """A source of sentences at a temperature (None: it has none), over seeds."""

    label: str
    temperature: float | None
    figures: dict[str, Figures]
    verdicts: tuple[str, ...] = ()
    """of what becomes of the vector, one a seed"""

    def cell(self, key: str, decimals: int) -> str:
        """A figure, or the verdicts, for a table; nothing where there is none."""
        if key == "verdict":
            counted = Counter(self.verdicts).most_common()
            return ", ".join(verdict if len(self.verdicts) == 1 else f"{num} × {verdict}" for verdict, num in counted)
        return f"{self.figures[key]:{decimals}}" if key in self.figures else ""


def over_seeds(rows: Iterable[tuple[str, Row]]) -> list[Line]:
    """One line for every (label, temperature), in order of first appearance; labelled rows of every seed come in.

    Only figures that every seed has are kept.
    """
    grouped: dict[tuple[str, float | None], list[Row]] = {}
    for label, row in rows:
        grouped.setdefault((label, row.get("temperature")), []).append(row)
    lines = []
    for (label, temperature), members in grouped.items():
        keys = [key for key, value in members[0].items() if key != "temperature" and isinstance(value, (int, float))
                and all(key in row for row in members)]
        lines.append(Line(label, temperature, {key: Figures(tuple(float(row[key]) for row in members)) for key in keys},
                          tuple(row["verdict"] for row in members if "verdict" in row)))
    return lines


def table(lines: Sequence[Line], columns: dict[str, tuple[str, int]]) -> str:
    """A Markdown table that also reads well in a terminal; a column that no line has, T among them, is left out."""
    used = {key: column for key, column in columns.items() if any(line.cell(key, 0) for line in lines)}
    over_temperature = any(line.temperature is not None for line in lines)
    cells = [["source", *(["T"] if over_temperature else []), *(title for title, _ in used.values())]]
    for line in lines:
        named = "" if line.temperature is None else "greedy" if line.temperature == 0 else f"{line.temperature:g}"
        cells.append([line.label, *([named] if over_temperature else []),
                      *(line.cell(key, decimals) for key, (_, decimals) in used.items())])
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))]
    rendered = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
                for row in cells]
    return "\n".join([rendered[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rendered[1:]])


def reconstruction_section(rebuilt: Sequence[tuple[str, Row]]) -> str:
    """How likely each run finds held-out sentences, how well it rebuilds them, and what becomes of its vector, in Markdown.

    rebuilt: labelled rows of every seed. The verdict stands in words where a label has one seed.
    """
    lines = over_seeds(rebuilt)
    bound = ("; with a number of draws, nll is the importance-weighted upper bound of so many"
             if any("num_draws" in line.figures for line in lines) else "")
    parts = [f"Held-out sentences; a reconstruction is given the sentence's own vector, so its nll is no sentence's{bound}:",
             table(lines, RECONSTRUCTION_COLUMNS)]
    with_vector = [line for line in lines if line.verdicts]
    if with_vector:
        parts += ["Is the vector used? (docs/posterior-collapse.md)", table(with_vector, VECTOR_COLUMNS)]
        words = {line.label: row["words"] for line in with_vector for label, row in rebuilt
                 if label == line.label and len(line.verdicts) == 1}
        parts += [f"{label}: {text}" for label, text in words.items()]
    return "\n\n".join(parts)


def generator_section(figures: Sequence[dict[str, Any]]) -> str:
    """What the adversary brought, of one seed in words, of several as verdicts; nothing for a family without one."""
    found = [own["generator"] for own in figures if "generator" in own]
    if not found:
        return ""
    counted = Counter(own["verdict"] for own in found).most_common()
    text = found[0]["words"] if len(found) == 1 else ", ".join(f"{num} × {verdict}" for verdict, num in counted)
    return f"What did the adversary bring? (docs/outline-gan.md)\n\n{text}\n\n"


def num_seeds(lines: Sequence[Line]) -> str:
    """How many seeds stand behind the lines, in words."""
    counts = {len(figures.values) for line in lines if line.label != REAL_TEXT for figures in line.figures.values()}
    most = max(counts, default=1)
    if most == 1:
        return "one seed"
    fewer = "" if len(counts) == 1 else ", fewer in some rows, one where no deviation stands"
    return f"mean ± standard deviation over {most} seeds{fewer}"


EVALUATORS = {"": "the GRU language model", "_ngram": "the 5-gram"}
"""The two evaluators of a full evaluation, by what stands in the keys of their figures."""


def curves(lines: Sequence[Line], seed: int | None = None, evaluator: str = "") -> dict[str, list[tuple[float, float]]]:
    """Each label's curve, (reverse nll, forward nll) a temperature: of one seed, or of the means."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        both = [line.figures.get(f"{name}{evaluator}_nll_per_token") for name in ("reverse", "forward")]
        if line.temperature is not None and both[0] and both[1]:
            if seed is None:
                point = (both[0].mean, both[1].mean)
            elif seed < min(len(both[0].values), len(both[1].values)):
                point = (both[0].values[seed], both[1].values[seed])
            else:
                continue
            found.setdefault(line.label, []).append(point)
    return found


def gaps(lines: Sequence[Line], against: str, evaluator: str = "") -> dict[str, Figures | None]:
    """At equal reverse nll, by how many nats per token each label's forward nll lies below that of `against`.

    Averaged over the reverse nlls that both curves reach, seed by seed, or of the means where one label has more seeds
    than the other. None: not comparable, in some seed at least.
    """
    found: dict[str, Figures | None] = {}
    counts = {label: max(len(line.figures["forward_nll_per_token"].values) for line in lines if line.label == label)
              for label in {*curves(lines, evaluator=evaluator)}}
    for label in curves(lines, evaluator=evaluator):
        values = []
        for seed in range(counts[label]) if counts[label] == counts.get(against) else [None]:
            both = curves(lines, seed, evaluator)
            gap = interpolated_gap(both[label], both[against]) if label in both and against in both else None
            values.append(None if gap is None else gap.mean)
        if label != against:
            known = tuple(value for value in values if value is not None)
            found[label] = Figures(known) if known and len(known) == len(values) else None
    return found


def render_gaps(found: dict[str, Figures | None], against: str, evaluator: str = "") -> str:
    shown = [f"- {label}: " + ("not comparable (the curves do not overlap)" if gap is None else f"{gap:3} nats per token")
             for label, gap in found.items()]
    return "\n".join([f"At equal reverse nll, forward nll below that of {against} (negative: above), averaged over the "
                      f"overlap of the curves, by {EVALUATORS[evaluator]}:", "", *shown])


def picture(lines: Sequence[Line]) -> Figure:
    """Forward against reverse nll over temperature: down and to the left is better.

    Greedy decoding is left to the tables: a language model's one greedy sentence lies so far off that all else shrinks.
    """
    lines = [line for line in lines if line.temperature != 0]
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for label, points in curves(lines).items():
        own = [line for line in lines if line.label == label and curves([line])]
        spreads = [[line.figures[f"{name}_nll_per_token"].deviation or 0.0 for line in own]
                   for name in ("reverse", "forward")]
        x, y = zip(*points, strict=True)
        axes.errorbar(x, y, xerr=spreads[0], yerr=spreads[1], marker="o", markersize=4, linewidth=1.2, capsize=2,
                      label=label)
        for line, point in zip(own, points, strict=True):
            axes.annotate(f"{line.temperature:g}", point, fontsize=7, textcoords="offset points", xytext=(4, 4))
    for line in lines:
        if line.label == REAL_TEXT and "reverse_nll_per_token" in line.figures:
            axes.plot(line.figures["reverse_nll_per_token"].mean, line.figures["forward_nll_per_token"].mean, "k*",
                      markersize=11, label=REAL_TEXT)
    axes.set_xlabel("reverse nll, nats per token (lower: more of real text's variety)")
    axes.set_ylabel("forward nll, nats per token (lower: likelier text)")
    axes.set_title(f"quality against diversity over temperature\n{num_seeds(lines)}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def to_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Lines as JSON data: every value of every seed, mean and deviation."""
    return [{"source": line.label, "temperature": line.temperature, **({"verdicts": line.verdicts} if line.verdicts else {}),
             "figures": {key: {"mean": figures.mean, "deviation": figures.deviation, "values": list(figures.values)}
                         for key, figures in line.figures.items()}} for line in lines]


def write_report(directory: Path, text: str, data: dict[str, Any]) -> None:
    """report.md and report.json: the same figures, for people and for programs."""
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / "report.md", (text + "\n").encode())
    write_json(directory / "report.json", data)


def write_curves(directory: Path, lines: Sequence[Line], hparams: dict[str, dict[str, Any]]) -> None:
    """curve.png, and under tensorboard/ the picture, every figure against 100 · T under one tag a quantity, and hparams.

    hparams: the options of each label, flat; shown with the label's figures at its temperature nearest to 1.
    """
    events = directory / "tensorboard"  # A directory of its own, so that nobody else's events are swept.
    shutil.rmtree(events, ignore_errors=True)
    figure = picture(lines)
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    atomic_write(directory / "curve.png", image.getvalue())
    with SummaryWriter(str(events)) as writer:
        writer.add_figure("evaluation/curve", figure)
    by_label: dict[str, list[Line]] = {}
    for line in lines:
        by_label.setdefault(line.label, []).append(line)
    for label, own in by_label.items():
        with SummaryWriter(str(events / re.sub(r"[^\w.]+", "-", label).strip("-."))) as writer:
            for line in own:
                step = 100 if line.temperature is None else round(100 * line.temperature)
                for key, figures in line.figures.items():
                    writer.add_scalar(f"evaluation/{key}", figures.mean, step)
            if label in hparams:
                nearest = min(own, key=lambda line: abs((line.temperature or 0.0) - 1))
                write_hparams(writer, hparams[label])
                for key, figures in nearest.figures.items():
                    if math.isfinite(figures.mean):
                        writer.add_scalar(f"hparam/{key}", figures.mean)


def flat_options(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as TensorBoard's hparams take it: one level, words and numbers."""
    flat: dict[str, Any] = {"family": config["family"]}
    for section in ("corpus", "training", "model"):
        for key, value in config[section].items():
            flat[key] = value if isinstance(value, (int, float, str, bool)) else json.dumps(value)
    return flat
