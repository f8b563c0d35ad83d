"""Timing. The cases of a comparison run in turn. The shortest time of a case counts, because other processes add time."""

import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

Name = TypeVar("Name", bound=Hashable)
BUDGET_SEC = 40
"""No new round starts after this time, so that a benchmark lasts about a minute on a slow CPU."""


def shortest(arms: dict[Name, Callable[[], object]], num_rounds: int, num_warmup: int = 1) -> dict[Name, float]:
    """Return the shortest time of each case (arm) in seconds, over at most `num_rounds` rounds. Shows progress."""
    for arm in arms.values():
        for _ in range(num_warmup):
            arm()
    best, started = dict.fromkeys(arms, float("inf")), time.perf_counter()
    with tqdm(total=num_rounds * len(arms), unit=" runs", leave=False) as bar:
        for number in range(num_rounds):
            if number and time.perf_counter() - started > BUDGET_SEC:
                break
            for name, arm in arms.items():
                begun = time.perf_counter()
                arm()
                best[name] = min(best[name], time.perf_counter() - begun)
                bar.update()
    return best


def has_bfloat16() -> bool:
    """Return whether the CPU supports bfloat16. Otherwise, torch emulates bfloat16, which takes minutes."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
