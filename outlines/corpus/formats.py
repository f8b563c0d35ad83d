"""Read the lines of text files and the records of tables, with line numbers and limits on memory.

All files are read as a stream, except .json files and JSON arrays, which are first read as a whole.
"""

import contextlib
import csv
import gzip
import io
import json
import re
import shlex
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlines.errors import OutlinesError, memory_advice, one_line, quoted

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
KINDS = (".txt", *TABLES)
DELIMITERS = ",;\t|"
MAX_LINE_CHARS, GZ_BYTES = 1 << 20, 1 << 30
GZ_RATIO = 200  # text compresses by a factor of 3 to 10, zero bytes by a factor of 1,032
GZ_START = b"\x1f\x8b"
# The first bytes, in lower case, of archives, Office files, PDF, Parquet, SQLite, PNG and marked-up text.
NOT_TEXT = (GZ_START, b"pk\3\4", b"bzh9", b"\xfd7zxz", b"7z\xbc\xaf", b"(\xb5/\xfd", b"\xd0\xcf\x11\xe0", b"%pdf-", b"par1",
            b"sqlite format", b"\x89png", b"{\\rtf", b"<!doctype", b"<html", b"<?xml")

MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # first match


class CorpusError(OutlinesError):
    """A corpus cannot be read, or has too few usable sentences."""


@dataclass(frozen=True)
class Bad:
    """Marks a line without valid text; `reason` says why."""

    reason: str


Line = tuple[int, str | Bad]
Fields = tuple[int, list[str] | Bad]  # line number, and the text of each column


def extension(path: Path) -> str:
    """Return the file's extension in lower case, without .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def kind_of(path: Path) -> str:
    """Return the file's `extension`, one of KINDS. Raises CorpusError."""
    kind = extension(path)
    if kind not in KINDS:
        what = f"a directory. Pass its files, such as {path}/*.txt." if path.is_dir() else "unknown file type."
        raise CorpusError(f"{path}: {what} Use {', '.join(KINDS)}, each also with .gz.")
    return kind


def iconv(encoding: str, path: Path) -> str:
    return f"Convert it: iconv -f {encoding} -t UTF-8 {quoted(path)} > {quoted('utf8-' + path.name)}"


def require_file(path: Path) -> None:
    """Raise CorpusError unless `path` is a plain file."""
    if not path.is_file():
        raise CorpusError(f"{path}: {'not a plain file' if path.exists() else 'no such file'}. Check the path.")


def read_fields(path: Path, columns: Sequence[str]) -> Iterator[Fields]:
    """Yield (line number, texts of the columns) of each record, or (line number, Bad) if a column has no valid text.

    In a .txt file, each line is a record, and each column has the whole line. A blank line has empty texts.
    Records of Parquet files and JSON arrays are numbered from 1. Raises CorpusError.
    """
    lines, kind = _lines(path), kind_of(path)
    if kind == ".parquet":
        yield from _record_fields(path, _parquet_records(path, columns), columns)
    elif kind in (".json", ".jsonl"):
        records = _json_array(path, columns[0]) or ((number, _json_value(line)) for number, line in lines)
        yield from _record_fields(path, records, columns)
    elif kind in (".csv", ".tsv"):
        yield from _csv_fields(path, lines, columns)
    else:
        number, odd = 0, 0
        for number, line in lines:
            odd += isinstance(line, str) and ("\t" in line.strip() or re.match(r'\{"|\d+[,;|]\D', line) is not None)
            yield number, line if isinstance(line, Bad) else [line] * len(columns)
        if 2 * odd > number:
            raise CorpusError(f"{path}: {odd:,} of {number:,} lines look like JSON or a table. Rename the file to .jsonl, "
                              ".csv or .tsv (the first line of a table names the columns), or replace tabs by spaces.")


