"""Training while other processes are busy: how threads wait for each other, and a warning when steps become slow.

`python -m benchmarks.busy_machine` compares the ways in which threads can wait.
"""

import os
import re
import sys
import time
from pathlib import Path

SLOW = 3.0  # warn if steps are slower than the fastest steps so far by this factor
LEAST_LOAD = 0.5  # waiting threads sleep only if on average at least this number of processes ran in the last minute
SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


def num_running(stat: str = "/proc/stat") -> int:
    """Return the number of other processes that run now: the median of five readings in 0.1 s; 0 if unknown."""
    counts = []
    for _ in range(5):
        found = re.search(r"procs_running (\d+)", Path(stat).read_text()) if Path(stat).exists() else None
        counts.append(int(found[1]) - 1 if found else 0)  # without this process
        time.sleep(0.02)
    return sorted(counts)[2]


def share_processor() -> None:
    """If other processes use the processor, let torch's threads sleep while they wait for each other.

    Normally, a waiting thread spins: it checks in a loop. If another process is busy, the spinning thread uses the core that
    the other threads need. Does nothing if the user has set one of SET_BY_USER. Call this function before torch is imported.
    """
    if "torch" in sys.modules or any(name in os.environ for name in SET_BY_USER):
        return
    if os.getloadavg()[0] >= LEAST_LOAD and num_running():  # A process that has just started may end soon.
        os.environ["OMP_WAIT_POLICY"] = "passive"


class SlowSteps:
    """Returns a warning once, when steps have become SLOW times slower than the fastest steps so far."""

    def __init__(self) -> None:
        self.fastest, self.told = 0.0, False

    def __call__(self, done: int, seconds: float) -> str | None:
        """Return a warning the first time that steps are slow; otherwise None. No warning if `seconds` is below 1.

        done: number of steps or tokens in this time.
        """
        speed = done / max(seconds, 1e-9)
        self.fastest = max(self.fastest, speed)
        if self.told or seconds < 1 or speed * SLOW > self.fastest:
            return None
        self.told = True
        return (f"training has become {self.fastest / speed:.0f} times slower. Other processes may use the processor. To "
                "share it better, stop this run with Ctrl-C and continue it with --resume.")
