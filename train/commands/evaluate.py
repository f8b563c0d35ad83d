"""`python -m train evaluate RUN…`: the full evaluation of finished runs on one corpus, side by side.

Runs that differ in their seed alone are one line of the tables, with mean and standard deviation. Every measured row is
kept in its run (evaluation.json), so an evaluation that was stopped goes on where it was, and nothing is measured twice.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlines.checkpoint import MANIFEST, sha256_file
from outlines.encoders import load_encoder
from outlines.errors import OutlinesError
from outlines.inference.rejection import MAX_MEAN_DRAWS
from outlines.models.base import TextModel
from outlines.models.lm import LanguageModel
from train.commands.parsing import Parser, numbers
from train.config import RunConfig
from train.data import Dataset
from train.evaluation import report
from train.evaluation.figures import collapse_figures, diagnose_vector
from train.evaluation.yardstick import (
    FULL_DRAWS,
    REAL_OUTLINES,
    REAL_TEXT,
    Full,
    Row,
    Variant,
    Yardstick,
    draw,
    reconstruction,
    sources_of,
)
from train.runtime.run_directory import GROUP, read_group, read_json, runs_of, write_json
from train.runtime.signals import StopSignals
from train.session import Session, command_line, locked_run, run_config, train_run

VERSION = 3
"""Part of every row's key: raise it when a figure's definition changes, and kept rows are measured anew."""

DESCRIPTION = """\
Evaluate finished runs on the test split, with their controls, over temperature.

  python -m train evaluate runs/001-outlines-small runs/002-lm-small
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="finished runs on one corpus; runs that differ in their "
                        "seed alone are reported together, as mean ± standard deviation")
    parser.add_argument("--num-samples", type=int, default=10000, metavar="INT", help="sentences that forward and reverse "
                        "nll are taken on; other figures compare as many as the test split has (default: 10000)")
    parser.add_argument("--temperatures", default="0,0.5,0.7,0.85,1,1.2", metavar="LIST",
                        help="temperatures, 0 for greedy, with commas between (default: 0,0.5,0.7,0.85,1,1.2)")
    parser.add_argument("--sources", default="", metavar="LIST", help="sources to measure, of 'real outlines' and those of "
                        "the families, with commas between (default: all)")
    parser.add_argument("--noise-scales", default="1", metavar="LIST", help="factors on the noise that vectors are made "
                        "from, with commas between; sources without noise are measured once (default: 1)")
    parser.add_argument("--rejection", default="", metavar="LIST", help="more rows of every run with a critic: with so many "
                        "vectors drawn, on average, for each that it keeps (default: none)")
    parser.add_argument("--guidance", default="", metavar="LIST", help="more rows of every run trained with "
                        "--outline-dropout: its outlines weigh so much, 1 as in the other rows, 0 nothing (default: none)")
    parser.add_argument("--reverse-steps", type=int, default=800, metavar="INT",
                        help="optimiser steps of a language model that learns samples (default: 800)")
    parser.add_argument("--encoder", default="minilm", metavar="NAME", help="frozen encoder that turns the generated text "
                        "into outlines again: minilm, st:NAME_OR_DIRECTORY, recurrent:DIRECTORY, or none (default: minilm)")
    parser.add_argument("--out", metavar="DIR", help="where the report goes (default: RUN/evaluation, or evaluation beside "
                        "the first of several)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


@dataclass(frozen=True)
class Run:
    """A finished run, loaded."""

    directory: Path
    config: RunConfig
    model: TextModel
    data: Dataset


def parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser("python -m train evaluate", DESCRIPTION)
    add_arguments(parser)
    return parser


def run(arguments: Sequence[str], signals: StopSignals) -> None:
    """Evaluate what the arguments ask for and print the report. Raises OutlinesError."""
    print(evaluate(parser().parse_args(arguments), signals))


def evaluate(options: argparse.Namespace, signals: StopSignals) -> str:
    """Measure the rows, write the report and return the text for the terminal. Raises OutlinesError."""
    temperatures = numbers("--temperatures", options.temperatures, 0, 100)
    noise_scales = numbers("--noise-scales", options.noise_scales, 0, 100)
    rejections = numbers("--rejection", options.rejection, 1, MAX_MEAN_DRAWS) if options.rejection else []
    guidances = numbers("--guidance", options.guidance, 0, 100) if options.guidance else []
    if options.num_samples < 20 or options.reverse_steps < 1:
        raise OutlinesError("--num-samples must be at least 20 and --reverse-steps at least 1")
    out = _out_directory(options)
    # A run that is named twice is one run.
    directories = list({run.resolve(): run for given in options.runs
                        for run in runs_of(Path(given))}.values())
    session = Session.of_run(directories[0], options.quiet, signals)
    runs = [_load(directory, session) for directory in directories]
    labels = label_runs(runs)
    # The run with outlines sets the yardstick, for it holds the real ones; the others have none to be compared.
    leader = next((run for run in runs if run.data.stores), runs[0])
    for run in runs:
        if run.data.corpus.fingerprint != leader.data.corpus.fingerprint:
            raise OutlinesError(f"{run.directory}: of another corpus or tokenizer than {leader.directory}: "
                                "only runs on one corpus can be compared")
    if guidances and not any(run.model.decoder.config.vector_dropout for run in runs):
        raise OutlinesError("--guidance has no effect: none of these runs was trained with --outline-dropout")
    known = {source for run in runs for source in sources_of(run.model, run.data)}
    wanted = {source.strip() for source in options.sources.split(",") if source.strip()} or known
    if unknown := sorted(wanted - known):
        raise OutlinesError(f"--sources: {unknown[0]!r} is not a source of these runs: "
                            f"choose from {', '.join(sorted(known))}")
    encoder = None if options.encoder == "none" else load_encoder(options.encoder, leader.data.device.type)
    full = Full(options.num_samples, options.reverse_steps, encoder)
    yardstick = Yardstick(leader.config, leader.data, session, full)
    labelled: list[tuple[str, Row]] = []
    rebuilt: list[tuple[str, Row]] = []
    for run in [leader, *(run for run in runs if run is not leader)]:
        with locked_run(run.directory, session):
            labelled += [(label_of(labels[run.directory], run.model.sources[0], row["source"]), row)
                         for row in _rows(run, run is leader, yardstick, temperatures, variants(
                             run, wanted, noise_scales, rejections, guidances))]
            rebuilt.append((labels[run.directory], _rebuilt(run, yardstick)))
    order = {label: index for index, label in enumerate(dict.fromkeys(label for label, _ in labelled))}
    lines = sorted(report.over_seeds(labelled), key=lambda line: (order[line.label], line.temperature or 0))
    against = next((labels[run.directory] for run in runs if run.model.family == LanguageModel.family), None)
    found = {evaluator: report.gaps(lines, against, evaluator) if against else {} for evaluator in report.EVALUATORS}
    settings = {"command": command_line(),
                "runs": [str(run.directory) for run in runs], "num_samples": options.num_samples,
                "num_compared": len(yardstick.references), "reverse_steps": options.reverse_steps,
                "encoder": None if encoder is None else encoder.name, "against": against}
    text = render(lines, rebuilt, found, settings)
    report.write_report(out, text, {
        "settings": settings, "rows": report.to_json(lines), "reconstruction": report.to_json(report.over_seeds(rebuilt)),
        **{f"gaps{evaluator}": {label: None if gap is None else {"mean": gap.mean, "deviation": gap.deviation,
                                                                 "values": list(gap.values)}
                                for label, gap in by_label.items()} for evaluator, by_label in found.items()}})
    hparams = {label: report.flat_options(run.config.to_json()) | {"seed": ",".join(
        str(other.config.training.seed) for other in runs if labels[other.directory] == label)}
        for run in runs for label in [labels[run.directory]]}
    report.write_curves(out, lines, hparams)
    return f"{text}\n\nwritten to {out}: report.md, report.json, curve.png; tensorboard --logdir {out / 'tensorboard'}"


def _out_directory(options: argparse.Namespace) -> Path:
    """Where the report goes; never where a run has its own report.json."""
    first = Path(options.runs[0])
    out = Path(options.out) if options.out else (first if len(options.runs) == 1 else first.parent) / "evaluation"
    if any((out / name).exists() for name in ("run.json", GROUP)) or (out.exists() and not out.is_dir()):
        raise OutlinesError(f"--out {out}: a run or a file is here: choose another directory")
    return out


def _load(directory: Path, session: Session) -> Run:
    config = run_config(directory)
    if not (directory / "model").is_dir():
        raise OutlinesError(f"{directory}: training has not finished: go on with `python -m train --resume {directory}`")
    model, data = train_run(directory, session)
    if not model.sources:
        raise OutlinesError(f"{directory}: the family {model.family} rebuilds sentences and has no samples to evaluate")
    return Run(directory, config, model.eval(), data)


def _alike(config: RunConfig) -> str:
    """What runs of one group share: everything but the seed."""
    unseeded = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=0))
    return json.dumps(unseeded.to_json(), sort_keys=True)


