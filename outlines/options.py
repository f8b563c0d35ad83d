"""Options of a configuration: a frozen dataclass field that carries its own line of help; and names nobody knows."""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, field
from typing import Any

from outlines.errors import OutlinesError


def option(default: Any = MISSING, help: str = "", choices: Iterable[str] | Callable[[], Iterable[str]] = (),
           low: float = -math.inf, high: float = math.inf) -> Any:
    """A dataclass field with a help line (unit included); for words the allowed values, for numbers the bounds.

    choices: a function is called when they are needed, so that a registry can grow until then.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


def choices_of(option: "Field[Any]") -> tuple[str, ...]:
    """Return the allowed values of an option; () if any value is allowed."""
    choices = option.metadata["choices"]
    return tuple(choices() if callable(choices) else choices)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> OutlinesError:
    """The error for a name nobody knows, with the nearest one that exists."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(known)
    return OutlinesError(f"unknown {kind} {name!r}: {hint}")
