"""The conditional decoder p(x | vector): from an outline to words.

It stands last on the way from text to text. The vector is an outline, a code, a VAE's z, or nothing at all: the
language model of this project is this decoder with `vector_dim` 0, so that what differs between the families is where
the vector comes from, and nothing else.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.networks.losses import total_nll


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder's shape."""

    vocab_size: int
    vector_dim: int
    """width of the conditioning vector; 0 makes a plain language model"""
    embed_dim: int = 256
    hidden_dim: int = 512
    num_layers: int = 1
    dropout: float = 0.1
    vector_noise: float = 0.0
    """standard deviation of the Gaussian noise added to the vector in training, in the scaled vector's units"""
    vector_dropout: float = 0.0
    """share of training's sentences that came with a zero vector: above 0 the decoder has learnt p(x) of it, and can be
    guided"""
    vector_into: str = "every_step"
    """where the vector enters: `every_step` (and the first state), or `first_state` alone"""


class LockedDropout(nn.Module):
    """Dropout with one mask a sentence, the same at every step: values [B, T, width] keep their shape.

    Source: Gal and Ghahramani, A Theoretically Grounded Application of Dropout in RNNs (2016). On a CPU it also draws
    T times fewer random numbers, which were 7 % of a training step.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or not self.share:
            return values
        mask = torch.empty_like(values[:, :1]).bernoulli_(1 - self.share).div_(1 - self.share)
        return values * mask


class Decoder(nn.Module):
    """A GRU language model that sees a vector at its first state and at every step; embeddings are tied.

    With `vector_into` first_state it sees the vector there alone, and what it read since can drive it out. A subclass may
    have another recurrence: it makes other layers, and says what `start`, `hidden`, `words`, `condition` and `advance` are.
    A state is a tensor [S, B, W] whose rows are `state[:, row]`; no one outside looks further into it.

    Shapes: B batch, T tokens, D vector width, V vocabulary.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self._make_recurrence()
        self.dropout = LockedDropout(config.dropout)
        self.readout = nn.Linear(config.hidden_dim, config.embed_dim)
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self._make_conditioning()
        nn.init.normal_(self.embedding.weight, std=config.embed_dim ** -0.5)

    def _make_recurrence(self) -> None:
        """The layers between embedding and readout."""
        config = self.config
        self.gru = nn.GRU(config.embed_dim, config.hidden_dim, config.num_layers, batch_first=True,
                          dropout=config.dropout if config.num_layers > 1 else 0.0)

    def _make_conditioning(self) -> None:
        """The layers by which the vector enters."""
        config = self.config
        if config.vector_dim:
            self.first_state = nn.Linear(config.vector_dim, config.num_layers * config.hidden_dim)
        self.sees_every_step = bool(config.vector_dim) and config.vector_into == "every_step"
        if self.sees_every_step:
            self.every_step = nn.Linear(config.vector_dim, config.embed_dim, bias=False)
            self.every_readout = nn.Linear(config.vector_dim, config.embed_dim, bias=False)

    def start(self, vector: Tensor | None, num: int) -> Tensor:
        """The first state [layers, B, H] for B sentences; zeros for a language model."""
        layers, width = self.config.num_layers, self.config.hidden_dim
        if vector is None:
            return self.output_bias.new_zeros(layers, num, width)
        state = torch.tanh(self.first_state(vector))
        return state.view(-1, layers, width).transpose(0, 1).contiguous()

    def hidden(self, tokens: Tensor, state: Tensor, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the tied output layer reads, [B, T, embed_dim], and the state reached."""
        inputs = self.embedding(tokens) * self.config.embed_dim ** 0.5
        if vector is not None and self.sees_every_step:
            inputs = inputs + self.every_step(vector)[:, None]
        outputs, state = self.gru(self.dropout(inputs), state)
        hidden = self.readout(self.dropout(outputs))
        if vector is not None and self.sees_every_step:
            hidden = hidden + self.every_readout(vector)[:, None]
        return hidden, state

    def words(self) -> Tensor:
        """What each token of the vocabulary brings to `advance`, [V, W]; it holds while the parameters stay as they are.

        Here its share of the first layer's gates, [V, 3H]: looked up, it is a third of the recurrence's products saved.
        """
        return functional.linear(self.embedding.weight * self.config.embed_dim ** 0.5, *self._of_inputs(0))

    def _of_inputs(self, layer: int) -> tuple[Tensor, Tensor]:
        """The weight [3H, width] and the bias of what a layer's inputs bring to its gates.

        The bias holds the state's too, but for the new gate: what the state brings there is scaled by the reset gate.
        """
        weight, _, bias, of_state = self.gru.all_weights[layer]
        return weight, bias + functional.pad(of_state[:2 * self.config.hidden_dim], (0, self.config.hidden_dim))

    def condition(self, vector: Tensor | None) -> Tensor | None:
        """What a vector [B, D] adds to every step, [B, 3H + embed_dim]: to the gates, and to what `hidden` returns."""
        if vector is None or not self.sees_every_step:
            return None
        to_gates = functional.linear(self.every_step(vector), self.gru.all_weights[0][0])
        return torch.cat([to_gates, self.every_readout(vector)], dim=1)

    @torch.no_grad()
    def advance(self, words: Tensor, state: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """`hidden` of one token a sentence in evaluation mode: [B, W] → [B, embed_dim], and the state reached.

        words: the tokens' rows of `words`, which it may overwrite. condition: what `condition` gave, for that is the
        same at every step.
        """
        inputs, to_readout = words, 0.0
        if condition is not None:
            to_gates, to_readout = condition.split([3 * self.config.hidden_dim, self.config.embed_dim], dim=1)
            inputs = words.add_(to_gates)
        reached: list[Tensor] = []
        for index, ((_, weight, _, bias), layer) in enumerate(zip(self.gru.all_weights, state, strict=True)):
            if index:
                inputs = functional.linear(reached[-1], *self._of_inputs(index)).float()
            reached.append(_gru_step(inputs, layer, weight, bias))
        return self.readout(reached[-1]) + to_readout, torch.stack(reached) if len(reached) > 1 else reached[0][None]

    def forward(self, tokens: Tensor, vector: Tensor | None) -> Tensor:
        """Teacher-forced logits [B, T, V] for inputs [B, T] (bos first) under a vector [B, D], or None."""
        return functional.linear(self.read(tokens, vector), self.embedding.weight, self.output_bias)

    def nll(self, tokens: Tensor, vector: Tensor | None, targets: Tensor, mask: Tensor) -> Tensor:
        """-log p(targets | vector), nats, the sum over a batch's real targets; for training. Arguments as above."""
        return total_nll(self.read(tokens, vector), self.embedding.weight, self.output_bias, targets, mask)

    def read(self, tokens: Tensor, vector: Tensor | None) -> Tensor:
        """What the output layer reads at each of a batch's inputs, [B, T, embed_dim]."""
        if vector is not None and self.training and self.config.vector_noise:
            vector = vector + self.config.vector_noise * torch.randn_like(vector)
        return self.hidden(tokens, self.start(vector, len(tokens)), vector)[0]


def _gru_step(inputs: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The next state [B, H] of a GRU. inputs: [B, 3H], what `_of_inputs` brings to the gates. weight, bias: the state's.

    It works in the memory of `inputs`: each pass over a batch's gates takes time too. inputs and state are float32, under
    autocast too, which rounds the product alone.
    """
    width = state.shape[1]
    of_state = functional.linear(state, weight, functional.pad(bias[2 * width:], (2 * width, 0)))
    reset, update = inputs[:, :2 * width].add_(of_state[:, :2 * width]).sigmoid_().chunk(2, dim=1)
    new = _tanh_(inputs[:, 2 * width:].addcmul_(reset, of_state[:, 2 * width:]))
    return torch.lerp(new, state, update)


def _tanh_(values: Tensor) -> Tensor:
    """tanh in place; on a CPU by the sigmoid, for torch's own tanh takes four times as long."""
    return values.mul_(2).sigmoid_().mul_(2).sub_(1) if values.device.type == "cpu" else values.tanh_()
