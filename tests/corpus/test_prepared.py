import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from outlines.corpus.formats import CorpusError
from outlines.corpus.prepared import (
    PreparedCorpus,
    Sentences,
    Tokens,
    prepare_corpus,
    write_sentences,
    write_tokens,
)
from outlines.corpus.reading import ReadingReport, split_of
from outlines.corpus.tokenizer import SentencePieceTokenizer, train_tokenizer
from outlines.errors import CheckpointError

SENTENCES = [f"The {size} {animal} {does} near {count} Bäume 😀."
             for size in ("big", "small", "old") for animal in ("dog", "cat", "horse")
             for does in ("runs", "sleeps") for count in range(2, 12)]
PAIRS = [(split_of(sentence, 0.1, 0.1), sentence) for sentence in SENTENCES]


def of_split(split: str) -> list[str]:
    return [sentence for where, sentence in PAIRS if where == split]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    return train_tokenizer(SENTENCES, tmp_path_factory.mktemp("tokenizer") / "a.model")


def test_sentences_are_read_by_number_and_in_order(tmp_path: Path) -> None:
    counts = write_sentences(tmp_path, PAIRS)
    for split in ("train", "valid", "test"):
        sentences, expected = Sentences(tmp_path, split), of_split(split)
        assert counts[split] == len(sentences) == len(expected)
        assert list(sentences) == expected == list(sentences)
        assert [sentences[index] for index in range(len(sentences))] == expected
        assert sentences[-1] == expected[-1]
        with pytest.raises(IndexError):
            sentences[len(expected)]
    assert (tmp_path / "valid.txt").read_text().splitlines() == of_split("valid")


def test_offsets_by_hand(tmp_path: Path) -> None:
    write_sentences(tmp_path, [("train", "ab"), ("valid", "x"), ("train", "é"), ("test", "y")])
    offsets = np.load(tmp_path / "train.offsets.npy", allow_pickle=False)
    assert offsets.dtype == np.int64 and offsets.tolist() == [0, 3, 6]  # é has two bytes
    assert (tmp_path / "train.txt").read_bytes() == "ab\né\n".encode()


def test_fingerprint_depends_on_where_sentences_end(tmp_path: Path) -> None:
    prints = []
    for name, train in (("one", ["ab", "c"]), ("two", ["a", "bc"]), ("three", ["ab", "c"])):
        (tmp_path / name).mkdir()
        pairs = [*(("train", text) for text in train), ("valid", "v"), ("test", "t")]
        write_sentences(tmp_path / name, pairs)
        prints.append(Sentences(tmp_path / name, "train").fingerprint)
    assert prints[0] == prints[2] != prints[1]


def test_an_empty_split_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="valid split is empty"):
        write_sentences(tmp_path, [("train", "a"), ("test", "b")])
    with pytest.raises(CorpusError, match="train split is empty"):
        write_sentences(tmp_path, [])


