"""The command line of training: `python -m train [FAMILY] [options]`."""

import argparse
import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlines.errors import OutlinesError
from train import evaluate
from train.config import RunConfig, coerce, known_fields, resolve
from train.distributed import Ranks, join, leave
from train.method import Method, all_methods, find_method
from train.progress import Reporter
from train.report_run import report_run, report_seeds
from train.run_directory import begin_seeds, new_run_directory, read_run, read_seeds
from train.runs import Session, begin_run, command_line, default_cache, locked_run, train_run
from train.signals import Stopped, StopSignals

DESCRIPTION = """\
Train a family of text generators and report what it reached.

  python -m train                      neural outlines on the embedded corpus
  python -m train lm --preset small    another family, another preset
  python -m train --seeds 1,2,3        several seeds, reported together
  python -m train --resume RUN         go on with a run that was stopped
  python -m train evaluate RUN…        measure finished runs side by side, over temperature
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

    def error(self, message: str) -> Any:
        raise OutlinesError(f"{message} (see `{self.prog} --help`)")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    families = sorted(all_methods())
    family = arguments[0] if arguments and not arguments[0].startswith("-") else "outlines"
    method = find_method(family)
    parser = Parser(prog="python -m train", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False, epilog=f"families: {', '.join(families)}; `python -m train FAMILY --help` "
                                               "shows the options of one")
    parser.add_argument("family", nargs="?", default="outlines", help="what to train (default: outlines)")
    parser.add_argument("--preset", nargs="+", metavar="NAME", help="named sets of options, applied from left to right: "
                        f"{', '.join(sorted(method.presets))} (default: default)")
    parser.add_argument("--config", metavar="FILE.toml", help="options from a file, by the names of the flags")
    parser.add_argument("--runs", metavar="DIR", help="where runs live, their cache in DIR-cache beside it (default: runs)")
    parser.add_argument("--out", metavar="RUN", help="the run's directory (default: a new numbered one in --runs)")
    parser.add_argument("--seeds", metavar="LIST", help="train one run for each of these seeds, with commas between, "
                        "and report mean ± standard deviation (default: --seed alone)")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run; it knows its own options")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_options(parser.add_argument_group(f"options of {family}"), method)
    return parser.parse_args(arguments)


OWN_OPTIONS = ("preset", "config", "runs", "out", "seeds")
"""What decides a run beside the fields of its configuration."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to train: a configuration for each seed, or the runs that are already there."""

    directory: Path | None
    """the run's directory, or that of several seeds; None makes a new one under `root`"""
    root: Path
    cache: Path
    preset: str = ""
    configs: tuple[RunConfig, ...] = ()
    several: bool = False

    @property
    def name(self) -> str:
        return "-".join([self.configs[0].family, *self.preset.split()]) + ("-seeds" if self.several else "")


def plan_of(options: argparse.Namespace) -> Plan:
    """What the arguments ask for."""
    own = {"family", "resume", "quiet", *OWN_OPTIONS}
    flags = {name: value for name, value in vars(options).items() if name not in own and value is not None}
    if options.resume:
        given = [*flags, *(name for name in OWN_OPTIONS if getattr(options, name))]
        if given:
            raise OutlinesError(f"--{given[0].replace('_', '-')} has no effect with --resume: "
                                "a run goes on with the options it began with")
        resumed = Path(options.resume)
        first = (read_seeds(resumed) or [resumed])[0]
        return Plan(resumed, resumed.parent, Path(str(read_run(first).get("cache", ""))))
    method = find_method(options.family)
    fields = known_fields(method.config_class)
    flags = {name: coerce(fields[name], value, "command line") for name, value in flags.items()}
    preset, root = " ".join(options.preset or ["default"]), Path(options.runs or "runs")
    several = options.seeds is not None
    if several and "seed" in flags:
        raise OutlinesError("--seed has no effect with --seeds: leave it out")
    config = resolve(options.family, method.config_class, method.presets, preset, options.config, flags)
    configs = tuple(dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
                    for seed in _seeds(options.seeds)) if several else (config,)
    directory = Path(options.out) if options.out else None
    if directory and any((directory / name).exists() for name in ("run.json", "seeds.json")):
        raise OutlinesError(f"{directory}: a run is here already: go on with --resume {directory}, "
                            "or choose another directory")
    return Plan(directory, root, default_cache(root), preset, configs, several)


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise OutlinesError(f"--seeds {text!r}: expected different numbers with commas between, as in 1,2,3")
    return [int(part) for part in parts]


def begin(plan: Plan, directory: Path, session: Session) -> None:
    """Write run.json of every run of the plan."""
    runs = {config.training.seed: directory / f"seed-{config.training.seed}" if plan.several else directory
            for config in plan.configs}
    for config in plan.configs:
        begin_run(config, runs[config.training.seed], session, {"preset": plan.preset, "command": command_line()})
    if plan.several and session.ranks.first:
        begin_seeds(directory, runs)
    session.ranks.barrier()


def train_command(arguments: Sequence[str], signals: StopSignals) -> None:
    """Train what the arguments ask for and print what it reached."""
    directory: Path | None = None
    made: Path | None = None
    try:
        options = parse(arguments)
        plan = plan_of(options)
        ranks = join(plan.configs[0].training.device if plan.configs else "auto")
        session = Session(plan.cache, ranks, Reporter(options.quiet or not ranks.first), signals)
        directory = plan.directory
        if directory is None:
            made = new_run_directory(plan.root, plan.name) if ranks.first else None
            directory = Path(ranks.agree(str(made)))
        elif ranks.first:
            directory.mkdir(parents=True, exist_ok=True)
        with locked_run(directory, session):
            if plan.configs:
                begin(plan, directory, session)
            seeds = read_seeds(directory)
            for run in seeds or [directory]:
                session.reporter.line(f"run {run}")
                # One of several seeds may also be resumed, or evaluated, by itself.
                with locked_run(run, session) if seeds else contextlib.nullcontext():
                    model, data = train_run(run, session)
                    if ranks.first:
                        print(report_run(run, model, data, session), flush=True)
                    ranks.barrier()
            if ranks.first and seeds:
                print(report_seeds(directory, seeds))
    except OutlinesError:
        if made and not any(made.rglob("checkpoints")):
            shutil.rmtree(made)  # Nothing had begun in it.
        raise
    except Stopped as stopped:
        if directory:
            stopped.advice = f"go on with --resume {directory}"
        raise


def evaluate_command(arguments: Sequence[str], signals: StopSignals) -> None:
    """Evaluate finished runs and print the report."""
    parser = Parser(prog="python -m train evaluate", description=evaluate.DESCRIPTION, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    evaluate.add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        print(evaluate.evaluate(options, lambda run: Session(Path(str(read_run(run).get("cache", ""))), Ranks(),
                                                             Reporter(options.quiet), signals)))
    except Stopped as stopped:
        stopped.advice = "the same command goes on where this one stopped"
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or evaluate, and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with StopSignals() as signals:
        try:
            if arguments and arguments[0] == "evaluate":
                evaluate_command(arguments[1:], signals)
            else:
                train_command(arguments, signals)
        except OutlinesError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except Stopped as stopped:
            print(f"{stopped}: {stopped.advice}", file=sys.stderr)
            return stopped.exit_status
        finally:
            leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
