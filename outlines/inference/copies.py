"""Recognise training sentences without their text, with a Bloom filter (Bloom 1970)."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from outlines.metrics.text import words

FILTER = "training.bloom"  # file of a run that ships without its training text
NUM_HASHES = 5
MAX_SKIPPED = 100  # consecutive copies; with greedy decoding of one outline, for example, all sentences are equal
Item = TypeVar("Item")


class BloomFilter:
    """A set of sentences that stores no text. Sentences with the same words and punctuation marks are equal (`copied_rate`).

    `sentence in filter` is always True for a sentence of the set, and, with 8 bits per sentence, in 2 % of other cases.
    """

    def __init__(self, bits: np.ndarray):
        """bits: [N] uint8. Each byte holds eight bits."""
        self.bits = bits

    @classmethod
    def of(cls, sentences: Iterable[str], num_bytes: int) -> "BloomFilter":
        flags = np.zeros(8 * num_bytes, dtype=bool)
        for sentence in sentences:
            flags[_places(sentence, len(flags))] = True
        return cls(np.packbits(flags, bitorder="little"))

    @classmethod
    def read(cls, file: Path) -> "BloomFilter":
        return cls(np.frombuffer(file.read_bytes(), dtype=np.uint8))

    def __contains__(self, sentence: str) -> bool:
        places = _places(sentence, 8 * len(self.bits))
        return bool((self.bits[places // 8] >> (places % 8) & 1).all())

    def new(self, drawn: Iterable[tuple[Item, Any]]) -> Iterator[tuple[Item, Any]]:
        """Yield the pairs of anything and a sentence (with a `text`) that is not in the set.

        After MAX_SKIPPED consecutive copies, copies are yielded, too, until a new sentence appears. So no loop is endless.
        """
        skipped = 0
        for item, sentence in drawn:
            if sentence.text not in self:
                skipped = 0
            elif skipped < MAX_SKIPPED:
                skipped += 1
                continue
            yield item, sentence


def with_spare(num: int) -> int:
    """Return how many sentences to sample so that `num` of them are probably not copies."""
    return num + num // 2 + 8


def _places(sentence: str, num_bits: int) -> np.ndarray:
    """Return the NUM_HASHES places of a sentence: 0 to num_bits - 1."""
    digest = hashlib.blake2b(" ".join(words(sentence)).encode(), digest_size=8 * NUM_HASHES).digest()
    return np.frombuffer(digest, dtype="<u8") % num_bits
