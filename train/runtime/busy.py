"""Training while other processes are busy: how threads wait for each other, and a warning when steps become slow.

`python -m benchmarks.busy_machine` measures the ways of waiting.
"""

import os
import re
import sys
import time
from pathlib import Path

SLOW = 3.0  # warn if steps take this many times the duration of the fastest steps so far
LEAST_LOAD = 0.5  # mean number of running processes over the last minute
SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


def num_running(stat: str = "/proc/stat") -> int:
    """Return how many other processes use the processor now: the median of five readings in 0.1 s; 0 if unknown."""
    counts = []
    for _ in range(5):
        found = re.search(r"procs_running (\d+)", Path(stat).read_text()) if Path(stat).exists() else None
        counts.append(int(found[1]) - 1 if found else 0)  # without this process
        time.sleep(0.02)
    return sorted(counts)[2]


def share_processor() -> None:
    """If other processes use the processor, let torch's threads sleep while they wait for each other.

    Normally, a waiting thread spins: it checks in a loop. On an idle processor this is faster. Beside a busy process, a
    spinning thread uses the core that the other threads need. Changes no variable that the user has set. Call it before
    torch is imported.
    """
    if "torch" in sys.modules or any(name in os.environ for name in SET_BY_USER):
        return
    if os.getloadavg()[0] >= LEAST_LOAD and num_running():  # A process that runs only now may end soon.
        os.environ["OMP_WAIT_POLICY"] = "passive"


class SlowSteps:
    """Warns once when steps have become SLOW times slower."""

    def __init__(self) -> None:
        self.fastest, self.told = 0.0, False

    def __call__(self, done: int, seconds: float) -> str | None:
        """Return a warning the first time that steps are slow. done: steps or tokens in `seconds`; below 1 s: no check."""
        speed = done / max(seconds, 1e-9)
        self.fastest = max(self.fastest, speed)
        if self.told or seconds < 1 or speed * SLOW > self.fastest:
            return None
        self.told = True
        return (f"training has become {self.fastest / speed:.0f} times slower. Other processes may use the processor. To "
                "share it better, stop this run with Ctrl-C and continue it with --resume.")
