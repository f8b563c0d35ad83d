"""Files to sentences, and the split that each sentence falls in: where text enters.

A corpus is one or several files of one sentence a line: `.txt`, `.jsonl` (one object a line) or `.csv` (with
a header; a quoted field may span lines), each also `.gz`, in UTF-8, lines ending in LF or CRLF. Files are
streamed and every line is read bounded, so memory grows neither with the file nor with a line.

A corpus of pairs (corpus/pairs.py) says beside that which sentences describe one thing.

A sentence is normalised in one way: white space at its ends goes, and every run of white space within it
(tabs, no-break spaces, Unicode line separators, a newline in a quoted field) becomes one space. A line that
holds no sentence is never passed over in silence: it is counted and named by file and line, or, if `strict`,
an error.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from outlines.checkpoint import sha256_file
from outlines.errors import OutlinesError

SPLITS = ("train", "valid", "test")
KINDS = (".txt", ".jsonl", ".csv")

MAX_LINE_BYTES = 1 << 20
MAX_CHARS_LIMIT = 50_000  # in JSON a character may take 12 bytes: the line still fits MAX_LINE_BYTES
GZ_BYTES = 1 << 30
GZ_RATIO = 200  # text compresses 3 to 10 times; deflate reaches 1,032 on zeros

NOT_UTF8 = "not UTF-8"
EMPTY = "empty"
NUL = "NUL character"
TOO_LONG = "too long"
SURROGATE = "lone surrogate"
BROKEN_JSON = "broken JSON"
NOT_AN_OBJECT = "not a JSON object"
NO_COLUMN = "column missing"
NOT_A_STRING = "column not a string"
BROKEN_CSV = "broken CSV"


class CorpusError(OutlinesError):
    """A corpus that cannot be read, or has nothing to learn from."""


@dataclass(frozen=True)
class CorpusFiles:
    """Which files make a corpus, and how they are read and split.

    train, valid, test: paths. A held-out split without files is taken out of the train files by its fraction.
    text_column: the field of `.jsonl` and `.csv` files that holds the sentence.
    strict: a line without a sentence is an error instead of being counted and passed over.
    max_chars: sentences of more characters are rejected.
    valid_fraction, test_fraction: the share of the train files' sentences that goes to a split without files.
    group_lines: so many consecutive lines of a `.txt` describe one thing; 0: they have nothing to do with one another.
    condition_column: the field of `.jsonl` and `.csv` files that holds what the text is to be written for; empty: none.
    label_column: the field that holds the pair's label; empty: none.
    gz_bytes: a `.gz` may decompress to this many bytes, or to 200 times its own size if that is more.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    text_column: str = "text"
    strict: bool = False
    max_chars: int = 2000
    valid_fraction: float = 0.02
    test_fraction: float = 0.02
    gz_bytes: int = GZ_BYTES
    group_lines: int = 0
    condition_column: str = ""
    label_column: str = ""

    def __post_init__(self) -> None:
        if not self.train:
            raise CorpusError("a corpus needs at least one train file")
        if not 1 <= self.max_chars <= MAX_CHARS_LIMIT:
            raise CorpusError(f"max_chars is {self.max_chars}: choose 1 to {MAX_CHARS_LIMIT}")
        if not (self.valid_fraction >= 0 and self.test_fraction >= 0
                and self.valid_fraction + self.test_fraction < 1):
            raise CorpusError(f"valid_fraction {self.valid_fraction} and test_fraction {self.test_fraction}: "
                              "neither may be negative, and their sum must be below 1")
        kinds = {_kind(Path(path)) for path in (*self.train, *self.valid, *self.test)}
        if self.text_column != "text" and kinds == {".txt"}:
            raise CorpusError(f"text_column {self.text_column!r} has no effect on .txt files: leave it out")
        if self.condition_column and ".txt" in kinds:
            raise CorpusError("a .txt file has no column of conditions: say how many lines in a row describe one thing "
                              "(group_lines), or bring .jsonl or .csv files")
        if self.group_lines and (self.group_lines < 2 or kinds != {".txt"}):
            raise CorpusError(f"group_lines is {self.group_lines}: it must be 2 or more, and is for .txt files alone")
        columns = [column for column in (self.condition_column, self.label_column, self.text_column) if column]
        if len(set(columns)) < len(columns) or (self.label_column and not self.condition_column):
            raise CorpusError(f"columns {', '.join(map(repr, columns))}: condition, label and text each need their own, "
                              "and a label a condition")

    @property
    def are_pairs(self) -> bool:
        """Whether it is said which sentences describe one thing."""
        return bool(self.group_lines or self.condition_column)


