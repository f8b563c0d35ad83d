"""ARAE: sentence → learned code → sentence, and a generator noise → code. The code replaces the frozen encoder's outline.

Source: Zhao, Kim, Zhang, Rush and LeCun, Adversarially Regularized Autoencoders (ICML 2018). Deviations: GRUs with pooled
states instead of LSTMs with the last state; no batch normalisation; generated codes have unit norm too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from outlines.encoders.recurrent import RecurrentEncoder, RecurrentEncoderConfig
from outlines.models.base import TextModel
from outlines.networks.decoder import DecoderConfig, build_decoder
from outlines.networks.gan import Generator, GeneratorConfig, mlp


@dataclass(frozen=True)
class CodeGeneratorConfig:
    """The sizes of the generator."""

    noise_dim: int
    hidden_dim: int
    num_layers: int


class ARAE(TextModel):
    """Encoder, decoder, generator, and a Gaussian fitted to the codes, the baseline that needs no GAN."""

    family = "arae"
    sources = ("generator", "gaussian")

    def __init__(self, encoder: RecurrentEncoderConfig, generator: CodeGeneratorConfig, decoder: DecoderConfig):
        """encoder: without dropout, so that the critic sees the codes themselves."""
        super().__init__(encoder=encoder, generator=generator, decoder=decoder)
        self.code_dim = decoder.vector_dim
        self.encoder = RecurrentEncoder(encoder)
        self.decoder = build_decoder(decoder)
        self.generator_config = generator
        self.generator = mlp(generator.noise_dim, generator.hidden_dim, generator.num_layers, self.code_dim)
        self.gaussian = Generator(GeneratorConfig(self.code_dim, 1, hidden_dim=1, num_layers=1)).requires_grad_(False)

    def encode(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return codes [B, D] of unit norm. Arguments as in `RecurrentEncoder.forward`."""
        return self.encoder(inputs, lengths)

    def codes(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Return the codes [N, D] of sentences given as token ids, without gradients."""
        return functional.normalize(self.encoder.project_rows(rows), dim=1)

    def generate_codes(self, noise: Tensor) -> Tensor:
        """Return codes [B, D] of unit norm for normal noise [B, noise_dim]."""
        return functional.normalize(self.generator(noise), dim=1)

    def scaled(self, codes: Tensor) -> Tensor:
        """Return the decoder's vectors [B, D], with variance 1 per dimension, for codes [B, D]."""
        return codes * self.code_dim ** 0.5

    def posterior(self, rows: Sequence[np.ndarray], outlines: Tensor | None = None) -> tuple[Tensor, None]:
        return self.scaled(self.codes(rows)), None

    def to_encoder(self, vectors: Tensor) -> Tensor:
        return vectors / self.code_dim ** 0.5

    def from_encoder(self, vectors: Tensor) -> Tensor:
        return self.scaled(functional.normalize(vectors, dim=1))

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor:
        if source == "gaussian":
            return self.from_encoder(self.gaussian(self.gaussian.draw(num, rng) * noise_scale))
        noise = noise_scale * torch.randn(num, self.generator_config.noise_dim, generator=rng)
        return self.scaled(self.generate_codes(noise.to(next(self.parameters()).device)))
