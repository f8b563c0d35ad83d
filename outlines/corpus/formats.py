"""Lines of .txt, .jsonl and .csv files, each also .gz: streamed, decoded, numbered and bounded."""

import csv
import gzip
import json
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlines.errors import OutlinesError

KINDS = (".txt", ".jsonl", ".csv")
MAX_LINE_BYTES = 1 << 20
GZ_BYTES = 1 << 30
GZ_RATIO = 200  # text compresses by a factor of 3 to 10; zeros reach 1,032 with deflate


class CorpusError(OutlinesError):
    """A corpus cannot be read, or has nothing to learn from."""


@dataclass(frozen=True)
class Bad:
    """Replaces the text of a line that has none."""

    reason: str


Lines = Iterator[tuple[int, str | Bad]]


def kind_of(path: Path) -> str:
    """Return the file's extension without .gz, one of KINDS. Raises CorpusError."""
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind not in KINDS:
        raise CorpusError(f"{path}: unknown file type. Use {', '.join(KINDS)}, each also with .gz.")
    return kind


def is_gz(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def require_file(path: Path) -> None:
    """Raise CorpusError unless `path` is a plain file."""
    if not path.is_file():
        raise CorpusError(f"{path}: {'not a plain file' if path.exists() else 'no such file'}. Check the path.")


def read_fields(path: Path, columns: Sequence[str], gz_bytes: int = GZ_BYTES) -> Iterator[tuple[int, list[str] | Bad]]:
    """Yield (line number, text of each column), or Bad if one of them has no text. Raises CorpusError.

    In a .txt file, every name selects the whole line. A blank line has empty texts.
    """
    lines, kind = _lines(path, gz_bytes), kind_of(path)
    if kind == ".jsonl":
        yield from _json_fields(path, lines, columns)
    elif kind == ".csv":
        yield from _csv_fields(path, lines, columns)
    else:
        for number, line in lines:
            yield number, line if isinstance(line, Bad) else [line] * len(columns)


def _lines(path: Path, gz_bytes: int) -> Lines:
    """Yield numbered, decoded lines without their ends."""
    require_file(path)
    number, total, at_start = 0, 0, True
    try:
        limit = max(gz_bytes, GZ_RATIO * path.stat().st_size)
        with gzip.open(path) if is_gz(path) else open(path, "rb") as file:
            while piece := file.readline(MAX_LINE_BYTES):
                number += at_start
                total += len(piece)
                if total > limit and is_gz(path):
                    raise CorpusError(f"{path}:{number}: decompresses to more than {limit:,} bytes. Decompress it first.")
                if at_start and number == 1 and piece.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise CorpusError(f"{path}:1: encoded as UTF-16. Convert it: iconv -f UTF-16 -t UTF-8")
                if at_start:  # later pieces of a line that is too long are skipped
                    yield number, _text(piece, "utf-8-sig" if number == 1 else "utf-8")
                at_start = piece.endswith(b"\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(f"{path}:{number + at_start}: damaged or not gzip ({error}). Restore it from a copy.") from error
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror or error}.") from error


def _text(piece: bytes, encoding: str) -> str | Bad:
    if len(piece) == MAX_LINE_BYTES and not piece.endswith(b"\n"):
        return Bad("too long")
    try:
        return piece.rstrip(b"\r\n").decode(encoding)
    except UnicodeDecodeError:
        return Bad("not UTF-8")


def _no_column(path: Path, column: str, names: Sequence[str]) -> CorpusError:
    found = ", ".join(repr(name[:40]) for name in names[:10]) or "no column at all"
    return CorpusError(f"{path}:1: no column {column!r}, but {found}. Choose one with text_column.")


def _json_fields(path: Path, lines: Lines, columns: Sequence[str]) -> Iterator[tuple[int, list[str] | Bad]]:
    missing, others, names = "", False, list[str]()
    for number, line in lines:
        record = line if isinstance(line, Bad) else _json_object(line, columns)
        if isinstance(record, Bad):
            others = True
            yield number, record
        elif absent := [column for column in columns if column not in record]:
            missing, names = missing or absent[0], names or list(record)
            yield number, Bad("column missing")
        else:
            fields = [record[column] for column in columns]
            others = others or any(text != "" for text in fields)
            yield number, fields if all(isinstance(text, str) for text in fields) else Bad("column not a string")
    if missing and not others:
        raise _no_column(path, missing, names)


def _json_object(line: str, columns: Sequence[str]) -> dict[str, str] | Bad:
    """Return the object in a line; a blank line has empty texts."""
    try:
        record = json.loads(line) if line.strip() else dict.fromkeys(columns, "")
    except (ValueError, RecursionError):
        return Bad("broken JSON")
    return record if isinstance(record, dict) else Bad("not a JSON object")


def _csv_fields(path: Path, lines: Lines, columns: Sequence[str]) -> Iterator[tuple[int, list[str] | Bad]]:
    """Yield the columns of each record. If an open quote is never closed, only the record's first line is rejected."""
    first = next(lines, (1, ""))[1]
    header = first if isinstance(first, Bad) else _csv_record([first])
    if isinstance(header, Bad):
        raise CorpusError(f"{path}:1: unreadable header ({header.reason}). The first line must name the columns.")
    for column in columns:
        if column not in header:
            raise _no_column(path, column, header)
    ahead: deque[tuple[int, str | Bad]] = deque()
    while item := ahead.popleft() if ahead else next(lines, None):
        number, line = item
        if isinstance(line, Bad):
            yield number, line
            continue
        held, record = [item], _csv_record([line], len(header))
        text, size, is_open = [line], len(line), line.count('"') % 2 == 1
        while (isinstance(record, Bad) and is_open and size < csv.field_size_limit()
               and (item := ahead.popleft() if ahead else next(lines, None))):
            held.append(item)
            if isinstance(item[1], Bad):
                break
            text.append(item[1])
            size += len(item[1]) + 1
            if item[1].count('"') % 2 == 1:
                is_open, record = False, _csv_record(text, len(header))
        if isinstance(record, Bad):
            ahead.extendleft(reversed(held[1:]))
            yield number, record
        else:
            yield number, [record[header.index(column)] if record else "" for column in columns]


def _csv_record(lines: list[str], num_fields: int | None = None) -> list[str] | Bad:
    """Return the fields of one record; a blank line has none."""
    text = "\n".join(lines)
    try:
        fields = next(csv.reader([text], strict=True))
    except csv.Error:
        return Bad("too long" if len(text) > csv.field_size_limit() else "broken CSV")
    return fields if num_fields is None or len(fields) in (0, num_fields) else Bad("broken CSV")
