"""`python -m train [FAMILY] [options]`: train one run, several seeds, or a comparison, and report the results."""

import argparse
import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outlines.corpus.prepared import cache_of
from outlines.errors import OutlinesError, quoted
from outlines.models.lm import LanguageModel
from train.beside import beside
from train.commands.compare import COMPARE, DEFAULT_FAMILIES, LEADER, members_of, report_comparison
from train.commands.judges import baseline, quick_judges
from train.commands.parsing import Parser, add_options, unknown_option
from train.config import RunConfig, absolute, coerce, flag_of, known_fields, read_toml, resolve
from train.data import fit_splits
from train.evaluation.judges import Judges
from train.evaluation.quick import closing_report, measure_run, report_seeds
from train.method import all_methods, find_method, implied_families
from train.runtime.progress import Reporter
from train.runtime.ranks import join
from train.runtime.run_directory import GROUP, begin_group, new_run_directory, read_group, read_run, runs_of
from train.runtime.signals import Stopped, StopSignals
from train.session import Session, begin_run, command_line, device_of, locked_run, run_config, train_run
from train.start_from import with_source

OWN_OPTIONS = ("preset", "config", "families", "runs", "out", "seeds")
"""options that determine a run, but are not configuration fields"""

DESCRIPTION = """\
Train a text generator and report its results.

  python -m train                      neural outlines on the built-in corpus
  python -m train lm --preset small    another family, another preset
  python -m train flow                 neural outlines with the preset flow: flow matching, no GAN
  python -m train --seeds 1,2,3        several seeds, reported together
  python -m train compare              several families in one report (default: outlines, lm and two VAEs)
  python -m train --resume RUN         continue after a stop: a run, several seeds or a comparison
  python -m train evaluate RUN…        evaluate finished runs at several temperatures
  python -m train ablate RUN           train several generators for the decoder of RUN; compare them in one table
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of training or of a comparison. Raises OutlinesError."""
    families = sorted(all_methods())
    word = arguments[0] if arguments and not arguments[0].startswith("-") else "outlines"
    own_preset = [word] if word in implied_families() else []
    family = implied_families().get(word, word)
    comparing = family == COMPARE
    method = find_method(LEADER if comparing else family)
    parser = Parser("python -m train", DESCRIPTION, f"families: {', '.join(families)}\npresets that imply a family: "
                    f"{', '.join(sorted(implied_families()))}\nThe options of a family: `python -m train FAMILY --help`. "
                    "A file given with --config can set more (docs/runs.md). The defaults shown are the values in "
                    "--preset default.")
    parser.usage = f"python -m train {word if word in arguments else '[FAMILY]'} [options]"
    add = parser.add_argument
    add("family", nargs="?", default="outlines",
        help="what to train: a family, a preset that implies a family (both are listed at the end of this help), or compare "
             "for several families (default: outlines)")
    add("--preset", nargs="+", metavar="NAME", help=f"presets (sets of options): {', '.join(sorted(method.presets))}; later "
        "presets override earlier ones (default: default)")
    add("--config", metavar="FILE.toml", help="TOML file of options, such as decoder_steps = 100")
    parser.set_defaults(families=None)
    if comparing:
        add("--families", metavar="LIST", help="comma-separated families, presets such as vae-lagging, and fitted "
            f"baselines such as mixture; the family of a baseline must be in the list (default: {DEFAULT_FAMILIES})")
    add("--runs", metavar="DIR", help="directory for new runs; the cache is in DIR-cache (default: runs)")
    add("--out", metavar="RUN", help="directory of this run (default: a new numbered directory)")
    add("--seeds", metavar="LIST", help="comma-separated seeds; train a run for each and report mean ± standard deviation")
    add("--resume", metavar="RUN", help="continue this run with its own options; only --device can be changed")
    add("--quiet", action="store_true", help="print no progress on stderr")
    add_options(parser, method, without=["decoder_from"] if comparing else [])  # a comparison trains all its decoders
    options = parser.parse_args(arguments)
    if own_preset:
        options.family, options.preset = family, [*(options.preset or []), *own_preset]
    return options