def label_runs(runs: Sequence[Run]) -> dict[Path, str]:
    """A name for each run: its family, or its directory where a family came with several configurations.

    Raises OutlinesError where two runs have the same configuration and seed: together they would pass for two seeds.
    """
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault(run.model.family, {}).setdefault(_alike(run.config), []).append(run)
    labels: dict[Path, str] = {}
    for family, alike in groups.items():
        names = [_name_of(members[0].directory) for members in alike.values()]
        for name, members in zip(names, alike.values(), strict=True):
            by_seed: dict[int, Run] = {}
            for run in members:
                if (twin := by_seed.setdefault(run.config.training.seed, run)) is not run:
                    raise OutlinesError(f"{run.directory}: the same configuration and seed as {twin.directory}: "
                                        "leave one of them out")
                labels[run.directory] = (family if len(alike) == 1 else name if names.count(name) == 1 else
                                         str(_home_of(members[0].directory)))
    return labels


def _home_of(directory: Path) -> Path:
    """The directory that a run's seeds share, or its own."""
    group = read_group(directory.parent)
    return directory.parent if group and group.kind == "seeds" else directory


def _name_of(directory: Path) -> str:
    return _home_of(directory.resolve()).name


def label_of(run_label: str, own: str, source: str) -> str:
    """The name of a source in a comparison; a family's own, however it is drawn from, goes by the run's."""
    if source == REAL_TEXT:
        return source
    return run_label + source[len(own):] if source.split(",")[0] == own else f"{run_label}: {source}"


