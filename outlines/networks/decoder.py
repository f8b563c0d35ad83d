"""The conditional decoder p(x | vector): the interface of every decoder, and the registry of its kinds.

The vector is an outline, a learned code, a latent, or None for a language model (`vector_dim` 0).
To add a kind, write one file that adds a subclass of `Decoder` to `DECODERS`, and import the file in networks/__init__.py.
If the name of a kind ends in a colon, an argument follows, as in hf:NAME.
Shapes: B batch, T tokens, D vector width, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn

from outlines.corpus.batching import TokenBatch
from outlines.corpus.tokenizer import SpecialIds, Tokenizer
from outlines.options import Registry


@dataclass(frozen=True)
class DecoderConfig(SpecialIds):
    """The fields that every decoder has. A kind adds its own fields in a subclass and sets the default of `kind`."""

    vocab_size: int
    vector_dim: int  # 0: a language model without a vector
    kind: str = ""
    vector_dropout: float = 0.0  # fraction of training sentences with a zero vector; above 0, sampling can use guidance
    min_strength: float = 1.0  # smallest strength in training; below 1, the decoder can read vectors that are `weakened`
    strength: float = 0.3  # default for new sentences, at least min_strength; see docs/results.md, "Outline strength"

    @staticmethod
    def from_json(data: dict[str, Any]) -> "DecoderConfig":
        """Return the configuration whose `dataclasses.asdict` is `data`; raises OutlinesError for an unknown kind."""
        return DECODERS[data["kind"]].config_class(**data)


def weakened(vectors: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Return weakened copies [B, D] of vectors [B, D]. The vectors must have variance 1 per dimension.

    strength: [B, 1], from 0 (zeros) to 1 (unchanged). noise: standard normal, [B, D].

    The result is strength · (vector + noise of variance (1 - strength) / strength): the best estimate of a vector from a
    noisy copy. A decoder that was trained on such vectors can sample with a lower strength: it then trusts the vector less.
    Source: noise conditioning augmentation, Ho et al., Cascaded Diffusion Models (2022).
    """
    return strength * vectors + (strength * (1 - strength)).sqrt() * noise


class Cache(Protocol):
    """A decoder's state after the tokens that it has read, one row per sentence."""

    def select(self, rows: Tensor) -> Self:
        """Return a cache with only these rows [N], in this order. A row can occur more than once."""


class Decoder(nn.Module, ABC):
    """p(x | vector). Training calls `nll`, sampling calls `start` and `step`. All are differentiable in the vector."""

    config_class: ClassVar[type[DecoderConfig]]
    config: DecoderConfig
    pretrained: ClassVar[bool] = False  # whether it contains a pretrained language model and needs that model's tokenizer
    defaults: ClassVar[dict[str, Any]] = {}  # default values of training options for this kind
    rows_at_once: ClassVar[int | None] = None  # maximum sentences per batch when sampling; None: depends on the device

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config

    @classmethod
    def settings(cls, name: str, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return the fields of the config that depend on the option --decoder (`name`) and on the tokenizer."""
        return {}

    def words(self) -> tuple[Tensor, Tensor] | None:
        """Return the embeddings [V, E] and the output bias [V] that `start_words` sets; None: not supported."""
        return None

    @abstractmethod
    def nll(self, tokens: TokenBatch, vector: Tensor | None) -> Tensor:
        """Return -log p(targets | vector) in nats per sentence, [B]. vector: [B, D], or None for a language model."""

    @abstractmethod
    def start(self, vector: Tensor | None, num: int) -> Any:
        """Return the `Cache` of `num` sentences before bos is read. vector: [num, D], or None for a language model."""

    @abstractmethod
    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """Return the logits [B, V] of the next token after tokens [B]. Updates the cache."""


DECODERS = Registry("decoder")


def decoder_class(name: str) -> type[Decoder]:
    """Return the decoder class for a name such as gru or hf:NAME. Raises OutlinesError."""
    kind, colon, _ = name.partition(":")
    found: type[Decoder] = DECODERS[kind + colon]
    return found


def build_decoder(config: DecoderConfig) -> Decoder:
    """Return an untrained decoder; `config.kind` decides its class."""
    return DECODERS[config.kind](config)
