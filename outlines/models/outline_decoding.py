"""The base of families that decode outlines of a frozen encoder."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from outlines.models.base import TextModel
from outlines.networks.decoder import DecoderConfig, build_decoder
from outlines.networks.scaling import Scaling


class OutlineDecoding(TextModel):
    """A decoder of outlines, with the outlines' scaling and norm."""

    def __init__(self, decoder: DecoderConfig, normalized: bool, encoder: dict[str, str], whitened: bool, **others: Any):
        """normalized: whether the encoder's outlines have unit norm. encoder: its name and fingerprint.

        whitened: whether outlines are whitened instead of scaled by one number.
        """
        super().__init__(decoder=decoder, normalized=normalized, encoder=encoder, whitened=whitened, **others)
        self.normalized, self.encoder = normalized, {key: str(value) for key, value in encoder.items()}
        self.decoder = build_decoder(decoder)
        width = decoder.vector_dim
        self.scaling = Scaling(torch.zeros(width), torch.ones(()), torch.eye(width) if whitened else None)

    def normalise(self, scaled: Tensor) -> Tensor:
        """Return outlines [B, D] in scaled units with the norm of the encoder's outlines."""
        if not self.normalized:
            return scaled
        return self.scaling.scale(functional.normalize(self.scaling.unscale(scaled), dim=1))

    def frozen_encoder(self) -> dict[str, str]:
        return self.encoder

    def to_encoder(self, vectors: Tensor) -> Tensor:
        return self.scaling.unscale(vectors)

    def from_encoder(self, vectors: Tensor) -> Tensor:
        return self.normalise(self.scaling.scale(vectors))

    def posterior(self, rows: Sequence[np.ndarray], outlines: Tensor | None) -> tuple[Tensor, None]:
        assert outlines is not None, "this family needs outlines"
        return outlines, None
