"""The log of a run: metrics.jsonl and TensorBoard. The horizontal axis is the number of training examples seen."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from train.config import read_toml

EVENTS = "events.out.tfevents.*"


def charts(*categories: str) -> dict[str, Any]:
    """Return these categories of charts.toml as a layout for TensorBoard's custom scalars."""
    known = read_toml(str(Path(__file__).parents[1] / "charts.toml"))
    return {name: {title: ["Multiline", [f"{tag}$"]] for title, tag in known[name].items()} for name in categories}


def write_hparams(writer: Any, options: dict[str, Any]) -> None:
    """Write a run's options to TensorBoard, without the list of names that `SummaryWriter.add_hparams` writes.

    TensorBoard would use one run's list for all runs.
    """
    _, started, ended = hparams(options, {})
    for summary in (started, ended):
        writer.file_writer.add_summary(summary)


def _last_writer(directory: Path, purge_step: int | None) -> SummaryWriter:
    """Return a TensorBoard writer whose file name sorts after all existing names. After 1.5 s, accept any name."""
    # TensorBoard reads files by name (second, host, process, number). Names can be equal, and a clock can be set back.
    earlier, end = set(directory.glob(EVENTS)), time.monotonic() + 1.5
    while True:
        writer = SummaryWriter(str(directory), purge_step=purge_step, flush_secs=10)
        files = set(directory.glob(EVENTS))
        if max(files) not in earlier or time.monotonic() > end:
            return writer
        writer.close()
        for file in files - earlier:
            file.unlink()
        time.sleep(0.05)


class _Silent:
    """Accepts every call and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class RunLog:
    """Writes metrics.jsonl and TensorBoard's events. Without a directory (ranks other than the first) it writes nothing."""

    def __init__(self, directory: Path | None, offset: int = 0, examples: int = 0):
        """offset: number of bytes of metrics.jsonl that a resumed run keeps. examples: number of examples seen so far.

        TensorBoard then hides the later events of an earlier process.
        """
        self._directory = directory
        self.writer: Any = _Silent()
        self._file: Any = _Silent()
        if directory is not None:
            self._file = open(directory / "metrics.jsonl", "ab")  # noqa: SIM115 - closed by close()
            os.truncate(self._file.fileno(), min(offset, self._file.tell()))
            # 0: nothing was saved, so the run starts again and all events are hidden
            purge_step = (examples + 1 if offset else 0) if any(directory.glob(EVENTS)) else None
            self.writer = _last_writer(directory, purge_step)

    def scalars(self, values: dict[str, float], stage: str, step: int, examples: int) -> None:
        """Write one line of metrics.jsonl, and one TensorBoard point per value."""
        self._file.write(json.dumps({"stage": stage, "step": step, "examples": examples, **values}).encode() + b"\n")
        for key, value in values.items():
            self.writer.add_scalar(key, value, examples)

    def vectors(self, vectors: Tensor, labels: list[list[str]], header: list[str]) -> None:
        """Write vectors [N, D] for TensorBoard's projector and replace earlier ones. header: names of the label columns."""
        if self._directory is not None:
            shutil.rmtree(self._directory / "00000", ignore_errors=True)
            self.writer.add_embedding(vectors.cpu(), labels, metadata_header=header, global_step=0, tag="vectors")

    def flush(self) -> int:
        """Flush everything to disk and return the size of metrics.jsonl in bytes."""
        if self._directory is None:
            return 0
        self.writer.flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self.flush()
        self.writer.close()
        self._file.close()
