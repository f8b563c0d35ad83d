"""A run's directory: what is in it, who writes to it, where a run goes on.

    run.json            the resolved configuration, versions, seed and hashes, written before step 0
    tokenizer.model     with model/, all that `python -m generate` needs
    checkpoints/        the last few, each whole and verified: weights, optimisers, position
    model/              the finished model; present once training has ended
    metrics.jsonl       every logged figure, and TensorBoard's events beside it
    report.json         what the run reached
    evaluation.json     every row that `python -m train evaluate` measured of it

Written at the end of training, where they apply: collapse.json, every figure of what becomes of the vector; probes/,
what its drift is measured on; projector_config.pbtxt and 00000/, vectors for TensorBoard's projector.

A directory that stands for several runs holds runs.json and a directory for each: seed-1, seed-2, … of several seeds;
outlines, lm, … of a comparison, and there each may stand for several seeds again.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from outlines.checkpoint import atomic_write, read_state, sweep
from outlines.errors import CheckpointError, OutlinesError

FORMAT = 1
GROUP = "runs.json"


def new_run_directory(root: Path, description: str) -> Path:
    """The next numbered directory under `root`, made: 001-outlines-default, 002-…"""
    root.mkdir(parents=True, exist_ok=True)
    while True:
        numbers = [int(match[1]) for entry in root.iterdir() if (match := re.match(r"(\d+)-", entry.name))]
        directory = root / f"{max(numbers, default=0) + 1:03d}-{description}"
        try:
            directory.mkdir()
        except FileExistsError:  # Another run took the number in between.
            continue
        return directory


@contextlib.contextmanager
def locked(directory: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the directory for this process, and sweep what interrupted writes left in it.

    waiting: is told whom this process waits for, if another one holds it; without it that is an error.
    The kernel drops the lock with the process, so none goes stale.
    """
    with open(directory / "lock", "a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                file.seek(0)
                holder = f"{directory}: process {file.read().strip()} is training here"
                if waiting is None:
                    raise OutlinesError(f"{holder}; wait for it or choose another directory") from error
                waiting(f"{holder}: waiting for it")
                waiting = _silent
            time.sleep(0.5)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        for folder in (directory, directory / "checkpoints"):
            sweep(folder)
        yield


def _silent(text: str) -> None:
    return


def write_json(path: Path, data: dict[str, Any]) -> None:
    atomic_write(path, (json.dumps(data, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; raises OutlinesError where it is damaged."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise OutlinesError(f"{path}: damaged: {error}") from error
    if not isinstance(data, dict):
        raise OutlinesError(f"{path}: damaged: not a JSON object")
    return data


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise OutlinesError(f"{path}: damaged: {error}") from error


def read_run(directory: Path) -> dict[str, Any]:
    """run.json of a run; raises OutlinesError if there is none, or it is of another format."""
    if not (directory / "run.json").exists():
        raise OutlinesError(f"{directory}: no run here (no run.json)")
    data = read_json(directory / "run.json")
    if data.get("format") != FORMAT:
        raise OutlinesError(f"{directory / 'run.json'}: made by another version (format {data.get('format')}, "
                            f"this is {FORMAT})")
    return data


class Group(NamedTuple):
    """The runs that a directory stands for: one run's seeds, or a comparison."""

    kind: str
    runs: list[Path]
    """each a run, or a group again"""


def begin_group(directory: Path, kind: str, names: Sequence[str]) -> None:
    """Make a directory stand for the runs of these names in it; theirs must have begun."""
    write_json(directory / GROUP, {"format": FORMAT, "kind": kind, "runs": list(names)})


def read_group(directory: Path) -> Group | None:
    """What a directory stands for; None where it is a run itself, or nothing."""
    file = directory / GROUP
    if not file.exists():
        return None
    data = read_json(file)
    names = data.get("runs")
    if not isinstance(names, list) or not names or data.get("kind") not in ("seeds", "compare") or not all(
            isinstance(name, str) and re.fullmatch(r"[\w-]+", name) for name in names):
        raise OutlinesError(f"{file}: damaged: it names no runs")
    for name in names:
        if (directory / name).is_symlink():  # It could lead back here, and so round for ever.
            raise OutlinesError(f"{file}: {name} is a link, where a run must be")
    return Group(data["kind"], [directory / name for name in names])


def runs_of(directory: Path) -> list[Path]:
    """The runs that a directory stands for, itself where it is one."""
    group = read_group(directory)
    return [directory] if group is None else [run for member in group.runs for run in runs_of(member)]


def checkpoint_path(directory: Path, stage: int, step: int) -> Path:
    return directory / "checkpoints" / f"{stage}-{step:08d}"


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first, whole or not."""
    return sorted((directory / "checkpoints").glob("[0-9]*-[0-9]*"))


def newest_checkpoint(directory: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]] | None:
    """Tensors and meta of the newest whole checkpoint, and what is wrong with newer ones; None where there is none."""
    there = checkpoints(directory)
    damaged = []
    for path in reversed(there):
        try:
            tensors, meta = read_state(path)
            if checkpoint_path(directory, meta["stage"], meta["step"]) != path:
                raise CheckpointError(f"{path}: holds the state of another step")
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        return tensors, meta, damaged
    if there != (now := checkpoints(directory)) and now:  # A trainer replaced them while this process read.
        return newest_checkpoint(directory)
    if damaged:
        raise OutlinesError(f"no checkpoint of this run is whole: {damaged[0]}")
    return None


def prune(directory: Path, keep: int, newest: Path) -> None:
    """Keep the last `keep` checkpoints up to `newest`; none after it, which this run has passed over; no leftovers."""
    there = checkpoints(directory)
    kept = [path for path in there if path <= newest][-keep:]
    for path in there:
        if path not in kept:
            shutil.rmtree(path)
    sweep(directory / "checkpoints")
