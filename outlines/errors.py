"""Errors that a user can act on."""

import shlex
from pathlib import Path


class OutlinesError(Exception):
    """A user error. Its message is one line. The command lines print it without a traceback and exit with status 2."""


class CheckpointError(OutlinesError):
    """A file that this project wrote is missing, damaged or from another version."""


class TokenizerError(OutlinesError):
    """A tokenizer cannot be trained or loaded."""


def quoted(path: Path | str) -> str:
    """Return a path as one word of a command line."""
    return shlex.quote(str(path))


def no_run(directory: Path) -> OutlinesError:
    """Return the error for a directory without run.json, with the runs below it, if there are any."""
    runs = [quoted(file.parent) for pattern in ("*/run.json", "*/*/run.json") for file in sorted(directory.glob(pattern))]
    found = f"It contains {len(runs)} runs: {', '.join(runs[:10])}{' and others' if runs[10:] else ''}. Choose one of them."
    return OutlinesError(f"{directory}: no run here (no run.json). {found if runs else 'Check the path.'}")
