"""Progress for people: bars on a terminal, plain lines elsewhere, nothing with --quiet. All of it on stderr."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from tqdm import tqdm

PLAIN_LINE_SEC = 10.0


class Progress(Protocol):
    """What a bar yields: call it as often as you like; `note` (a speed, say) stands behind the figures."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None: ...


class Reporter:
    """Says how far the work is. A silent one stands in on every rank but the first."""

    def __init__(self, quiet: bool = False, silent: bool = False):
        """quiet: no progress. silent: no warnings either."""
        self.quiet = quiet or silent
        self.silent = silent
        self._bars = sys.stderr.isatty()

    def line(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    def warning(self, text: str) -> None:
        """Say what is no progress, and so is said with --quiet too."""
        if not self.silent:
            tqdm.write(text, file=sys.stderr)

    @contextlib.contextmanager
    def bar(self, name: str, unit: str) -> Iterator[Progress]:
        """Yield what to call with (done, total)."""
        started = last = time.monotonic()
        # The delay keeps what is done at once, or says nothing, off the terminal.
        bar = tqdm(desc=name, unit=f" {unit}", file=sys.stderr, disable=self.quiet or not self._bars, delay=0.5)

        def progress(done: int, total: int, note: str = "", /) -> None:
            nonlocal last
            now = time.monotonic()
            if self.quiet:
                return
            if self._bars:
                bar.total = total
                if note:
                    bar.set_postfix_str(note, refresh=False)
                bar.update(done - bar.n)
            elif now - last >= PLAIN_LINE_SEC or done == total:
                last = now
                rate = done / max(now - started, 1e-9)
                left = (total - done) / max(rate, 1e-9)
                self.line(f"{name}: {done:,} of {total:,} {unit}, {rate:,.0f}/s{', ' + note if note else ''}, "
                          f"{left:,.0f} s left")

        try:
            yield progress
        finally:
            bar.close()
