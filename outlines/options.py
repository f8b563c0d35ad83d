"""Options of a configuration: a frozen dataclass field that carries its own line of help."""

from dataclasses import MISSING, field
from typing import Any


def option(default: Any = MISSING, help: str = "", choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with a help line (unit included) and, for words, the allowed values."""
    return field(default=default, metadata={"help": help, "choices": choices})
