"""Timing: the cases of a comparison run in turn, and the shortest time of each counts: other processes only add time."""

import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

Name = TypeVar("Name", bound=Hashable)
BUDGET_SEC = 40
"""No new round starts after this time, so that a benchmark lasts about a minute on a slow CPU."""


def shortest(arms: dict[Name, Callable[[], object]], num_rounds: int, num_warmup: int = 1) -> dict[Name, float]:
    """Return the shortest time of each arm in seconds, over at most `num_rounds` rounds; shows progress."""
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
    """Whether the CPU computes with bfloat16 numbers; without that, torch emulates them, which lasts minutes."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
