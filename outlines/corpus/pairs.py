"""Which sentences describe one thing: pairs of a condition and a text, for generation given another sentence.

Two kinds of files say it, and both give groups of neighbouring sentences that stay in one split:

    .txt, with group_lines            every N lines describe one thing; of any line, any other of its group is a condition
    .jsonl, .csv, with condition_column  a condition and a text a line, with label_column a label too; consecutive lines of
                                      one condition are one group

A group is counted by the numbers of its lines *in the file*, so a line that is skipped moves no other to another group.
"""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from outlines.corpus.reading import SPLITS, CorpusError, CorpusFiles, ReadingReport, read_records, split_of


class Member(NamedTuple):
    """A sentence of a group: its split, the group's number, and its label (empty where it has none)."""

    split: str
    sentence: str
    group: int
    label: str


def read_pairs(files: CorpusFiles, report: ReadingReport) -> Iterator[Member]:
    """Yield the sentences of all groups, of files with pairs, a group's condition (if it has one) before its texts.

    A group falls in the split of its first sentence's hash where its split has no files. Raises CorpusError.
    """
    valid_fraction = 0.0 if files.valid else files.valid_fraction
    test_fraction = 0.0 if files.test else files.test_fraction
    columns = [column for column in (files.condition_column, files.text_column, files.label_column) if column]
    group, current, where = -1, None, ""
    for split, paths in (("train", files.train), ("valid", files.valid), ("test", files.test)):
        if not paths:
            continue
        for record in read_records(paths, columns, strict=files.strict, max_chars=files.max_chars, report=report,
                                   gz_bytes=files.gz_bytes):
            first = record.fields[0]
            thing = (split, record.file, first if files.condition_column else (record.number - 1) // files.group_lines)
            if thing != current:
                group, current = group + 1, thing
                where = split_of(first, valid_fraction, test_fraction) if split == "train" else split
                if files.condition_column:
                    report.accepted[where] += 1
                    yield Member(where, first, group, "")
            report.accepted[where] += 1
            yield Member(where, record.fields[bool(files.condition_column)], group,
                         record.fields[2] if files.label_column else "")


class Pairs:
    """The groups of one split, by row: which rows are texts to write, and which rows they may be written for.

    first: [N], the first row of each row's group. targets: rows of the texts that have a condition.
    labels: [N], each row's label by number, -1 where it has none.
    """

    def __init__(self, groups: np.ndarray, labels: np.ndarray, headed: bool):
        """groups: [N] the group of each row, neighbours together. headed: a group's first row is its one condition."""
        starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
        sizes = np.diff(np.append(starts, len(groups)))
        self.first, self._size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
        self._headed = headed
        self.labels = labels
        rows = np.arange(len(groups))
        self.targets = rows[self.first != rows] if headed else rows[self._size > 1]

    def __len__(self) -> int:
        return len(self.labels)

    def conditions(self, rows: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """A condition's row for each of the target rows [B], never itself; uniforms [B] in [0, 1) choose among several."""
        if self._headed:
            return self.first[rows]
        chosen = self.first[rows] + (uniforms * (self._size[rows] - 1)).astype(np.int64)
        return chosen + (chosen >= rows)

    def texts(self, row: int) -> np.ndarray:
        """Rows of the texts in a row's group."""
        first = self.first[row]
        return np.arange(first + self._headed, first + self._size[row])

    def alike(self, row: int) -> np.ndarray:
        """Of these, those with the row's label."""
        rows = self.texts(row)
        return rows[self.labels[rows] == self.labels[row]]


class Pairing(NamedTuple):
    """The pairs of every split, and the names of their labels, in the order of their numbers."""

    splits: dict[str, Pairs]
    labels: tuple[str, ...]


def load_pairing(files: CorpusFiles) -> Pairing:
    """Read which rows of a corpus belong together. Memory: 16 bytes a sentence. Raises CorpusError."""
    groups = {split: array("q") for split in SPLITS}
    labels = {split: array("q") for split in SPLITS}
    numbers: dict[str, int] = {}
    for member in read_pairs(files, ReadingReport()):
        groups[member.split].append(member.group)
        labels[member.split].append(numbers.setdefault(member.label, len(numbers)) if member.label else -1)
    splits = {split: Pairs(np.array(groups[split]), np.array(labels[split]), bool(files.condition_column))
              for split in SPLITS}
    for split, pairs in splits.items():
        if not len(pairs.targets):
            raise CorpusError(f"the {split} split holds no pair: no two of its sentences describe one thing")
    return Pairing(splits, tuple(numbers))
