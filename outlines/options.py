"""Options of a configuration: a frozen dataclass field that carries its own line of help."""

import math
from dataclasses import MISSING, field
from typing import Any


def option(default: Any = MISSING, help: str = "", choices: tuple[str, ...] = (), low: float = -math.inf,
           high: float = math.inf) -> Any:
    """A dataclass field with a help line (unit included); for words the allowed values, for numbers the bounds."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})
