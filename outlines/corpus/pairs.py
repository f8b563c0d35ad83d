"""Pairs of a condition and a text, for conditional generation: which rows of a corpus describe the same item."""

from array import array
from typing import NamedTuple

import numpy as np

from outlines.corpus.reading import SPLITS, CorpusFiles, ReadingReport, read_corpus


class Pairs:
    """The groups of one split, by row.

    first: [N], the first row of each row's group. targets: rows of the texts that have a condition.
    labels: [N], each row's label by number, -1 if it has none.
    """

    def __init__(self, groups: np.ndarray, labels: np.ndarray, headed: bool):
        """groups: [N], the group of each row; groups are contiguous. headed: a group's first row is its only condition."""
        starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
        sizes = np.diff(np.append(starts, len(groups)))
        self.first, self._size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
        self._headed, self.labels = headed, labels
        rows = np.arange(len(groups))
        self.targets = rows[self.first != rows] if headed else rows[self._size > 1]

    def __len__(self) -> int:
        return len(self.labels)

    def conditions(self, rows: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Return a condition's row for each target row [B], never the row itself. uniforms: [B] in [0, 1), choose it."""
        if self._headed:
            return self.first[rows]
        chosen = self.first[rows] + (uniforms * (self._size[rows] - 1)).astype(np.int64)
        return chosen + (chosen >= rows)

    def texts(self, row: int) -> np.ndarray:
        """Return the rows of the texts in a row's group."""
        return np.arange(self.first[row] + self._headed, self.first[row] + self._size[row])

    def alike(self, row: int) -> np.ndarray:
        """Return the rows of the texts in a row's group that have its label."""
        rows = self.texts(row)
        return rows[self.labels[rows] == self.labels[row]]


class Pairing(NamedTuple):
    """The pairs of every split, and the names of their labels by number."""

    splits: dict[str, Pairs]
    labels: tuple[str, ...]


def load_pairing(files: CorpusFiles) -> Pairing:
    """Return which rows of a corpus describe the same item. Memory: 16 bytes per sentence."""
    groups, labels = ({split: array("q") for split in SPLITS} for _ in range(2))
    numbers: dict[str, int] = {}
    for member in read_corpus(files, ReadingReport()):
        groups[member.split].append(member.group)
        labels[member.split].append(numbers.setdefault(member.label, len(numbers)) if member.label else -1)
    return Pairing({split: Pairs(np.array(groups[split]), np.array(labels[split]), bool(files.condition_column))
                    for split in SPLITS}, tuple(numbers))
