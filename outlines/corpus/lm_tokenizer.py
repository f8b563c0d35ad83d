"""The tokenizer of a pretrained language model, restricted to the pieces that a corpus uses; and `load_tokenizer`.

A piece is an entry of the vocabulary, often a part of a word. With few pieces, the decoder's output layer has a few thousand
rows instead of 50,000 or more. Sentences of the training split have the same tokens as in the language model. In other text,
a piece that was not kept is split into the longest kept pieces. The pieces of single bytes are always kept, so every text
can be encoded.
"""

import contextlib
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from outlines.causal_lm import CausalLM, begin_token
from outlines.corpus.tokenizer import NOT_UNICODE, SPECIAL, SentencePieceTokenizer, Tokenizer, normalizer
from outlines.errors import TokenizerError, one_line

NUM_SPECIAL = len(vars(SPECIAL))
CHUNK = 4096  # sentences that are encoded together
TRIAL = "A dog, 12 cats: é 漢 🐶!"  # must stay the same if it is encoded as single bytes and decoded


def to_ranges(ids: Iterable[int]) -> str:
    """Return numbers as text, with ranges for consecutive numbers: [2, 5, 6, 7] becomes 2,5-7."""
    runs: list[list[int]] = []
    for number in ids:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def from_ranges(text: str, most: int) -> list[int]:
    """Return the numbers in a text from `to_ranges`. Raises ValueError for invalid text or more than `most` numbers."""
    found: list[int] = []
    for run in text.split(",") if text else ():
        if not (parts := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", run)):
            raise ValueError(f"{run[:40]!r} is not a range of numbers")
        first, last = int(parts[1]), int(parts[2] or parts[1])
        if len(found) + last - first >= most:
            raise ValueError(f"more than {most} numbers")
        found += range(first, last + 1)
    return found


class LMTokenizer(Tokenizer):
    """A language model's tokenizer with new ids: first this project's special tokens, then the kept pieces.

    rows: the id of each token in the language model. unk and pad have the id of eos, because the decoder never writes them.
    """

    def __init__(self, model: bytes) -> None:
        """model: content of a file that `save` wrote. Raises TokenizerError."""
        super().__init__(model)
        try:
            self._data = json.loads(model)
            library = importlib.import_module("tokenizers")
            self._tokenizer: Any = library.Tokenizer.from_str(json.dumps(self._data["tokenizer"]))
            vocabulary: dict[str, int] = self._tokenizer.get_vocab()
            bos, eos = int(self._data["bos"]), int(self._data["eos"])
            kept = from_ranges(self._data["pieces"], len(vocabulary))
            text_of = {number: piece for piece, number in vocabulary.items()}
            self._kept = {text_of[number]: NUM_SPECIAL + place for place, number in enumerate(kept)}
        except ImportError as error:
            raise TokenizerError(f"the tokenizer of a language model needs the package tokenizers ({one_line(error)}). "
                                 "Run pip install '.[pretrained]'.") from error
        except Exception as error:  # the library raises plain Exceptions
            raise TokenizerError(f"not the tokenizer of a language model, or damaged ({one_line(error)}). "
                                 "Use another file.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # read special tokens in a text as ordinary text
        special = {SPECIAL.bos_id: bos}
        self.rows = [special.get(number, eos) for number in range(NUM_SPECIAL)] + kept
        self.vocab_size = len(self.rows)
        self._local = {number: NUM_SPECIAL + place for place, number in enumerate(kept)}
        self._text_of = text_of
        self._normalized = normalizer(lowercase=False)

    @classmethod
    def of_language_model(cls, lm: CausalLM) -> "LMTokenizer":
        """Return the tokenizer of a language model with all pieces; `fitted` restricts it. Raises OutlinesError."""
        found = lm.tokenizer()
        if found.eos_token_id is None:
            raise TokenizerError(f"{lm.name}: its tokenizer has no end token. Use another language model.")
        pieces = to_ranges(sorted(found.get_vocab().values()))
        data = {"bos": begin_token(found), "eos": found.eos_token_id, "pieces": pieces, "whole": True,
                "tokenizer": json.loads(found.backend_tokenizer.to_str())}
        whole = cls(json.dumps(data).encode())
        smallest = whole._restricted(set())
        (written,) = smallest.decode(smallest.encode([TRIAL]))
        if written != TRIAL:
            raise TokenizerError(f"{lm.name}: its tokenizer cannot encode every text byte by byte ({TRIAL!r} becomes "
                                 f"{written!r}). Use another language model.")
        return whole

    def fitted(self, sentences: Iterable[str]) -> "LMTokenizer":
        """Return a tokenizer with only the pieces of these sentences and of single bytes; itself if already restricted."""
        if not self._data.get("whole"):
            return self
        used, stream = set[int](), iter(sentences)
        while chunk := list(islice(stream, CHUNK)):
            used.update(number for row in self._encoded(chunk) for number in row)
        return self._restricted(used)

    def _restricted(self, used: set[int]) -> "LMTokenizer":
        kept = used | set(self._single_bytes())
        return LMTokenizer(json.dumps({**self._data, "pieces": to_ranges(sorted(kept)), "whole": False}).encode())

    def _single_bytes(self) -> Iterator[int]:
        """Yield the language model's ids of the pieces for single bytes, which can encode every text."""
        vocabulary = self._tokenizer.get_vocab()
        # Byte-level BPE has a character for each byte: this alphabet. Other BPE has pieces like <0xE2>, and ▁ for a space.
        alphabet = importlib.import_module("tokenizers").pre_tokenizers.ByteLevel.alphabet()
        for piece in ("▁", *(f"<0x{byte:02X}>" for byte in range(256))) if "<0x00>" in vocabulary else alphabet:
            if piece in vocabulary:  # some models have no pieces for bytes that UTF-8 does not use
                yield vocabulary[piece]

    def _encoded(self, sentences: Sequence[str]) -> list[list[int]]:
        """Return the ids of each sentence in the language model. Raises TokenizerError for invalid text."""
        try:
            normalized = [self._normalized(sentence) for sentence in sentences]
        except (RuntimeError, TypeError, UnicodeEncodeError) as error:
            raise TokenizerError(NOT_UNICODE) from error
        return [row.ids for row in self._tokenizer.encode_batch(normalized, add_special_tokens=False)]

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        local = self._local
        return [[token for number in row for token in ((local[number],) if number in local else self._split(number))]
                for row in self._encoded(sentences)]

    def _split(self, number: int) -> list[int]:
        """Return the tokens for a piece that was not kept: from left to right, the longest kept pieces, or single bytes."""
        rest, tokens = self._text_of[number], list[int]()
        while rest:
            length = next((length for length in range(len(rest), 0, -1) if rest[:length] in self._kept), 0)
            parts = [rest[:length]] if length else [f"<0x{byte:02X}>" for byte in rest[0].encode()]
            tokens += [self._kept[part] for part in parts if part in self._kept]
            rest = rest[length or 1:]
        return tokens

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        rows = [[self.rows[token] for token in row if token >= NUM_SPECIAL] for row in ids]
        return self._tokenizer.decode_batch(rows, skip_special_tokens=False)

    @cached_property
    def pieces(self) -> list[str]:
        anchor = self._tokenizer.token_to_id("a")
        (before,), after = (self._tokenizer.decode_batch(rows, skip_special_tokens=False)
                            for rows in ([[anchor]], [[anchor, number] for number in self.rows[NUM_SPECIAL:]]))
        # Each piece was decoded after the piece "a", because some decoders remove the first space of a text.
        texts = [text[len(before):] for text in after]
        return [""] * NUM_SPECIAL + ["" if "\ufffd" in text else text for text in texts]


def load_tokenizer(path: Path, sha256: str | None = None) -> Tokenizer:
    """Return the tokenizer in a file. sha256: see `Tokenizer.load`. Raises TokenizerError."""
    is_lm = False
    with contextlib.suppress(OSError):  # SentencePieceTokenizer reports what is wrong with the file
        if path.is_file():
            with open(path, "rb") as file:
                is_lm = file.read(1) == b"{"
    return LMTokenizer.load(path, sha256) if is_lm else SentencePieceTokenizer.load(path, sha256)
