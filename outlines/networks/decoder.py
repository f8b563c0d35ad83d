"""The conditional decoder p(x | vector): the interface of every decoder, and the registry of its kinds.

The vector is an outline, a learned code, a VAE's z, or None: the language model is a decoder with `vector_dim` 0.
A new kind is one file that adds a `Decoder` to `DECODERS`, and its import in networks/__init__.py. If the name of a kind
ends in a colon, an argument follows, as in hf:NAME.
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
    vector_dim: int  # 0 makes a plain language model
    kind: str = ""
    vector_dropout: float = 0.0  # share of training sentences with a zero vector; above 0 the decoder can be guided
    min_strength: float = 1.0  # smallest strength in training; below 1 the decoder can read weak vectors, see `weakened`
    strength: float = 0.5  # default for new sentences, if it can; measured: docs/results.md, "Outline strength"

    @staticmethod
    def from_json(data: dict[str, Any]) -> "DecoderConfig":
        """Return the configuration whose `dataclasses.asdict` is `data`; raises OutlinesError for an unknown kind."""
        return DECODERS[data["kind"]].config_class(**data)


def weakened(vectors: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Return vectors [B, D] of unit variance, weakened to strengths [B, 1] from 0 (zeros) to 1 (unchanged).

    noise: normal, [B, D].

    The result is strength · (vector + noise of variance (1 - strength) / strength): the best estimate of the vector from a
    noisy copy. A decoder that is trained with such vectors can later be told to trust a vector less.
    Source: noise conditioning augmentation, Ho et al., Cascaded Diffusion Models (2022).
    """
    return strength * vectors + (strength * (1 - strength)).sqrt() * noise


class Cache(Protocol):
    """A decoder's state after the tokens that it has read, one row per sentence."""

    def select(self, rows: Tensor) -> Self:
        """Return the cache of these rows [N]: reordered, dropped or repeated."""


class Decoder(nn.Module, ABC):
    """p(x | vector). Training uses `nll`, sampling uses `start` and `step`; both are differentiable in the vector."""

    config_class: ClassVar[type[DecoderConfig]]
    config: DecoderConfig
    pretrained: ClassVar[bool] = False  # whether it starts from a language model and uses its tokenizer
    defaults: ClassVar[dict[str, Any]] = {}  # values of training options that suit this kind, if they are not set
    rows_at_once: ClassVar[int | None] = None  # sentences that are written at once; None: depends on the device only

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config

    @classmethod
    def settings(cls, name: str, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return the fields of a configuration that depend on the option --decoder and on the tokenizer."""
        return {}

    def words(self) -> tuple[Tensor, Tensor] | None:
        """Return the embeddings [V, E] and the output bias [V] that `start_words` can set; None if there are none."""
        return None

    @abstractmethod
    def nll(self, tokens: TokenBatch, vector: Tensor | None) -> Tensor:
        """Return -log p(targets | vector) in nats per sentence, [B]. vector: [B, D], or None for a language model."""

    @abstractmethod
    def start(self, vector: Tensor | None, num: int) -> Any:
        """Return the `Cache` of `num` sentences before their first token, bos."""

    @abstractmethod
    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """Return the logits [B, V] of the next token after tokens [B]; advances the cache."""


DECODERS = Registry("decoder")


def decoder_class(name: str) -> type[Decoder]:
    """Return the class of decoders with this name, such as gru or hf:NAME. Raises OutlinesError."""
    kind, colon, _ = name.partition(":")
    found: type[Decoder] = DECODERS[kind + colon]
    return found


def build_decoder(config: DecoderConfig) -> Decoder:
    """Return an untrained decoder; `config.kind` decides its class."""
    return DECODERS[config.kind](config)
