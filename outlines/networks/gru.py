"""The GRU decoder: a recurrent language model that reads the vector in its first state and at every step."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.networks.decoder import DECODERS
from outlines.networks.tied import TiedConfig, TiedDecoder


@dataclass(frozen=True)
class GRUConfig(TiedConfig):
    """The sizes of a GRU decoder."""

    kind: str = "gru"
    vector_into: str = "every_step"  # the vector enters at every step and in the first state, or only in the `first_state`
    mix_dim: int = 0  # width of a hidden layer that reads state and vector together, beside the linear readout; 0: none


@dataclass
class GRUCache:
    """state: [layers, B, H]. terms, from the vector: added to every embedding [B, E] and to every readout [B, E + M]."""

    state: Tensor
    terms: tuple[Tensor, Tensor] | None = None

    def select(self, rows: Tensor) -> "GRUCache":
        return GRUCache(self.state[:, rows], self.terms and (self.terms[0][rows], self.terms[1][rows]))


class GRUDecoder(TiedDecoder):
    """Embedding → GRU → readout → tied output layer. The vector sets the first state and is added at every step.

    With `vector_into="first_state"` it only sets the first state, and later tokens can overwrite it. With `mix_dim` M, the
    readout has M more outputs, which go through a hidden layer. So the next word can depend on vector and state together,
    for example on a part of the vector that is not yet in words.
    """

    config_class = GRUConfig
    config: GRUConfig

    def __init__(self, config: GRUConfig):
        super().__init__(config)
        width, layers = config.hidden_dim, config.num_layers
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.gru = nn.GRU(config.embed_dim, width, layers, batch_first=True, dropout=config.dropout if layers > 1 else 0.0)
        self._make_output()
        if config.mix_dim:
            self.readout = nn.Linear(width, config.embed_dim + config.mix_dim)
            self.mix = nn.Linear(config.mix_dim, config.embed_dim, bias=False)
        if config.vector_dim:
            self.first_state = nn.Linear(config.vector_dim, layers * width)
        self.sees_every_step = bool(config.vector_dim) and config.vector_into == "every_step"
        if self.sees_every_step:
            self.every_step = nn.Linear(config.vector_dim, config.embed_dim, bias=False)
            self.every_readout = nn.Linear(config.vector_dim, config.embed_dim + config.mix_dim, bias=False)
        nn.init.normal_(self.embedding.weight, std=config.embed_dim ** -0.5)

    def start(self, vector: Tensor | None, num: int) -> GRUCache:
        layers, width = self.config.num_layers, self.config.hidden_dim
        if vector is None:
            return GRUCache(self.output_bias.new_zeros(layers, num, width))
        state = torch.tanh(self.first_state(vector)).view(-1, layers, width).transpose(0, 1).contiguous()
        return GRUCache(state, (self.every_step(vector), self.every_readout(vector)) if self.sees_every_step else None)

    def advance(self, tokens: Tensor, cache: GRUCache) -> Tensor:
        inputs = self.embed(tokens)
        if cache.terms:
            inputs = inputs + cache.terms[0][:, None]
        outputs, cache.state = self.gru(self.dropout(inputs), cache.state)
        hidden = self.readout(self.dropout(outputs))
        if cache.terms:
            hidden = hidden + cache.terms[1][:, None]
        return self.mixed(hidden)

    def mixed(self, hidden: Tensor) -> Tensor:
        """Return the input [..., E] of the output layer for readouts [..., E + M]."""
        if not self.config.mix_dim:
            return hidden
        linear, inner = hidden.split((self.config.embed_dim, self.config.mix_dim), dim=-1)
        return linear + self.mix(functional.gelu(inner))


DECODERS["gru"] = GRUDecoder
