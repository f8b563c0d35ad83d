"""Figures of a run: the same numbers to TensorBoard and to metrics.jsonl, against examples seen."""

import json
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writes scalars and texts; silent without a directory, as on every rank but the first.

    One quantity has one key in every family, so runs overlay in TensorBoard with no set-up.
    """

    def __init__(self, directory: Path | None, offset: int = 0, examples: int = 0):
        """offset: bytes of metrics.jsonl that a resumed run keeps; examples: seen so far, later events are hidden."""
        self._writer: Any = None
        if directory is None:
            return
        self._file = open(directory / "metrics.jsonl", "ab")  # noqa: SIM115 - closed by close()
        os.truncate(self._file.fileno(), min(offset, self._file.tell()))
        self._writer = SummaryWriter(str(directory), purge_step=examples if offset else None, flush_secs=10)

    def scalars(self, values: dict[str, float], stage: str, step: int, examples: int) -> None:
        """One line of metrics.jsonl, and one TensorBoard point for each value."""
        if self._writer is None:
            return
        line = {"stage": stage, "step": step, "examples": examples, **values}
        self._file.write(json.dumps(line).encode() + b"\n")
        for key, value in values.items():
            self._writer.add_scalar(key, value, examples)

    def text(self, key: str, lines: list[str], examples: int) -> None:
        """Sentences as a list."""
        if self._writer is not None:
            self._writer.add_text(key, "\n".join(f"- {line}" for line in lines), examples)

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
