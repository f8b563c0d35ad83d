"""Frozen sentence encoders: sentences → outlines. An encoder is selected by a short name:

    minilm               all-MiniLM-L6-v2 through sentence-transformers, for English (needs the extra `minilm`)
    multilingual-minilm  paraphrase-multilingual-MiniLM-L12-v2, for 50 languages
    st:NAME              any other sentence-transformers model: a name on the hub, or a directory
    recurrent:PATH       a frozen bidirectional GRU from `python -m train encoder`; needs no extra
"""

import re
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

import numpy as np

from outlines.encoders.recurrent import FrozenRecurrentEncoder
from outlines.encoders.sentence_transformer import load_sentence_transformer
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


def encoder_name(name: str, prompt: str = "", dim: int = 0) -> str:
    """Return the name of an encoder with a prompt before each sentence ("": the model's) and `dim` dimensions (0: all)."""
    return f"{name}?dim={dim}&prompt={quote(prompt, errors='replace')}" if prompt or dim else name


def load_encoder(name: str, device: str = "cpu") -> SentenceEncoder:
    """Return the frozen encoder with this name on `device`. Raises OutlinesError if it is unknown, damaged or unsafe."""
    base, dim, prompt = re.findall(r"(?s)\A(.*?)(?:\?dim=(\d{1,9})&prompt=([^?&]*))?\Z", name)[0]
    kind, _, argument = base.partition(":")
    if base in ("minilm", "multilingual-minilm") or (kind == "st" and argument):
        return load_sentence_transformer(name, base, device, unquote(prompt), int(dim or 0))
    if kind == "recurrent" and argument and base == name:
        return FrozenRecurrentEncoder(Path(argument), device)
    raise OutlinesError(f"Unknown encoder {name!r}. Use minilm, multilingual-minilm, st:NAME_OR_DIRECTORY or "
                        "recurrent:DIRECTORY.")
