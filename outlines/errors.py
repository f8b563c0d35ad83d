"""Errors that a user can act on."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from outlines.pretrained import SHIPPED

MEMORY = ("MemoryError|out.of.memory|not enough memory|allocate memory|alloc_failed|storage size calculation overflowed|"
          "could not create a primitive")  # the last message is from oneDNN


class OutlinesError(Exception):
    """A user error. Its message is one line. The command lines print it without a traceback and exit with status 2."""


class CheckpointError(OutlinesError):
    """A file that this project wrote is missing, damaged or from another version."""


class TokenizerError(OutlinesError):
    """A tokenizer cannot be trained or loaded."""


@contextlib.contextmanager
def memory_advice(advice: str, kind: type[OutlinesError] = OutlinesError) -> Iterator[None]:
    """Raise an error of the class `kind` if the block runs out of memory. The message of the error ends with `advice`."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not re.search(MEMORY, f"{type(error).__name__} {error}", re.IGNORECASE):
            raise
        raise kind(f"Out of memory ({one_line(error)}). {advice}") from error


def one_line(error: BaseException) -> str:
    """Return an error's message on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def quoted(path: Path | str) -> str:
    """Return a path, quoted for a command line. The path cannot be mistaken for an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def no_run(directory: Path) -> OutlinesError:
    """Return the error for a directory without run.json. The message lists the runs in its subdirectories, if any."""
    if str(directory) in SHIPPED:
        return OutlinesError(f"{directory} ships without its training text, so this command is not available. Use a run "
                             "that you have trained.")
    runs = [quoted(file.parent) for pattern in ("*/run.json", "*/*/run.json") for file in sorted(directory.glob(pattern))]
    found = f"Runs in it: {', '.join(runs[:10])}{' and others' if runs[10:] else ''}. Choose one."
    return OutlinesError(f"{directory}: no run here (no run.json). {found if runs else 'Check the path.'}")