def test_tokens_are_encoded_and_truncated_rows_are_counted(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    texts = ["\u0301", "dog " * 30, "The big dog runs.", "dog " * 31]
    write_sentences(tmp_path, [*(("train", text) for text in texts), ("valid", "v"), ("test", "t")])
    sentences = Sentences(tmp_path, "train")
    expected = tokenizer.encode(list(sentences))
    limit = len(expected[1])
    seen: list[int] = []
    assert write_tokens(sentences, tokenizer, tmp_path, limit, seen.append) == 1
    tokens = Tokens(tmp_path, "train")
    assert [row.tolist() for row in tokens.rows(range(4))] == [row[:limit] for row in expected]
    assert tokens.rows([3, 0, 3])[0].tolist() == expected[3][:limit]
    assert tokens.rows([0])[0].dtype == np.uint16
    assert tokens.lengths.tolist() == [min(len(row), limit) for row in expected]
    assert tokens.lengths.dtype == np.int64 and len(tokens) == 4 and len(tokens.ids) == tokens.lengths.sum()
    assert seen == [4]


def test_a_split_of_nothing_visible_has_empty_rows(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    write_sentences(tmp_path, [("train", "a"), ("valid", "\ufeff"), ("test", "t")])
    assert write_tokens(Sentences(tmp_path, "valid"), tokenizer, tmp_path) == 0
    assert [len(row) for row in Tokens(tmp_path, "valid").rows([0])] == [0]


def test_prepared_corpus(tmp_path: Path) -> None:
    target = tmp_path / "corpus"
    seen: list[tuple[int, int]] = []
    made = prepare_corpus(iter(PAIRS), target, source="by hand", vocab_size=350, max_len=5,
                          progress=lambda *done: seen.append(done))
    opened = PreparedCorpus(target)
    assert opened.meta == made.meta and opened.fingerprint == made.fingerprint
    assert (opened.meta["source"], opened.meta["max_len"], opened.meta["vocab_size"]) == ("by hand", 5, 350)
    for split, sentences in opened.sentences.items():
        rows = opened.tokens[split].rows(range(len(sentences)))
        full = opened.tokenizer.encode(of_split(split))
        assert list(sentences) == of_split(split)
        assert [row.tolist() for row in rows] == [ids[:5] for ids in full]
        assert opened.meta["splits"][split] == {
            "sentences": len(full), "cut": sum(len(ids) > 5 for ids in full),
            "tokens": sum(len(row) for row in rows), "fingerprint": sentences.fingerprint}
    assert opened.meta["splits"]["train"]["cut"] > 0
    assert seen[-1] == (len(PAIRS), len(PAIRS)) and len(seen) == 3


@pytest.mark.parametrize("lowercase", [False, True, None])
def test_sentences_are_stored_as_the_tokenizer_decodes_them(tmp_path: Path, tokenizer: SentencePieceTokenizer,
                                                            lowercase: bool | None) -> None:
    texts = ["Wait… a dog，½ ™", "Ｔｗｏ ﬁne cafe\u0301s \ufeff▁", "ASCII only", "犬が走る。"]
    options = {"tokenizer": tokenizer} if lowercase is None else {"lowercase": lowercase}
    corpus = prepare_corpus([*(("train", text) for text in texts), ("valid", "½"), ("test", "t")], tmp_path / "corpus",
                            source="s", **options)  # type: ignore[arg-type]
    stored = list(corpus.sentences["train"])
    assert corpus.tokenizer.lines(corpus.tokenizer.encode(stored)) == stored
    assert corpus.tokenizer.lines(corpus.tokenizer.encode(texts)) == stored
    assert stored[0] == ("wait... a dog,1⁄2 tm" if lowercase else "Wait... a dog,1⁄2 TM")


def test_losses_are_counted_and_put_in_words(tmp_path: Path) -> None:
    report = ReadingReport()
    report.rejected["not UTF-8"] = 3
    pairs = [("train", "a b c"), ("train", "d"), ("valid", "d"), ("test", "a b c"), ("test", "new"), ("test", "a b c")]
    corpus = prepare_corpus(pairs, tmp_path / "corpus", source="s", vocab_size=900, max_len=2, report=report)
    pieces = corpus.tokenizer.vocab_size
    assert corpus.meta["losses"] == {"rejected": {"not UTF-8": 3}, "pieces": 900 - pieces,
                                     "cut": corpus.meta["losses"]["cut"], "in_train": {"valid": 1, "test": 2}}
    assert [note.split(",")[0] for note in PreparedCorpus(tmp_path / "corpus").notes()] == [
        "rejected lines: 3 (3 not UTF-8)", f"The vocabulary has {pieces} pieces",
        f"{corpus.meta['losses']['cut']} of 6 sentences are cut to --max-len 2.",
        "1 of 1 valid sentences are also in the training split", "2 of 3 test sentences are also in the training split"]
    assert prepare_corpus(PAIRS, tmp_path / "clean", source="s").notes() == []


def test_tokenizer_is_trained_only_on_the_training_split(tmp_path: Path) -> None:
    pairs = [("train", "aaa bbb"), ("valid", "ccc"), ("test", "ddd")]
    tokenizer = prepare_corpus(pairs, tmp_path / "corpus", source="").tokenizer
    assert all(token < 4 + 256 for token in tokenizer.encode(["c"])[0][1:])  # spelt in bytes
    assert all(token >= 4 + 256 for token in tokenizer.encode(["a"])[0])


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    first, second = (prepare_corpus(PAIRS, tmp_path / name, source="s") for name in ("one", "two"))
    assert first.fingerprint == second.fingerprint
    given = prepare_corpus(PAIRS, tmp_path / "one", source="s", tokenizer=tokenizer)  # replaces the first
    assert given.tokenizer.fingerprint == tokenizer.fingerprint
    assert PreparedCorpus(tmp_path / "one").fingerprint == given.fingerprint != second.fingerprint


def test_an_interrupted_preparation_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "corpus"

    def interrupted() -> Iterator[tuple[str, str]]:
        yield from PAIRS[:50]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_corpus(interrupted(), target, source="s")
    assert not list(tmp_path.iterdir())
    before = prepare_corpus(PAIRS, target, source="s").fingerprint
    with pytest.raises(KeyboardInterrupt):
        prepare_corpus(interrupted(), target, source="s")
    assert PreparedCorpus(target).fingerprint == before
    assert list(tmp_path.iterdir()) == [target]


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CorpusError, match="not a prepared corpus"):
        prepare_corpus(PAIRS, tmp_path, source="s")
    with pytest.raises(CorpusError, match="not a prepared corpus"):
        prepare_corpus(PAIRS, tmp_path / "thesis.tex", source="s")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["train.txt", "train.ids.npy", "test.offsets.npy", "tokenizer.model"])
def test_a_flipped_bit_is_detected(tmp_path: Path, tokenizer: SentencePieceTokenizer, name: str) -> None:
    directory = prepare_corpus(PAIRS, tmp_path / "corpus", source="s", tokenizer=tokenizer).directory
    data = bytearray((directory / name).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        PreparedCorpus(directory)


def test_a_missing_directory_and_an_unfinished_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        PreparedCorpus(tmp_path / "none")
    (tmp_path / "meta.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError):
        PreparedCorpus(tmp_path)
