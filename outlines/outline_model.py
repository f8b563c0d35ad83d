"""Neural outlines, whole: noise → generator → outline → decoder → sentence.

The generator's two controls live beside it, so that what the adversary brought can always be sampled next to what it
started from: `mixture` (the start itself, never trained) and `gaussian` (one Gaussian fitted to the outlines).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from outlines.decoder import Decoder, DecoderConfig
from outlines.gan import Critic, Generator, GeneratorConfig
from outlines.outline_store import Scaling
from outlines.text_model import CannotReject, TextModel


class OutlineDecoding(TextModel):
    """What a family that writes from a frozen encoder's outlines has: the decoder, and the outlines' scaling and norm."""

    def __init__(self, decoder: DecoderConfig, normalized: bool, encoder: dict[str, str], whitened: bool = False):
        """normalized: the encoder's outlines have unit norm. encoder: its name and fingerprint.

        whitened: outlines are whitened instead of scaled by one number.
        """
        super().__init__()
        self.normalized = normalized
        self.encoder = encoder
        self.decoder = Decoder(decoder)
        width = decoder.vector_dim
        self.whitened = whitened
        self.scaling = Scaling(torch.zeros(width), torch.ones(()), torch.eye(width) if whitened else None)

    def normalise(self, scaled: Tensor) -> Tensor:
        """Outlines [B, D] in scaled units, brought to the norm that the encoder's have."""
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
        assert outlines is not None, "an outline model's sentences come with their outlines"
        return outlines, None


class OutlineModel(OutlineDecoding):
    """The decoder, the generator (its moving average), the critic it was trained against and the untrained controls."""

    family = "outlines"
    sources = ("generator", "mixture", "gaussian")
    has_critic = True
    generator: Generator
    mixture: Generator
    gaussian: Generator
    critic: Critic
    score_slope: Tensor
    """nats of log density ratio, real over generated, a unit of the critic's score; 0 where the score tells nothing"""

    def __init__(self, decoder: DecoderConfig, generator: GeneratorConfig, mixture: GeneratorConfig,
                 normalized: bool, encoder: dict[str, str], whitened: bool = False):
        """normalized, encoder, whitened: see OutlineDecoding."""
        super().__init__(decoder, normalized, encoder, whitened)
        self.generator = Generator(generator)
        self.mixture = Generator(mixture)
        self.gaussian = Generator(dataclasses.replace(mixture, num_centres=1, num_offsets=0))
        self.critic = Critic(decoder.vector_dim, generator.hidden_dim, generator.num_layers)
        self.register_buffer("score_slope", torch.zeros(()))
        for control in (self.mixture, self.gaussian):
            control.requires_grad_(False)

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor:
        generator: Generator = getattr(self, source)
        return self.normalise(generator(generator.draw(num, rng, noise_scale)))

    def critic_scores(self, vectors: Tensor) -> Tensor:
        return self.critic(vectors)

    def log_density_ratio(self, vectors: Tensor) -> Tensor:
        slope = float(self.score_slope)
        if slope <= 0:
            raise CannotReject("the critic of this run does not tell real outlines from generated ones: "
                               "rejection has nothing to go by")
        return slope * self.critic(vectors)

    def shape(self) -> dict[str, Any]:
        return {"decoder": dataclasses.asdict(self.decoder.config),
                "generator": dataclasses.asdict(self.generator.config),
                "mixture": dataclasses.asdict(self.mixture.config),
                "normalized": self.normalized, "encoder": self.encoder, "whitened": self.whitened}

    @classmethod
    def from_shape(cls, shape: dict[str, Any]) -> "OutlineModel":
        encoder = {name: str(shape["encoder"][name]) for name in ("name", "fingerprint")}
        return cls(DecoderConfig(**shape["decoder"]), GeneratorConfig(**shape["generator"]),
                   GeneratorConfig(**shape["mixture"]), shape["normalized"], encoder, shape["whitened"])
