"""The command line of training: `python -m train [FAMILY] [options]`."""

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlines.errors import OutlinesError
from train.config import coerce, known_fields, resolve
from train.distributed import join, leave
from train.evaluation import report_run
from train.method import Method, all_methods, find_method
from train.progress import Reporter
from train.run_directory import new_run_directory, read_run
from train.runs import Session, begin_run, command_line, default_cache, locked_run, train_run
from train.signals import Stopped, StopSignals

DESCRIPTION = """\
Train a family of text generators and report what it reached.

  python -m train                      neural outlines on the embedded corpus
  python -m train lm --preset small    another family, another preset
  python -m train --resume RUN         go on with a run that was stopped
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
    parser.add_argument("--resume", metavar="RUN", help="go on with this run; it knows its own options")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_options(parser.add_argument_group(f"options of {family}"), method)
    return parser.parse_args(arguments)


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """Where to run, and what: None means the configuration that is already there."""

    directory: Path | None
    new: tuple[Any, str] | None
    cache: Path
    root: Path = Path()


def start(options: argparse.Namespace) -> RunPlan:
    """The run that the arguments ask for."""
    own = {"family", "preset", "config", "runs", "out", "resume", "quiet"}
    flags = {name: value for name, value in vars(options).items() if name not in own and value is not None}
    if options.resume:
        given = [*flags, *(name for name in ("preset", "config", "runs", "out") if getattr(options, name))]
        if given:
            raise OutlinesError(f"--{given[0].replace('_', '-')} has no effect with --resume: "
                                "a run goes on with the options it began with")
        directory = Path(options.resume)
        return RunPlan(directory, None, Path(str(read_run(directory).get("cache", ""))))
    method = find_method(options.family)
    fields = known_fields(method.config_class)
    flags = {name: coerce(fields[name], value, "command line") for name, value in flags.items()}
    preset, root = " ".join(options.preset or ["default"]), Path(options.runs or "runs")
    config = resolve(options.family, method.config_class, method.presets, preset, options.config, flags)
    if options.out and (Path(options.out) / "run.json").exists():
        raise OutlinesError(f"{options.out}: a run is here already: go on with --resume {options.out}, "
                            "or choose another directory")
    return RunPlan(Path(options.out) if options.out else None, (config, preset), default_cache(root), root)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and return the exit status."""
    directory: Path | None = None
    made: Path | None = None
    with StopSignals() as signals:
        try:
            options = parse(sys.argv[1:] if arguments is None else arguments)
            plan = start(options)
            ranks = join(plan.new[0].training.device if plan.new else "auto")
            session = Session(plan.cache, ranks, Reporter(options.quiet or not ranks.first), signals)
            directory = plan.directory
            if directory is None:
                assert plan.new is not None
                name = f"{plan.new[0].family}-{plan.new[1]}".replace(" ", "-")
                made = new_run_directory(plan.root, name) if ranks.first else None
                directory = Path(ranks.agree(str(made)))
            elif ranks.first and plan.new:
                directory.mkdir(parents=True, exist_ok=True)
            with locked_run(directory, session):
                if plan.new:
                    begin_run(plan.new[0], directory, session, {"preset": plan.new[1], "command": command_line()})
                session.reporter.line(f"run {directory}")
                model, data = train_run(directory, session)
                if ranks.first:
                    print(report_run(directory, model, data, session))
                ranks.barrier()
        except OutlinesError as error:
            if made and not (made / "checkpoints").exists():
                shutil.rmtree(made)  # Nothing had begun in it.
            print(f"error: {error}", file=sys.stderr)
            return 2
        except Stopped as stopped:
            print(f"{stopped}: " + (f"go on with --resume {directory}" if directory else "nothing had begun"),
                  file=sys.stderr)
            return stopped.exit_status
        finally:
            leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
