"""From files to sentences, each with its split.

Consecutive white space becomes one space. Lines without a sentence are counted and reported. Sentences that describe the
same item form a group, and a group is in one split: either a fixed number of consecutive lines of a .txt file (by line
number, so a skipped line does not change other groups), or consecutive records with the same condition.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from outlines.checkpoint import sha256_file
from outlines.corpus.formats import GZ_BYTES, Bad, CorpusError, iconv, kind_of, read_fields, require_file
from outlines.options import option

SPLITS = ("train", "valid", "test")
OTHERWISE = " (if it is Latin-1; otherwise name its encoding after -f)"
MAX_CHARS_LIMIT = 50_000  # a character has up to 12 bytes in JSON, so the line still fits MAX_LINE_CHARS


@dataclass(frozen=True)
class CorpusFiles:
    """The files of a corpus, and how they are read and split."""

    corpus: tuple[str, ...] = option((), "training files: .txt, .jsonl, .json, .csv, .tsv or .parquet, optionally .gz "
                                         "(default: a built-in corpus of everyday scenes)")
    valid: tuple[str, ...] = option((), "validation files (default: a fraction of --corpus)")
    test: tuple[str, ...] = option((), "test files (default: a fraction of --corpus)")
    text_column: str = option("text", "column with the sentences, in files other than .txt")
    group_lines: int = option(0, "number of consecutive lines of a .txt file that describe the same item; each line is a "
                                 "condition for the others; 0: the file has a --condition-column", low=0)
    condition_column: str = option("", "column with the conditions (default: condition)")
    label_column: str = option("", "column with a label, which becomes part of the condition (default: no label)")
    max_rejected: float = option(0.1, "maximum fraction of invalid lines; above it, training does not start", low=0, high=1)
    strict: bool = option(False, "stop at the first bad line instead of skipping and counting it", flag=False)
    max_chars: int = option(2000, "maximum characters of a line; longer lines are rejected", low=1, high=MAX_CHARS_LIMIT,
                            flag=False)
    valid_fraction: float = option(0.02, "fraction of sentences held out for validation, by hash", low=0, high=0.5,
                                   flag=False)
    test_fraction: float = option(0.02, "fraction of sentences held out for testing, by hash", low=0, high=0.5, flag=False)

    def check(self) -> None:
        """Raise CorpusError if files or options contradict each other."""
        if self.valid_fraction + self.test_fraction >= 1:
            raise CorpusError(f"valid_fraction is {self.valid_fraction} and test_fraction is {self.test_fraction}. "
                              "Choose fractions with a sum below 1.")
        kinds = {kind_of(Path(path)) for paths in self.paths().values() for path in paths}
        if self.condition_column and ".txt" in kinds:
            raise CorpusError(".txt files have no condition column. Use --group-lines, or a .jsonl or .csv file.")
        if self.group_lines and (self.group_lines < 2 or kinds - {".txt"}):
            raise CorpusError(f"--group-lines is {self.group_lines}. Use at least 2, and only .txt files.")
        columns = [column for column in (self.condition_column, self.label_column, self.text_column) if column]
        if len(set(columns)) < len(columns) or (self.label_column and not self.condition_column):
            raise CorpusError(f"The columns are {', '.join(map(repr, columns))}. Condition, label and text need different "
                              "columns, and a label needs a condition.")

    def paths(self) -> dict[str, tuple[str, ...]]:
        """Return the files of each split."""
        return dict(zip(SPLITS, (self.corpus, self.valid, self.test), strict=True))

    @property
    def are_pairs(self) -> bool:
        """Whether the options define which sentences describe the same item."""
        return bool(self.group_lines or self.condition_column)


@dataclass
class ReadingReport:
    """Number of accepted sentences by split, number of rejected lines by reason, and the first rejected lines."""

    accepted: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    max_examples: int = 5

    def counts(self) -> str:
        """Return the number of rejected lines, with their reasons."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.most_common())
        return f"rejected lines: {self.rejected.total():,} ({reasons})"

    def summary(self) -> str:
        """Return a text: one line with the sizes of the splits, then one line for each of the first rejected lines."""
        sizes = ", ".join(f"{split} {self.accepted[split]:,}" for split in SPLITS)
        more = [f"... and {left:,} more"] if (left := self.rejected.total() - len(self.examples)) > 0 else []
        return "\n  ".join([f"sentences: {sizes}", *(f"rejected {example}" for example in self.examples), *more])

    def check(self, most: float) -> None:
        """Raise CorpusError if the fraction of rejected lines is above `most`. Blank lines do not count."""
        lost = self.rejected.total() - self.rejected["empty"]
        if lost > most * (lost + self.accepted.total()):
            path = self.examples[0].rsplit(":", 2)[0]
            advice = iconv("LATIN1", Path(path)) + OTHERWISE if "not UTF-8" in self.rejected else "Correct these lines"
            raise CorpusError(f"{path}: {self.counts()}, more than {most:.0%}. {advice}, or raise --max-rejected.")


