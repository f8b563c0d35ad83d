"""The sentence VAE: sentence → q(z | x) → z → decoder → sentence. Its posterior can collapse.

The decoder reads z like an outline, so VAE and neural outlines only differ in the source of the vector.
Source: Bowman et al., Generating Sentences from a Continuous Space (2016). Deviation: the encoder pools the states of a
bidirectional GRU instead of returning the last state of one direction, so that a weak encoder cannot cause a collapse.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from outlines.decoding.scoring import LatentDraw, nll_of_rows
from outlines.encoders.recurrent import RecurrentEncoder, RecurrentEncoderConfig
from outlines.models.base import TextModel
from outlines.networks.decoder import DecoderConfig, build_decoder
from outlines.networks.losses import kl_to_standard_normal

MAX_LOGVAR = 10.0  # bound of |logvar|, so that neither the KL nor its gradient overflows


class VAE(TextModel):
    """A bidirectional GRU encoder, a diagonal Gaussian posterior, the prior N(0, I), and the decoder."""

    family = "vae"
    sources = ("prior",)

    def __init__(self, encoder: RecurrentEncoderConfig, decoder: DecoderConfig):
        """encoder: with outline_dim 2 Z, for mu and logvar, and without dropout, which would add noise to mu."""
        super().__init__(encoder=encoder, decoder=decoder)
        self.latent_dim = decoder.vector_dim
        self.encoder = RecurrentEncoder(encoder)
        self.decoder = build_decoder(decoder)

    def encode(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return posterior_mu and posterior_logvar, [B, Z] each. Arguments as in `RecurrentEncoder.forward`."""
        return self._bounded(self.encoder.project_sentences(inputs, lengths))

    def _bounded(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = projected.chunk(2, dim=1)
        return mu, MAX_LOGVAR * torch.tanh(logvar / MAX_LOGVAR)

    @torch.no_grad()
    def posterior(self, rows: Sequence[np.ndarray], outlines: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._bounded(self.encoder.project_rows(rows))

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor:
        return noise_scale * torch.randn(num, self.latent_dim, generator=rng).to(next(self.parameters()).device)

    def draws(self, rows: Sequence[np.ndarray], num_draws: int, rng: torch.Generator,
              posterior: tuple[Tensor, Tensor] | None = None) -> Iterator[LatentDraw]:
        """See `TextModel.draws`. posterior: mu and logvar of the rows; None: compute them."""
        mu, logvar = (part.cpu().double() for part in posterior or self.posterior(rows))
        kl = kl_to_standard_normal(mu, logvar).sum(dim=1)
        for _ in range(num_draws):
            noise = torch.randn(mu.shape, generator=rng).double()
            z = mu + (logvar / 2).exp() * noise
            nll = torch.from_numpy(nll_of_rows(self.decoder, rows, z.float())[0])
            # log p(x | z) + log p(z) - log q(z | x); the normalisers (2π)^(-Z/2) of the last two cancel.
            yield LatentDraw(z.float(), nll, kl, (noise.square() + logvar - z.square()).sum(dim=1) / 2 - nll)


def drop_words(inputs: Tensor, lengths: Tensor, share: float, uniforms: Tensor, unk_id: int) -> Tensor:
    """Return the decoder's inputs [B, T]. Each word becomes unk with probability `share`; bos and padding stay.

    lengths: [B], without padding. uniforms: [B, T] in [0, 1). Source: Bowman et al. (2016), section 3.2.
    """
    position = torch.arange(inputs.shape[1], device=inputs.device)
    words = (position > 0) & (position < lengths.to(inputs.device)[:, None])
    return inputs.masked_fill(words & (uniforms < share), unk_id)
