"""`python -m train evaluate RUN…`: evaluate finished runs on the same corpus in one report.

Runs that differ only in their seed share a row. Each run stores its rows in evaluation.json, so nothing is measured twice.
"""

import argparse
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outlines.causal_lm import is_causal_lm
from outlines.checkpoint import MANIFEST, sha256_file, short_hash
from outlines.corpus.reading import CorpusFiles, ReadingReport, read_records
from outlines.encoders import load_encoder, unread_notes
from outlines.errors import OutlinesError, quoted
from outlines.inference.rejection import MAX_MEAN_DRAWS
from outlines.models.base import TextModel
from outlines.models.lm import LanguageModel
from train.commands.judges import full_judges
from train.commands.parsing import Parser, add_session, numbers
from train.config import RunConfig
from train.data import Dataset
from train.evaluation import tables
from train.evaluation.curves import JUDGES, gaps, render_gaps, write_curves
from train.evaluation.figures import collapse_figures, diagnose_vector
from train.evaluation.pretrained import NUM_JUDGED, PretrainedLM
from train.evaluation.sampling import (
    FULL_DRAWS,
    REAL_OUTLINES,
    REAL_TEXT,
    Row,
    Sentences,
    Variant,
    draw,
    reconstruction,
    sources_of,
)
from train.evaluation.yardstick import LEAST_TWO_SAMPLE, FeatureEncoder, Yardstick
from train.runtime.run_directory import read_group, read_json, runs_of, write_json
from train.runtime.signals import StopSignals
from train.session import Session, check_out, command_line, finished_run, locked_run, run_config

MOST = 10_000_000  # largest number of samples, and of steps of a reverse judge
VERSION = 7  # Part of every row's key. Raise it when the definition of a metric changes, so that rows are measured again.

DESCRIPTION = """\
Evaluate finished runs and their fitted baselines on the test split, at several temperatures.

  python -m train evaluate runs/001-outlines-small runs/002-lm-small
"""


def parser() -> Parser:
    parser = Parser("python -m train evaluate", DESCRIPTION)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="finished runs on the same corpus; runs that differ only in the seed share a "
                                               "row: mean ± standard deviation")
    add("--temperatures", default="0,0.5,0.7,0.85,1,1.2", metavar="LIST",
        help="comma-separated temperatures, 0 for greedy (default: 0,0.5,0.7,0.85,1,1.2)")
    add("--texts", nargs="+", default=[], metavar="FILE",
        help="files of sentences, such as another system's samples; each file adds a row")
    add("--num-samples", type=int, default=10000, metavar="INT",
        help="samples for forward and reverse NLL; other figures use at most the size of the test split (default: 10000)")
    add("--sources", default="", metavar="LIST", help="comma-separated sources to measure, such as 'real outlines,lm' "
                                                      "(default: all)")
    add("--noise-scales", default="1", metavar="LIST", help="comma-separated factors on the generator's noise (default: 1)")
    add("--rejection", default="", metavar="LIST", help="add rows with rejection sampling, for runs with a critic: "
        "comma-separated average numbers of draws per accepted vector (default: none)")
    add("--best-of", default="", metavar="LIST", help="add rows with best-of-N sampling: comma-separated values of N "
        "(default: none)")
    add("--guidance", default="", metavar="LIST", help="add rows with guidance, for runs with --outline-dropout: "
        "comma-separated strengths; 1 is no guidance (default: none)")
    add("--strengths", default="", metavar="LIST", help="add rows with other outline strengths, for runs with "
        "--min-strength below 1: comma-separated, from 0 to 1 (default: none)")
    add("--reverse-steps", type=int, default=800, metavar="INT",
        help="optimiser steps of each language model that is trained on samples, for reverse NLL; 0 skips reverse NLL, "
             "the slowest part (default: 800)")
    add("--encoder", default="minilm", metavar="NAME", help="frozen encoder of the generated text, for the columns "
        "'text: ...': minilm, st:NAME_OR_DIRECTORY, recurrent:DIRECTORY, or none (default: minilm)")
    add("--mauve-features", metavar="NAME", help="encoder for MAUVE: any value of --encoder, smollm2, or "
        "hf:NAME_OR_DIRECTORY (default: the value of --encoder)")
    add("--judge", metavar="NAME", help="pretrained language model that also scores the samples: smollm2, or "
        "hf:NAME_OR_DIRECTORY, such as hf:openai-community/gpt2-large (default: none)")
    add("--out", metavar="DIR", help="directory of the report (default: RUN/evaluation; for several runs: "
        "evaluation, next to the first run)")
    add_session(parser)
    return parser