class Record(NamedTuple):
    """One record: index of its file (from 0), line number (from 1), and the normalised sentence of each column."""

    file: int
    number: int
    fields: tuple[str, ...]


class Member(NamedTuple):
    """A sentence, its split, the index of its group, and its label ("": no label)."""

    split: str
    sentence: str
    group: int
    label: str


def _sentence(text: str, max_chars: int) -> str | Bad:
    sentence = " ".join(text.split())
    if "\0" in sentence:
        return Bad("NUL character")
    if len(sentence) > max_chars:
        return Bad("too long")
    try:
        sentence.encode()
    except UnicodeEncodeError as error:  # `_lines` turned bytes that are not UTF-8 into U+DC80 to U+DCFF
        return Bad("not UTF-8" if "\udc80" <= sentence[error.start] <= "\udcff" else "lone surrogate")
    # A text of only control and format characters, such as a zero-width space, is not a sentence either.
    return sentence if any(c != " " and c.isprintable() for c in sentence) else Bad("empty")


def read_records(files: CorpusFiles, paths: Sequence[str], columns: Sequence[str],
                 report: ReadingReport) -> Iterator[Record]:
    """Yield the records of `paths` in order, and count the rejected lines in `report`. Raises CorpusError."""
    num_accepted, num_rejected, reason = 0, 0, ""
    for file, path in enumerate(paths):
        for number, texts in read_fields(Path(path), columns):
            found = [texts] if isinstance(texts, Bad) else [_sentence(text, files.max_chars) for text in texts]
            sentences = tuple(text for text in found if isinstance(text, str))
            if len(sentences) == len(columns):
                num_accepted += 1
                yield Record(file, number, sentences)
                continue
            reason = next(text.reason for text in found if isinstance(text, Bad))
            if files.strict:
                raise CorpusError(f"{path}:{number}: {reason}. Correct the line, or remove the option strict to skip it.")
            num_rejected += 1
            report.rejected[reason] += 1
            if len(report.examples) < report.max_examples:
                report.examples.append(f"{path}:{number}: {reason}")
    if not num_accepted:
        details = f"{num_rejected:,} lines rejected, the last one: {reason}" if num_rejected else "empty"
        advice = iconv("LATIN1", Path(path)) + OTHERWISE if reason == "not UTF-8" else "Check the file and the column"
        raise CorpusError(f"{', '.join(paths)}: no sentence found ({details}). {advice}.")


def split_of(sentence: str, valid_fraction: float = 0.02, test_fraction: float = 0.02) -> str:
    """Return the split of a sentence. It depends only on the BLAKE2b hash, so equal sentences get the same split."""
    position = int.from_bytes(hashlib.blake2b(sentence.encode(), digest_size=8).digest(), "big") / 2**64
    return "valid" if position < valid_fraction else "test" if position < valid_fraction + test_fraction else "train"


def read_corpus(files: CorpusFiles, report: ReadingReport, sources: Sequence[str] = SPLITS) -> Iterator[Member]:
    """Yield the sentences of a corpus, group by group, and count them in `report`. Raises CorpusError.

    sources: read only the files of these splits. A condition column's text comes before the other texts of its group. In
    training files, the hash of a group's first sentence selects the group's split.
    """
    valid_fraction = 0.0 if files.valid else files.valid_fraction
    test_fraction = 0.0 if files.test else files.test_fraction
    columns = [column for column in (files.condition_column, files.text_column, files.label_column) if column]
    group, current, where = -1, None, ""
    for split, paths in files.paths().items():
        for file, number, texts in read_records(files, paths, columns, report) if paths and split in sources else ():
            first = texts[0]
            item = split, file, first if files.condition_column else (number - 1) // max(files.group_lines, 1)
            if item != current:
                group, current = group + 1, item
                where = split_of(first, valid_fraction, test_fraction) if split == "train" else split
                if files.condition_column:
                    report.accepted[where] += 1
                    yield Member(where, first, group, "")
            report.accepted[where] += 1
            yield Member(where, texts[bool(files.condition_column)], group, texts[2] if files.label_column else "")
    report.check(files.max_rejected)


def fingerprint(files: CorpusFiles) -> str:
    """Return the SHA-256 of the bytes and types of all files, and of the options. Paths do not change it."""
    described = {field.name: getattr(files, field.name) for field in fields(CorpusFiles) if field.name != "corpus"}
    described["gz_bytes"] = GZ_BYTES
    for split, names in files.paths().items():
        paths = [Path(name) for name in names]
        for path in paths:
            require_file(path)
        described[split] = [(kind_of(path), path.name.lower().endswith(".gz"), sha256_file(path)) for path in paths]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
