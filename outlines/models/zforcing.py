"""Z-Forcing: a latent at every step of an autoregressive decoder, trained with an auxiliary cost.

x_t is the input, y_t = x_{t+1} the target, and h_t the state of the forward LSTM:

    backward LSTM            b_t from y_t and b_{t+1}
    prior                    p(z_t | h_{t-1})
    posterior                q(z_t | h_{t-1}, b_t)
    forward LSTM             h_t from z_t, x_t and h_{t-1}
    words                    p(y_t | h_t): z only acts through h_t

The decoder's vector contains the *innovations* of all steps, e_t = (z_t - mu_p) / sigma_p with the prior's mu_p and sigma_p
of step t. Under the prior, they are N(0, 1) and independent of earlier tokens, so the whole vector can be sampled first.

Source: Goyal, Sordoni, Côté, Ke and Bengio, Z-Forcing: Training Stochastic Recurrent Networks (2017). Deviations:
embedding and output layer share one matrix, after a readout layer; mu and logvar have smooth bounds.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from outlines.corpus.batching import TokenBatch, collate, in_like_length
from outlines.decoding.scoring import LatentDraw
from outlines.metrics.collapse import Steps
from outlines.models.base import TextModel
from outlines.networks.losses import kl_to_standard_normal
from outlines.networks.stochastic import Gaussian, StochasticDecoder, StochasticDecoderConfig


class Path(NamedTuple):
    """States and distributions of a batch, computed with z from the posterior. Fields without a shape: [B, T, Z].

    mu, logvar: of the posterior. mu_p, logvar_p: of the prior.
    """

    hidden: Tensor  # [B, T, embed_dim], the readout's outputs
    before: Tensor  # [B, T, H], h_{t-1}
    mu: Tensor
    logvar: Tensor
    mu_p: Tensor
    logvar_p: Tensor

    def in_units_of_the_prior(self) -> tuple[Tensor, Tensor]:
        """Return the posterior's mu and logvar, standardised by the prior. Their KL to N(0, 1) is KL(posterior || prior)."""
        return (self.mu - self.mu_p) * (-self.logvar_p / 2).exp(), self.logvar - self.logvar_p