def _kept(run: Run, basis: Sequence[Any], measured: Callable[[], Row]) -> Row:
    """What evaluation.json of a run keeps under `basis`, or what is measured now and then kept there."""
    file = run.directory / "evaluation.json"
    kept: dict[str, Row] = read_json(file) if file.exists() else {}
    key = hashlib.sha256(json.dumps([VERSION, sha256_file(run.directory / "model" / MANIFEST), run.data.corpus.fingerprint,
                                     *basis]).encode()).hexdigest()[:16]
    if key not in kept:
        kept[key] = measured()
        write_json(file, kept)
    return kept[key]


def variants(run: Run, sources: set[str], noise_scales: Sequence[float] = (1.0,), rejections: Sequence[float] = (),
             guidances: Sequence[float] = ()) -> list[Variant]:
    """What of a run is measured: its sources at every scale of the noise, its own source at every rejection, and all of
    these at every guidance too."""
    decoder = run.model.decoder.config
    found = [Variant(source, noise_scale) for source in sources_of(run.model, run.data) if source in sources
             for noise_scale in (noise_scales if decoder.vector_dim and source != REAL_OUTLINES else [1.0])]
    if run.model.has_critic:
        found += [Variant(run.model.sources[0], rejection=rejection) for rejection in rejections if rejection != 1]
    if decoder.vector_dropout:
        found += [variant._replace(guidance=guidance) for guidance in guidances if guidance != 1 for variant in tuple(found)]
    return found


