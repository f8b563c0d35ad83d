import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from outlines.corpus.tokenizer import (
    NUM_SPECIALS,
    SPECIAL,
    SentencePieceTokenizer,
    train_tokenizer,
    vocabulary_size,
)
from outlines.errors import OutlinesError, TokenizerError

BOS, EOS, PAD, UNK = SPECIAL.bos_id, SPECIAL.eos_id, SPECIAL.pad_id, SPECIAL.unk_id

SENTENCES = [f"{who} {does} {where}."
             for who in ("A brown dog", "The old man", "Two Children", "A woman in red")
             for does in ("runs", "is playing", "sleeps", "waits quietly")
             for where in ("on the beach", "near a house", "in Zürich", "under the bridge")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    return train_tokenizer(SENTENCES, tmp_path_factory.mktemp("tokenizer") / "a.model")


def normalize(tokenizer: SentencePieceTokenizer, text: str) -> str:
    """Return SentencePiece's normalised text, with spaces for its symbol of a space."""
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer._processor.normalize(text).replace("▁", " ").strip(" ")


# Strings that look like the model's special pieces, mixed with arbitrary Unicode.
TRICKY = st.sampled_from(
    ["<0x41>", "<s>", "</s>", "<unk>", "<pad>", "▁", " ", "\u2047", "ﬁ", "e\u0301", "\ufeff"])


@settings(max_examples=200, deadline=None)
@given(st.lists(TRICKY | st.text(max_size=8), max_size=6).map("".join))
def test_every_string_survives_up_to_normalisation(tokenizer: SentencePieceTokenizer, text: str) -> None:
    ids = tokenizer.encode([text])
    assert UNK not in ids[0]
    assert not {BOS, EOS, PAD} & set(ids[0])
    assert tokenizer.decode(ids) == [normalize(tokenizer, text)]


def test_normalisation_by_hand(tokenizer: SentencePieceTokenizer) -> None:
    assert normalize(tokenizer, "  A  ﬁne\tdog\u00a0runs ") == "A fine dog runs"
    assert normalize(tokenizer, "\uff21\uff22 \uff11") == "AB 1"  # full-width forms
    assert normalize(tokenizer, "a▁b") == "a b"
    assert normalize(tokenizer, "Zürich 😀") == "Zürich 😀"


def test_ids_and_pieces(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a.model"))
    assert [processor.id_to_piece(i) for i in range(5)] == ["<unk>", "<s>", "</s>", "<pad>", "<0x00>"]
    # An emoji has no piece: the word boundary and its four UTF-8 bytes, where byte b is piece 4 + b.
    assert tokenizer.encode(["\U0001f600"])[0][1:] == [4 + byte for byte in "\U0001f600".encode()]


def test_decode_ignores_bos_eos_pad_and_marks_broken_bytes(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode(["A brown dog"])[0]
    assert tokenizer.decode([[BOS, *ids, EOS, PAD, PAD], [EOS]]) == ["A brown dog", ""]
    assert tokenizer.decode([[4 + 0xFF]]) == ["\ufffd"]
    assert tokenizer.decode([]) == [] == tokenizer.encode([])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.integers(0, 10**6), max_size=12), max_size=4))
def test_lines_have_no_line_breaks_and_control_characters(tokenizer: SentencePieceTokenizer, drawn: list[list[int]]) -> None:
    rows = [[number % tokenizer.vocab_size for number in row] for row in drawn]
    # `words` has only pieces of words, as most samples do; `rows` has bytes and special ids too.
    words = [[NUM_SPECIALS + piece % (tokenizer.vocab_size - NUM_SPECIALS) for piece in row] for row in rows]
    for chosen in (rows, words):
        plain = [" ".join(text.split()) for text in tokenizer.decode(chosen)]
        assert tokenizer.lines(chosen) == ["".join("\ufffd" if unicodedata.category(character) == "Cc" else character
                                                   for character in text) for text in plain]


