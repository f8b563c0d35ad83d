"""Neural outlines, whole: noise → generator → outline → decoder → sentence.

The generator's two controls live beside it, so that what the adversary brought can always be sampled next to what it
started from: `mixture` (the start itself, never trained) and `gaussian` (one Gaussian fitted to the outlines).
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from outlines.models.base import CannotReject
from outlines.models.outline_decoding import OutlineDecoding
from outlines.networks.decoder import DecoderConfig
from outlines.networks.gan import Critic, Generator, GeneratorConfig


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
