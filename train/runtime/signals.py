"""Ctrl-C and SIGTERM: save at the next step, then exit 130 or 143; a second signal stops at once."""

import signal
from types import FrameType


class Stopped(BaseException):
    """A signal ended the run. Like KeyboardInterrupt, not an error to be caught on the way."""

    advice = "nothing had begun"
    """what to do next, for whoever knows it on the way up to set"""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


class StopSignals:
    """Within `with`: the first signal is noted while `deferred`, raised otherwise; the second is always raised."""

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
