import dataclasses
from typing import Any

import pytest
import torch

from outlines.corpus.tokenizer import SPECIAL
from outlines.decoding import fast_gru
from outlines.decoding import sample as sampling
from outlines.decoding.decode import Sampler
from outlines.decoding.fast_gru import FastGRU
from outlines.decoding.sample import SamplingConfig, weigh
from outlines.networks.gru import GRUConfig, GRUDecoder

BOS, EOS, PAD, UNK = SPECIAL.bos_id, SPECIAL.eos_id, SPECIAL.pad_id, SPECIAL.unk_id


@pytest.mark.parametrize("shape", [{}, {"num_layers": 3}, {"vector_into": "first_state"}, {"vector_dim": 0}, {"mix_dim": 64},
                                   {"mix_dim": 64, "vector_dim": 0}])
@pytest.mark.parametrize("config", [SamplingConfig(max_len=20), SamplingConfig(temperature=0, max_len=20),
                                    SamplingConfig(temperature=0.7, top_p=0.9, top_k=50, max_len=20)])
@pytest.mark.parametrize("prefix", [[], [5, 7]])
def test_the_fast_sampler_equals_the_plain_one(shape: dict[str, Any], config: SamplingConfig, prefix: list[int],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = GRUDecoder(dataclasses.replace(GRUConfig(300, 48, embed_dim=96, hidden_dim=128, vector_dropout=0.1,
                                                       min_strength=0.0),
                                             **shape)).eval()
    if config.temperature:
        decoder.output_bias.data[EOS] = 3.0  # so that sentences end at many lengths
    else:
        torch.nn.init.normal_(decoder.embedding.weight, std=0.5)
    vectors, uniforms = torch.randn(200, 48) if decoder.config.vector_dim else None, torch.rand(200, 20)
    monkeypatch.setattr(fast_gru, "PLACES", 64)
    others = [{"guidance": 1.5}, {"strength": 0.5}] if decoder.config.vector_dim else []
    for changed in (config, *(dataclasses.replace(config, **other) for other in others)):
        plain = sampling.sample(decoder, vectors, uniforms, changed, prefix)
        fast = FastGRU(decoder).sample(vectors, uniforms, changed, prefix)
        # They round differently. So a uniform number that is at the boundary of two tokens can choose either of them.
        different = sum(own != other for own, other in zip(fast, plain, strict=True))
        assert different <= (2 if config.temperature else 0)
        assert not config.temperature or len({len(sentence) for sentence in plain}) > 3


def test_a_gru_decoder_is_sampled_by_the_fast_sampler() -> None:
    decoder = GRUDecoder(GRUConfig(12, 0, embed_dim=8, hidden_dim=8)).eval()
    assert isinstance(Sampler(decoder)._fast, FastGRU)


@pytest.mark.parametrize("config", [SamplingConfig(max_len=15), SamplingConfig(temperature=0, max_len=4),
                                    SamplingConfig(temperature=0.8, top_p=0.9, max_len=15, guidance=1.5)])
@pytest.mark.parametrize("prefix", [[], [5, 7]])
def test_those_that_wait_take_the_places_of_those_that_end(config: SamplingConfig, prefix: list[int],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(12, 3, embed_dim=8, hidden_dim=8, vector_dropout=0.1)).eval()
    vectors, uniforms = 3 * torch.randn(100, 3), torch.rand(100, 15)
    alone = [FastGRU(decoder).sample(vectors[row:row + 1], uniforms[row:row + 1], config, prefix)[0] for row in range(100)]
    assert FastGRU(decoder).sample(vectors, uniforms, config, prefix) == alone
    standing: list[int] = []
    advance = fast_gru.FastReader._advance

    def noting(reader: fast_gru.FastReader, tokens: torch.Tensor) -> torch.Tensor:
        standing.append(len(tokens))
        return advance(reader, tokens)

    monkeypatch.setattr(fast_gru.FastReader, "_advance", noting)
    monkeypatch.setattr(fast_gru, "PLACES", 32)
    assert FastGRU(decoder).sample(vectors, uniforms, config, prefix) == alone
    after_the_prefix = standing[len(prefix):]
    assert max(after_the_prefix) == 32 and min(after_the_prefix) == fast_gru.LEAST_ROWS


@pytest.mark.parametrize("num", [1, 7])
def test_a_rows_logits_are_the_same_to_the_last_bit_in_any_company(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(300, 48, embed_dim=96, hidden_dim=128)).eval()
    vectors, uniforms = torch.randn(200, 48), torch.rand(200, 3)
    seen: list[torch.Tensor] = []

    def noting(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
        seen.append(logits[:num].clone())
        return weigh(logits, config)

    monkeypatch.setattr(sampling, "weigh", noting)
    for rows in (slice(num), slice(fast_gru.SLICE)):
        FastGRU(decoder).sample(vectors[rows], uniforms[rows], SamplingConfig(max_len=3))
    few, many = seen[:3], seen[3:]
    assert all(torch.equal(one, other) for one, other in zip(few, many, strict=True))


def test_so_are_those_of_a_row_that_begins_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(300, 48, embed_dim=96, hidden_dim=128)).eval()
    vectors, uniforms = torch.randn(fast_gru.SLICE + 1, 48), torch.rand(fast_gru.SLICE + 1, 1)
    seen: list[torch.Tensor] = []

    def noting(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
        seen.append(logits[0].clone())
        return weigh(logits, config)

    monkeypatch.setattr(sampling, "weigh", noting)
    FastGRU(decoder).sample(vectors, uniforms, SamplingConfig(max_len=1))
    FastGRU(decoder).sample(vectors[fast_gru.SLICE:], uniforms[fast_gru.SLICE:], SamplingConfig(max_len=1))
    _, of_the_second, alone = seen
    assert torch.equal(of_the_second, alone)


@pytest.mark.parametrize("vector_dim, num_layers, config", [
    (0, 1, SamplingConfig(max_len=7)), (48, 1, SamplingConfig(max_len=7)), (48, 3, SamplingConfig(max_len=7)),
    (48, 1, SamplingConfig(temperature=0.5, max_len=7, guidance=1.5))])
def test_bfloat16_hardly_changes_what_tokens_are_drawn_from(vector_dim: int, num_layers: int, config: SamplingConfig,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(300, vector_dim, embed_dim=96, hidden_dim=128, num_layers=num_layers,
                                    vector_dropout=0.1)).eval()
    torch.nn.init.normal_(decoder.output_bias, mean=-8.0)
    vectors = torch.randn(64, vector_dim) if vector_dim else None
    # A beginning, so that both read the same tokens; one step after it.
    begun = [5, 7, 9, 11, 13, 15]
    seen: list[torch.Tensor] = []

    def noting(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
        seen.append(logits[:, :300].log_softmax(dim=1).double())
        return weigh(logits, config)

    monkeypatch.setattr(sampling, "weigh", noting)
    for bfloat16 in (False, True):
        FastGRU(decoder, bfloat16).sample(vectors, torch.rand(64, 7), config, begun)
    exact, coarse = (logits[:, [EOS, *range(4, 300)]] for logits in seen)
    assert not torch.equal(exact, coarse)
    assert float((exact.exp() * (exact - coarse)).sum(dim=1).mean()) < 3e-4, "nats: the divergence between the two"
    assert bool(seen[1][:, [UNK, BOS, PAD]].isneginf().all())


def test_in_bfloat16_no_token_is_favoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounding does to a token's logit differs from sentence to sentence, and is nothing on average."""
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(300, 48, embed_dim=96, hidden_dim=128)).eval()
    torch.nn.init.normal_(decoder.output_bias, mean=-8.0)
    torch.nn.init.normal_(decoder.readout.weight, std=0.3)
    vectors, seen = torch.randn(2048, 48), list[torch.Tensor]()

    def noting(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
        seen.append(logits[:, PAD + 1:300].clone())
        return weigh(logits, config)

    monkeypatch.setattr(sampling, "weigh", noting)
    for bfloat16 in (False, True):
        FastGRU(decoder, bfloat16).sample(vectors, torch.rand(2048, 1), SamplingConfig(max_len=1))
    exact, coarse = torch.cat(seen).chunk(2)
    error = coarse - exact
    assert float(error.square().mean().sqrt()) > 0.01, "nothing was rounded: the test shows nothing"
    assert float(error.mean(dim=0).square().mean().sqrt()) < 0.004


def test_in_bfloat16_a_beginning_that_was_drawn_changes_nothing() -> None:
    torch.manual_seed(0)
    fast = FastGRU(GRUDecoder(GRUConfig(12, 3, embed_dim=8, hidden_dim=8)).eval(), bfloat16=True)
    vectors, uniforms = torch.randn(6, 3), torch.rand(6, 9)
    for row, sentence in enumerate(fast.sample(vectors, uniforms, SamplingConfig(max_len=9))):
        for cut in range(min(len(sentence), 8) + 1):
            again = fast.sample(vectors[row:row + 1], uniforms[row:row + 1], SamplingConfig(max_len=9), sentence[:cut])
            assert again == [sentence]
