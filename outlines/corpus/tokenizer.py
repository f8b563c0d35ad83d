"""Sentences to token ids and back, with SentencePiece. Unknown characters are encoded as bytes, so no token is unknown.

This file trains BPE models. A sentence that such a model encoded and decoded is NFKC-normalised, with single spaces and
without control characters.
Source: Kudo and Richardson, SentencePiece (2018); BPE: Sennrich et al. (2016).
"""

import hashlib
import io
import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import sentencepiece

from outlines.checkpoint import atomic_write
from outlines.errors import TokenizerError, one_line
from outlines.hardening import read_tokenizer, try_tokenizer
from outlines.metrics.text import words


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """The ids of the special tokens."""

    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = 3

    @property
    def never_written(self) -> list[int]:
        """The ids that the decoder never writes: all special ids except eos."""
        return [self.unk_id, self.bos_id, self.pad_id]


SPECIAL = SpecialIds()
NUM_SPECIALS = 4 + 256  # the special tokens, and one piece per byte
MIN_VOCAB_SIZE, MAX_DEFAULT = 500, 12_000
COVERED, MIN_COUNT = 0.99, 3
PIECES_PER_WORD = 1.5
"""Vocabulary entries for each word that is one piece, because BPE keeps shorter pieces, too. The value is from Multi30k."""
SPM_TRAIN = ("spm_train --input=FILE --model_prefix=NAME --vocab_size=8000 --model_type=bpe --byte_fallback=true "
             + " ".join(f"--{name}={id}" for name, id in asdict(SPECIAL).items()))
NOT_UNICODE = "The text has a lone surrogate, or bytes that are not UTF-8. Remove them."
NORMALIZATION = {False: "nmt_nfkc", True: "nmt_nfkc_cf"}  # whether to convert to lower case → SentencePiece's rule


def normalizer(lowercase: bool) -> Callable[[str], str]:
    """Return a function that normalises a sentence like a tokenizer from `train_tokenizer`."""
    rule = sentencepiece.SentencePieceNormalizer(rule_name=NORMALIZATION[lowercase])
    return lambda sentence: " ".join(rule.normalize(sentence).replace("▁", " ").split())


def vocabulary_size(sentences: Iterable[str], lowercase: bool = False) -> tuple[int, int]:
    """Return the default vocabulary size and the smallest possible one.

    With the default size, about 99 % (COVERED) of the words in the text become one piece each. The share is smaller if this
    would need words that occur less than MIN_COUNT times, or more than MAX_DEFAULT pieces.
    """
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=NORMALIZATION[lowercase])
    counts, characters = Counter[str](), set[str]()
    for sentence in sentences:
        counts.update(words(sentence))
        characters.update(normalizer.normalize(sentence))
    ordered = sorted(counts.values(), reverse=True)
    covering = 1 + bisect_left(list(accumulate(ordered)), COVERED * counts.total())
    frequent = sum(count >= MIN_COUNT for count in ordered)
    smallest = NUM_SPECIALS + len(characters)
    suited = min(smallest + round(PIECES_PER_WORD * min(covering, frequent)), MAX_DEFAULT)
    return max(suited, MIN_VOCAB_SIZE, smallest * 5 // 4), smallest


def train_tokenizer(sentences: Iterable[str], path: Path, *, vocab_size: int | None = None,
                    lowercase: bool = False, max_sentences: int = 200_000) -> "SentencePieceTokenizer":
    """Train a tokenizer, write it to `path`, and return it. Training is deterministic. Raises TokenizerError.

    vocab_size: None for the default of `vocabulary_size`. With few words in the corpus, the vocabulary can be smaller.
    max_sentences: train on at most this number of sentences.
    """
    suited, smallest = vocabulary_size(sentences, lowercase)
    if smallest == NUM_SPECIALS:
        raise TokenizerError(f"{path}: no words to train a tokenizer on. Check the training split.")
    if vocab_size is not None and vocab_size < smallest:
        raise TokenizerError(f"vocab_size is {vocab_size}, but this corpus needs {smallest} or more ({NUM_SPECIALS} special "
                             f"tokens and bytes, {smallest - NUM_SPECIALS} characters). Raise --vocab-size.")
    model, failures = io.BytesIO(), list[BaseException]()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_recording(sentences, failures), model_writer=model, model_type="bpe",
            vocab_size=vocab_size or suited, hard_vocab_limit=False, byte_fallback=True, character_coverage=1.0,
            normalization_rule_name=NORMALIZATION[lowercase], max_sentence_length=1 << 18, **asdict(SPECIAL),
            input_sentence_size=max_sentences, shuffle_input_sentence=True, minloglevel=2,
            num_threads=1)  # stored in the model, so it must not depend on the machine
    except RuntimeError as error:
        # SentencePiece turns every exception of the iterator (CorpusError, Ctrl-C) into a RuntimeError.
        if failures:
            raise failures[0] from None
        raise TokenizerError(f"{path}: SentencePiece could not train ({one_line(error)}). Check the text.") from error
    tokenizer = SentencePieceTokenizer(model.getvalue())
    tokenizer.save(path)
    return tokenizer