def test_case_is_kept_or_lowered(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    assert normalize(tokenizer, "Two Children") == "Two Children"
    folded = train_tokenizer(SENTENCES, tmp_path / "a.model", lowercase=True)
    assert folded.decode(folded.encode(["Two CHILDREN in ZÜRICH"])) == ["two children in zürich"]


def test_vocabulary_rule_by_hand() -> None:
    # The specials, the bytes, "▁", "a" and "b" make 263; there are never fewer than 500.
    assert vocabulary_size(["a b"] * 20_000) == (500, 263)
    # 1,000 words that occur 4 times: 990 of them cover 99 %, with 1.5 pieces each, beside 260, "▁" and ten digits.
    frequent = [f"{number}" for number in range(1000, 2000)] * 4
    assert vocabulary_size(frequent) == (1485 + 271, 271)
    # 5,000 more words occur once. They count as words to cover, but never as pieces.
    assert vocabulary_size([*frequent, *(f"{number}" for number in range(2000, 7000))]) == (1500 + 271, 271)
    # 600 distinct Han characters and "▁": 861, of which 1.25 times is 1,076.
    assert vocabulary_size(["".join(chr(0x4E00 + i) for i in range(600))]) == (1076, 861)
    assert vocabulary_size(["a B b"], lowercase=True)[1] == 263


def test_vocab_size_is_reached_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    assert train_tokenizer(SENTENCES, path, vocab_size=320).vocab_size == 320
    filled = train_tokenizer(SENTENCES, path, vocab_size=30_000).vocab_size
    assert 320 < filled < 1000
    smallest = vocabulary_size(SENTENCES)[1]
    assert train_tokenizer(SENTENCES, path, vocab_size=smallest).vocab_size == smallest
    with pytest.raises(TokenizerError, match=f"needs {smallest} or more"):
        train_tokenizer(SENTENCES, path, vocab_size=smallest - 1)
    with pytest.raises(TokenizerError, match="no words"):
        train_tokenizer([], path)


def test_training_is_deterministic_also_when_it_samples(tmp_path: Path) -> None:
    many = [sentence.replace("old", f"old{number}") for number in range(40) for sentence in SENTENCES]
    first, second = (train_tokenizer(many, tmp_path / name, max_sentences=200) for name in ("one", "two"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert first.fingerprint == second.fingerprint
    assert train_tokenizer(many, tmp_path / "three").fingerprint != first.fingerprint


def test_training_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(SENTENCES, tmp_path / "a.model")
    assert capfd.readouterr() == ("", "")


def test_training_raises_what_the_sentences_raise(tmp_path: Path) -> None:
    class Failing:
        passes = 0

        def __iter__(self) -> Iterator[str]:
            self.passes += 1
            yield "a b"
            if self.passes == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(Failing(), tmp_path / "a.model")
    assert not list(tmp_path.iterdir())


def test_load_returns_the_same_tokenizer_and_refuses_others(tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.model"
    tokenizer.save(path)
    loaded = SentencePieceTokenizer.load(path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode(SENTENCES) == tokenizer.encode(SENTENCES)
    whole = path.read_bytes()
    for damaged in (b"", b"garbage", whole[:1000], whole[:-1], b"\0" * 4096):
        path.write_bytes(damaged)
        with pytest.raises(OutlinesError, match=re.escape(f"{path}: not a SentencePiece model")):
            SentencePieceTokenizer.load(path)
    with pytest.raises(OutlinesError, match="missing"):
        SentencePieceTokenizer.load(tmp_path / "none.model")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(tmp_path / "b"), vocab_size=60, model_type="bpe",
        minloglevel=2)
    with pytest.raises(OutlinesError, match="with other special tokens") as caught:
        SentencePieceTokenizer.load(tmp_path / "b.model")
    flags = re.findall(r"--(\w+)=(\S+)", str(caught.value))
    needed = {"byte_fallback": "true", "unk_id": "0", "bos_id": "1", "eos_id": "2", "pad_id": "3"}
    assert needed.items() <= dict(flags).items()
    options = dict(flags) | {"vocab_size": "320", "model_prefix": str(tmp_path / "c"), "input": str(tmp_path / "text.txt")}
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES))
    sentencepiece.SentencePieceTrainer.train(" ".join(f"--{name}={value}" for name, value in options.items())
                                             + " --minloglevel=2")
    fitting = SentencePieceTokenizer.load(tmp_path / "c.model")
    assert fitting.decode(fitting.encode(SENTENCES)) == SENTENCES
