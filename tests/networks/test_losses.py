import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from outlines.networks import losses
from outlines.networks.losses import (
    bag_of_words_nll,
    cyclical_kl_weight,
    free_bits,
    importance_weighted_nll,
    kl_to_standard_normal,
    linear_kl_weight,
    linear_nll,
    one_centred_penalty,
    relativistic_loss,
    score_gradients,
    wasserstein_loss,
    zero_centred_penalty,
)


def sequence_nll(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return -log p(x), nats per sentence [B]: the sum over the real targets of a sentence, eos included.

    logits: [B, T, V]. targets: [B, T] ids. mask: [B, T], True = a real target; padding adds exactly 0.
    """
    nll = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (nll.view_as(targets) * mask).sum(dim=1)


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
    critic, generator = relativistic_loss(real, fake), relativistic_loss(fake, real)
    assert critic.tolist() == pytest.approx([math.log1p(math.exp(-2)), math.log(2)])
    assert generator.tolist() == pytest.approx([math.log1p(math.exp(2)), math.log(2)])


def test_wasserstein_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0]), torch.tensor([0.5])
    assert wasserstein_loss(real, fake).item() == -1.5
    assert wasserstein_loss(fake).item() == -0.5


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


# In one piece, and in nine; by many rows rather than a vast vocabulary, over which some processors' products sum so long
# that float32 itself is off in the fourth digit.
@pytest.mark.parametrize(("num", "vocab_size"), [(5, 9), (500, 3000)])
@pytest.mark.parametrize("uneven", [False, True])
def test_linear_nll_and_its_gradients_are_those_of_whole_logits(num: int, vocab_size: int, uneven: bool) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(num, 6, 3), torch.randn(vocab_size, 3), torch.randn(vocab_size)]
    targets, mask = torch.randint(vocab_size, (num, 6)), torch.rand(num, 6) < 0.7
    weights = torch.randn(num) if uneven else torch.full((num,), 0.3)
    results = []
    for own in (True, False):
        # The whole logits in float64: in float32 it is their gradient that is wrong in the fourth digit, not ours.
        hidden, weight, bias = (tensor.to(torch.float32 if own else torch.float64, copy=True).requires_grad_()
                                for tensor in inputs)
        nll = (linear_nll(hidden, weight, bias, targets, mask) if own else
               -((hidden @ weight.t() + bias).log_softmax(dim=2).gather(2, targets[:, :, None])[:, :, 0] * mask).sum(1))
        results.append([nll, *torch.autograd.grad((nll * weights).sum(), [hidden, weight, bias])])
    for ours, exact in zip(*results, strict=True):
        assert torch.allclose(ours.double(), exact, rtol=1e-4, atol=1e-5 if uneven else 1e-6)


def test_linear_nll_only_computes_the_gradients_that_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, compute = list[tuple[bool, ...]](), losses._nll_and_gradients

    def noting(*arguments: Any) -> Any:
        seen.append(tuple(arguments[5]))
        return compute(*arguments)

    monkeypatch.setattr(losses, "_nll_and_gradients", noting)
    hidden, weight, bias = torch.randn(2, 6, 3).requires_grad_(), torch.randn(9, 3), torch.randn(9)
    targets, mask = torch.randint(9, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    nll = linear_nll(hidden, weight, bias, targets, mask)
    assert torch.autograd.grad(nll.sum(), hidden)[0].abs().min() > 0
    with torch.no_grad():
        assert torch.equal(linear_nll(hidden, weight, bias, targets, mask), nll)
    assert seen == [(True, False, False), (False, False, False)]


def test_kl_is_torchs_own_and_zero_at_the_prior() -> None:
    torch.manual_seed(0)
    mu, logvar = torch.randn(5, 3), torch.randn(5, 3)
    posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(kl_to_standard_normal(mu, logvar), expected, atol=1e-6)
    assert torch.equal(kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2, 3))


def test_free_bits_by_hand() -> None:
    mean_kl = torch.tensor([0.1, 0.5, 0.2, 0.0], requires_grad=True)
    assert free_bits(mean_kl, 0.25, 4).tolist() == pytest.approx([0.25, 0.5, 0.25, 0.25])
    assert free_bits(mean_kl, 0.25, 2).tolist() == pytest.approx([0.6, 0.25])
    assert free_bits(mean_kl, 0.0, 1).tolist() == pytest.approx([0.8])
    free_bits(mean_kl, 0.25, 2).sum().backward()
    assert mean_kl.grad is not None and mean_kl.grad.tolist() == [1, 1, 0, 0]  # below the floor nothing is paid


def test_kl_schedules_by_hand() -> None:
    assert [linear_kl_weight(step, 4) for step in range(7)] == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    cycle = [0, 0.5, 1, 1]
    assert [cyclical_kl_weight(step, 12, 3, 0.5) for step in range(12)] == pytest.approx(cycle * 3)
    assert cyclical_kl_weight(999, 1000, 3, 1.0) == pytest.approx(1, abs=0.01)


def test_bag_of_words_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    targets, mask = torch.tensor([[0, 0, 1], [2, 0, 0]]), torch.tensor([[True] * 3, [True, False, False]])
    expected = [2 * math.log(2) + math.log(4), -math.log(0.8)]
    assert bag_of_words_nll(logits, targets, mask).tolist() == pytest.approx(expected)
    assert bag_of_words_nll(logits, targets.flip(1), mask.flip(1)).tolist() == pytest.approx(expected), "order is nothing"


def test_importance_weighting_of_a_linear_gaussian_model() -> None:
    """z ~ N(0, 1), x | z ~ N(z, 1): p(x) = N(0, 2) and p(z | x) = N(x / 2, 1/2)."""
    normal = torch.distributions.Normal
    x = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.double)
    exact = -normal(0.0, 2 ** 0.5).log_prob(x)
    noise = torch.randn(20000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    for mu, sigma, tolerance in ((x / 2, 0.5 ** 0.5, 1e-9), (x / 2 + 0.3, 0.9, 0.02)):
        z = mu + sigma * noise
        log_weights = normal(0.0, 1.0).log_prob(z) + normal(z, 1.0).log_prob(x) - normal(mu, sigma).log_prob(z)
        assert torch.allclose(importance_weighted_nll(log_weights), exact, atol=tolerance)
        assert (importance_weighted_nll(log_weights) <= -log_weights.mean(0) + 1e-12).all()
        # Far from 1, where exp would overflow, the weights mean the same.
        assert torch.allclose(importance_weighted_nll(log_weights - 1e4), exact + 1e4, atol=tolerance)
