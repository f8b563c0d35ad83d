"""Neural outlines: noise → generator → outline → decoder → sentence.

Two baselines are stored with the generator, so that a run can sample from both: `mixture` (the density at which training
starts) and `gaussian` (one Gaussian fitted to the outlines).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from outlines.models.base import CannotReject
from outlines.models.outline_decoding import OutlineDecoding
from outlines.networks.decoder import DecoderConfig
from outlines.networks.gan import Critic, Generator, GeneratorConfig
from outlines.networks.generator import OutlineGenerator, build_generator


class OutlineModel(OutlineDecoding):
    """Decoder, generator, critic (None for a generator that was trained without one) and the two baselines."""

    family = "outlines"
    sources = ("generator", "mixture", "gaussian")
    generator: OutlineGenerator
    mixture: Generator
    gaussian: Generator
    critic: Critic | None
    score_slope: Tensor
    """log density ratio, real over generated, in nats per unit of the critic's score; 0 if scores carry no information"""

    def __init__(self, decoder: DecoderConfig, generator: Mapping[str, Any], mixture: GeneratorConfig,
                 critic: Mapping[str, int] | None, normalized: bool, encoder: dict[str, str], whitened: bool = False):
        """generator: its kind and config. critic: hidden_dim and num_layers. Other arguments: see OutlineDecoding."""
        super().__init__(decoder, normalized, encoder, whitened, generator=generator, mixture=mixture, critic=critic)
        self.generator = build_generator(generator)
        self.mixture = Generator(mixture)
        self.gaussian = Generator(dataclasses.replace(mixture, num_centres=1, num_offsets=0))
        self.critic = Critic(decoder.vector_dim, **critic) if critic else None
        self.register_buffer("score_slope", torch.zeros(()))
        for baseline in (self.mixture, self.gaussian):
            baseline.requires_grad_(False)

    @property
    def has_critic(self) -> bool:  # type: ignore[override]
        return self.critic is not None

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor:
        generator: OutlineGenerator = getattr(self, source)
        return self.normalise(generator(generator.draw(num, rng) * noise_scale))

    def critic_scores(self, vectors: Tensor) -> Tensor | None:
        return None if self.critic is None else self.critic(vectors)

    def log_density_ratio(self, vectors: Tensor) -> Tensor:
        if self.critic is None:
            return super().log_density_ratio(vectors)
        slope = float(self.score_slope)
        if slope <= 0:
            raise CannotReject("This run's critic does not separate real from generated outlines. "
                               "Sample without rejection.")
        return slope * self.critic(vectors)