def _recording(sentences: Iterable[str], failures: list[BaseException]) -> Iterator[str]:
    try:
        yield from sentences
    except BaseException as error:
        failures.append(error)
        raise


class Tokenizer(ABC):
    """Sentences to token ids and back. A tokenizer is stored in one file, which determines all ids."""

    special = SPECIAL
    vocab_size: int  # includes the special tokens

    def __init__(self, model: bytes) -> None:
        """model: content of the tokenizer's file. Subclasses raise TokenizerError if it is invalid."""
        self._model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()

    @classmethod
    def load(cls, path: Path, sha256: str | None = None) -> Self:
        """Return the tokenizer in a file. Raises TokenizerError.

        sha256: the recorded hash of the file; None: test the file in a child process first, as it may crash the library.
        """
        try:
            model = read_tokenizer(path)
            if sha256 is None:
                try_tokenizer(model)
            elif hashlib.sha256(model).hexdigest() != sha256:
                raise TokenizerError("damaged, or from another run (its SHA-256 is not the recorded one).")
            return cls(model)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        atomic_write(path, self._model)

    def fitted(self, sentences: Iterable[str]) -> "Tokenizer":
        """Return the tokenizer for a corpus with these training sentences: itself, or one with fewer pieces."""
        return self

    @property
    @abstractmethod
    def pieces(self) -> list[str]:
        """The text of each token; empty for special tokens, and for single bytes that are not a whole character."""

    @abstractmethod
    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Return the ids of each sentence, without bos and eos. Raises TokenizerError for invalid text."""

    @abstractmethod
    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the sentence of each row of ids, without bos, eos and pad."""

    def lines(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the sentence of each row of ids, without line breaks and control characters."""
        return list(map(one_line_text, self.decode(ids)))


class SentencePieceTokenizer(Tokenizer):
    """A trained SentencePiece model. Encoding never returns unk."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model)
        if not model:  # SentencePiece accepts empty data without an error
            raise TokenizerError("not a SentencePiece model: empty.")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            special = {name: getattr(processor, name)() for name in asdict(SPECIAL)}
            ids = list(range(processor.get_piece_size()))
            num_bytes = sum(processor.is_byte(ids))
            pieces = processor.id_to_piece(ids)  # raises if a piece is not UTF-8
        except (RuntimeError, ValueError) as error:
            raise TokenizerError("not a SentencePiece model, or a damaged one.") from error
        if special != asdict(SPECIAL) or num_bytes != 256:
            raise TokenizerError(f"a SentencePiece model with other special tokens, or without byte pieces: {special}, "
                                 f"{num_bytes} byte pieces. Train one with: {SPM_TRAIN}")
        self._processor = processor
        self.vocab_size = len(ids)
        others = {id for id in ids if processor.is_byte(id) or processor.is_control(id) or processor.is_unknown(id)}
        self._pieces = ["" if id in others else piece.replace("▁", " ") for id, piece in enumerate(pieces)]
        # The text of each piece, or None if only SentencePiece can decode it.
        self._plain: list[Any] = [piece if re.fullmatch(r" ?\S+", piece) else None for piece in self._pieces]

    @property
    def pieces(self) -> list[str]:
        return self._pieces

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        try:
            return self._processor.encode(list(sentences), out_type=int)
        except (TypeError, UnicodeEncodeError) as error:  # a lone surrogate, from arguments that are not UTF-8
            raise TokenizerError(NOT_UNICODE) from error

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        silent = {self.special.bos_id, self.special.eos_id, self.special.pad_id}
        rows = [row if isinstance(row, list) and silent.isdisjoint(row) else [int(i) for i in row if i not in silent]
                for row in ids]
        return self._processor.decode(rows) if rows else []

    def lines(self, ids: Sequence[Sequence[int]]) -> list[str]:
        plain, found, others = self._plain, list[str](), list[int]()
        for number, row in enumerate(ids):
            try:  # works for nearly all sentences, and is faster than SentencePiece, which is the bottleneck on a GPU
                found.append("".join([plain[piece] for piece in row]).lstrip(" "))
            except TypeError:
                found.append("")
                others.append(number)
        for number, text in zip(others, self.decode([ids[number] for number in others]), strict=True):
            found[number] = one_line_text(text)
        return found


def one_line_text(text: str) -> str:
    """Return a text with single spaces, and with U+FFFD instead of control characters.

    Byte pieces can encode control characters, which could disturb a terminal.
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", " ".join(text.split()))