@dataclass(frozen=True)
class Plan:
    """The runs to train. If `runs` is empty, the existing runs in `directory` are resumed."""

    directory: Path | None  # directory of the run or group; None: a new one under `root`
    root: Path
    cache: Path
    device: str
    name: str = ""  # name of a new directory
    runs: dict[str, tuple[str, RunConfig]] = field(default_factory=dict)
    """preset and configuration of each run, by its path in the directory; "." is the directory itself"""
    groups: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    """kind and members of each group, by the group's path in the directory; inner groups come first"""

    def begin(self, directory: Path, session: Session) -> None:
        """Write run.json of every run, then runs.json of every group."""
        for path, (preset, config) in self.runs.items():
            begin_run(config, directory / path, session, {"preset": preset, "command": command_line()})
        if session.ranks.first:
            for path, (kind, members) in self.groups.items():
                begin_group(directory / path, kind, members)
        session.ranks.barrier()


def plan_of(options: argparse.Namespace) -> Plan:
    """Return the plan of the parsed arguments. Raises OutlinesError."""
    flags = {name: value for name, value in vars(options).items()
             if name not in ("family", "resume", "quiet", *OWN_OPTIONS) and value is not None}
    if options.resume:
        device = flags.pop("device", None)
        given = [*flags, *(name for name in OWN_OPTIONS if getattr(options, name))]
        if given:
            raise OutlinesError(f"{flag_of(given[0])} has no effect with --resume. Leave it out.")
        resumed = Path(options.resume)
        first = runs_of(resumed)[0]
        return Plan(resumed, resumed.parent, cache_of(first, read_run(first)), device_of(first, device))
    if options.seeds is not None and "seed" in {**flags, **(read_toml(options.config) if options.config else {})}:
        raise OutlinesError("--seed has no effect with --seeds. Leave it out.")
    preset, root = " ".join(options.preset or ["default"]), Path(options.runs or "runs")
    comparing = options.family == COMPARE
    file = options.config
    if comparing and file:  # Each family ignores options that it does not have.
        flags, file = {**read_toml(file), **flags}, None
    names = DEFAULT_FAMILIES if options.families is None else options.families
    members = members_of(names, preset) if comparing else {".": (options.family, preset)}
    runs = {name: (own_preset, _configuration(family, own_preset, file, flags, strict=not comparing))
            for name, (family, own_preset) in members.items()}
    if comparing:
        _check_comparable(runs, flags)
    groups: dict[str, tuple[str, list[str]]] = {}
    if options.seeds is not None:
        seeds = _seeds(options.seeds)
        groups = {name: ("seeds", [f"seed-{seed}" for seed in seeds]) for name in runs}
        runs = {f"{name}/seed-{seed}": (own_preset, dataclasses.replace(config, training=dataclasses.replace(
            config.training, seed=seed))) for name, (own_preset, config) in runs.items() for seed in seeds}
    if comparing:
        groups["."] = (COMPARE, list(members))
    directory = Path(options.out) if options.out else None
    if directory and any((directory / name).exists() for name in ("run.json", GROUP)):
        raise OutlinesError(f"{directory} already contains a run. Continue with --resume {quoted(directory)}, or choose "
                            "another directory.")
    name = "-".join([options.family, *preset.split()]) + ("-seeds" if options.seeds is not None else "")
    # The cache is next to the runs, so that TensorBoard shows only runs.
    cache = Path(os.environ.get("OUTLINES_CACHE") or f"{os.path.abspath(root)}-cache")
    return Plan(directory, root, cache, next(iter(runs.values()))[1].training.device, name, runs, groups)


