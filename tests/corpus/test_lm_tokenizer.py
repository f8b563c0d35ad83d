"""The restricted tokenizer of a pretrained language model."""

import random
import shutil
from pathlib import Path

import pytest

from outlines.causal_lm import find_causal_lm
from outlines.corpus.lm_tokenizer import LMTokenizer, from_ranges, load_tokenizer, to_ranges
from outlines.corpus.prepared import prepare_corpus
from outlines.corpus.tokenizer import SentencePieceTokenizer, normalizer
from outlines.errors import TokenizerError

HELD_OUT = ["Zürich, 漢字 🐶!", "Unicorns juggle quickly.", "<|end|> <|endoftext|> x", "ŻÓŁĆ\tis ﬁne", "a" * 50, ""]


@pytest.fixture(scope="module", params=["tiny_gpt2", "tiny_llama"])
def whole(request: pytest.FixtureRequest) -> LMTokenizer:
    return LMTokenizer.of_language_model(find_causal_lm(f"hf:{request.getfixturevalue(request.param)}"))


@pytest.fixture
def sentences(tiny_corpus: Path) -> list[str]:
    return tiny_corpus.read_text().splitlines()


def test_ranges_are_read_as_they_were_written() -> None:
    for case in range(50):
        rng = random.Random(case)
        numbers = [rng.randrange(30) for _ in range(rng.randrange(20))]
        assert from_ranges(to_ranges(numbers), 20) == numbers
    assert to_ranges([7, 7, 1, 2, 3]) == "7,7,1-3"
    for text in ("1-", "x", "1,,2", "-3", "1-9999999999", "1-30"):
        with pytest.raises(ValueError, match=r"range|numbers"):
            from_ranges(text, 20)


def test_the_training_split_keeps_the_language_models_own_tokens(whole: LMTokenizer, sentences: list[str]) -> None:
    fitted = whole.fitted(sentences)
    assert whole.vocab_size > fitted.vocab_size > 256 and fitted.fitted(HELD_OUT) is fitted
    ids, own = fitted.encode(sentences), whole.encode(sentences)
    assert [[fitted.rows[token] for token in row] for row in ids] == [[whole.rows[token] for token in row] for row in own]
    assert fitted.decode(ids) == fitted.lines(ids) == sentences
    assert min(map(min, ids)) >= 4 and max(map(max, ids)) < fitted.vocab_size == len(fitted.rows) == len(fitted.pieces)


def test_every_other_text_is_written_with_the_kept_pieces(whole: LMTokenizer, sentences: list[str]) -> None:
    fitted = whole.fitted(sentences)
    text = [normalizer(False)(sentence) for sentence in HELD_OUT]
    ids = fitted.encode(HELD_OUT)
    assert fitted.decode(ids) == text and len(ids[1]) > len(whole.encode(HELD_OUT)[1])
    assert ["".join(fitted.pieces[token] for token in row) for row in fitted.encode(["A dog's cat"])] == ["A dog's cat"]
    assert fitted.decode([[1, *ids[4], 2, 3, 3]]) == [text[4]]
    assert fitted.lines([fitted.encode(["é"])[0][:1]]) == ["\ufffd"]  # half of a character
    with pytest.raises(TokenizerError, match="lone surrogate"):
        fitted.encode(["a\ud800b"])


def test_the_file_holds_everything_and_both_kinds_are_recognised(whole: LMTokenizer, sentences: list[str],
                                                                recurrent_encoder: Path, tmp_path: Path) -> None:
    fitted = whole.fitted(sentences)
    fitted.save(tmp_path / "tokenizer.model")
    for sha256 in (None, fitted.fingerprint):
        loaded = load_tokenizer(tmp_path / "tokenizer.model", sha256)
        assert isinstance(loaded, LMTokenizer) and (loaded.fingerprint, loaded.rows) == (fitted.fingerprint, fitted.rows)
        assert loaded.encode(HELD_OUT) == fitted.encode(HELD_OUT)
    assert isinstance(load_tokenizer(recurrent_encoder / "tokenizer.model"), SentencePieceTokenizer)
    with pytest.raises(TokenizerError, match="not the recorded one"):
        load_tokenizer(tmp_path / "tokenizer.model", "0" * 64)
    with pytest.raises(TokenizerError, match="missing"):
        load_tokenizer(tmp_path / "none")


@pytest.mark.parametrize("data", [b"{", b"{}", b'{"tokenizer": {}, "bos": 0, "eos": 0, "pieces": "0"}'])
def test_a_damaged_file_is_a_one_line_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"not a tokenizer of a language model, or a damaged one\. Use another file"):
        load_tokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(TokenizerError, match="not the tokenizer of a language model, or damaged") as caught:
        LMTokenizer(data)
    assert "\n" not in str(caught.value)


def test_a_corpus_is_prepared_with_the_pieces_of_its_training_split(whole: LMTokenizer, sentences: list[str],
                                                                    tmp_path: Path) -> None:
    splits = {"train": sentences[:100], "valid": [*sentences[100:110], HELD_OUT[1]], "test": sentences[110:120]}
    pairs = [(split, sentence) for split, rows in splits.items() for sentence in rows]
    corpus = prepare_corpus(pairs, tmp_path / "corpus", source="test", tokenizer=whole)
    assert corpus.tokenizer.fingerprint == whole.fitted(splits["train"]).fingerprint
    for split, expected in splits.items():
        rows = corpus.tokens[split].rows(range(len(expected)))
        assert corpus.tokenizer.lines([row.tolist() for row in rows]) == expected == list(corpus.sentences[split])


def test_a_tokenizer_that_cannot_write_every_text_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    directory = shutil.copytree(tiny_llama, tmp_path / "copy")
    words = Tokenizer(models.WordLevel({"a": 0, "<|begin|>": 1, "<|end|>": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(directory / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="cannot encode every text byte by byte"):
        LMTokenizer.of_language_model(find_causal_lm(f"hf:{directory}"))


def test_byte_fallback_pieces_write_what_is_not_kept(tmp_path: Path) -> None:
    import json

    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "d", "o", "g", "▁d", "og", "▁dog", "▁a"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "d"), ("o", "g"), ("▁d", "og"), ("▁", "a")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    data = {"tokenizer": json.loads(tokenizer.to_str()), "bos": 0, "eos": 0, "whole": True,
            "pieces": to_ranges(range(len(pieces)))}
    fitted = LMTokenizer(json.dumps(data).encode()).fitted(["a dog"])
    assert fitted.vocab_size == 4 + 257 + 2 and fitted.pieces[-2:] == [" dog", " a"]
    for text in ("a dog", "dog god é 漢", "a good dog"):
        assert fitted.decode(fitted.encode([text])) == [text]
