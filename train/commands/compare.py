"""`python -m train compare`: train several families on the same corpus and report them together.

A comparison is a directory of ordinary runs with a report, a plot of posterior collapse, and charts for TensorBoard.
"""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from outlines.checkpoint import atomic_write
from outlines.errors import OutlinesError, quoted
from outlines.models.registry import families
from train.commands.evaluate import label_of
from train.config import unknown_name
from train.evaluation import tables
from train.evaluation.curves import png
from train.evaluation.pictures import collapse_picture
from train.evaluation.sampling import REAL_TEXT, Row
from train.method import implied_families
from train.runtime.log import charts
from train.runtime.run_directory import read_json, read_lines, runs_of

COMPARE = "compare"
DEFAULT_FAMILIES = "outlines,lm,vae,vae-freebits"
LEADER = "outlines"  # its options are the options of a comparison; each other family uses the ones it has

LAYOUT = charts("outlines and VAE: collapse", "outlines and VAE: quality", "outlines and VAE: diversity")


def members_of(names: str, preset: str) -> dict[str, tuple[str, str]]:
    """Return the family and the preset of each run, by the name of the run's directory. Raises OutlinesError.

    names: comma-separated families, presets that imply a family, and fitted baselines, which have no run of their own.
    """
    models = families()
    generators = {name for name, model in models.items() if model.sources}
    presets = {name: family for name, family in implied_families().items() if family in generators}
    controls = {source for family in generators for source in models[family].sources[1:]}
    # Outlines first: the row of real text comes from the first run, and needs this family for its outline metrics.
    wanted = sorted((name.strip() for name in names.split(",")), key=lambda name: name != LEADER)
    if len(set(wanted)) < len(wanted):
        raise OutlinesError(f"--families {names!r} contains the same name twice. Leave one out.")
    for name in wanted:
        if name not in {*generators, *presets, *controls}:
            raise unknown_name("name in --families:", name, {*generators, *presets, *controls})
    runs = {name: (name, preset) if name in generators else (presets[name], f"{preset} {name}")
            for name in wanted if name not in controls}
    present = {source for family, _ in runs.values() for source in models[family].sources[1:]}
    if missing := sorted(controls & set(wanted) - present):
        owners = ", ".join(sorted(name for name in generators if missing[0] in models[name].sources))
        raise OutlinesError(f"--families {names!r}: {missing[0]} is a fitted baseline of {owners}. Add this family.")
    return runs


def report_comparison(directory: Path, members: Sequence[Path]) -> str:
    """Write report, collapse.png and TensorBoard's events. Return the text for the terminal. members: finished runs."""
    rows: list[tuple[str, Row]] = []
    rebuilt: list[tuple[str, Row]] = []
    dims: dict[str, tuple[list[float], list[float]]] = {}
    runs = {run: member for member in members for run in runs_of(member)}
    for run, member in runs.items():
        figures = read_json(run / "report.json")
        own = families()[figures["family"]].sources[0]
        rows += [(label_of(member.name, own, row["source"]), row) for row in figures["rows"]
                 if row["source"] != REAL_TEXT or member == members[0]]
        rebuilt.append((member.name, figures["reconstruction"]))
        if "test/kl" in figures["reconstruction"]:
            each = read_json(run / "collapse.json")["dims"]
            dims[str(run.relative_to(directory))] = [dim["signal"] for dim in each], [dim["noise"] for dim in each]

    def render(width: int | None = None) -> str:
        parts = [tables.rows_section(rows, rebuilt, width), tables.reconstruction_section(rebuilt, width)]
        return "\n\n".join([*parts, *([tables.samples_section(tables.over_seeds(rows))] if width is None else [])])

    picture = collapse_picture({str(run.relative_to(directory)): read_lines(run / "metrics.jsonl") for run in runs}, dims)
    atomic_write(directory / "collapse.png", png(picture))
    for stale in directory.glob("events.out.tfevents.*"):  # Not the events of the runs.
        stale.unlink()
    with SummaryWriter(str(directory)) as writer:
        writer.add_custom_scalars(LAYOUT)
        writer.add_figure("comparison/collapse", picture)
        writer.add_text("comparison/report", render())
    tables.write_group(directory, render(), list(runs), rows, rebuilt)
    return (f"{render(tables.WIDTH)}\n\nfull report: {directory / 'report.md'}; picture: {directory / 'collapse.png'}\n\n"
            f"next:\n  tensorboard --logdir {quoted(directory)}\n  python -m train evaluate {quoted(directory)}")