@contextlib.contextmanager
def opened(path: Path | int) -> Iterator[io.BufferedReader | gzip.GzipFile]:
    """Open a plain or gzip text file; path 0: standard input. Raises CorpusError, also for read errors in the block."""
    name = path or "standard input"
    try:
        with open(path, "rb", closefd=path != 0) as raw:
            file = gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(GZ_START) else raw
            start = file.peek(512)
            if start.lower().startswith(NOT_TEXT) or start[257:262] == b"ustar":  # tar
                raise CorpusError(f"{name}: an archive or a document (Excel, PDF, HTML). Export it as UTF-8 text.")
            if encoding := _wide_encoding(start):
                raise CorpusError(f"{name}:1: encoded as {encoding}. {iconv(encoding, Path(str(name)))}")
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(f"{name}: damaged ({error}). Restore it from a copy.") from error
    except OSError as error:
        raise CorpusError(f"{name}: cannot be read ({error.strerror or error}). Check the path.") from error


def _wide_encoding(start: bytes) -> str:
    """Return UTF-16 or UTF-32 (with LE or BE if there is no byte order mark), or "". start: the first bytes of a file."""
    marked = [name for mark, name in MARKS.items() if start.startswith(mark)]
    first = start.partition(b"\n")[0].decode(errors="replace").strip()
    if marked or b"\0" not in start or (first.isprintable() and "\ufffd" not in first):
        return marked[0] if marked else ""
    for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        text = start[:512].decode(name, "replace").removesuffix("\ufffd")
        if {" ", "\n"} & set(text) and "\ufffd" not in text and all(c.isprintable() or c in "\t\r\n" for c in text):
            return name
    return ""


