"""Figures of a run: the same numbers to TensorBoard and to metrics.jsonl, against examples seen."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

EVENTS = "events.out.tfevents.*"

def write_hparams(writer: Any, options: dict[str, Any]) -> None:
    """The options of a run, flat.

    Not by `add_hparams`: that also lists the options and figures which there are, and TensorBoard takes the list of any
    one run for all, so that those of the other families would be missing. Without a list it gathers them from every run.
    """
    _, started, ended = hparams(options, {})
    for summary in (started, ended):
        writer.file_writer.add_summary(summary)


def _last_writer(directory: Path, purge_step: int | None) -> SummaryWriter:
    """A writer whose file is named after those that are there, if a second or so brings one: a clock may have been set back.

    TensorBoard reads a run's files in the order of their names (second, host, process, number), and the last one counts.
    """
    earlier = set(directory.glob(EVENTS))
    end = time.monotonic() + 1.5
    while True:
        writer = SummaryWriter(str(directory), purge_step=purge_step, flush_secs=10)
        files = set(directory.glob(EVENTS))
        if max(files) not in earlier or time.monotonic() > end:
            return writer
        writer.close()
        for file in files - earlier:
            file.unlink()
        time.sleep(0.05)


class RunLog:
    """Writes figures, texts and pictures; silent without a directory, as on every rank but the first.

    One quantity has one key in every family, so runs overlay in TensorBoard with no set-up.
    """

    def __init__(self, directory: Path | None, offset: int = 0, examples: int = 0):
        """offset: bytes of metrics.jsonl that a resumed run keeps; examples: seen so far, events after it are hidden."""
        self._writer: Any = None
        if directory is None:
            return
        self._file = open(directory / "metrics.jsonl", "ab")  # noqa: SIM115 - closed by close()
        os.truncate(self._file.fileno(), min(offset, self._file.tell()))
        purge_step = None
        if any(directory.glob(EVENTS)):
            purge_step = examples + 1 if offset else 0  # 0: nothing was saved, and the run begins anew
        self._writer = _last_writer(directory, purge_step)

    def scalars(self, values: dict[str, float], stage: str, step: int, examples: int) -> None:
        """One line of metrics.jsonl, and one TensorBoard point for each value."""
        if self._writer is None:
            return
        line = {"stage": stage, "step": step, "examples": examples, **values}
        self._file.write(json.dumps(line).encode() + b"\n")
        for key, value in values.items():
            self._writer.add_scalar(key, value, examples)

    def text(self, key: str, markdown: str, examples: int) -> None:
        if self._writer is not None:
            self._writer.add_text(key, markdown, examples)

    def histogram(self, key: str, values: Tensor, examples: int) -> None:
        """How values of any shape are distributed."""
        if self._writer is not None:
            self._writer.add_histogram(key, values.cpu(), examples)

    def picture(self, key: str, picture: Figure, examples: int) -> None:
        if self._writer is not None:
            self._writer.add_figure(key, picture, examples)

    def layout(self, layout: dict[str, dict[str, list[Any]]]) -> None:
        """Charts of several curves, in TensorBoard's custom scalars."""
        if self._writer is not None and layout:
            self._writer.add_custom_scalars(layout)

    def hparams(self, options: dict[str, Any]) -> None:
        """The run's options, which TensorBoard lays beside the figures of all runs."""
        if self._writer is not None:
            write_hparams(self._writer, options)

    def vectors(self, vectors: Tensor, labels: list[list[str]], header: list[str]) -> None:
        """Vectors [N, D] for the projector, with columns of labels that the header names; they replace earlier ones."""
        if self._writer is not None:
            shutil.rmtree(Path(self._writer.log_dir) / "00000", ignore_errors=True)
            self._writer.add_embedding(vectors.cpu(), labels, metadata_header=header, global_step=0, tag="vectors")

    def flush(self) -> int:
        """Bytes of metrics.jsonl that are on the disk."""
        if self._writer is None:
            return 0
        self._writer.flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        if self._writer is not None:
            self.flush()
            self._writer.close()
            self._file.close()
