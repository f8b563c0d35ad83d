"""The transformer decoder: a causal language model that reads the vector as a prefix and at every step.

Pre-norm blocks (Xiong et al. 2020) with rotary positions (Su et al., RoFormer, 2021) and one weight matrix for embedding and
output layer. `embed_dim` is the width of the model, `hidden_dim` the width of the feed-forward layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.networks.decoder import DECODERS
from outlines.networks.tied import LockedDropout, TiedConfig, TiedDecoder

HEAD_DIM = 32  # dimensions of an attention head


@dataclass(frozen=True)
class TransformerConfig(TiedConfig):
    """The sizes of a transformer decoder."""

    kind: str = "transformer"
    num_layers: int = 4


@dataclass
class TransformerCache:
    """keys, values: one tensor [B, heads, T, HEAD_DIM] per block, for T positions. terms: added to embeddings, [B, E]."""

    keys: list[Tensor]
    values: list[Tensor]
    terms: Tensor | None = None

    def select(self, rows: Tensor) -> "TransformerCache":
        return TransformerCache([keys[rows] for keys in self.keys], [values[rows] for values in self.values],
                                None if self.terms is None else self.terms[rows])


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to its input."""

    def __init__(self, width: int, hidden_dim: int, num_heads: int):
        super().__init__()
        self.num_heads, read = num_heads, num_heads * HEAD_DIM
        self.norm, self.norm_feed = nn.RMSNorm(width), nn.RMSNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * read, bias=False), nn.Linear(read, width, bias=False)
        self.feed = nn.Sequential(nn.Linear(width, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, width))

    def forward(self, inputs: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs [B, T, E] for inputs [B, T, E], and all keys and values [B, heads, S + T, HEAD_DIM].

        keys, values: of S earlier positions. allowed: [T, S + T], whether a position (row) can read another one (column).
        """
        split = self.project(self.norm(inputs)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = (part.transpose(1, 2) for part in split.unbind(dim=2))
        first = keys.shape[2]
        values = torch.cat([values.to(value.dtype), value], dim=2)
        keys = torch.cat([keys.to(key.dtype), rotate(key, first)], dim=2)
        read = functional.scaled_dot_product_attention(rotate(query, first), keys, values, attn_mask=allowed)
        hidden = inputs + self.merge(read.transpose(1, 2).flatten(2))
        return hidden + self.feed(self.norm_feed(hidden)), keys, values


def rotate(states: Tensor, first: int) -> Tensor:
    """Return states [B, heads, T, width] rotated according to their positions: first, first + 1, … (RoFormer, eq. 34)."""
    length, width = states.shape[2:]
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=states.device) / width)
    angles = (first + torch.arange(length, device=states.device))[:, None] * rates
    cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    left, right = states.chunk(2, dim=3)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=3)


class TransformerDecoder(TiedDecoder):
    """Embedding → blocks → tied output layer. The vector is projected to the first position, and added to every token."""

    config_class = TransformerConfig

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        width = config.embed_dim
        self.num_heads = max(1, width // HEAD_DIM)
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, config.hidden_dim, self.num_heads) for _ in range(config.num_layers))
        self.dropout, self.norm = LockedDropout(config.dropout), nn.RMSNorm(width)
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if config.vector_dim:
            self.prefix = nn.Linear(config.vector_dim, width)
            self.every_step = nn.Linear(config.vector_dim, width, bias=False)
        nn.init.normal_(self.embedding.weight, std=width ** -0.5)

    def start(self, vector: Tensor | None, num: int) -> TransformerCache:
        none = self.output_bias.new_zeros(num, self.num_heads, 0, HEAD_DIM)
        cache = TransformerCache([none] * len(self.blocks), [none] * len(self.blocks))
        if vector is not None:
            self._through(self.prefix(vector)[:, None], cache)
            cache.terms = self.every_step(vector)
        return cache

    def advance(self, tokens: Tensor, cache: TransformerCache) -> Tensor:
        inputs = self.embed(tokens)
        if cache.terms is not None:
            inputs = inputs + cache.terms[:, None]
        return self.dropout(self.norm(self._through(self.dropout(inputs), cache)))

    def _through(self, hidden: Tensor, cache: TransformerCache) -> Tensor:
        """Return outputs [B, T, E] of all blocks for inputs [B, T, E]; add the new keys and values to the cache."""
        length, before = hidden.shape[1], cache.keys[0].shape[2]
        allowed = torch.ones(length, before + length, dtype=torch.bool, device=hidden.device).tril(before)
        for layer, block in enumerate(self.blocks):
            hidden, cache.keys[layer], cache.values[layer] = block(hidden, cache.keys[layer], cache.values[layer], allowed)
        return hidden


DECODERS["transformer"] = TransformerDecoder
