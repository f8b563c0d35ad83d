"""Pairs for conditional generation: a condition and a text, two rows of a corpus that describe the same item."""

from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from outlines.checkpoint import read_state, write_state
from outlines.corpus.reading import SPLITS, CorpusFiles, ReadingReport, read_corpus


class Pairs:
    """The groups of one split. The rows of a group describe the same item and are contiguous.

    first: [N], for each row, the first row of the same group. targets: indices of the rows for which another
        row of the group can be the condition.
    labels: [N], index of each row's label; -1: no label.
    """

    def __init__(self, groups: np.ndarray, labels: np.ndarray, headed: bool):
        """groups: [N], group number of each row. headed: only a group's first row is a condition; otherwise every row is."""
        starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
        sizes = np.diff(np.append(starts, len(groups)))
        self.first, self._size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
        self._headed, self.labels = headed, labels
        rows = np.arange(len(groups))
        self.targets = rows[self.first != rows] if headed else rows[self._size > 1]

    def conditions(self, rows: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Return a condition's row index for each target row [B], never the target. uniforms: [B] in [0, 1), choose it."""
        if self._headed:
            return self.first[rows]
        chosen = self.first[rows] + (uniforms * (self._size[rows] - 1)).astype(np.int64)
        return chosen + (chosen >= rows)

    def texts(self, row: int) -> np.ndarray:
        """Return the indices of all texts in the group of `row`."""
        return np.arange(self.first[row] + self._headed, self.first[row] + self._size[row])

    def alike(self, row: int) -> np.ndarray:
        """Return the indices of all texts that have the same group and the same label as `row`."""
        rows = self.texts(row)
        return rows[self.labels[rows] == self.labels[row]]


class Pairing(NamedTuple):
    """The pairs by split, and the name of each label."""

    splits: dict[str, Pairs]
    labels: tuple[str, ...]


def load_pairing(files: CorpusFiles, directory: Path) -> Pairing:
    """Return the pairs of a corpus. The first call reads the files and stores the result in `directory`."""
    if not directory.exists():
        columns = {f"{split} {name}": array("q") for split in SPLITS for name in ("groups", "labels")}
        numbers: dict[str, int] = {}
        for member in read_corpus(files, ReadingReport()):
            columns[f"{member.split} groups"].append(member.group)
            columns[f"{member.split} labels"].append(numbers.setdefault(member.label, len(numbers)) if member.label else -1)
        write_state(directory, {name: torch.tensor(column) for name, column in columns.items()}, {"labels": list(numbers)})
    tensors, meta = read_state(directory)
    found = {name: tensor.numpy() for name, tensor in tensors.items()}
    return Pairing({split: Pairs(found[f"{split} groups"], found[f"{split} labels"], bool(files.condition_column))
                    for split in SPLITS}, tuple(meta["labels"]))
