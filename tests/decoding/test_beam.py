import itertools
import math

import numpy as np
import pytest
import torch

from outlines.corpus.batching import TokenBatch, collate
from outlines.corpus.tokenizer import SPECIAL
from outlines.decoding.beam import beam_search
from outlines.decoding.decode import Sampler
from outlines.decoding.sample import SamplingConfig, sample
from outlines.networks.decoder import Decoder, DecoderConfig
from outlines.networks.gru import GRUConfig, GRUDecoder

BOS, EOS, PAD, UNK = SPECIAL.bos_id, SPECIAL.eos_id, SPECIAL.pad_id, SPECIAL.unk_id


def strong_minded(config: GRUConfig) -> GRUDecoder:
    """A decoder whose distributions are far from uniform, so that sentences end at different lengths."""
    decoder = GRUDecoder(config).eval()
    torch.nn.init.normal_(decoder.embedding.weight, std=3.0)
    return decoder


def all_sentences(vocab_size: int, max_len: int) -> list[list[int]]:
    """Every sentence of at most max_len speakable tokens."""
    speakable = [token for token in range(vocab_size) if token not in (UNK, BOS, EOS, PAD)]
    return [list(row) for length in range(max_len + 1) for row in itertools.product(speakable, repeat=length)]


def likeliest(decoder: GRUDecoder, vector: torch.Tensor | None, max_len: int, prefix: list[int]) -> list[int]:
    """The mode by exhaustive search, scored by teacher forcing over only the speakable tokens."""
    sentences = [row for row in all_sentences(decoder.config.vocab_size, max_len) if row[:len(prefix)] == prefix]
    batch = collate([np.array(row) for row in sentences], SPECIAL)
    with torch.no_grad():
        logits = decoder.logits(decoder.read(batch.inputs, None if vector is None else vector.expand(len(sentences), -1)))
    logits[:, :, [UNK, BOS, PAD]] = -torch.inf
    log_p = logits.log_softmax(dim=2).gather(2, batch.targets.masked_fill(~batch.mask, EOS)[:, :, None])[:, :, 0]
    return sentences[int((log_p * batch.mask).sum(dim=1).argmax())]


@pytest.mark.parametrize("prefix", [[], [5, 4]])
def test_a_wide_beam_finds_what_exhaustive_search_finds(prefix: list[int]) -> None:
    modes = []
    for seed in range(12):
        torch.manual_seed(seed)
        decoder = strong_minded(GRUConfig(8, 3, embed_dim=8, hidden_dim=8))
        vectors = 3 * torch.randn(3, 3)
        found = beam_search(decoder, vectors, 3, SamplingConfig(beam=4**4, max_len=4), prefix)
        assert found == [likeliest(decoder, vector, 4, prefix) for vector in vectors]
        modes += found
    assert len({len(sentence) for sentence in modes}) > 2, "the modes are all alike: the test shows little"


class Table(Decoder):
    """A language model that is a table: p(next | last token); eos is token 2, words are 4 and 5."""

    def __init__(self, rows: dict[int, dict[int, float]]):
        super().__init__(DecoderConfig(6, 0))
        self.table = torch.nn.Parameter(torch.full((6, 6), -torch.inf))
        for last, following in rows.items():
            for token, probability in following.items():
                self.table.data[last, token] = math.log(probability)

    def nll(self, tokens: TokenBatch, vector: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError

    def start(self, vector: torch.Tensor | None, num: int) -> "Table":
        return self

    def select(self, rows: torch.Tensor) -> "Table":
        return self

    def step(self, tokens: torch.Tensor, cache: object) -> torch.Tensor:
        return self.table[tokens]


def test_beam_search_by_hand() -> None:
    # Greedy decoding starts with 4 (0.6) and reaches at most 0.6 · 0.4 = 0.24. A start with 5 reaches 0.4 · 0.9 = 0.36.
    decoder = Table({BOS: {4: 0.6, 5: 0.4}, 4: {EOS: 0.4, 4: 0.3, 5: 0.3}, 5: {EOS: 0.9, 4: 0.1}}).eval()
    assert sample(decoder, None, torch.zeros(1, 8), SamplingConfig(temperature=0, max_len=8)) == [[4]]
    assert beam_search(decoder, None, 2, SamplingConfig(beam=1, max_len=8)) == [[4], [4]]
    assert beam_search(decoder, None, 2, SamplingConfig(beam=2, max_len=8)) == [[5], [5]]
    assert Sampler(decoder)(None, torch.zeros(2, 8), SamplingConfig(beam=2, max_len=8)) == [[5], [5]]


def test_a_beam_in_which_nothing_ends_gives_its_likeliest_prefix() -> None:
    decoder = Table({BOS: {4: 0.6, 5: 0.4}, 4: {4: 0.5, 5: 0.5}, 5: {5: 1.0}}).eval()
    assert beam_search(decoder, None, 1, SamplingConfig(beam=2, max_len=3)) == [[5, 5, 5]]


def test_rows_of_a_beam_search_do_not_touch_one_another() -> None:
    torch.manual_seed(1)
    decoder = strong_minded(GRUConfig(20, 3, embed_dim=8, hidden_dim=8, vector_dropout=0.1))
    vectors, config = 3 * torch.randn(9, 3), SamplingConfig(beam=3, max_len=10)
    together = beam_search(decoder, vectors, 9, config)
    assert together == [beam_search(decoder, vector[None], 1, config)[0] for vector in vectors]
    assert Sampler(decoder)(vectors, torch.zeros(9, 10), config) == together, "the fast layout"
    guided = SamplingConfig(beam=3, max_len=10, guidance=1.5)
    assert Sampler(decoder)(vectors, torch.zeros(9, 10), guided, [5]) == beam_search(decoder, vectors, 9, guided, [5])
    assert len({len(sentence) for sentence in together}) > 1
