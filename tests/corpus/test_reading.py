import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outlines.corpus import reading
from outlines.corpus.formats import CorpusError
from outlines.corpus.reading import CorpusFiles, ReadingReport, fingerprint, read_corpus, read_records, split_of
from outlines.errors import OutlinesError


def read_sentences(paths: list[str], report: ReadingReport | None = None, **options: Any) -> Iterator[str]:
    """Yield the sentences of one column."""
    files = CorpusFiles(tuple(paths), **options)
    for record in read_records(files, paths, [files.text_column], report or ReadingReport()):
        yield record.fields[0]


def read(path: Path, data: bytes, **options: Any) -> tuple[list[str], ReadingReport]:
    path.write_bytes(data)
    report = ReadingReport()
    return list(read_sentences([str(path)], report=report, **options)), report


def lines_of(report: ReadingReport) -> list[tuple[int, str]]:
    """(line number, reason) of each example."""
    places = [example.rsplit(": ", 1) for example in report.examples]
    return [(int(place.rsplit(":", 1)[1]), reason) for place, reason in places]


def test_white_space_is_normalised(tmp_path: Path) -> None:
    data = "\ufeff  A dog\t runs. \r\nTwo\u2028cats\u00a0 \u3000sleep\nlast".encode()
    sentences, report = read(tmp_path / "a.txt", data)
    assert sentences == ["A dog runs.", "Two cats sleep", "last"]
    assert not report.rejected


def test_every_bad_line_is_reported_with_its_reason(tmp_path: Path) -> None:
    data = b"good\n\xff\xfeoops\n   \t\nnul\0here\n" + b"x" * 11 + b"\n\xe2\x80\x8b\nfine\n"
    sentences, report = read(tmp_path / "a.txt", data, max_chars=10)
    assert sentences == ["good", "fine"]
    assert lines_of(report) == [(2, "not UTF-8"), (3, "empty"), (4, "NUL character"), (5, "too long"),
                                (6, "empty")]
    assert report.rejected == {"not UTF-8": 1, "empty": 2, "NUL character": 1, "too long": 1}
    assert f"\n  rejected {tmp_path / 'a.txt'}:2: not UTF-8" in report.summary()
    assert report.counts() == "rejected lines: 5 (2 empty, 1 not UTF-8, 1 NUL character, 1 too long)"


def test_examples_are_limited_and_the_rest_is_counted(tmp_path: Path) -> None:
    _, report = read(tmp_path / "a.txt", b"ok\n" + b"\n" * 8)
    assert len(report.examples) == 5
    assert report.rejected == {"empty": 8}
    assert report.summary().endswith("... and 3 more")


def test_strict_names_file_line_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(CorpusError, match=r"a\.txt:2: empty"):
        read(path, b"ok\n\nok\n", strict=True)


def test_json_lines(tmp_path: Path) -> None:
    data = b"\n".join([
        b'{"text": "one\\n  two", "other": [1]}', b"{", b"[" * 100_000, b"[1]", b'{"other": 1}',
        b'{"text": 7}', b'{"text": "\\ud800"}', b'{"text": ""}', b"9" * 5000, b'{"text": "\\ud83d\\ude00"}'])
    sentences, report = read(tmp_path / "a.jsonl", data)
    assert sentences == ["one two", "\U0001f600"]
    assert report.rejected == {"broken JSON": 3, "not a JSON object": 1, "column missing": 1,
                               "column not a string": 1, "lone surrogate": 1, "empty": 1}


def test_a_column_that_no_json_line_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no column 'text'.*'caption', 'id'"):
        read(tmp_path / "a.jsonl", b'{"caption": "a", "id": 1}\n\n{"caption": "b"}\n')
    sentences, _ = read(tmp_path / "a.jsonl", b'{"caption": "a"}\n', text_column="caption")
    assert sentences == ["a"]


def test_csv_is_read_as_written(tmp_path: Path) -> None:
    texts = ["plain", 'with "quotes", and a comma', "two\nlines", "after"]
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    report = ReadingReport()
    assert list(read_sentences([str(tmp_path / "a.csv")], report=report)) == [
        "plain", 'with "quotes", and a comma', "two lines", "after"]
    assert not report.rejected


TWO = ["A dog runs.", "Two cats, asleep."]


