"""Neural outlines: noise → generator → outline → decoder → sentence."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from outlines.models.base import CannotReject, TextModel
from outlines.networks.decoder import DecoderConfig, build_decoder
from outlines.networks.gan import Critic, Generator, GeneratorConfig
from outlines.networks.generator import OutlineGenerator, build_generator
from outlines.networks.scaling import Scaling


class OutlineDecoding(TextModel):
    """Base class of families that decode outlines of a frozen encoder: a decoder, and scaling and norm of the outlines."""

    def __init__(self, decoder: DecoderConfig, normalized: bool, encoder: dict[str, str], **others: Any):
        """normalized: whether the encoder's outlines have unit norm. encoder: name and fingerprint of the encoder."""
        super().__init__(decoder=decoder, normalized=normalized, encoder=encoder, **others)
        self.normalized, self.encoder = normalized, {key: str(value) for key, value in encoder.items()}
        self.decoder = build_decoder(decoder)
        self.scaling = Scaling(torch.zeros(decoder.vector_dim), torch.ones(()))

    def normalise(self, scaled: Tensor) -> Tensor:
        """Return outlines [B, D] with the norm of the encoder's outlines, in scaled units, like the argument."""
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


class OutlineModel(OutlineDecoding):
    """Decoder, generator, critic, and two baselines: a mixture and one Gaussian, both fitted to the outlines."""

    family = "outlines"
    sources = ("generator", "mixture", "gaussian")
    generator: OutlineGenerator
    mixture: Generator
    gaussian: Generator
    critic: Critic | None
    score_slope: Tensor
    """slope of log(density of real / generated outlines), nats per unit of the critic's score; 0: no information"""

    def __init__(self, decoder: DecoderConfig, generator: Mapping[str, Any], mixture: GeneratorConfig,
                 critic: Mapping[str, int] | None, normalized: bool, encoder: dict[str, str]):
        """generator: kind and config. critic: hidden_dim, num_layers; None: no critic. Others: see OutlineDecoding."""
        super().__init__(decoder, normalized, encoder, generator=generator, mixture=mixture, critic=critic)
        self.generator = build_generator(generator)
        self.mixture = Generator(mixture).requires_grad_(False)
        self.gaussian = Generator(dataclasses.replace(mixture, num_centres=1, num_offsets=0)).requires_grad_(False)
        self.critic = Critic(decoder.vector_dim, **critic) if critic else None
        self.has_critic = self.critic is not None
        self.register_buffer("score_slope", torch.zeros(()))

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor:
        generator: OutlineGenerator = getattr(self, source)
        return self.normalise(generator(generator.draw(num, rng) * noise_scale))

    def critic_scores(self, vectors: Tensor) -> Tensor | None:
        return None if self.critic is None else self.critic(vectors)

    def log_density_ratio(self, vectors: Tensor) -> Tensor:
        if self.critic is None:
            return super().log_density_ratio(vectors)
        if (slope := float(self.score_slope)) <= 0:
            raise CannotReject("This run's critic does not separate real from generated outlines. Sample without rejection.")
        return slope * self.critic(vectors)
