"""The frozen sentence encoders: sentences → outlines.

Both stages rest on these: an outline is what a frozen encoder makes of a sentence, and everything after it
(the decoder, the GAN, the metrics) sees only the vectors. An encoder is named by a short spec:

    minilm          all-MiniLM-L6-v2 through sentence-transformers (the extra `minilm`)
    st:NAME         any other sentence-transformers model: a name on the hub, or a directory
    recurrent:PATH  a frozen bidirectional GRU that `python -m train encoder` made; it needs no extra
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from outlines.encoders.recurrent import FrozenRecurrentEncoder
from outlines.encoders.sentence_transformer import load_minilm, load_sentence_transformer
from outlines.errors import OutlinesError


class SentenceEncoder(Protocol):
    """A frozen map from sentences to outlines.

    name: the spec that loads it again.
    dim: D, the width of its outlines.
    fingerprint: a hash of everything that decides its outlines: weights, vocabulary, settings.
    normalized: every outline has unit norm.
    """

    name: str
    dim: int
    fingerprint: str
    normalized: bool

    def encode(self, sentences: list[str]) -> np.ndarray:
        """The outlines of N sentences: [N, D] float32, in the order given.

        A sentence's outline does not depend on the other sentences of the call, up to float16 rounding.
        """
        ...


def load_encoder(spec: str, device: str = "cpu") -> SentenceEncoder:
    """The encoder that `spec` names (see the top of this module), frozen, on `device`.

    Raises OutlinesError where the spec is unknown, an extra is missing, or the model is damaged or unsafe to
    load.
    """
    kind, _, argument = spec.partition(":")
    if spec == "minilm":
        return load_minilm(device)
    if kind == "st" and argument:
        return load_sentence_transformer(argument, device)
    if kind == "recurrent" and argument:
        return FrozenRecurrentEncoder(Path(argument), device)
    raise OutlinesError(f"unknown encoder {spec!r}: say minilm, st:NAME_OR_DIRECTORY or recurrent:DIRECTORY")
