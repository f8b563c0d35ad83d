"""`python -m train [FAMILY] [options]`: train one run, several seeds, or a comparison, and report the results."""

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from outlines.errors import OutlinesError
from outlines.models.lm import LanguageModel
from train.commands.compare import COMPARE, DEFAULT_REMEDY, LEADER, remedies, report_comparison
from train.commands.judges import baseline, quick_judges
from train.commands.parsing import Parser, add_options
from train.commands.plan import plan_of
from train.evaluation.judges import Judges
from train.evaluation.quick import closing_report, measure_run, report_seeds
from train.method import all_methods, find_method
from train.runtime.progress import Reporter
from train.runtime.ranks import join
from train.runtime.run_directory import new_run_directory, read_group
from train.runtime.signals import Stopped, StopSignals
from train.session import Session, locked_run, run_config, train_run

DESCRIPTION = """\
Train a text generator and report its results.

  python -m train                      neural outlines on the embedded corpus
  python -m train lm --preset small    another family, another preset
  python -m train --seeds 1,2,3        several seeds, reported together
  python -m train compare              outlines, a language model and two VAEs side by side (or --families)
  python -m train --resume RUN         continue a stopped run, several seeds or a comparison
  python -m train evaluate RUN…        evaluate finished runs over temperature
  python -m train ablate RUN           retrain the generator of a run with other options, in one table
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of training or of a comparison. Raises OutlinesError."""
    families = sorted(all_methods())
    family = arguments[0] if arguments and not arguments[0].startswith("-") else "outlines"
    comparing = family == COMPARE
    method = find_method(LEADER if comparing else family)
    parser = Parser("python -m train", DESCRIPTION, f"families: {', '.join(families)}; `python -m train FAMILY --help` "
                                                    "lists the options of a family")
    add = parser.add_argument
    add("family", nargs="?", default="outlines", help="what to train (default: outlines)")
    add("--preset", nargs="+", metavar="NAME", help="named sets of options, applied from left to right: "
        f"{', '.join(sorted(method.presets))} (default: default)")
    add("--config", metavar="FILE.toml", help="file with options, named like the flags")
    parser.set_defaults(remedy=None, families=None)
    if comparing:
        add("--remedy", nargs="+", choices=remedies(), metavar="NAME", help="presets of the second VAE: "
            f"{', '.join(remedies())} (default: {' '.join(DEFAULT_REMEDY)})")
        add("--families", metavar="LIST", help="comma-separated list of what to compare: families, presets of a family "
            "(vae-lagging) and controls (mixture), which need the run of their family")
    add("--runs", metavar="DIR", help="directory of all runs; their cache is DIR-cache (default: runs)")
    add("--out", metavar="RUN", help="directory of this run (default: a new numbered one)")
    add("--seeds", metavar="LIST", help="comma-separated seeds; train one run per seed and report mean ± standard deviation")
    add("--resume", metavar="RUN", help="continue this run with its own options")
    add("--quiet", action="store_true", help="print no progress on stderr")
    add_options(parser, method)
    return parser.parse_args(arguments)


REPORTS = {"seeds": report_seeds, COMPARE: report_comparison}


def complete(directory: Path, session: Session, beside_lm: bool = True) -> None:
    """Finish the training of a run or of a group of runs, and print their reports.

    beside_lm: add the LM baseline to the reports of other families; a comparison trains its own LM.
    """
    group = read_group(directory)
    if group is None:
        session.reporter.line(f"run {directory}")
        model, data = train_run(directory, session)
        if session.ranks.first:
            config = run_config(directory)
            if not (directory / "report.json").exists():
                started = time.monotonic()
                judges, lm = Judges(), None
                if model.sources:
                    judges = quick_judges(config, data, session)
                    lm = baseline(config, data, session) if beside_lm and model.family != LanguageModel.family else None
                measure_run(directory, config, model, data, judges, lm, session.reporter)
                session.reporter.line(f"evaluated in {time.monotonic() - started:.0f} s")
            print(closing_report(directory, config, model, data), flush=True)
        session.ranks.barrier()
        return
    for member in group.runs:
        with locked_run(member, session):  # A member can also be resumed or evaluated by itself.
            complete(member, session, beside_lm and group.kind != COMPARE)
    if session.ranks.first:
        print(REPORTS[group.kind](directory, group.runs), flush=True)


def run(arguments: Sequence[str], signals: StopSignals) -> None:
    """Train what the arguments ask for and print the report."""
    directory: Path | None = None
    made: Path | None = None
    try:
        options = parse(arguments)
        plan = plan_of(options)
        ranks = join(next((config.training.device for _, config in plan.runs.values()), "auto"))
        session = Session(plan.cache, ranks, Reporter(options.quiet, silent=not ranks.first), signals)
        directory = plan.directory
        if directory is None:
            made = new_run_directory(plan.root, plan.name) if ranks.first else None
            directory = Path(ranks.agree(str(made)))
        elif ranks.first:
            directory.mkdir(parents=True, exist_ok=True)
        with locked_run(directory, session):
            if plan.runs:
                plan.begin(directory, session)
            complete(directory, session)
    except OutlinesError:
        if made and not any(made.rglob("checkpoints")):
            shutil.rmtree(made)  # No training has started in it.
        raise
    except Stopped as stopped:
        if directory:
            stopped.advice = f"continue with --resume {directory}"
        raise
