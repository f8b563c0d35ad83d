"""Command-line parsing that the commands share: the parser, flags from configuration fields, lists of numbers."""

import argparse
from typing import Any

from outlines.errors import OutlinesError
from outlines.options import choices_of, unknown_name
from train.config import known_fields
from train.method import Method


class Parser(argparse.ArgumentParser):
    """A parser whose errors are OutlinesErrors: one line on stderr, exit status 2."""

    def __init__(self, prog: str, description: str, epilog: str | None = None):
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

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


def add_options(parser: argparse._ActionsContainer, method: type[Method]) -> None:
    """Add one flag per configuration field. A flag that is not given stays None."""
    for field in known_fields(method.config_class).values():
        flag = "--" + field.name.replace("_", "-")
        kind: Any = field.type
        shown = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        text = field.metadata["help"] + ("" if shown in ("", ()) else f" (default: {shown})")
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=text.replace("%", "%%"))
        elif kind in (int, float, str):
            parser.add_argument(flag, type=kind, choices=choices_of(field) or None, metavar=kind.__name__.upper()
                                if not choices_of(field) else None, help=text.replace("%", "%%"))
        else:
            parser.add_argument(flag, nargs="+", metavar="FILE", help=text.replace("%", "%%"))


def numbers(flag: str, text: str, low: float, high: float) -> list[float]:
    """Return the distinct numbers of a comma-separated list in ascending order. Raises OutlinesError."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise OutlinesError(f"{flag} {text!r}: expected numbers with commas between, as in {low:g},{low + 2.5:g}") from error
    if not all(low <= number <= high for number in found):
        raise OutlinesError(f"{flag} {text!r}: must be from {low:g} to {high:g}")
    return found
