"""ARAE: sentence → learned code → sentence, and a generator: noise → code. The code has the role of the outline.

Source: Zhao, Kim, Zhang, Rush and LeCun, Adversarially Regularized Autoencoders (ICML 2018). Deviations: GRUs with pooled
states instead of LSTMs with the last state; no batch normalisation; generated codes have unit norm too.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from outlines.encoders.recurrent import RecurrentEncoderConfig
from outlines.models.autoencoder import Autoencoder
from outlines.networks.decoder import DecoderConfig
from outlines.networks.gan import Generator, GeneratorConfig, mlp


class ARAE(Autoencoder):
    """Encoder, decoder, generator, and the baseline that needs no GAN: a Gaussian fitted to the codes."""

    family = "arae"
    sources = ("generator", "gaussian")

    def __init__(self, encoder: RecurrentEncoderConfig, generator: Mapping[str, int], decoder: DecoderConfig):
        """encoder: without dropout, so that the critic reads exact codes. generator: noise_dim, hidden_dim, num_layers."""
        super().__init__(encoder, decoder, generator=generator)
        self.noise_dim = generator["noise_dim"]
        self.generator = mlp(self.noise_dim, generator["hidden_dim"], generator["num_layers"], self.code_dim)
        self.gaussian = Generator(GeneratorConfig(self.code_dim, 1, hidden_dim=1, num_layers=1)).requires_grad_(False)

    def generate_codes(self, noise: Tensor) -> Tensor:
        """Return codes [B, D] of unit norm for normal noise [B, noise_dim]."""
        return functional.normalize(self.generator(noise), dim=1)

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor:
        if source == "gaussian":
            return self.from_encoder(self.gaussian(self.gaussian.draw(num, rng) * noise_scale))
        noise = noise_scale * torch.randn(num, self.noise_dim, generator=rng)
        return self.scaled(self.generate_codes(noise.to(next(self.parameters()).device)))