@pytest.mark.parametrize(("name", "text"), [
    ("semicolon.csv", "id;text\n1;A dog runs.\n2;Two cats, asleep.\n"),
    ("excel.csv", "sep=;\nid;text\n1;A dog runs.\n2;Two cats, asleep.\n"),
    ("tab.csv", "id\ttext\n1\tA dog runs.\n2\tTwo cats, asleep.\n"),
    ("pipe.csv", "id|text\n1|A dog runs.\n2|Two cats, asleep.\n"),
    ("title.csv", 'Id, Text \n1,A dog runs.\n2,"Two cats, asleep."\n'),
    ("commas.csv", "text;a,b,c\nA dog runs.;1\nTwo cats, asleep.;2\n"),
    ("a.tsv", "id\tTEXT\n1\tA dog runs.\n2\tTwo cats, asleep.\n"),
    ("one.tsv", "text\nA dog runs.\nTwo cats, asleep.\n"),
    ("array.json", json.dumps([{"text": text} for text in TWO], indent=2)),
    ("array.jsonl", json.dumps([{"Text": text} for text in TWO])),
    ("strings.json", json.dumps(TWO)),
    ("bom.json", "\ufeff" + json.dumps([{"text": text} for text in TWO])),
    ("lines.json", "".join(json.dumps({"text": text}) + "\n" for text in TWO)),
])
def test_tables_as_people_have_them(tmp_path: Path, name: str, text: str) -> None:
    for path, data in ((tmp_path / name, text.encode()), (tmp_path / f"{name}.gz", gzip.compress(text.encode()))):
        sentences, report = read(path, data)
        assert sentences == TWO and not report.rejected


def test_quotes_in_a_tsv_file_are_text(tmp_path: Path) -> None:
    sentences, report = read(tmp_path / "a.tsv", b'text\tid\n"Run," she said.\t1\n"quoted\ttab"\t2\n')
    assert sentences == ['"Run," she said.', "quoted tab"] and not report.rejected


