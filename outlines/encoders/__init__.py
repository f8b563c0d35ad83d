"""Frozen sentence encoders: sentences → outlines. An encoder is selected by a short name:

    minilm          all-MiniLM-L6-v2 through sentence-transformers (needs the extra `minilm`)
    st:NAME         any other sentence-transformers model: a name on the hub, or a directory
    recurrent:PATH  a frozen bidirectional GRU from `python -m train encoder`; needs no extra
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from outlines.encoders.recurrent import FrozenRecurrentEncoder
from outlines.encoders.sentence_transformer import load_minilm, load_sentence_transformer
from outlines.errors import OutlinesError


class SentenceEncoder(Protocol):
    """A frozen map from sentences to outlines.

    name: the argument of `load_encoder` that loads it again. dim: D, the width of its outlines.
    fingerprint: a hash of everything that determines its outlines. normalized: every outline has unit norm.
    """

    name: str
    dim: int
    fingerprint: str
    normalized: bool

    def encode(self, sentences: list[str]) -> np.ndarray:
        """Return the outlines of N sentences: [N, D] float32, each independent of the others up to float16 rounding."""
        ...


def load_encoder(name: str, device: str = "cpu") -> SentenceEncoder:
    """Return the frozen encoder with this name on `device`. Raises OutlinesError if it is unknown, damaged or unsafe."""
    kind, _, argument = name.partition(":")
    if name == "minilm":
        return load_minilm(device)
    if kind == "st" and argument:
        return load_sentence_transformer(argument, device)
    if kind == "recurrent" and argument:
        return FrozenRecurrentEncoder(Path(argument), device)
    raise OutlinesError(f"Unknown encoder {name!r}. Use minilm, st:NAME_OR_DIRECTORY or recurrent:DIRECTORY.")