@dataclass(frozen=True)
class Run:
    """A finished run with its model and dataset."""

    directory: Path
    config: RunConfig
    model: TextModel
    data: Dataset


@dataclass(frozen=True)
class Grid:
    """The settings in which sentences are sampled, from the options with the same names."""

    temperatures: Sequence[float]
    noise_scales: Sequence[float]
    rejections: Sequence[float]
    best_ofs: Sequence[float]
    guidances: Sequence[float]
    strengths: Sequence[float]


def grid_of(options: argparse.Namespace) -> Grid:
    """Return the settings that the command line lists. Raises OutlinesError for numbers that are not allowed."""
    def listed(flag: str, text: str, low: float, high: float) -> Sequence[float]:
        return numbers(flag, text, low, high) if text else []

    for flag, value, least in (("--num-samples", options.num_samples, 20), ("--reverse-steps", options.reverse_steps, 0)):
        if not least <= value <= MOST:
            raise OutlinesError(f"{flag} must be from {least} to {MOST:,}, not {value}.")
    best_ofs = listed("--best-of", options.best_of, 1, 1024)
    if fractions := [number for number in best_ofs if number != int(number)]:
        raise OutlinesError(f"--best-of {fractions[0]:g} is not a whole number. Use whole numbers, such as 4.")
    return Grid(temperatures=numbers("--temperatures", options.temperatures, 0, 100),
                noise_scales=numbers("--noise-scales", options.noise_scales, 0, 100),
                rejections=listed("--rejection", options.rejection, 1, MAX_MEAN_DRAWS), best_ofs=best_ofs,
                guidances=listed("--guidance", options.guidance, 0, 100),
                strengths=listed("--strengths", options.strengths, 0, 1))


