"""Options of a configuration: fields of frozen dataclasses with a help text, allowed values and bounds."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

from outlines.errors import OutlinesError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")


def option(default: Any, help: str, choices: Iterable[str] = (), low: float = -math.inf,
           high: float = math.inf, flag: bool = True) -> Any:
    """Return a dataclass field of an option.

    help: one line, with the unit. choices: allowed words; empty: all words. low, high: bounds, included. flag: whether the
    command line has this option; if not, only files and presets can set it.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high, "flag": flag})


def unknown_name(kind: str, name: str, known: Iterable[str]) -> OutlinesError:
    """Return the error for an unknown name. The error suggests the most similar known name, or lists all names."""
    known = {each.lstrip("-"): each for each in sorted(known)}
    near = difflib.get_close_matches(name.lstrip("-"), known, n=1)
    hint = f"Did you mean {known[near[0]]!r}?" if near else f"Choose from {', '.join(known.values())}."
    return OutlinesError(f"unknown {kind} {name!r}. {hint}")


def misplaced(name: str, kind: str, kinds: str, owners: Sequence[str]) -> OutlinesError:
    """Return the error for an option that only `owners` have. kind, kinds: the word for one owner and for several."""
    *others, last = owners
    have = f"{kinds} {', '.join(others)} and {last} have" if others else f"{kind} {last} has"
    return OutlinesError(f"{name} has no effect here. Only the {have} it. Leave it out.")


class Registry(dict[str, Any]):
    """A dictionary from names to entries of one kind, such as decoders. An unknown name raises OutlinesError."""

    def __init__(self, kind: str, entries: Mapping[str, Any] | None = None):
        super().__init__(entries or {})
        self.kind = kind

    def __missing__(self, name: str) -> Any:
        raise unknown_name(self.kind, name, self)
