"""Tables and reports: rows of values → lines over all seeds → Markdown tables → report.md and report.json."""

import itertools
import json
import math
import re
import statistics
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from outlines.checkpoint import atomic_write
from train.config import read_toml
from train.evaluation.sampling import REAL_TEXT, Row
from train.runtime.run_directory import write_json

WIDTH = 120  # characters of a line on a terminal


class Column(NamedTuple):
    """One column of a table: the key of a value, and how this value is printed."""

    key: str
    title: str
    decimals: int
    legend: str = ""  # one short phrase; empty if the title explains itself


_DATA = read_toml(str(Path(__file__).with_name("tables.toml")))
COLUMNS = {key: Column(key, *values) for key, values in _DATA["columns"].items()}
TABLES = {name: [COLUMNS[key] for key in keys] for name, keys in _DATA["tables"].items()}
TABLES |= {name: [Column(key, *values) for key, values in own.items()] for name, own in _DATA["own"].items()}


@dataclass(frozen=True)
class Figures:
    """The values of one quantity, one per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation, "values": list(self.values)}

    def __format__(self, decimals: str) -> str:
        mean = f"{self.mean:.{decimals}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{decimals}f}"


@dataclass(frozen=True)
class Line:
    """A line of a table: a source of sentences at a temperature (None: no temperature), with the values of all seeds."""

    label: str
    temperature: float | None
    figures: dict[str, Figures]
    verdicts: tuple[str, ...] = ()  # one per seed
    samples: tuple[str, ...] = ()  # sentences of the first seed

    def cell(self, key: str, decimals: int) -> str:
        """Return the text for a key: the verdicts for `verdict`, otherwise a value; empty if there is none."""
        if key == "verdict":
            return counted(self.verdicts)
        return f"{self.figures[key]:{decimals}}" if key in self.figures else ""


def counted(verdicts: Sequence[str]) -> str:
    """Return the verdict of one seed, or each verdict with its number of seeds: "2 × used, 1 × too weak"."""
    return ", ".join(verdict if len(verdicts) == 1 else f"{num} × {verdict}"
                     for verdict, num in Counter(verdicts).most_common())


def over_seeds(rows: Iterable[tuple[str, Row]]) -> list[Line]:
    """Return a line for each label and temperature, with the rows of all seeds. Keeps only values that every seed has."""
    grouped: dict[tuple[str, float | None], list[Row]] = defaultdict(list)
    for label, row in rows:
        grouped[label, row.get("temperature")].append(row)
    lines = []
    for (label, temperature), members in grouped.items():
        keys = [key for key, value in members[0].items() if key != "temperature" and isinstance(value, (int, float))
                and all(key in row for row in members)]
        lines.append(Line(label, temperature, {key: Figures(tuple(float(row[key]) for row in members)) for key in keys},
                          tuple(row["verdict"] for row in members if "verdict" in row),
                          tuple(members[0].get("samples", ()))))
    return lines


def table(lines: Sequence[Line], columns: str | Sequence[Column], width: int | None = None, with_legend: bool = True) -> str:
    """Return a Markdown table with a legend. Columns without values or beyond `width` are left out.

    columns: the name of a table in tables.toml, or the columns themselves.
    """
    temperatures: dict[float | None, str] = {None: "", 0: "greedy"}
    grid = [["source", *(line.label for line in lines)]]  # one list per column
    if any(line.temperature is not None for line in lines):
        grid.append(["T", *(temperatures.get(line.temperature, f"{line.temperature or 0:g}") for line in lines)])
    legends: list[str] = []
    room = math.inf if width is None else width - sum(max(map(len, cells)) + 3 for cells in grid) - 1
    num_fixed = len(grid)
    for column in TABLES[columns] if isinstance(columns, str) else columns:
        cells = [column.title, *(line.cell(column.key, column.decimals) for line in lines)]
        if any(cells[1:]):
            room -= max(map(len, cells)) + 3
            if room < 0 and len(grid) > num_fixed:
                break
            grid.append(cells)
            legends += [f"{column.title}: {column.legend}"] if column.legend and with_legend else []
    sizes = [max(map(len, cells)) for cells in grid]
    rendered = [f"| {' | '.join(map(str.ljust, row, sizes))} |" for row in zip(*grid, strict=True)]
    text = "\n".join([rendered[0], f"|{'|'.join('-' * (size + 2) for size in sizes)}|", *rendered[1:]])
    legend = "; ".join(legends)
    return f"{text}\n\n{wrap(legend[0].upper() + legend[1:] + '.', width)}" if legend else text


def wrap(text: str, width: int | None) -> str:
    """Return a paragraph in lines of at most `width` characters; None: return it unchanged."""
    return text if width is None else textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def rows_section(rows: Sequence[tuple[str, Row]], rebuilt: Sequence[tuple[str, Row]], width: int | None = None) -> str:
    """Return the head of a quick report and the table of sources.

    rows: label and row of each source, for every seed. rebuilt: label and row of each reconstruction, for every seed.
    """
    lines = over_seeds(rows)
    num = rebuilt[0][1]["num_sentences"]
    head = f"Test split, {num} sentences, {num_seeds(lines)}. NLL and KL in nats; T = temperature."
    return f"{head}\n\n{table(lines, 'quick', width)}" if lines else head


def samples_section(lines: Sequence[Line]) -> str:
    """Return the samples of all sources side by side, one table per temperature. Real text is in every table."""
    shown = [line for line in lines if line.samples]
    parts = ["## Samples", "The first sentences of each source, in their order."]
    for temperature in sorted({line.temperature for line in shown if line.temperature is not None}):
        columns = [line for line in shown if line.temperature in (None, temperature)]
        rows = itertools.zip_longest(*(map(_as_cell, line.samples) for line in columns), fillvalue="")
        grid = [["", *(line.label for line in columns)], ["---"] * (1 + len(columns)),
                *([str(number), *row] for number, row in enumerate(rows, start=1))]
        parts += [f"T = {temperature:g}" if temperature else "Greedy",
                  "\n".join(f"| {' | '.join(cells)} |" for cells in grid)]
    return "\n\n".join(parts)


def _as_cell(sentence: str) -> str:
    """Return a sentence as the text of one cell of a Markdown table."""
    return re.sub(r"([\\`*_<|])", r"\\\1", " ".join(sentence.split()))


def reconstruction_section(rebuilt: Sequence[tuple[str, Row]], width: int | None = None) -> str:
    """Return the tables of held-out sentences: nll, reconstruction, use of the vector. width None: the full form."""
    lines = over_seeds(rebuilt)
    with_vector = [line for line in lines if line.verdicts]
    if width is not None:
        parts = [table(lines, "closing", width, with_legend=False)]
    else:
        parts = ["Held-out sentences", table(lines, "reconstruction")]
        if with_vector:
            parts += ["Is the vector used? (docs/posterior-collapse.md)", table(with_vector, "vector")]
    for line in with_vector:
        rows = [row for label, row in rebuilt if label == line.label]
        if len(rows) == 1:
            parts.append(wrap(f"{line.label}: {rows[0]['words']}", width))
            if width is None:
                parts.append("\n".join(f"- {point}" for point in rows[0].get("details", [])))
    if any(row.get("unspaced") for _, row in rebuilt):
        parts.append("The text has no spaces between words, so every character counts as a word in all figures.")
    return "\n\n".join(parts)


def num_seeds(lines: Sequence[Line]) -> str:
    """Return the number of seeds of table lines as a phrase, such as "one seed"."""
    counts = {len(figures.values) for line in lines if line.label != REAL_TEXT for figures in line.figures.values()}
    most = max(counts, default=1)
    if most == 1:
        return "one seed"
    fewer = "" if len(counts) == 1 else ", fewer in some rows, one in rows without a deviation"
    return f"mean ± standard deviation over {most} seeds{fewer}"


def to_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return table lines as JSON data: the values of every seed, mean and deviation."""
    return [{"source": line.label, "temperature": line.temperature, **({"verdicts": line.verdicts} if line.verdicts else {}),
             **({"samples": line.samples} if line.samples else {}),
             "figures": {key: figures.to_json() for key, figures in line.figures.items()}} for line in lines]


def write_report(directory: Path, text: str, data: dict[str, Any]) -> None:
    """Write report.md (`text`, for people) and report.json (`data`, for programs)."""
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / "report.md", (text + "\n").encode())
    write_json(directory / "report.json", data)


def write_group(directory: Path, text: str, runs: Sequence[Path], rows: Sequence[tuple[str, Row]],
                rebuilt: Sequence[tuple[str, Row]]) -> None:
    """Write the report of several runs. rows, rebuilt: see `rows_section`."""
    write_report(directory, text, {"runs": list(map(str, runs)), "rows": to_json(over_seeds(rows)),
                                   "reconstruction": to_json(over_seeds(rebuilt))})


def flat_options(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as TensorBoard's hparams need it: not nested, only texts and numbers as values."""
    options = {**config["corpus"], **config["training"], **config["model"]}
    return {"family": config["family"], **{key: value if isinstance(value, (int, float, str)) else json.dumps(value)
                                           for key, value in options.items()}}
