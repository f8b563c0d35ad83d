"""The recurrent encoder with the decoder that trains it: a denoising autoencoder.

Only its encoder is used later, frozen (encoders/recurrent.py). It reconstructs sentences; it has no source of new vectors.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from outlines.encoders.recurrent import RecurrentEncoder, RecurrentEncoderConfig
from outlines.models.base import TextModel
from outlines.networks.decoder import DecoderConfig, build_decoder


class Autoencoder(TextModel):
    """Sentence → outline → the same sentence."""

    family = "encoder"
    sources = ()

    def __init__(self, encoder: RecurrentEncoderConfig, decoder: DecoderConfig):
        super().__init__(encoder=encoder, decoder=decoder)
        self.encoder = RecurrentEncoder(encoder)
        self.decoder = build_decoder(decoder)

    def encode(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return outlines scaled to variance 1 per dimension, [B, D]. Arguments as in `RecurrentEncoder.forward`."""
        return self.encoder(inputs, lengths) * self.encoder.config.outline_dim ** 0.5

    def posterior(self, rows: Sequence[np.ndarray], outlines: Tensor | None) -> tuple[Tensor, None]:
        return self.from_encoder(self.encoder.project_rows(rows)), None

    def to_encoder(self, vectors: Tensor) -> Tensor:
        return vectors / self.encoder.config.outline_dim ** 0.5

    def from_encoder(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=1) * self.encoder.config.outline_dim ** 0.5
