"""Files, lock and checkpoints in the directory of a run (docs/runs.md) or of a group of runs (with runs.json)."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from outlines.checkpoint import atomic_write, read_state, sweep
from outlines.errors import CheckpointError, OutlinesError, no_run, one_line
from outlines.hardening import read_json

FORMAT = 1
GROUP = "runs.json"


def new_run_directory(root: Path, description: str) -> Path:
    """Create and return the next numbered directory in `root`: 001-outlines-default, 002-…"""
    root.mkdir(parents=True, exist_ok=True)
    while True:
        numbers = [int(match[1]) for entry in root.iterdir() if (match := re.match(r"(\d+)-", entry.name))]
        directory = root / f"{max(numbers, default=0) + 1:03d}-{description}"
        with contextlib.suppress(FileExistsError):  # another run has just created it
            directory.mkdir()
            return directory


@contextlib.contextmanager
def locked(directory: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Lock the directory for this process, and delete the leftovers of interrupted writes in it.

    waiting: called with a message before waiting for another process. None: raise OutlinesError instead of waiting.
    """
    with open(directory / "lock", "a+") as file:
        try:
            _lock(file, wait=False)
        except BlockingIOError as error:
            file.seek(0)
            holder = f"{directory}: process {file.read().strip()} is training here"
            if waiting is None:
                raise OutlinesError(f"{holder}. Wait until it ends, or choose another directory.") from error
            waiting(f"{holder}: waiting for it")
            _lock(file, wait=True)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        sweep(directory)
        sweep(directory / "checkpoints")
        yield


def _lock(file: IO[str], wait: bool) -> None:
    """Lock an open file. Without `wait`, raises BlockingIOError if another process has locked it."""
    with contextlib.suppress(ImportError):  # Windows has no fcntl, so nothing is locked
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def write_json(path: Path, data: dict[str, Any]) -> None:
    atomic_write(path, (json.dumps(data, indent=1) + "\n").encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl. Raises OutlinesError if the file is missing or damaged."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise OutlinesError(f"{path}: damaged ({one_line(error)}). Restore it from a copy.") from error


def read_run(directory: Path) -> dict[str, Any]:
    """Return the content of run.json. Raises OutlinesError if it is missing or damaged, or has another format."""
    if not (directory / "run.json").exists():
        raise no_run(directory)
    data = read_json(directory / "run.json")
    if data.get("format") != FORMAT:
        raise OutlinesError(f"{directory / 'run.json'}: its format is {str(data.get('format'))[:40]}, but this version "
                            f"reads format {FORMAT}. Train the run again.")
    return data


class Group(NamedTuple):
    """A directory of several runs. kind: seeds or compare. runs: directories, each of a run or of another group."""

    kind: str
    runs: list[Path]


def begin_group(directory: Path, kind: str, names: Sequence[str]) -> None:
    """Write runs.json. names: directories in `directory`, whose run.json or runs.json must already be written."""
    write_json(directory / GROUP, {"format": FORMAT, "kind": kind, "runs": list(names)})


def read_group(directory: Path) -> Group | None:
    """Return the group in a directory, or None if there is no runs.json. Raises OutlinesError if it is damaged."""
    file = directory / GROUP
    if not file.exists():
        return None
    data = read_json(file)
    names = data.get("runs")
    if not isinstance(names, list) or not names or data.get("kind") not in ("seeds", "compare") or not all(
            isinstance(name, str) and re.fullmatch(r"[\w-]+", name) for name in names):
        raise OutlinesError(f"{file}: damaged (it names no runs). Restore it from a copy.")
    for name in names:
        if (directory / name).is_symlink():  # a link back to this directory would be an endless recursion
            raise OutlinesError(f"{file}: {name} is a link. Replace it by the run's directory.")
    return Group(data["kind"], [directory / name for name in names])


def runs_of(directory: Path) -> list[Path]:
    """Return all runs of a group, or the directory itself if it is a run."""
    group = read_group(directory)
    return [directory] if group is None else [run for member in group.runs for run in runs_of(member)]


def checkpoint_path(directory: Path, stage: int, step: int) -> Path:
    return directory / "checkpoints" / f"{stage}-{step:08d}"


def checkpoints(directory: Path) -> list[Path]:
    """Return all checkpoints of a run, oldest first, damaged ones included."""
    return sorted((directory / "checkpoints").glob("[0-9]*-[0-9]*"))


def newest_checkpoint(directory: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]] | None:
    """Return tensors and meta of the newest valid checkpoint, and the errors of newer, damaged ones.

    Returns None if there are no checkpoints. Raises OutlinesError if all checkpoints are damaged.
    """
    found = checkpoints(directory)
    damaged: list[str] = []
    for path in reversed(found):
        try:
            tensors, meta = read_state(path)
            if checkpoint_path(directory, meta["stage"], meta["step"]) != path:
                raise CheckpointError(f"{path}: contains the state of another step. Delete it.")
            return tensors, meta, damaged
        except CheckpointError as error:
            damaged.append(str(error))
    if found != (now := checkpoints(directory)) and now:  # a training process has replaced them in the meantime
        return newest_checkpoint(directory)
    if damaged:
        raise OutlinesError(f"{damaged[0]} No other checkpoint of this run is valid. If you have no copy, train it again.")
    return None


def prune(directory: Path, keep: int, newest: Path) -> None:
    """Keep the last `keep` checkpoints up to `newest`. Delete the others (later ones are damaged) and partial writes."""
    found = checkpoints(directory)
    for path in set(found) - set([path for path in found if path <= newest][-keep:]):
        shutil.rmtree(path)
    sweep(directory / "checkpoints")
