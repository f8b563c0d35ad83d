"""Ctrl-C and SIGTERM: save after the current step, then exit with 130 or 143. A second signal stops at once."""

import signal
from types import FrameType


class Stopped(BaseException):
    """A signal stopped the run. Like KeyboardInterrupt, it is not an Exception: `except Exception` does not catch it."""

    advice = "nothing to resume"  # the user's next step; set by the command once the run has a directory

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


class StopSignals:
    """Raises Stopped for SIGINT and SIGTERM in a block. While `deferred` is True, it only records the first signal."""

    def __init__(self) -> None:
        self.received = 0
        self.deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.received
        self.received = number
        if again or not self.deferred:
            raise Stopped(number)

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
