import math

import pytest
import torch

from outlines.losses import (
    one_centred_penalty,
    relativistic_critic_loss,
    relativistic_generator_loss,
    score_gradients,
    sequence_nll,
    total_nll,
    wasserstein_critic_loss,
    wasserstein_generator_loss,
    zero_centred_penalty,
)


def test_nll_of_uniform_logits_is_length_times_log_vocabulary() -> None:
    logits = torch.zeros(2, 3, 5)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    nll = sequence_nll(logits, torch.zeros(2, 3, dtype=torch.long), mask)
    assert nll.tolist() == pytest.approx([3 * math.log(5), math.log(5)])


def test_padding_cannot_change_nll() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 4, 7), torch.randint(7, (2, 4))
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    before = sequence_nll(logits, targets, mask)
    logits[1, 2:], targets[1, 2:] = 1e4, 3
    assert torch.equal(sequence_nll(logits, targets, mask), before)


def test_relativistic_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
    critic, generator = relativistic_critic_loss(real, fake), relativistic_generator_loss(real, fake)
    assert critic.tolist() == pytest.approx([math.log1p(math.exp(-2)), math.log(2)])
    assert generator.tolist() == pytest.approx([math.log1p(math.exp(2)), math.log(2)])


def test_wasserstein_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0]), torch.tensor([0.5])
    assert wasserstein_critic_loss(real, fake).item() == -1.5
    assert wasserstein_generator_loss(real, fake).item() == -0.5


def test_penalties_of_a_linear_critic() -> None:
    weight = torch.tensor([3.0, 4.0])
    scores, gradients = score_gradients(lambda points: points @ weight, torch.randn(6, 2))
    assert scores.shape == (6,)
    assert torch.allclose(gradients, weight.expand(6, 2))
    assert torch.allclose(zero_centred_penalty(gradients), torch.full((6,), 12.5))  # 25 / 2
    assert torch.allclose(one_centred_penalty(gradients), torch.full((6,), 16.0))  # (5 - 1)²


def test_penalty_reaches_the_critics_weights() -> None:
    critic = torch.nn.Linear(3, 1)
    _, gradients = score_gradients(lambda points: critic(points)[:, 0], torch.randn(4, 3))
    zero_centred_penalty(gradients).mean().backward()
    assert critic.weight.grad is not None
    assert torch.allclose(critic.weight.grad, critic.weight.detach())  # d/dw of |w|²/2


@pytest.mark.parametrize("vocab_size", [9, 300_000])  # in one piece, and in four
def test_total_nll_and_its_gradients_are_those_of_whole_logits(vocab_size: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 6, 3), torch.randn(vocab_size, 3), torch.randn(vocab_size)]
    targets, mask = torch.randint(vocab_size, (2, 6)), torch.rand(2, 6) < 0.7
    results = []
    for own in (True, False):
        hidden, weight, bias = (tensor.clone().requires_grad_() for tensor in inputs)
        nll = (total_nll(hidden, weight, bias, targets, mask) if own else
               sequence_nll(hidden @ weight.t() + bias, targets, mask).sum())
        results.append([nll, *torch.autograd.grad(nll * 0.3, [hidden, weight, bias])])
    for ours, torchs in zip(*results, strict=True):
        assert torch.allclose(ours, torchs, rtol=1e-4, atol=1e-6)
