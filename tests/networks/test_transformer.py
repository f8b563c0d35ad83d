"""The transformer decoder."""

import math

import pytest
import torch
from torch import Tensor

from outlines.corpus.batching import collate
from outlines.decoding.decode import Sampler
from outlines.decoding.sample import SamplingConfig
from outlines.networks import transformer
from outlines.networks.transformer import TransformerConfig, TransformerDecoder


@pytest.fixture(autouse=True)
def two_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "HEAD_DIM", 4)


def decoder(vector_dim: int = 5) -> TransformerDecoder:
    """Return a decoder of 11 tokens with two heads of 4 dimensions."""
    torch.manual_seed(0)
    config = TransformerConfig(11, vector_dim, embed_dim=8, hidden_dim=12, num_layers=2, dropout=0.0)
    return TransformerDecoder(config).eval()


def reference(model: TransformerDecoder, tokens: Tensor, vector: Tensor | None) -> Tensor:
    """Return the logits [T, V] of one sentence, with loops over positions and complex numbers for the rotation."""
    inputs = model.embedding.weight[tokens] * math.sqrt(8)
    if vector is not None:
        inputs = torch.cat([model.prefix(vector)[None], inputs + model.every_step(vector)])
    hidden = inputs
    for block in model.blocks:
        parts = block.project(block.norm(hidden)).unflatten(1, (3, 2, 4))
        read = torch.zeros_like(hidden).unflatten(1, (2, 4))
        for position in range(len(hidden)):
            for head in range(2):
                scores = torch.stack([turned(parts[position, 0, head], position) @ turned(parts[other, 1, head], other) / 2
                                      for other in range(position + 1)])
                read[position, head] = scores.softmax(0) @ parts[:position + 1, 2, head]
        hidden = hidden + block.merge(read.flatten(1))
        hidden = hidden + block.feed(block.norm_feed(hidden))
    return model.logits(model.norm(hidden[-len(tokens):]))


def turned(values: Tensor, position: int) -> Tensor:
    """Return values [4] with the complex numbers (0, 2) and (1, 3) turned by the position."""
    numbers = torch.complex(values[:2], values[2:])
    numbers = numbers * torch.polar(torch.ones(2), position * torch.tensor([1.0, 0.01]))
    return torch.cat([numbers.real, numbers.imag])


@torch.no_grad()
@pytest.mark.parametrize("vector_dim", [0, 5])
def test_it_equals_a_reference_with_loops(vector_dim: int) -> None:
    model, tokens = decoder(vector_dim), torch.randint(4, 11, (6,))
    vector = torch.randn(5) if vector_dim else None
    ours = model.logits(model.read(tokens[None], None if vector is None else vector[None]))[0]
    assert torch.allclose(ours, reference(model, tokens, vector), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("vector_dim", [0, 5])
def test_a_future_token_cannot_change_a_past_output(vector_dim: int) -> None:
    model, tokens = decoder(vector_dim), torch.randint(4, 11, (1, 6))
    vector = torch.randn(1, 5) if vector_dim else None
    changed = tokens.clone()
    changed[0, 4] = 4 + (tokens[0, 4] - 3) % 7
    before, after = model.read(tokens, vector), model.read(changed, vector)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@torch.no_grad()
def test_step_by_step_equals_teacher_forcing_after_rows_are_selected() -> None:
    model, tokens, vector = decoder(), torch.randint(4, 11, (3, 5)), torch.randn(3, 5)
    whole = model.logits(model.read(tokens, vector))
    cache = model.start(vector, 3)
    for position in range(2):
        assert torch.allclose(model.step(tokens[:, position], cache), whole[:, position], atol=1e-5)
    rows = torch.tensor([2, 0, 2])
    cache = cache.select(rows)
    for position in range(2, 5):
        assert torch.allclose(model.step(tokens[rows, position], cache), whole[rows, position], atol=1e-5)


def test_padding_does_not_change_the_nll_and_the_vector_has_gradients() -> None:
    model, rows, vector = decoder(), [torch.arange(4, 7).numpy(), torch.arange(4, 10).numpy()], torch.randn(2, 5)
    vector.requires_grad_()
    together = model.nll(collate(rows, model.config), vector)
    alone = torch.cat([model.nll(collate([row], model.config), vector[i:i + 1]) for i, row in enumerate(rows)])
    assert torch.allclose(together, alone, atol=1e-5)
    together.sum().backward()
    assert vector.grad is not None and vector.grad.abs().min() > 0


def test_it_learns_sentences_by_heart_and_writes_them() -> None:
    torch.manual_seed(0)
    model = TransformerDecoder(TransformerConfig(30, 4, embed_dim=32, hidden_dim=64, num_layers=2, dropout=0.0))
    rows = [torch.randint(4, 30, (length,)).numpy() for length in (3, 5, 4, 6, 5, 3, 7, 4)]
    vector, optimizer = torch.randn(8, 4), torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model.nll(collate(rows, model.config), vector).mean().backward()
        optimizer.step()
    written = Sampler(model.eval())(vector, torch.zeros(8, 12), SamplingConfig(temperature=0, max_len=12))
    assert written == [row.tolist() for row in rows]


@pytest.mark.parametrize("width", [1, 7, 33, 130])
def test_any_width_is_possible(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "HEAD_DIM", 32)
    model = TransformerDecoder(TransformerConfig(11, 5, embed_dim=width, hidden_dim=3, num_layers=1))
    assert model.nll(collate([torch.arange(4, 9).numpy()], model.config), torch.randn(1, 5)).isfinite().all()