def test_a_broken_array_rejects_its_lines(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no sentence found \(3 lines rejected, the last one: broken JSON"):
        read(tmp_path / "a.json", b'[\n{"text": "A dog."},\n{"text": ')


def test_the_exact_column_is_preferred(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", b"Text,text\nno,yes\n")[0] == ["yes"]
    assert read(tmp_path / "a.jsonl", b'{"TEXT": "no", "text": "yes"}\n')[0] == ["yes"]


def test_parquet_is_read_or_names_the_extra(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        with pytest.raises(CorpusError, match=r"pip install '\.\[parquet\]'"):
            read(path, b"")
        return
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "Text": [*TWO, None]}), path)
    report = ReadingReport()
    assert list(read_sentences([str(path)], report)) == TWO
    assert lines_of(report) == [(3, "column not a string")]
    with pytest.raises(CorpusError, match="no column 'caption'; found 'id', 'Text'"):
        list(read_sentences([str(path)], text_column="caption"))
    with pytest.raises(CorpusError, match=r"not a readable \.parquet file"):
        read(path, b"PAR1")


@pytest.mark.parametrize(("encoding", "command"), [("utf-16", "UTF-16"), ("utf-32", "UTF-32")])
def test_encodings_with_a_byte_order_mark_are_named(tmp_path: Path, encoding: str, command: str) -> None:
    path = tmp_path / "my corpus.txt"
    with pytest.raises(CorpusError, match=f"encoded as {command}. Convert it: iconv -f {command} -t UTF-8 '{path}' > "):
        read(path, "Ein Hund läuft.\n".encode(encoding))


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("text", ["Ein Hund läuft.\n" * 5, "一只小狗在公园里跑步。\n" * 20, "Собака бежит.\n" * 9])
def test_encodings_without_a_byte_order_mark_are_named(tmp_path: Path, encoding: str, text: str) -> None:
    with pytest.raises(CorpusError, match=f"encoded as {encoding}. Convert it: iconv -f {encoding} -t UTF-8 "):
        read(tmp_path / "a.txt", text.encode(encoding))


def test_a_few_nul_bytes_are_not_an_encoding(tmp_path: Path) -> None:
    sentences, report = read(tmp_path / "a.txt", b"A dog runs.\nA \0cat.\nA\0\0\0 bird.\n" + b"A man sings.\n" * 3)
    assert len(sentences) == 4 and report.rejected == {"NUL character": 2}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("rows", [[{"text": "A dog runs."}] * 3, ["A dog runs."]])
def test_an_object_around_the_array_names_the_command(tmp_path: Path, rows: list[object], indent: int | None) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(CorpusError, match=r"""the array 'data'. .*: jq '\.\["data"\]' .*/a.json > array-a.json"""):
        read(path, json.dumps({"version": 1, "data": rows}, indent=indent).encode())


def test_an_array_that_does_not_fit_in_memory_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> object:
        raise MemoryError

    monkeypatch.setattr(json, "loads", fail)
    with pytest.raises(OutlinesError, match=r"Out of memory .*one object per line: jq -c '\.\[\]' .*/a.json > a.jsonl"):
        read(tmp_path / "a.json", b'[{"text": "A dog runs."}]')


def test_json_lines_with_arrays_are_records(tmp_path: Path) -> None:
    line = json.dumps({"text": "A dog runs.", "tags": ["dog"]}).encode()
    for lines in (line, line + b"\n" + line):
        assert set(read(tmp_path / "a.json", lines)[0]) == {"A dog runs."}


def test_a_file_of_another_encoding_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no sentence found \(2 lines .*not UTF-8\)\. Convert it: iconv -f LATIN1"):
        read(tmp_path / "a.txt", "Собака.\nКошка.\n".encode("cp1251"))


def test_more_than_a_tenth_of_bad_lines_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    lines = [f"Sentence {number}." for number in range(90)]
    path.write_bytes("\n".join([*lines, *["Un café."] * 10, *[""] * 50]).encode("latin-1"))
    assert len(list(read_corpus(CorpusFiles((str(path),)), ReadingReport()))) == 90
    path.write_bytes("\n".join([*lines, *["Un café."] * 11]).encode("latin-1"))
    with pytest.raises(CorpusError, match=rf"11 \(11 not UTF-8\), more than 10%.*iconv -f LATIN1 -t UTF-8 {path} .*Latin-1"):
        list(read_corpus(CorpusFiles((str(path),)), ReadingReport()))
    assert len(list(read_corpus(CorpusFiles((str(path),), max_rejected=0.2), ReadingReport()))) == 90


def test_a_stray_quote_costs_one_line(tmp_path: Path) -> None:
    rows = [b'"open quote,1', *(b"line %d,1" % number for number in range(20_000)), b'"another,1', b"last,1"]
    sentences, report = read(tmp_path / "a.csv", b"text,id\n" + b"\n".join(rows))
    assert sentences == [*(f"line {number}" for number in range(20_000)), "last"]
    assert lines_of(report) == [(2, "broken CSV"), (20_003, "broken CSV")]


def test_csv_faults(tmp_path: Path) -> None:
    data = b"text,id\na,1\n\nb\nc,2,3\n\xff,4\n" + b"x" * 200_000 + b",5\nd,6\n"
    sentences, report = read(tmp_path / "a.csv", data)
    assert sentences == ["a", "d"]
    assert lines_of(report) == [(3, "empty"), (4, "broken CSV"), (5, "broken CSV"), (6, "not UTF-8"),
                                (7, "too long")]
    with pytest.raises(CorpusError, match=r"no column 'text'.*'caption', 'id'"):
        read(tmp_path / "a.csv", b"caption,id\na,1\n")
    with pytest.raises(CorpusError, match="header"):
        read(tmp_path / "a.csv", b'"caption,id\na,1\n')


def test_a_huge_line_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"before\n" + b"x" * 30_000_000 + b"\nafter\n")
    report = ReadingReport()
    tracemalloc.start()
    try:
        sentences = list(read_sentences([str(path)], report=report))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sentences == ["before", "after"]
    assert lines_of(report) == [(2, "too long")]
    assert peak < 8_000_000


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_gz_is_read_like_the_plain_file(tmp_path: Path, name: str) -> None:
    data = b'text\n"one"\n{"text": "two"}\n'
    plain, plain_report = read(tmp_path / name, data)
    packed, packed_report = read(tmp_path / (name + ".gz"), gzip.compress(data))
    assert plain and packed == plain
    assert packed_report.rejected == plain_report.rejected


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_gzip_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    data = b'text\n"one"\n{"text": "two"}\n'
    plain, _ = read(tmp_path / name, data)
    assert read(tmp_path / name, gzip.compress(data))[0] == plain == read(tmp_path / f"{name}.gz", data)[0]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a.txt.gz"])