def _configuration(family: str, preset: str, file: str | None, flags: dict[str, Any], strict: bool) -> RunConfig:
    """Return one family's configuration. strict: if False, ignore flags that the family does not have."""
    method = find_method(family)
    fields = known_fields(method.config_class)
    for name in read_toml(file) if file else ():
        if name not in fields:
            raise unknown_option(f"option in {file}:", name, fields)
    own = {name: coerce(fields[name], value, "command line") for name, value in flags.items() if strict or name in fields}
    config = absolute(resolve(family, method.config_class, method.presets, preset, file, own))
    config = with_source(config, {*own, *(read_toml(file) if file else ())})
    fit_splits(config.corpus, Reporter(quiet=True))  # raises for missing files and small corpora before a directory is made
    return config


def _check_comparable(runs: dict[str, tuple[str, RunConfig]], flags: dict[str, Any]) -> None:
    """Raise OutlinesError for runs on different corpora and for options that no run has."""
    first, *others = runs
    for name in others:
        if runs[name][1].corpus != runs[first][1].corpus:
            raise OutlinesError(f"The presets of {name} and {first} use different corpora or tokenizers. "
                                "Compare runs on the same corpus.")
    known = {field for _, config in runs.values() for field in known_fields(type(config.model))}
    for flag in flags:
        if flag not in known:
            raise OutlinesError(f"{flag_of(flag)} has no effect on {', '.join(runs)}. Leave it out.")


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise OutlinesError(f"--seeds {text!r} is not valid. Write different numbers with commas, as in 1,2,3.")
    return [int(part) for part in parts]


def complete(directory: Path, session: Session, with_baseline: bool = True) -> None:
    """Train a run or a group of runs to the end and print the reports.

    with_baseline: whether reports have an LM baseline.
    """
    group = read_group(directory)
    if group is None:
        session.reporter.begin()
        session.reporter.line(f"run {directory}")
        model, data = train_run(directory, session)
        if session.ranks.first:
            config = run_config(directory)
            if not (directory / "report.json").exists():
                judges, lm, reporter = Judges(), None, session.reporter
                if model.sources:
                    # The LM baseline first, because a second process trains the judge first.
                    if with_baseline and model.family != LanguageModel.family:
                        with reporter.timed("LM baseline"):
                            lm = baseline(config, data, session, read_run(directory)["preset"])
                    with reporter.timed("judge"):
                        judges = quick_judges(config, data, session)
                with reporter.timed("evaluation"):
                    measure_run(directory, config, model, data, judges, lm, reporter)
                reporter.line(reporter.times())
            print(closing_report(directory, config, model, data), flush=True)
        session.ranks.barrier()
        return
    for member in group.runs:
        # If the second process trains this member, wait for it. Without a second process, a locked member is an error.
        waiting = session.reporter.line if session.reporter.beside else None
        with locked_run(member, session, waiting):
            complete(member, session, with_baseline and group.kind != COMPARE)
    if session.ranks.first:
        report = report_comparison if group.kind == COMPARE else report_seeds
        print(report(directory, group.runs), flush=True)


def run(arguments: Sequence[str], signals: StopSignals) -> None:
    """Train the runs that the arguments describe and print the report."""
    directory: Path | None = None
    made: Path | None = None
    try:
        options = parse(arguments)
        plan = plan_of(options)
        ranks = join(plan.device)
        session = Session(plan.cache, ranks, Reporter(options.quiet, silent=not ranks.first), signals, plan.device)
        directory = plan.directory
        if directory is None:
            made = new_run_directory(plan.root, plan.name) if ranks.first else None
            directory = Path(ranks.agree(str(made)))
        elif ranks.first and not directory.exists():
            (made := directory).mkdir(parents=True)
        with locked_run(directory, session):
            if plan.runs:
                plan.begin(directory, session)
            with beside(directory, session):
                complete(directory, session)
    except OutlinesError:
        if made and not any(made.rglob("checkpoints")):
            shutil.rmtree(made)  # No training has started in this directory.
        raise
    except Stopped as stopped:
        if directory:
            stopped.advice = f"continue with --resume {quoted(directory)}"
        raise
