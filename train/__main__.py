"""The command line of training: `python -m train [FAMILY] [options]`."""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from outlines.errors import OutlinesError
from outlines.options import unknown_name
from train.commands import ablate, evaluate
from train.commands.compare import COMPARE, DEFAULT_REMEDY, LEADER, remedies, report_comparison
from train.commands.plan import plan_of
from train.config import known_fields
from train.evaluation.quick import report_run, report_seeds
from train.method import Method, all_methods, find_method
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks, join, leave
from train.runtime.run_directory import new_run_directory, read_group, read_run
from train.runtime.signals import Stopped, StopSignals
from train.session import Session, locked_run, train_run

DESCRIPTION = """\
Train a family of text generators and report what it reached.

  python -m train                      neural outlines on the embedded corpus
  python -m train lm --preset small    another family, another preset
  python -m train --seeds 1,2,3        several seeds, reported together
  python -m train compare              outlines, a language model and two VAEs, or --families, side by side
  python -m train --resume RUN         go on with what was stopped: a run, several seeds, a comparison
  python -m train evaluate RUN…        measure finished runs side by side, over temperature
  python -m train ablate RUN           a run's generator trained with other options, in one table
"""


def add_options(parser: argparse._ActionsContainer, method: type[Method]) -> None:
    """One flag for every field of the configuration; what is not given stays unset."""
    for field in known_fields(method.config_class).values():
        flag = "--" + field.name.replace("_", "-")
        kind: Any = field.type
        shown = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        text = field.metadata["help"] + ("" if shown in ("", ()) else f" (default: {shown})")
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=text.replace("%", "%%"))
        elif kind in (int, float, str):
            parser.add_argument(flag, type=kind, choices=field.metadata["choices"] or None, metavar=kind.__name__.upper()
                                if not field.metadata["choices"] else None, help=text.replace("%", "%%"))
        else:
            parser.add_argument(flag, nargs="+", metavar="FILE", help=text.replace("%", "%%"))


class Parser(argparse.ArgumentParser):
    """Errors as this project says them: one line, status 2."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, surplus = self.parse_known_args(args, namespace)
        for word in surplus:
            if word.startswith("--"):
                raise unknown_name("option", word.partition("=")[0], self._option_string_actions)
        if surplus:
            self.error(f"unrecognized arguments: {' '.join(surplus)}")
        return options

    def error(self, message: str) -> Any:
        raise OutlinesError(f"{message} (see `{self.prog} --help`)")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    families = sorted(all_methods())
    family = arguments[0] if arguments and not arguments[0].startswith("-") else "outlines"
    comparing = family == COMPARE
    method = find_method(LEADER if comparing else family)
    parser = Parser(prog="python -m train", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False, epilog=f"families: {', '.join(families)}; `python -m train FAMILY --help` "
                                               "shows the options of one")
    parser.add_argument("family", nargs="?", default="outlines", help="what to train (default: outlines)")
    parser.add_argument("--preset", nargs="+", metavar="NAME", help="named sets of options, applied from left to right: "
                        f"{', '.join(sorted(method.presets))} (default: default)")
    parser.set_defaults(config=None, remedy=None, families=None)
    if comparing:
        parser.add_argument("--remedy", nargs="+", choices=remedies(), metavar="NAME", help="presets that make the second "
                            f"VAE: {', '.join(remedies())} (default: {' '.join(DEFAULT_REMEDY)})")
        parser.add_argument("--families", metavar="LIST", help="what to compare instead, with commas between: families, "
                            "presets of theirs such as vae-lagging, and controls such as mixture, which come with a run "
                            "that has them")
    else:
        parser.add_argument("--config", metavar="FILE.toml", help="options from a file, by the names of the flags")
    parser.add_argument("--runs", metavar="DIR", help="where runs live, their cache in DIR-cache beside it (default: runs)")
    parser.add_argument("--out", metavar="RUN", help="the run's directory (default: a new numbered one in --runs)")
    parser.add_argument("--seeds", metavar="LIST", help="train one run for each of these seeds, with commas between, "
                        "and report mean ± standard deviation (default: --seed alone)")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run; it knows its own options")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_options(parser.add_argument_group(f"options of {method.family}" + (
        ", and of every other family that has them" if comparing else "")), method)
    return parser.parse_args(arguments)


REPORTS = {"seeds": report_seeds, COMPARE: report_comparison}


def complete(directory: Path, session: Session, beside_lm: bool = True) -> None:
    """Train what a directory stands for to the end, a run or several, and print what each and all of them reached.

    beside_lm: with the language model in the reports of the others; a comparison has one of its own.
    """
    group = read_group(directory)
    if group is None:
        session.reporter.line(f"run {directory}")
        model, data = train_run(directory, session)
        if session.ranks.first:
            print(report_run(directory, model, data, session, beside_lm), flush=True)
        session.ranks.barrier()
        return
    for member in group.runs:
        with locked_run(member, session):  # It may also be resumed, or evaluated, by itself.
            complete(member, session, beside_lm and group.kind != COMPARE)
    if session.ranks.first:
        print(REPORTS[group.kind](directory, group.runs), flush=True)


def train_command(arguments: Sequence[str], signals: StopSignals) -> None:
    """Train what the arguments ask for and print what it reached."""
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
            shutil.rmtree(made)  # Nothing had begun in it.
        raise
    except Stopped as stopped:
        if directory:
            stopped.advice = f"go on with --resume {directory}"
        raise


def measuring_command(module: ModuleType, act: Callable[..., str], arguments: Sequence[str], signals: StopSignals) -> None:
    """Do what a command does that starts from finished runs, and print its report."""
    name = act.__name__
    parser = Parser(prog=f"python -m train {name}", description=module.DESCRIPTION, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        print(act(options, lambda run: Session(Path(str(read_run(run).get("cache", ""))), Ranks(), Reporter(options.quiet),
                                               signals)))
    except Stopped as stopped:
        stopped.advice = "the same command goes on where this one stopped"
        raise


MEASURING = {"evaluate": (evaluate, evaluate.evaluate), "ablate": (ablate, ablate.ablate)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or evaluate, and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with StopSignals() as signals:
        try:
            if arguments and arguments[0] in MEASURING:
                measuring_command(*MEASURING[arguments[0]], arguments[1:], signals)
            else:
                train_command(arguments, signals)
        except OutlinesError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except Stopped as stopped:
            print(f"{stopped}: {stopped.advice}", file=sys.stderr)
            return stopped.exit_status
        except BrokenPipeError:
            # The reader has gone; the report is on disk. Python must not try to flush the rest at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except OSError as error:  # A disk that is full, say: what is on it stays whole, for every write is atomic.
            print(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
            return 2
        finally:
            leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