def test_archives_and_binary_files_are_named(tmp_path: Path, name: str) -> None:
    archive, tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.txt", "A dog runs.\n")
    with tarfile.open(fileobj=tar, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    for data in (archive.getvalue(), tar.getvalue(), gzip.compress(tar.getvalue()), bz2.compress(b"A dog.\n"),
                 lzma.compress(b"A dog.\n"), b"%PDF-1.7\n", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"PAR1\x15\x04",
                 b"<!DOCTYPE html>\n<p>A dog.</p>\n", b"{\\rtf1\\ansi A dog.\\par\n}", gzip.compress(gzip.compress(b"A."))):
        with pytest.raises(CorpusError, match=r"an archive or a document .* Export it as UTF-8 text\.$"):
            read(tmp_path / name, data)


@pytest.mark.parametrize("end", ["\r", "\r\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.csv", "a.jsonl"])
def test_line_ends_of_other_systems(tmp_path: Path, name: str, end: str) -> None:
    lines = [json.dumps({"text": text}) for text in TWO] if name.endswith("jsonl") else ["text", "A dog runs.", "Two cats"]
    data = end.join(lines).encode("utf-8-sig")
    sentences, report = read(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    assert sentences[-2:] == (TWO if name.endswith("jsonl") else lines[1:]) and not report.rejected


@pytest.mark.parametrize("line", ["{}\tA dog.", '{{"id": {}, "text": "A dog."}}', '{},"A dog."', "{};A dog."])
def test_a_table_that_is_named_txt_is_not_learnt(tmp_path: Path, line: str) -> None:
    lines = [line.format(number) for number in range(9)]
    with pytest.raises(CorpusError, match=r"9 of 12 lines look like JSON or a table\. Rename the file to \.jsonl"):
        read(tmp_path / "a.txt", "\n".join([*lines, "A dog.", "A cat.", "2,000 dogs."]).encode())
    assert len(read(tmp_path / "a.txt", "\n".join([*lines, *["2,000 dogs.", "\tA\t"] * 5]).encode())[0]) == 19


def test_damaged_gz_and_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt.gz"
    digests = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(999)]
    packed = gzip.compress("\n".join(digests).encode())
    overwritten = packed[:200] + b"\0\0\0\0" + packed[204:]
    for damaged in (packed[:-20], overwritten, packed + b"junk"):
        with pytest.raises(CorpusError, match=r"a\.txt\.gz: damaged"):
            read(path, damaged)
    bomb = gzip.compress(b"0" * 5_000_000)
    with monkeypatch.context() as patch, pytest.raises(CorpusError, match="decompresses to more than"):
        patch.setattr("outlines.corpus.formats.GZ_BYTES", 1_000_000)
        read(path, bomb)
    assert read(path, gzip.compress(b"ok\n" + b"0" * 5_000_000))[0] == ["ok"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "folder").mkdir()
    faults = (("none.txt", "no such file"), ("folder.txt", "not a plain file"), ("a.doc", "unknown file type"),
              ("folder", r"a directory\. Pass its files, such as .*folder/\*\.txt\."))
    for name, message in faults:
        with pytest.raises(CorpusError, match=message):
            list(read_sentences([str(tmp_path / name)]))
    with pytest.raises(CorpusError, match="UTF-16"):
        read(tmp_path / "a.txt", "hello\n".encode("utf-16"))
    _, report = read(tmp_path / "a.txt", b"ok\n" + "hello\n".encode("utf-16-le"))
    assert report.rejected.total() == 2
    with pytest.raises(CorpusError, match=r"no sentence found \(empty\)"):
        read(tmp_path / "a.txt", b"")
    with pytest.raises(CorpusError, match="3 lines rejected, the last one: empty"):
        read(tmp_path / "a.txt", b"\n\n\n")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([".txt", ".jsonl", ".csv", ".txt.gz"]), st.booleans(), st.booleans(),
       st.binary(max_size=300) | st.text('ab",\n\r{}[]:\\u\0', max_size=80).map(str.encode))
def test_any_bytes_give_sentences_or_a_corpus_error(tmp_path: Path, suffix: str, header: bool, pack: bool,
                                                    data: bytes) -> None:
    data = b"text,b\n" + data if header else data
    try:
        sentences, _ = read(tmp_path / f"a{suffix}", gzip.compress(data) if pack else data)
    except CorpusError as error:
        assert "\n" not in str(error)
    else:
        assert sentences
        assert all(sentence == " ".join(sentence.split()) != "" for sentence in sentences)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=12) | st.text('a",\n\r\0', max_size=12), max_size=8))