def _lines(path: Path) -> Iterator[Line]:
    """Yield (line number, line without \\n, \\r\\n or \\r). A byte that is not UTF-8 becomes a lone surrogate."""
    require_file(path)
    number, at_start, limit = 0, True, max(GZ_BYTES, GZ_RATIO * path.stat().st_size)
    with opened(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape")
        while piece := text.readline(MAX_LINE_CHARS):
            number += at_start
            if file.tell() > limit:
                raise CorpusError(f"{path}:{number}: decompresses to more than {limit:,} bytes. Decompress it first.")
            if at_start:  # later pieces of a line that is too long are skipped
                yield number, Bad("too long") if len(piece) == MAX_LINE_CHARS else piece.rstrip("\n")
            at_start = piece.endswith("\n")


def _find(path: Path, column: str, names: Sequence[str]) -> str:
    for name in (column, *names):
        if name in names and name.strip().lower() == column.strip().lower():
            return name
    found = ", ".join(repr(name[:40]) for name in names[:10]) or "no column at all"
    raise CorpusError(f"{path}:1: no column {column!r}; found {found}. Choose one with --text-column. "
                      "The first line of a .csv or .tsv file must name the columns.")


def _record_fields(path: Path, records: Iterable[tuple[int, Any]], columns: Sequence[str]) -> Iterator[Fields]:
    """Yield the fields of JSON or Parquet records. With only one column, a record can be a string. A blank line is ''."""
    missing, others = None, False
    for number, record in records:
        fields: Any = record if isinstance(record, Bad) else Bad("not a JSON object")
        if isinstance(record, str) and (not record or len(columns) == 1):
            fields = [record] * len(columns)
        elif isinstance(record, dict):
            try:
                fields = [record[_find(path, column, list(record))] for column in columns]
            except CorpusError as error:
                missing, fields = missing or error, Bad("column missing")
        others = others or fields not in (Bad("column missing"), [""] * len(columns))
        is_text = isinstance(fields, Bad) or all(isinstance(text, str) for text in fields)
        yield number, fields if is_text else Bad("column not a string")
    if missing and not others:
        raise missing


def _json_array(path: Path, column: str) -> Iterable[tuple[int, Any]] | None:
    """Return the records of a file that is one JSON array, or None. Raises CorpusError if the array is inside an object."""
    advice = f"Write one object per line: jq -c '.[]' {quoted(path)} > {quoted(path.stem + '.jsonl')}"
    with contextlib.suppress(ValueError, RecursionError), memory_advice(advice), opened(path) as file:
        start = file.read(4096).decode("utf-8-sig", "ignore").lstrip()
        if start.startswith(("[", "{") if kind_of(path) == ".json" else "["):
            file.seek(0)
            found = json.loads(file.read(GZ_BYTES).decode("utf-8-sig"))
            arrays = [name for name, value in found.items() if isinstance(value, list)] if isinstance(found, dict) else []
            if arrays and not isinstance(found.get(column), str):
                extract = f"jq {shlex.quote(f'.[{json.dumps(arrays[0])}]')} {quoted(path)} > {quoted('array-' + path.name)}"
                raise CorpusError(f"{path}: one object with the array {arrays[0]!r}. Extract the array: {extract}")
            if isinstance(found, list):
                return enumerate(found, start=1)
    return None


def _json_value(line: str | Bad) -> Any:
    try:
        return json.loads(line) if isinstance(line, str) and line.strip() else line if isinstance(line, Bad) else ""
    except (ValueError, RecursionError):
        return Bad("broken JSON")


def _parquet_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise CorpusError(f"{path}:1: .parquet files need pyarrow. Run pip install '.[parquet]'.") from error
    try:
        with parquet.ParquetFile(path) as file:
            wanted = [_find(path, column, file.schema_arrow.names) for column in columns]
            records = (record for batch in file.iter_batches(4096, columns=wanted) for record in batch.to_pylist())
            yield from enumerate(records, start=1)
    except (ArrowException, OSError) as error:
        raise CorpusError(f"{path}:1: not a readable .parquet file ({one_line(error)}). Restore it from a copy.") from error


def _csv_fields(path: Path, lines: Iterator[Line], columns: Sequence[str]) -> Iterator[Fields]:
    """Yield the fields of each record. If a quotation mark is never closed, only the record's first line is rejected."""
    first = next(lines, (1, ""))[1]
    if isinstance(first, str) and first.startswith("sep="):  # written by Excel
        first = next(lines, (2, ""))[1]
    wanted = {column.strip().lower() for column in columns}
    headers = [(delimiter, first if isinstance(first, Bad) else _csv_record([first], delimiter))
               for delimiter in ("\t" + DELIMITERS if kind_of(path) == ".tsv" else DELIMITERS)]
    delimiter, header = max(headers, key=lambda found: [] if isinstance(found[1], Bad) else [
        len(wanted.intersection(name.strip().lower() for name in found[1])), len(found[1])])
    if isinstance(header, Bad):
        raise CorpusError(f"{path}:1: unreadable header ({header.reason}). The first line must name the columns.")
    places = [header.index(_find(path, column, header)) for column in columns]
    ahead: deque[Line] = deque()
    for number, line in iter(lambda: ahead.popleft() if ahead else next(lines, None), None):
        if isinstance(line, Bad):
            yield number, line
            continue
        held, text, record = list[Line](), [line], _csv_record([line], delimiter, len(header))
        is_open, size = isinstance(record, Bad) and line.count('"') % 2 == 1, len(line)
        while is_open and size < csv.field_size_limit() and (item := ahead.popleft() if ahead else next(lines, None)):
            held.append(item)
            if isinstance(item[1], Bad):
                break
            text.append(item[1])
            size += len(item[1]) + 1
            is_open = item[1].count('"') % 2 == 0
        if held and not is_open:
            record = _csv_record(text, delimiter, len(header))
        if isinstance(record, Bad):
            ahead.extendleft(reversed(held))
            if delimiter == "\t" and len(parts := line.split("\t")) == len(header):  # quotes are part of the text
                record = parts
        yield number, record if isinstance(record, Bad) else [record[place] if record else "" for place in places]


def _csv_record(lines: list[str], delimiter: str, num_fields: int | None = None) -> list[str] | Bad:
    """Return the fields of one record: [] for a blank line, Bad for an invalid record."""
    text = "\n".join(lines)
    try:
        fields = next(csv.reader([text], strict=True, delimiter=delimiter))
    except csv.Error:
        return Bad("too long" if len(text) > csv.field_size_limit() else "broken CSV")
    return fields if num_fields is None or len(fields) in (0, num_fields) else Bad("broken CSV")