class ZForcing(TextModel):
    """The stochastic decoder, and the posterior of the decoder's latents."""

    family = "zforcing"
    sources = ("prior",)
    latent_per_step = True
    decoder: StochasticDecoder

    def __init__(self, backward_hidden_dim: int, decoder: StochasticDecoderConfig):
        super().__init__()
        self.decoder = StochasticDecoder(decoder)
        # No dropout, which would add noise to mu.
        self.backward_lstm = nn.LSTM(decoder.embed_dim, backward_hidden_dim, batch_first=True)
        self.inference = Gaussian(decoder.hidden_dim, decoder.mlp_dim, decoder.latent_dim)
        self.inference_sees = nn.Linear(backward_hidden_dim, decoder.mlp_dim, bias=False)

    @property
    def num_steps(self) -> int:
        return self.decoder.config.vector_dim // self.decoder.config.latent_dim

    def backward_states(self, batch: TokenBatch) -> Tensor:
        """Return b_t [B, T, width], which summarises y_t and all later targets. Padding does not change it."""
        last = batch.lengths.to(batch.targets.device)[:, None] - 1
        position = torch.arange(batch.targets.shape[1], device=batch.targets.device).expand_as(batch.targets)
        turned = torch.where(position <= last, last - position, position)  # its own inverse
        states = self.backward_lstm(self.decoder.embed(batch.targets.gather(1, turned)))[0]
        return states.gather(1, turned[:, :, None].expand_as(states))

    def follow(self, batch: TokenBatch, backward: Tensor, noise: Tensor) -> Path:
        """Return the Path of a batch with z_t = mu + sigma · noise_t from the posterior. backward: b_t. noise: [B, T, Z]."""
        behind = self.inference_sees(backward)
        kept: list[tuple[Tensor, ...]] = []

        def draw(step: int, before: Tensor) -> Tensor:
            mu, logvar = self.inference(before, behind[:, step])
            kept.append((before, mu, logvar))
            return mu + (logvar / 2).exp() * noise[:, step]

        hidden = self.decoder.unroll(batch.inputs, self.decoder.zeros(len(batch.inputs)), draw)
        states, mu, logvar = (torch.stack(part, dim=1) for part in zip(*kept, strict=True))
        return Path(hidden, states, mu, logvar, *self.decoder.prior(states))

    @torch.no_grad()
    def follow_rows(self, rows: Sequence[np.ndarray], noise: Tensor) -> tuple[Steps, Tensor]:
        """Return the posteriors of all steps for `noise` [N, num_steps, Z], and -log p(x | z) in nats [N]; on the CPU."""
        device = next(self.parameters()).device
        mu, logvar, nll = torch.zeros_like(noise), torch.zeros_like(noise), torch.zeros(len(rows), dtype=torch.double)
        for chosen in in_like_length(rows, 128):
            batch = collate([rows[row] for row in chosen], self.decoder.config).to(device)
            num_steps = batch.inputs.shape[1]
            path = self.follow(batch, self.backward_states(batch), noise[chosen, :num_steps].to(device))
            for whole, part in zip((mu, logvar), path.in_units_of_the_prior(), strict=True):
                whole[chosen, :num_steps] = (part * batch.mask[:, :, None]).cpu()
            nll[chosen] = self.decoder.hidden_nll(path.hidden, batch).cpu().double()
        return Steps(mu, logvar, mu + (logvar / 2).exp() * noise, torch.tensor([len(row) + 1 for row in rows])), nll

    def _noise(self, num: int, rng: torch.Generator) -> Tensor:
        return torch.randn(num, self.num_steps, self.decoder.config.latent_dim, generator=rng)

    def posterior(self, rows: Sequence[np.ndarray], outlines: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mu and logvar of the innovations, [N, num_steps · Z], computed with every z at the posterior's mean."""
        steps, _ = self.follow_rows(rows, torch.zeros(len(rows), self.num_steps, self.decoder.config.latent_dim))
        device = next(self.parameters()).device
        return steps.mu.flatten(1).to(device), steps.logvar.flatten(1).to(device)

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor:
        return (noise_scale * self._noise(num, rng)).flatten(1).to(next(self.parameters()).device)

    def draws(self, rows: Sequence[np.ndarray], num_draws: int, rng: torch.Generator) -> Iterator[LatentDraw]:
        for _ in range(num_draws):
            noise = self._noise(len(rows), rng)
            steps, nll = self.follow_rows(rows, noise)
            logvar, drawn = steps.logvar.double(), steps.drawn.double()
            kl = kl_to_standard_normal(steps.mu.double(), logvar).sum(dim=(1, 2))
            # log p(x | z) + log p(z) - log q(z | x), the last two in units of the prior, so that normalisers cancel.
            log_weight = (noise.double().square() + logvar - drawn.square()).sum(dim=(1, 2)) / 2 - nll
            yield LatentDraw(steps, nll, kl, log_weight)

    def shape(self) -> dict[str, Any]:
        decoder = dataclasses.asdict(self.decoder.config)
        del decoder["vector_dim"]  # larger than any tensor, which build_module would refuse
        return {"backward_hidden_dim": self.backward_lstm.hidden_size, "num_steps": self.num_steps, "decoder": decoder}

    @classmethod
    def from_shape(cls, shape: dict[str, Any]) -> "ZForcing":
        vector_dim = shape["num_steps"] * shape["decoder"]["latent_dim"]
        return cls(shape["backward_hidden_dim"], StochasticDecoderConfig(vector_dim=vector_dim, **shape["decoder"]))


class Forcing(nn.Module):
    """Networks that only training uses: p(b_t | z_t) or p(b_t | z_t, h_{t-1}), and a head that predicts words from b_t."""

    def __init__(self, model: ZForcing, sees_state: bool):
        super().__init__()
        config, width = model.decoder.config, model.backward_lstm.hidden_size
        self.sees_state = sees_state
        self.auxiliary = Gaussian(config.latent_dim + sees_state * config.hidden_dim, config.mlp_dim, width)
        self.head = nn.Linear(width, config.vocab_size)

    def predict(self, model: ZForcing, before: Tensor, backward: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logvar of p(b_t | z_t), [B, T, width], with z_t from `noise` as in `ZForcing.follow`.

        z_t is computed from detached h_{t-1} and b_t, so this does not train the backward LSTM. (The published code detaches
        b_t only as the target.)
        """
        before = before.detach()
        mu, logvar = model.inference(before, model.inference_sees(backward.detach()))
        z = mu + (logvar / 2).exp() * noise
        mean, logvar = self.auxiliary(torch.cat([z, before], dim=-1) if self.sees_state else z)
        return torch.tanh(mean), logvar
