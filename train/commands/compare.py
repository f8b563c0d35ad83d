"""`python -m train compare`: families side by side on one corpus, with one budget; by default outlines, the language
model, the plain VAE and one with a remedy.

A comparison is a directory of runs. Each is a run like any other, with figures under the same keys, so TensorBoard
overlays them with no set-up; the directory adds the charts that belong together, a report and a picture of the collapse.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from outlines.checkpoint import atomic_write
from outlines.errors import OutlinesError
from outlines.models.registry import families
from train.commands.evaluate import label_of
from train.config import SIZES, unknown_name
from train.evaluation import report
from train.evaluation.pictures import collapse_picture
from train.evaluation.yardstick import REAL_TEXT, Row
from train.method import all_methods, find_method
from train.runtime.run_directory import read_json, read_lines, runs_of

COMPARE = "compare"
LEADER, LATENT = "outlines", "vae"
"""The family whose options a comparison takes, every other family those that it shares; the family with remedies."""
DEFAULT_REMEDY = ("vae-freebits",)

_QUALITY = {"nll per token, of sentences given no vector": "valid/nll_per_token",
            "negative ELBO per token": "valid/negative_elbo_per_token",
            "reconstruction nll per token, each sentence given its own vector": "valid/reconstruction_nll_per_token",
            "forward nll per token against 100 T": "evaluation/forward_nll_per_token"}
_COLLAPSE = {"KL": "valid/kl", "KL weight": "train/kl_weight", "mutual information": "valid/mutual_information",
             "active units": "valid/active_units", "latent gap per token": "valid/latent_gap_per_token",
             "drift": "valid/drift"}
_DIVERSITY = {"distinct-2 against 100 T": "evaluation/distinct_2", "self-BLEU-4 against 100 T": "evaluation/self_bleu_4",
              "unique against 100 T": "evaluation/unique", "copied against 100 T": "evaluation/copied"}
LAYOUT = {f"outlines against VAE: {name}": {title: ["Multiline", [f"{tag}$"]] for title, tag in charts.items()}
          for name, charts in (("collapse", _COLLAPSE), ("quality", _QUALITY), ("diversity", _DIVERSITY))}
"""TensorBoard's custom scalars: categories → charts → tags, as patterns that match the whole tag."""


def remedies() -> list[str]:
    """The presets that set a remedy."""
    return sorted(set(find_method(LATENT).presets) - {*SIZES, LATENT})


def compared(preset: str, remedy: Sequence[str] | None, names: str | None) -> dict[str, tuple[str, str]]:
    """Family and preset of each run of a comparison, by the name of its directory.

    names: what is to be compared, with commas between, in the words of `members_of`; None: what stands on top of this file.
    """
    if names is not None:
        if remedy:
            raise OutlinesError("--remedy has no effect with --families: name its preset there")
        return members_of(names, preset)
    remedy = remedy or DEFAULT_REMEDY
    remedied = "-".join([LATENT, *(name.removeprefix(f"{LATENT}-") for name in remedy)])
    return {**{family: (family, preset) for family in (LEADER, "lm", LATENT)},
            remedied: (LATENT, " ".join([preset, *remedy]))}


def members_of(names: str, preset: str) -> dict[str, tuple[str, str]]:
    """Families, and presets that stand for a family with these options, by name; both with `preset`, which says the size.

    A control (gaussian, mixture) is no run: it comes with a family that it is a source of, which has to be named too.
    """
    methods, models = all_methods(), families()
    generators = {name for name, model in models.items() if model.sources}
    variants = {name: family for family in generators for name in methods[family].presets if name not in SIZES}
    controls = {source for family in generators for source in models[family].sources[1:]}
    # Outlines first, for the first run's report is where real text's row is taken from, and theirs has its outlines.
    wanted = sorted((name.strip() for name in names.split(",")), key=lambda name: name != LEADER)
    if len(set(wanted)) < len(wanted):
        raise OutlinesError(f"--families {names!r}: the same name twice")
    for name in wanted:
        if name not in {*generators, *variants, *controls}:
            raise unknown_name("name in --families:", name, {*generators, *variants, *controls})
    runs = {name: (name, preset) if name in generators else (variants[name], f"{preset} {name}")
            for name in wanted if name not in controls}
    brought = {source for family, _ in runs.values() for source in models[family].sources[1:]}
    if missing := sorted(controls & set(wanted) - brought):
        raise OutlinesError(f"--families {names!r}: {missing[0]} is a control of "
                            f"{', '.join(sorted(name for name in generators if missing[0] in models[name].sources))}, "
                            "and comes with its run: name that too")
    return runs


def report_comparison(directory: Path, members: Sequence[Path]) -> str:
    """Put finished runs side by side: report, collapse.png, TensorBoard; returns what the terminal shows."""
    rows: list[tuple[str, Row]] = []
    rebuilt: list[tuple[str, Row]] = []
    histories: dict[str, list[dict[str, Any]]] = {}
    dims: dict[str, tuple[list[float], list[float]]] = {}
    for member in members:
        for run in runs_of(member):
            figures = read_json(run / "report.json")
            own = families()[figures["family"]].sources[0]
            # Real text comes with the first member, which alone can have its outlines.
            rows += [(label_of(member.name, own, row["source"]), row) for row in figures["rows"]
                     if row["source"] != REAL_TEXT or member == members[0]]
            rebuilt.append((member.name, figures["reconstruction"]))
            name = str(run.relative_to(directory))
            histories[name] = read_lines(run / "metrics.jsonl")
            if "test/kl" in figures["reconstruction"]:
                each = read_json(run / "collapse.json")["dims"]
                dims[name] = [dim["signal"] for dim in each], [dim["noise"] for dim in each]
    lines = report.over_seeds(rows)
    head = (f"test split, {rebuilt[0][1]['num_sentences']} sentences, {report.num_seeds(lines)}; nll in nats, forward nll "
            "by a language model of another seed, T = temperature:")
    text = "\n\n".join([head, report.table(lines, report.QUICK_COLUMNS), report.reconstruction_section(rebuilt)])
    picture, image = collapse_picture(histories, dims), io.BytesIO()
    picture.savefig(image, dpi=120, format="png")
    atomic_write(directory / "collapse.png", image.getvalue())
    for stale in directory.glob("events.out.tfevents.*"):  # Its own; those of the runs are theirs.
        stale.unlink()
    with SummaryWriter(str(directory)) as writer:
        writer.add_custom_scalars(LAYOUT)
        writer.add_figure("comparison/collapse", picture)
        writer.add_text("comparison/report", text)
    report.write_report(directory, text, {"runs": [str(run) for member in members for run in runs_of(member)],
                                          "rows": report.to_json(lines),
                                          "reconstruction": report.to_json(report.over_seeds(rebuilt))})
    return (f"{text}\n\nwritten to {directory}: report.md, report.json, collapse.png\n\nnext:\n"
            f"  tensorboard --logdir {directory}\n  python -m train evaluate {directory}")
