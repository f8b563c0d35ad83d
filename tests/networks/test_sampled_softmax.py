"""The softmax over part of the vocabulary."""

import torch

from outlines.corpus.batching import collate
from outlines.networks.gru import GRUConfig, GRUDecoder
from outlines.networks.losses import linear_nll
from outlines.networks.sampled_softmax import sampled_nll


def output_layer(vocab_size: int) -> tuple[torch.Tensor, ...]:
    """Return hidden [4, 6, 5], weight, bias, targets and mask."""
    torch.manual_seed(0)
    return (torch.randn(4, 6, 5), torch.randn(vocab_size, 5), torch.randn(vocab_size), torch.randint(vocab_size, (4, 6)),
            torch.rand(4, 6) < 0.8)


def test_with_all_words_it_is_the_whole_softmax_with_its_gradients() -> None:
    *parts, targets, mask = output_layer(50)
    results = []
    for own in (True, False):
        leaves = [part.clone().requires_grad_() for part in parts]
        nll = sampled_nll(*leaves, targets, mask, 50) if own else linear_nll(*leaves, targets, mask)
        results.append([nll, *torch.autograd.grad(nll.sum(), leaves)])
    for ours, whole in zip(*results, strict=True):
        assert torch.allclose(ours, whole, atol=1e-5)


def test_the_normaliser_is_unbiased() -> None:
    hidden, weight, bias, targets, _ = output_layer(200)
    hidden, targets, mask = hidden[:1, :1], targets[:1, :1], torch.ones(1, 1, dtype=torch.bool)
    logits = (hidden @ weight.T + bias)[0, 0].double()
    drawn = torch.stack([sampled_nll(hidden, weight, bias, targets, mask, 20)[0] for _ in range(3000)]).double()
    normalisers = (drawn + logits[targets[0, 0]]).exp()
    error = float(normalisers.std()) / len(drawn) ** 0.5
    assert abs(float(normalisers.mean()) - float(logits.exp().sum())) < 4 * error
    assert error > 0  # the draws differ


def test_only_training_samples_words() -> None:
    decoders = []
    for num_sampled in (0, 7):
        torch.manual_seed(0)
        decoders.append(GRUDecoder(GRUConfig(60, 0, embed_dim=6, hidden_dim=8, dropout=0.0, num_sampled=num_sampled)))
    batch = collate([torch.arange(5, 12).numpy()], decoders[0].config)
    whole, part = (decoder.nll(batch, None) for decoder in decoders)
    assert not torch.allclose(whole, part)
    whole, part = (decoder.eval().nll(batch, None) for decoder in decoders)
    assert torch.equal(whole, part)
