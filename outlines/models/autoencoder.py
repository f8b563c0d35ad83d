"""The recurrent encoder, trained together with a decoder: sentence → code of unit norm → the same sentence.

Other runs can use the trained encoder, frozen (encoders/recurrent.py). ARAE adds a generator of codes.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional

from outlines.encoders.recurrent import RecurrentEncoder, RecurrentEncoderConfig
from outlines.models.base import TextModel
from outlines.networks.decoder import DecoderConfig, build_decoder


class Autoencoder(TextModel):
    """An encoder and a decoder. This family reconstructs sentences and has no source of new vectors."""

    family = "encoder"
    sources: ClassVar[tuple[str, ...]] = ()

    def __init__(self, encoder: RecurrentEncoderConfig, decoder: DecoderConfig, **others: Any):
        super().__init__(encoder=encoder, decoder=decoder, **others)
        self.code_dim = decoder.vector_dim
        self.encoder = RecurrentEncoder(encoder)
        self.decoder = build_decoder(decoder)

    def codes(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Return the codes [N, D] of N sentences, with unit norm and without gradients. rows: token ids."""
        return functional.normalize(self.encoder.project_rows(rows), dim=1)

    def scaled(self, codes: Tensor) -> Tensor:
        """Return vectors [B, D] for the decoder, with mean square 1, from codes [B, D] of unit norm."""
        return codes * self.code_dim ** 0.5

    def posterior(self, rows: Sequence[np.ndarray], outlines: Tensor | None = None) -> tuple[Tensor, None]:
        return self.scaled(self.codes(rows)), None

    def to_encoder(self, vectors: Tensor) -> Tensor:
        return vectors / self.code_dim ** 0.5

    def from_encoder(self, vectors: Tensor) -> Tensor:
        return self.scaled(functional.normalize(vectors, dim=1))
