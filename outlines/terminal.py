"""Standard output of the commands. It can be a terminal with any encoding, a pipe that closes, or a notebook."""

import contextlib
import os
import sys


def prepare_stdout() -> None:
    """Set stdout to UTF-8 and line buffering, so that Ctrl-C or a closed pipe does not leave a part of a line."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's output has no such method
        sys.stdout.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")


def closed_pipe() -> int:
    """Return the exit status for a closed pipe. Also prevents Python from writing to the pipe at exit."""
    with contextlib.suppress(OSError, AttributeError):  # a notebook's output has no file descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13  # SIGPIPE, which Windows does not define
