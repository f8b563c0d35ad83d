"""Progress on stderr: bars on a terminal, plain lines elsewhere, only warnings with --quiet."""

import contextlib
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Protocol

from tqdm import tqdm


class Progress(Protocol):
    """A function to call after any step: it shows `done` of `total`, then `note`, such as a speed."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None: ...


class Reporter:
    """Prints progress and warnings. Ranks other than the first have a silent reporter."""

    def __init__(self, quiet: bool = False, silent: bool = False):
        """quiet: print only warnings. silent: print nothing."""
        self.quiet, self.silent = quiet or silent, silent
        self.noted = False  # whether the notes on lost text were printed
        self.beside = False  # whether a second process trains, too (beside.py)
        self._bars = sys.stderr.isatty() and not self.quiet
        self._begun = math.inf, 0.0  # number and start time of the first step that `step` announced
        self.begin()

    def begin(self) -> None:
        """Start the clock of a run."""
        self.started, self._timing, self.estimated = time.monotonic(), False, False
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Count the block's seconds for this kind of work, unless an outer block counts them already."""
        started, outer, self._timing = time.monotonic(), self._timing, True
        try:
            yield
        finally:
            self._timing = outer
            if not outer:
                self.seconds[work] += time.monotonic() - started

    def times(self) -> str:
        """Return one line with the run's total time and the time of each kind of work."""
        parts = ", ".join(f"{work} {seconds:.0f} s" for work, seconds in self.seconds.items() if seconds)
        return f"time: {time.monotonic() - self.started:.0f} s ({parts})"

    def line(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    def step(self, text: str, number: int, total: int) -> None:
        """Print that a slow step begins; from the second step on, with an estimate of the time left."""
        if number <= self._begun[0]:
            self._begun = number, time.monotonic()
        first, started = self._begun
        seconds = (time.monotonic() - started) / max(number - first, 1) * (total - number + 1)
        self.line(f"{text} ({number} of {total}{f', {seconds:,.0f} s left' if number > first else ''})")

    def warning(self, text: str) -> None:
        """Print a line, even with --quiet."""
        if not self.silent:
            tqdm.write(text, file=sys.stderr)

    @contextlib.contextmanager
    def bar(self, name: str, unit: str, begun: int = 0) -> Iterator[Progress]:
        """Yield the function that updates a progress bar. begun: number of units already done."""
        started = last = time.monotonic()
        # The delay hides bars of work that finishes at once.
        bar = tqdm(desc=name, unit=f" {unit}", initial=begun, file=sys.stderr, disable=not self._bars, delay=0.5)

        def progress(done: int, total: int, note: str = "", /) -> None:
            nonlocal last
            now = time.monotonic()
            if self._bars:
                bar.total = total
                if note:
                    bar.set_postfix_str(note, refresh=False)
                bar.update(done - bar.n)
            elif now - last >= 10 or done == total:  # a plain line every 10 s
                last = now
                rate = max((done - begun) / max(now - started, 1e-9), 1e-9)
                self.line(f"{name}: {done:,} of {total:,} {unit}, {rate:,.0f}/s{', ' + note if note else ''}, "
                          f"{(total - done) / rate:,.0f} s left")

        try:
            yield progress
        finally:
            bar.close()