def run(arguments: Sequence[str], signals: StopSignals) -> None:
    """Measure the rows, write the report and print the text for the terminal. Raises OutlinesError."""
    options = parser().parse_args(arguments)
    grid = grid_of(options)
    first = Path(options.runs[0])
    out = Path(options.out) if options.out else (first if len(options.runs) == 1 else first.parent) / "evaluation"
    check_out(out)
    directories = list({run.resolve(): run for given in options.runs for run in runs_of(Path(given))}.values())
    session = Session.of_run(directories[0], options.quiet, signals, options.device)
    runs = [Run(directory, run_config(directory), *finished_run(directory, session)) for directory in directories]
    labels = label_runs(runs)
    # The leader is the first run with outlines, or else the first run: the yardstick needs real outlines if there are any.
    leader = next((run for run in runs if run.data.stores), runs[0])
    wanted = _check(runs, leader, options)
    encoder = None if options.encoder == "none" else load_encoder(options.encoder, leader.data.device.type)
    same = options.mauve_features in (None, options.encoder)
    features = encoder if same else _features(options.mauve_features, leader.data.device)
    pretrained = PretrainedLM(options.judge, leader.data.device) if options.judge else None
    judges = full_judges(leader.config, leader.data, session, options.reverse_steps, pretrained)
    yardstick = Yardstick(leader.config, leader.data, judges, options.num_samples, encoder, features)
    for note in unread_notes(encoder, yardstick.references, yardstick.encoded_references.numpy()) if encoder else ():
        session.reporter.warning(note)
    basis = [_alike(leader.config), options.num_samples, options.reverse_steps,
             *(found.fingerprint if found else None for found in (encoder, features, pretrained))]
    labelled: list[tuple[str, Row]] = []
    rebuilt: list[tuple[str, Row]] = []
    cases: dict[Path, list[tuple[Variant, float | None]]] = {run.directory: [
        *([(Variant(REAL_TEXT), None)] if run is leader else []),
        *itertools.product(variants(run, wanted, grid), grid.temperatures)] for run in runs}
    texts = {file: read_text(file, leader.data, options.num_samples) for file in options.texts}
    number, total = itertools.count(1), sum(map(len, cases.values())) + len(texts)
    for run in [leader, *(run for run in runs if run is not leader)]:
        with locked_run(run.directory, session):
            for variant, temperature in cases[run.directory]:
                measure = functools.partial(_measured, run, yardstick, session, variant, temperature, (next(number), total))
                row = _kept(run, [*basis, str(variant), temperature], measure)
                labelled.append((label_of(labels[run.directory], run.model.sources[0], row["source"]), row))
            rebuilt.append((labels[run.directory], _rebuilt(run, leader.config.training.num_evaluation)))
    for name, sentences in texts.items():
        session.reporter.step(name, next(number), total)
        with locked_run(leader.directory, session):
            row = _kept(leader, [*basis, sentences], functools.partial(yardstick.measure, Sentences(sentences)))
        labelled.append((name, {"source": name, "temperature": None} | row))
    order = {label: index for index, label in enumerate(dict.fromkeys(label for label, _ in labelled))}
    lines = sorted(tables.over_seeds(labelled), key=lambda line: (order[line.label], line.temperature or 0))
    against = next((labels[run.directory] for run in runs if run.model.family == LanguageModel.family), None)
    found = {judge: gaps(lines, against, judge) if against else {} for judge in JUDGES}
    settings = {"command": command_line(), "runs": [str(run.directory) for run in runs], "num_samples": options.num_samples,
                "num_compared": len(yardstick.references), "reverse_steps": options.reverse_steps,
                **{name: found and found.name for name, found in (
                    ("encoder", encoder), ("mauve_features", features), ("judge", pretrained))}, "against": against}
    text = render(lines, rebuilt, found, settings)
    tables.write_report(out, f"{text}\n\n{tables.samples_section(lines)}", {
        "settings": settings, "rows": tables.to_json(lines), "reconstruction": tables.to_json(tables.over_seeds(rebuilt)),
        **{f"gaps{judge}": {label: gap and gap.to_json() for label, gap in by_label.items()}
           for judge, by_label in found.items()}})
    write_curves(out, lines)
    written = ", ".join(file for file in ("report.md", "report.json", "curve.png") if (out / file).exists())
    print(f"{text}\n\nwritten to {out}: {written}\nnext:\n"
          f"  tensorboard --logdir {quoted(out / 'tensorboard')}")


def _features(name: str, device: torch.device) -> FeatureEncoder:
    """Return the encoder with this name: a sentence encoder or a pretrained language model. Raises OutlinesError."""
    return PretrainedLM(name, device) if is_causal_lm(name) else load_encoder(name, device.type)


def _check(runs: Sequence[Run], leader: Run, options: argparse.Namespace) -> set[str]:
    """Return the sources to measure. Raises OutlinesError if the runs or the options do not fit together."""
    for run in runs:
        if not run.model.sources:
            raise OutlinesError(f"{run.directory}: {run.model.family!r} models only reconstruct sentences, so there are no "
                                "samples to evaluate. Leave this run out.")
        if run.data.corpus.fingerprint != leader.data.corpus.fingerprint:
            raise OutlinesError(f"{run.directory} and {leader.directory} have different corpora or tokenizers. "
                                "Evaluate only runs on the same corpus together.")
    if options.rejection and not any(run.model.has_critic for run in runs):
        raise OutlinesError("--rejection has no effect: no run has a critic. Leave it out.")
    if options.noise_scales != "1" and not any(run.model.decoder.config.vector_dim for run in runs):
        raise OutlinesError("--noise-scales has no effect: no run has a decoder that reads a vector. Leave it out.")
    if options.guidance and not any(run.model.decoder.config.vector_dropout for run in runs):
        raise OutlinesError("--guidance has no effect: no run was trained with --outline-dropout above 0. Leave it out.")
    if options.strengths and not any(run.model.decoder.config.min_strength < 1 for run in runs):
        raise OutlinesError("--strengths has no effect: no run was trained with --min-strength below 1. Leave it out.")
    known = {source for run in runs for source in sources_of(run.model, run.data)}
    wanted = {source.strip() for source in options.sources.split(",") if source.strip()} or known
    if unknown := sorted(wanted - known):
        raise OutlinesError(f"--sources: {unknown[0]!r} is not a source of these runs. Choose from "
                            f"{', '.join(sorted(known))}.")
    return wanted