def _rows(run: Run, with_real_text: bool, yardstick: Yardstick, temperatures: Sequence[float],
          measured: Sequence[Variant]) -> Iterator[Row]:
    """The rows of a run."""
    assert yardstick.full is not None
    encoder = yardstick.full.encoder
    basis = [_alike(yardstick.config), yardstick.full.num_samples, yardstick.full.reverse_steps,
             None if encoder is None else encoder.fingerprint]
    wanted: list[tuple[Variant, float | None]] = [(Variant(REAL_TEXT), None)] if with_real_text else []
    wanted += [(variant, temperature) for variant in measured for temperature in temperatures]
    for number, (variant, temperature) in enumerate(wanted, start=1):
        shown = str(variant) if temperature is None else f"{variant} at T = {temperature:g}"
        announced = f"{run.directory}: {shown} ({number} of {len(wanted)})"
        yield _kept(run, [*basis, str(variant), temperature], functools.partial(
            _measured, run, yardstick, variant, temperature, announced))


def _rebuilt(run: Run, yardstick: Yardstick) -> Row:
    num = yardstick.config.training.num_evaluation

    def measured() -> Row:
        row = reconstruction(run.model, run.data, num, FULL_DRAWS)
        diagnosis = diagnose_vector(run.model, run.data, num, run.directory, quick=False)
        return row if diagnosis is None else row | collapse_figures(diagnosis)

    return _kept(run, ["reconstruction", num, FULL_DRAWS], measured)


def _measured(run: Run, yardstick: Yardstick, variant: Variant, temperature: float | None,
              announced: str) -> Row:
    yardstick.session.reporter.line(announced)
    row: Row = {"source": str(variant), "temperature": temperature}
    if temperature is None:
        # Real text's own reverse nll: what a language model reaches that has learnt as many real training sentences.
        learnt = yardstick.data.text("train", yardstick.data.sample_rows("train", yardstick.num_samples, seed=2))
        return row | yardstick.measure(yardstick.real_text(), learnt)
    sentences = draw(run.model, run.data, variant, temperature, yardstick.num_samples, further=True)
    if variant.source == REAL_OUTLINES:
        row["num_held_out"] = min(yardstick.num_samples, run.data.num_rows("valid"))
    comparable = run.data.stores and (run.data.stores["test"].encoder_fingerprint ==
                                      yardstick.data.stores["test"].encoder_fingerprint)
    return row | yardstick.measure(sentences if comparable else dataclasses.replace(sentences, outlines=None, further=None))


def render(lines: Sequence[report.Line], rebuilt: Sequence[tuple[str, Row]],
           found: dict[str, dict[str, report.Figures | None]], settings: dict[str, Any]) -> str:
    """The report in Markdown. found: by evaluator, the gaps of each label."""
    held_out = min((line.figures["num_held_out"].mean for line in lines if "num_held_out" in line.figures),
                   default=settings["num_samples"])
    filled = "" if held_out == settings["num_samples"] else (f", those of real outlines from {held_out:.0f} held-out "
                                                             "outlines and then training ones")
    head = (f"Test split; {report.num_seeds(lines)}. Forward and reverse nll on {settings['num_samples']} samples{filled} "
            f"(rows with fewer say so in report.json), other figures on {settings['num_compared']}; nll in nats per token; "
            "forward nll by a GRU language model of another seed and by a modified Kneser-Ney 5-gram, both trained on the "
            f"real training text; reverse nll by the same two, trained on the samples (GRU: {settings['reverse_steps']} "
            "steps). BLEU and self-BLEU as in Texygen.")
    parts = [f"`{settings['command']}`", head, report.table(lines, report.MAIN_COLUMNS)]
    parts += [report.render_gaps(by_label, settings["against"], evaluator)
              for evaluator, by_label in found.items() if by_label]
    parts += ["BLEU against the test split, and self-BLEU:", report.table(lines, report.BLEU_COLUMNS)]
    if any(key in line.figures for line in lines for key in report.OUTLINE_COLUMNS):
        text = f"; text: the generated sentences encoded again by {settings['encoder']}" if settings["encoder"] else ""
        parts += [f"Outlines against those of the test split (k-NN precision and recall, k = 5; Fréchet distance, "
                  f"isotropically scaled; two-sample classifier accuracy, 0.5 = cannot tell){text}:",
                  report.table(lines, report.OUTLINE_COLUMNS)]
    parts.append(report.reconstruction_section(rebuilt))
    return "\n\n".join(parts)