def test_written_texts_are_read_back(tmp_path: Path, texts: list[str]) -> None:
    texts = ["first", *texts]
    folded = [" ".join(text.split()) for text in texts]
    expected = [text for text in folded
                if "\0" not in text and any(c.isprintable() for c in text.replace(" ", ""))]
    objects = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    table = io.StringIO()
    csv.writer(table).writerows([["id", "text"], *enumerate(texts)])
    for name, data in (("a.jsonl", objects), ("a.csv", table.getvalue().encode())):
        sentences, report = read(tmp_path / name, data)
        assert sentences == expected
        assert report.rejected.total() == len(texts) - len(expected)


def test_split_is_a_function_of_the_sentence() -> None:
    names = [split_of(f"sentence {number}", 0.1, 0.2) for number in range(10_000)]
    assert names == [split_of(f"sentence {number}", 0.1, 0.2) for number in range(10_000)]
    # Binomial: standard deviations 30 and 40.
    assert abs(names.count("valid") - 1000) < 150
    assert abs(names.count("test") - 2000) < 200
    digest = hashlib.blake2b(b"A dog runs.", digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    assert split_of("A dog runs.", place + 1e-9, 0.0) == "valid"
    assert split_of("A dog runs.", place - 1e-9, 2e-9) == "test"
    assert split_of("A dog runs.", place - 1e-9, 0.0) == "train"
    assert {split_of(f"{number}", 0.0, 0.0) for number in range(100)} == {"train"}


def corpus(tmp_path: Path, **options: object) -> CorpusFiles:
    for split, count in (("train", 500), ("valid", 3), ("test", 2)):
        (tmp_path / f"{split}.txt").write_text("".join(f"{split} {number}\n" for number in range(count)))
    return CorpusFiles(corpus=(str(tmp_path / "train.txt"),), valid_fraction=0.1, test_fraction=0.1,
                       **options)  # type: ignore[arg-type]


def test_held_out_files_replace_fractions(tmp_path: Path) -> None:
    report = ReadingReport()
    pairs = list(read_corpus(corpus(tmp_path), report))
    assert len(pairs) == 500
    assert all(split == split_of(sentence, 0.1, 0.1) for split, sentence, *_ in pairs)
    assert [member.group for member in pairs] == list(range(500))
    assert report.accepted.total() == 500 and min(report.accepted.values()) > 20

    report = ReadingReport()
    pairs = list(read_corpus(corpus(tmp_path, valid=(str(tmp_path / "valid.txt"),)), report))
    assert [sentence for split, sentence, *_ in pairs if split == "valid"] == ["valid 0", "valid 1", "valid 2"]
    assert all(split == split_of(sentence, 0.0, 0.1) for split, sentence, *_ in pairs if split != "valid")
    assert report.accepted["test"] > 20

    report = ReadingReport()
    both = corpus(tmp_path, valid=(str(tmp_path / "valid.txt"),), test=(str(tmp_path / "test.txt"),))
    list(read_corpus(both, report))
    assert report.accepted == {"train": 500, "valid": 3, "test": 2}
    assert report.summary() == "sentences: train 500, valid 3, test 2"


def test_fingerprint_depends_on_bytes_and_options_but_not_on_paths(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = corpus(tmp_path / "one"), corpus(tmp_path / "two")
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first) != fingerprint(corpus(tmp_path / "one", max_chars=99))
    (tmp_path / "two" / "train.txt").write_text("changed\n")
    assert fingerprint(first) != fingerprint(second)
    (tmp_path / "two" / "train.txt").unlink()
    with pytest.raises(CorpusError, match="no such file"):
        fingerprint(second)


@pytest.mark.parametrize("options", [
    {"test_fraction": 0.99}, {"corpus": ("a.pdf",)}, {"corpus": ("a.json",), "group_lines": 2}, {"group_lines": 1},
    {"condition_column": "caption"}])
def test_invalid_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(CorpusError):
        CorpusFiles(**{"corpus": ("a.txt",), **options}).check()  # type: ignore[arg-type]


def test_longest_allowed_sentence_fits_a_line(tmp_path: Path) -> None:
    text = "\U0001f600" * reading.MAX_CHARS_LIMIT
    sentences, _ = read(tmp_path / "a.jsonl", json.dumps({"text": text}).encode(),
                        max_chars=reading.MAX_CHARS_LIMIT)
    assert sentences == [text]