def read_text(path: str, data: Dataset, num: int) -> list[str]:
    """Return the first `num` sentences of a file, encoded and decoded by the corpus's tokenizer. Raises OutlinesError."""
    files, report = CorpusFiles(), ReadingReport()
    sentences = [record.fields[0] for record in itertools.islice(read_records(files, [path], ["text"], report), num)]
    report.check(files.max_rejected)
    if len(sentences) < LEAST_TWO_SAMPLE:
        raise OutlinesError(f"{path}: only {len(sentences)} sentences. Use a file with at least {LEAST_TWO_SAMPLE}.")
    return data.tokenizer.lines(data.tokenizer.encode(sentences))


def _alike(config: RunConfig) -> str:
    """Return the configuration without the seed, as text. It is equal for runs that differ only in the seed."""
    unseeded = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=0))
    return json.dumps(unseeded.to_json(), sort_keys=True)


def label_runs(runs: Sequence[Run]) -> dict[Path, str]:
    """Return a label for each run: its family or, if runs of this family have several configurations, its directory.

    Raises OutlinesError for two runs with the same configuration and seed.
    """
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        twins = groups.setdefault(run.model.family, {}).setdefault(_alike(run.config), [])
        for twin in twins:
            if twin.config.training.seed == run.config.training.seed:
                raise OutlinesError(f"{run.directory} has the same configuration and seed as {twin.directory}. "
                                    "Leave one of them out.")
        twins.append(run)
    labels: dict[Path, str] = {}
    for family, alike in groups.items():
        homes = [_home_of(members[0].directory) for members in alike.values()]
        names = [_home_of(members[0].directory.resolve()).name for members in alike.values()]
        for home, name, members in zip(homes, names, alike.values(), strict=True):
            label = family if len(alike) == 1 else name if names.count(name) == 1 else str(home)
            labels |= {run.directory: label for run in members}
    return labels


def _home_of(directory: Path) -> Path:
    """Return the parent directory if it is a group of seeds, otherwise the directory of the run itself."""
    group = read_group(directory.parent)
    return directory.parent if group and group.kind == "seeds" else directory


def label_of(run_label: str, own: str, source: str) -> str:
    """Return the name of a source in a report: its run's label, then the source unless it is `own`, the family's default."""
    if source == REAL_TEXT:
        return source
    return run_label + source[len(own):] if source.split(",")[0] == own else f"{run_label}: {source}"


def variants(run: Run, sources: set[str], grid: Grid) -> list[Variant]:
    """Return the variants of a run to measure.

    Each source with noise is measured at every noise scale. The family's own source is also measured with rejection, if the
    model has a critic, and with best-of-N sampling. Then all these variants are added with guidance and at other strengths,
    if the decoder supports it.
    """
    decoder = run.model.decoder.config
    found = [Variant(source, noise_scale) for source in sources_of(run.model, run.data) if source in sources
             for noise_scale in (grid.noise_scales if decoder.vector_dim and source != REAL_OUTLINES else [1.0])]
    own = [source for source in run.model.sources[:1] if source in sources]
    if run.model.has_critic:
        found += [Variant(source, rejection=rejection) for source in own for rejection in grid.rejections if rejection != 1]
    found += [Variant(source, best_of=int(best_of)) for source in own for best_of in grid.best_ofs if best_of != 1]
    if decoder.vector_dropout:
        found += [variant._replace(guidance=guidance) for guidance in grid.guidances if guidance != 1
                  for variant in tuple(found)]
    if decoder.min_strength < 1:
        usual = [variant for variant in found if variant.guidance == 1]
        found += [variant._replace(strength=strength) for strength in grid.strengths for variant in usual
                  if decoder.min_strength <= strength != run.model.strength]
    return found


