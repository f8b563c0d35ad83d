"""The GRU decoder: a recurrent language model that reads the vector at its first state and at every step."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.corpus.batching import TokenBatch
from outlines.networks.decoder import DECODERS, Decoder, DecoderConfig
from outlines.networks.losses import linear_nll
from outlines.networks.sampled_softmax import sampled_nll


@dataclass(frozen=True)
class GRUConfig(DecoderConfig):
    """The sizes of a GRU decoder."""

    kind: str = "gru"
    embed_dim: int = 256
    hidden_dim: int = 512
    num_layers: int = 1
    dropout: float = 0.1
    num_sampled: int = 0  # words in the training softmax in addition to the batch's own; 0: all words
    vector_into: str = "every_step"  # the vector enters at every step and in the first state, or only in the `first_state`


class LockedDropout(nn.Module):
    """Dropout of [B, T, width] with one mask per sentence, shared by all steps.

    nn.Dropout draws T times more random numbers, 7 % of a training step on a CPU. Source: Gal and Ghahramani (2016).
    """

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or not self.share:
            return values
        return values * torch.empty_like(values[:, :1]).bernoulli_(1 - self.share).div_(1 - self.share)


class TiedDecoder(Decoder):
    """A decoder with one weight matrix for embedding and output layer. A subclass defines the recurrence between them."""

    config: GRUConfig
    embedding: nn.Embedding

    def _make_output(self) -> None:
        self.dropout = LockedDropout(self.config.dropout)
        self.readout = nn.Linear(self.config.hidden_dim, self.config.embed_dim)
        self.output_bias = nn.Parameter(torch.zeros(self.config.vocab_size))

    @abstractmethod
    def advance(self, tokens: Tensor, cache: Any) -> Tensor:
        """Return the readout's outputs [B, T, embed_dim] for tokens [B, T]; advances the cache."""

    def read(self, inputs: Tensor, vector: Tensor | None) -> Tensor:
        """Return the readout's outputs [B, T, embed_dim] for inputs [B, T], bos first."""
        return self.advance(inputs, self.start(vector, len(inputs)))

    def nll(self, tokens: TokenBatch, vector: Tensor | None) -> Tensor:
        return self.hidden_nll(self.read(tokens.inputs, vector), tokens)

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        return self.logits(self.advance(tokens[:, None], cache)[:, 0])

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [..., embed_dim] of tokens, with variance 1 at the start of training."""
        return self.embedding(tokens) * self.config.embed_dim ** 0.5

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of the readout's outputs [..., embed_dim]."""
        return functional.linear(hidden, self.embedding.weight, self.output_bias)

    def hidden_nll(self, hidden: Tensor, tokens: TokenBatch) -> Tensor:
        """Return -log p(targets), nats per sentence [B], of the readout's outputs [B, T, embed_dim]."""
        output = hidden, self.embedding.weight, self.output_bias, tokens.targets, tokens.mask
        if self.training and self.config.num_sampled:
            return sampled_nll(*output, self.config.num_sampled)
        return linear_nll(*output)

    def words(self) -> tuple[Tensor, Tensor]:
        return self.embedding.weight, self.output_bias


@dataclass
class GRUCache:
    """state: [layers, B, H]. terms: added at every step to the embeddings and to the readout, [B, E] each."""

    state: Tensor
    terms: tuple[Tensor, Tensor] | None = None

    def select(self, rows: Tensor) -> "GRUCache":
        return GRUCache(self.state[:, rows], self.terms and (self.terms[0][rows], self.terms[1][rows]))


class GRUDecoder(TiedDecoder):
    """Embedding → GRU → readout → tied output layer. The vector sets the first state and is added at every step.

    With `vector_into="first_state"` it only sets the first state, and later tokens can overwrite it.
    """

    config_class = GRUConfig

    def __init__(self, config: GRUConfig):
        super().__init__(config)
        width, layers = config.hidden_dim, config.num_layers
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.gru = nn.GRU(config.embed_dim, width, layers, batch_first=True, dropout=config.dropout if layers > 1 else 0.0)
        self._make_output()
        if config.vector_dim:
            self.first_state = nn.Linear(config.vector_dim, layers * width)
        self.sees_every_step = bool(config.vector_dim) and config.vector_into == "every_step"
        if self.sees_every_step:
            self.every_step = nn.Linear(config.vector_dim, config.embed_dim, bias=False)
            self.every_readout = nn.Linear(config.vector_dim, config.embed_dim, bias=False)
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
        return hidden


DECODERS["gru"] = GRUDecoder
