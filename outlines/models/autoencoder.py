"""The recurrent encoder with the decoder that teaches it: a denoising autoencoder.

It is trained for its encoder, which is then frozen (encoders/recurrent.py); it has no source of vectors of its own, so
it rebuilds sentences and cannot invent any.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from outlines.corpus.batching import collate
from outlines.encoders.recurrent import RecurrentEncoder, RecurrentEncoderConfig
from outlines.models.base import TextModel
from outlines.networks.decoder import DecoderConfig, build_decoder


class Autoencoder(TextModel):
    """Sentence → outline → the same sentence."""

    family = "encoder"
    sources = ()

    def __init__(self, encoder: RecurrentEncoderConfig, decoder: DecoderConfig):
        super().__init__()
        self.encoder = RecurrentEncoder(encoder)
        self.decoder = build_decoder(decoder)

    def encode(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Vectors [B, D] of unit variance a dimension, where outlines have unit norm. Arguments as of the encoder."""
        return self.encoder(inputs, lengths) * self.encoder.config.outline_dim ** 0.5

    @torch.no_grad()
    def posterior(self, rows: Sequence[np.ndarray], outlines: Tensor | None) -> tuple[Tensor, None]:
        device = next(self.parameters()).device
        parts = []
        for start in range(0, len(rows), 128):
            batch = collate(rows[start:start + 128], self.decoder.config)
            parts.append(self.encode(batch.inputs.to(device), batch.lengths))
        return torch.cat(parts), None

    def to_encoder(self, vectors: Tensor) -> Tensor:
        return vectors / self.encoder.config.outline_dim ** 0.5

    def from_encoder(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=1) * self.encoder.config.outline_dim ** 0.5

    def shape(self) -> dict[str, Any]:
        return {"encoder": dataclasses.asdict(self.encoder.config), "decoder": dataclasses.asdict(self.decoder.config)}

    @classmethod
    def from_shape(cls, shape: dict[str, Any]) -> "Autoencoder":
        return cls(RecurrentEncoderConfig(**shape["encoder"]), DecoderConfig.from_json(shape["decoder"]))
