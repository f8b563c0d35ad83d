"""The decoder of Z-Forcing (models/zforcing.py): an LSTM language model that reads a latent z_t with each token."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.networks.tied import TiedConfig, TiedDecoder

BOUND = 8.0  # bound of |mu| and |logvar|, so that no KL can overflow


@dataclass(frozen=True, kw_only=True)
class StochasticDecoderConfig(TiedConfig):
    """The sizes of a stochastic decoder. vector_dim: latent_dim times the number of steps of the longest sentence."""

    kind: str = "stochastic"
    latent_dim: int
    mlp_dim: int  # width of the hidden layer of prior and posterior


class Gaussian(nn.Module):
    """An MLP with one hidden layer that returns mu and logvar, both between -BOUND and BOUND."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int):
        super().__init__()
        self.hidden = nn.Linear(input_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, 2 * output_dim)

    def forward(self, inputs: Tensor, beside: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Return mu and logvar [..., output_dim]. inputs: [..., input_dim]. beside: added to the hidden layer."""
        parameters = self.output(functional.leaky_relu(self.hidden(inputs) + beside)).float()
        mu, logvar = (BOUND * torch.tanh(parameters / BOUND)).chunk(2, dim=-1)
        return mu, logvar


@dataclass
class StochasticCache:
    """states: h and c [B, H] of each layer. innovations: [B, steps, Z]. num_read: number of tokens read by every row."""

    states: list[tuple[Tensor, Tensor]]
    innovations: Tensor
    num_read: int = 0

    def select(self, rows: Tensor) -> "StochasticCache":
        return StochasticCache([(h[rows], c[rows]) for h, c in self.states], self.innovations[rows], self.num_read)


class StochasticDecoder(TiedDecoder):
    """p(x | innovations): z_t = mu_p + sigma_p · innovation_t. The prior computes mu_p and sigma_p from h_{t-1}.

    In a sentence with more steps than innovations, the innovations are repeated from the first one.
    """

    config_class = StochasticDecoderConfig
    config: StochasticDecoderConfig

    def __init__(self, config: StochasticDecoderConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        widths = [config.embed_dim + config.latent_dim, *[config.hidden_dim] * (config.num_layers - 1)]
        self.cells = nn.ModuleList(nn.LSTMCell(width, config.hidden_dim) for width in widths)
        self.prior = Gaussian(config.hidden_dim, config.mlp_dim, config.latent_dim)
        self._make_output()
        nn.init.normal_(self.embedding.weight, std=config.embed_dim ** -0.5)

    def start(self, vector: Tensor | None, num: int) -> StochasticCache:
        assert vector is not None, "the vector of this decoder holds the innovations of its latents"
        return StochasticCache(self.zeros(num), vector.unflatten(1, (-1, self.config.latent_dim)))

    def zeros(self, num: int) -> list[tuple[Tensor, Tensor]]:
        """Return h and c of each layer before the first token: zeros [num, H]."""
        zeros = self.output_bias.new_zeros(num, self.config.hidden_dim)
        return [(zeros, zeros)] * self.config.num_layers

    def advance(self, tokens: Tensor, cache: StochasticCache) -> Tensor:
        def draw(step: int, before: Tensor) -> Tensor:
            mu, logvar = self.prior(before)
            return mu + (logvar / 2).exp() * cache.innovations[:, (cache.num_read + step) % cache.innovations.shape[1]]

        hidden = self.unroll(tokens, cache.states, draw)
        cache.num_read += tokens.shape[1]
        return hidden

    def unroll(self, tokens: Tensor, states: list[tuple[Tensor, Tensor]], draw: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return the readout's outputs [B, T, embed_dim] for tokens [B, T].

        states: h and c of each layer. The call replaces them with the states after the last token.
        draw: (t, h_{t-1} of the top layer [B, H]) → z_t [B, Z].
        """
        words = self.dropout(self.embed(tokens))
        outputs = []
        for step in range(tokens.shape[1]):
            below = torch.cat([words[:, step], draw(step, states[-1][0])], dim=1)
            for index, cell in enumerate(self.cells):
                if index:
                    below = functional.dropout(below, self.config.dropout, self.training)
                below, _ = states[index] = cell(below, states[index])
            outputs.append(below)
        return self.readout(self.dropout(torch.stack(outputs, dim=1)))