def _kept(run: Run, basis: Sequence[Any], measure: Callable[[], Row]) -> Row:
    """Return the row that evaluation.json stores under `basis`. If there is none, call `measure` and store its result."""
    file = run.directory / "evaluation.json"
    kept: dict[str, Row] = read_json(file) if file.exists() else {}
    key = short_hash([VERSION, sha256_file(run.directory / "model" / MANIFEST), run.data.corpus.fingerprint, *basis])
    if key not in kept:
        kept[key] = measure()
        write_json(file, kept)
    return kept[key]


def _measured(run: Run, yardstick: Yardstick, session: Session, variant: Variant, temperature: float | None,
              place: tuple[int, int]) -> Row:
    """Return the row of a variant. place: the number of this row, and the number of all rows."""
    session.reporter.step(f"{run.directory}: {variant}{'' if temperature is None else f' at T = {temperature:g}'}", *place)
    row: Row = {"source": str(variant), "temperature": temperature}
    if temperature is None:
        # For the row of real text, reverse judges are trained on the same number of real training sentences.
        learnt = yardstick.data.text("train", yardstick.data.sample_rows("train", yardstick.num_samples, seed=2))
        return row | yardstick.measure(yardstick.real_text(), learnt)
    sentences = draw(run.model, run.data, variant, temperature, yardstick.num_samples, further=True)
    if variant.source == REAL_OUTLINES:
        row["num_held_out"] = min(yardstick.num_samples, run.data.num_rows("valid"))
    comparable = run.data.stores and (run.data.stores["test"].encoder_fingerprint ==
                                      yardstick.data.stores["test"].encoder_fingerprint)
    return row | yardstick.measure(sentences if comparable else dataclasses.replace(sentences, outlines=None, further=None))


def _rebuilt(run: Run, num: int) -> Row:
    """Return the metrics of at most `num` test sentences: nll, reconstruction, and use of the vector."""
    def measure() -> Row:
        row = reconstruction(run.model, run.data, num, FULL_DRAWS)
        diagnosis = diagnose_vector(run.model, run.data, num, run.directory, quick=False)
        return row if diagnosis is None else row | collapse_figures(diagnosis)

    return _kept(run, ["reconstruction", num, FULL_DRAWS], measure)


def render(lines: Sequence[tables.Line], rebuilt: Sequence[tuple[str, Row]],
           found: dict[str, dict[str, tables.Figures | None]], settings: dict[str, Any]) -> str:
    """Return the report in Markdown. found: for each judge, the gap in forward NLL of each label (see `gaps`)."""
    num = settings["num_samples"]
    held_out = min((line.figures["num_held_out"].mean for line in lines if "num_held_out" in line.figures), default=num)
    filled = "" if held_out == num else f" (real outlines: {held_out:.0f} held-out ones, then training outlines)"
    kinds = "Forward and reverse NLL use" if settings["reverse_steps"] else "Forward NLL uses"
    head = (f"Test split; {tables.num_seeds(lines)}. {kinds} {num} samples{filled}; other figures use "
            f"{settings['num_compared']}. report.json has the numbers of each row. NLL in nats. The judges are a GRU "
            "language model and a modified Kneser-Ney 5-gram model. BLEU and self-BLEU are Texygen's.")
    if settings["reverse_steps"]:
        head += f" The GRU for reverse NLL is trained for {settings['reverse_steps']} steps."
    if settings["judge"]:
        head += f" The pretrained judge is {settings['judge']}. It scores the first {NUM_JUDGED} samples."
    parts = [f"`{settings['command']}`", head, tables.table(lines, "main")]
    parts += [render_gaps(by_label, settings["against"], judge) for judge, by_label in found.items() if by_label]
    parts += ["BLEU against the test split, and self-BLEU", tables.table(lines, "bleu")]
    if any(column.key in line.figures for line in lines for column in tables.TABLES["outlines"]):
        encoded = f". Text is re-encoded by {settings['encoder']}" if settings["encoder"] else ""
        if settings["mauve_features"] != settings["encoder"]:
            encoded += f". The features for MAUVE are from {settings['mauve_features']}"
        parts += [f"Outlines compared with the test split's outlines{encoded}", tables.table(lines, "outlines")]
    parts.append(tables.reconstruction_section(rebuilt))
    return "\n\n".join(parts)
