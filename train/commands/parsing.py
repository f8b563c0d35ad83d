"""Command-line parsing that the commands share: the parser, flags from configuration fields, lists of numbers."""

import argparse
from collections.abc import Iterable
from typing import Any

from outlines.errors import OutlinesError
from outlines.options import DEVICES, misplaced, unknown_name
from train.config import PAIRING, flag_of, group_of, known_fields
from train.method import Method, all_methods


class Parser(argparse.ArgumentParser):
    """A parser whose errors are OutlinesErrors: one line on stderr, exit status 2."""

    def __init__(self, prog: str, description: str, epilog: str | None = None):
        self.file_only: set[str] = set()  # flags of options that only files and presets can set
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, surplus = self.parse_known_args(args, namespace)
        for word in surplus:
            flag = word.partition("=")[0]
            name = flag[2:].replace("-", "_")
            if flag in self.file_only:
                raise OutlinesError(f"{flag} does not work on the command line. Set {name} in a TOML file, and "
                                    "use --config FILE.toml.")
            if word.startswith("--"):
                raise unknown_option("option", flag, {*self._option_string_actions, *self.file_only})
        if surplus:
            self.error(f"unrecognized arguments: {' '.join(surplus)}")
        return options

    def error(self, message: str) -> Any:
        raise OutlinesError(f"{message.removeprefix('argument ')}. See `{self.prog} --help`.")


def add_session(parser: Parser) -> None:
    """Add the options for `Session.of_run`: --device and --quiet."""
    parser.add_argument("--device", choices=DEVICES, help="device; auto: cuda, else mps, else cpu (default: the run's)")
    parser.add_argument("--quiet", action="store_true", help="print no progress on stderr")


COMMON = ("corpus", "encoder", "seed")  # options listed first in the help, with the command's own


def _has_option(method: type[Method], name: str) -> bool:
    return name in known_fields(method.config_class) and (name not in PAIRING or method.config_class.learns_pairs)


def unknown_option(kind: str, name: str, known: Iterable[str]) -> OutlinesError:
    """Return the error for an option that the family does not have. name: a flag, or a name in a file."""
    field = name.removeprefix("--").replace("-", "_")
    if owners := sorted(family for family, method in all_methods().items() if _has_option(method, field)):
        return misplaced(name, "family", "families", owners)
    return unknown_name(kind, name, known)


def add_options(parser: Parser, method: type[Method], without: Iterable[str] = ()) -> None:
    """Add a flag for each configuration field, by group. without: fields to leave out. A flag that is not given is None."""
    groups: dict[str, argparse._ActionsContainer] = {}
    for name, field in known_fields(method.config_class).items():
        if not field.metadata["flag"]:
            parser.file_only.add(flag_of(name))
            continue
        if not _has_option(method, name) or name in without:
            continue
        title = group_of(name, method.config_class)
        if name not in COMMON and title not in groups:
            groups[title] = parser.add_argument_group(f"{title} options")
        kind, choices = field.type, tuple(field.metadata["choices"])
        default = method.presets["default"].get(name, field.default)
        settings: dict[str, Any] = {"nargs": "+", "metavar": "FILE"}
        if kind is bool:
            settings = {"action": "store_true", "default": None}
        elif isinstance(kind, type) and kind in (int, float, str):
            settings = {"type": kind, "choices": choices} if choices else {"type": kind, "metavar": kind.__name__.upper()}
        text = field.metadata["help"] + ("" if default in ("", ()) or default is False else f" (default: {default})")
        (parser if name in COMMON else groups[title]).add_argument(flag_of(name), help=text.replace("%", "%%"), **settings)


def numbers(flag: str, text: str, low: float, high: float) -> list[float]:
    """Return the distinct numbers of a comma-separated list, sorted. low, high: allowed range. Raises OutlinesError."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise OutlinesError(f"{flag} {text!r} is not valid. Write numbers with commas: {low:g},{low + 2.5:g}.") from error
    if not all(low <= number <= high for number in found):
        raise OutlinesError(f"{flag} {text!r} is out of range. Use {low:g} to {high:g}.")
    return found
