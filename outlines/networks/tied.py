"""Base class of decoders with one weight matrix for embedding and output layer (tied)."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.corpus.batching import TokenBatch
from outlines.networks.decoder import Decoder, DecoderConfig
from outlines.networks.losses import linear_nll
from outlines.networks.sampled_softmax import sampled_nll


@dataclass(frozen=True)
class TiedConfig(DecoderConfig):
    """The settings of a tied decoder."""

    embed_dim: int = 256
    hidden_dim: int = 512
    num_layers: int = 1
    dropout: float = 0.1
    num_sampled: int = 0  # words that the training softmax sums over in addition to the batch's targets; 0: all words


class LockedDropout(nn.Module):
    """Dropout of [B, T, width] with one mask per sentence, shared by all steps.

    nn.Dropout needs T times as many random numbers, which would need 7 % of a training step's time on a CPU. Source: Gal and
    Ghahramani (2016).
    """

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or not self.share:
            return values
        return values * torch.empty_like(values[:, :1]).bernoulli_(1 - self.share).div_(1 - self.share)


class TiedDecoder(Decoder):
    """A decoder with one weight matrix for embedding and output layer. A subclass defines the layers between them."""

    config: TiedConfig
    embedding: nn.Embedding

    def _make_output(self) -> None:
        self.dropout = LockedDropout(self.config.dropout)
        self.readout = nn.Linear(self.config.hidden_dim, self.config.embed_dim)
        self.output_bias = nn.Parameter(torch.zeros(self.config.vocab_size))

    @abstractmethod
    def advance(self, tokens: Tensor, cache: Any) -> Tensor:
        """Return hidden vectors [B, T, embed_dim], the input of the output layer, for tokens [B, T]. Updates the cache."""

    def read(self, inputs: Tensor, vector: Tensor | None) -> Tensor:
        """Return hidden vectors [B, T, embed_dim] for inputs [B, T], which start with bos."""
        return self.advance(inputs, self.start(vector, len(inputs)))

    def nll(self, tokens: TokenBatch, vector: Tensor | None) -> Tensor:
        return self.hidden_nll(self.read(tokens.inputs, vector), tokens)

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        return self.logits(self.advance(tokens[:, None], cache)[:, 0])

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [..., embed_dim] of tokens, with variance 1 at the start of training."""
        return self.embedding(tokens) * self.config.embed_dim ** 0.5

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] for hidden vectors [..., embed_dim]."""
        return functional.linear(hidden, self.embedding.weight, self.output_bias)

    def hidden_nll(self, hidden: Tensor, tokens: TokenBatch) -> Tensor:
        """Return -log p(targets), nats per sentence [B], for hidden vectors [B, T, embed_dim]."""
        output = hidden, self.embedding.weight, self.output_bias, tokens.targets, tokens.mask
        if self.training and self.config.num_sampled:
            return sampled_nll(*output, self.config.num_sampled)
        return linear_nll(*output)

    def words(self) -> tuple[Tensor, Tensor]:
        return self.embedding.weight, self.output_bias
