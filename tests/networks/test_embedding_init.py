import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from outlines.corpus.tokenizer import SPECIAL
from outlines.networks.embedding_init import log_shares, start_words, word_vectors
from outlines.networks.gru import GRUConfig, GRUDecoder

BOS, EOS = SPECIAL.bos_id, SPECIAL.eos_id

VERBS, NOUNS, VOCAB_SIZE = [10, 11, 12], [20, 21, 22], 30


def sentences() -> list[np.ndarray]:
    return [np.array([5, noun, verb, 5, other]) for noun, verb, other in itertools.product(NOUNS, VERBS, NOUNS)]


def test_words_of_one_kind_have_like_vectors() -> None:
    vectors = functional.normalize(word_vectors(sentences(), VOCAB_SIZE, 8, 1, SPECIAL))
    alike = vectors @ vectors.T
    for kind, other in ((VERBS, NOUNS), (NOUNS, VERBS)):
        assert alike[kind][:, kind].min() > 0.99
        assert alike[kind][:, other].max() < 0.8


def test_the_vectors_keep_the_information_of_one_sentence() -> None:
    vectors = word_vectors([np.array([5, 6])], VOCAB_SIZE, 8, 1, SPECIAL)
    # Pairs: bos 5, 5 6, 6 eos one apart, bos 6, 5 eos two, bos eos three; each to either side, twelve in all. Each of the
    # four words has three, no two of them in one column, so all information is log(12 / 3) and M · Mᵀ is 3 log(4)² times
    # the identity. The vectors' Gram matrix is its root, to one scale: 4 words of 8 numbers with a mean square of 1 / 8.
    met = vectors.any(dim=1)
    assert met.nonzero()[:, 0].tolist() == [BOS, EOS, 5, 6]
    torch.testing.assert_close(vectors[met] @ vectors[met].T, torch.eye(4), atol=1e-4, rtol=0)


def test_shares_by_hand() -> None:
    shares = log_shares([np.array([5, 5, 6]), np.array([6])], 8, SPECIAL).exp()
    assert shares[5] == pytest.approx(2.5 / 10) and shares[EOS] == pytest.approx(2.5 / 10)
    assert shares[7] == pytest.approx(0.5 / 10) and float(shares.sum()) == pytest.approx(1)


def test_a_decoder_starts_there_and_keeps_what_no_count_speaks_of() -> None:
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(VOCAB_SIZE, 0, embed_dim=8, hidden_dim=8))
    before = decoder.embedding.weight.detach().clone()
    start_words(decoder, sentences(), seed=1)
    after = decoder.embedding.weight.detach()
    assert torch.equal(after[29], before[29]) and not torch.equal(after[10], before[10])
    assert float(after[[BOS, EOS, 5, *VERBS, *NOUNS]].square().mean()) == pytest.approx(1 / 8)
    assert math.isclose(float(decoder.output_bias.detach().exp().sum()), 1, abs_tol=1e-5)


def test_the_same_seed_gives_the_same_vectors() -> None:
    one, other, third = (word_vectors(sentences(), VOCAB_SIZE, 8, seed, SPECIAL) for seed in (1, 1, 2))
    assert torch.equal(one, other) and not torch.equal(one, third)
    state = torch.random.get_rng_state()
    word_vectors(sentences(), VOCAB_SIZE, 8, 1, SPECIAL)
    assert torch.equal(state, torch.random.get_rng_state())
