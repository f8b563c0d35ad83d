"""The sentence VAE: sentence → q(z | x) → z → decoder → sentence. Its posterior is what collapses.

z is handed to the decoder exactly as an outline is, so that where the vector comes from is all that differs.
Source: Bowman et al., Generating Sentences from a Continuous Space (2016). Deviation: the encoder is not one GRU's last
state but the network that this project's own outlines come from, pooled over both directions, so that a collapse cannot
be laid to an encoder that forgets.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from outlines.corpus.batching import collate
from outlines.decoding.scoring import nll_of_rows
from outlines.encoders.recurrent import RecurrentEncoder, RecurrentEncoderConfig
from outlines.models.base import TextModel
from outlines.networks.decoder import DecoderConfig, build_decoder
from outlines.networks.losses import importance_weighted_nll, kl_to_standard_normal

MAX_LOGVAR = 10.0
"""Bound of |logvar|: sigma stays within e^-5 and e^5, where neither the KL nor its gradient can overflow."""


class Bounds(NamedTuple):
    """What a VAE can say of sentences whose nll it cannot compute; nats per sentence, [N] each, on the CPU.

    reconstruction_nll: -log p(x | z), the mean over draws of z from the posterior. kl: KL(posterior || prior), exact.
    iw_nll: the importance-weighted estimate of the nll, an upper bound in expectation. num_targets: eos included.
    first_z: the first draw, [N, Z]. first_nll: -log p(x | first_z).
    """

    reconstruction_nll: Tensor
    kl: Tensor
    iw_nll: Tensor
    num_targets: Tensor
    first_z: Tensor
    first_nll: Tensor

    @property
    def negative_elbo(self) -> Tensor:
        return self.reconstruction_nll + self.kl

    def terms(self) -> dict[str, Tensor]:
        """As of `TextModel.nll_terms`."""
        return {"nll": self.iw_nll, "negative_elbo": self.negative_elbo, "reconstruction_nll": self.reconstruction_nll,
                "kl": self.kl}


class VAE(TextModel):
    """A bidirectional GRU encoder, a Gaussian posterior of independent dimensions, the prior N(0, I), the decoder."""

    family = "vae"
    sources = ("prior",)

    def __init__(self, encoder: RecurrentEncoderConfig, decoder: DecoderConfig):
        """encoder: its outline_dim is 2 Z, for mu and logvar, and it has no dropout, which would add noise to mu."""
        super().__init__()
        self.latent_dim = decoder.vector_dim
        self.encoder = RecurrentEncoder(encoder)
        self.decoder = build_decoder(decoder)

    def encode(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """posterior_mu and posterior_logvar, [B, Z] each.

        inputs: [B, T], bos first. lengths: [B] real inputs of each row; padding cannot change the posterior.
        """
        mu, logvar = self.encoder.project_sentences(inputs, lengths).chunk(2, dim=1)
        return mu, MAX_LOGVAR * torch.tanh(logvar / MAX_LOGVAR)

    @torch.no_grad()
    def posterior(self, rows: Sequence[np.ndarray], outlines: Tensor | None = None,
                  batch_size: int = 128) -> tuple[Tensor, Tensor]:
        """posterior_mu and posterior_logvar, [N, Z] each, of sentences given as token ids."""
        device = next(self.parameters()).device
        parts = []
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start:start + batch_size], self.decoder.config)
            parts.append(self.encode(batch.inputs.to(device), batch.lengths))
        mu, logvar = zip(*parts, strict=True)
        return torch.cat(mu), torch.cat(logvar)

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor:
        """z [num, Z] from the prior N(0, I), times `noise_scale`."""
        return noise_scale * torch.randn(num, self.latent_dim, generator=rng).to(next(self.parameters()).device)

    @torch.no_grad()
    def bounds(self, rows: Sequence[np.ndarray], num_samples: int, rng: torch.Generator, batch_size: int = 128,
               posterior: tuple[Tensor, Tensor] | None = None) -> Bounds:
        """The ELBO's terms and the importance-weighted nll, all from the same `num_samples` draws of z a sentence.

        rows: token ids of each sentence. rng: a CPU generator; the first K of more draws are the draws of K.
        posterior: that of the rows, where it is known.
        """
        mu, logvar = (part.cpu().double() for part in posterior or self.posterior(rows, batch_size=batch_size))
        nll: list[Tensor] = []
        log_weights: list[Tensor] = []
        for _ in range(num_samples):
            noise = torch.randn(mu.shape, generator=rng).double()
            z = mu + (logvar / 2).exp() * noise
            if not nll:
                first_z = z.float()
            draw_nll, num_targets = nll_of_rows(self.decoder, rows, z.float(), batch_size)
            nll.append(torch.from_numpy(draw_nll))
            # log p(x | z) + log p(z) - log q(z | x); the normalisers (2π)^(-Z/2) of the last two cancel.
            log_weights.append((noise.square() + logvar - z.square()).sum(dim=1) / 2 - nll[-1])
        return Bounds(torch.stack(nll).mean(dim=0), kl_to_standard_normal(mu, logvar).sum(dim=1),
                      importance_weighted_nll(torch.stack(log_weights)), torch.from_numpy(num_targets),
                      first_z, nll[0])

    def nll_terms(self, rows: Sequence[np.ndarray], outlines: Tensor | None, num_draws: int,
                  rng: torch.Generator) -> dict[str, Tensor]:
        """nll is the importance-weighted bound; the mean of reconstruction_nll over draws, and kl, make negative_elbo."""
        return self.bounds(rows, num_draws, rng).terms()

    def shape(self) -> dict[str, Any]:
        return {"encoder": dataclasses.asdict(self.encoder.config), "decoder": dataclasses.asdict(self.decoder.config)}

    @classmethod
    def from_shape(cls, shape: dict[str, Any]) -> "VAE":
        return cls(RecurrentEncoderConfig(**shape["encoder"]), DecoderConfig.from_json(shape["decoder"]))


def drop_words(inputs: Tensor, lengths: Tensor, share: float, uniforms: Tensor, unk_id: int) -> Tensor:
    """The decoder's inputs [B, T] with a share of the words unknown; bos and padding stay.

    The unknown token replaces them, as in the source: neither the tokenizer nor sampling ever returns it.
    inputs: [B, T], bos first. lengths: [B] real inputs of each row. uniforms: [B, T] in [0, 1).
    Source: Bowman et al. (2016), section 3.2; their keep rate is 1 - share.
    """
    position = torch.arange(inputs.shape[1], device=inputs.device)
    words = (position > 0) & (position < lengths.to(inputs.device)[:, None])
    return inputs.masked_fill(words & (uniforms < share), unk_id)