@dataclass
class ReadingReport:
    """What was read: accepted sentences by split, rejected lines by reason, the first few of them by name."""

    accepted: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    max_examples: int = 5

    def reject(self, place: str, reason: str) -> None:
        """Count a line at `place` (file:line) that holds no sentence."""
        self.rejected[reason] += 1
        if len(self.examples) < self.max_examples:
            self.examples.append(f"{place}: {reason}")

    def summary(self) -> str:
        """A line of counts for people and, if lines were rejected, a line for each example."""
        counts = ", ".join(f"{split} {self.accepted[split]:,}" for split in SPLITS)
        if not self.rejected:
            return f"sentences: {counts}; no line rejected"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.most_common())
        total = self.rejected.total()
        more = [f"  ... and {total - len(self.examples):,} more"] if total > len(self.examples) else []
        return "\n".join([f"sentences: {counts}; rejected lines: {total:,} ({reasons})",
                          *(f"  {example}" for example in self.examples), *more])


@dataclass(frozen=True)
class _Bad:
    """Stands where a line's text would, and says why there is none."""

    reason: str


_Numbered = Iterator[tuple[int, str | _Bad]]


def _kind(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    for kind in KINDS:
        if name.endswith(kind):
            return kind
    raise CorpusError(f"{path}: unknown kind of file: use {', '.join(KINDS)}, each also .gz")


def _is_gz(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise CorpusError(f"{path}: {'not a plain file' if path.exists() else 'no such file'}")


def _pieces(path: Path, gz_bytes: int) -> Iterator[bytes]:
    """Lines with their ends; a line above MAX_LINE_BYTES comes in several pieces."""
    _require_file(path)
    number = 1
    try:
        limit = max(gz_bytes, GZ_RATIO * path.stat().st_size)
        with gzip.open(path) if _is_gz(path) else open(path, "rb") as file:
            total = 0
            while piece := file.readline(MAX_LINE_BYTES):
                total += len(piece)
                if total > limit and _is_gz(path):
                    raise CorpusError(f"{path}:{number}: decompresses to more than {limit:,} bytes: if that is meant, "
                                      "raise gz_bytes")
                yield piece
                number += piece.endswith(b"\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(f"{path}:{number}: damaged, cut short or not gzip ({error})") from error
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror or error}") from error


def _lines(path: Path, gz_bytes: int) -> _Numbered:
    """Numbered lines, decoded, without their ends."""
    number, at_start = 0, True
    for piece in _pieces(path, gz_bytes):
        ended = piece.endswith(b"\n")
        if at_start:
            number += 1
            whole = ended or len(piece) < MAX_LINE_BYTES
            if number == 1:
                if piece.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise CorpusError(f"{path}:1: is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)")
                piece = piece.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, piece.rstrip(b"\r\n").decode() if whole else _Bad(TOO_LONG)
            except UnicodeDecodeError:
                yield number, _Bad(NOT_UTF8)
        at_start = ended


def _json_lines(path: Path, lines: _Numbered, column: str) -> _Numbered:
    num_missing = num_other = 0
    seen: list[str] = []
    for number, line in lines:
        text = line if isinstance(line, _Bad) or not line.strip() else _json_field(line, column, seen)
        if text == _Bad(NO_COLUMN):
            num_missing += 1
        elif text:
            num_other += 1
        yield number, text
    if num_missing and not num_other:
        names = ", ".join(seen) or "no column at all"
        raise CorpusError(f"{path}:1: no column {column!r}: choose text_column; the first line has {names}")


def _json_field(line: str, column: str, seen: list[str]) -> str | _Bad:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return _Bad(BROKEN_JSON)
    if not isinstance(record, dict):
        return _Bad(NOT_AN_OBJECT)
    if column not in record:
        seen[:] = seen or [repr(name[:40]) for name in list(record)[:10]]
        return _Bad(NO_COLUMN)
    text = record[column]
    return text if isinstance(text, str) else _Bad(NOT_A_STRING)


def _csv_lines(path: Path, lines: _Numbered, column: str) -> _Numbered:
    """The column's fields, each numbered by its record's first line.

    A record goes on over further lines while a quote is open. Where that leads nowhere, only the first line
    is rejected and the others are read again, so that a stray quote costs one line and not the rest of the
    file.
    """
    first = next(lines, (1, ""))[1]
    header = first if isinstance(first, _Bad) else _csv_record([first])
    if isinstance(header, _Bad):
        raise CorpusError(f"{path}:1: the header cannot be read: {header.reason}")
    if column not in header:
        names = ", ".join(repr(name[:40]) for name in header[:10]) or "no column at all"
        raise CorpusError(f"{path}:1: no column {column!r}: choose text_column; the header has {names}")
    ahead: deque[tuple[int, str | _Bad]] = deque()
    while item := ahead.popleft() if ahead else next(lines, None):
        number, line = item
        if isinstance(line, _Bad):
            yield number, line
            continue
        held, record = [item], _csv_record([line], len(header))
        text, size, is_open = [line], len(line), line.count('"') % 2 == 1
        while isinstance(record, _Bad) and is_open and size < csv.field_size_limit():
            item = ahead.popleft() if ahead else next(lines, None)
            if item is None:
                break
            held.append(item)
            if isinstance(item[1], _Bad):
                break
            text.append(item[1])
            size += len(item[1]) + 1
            if item[1].count('"') % 2 == 1:
                is_open, record = False, _csv_record(text, len(header))
        if isinstance(record, _Bad):
            ahead.extendleft(reversed(held[1:]))
            yield number, record
        else:
            yield number, record[header.index(column)] if record else ""


def _csv_record(lines: list[str], num_fields: int | None = None) -> list[str] | _Bad:
    """The fields of one record, which are none for a blank line."""
    text = "\n".join(lines)
    try:
        fields = next(csv.reader([text], strict=True))
    except csv.Error:
        return _Bad(TOO_LONG if len(text) > csv.field_size_limit() else BROKEN_CSV)
    return fields if num_fields is None or len(fields) in (0, num_fields) else _Bad(BROKEN_CSV)


def _sentence(text: str, max_chars: int) -> str | _Bad:
    sentence = " ".join(text.split())
    if "\0" in sentence:
        return _Bad(NUL)
    if len(sentence) > max_chars:
        return _Bad(TOO_LONG)
    try:
        sentence.encode()
    except UnicodeEncodeError:
        return _Bad(SURROGATE)
    # Control and format characters (a zero-width space) alone are no sentence either.
    return sentence if any(c != " " and c.isprintable() for c in sentence) else _Bad(EMPTY)


def read_sentences(paths: Iterable[str], *, text_column: str = "text", strict: bool = False,
                   max_chars: int = 2000, report: ReadingReport | None = None,
                   gz_bytes: int = GZ_BYTES) -> Iterator[str]:
    """Yield the normalised sentences of the files, in order; see CorpusFiles for the options.

    Rejected lines are counted in `report`; accepted ones are not, for their split is not known here. Raises
    CorpusError for a file that cannot be read, for a bad line if `strict`, and at the end if the files held
    no sentence at all.
    """
    for record in read_records(paths, (text_column,), strict=strict, max_chars=max_chars, report=report, gz_bytes=gz_bytes):
        yield record.fields[0]


class Record(NamedTuple):
    """What one line gave: its file and number, both counted (from 0, from 1), and a normalised sentence a column."""

    file: int
    number: int
    fields: tuple[str, ...]


def read_records(paths: Iterable[str], columns: Sequence[str], *, strict: bool = False, max_chars: int = 2000,
                 report: ReadingReport | None = None, gz_bytes: int = GZ_BYTES) -> Iterator[Record]:
    """As `read_sentences`, of several columns at once; a line that lacks one of them is rejected as a whole.

    In a `.txt` file, which has one column only, each stands for the whole line. Every column reads the file for itself.
    """
    files = [Path(path) for path in paths]
    report = ReadingReport() if report is None else report
    num_accepted = num_rejected = 0
    last_reason = ""
    for file, path in enumerate(files):
        for lines in zip(*(_texts(path, column, gz_bytes) for column in columns), strict=True):
            number = lines[0][0]
            fields = [text if isinstance(text, _Bad) else _sentence(text, max_chars) for _, text in lines]
            bad = next((field for field in fields if isinstance(field, _Bad)), None)
            if bad is None:
                num_accepted += 1
                yield Record(file, number, tuple(field for field in fields if isinstance(field, str)))
            elif strict:
                raise CorpusError(f"{path}:{number}: {bad.reason}: mend the line or leave strict out")
            else:
                num_rejected += 1
                last_reason = bad.reason
                report.reject(f"{path}:{number}", bad.reason)
    if not num_accepted:
        found = f"{num_rejected:,} lines rejected, the last as {last_reason}" if num_rejected else "empty"
        raise CorpusError(f"{', '.join(map(str, files))}: no sentence found ({found})")


def _texts(path: Path, column: str, gz_bytes: int) -> _Numbered:
    """Numbered texts of one column; every column of a file gives the same numbers."""
    kind, lines = _kind(path), _lines(path, gz_bytes)
    if kind == ".jsonl":
        return _json_lines(path, lines, column)
    return _csv_lines(path, lines, column) if kind == ".csv" else lines


def split_of(sentence: str, valid_fraction: float = 0.02, test_fraction: float = 0.02) -> str:
    """The split of a sentence, by its BLAKE2b hash alone: the same sentence never stands on two sides."""
    digest = hashlib.blake2b(sentence.encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position < valid_fraction:
        return "valid"
    return "test" if position < valid_fraction + test_fraction else "train"


def read_corpus(files: CorpusFiles, report: ReadingReport) -> Iterator[tuple[str, str]]:
    """Yield (split, sentence) of the whole corpus and count all lines in `report`. Raises CorpusError."""
    valid_fraction = 0.0 if files.valid else files.valid_fraction
    test_fraction = 0.0 if files.test else files.test_fraction
    for split, paths in (("train", files.train), ("valid", files.valid), ("test", files.test)):
        if not paths:
            continue
        for sentence in read_sentences(paths, text_column=files.text_column, strict=files.strict,
                                       max_chars=files.max_chars, report=report, gz_bytes=files.gz_bytes):
            where = split_of(sentence, valid_fraction, test_fraction) if split == "train" else split
            report.accepted[where] += 1
            yield where, sentence


def fingerprint(files: CorpusFiles) -> str:
    """SHA-256 over the files' bytes and kinds and over the options; where the files lie does not matter."""
    described = asdict(files)
    if not files.are_pairs:
        for name in ("group_lines", "condition_column", "label_column"):
            del described[name]  # A corpus that pairs nothing is what it was before there were any.
    for split in SPLITS:
        paths = [Path(path) for path in getattr(files, split)]
        for path in paths:
            _require_file(path)
        described[split] = [(_kind(path), _is_gz(path), sha256_file(path)) for path in paths]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
