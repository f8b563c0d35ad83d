"""The n-gram evaluator: by hand, against the formula written out with dictionaries, and as a distribution."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlines.corpus.tokenizer import SPECIAL
from outlines.metrics.ngram import NgramModel, discounts

BOS, EOS, PAD, UNK = SPECIAL.bos_id, SPECIAL.eos_id, SPECIAL.pad_id, SPECIAL.unk_id

A, B, C, D = 4, 5, 6, 7
V = 9  # A to 8 are pieces; with EOS, 6 tokens can come next

# Few distinct tokens, so that long grams repeat; the empty sentence and one-sentence corpora are among them.
ROWS = st.lists(st.lists(st.integers(A, V - 1), max_size=7), min_size=1, max_size=8)


def random_rows(seed: int, number: int, vocab_size: int = 30) -> list[np.ndarray]:
    """Sentences of a random first-order Markov chain: some grams are frequent, most are rare."""
    rng = np.random.default_rng(seed)
    next_tokens = np.random.default_rng(0).integers(A, vocab_size, size=(vocab_size, 8))
    rows = []
    for _ in range(number):
        row = [BOS]
        for _ in range(rng.integers(0, 12)):
            row.append(int(next_tokens[row[-1], min(7, rng.geometric(0.4) - 1)]))
        rows.append(np.array(row[1:], dtype=np.uint16))
    return rows


class SlowModel:
    """The same model from the formulas, one gram at a time, nothing shared with the fast one."""

    def __init__(self, rows, vocab_size, order):
        self.vocab_size, self.order = vocab_size, order
        occurrences, preceding = Counter(), defaultdict(set)
        for row in rows:
            sentence = (BOS, *(int(token) for token in row), EOS)
            for end in range(2, len(sentence) + 1):
                for n in range(1, min(order, end) + 1):
                    gram = sentence[end - n:end]
                    occurrences[gram] += 1
                    if n < end:
                        preceding[gram].add(sentence[end - n - 1])
        self.counts = {gram: count if len(gram) == order or gram[0] == BOS else len(preceding[gram])
                       for gram, count in occurrences.items()}
        self.discounts = {n: self.discounts_of(n) for n in range(1, order + 1)}
        self.following = defaultdict(list)
        for gram in self.counts:
            self.following[gram[:-1]].append(gram)

    def discounts_of(self, n):
        n1, n2, n3, n4 = (sum(count == wanted for gram, count in self.counts.items() if len(gram) == n)
                          for wanted in (1, 2, 3, 4))
        if 0 in (n1, n2, n3, n4):
            return 0.5, 1, 1.5
        y = n1 / (n1 + 2 * n2)
        three = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return three if all(value > 0 for value in three) else (0.5, 1, 1.5)

    def discount(self, gram):
        return self.discounts[len(gram)][min(self.counts[gram], 3) - 1]

    def probability(self, token, context):
        context = context[max(0, len(context) - (self.order - 1)):]
        shorter = self.probability(token, context[1:]) if context else 1 / (self.vocab_size - 3)
        grams = self.following[context]
        if not grams:
            return shorter
        gram = (*context, token)
        kept = self.counts[gram] - self.discount(gram) if gram in self.counts else 0
        return (kept + sum(map(self.discount, grams)) * shorter) / sum(self.counts[gram] for gram in grams)

    def nll(self, row):
        sentence = (BOS, *(int(token) for token in row), EOS)
        return -sum(math.log(self.probability(sentence[end], sentence[:end])) for end in range(1, len(sentence)))


def next_probabilities(model, prefix):
    """Return p(next token | bos and `prefix`): [V], 0 for unk, bos and pad."""
    continued = np.array([[BOS, *prefix, token] for token in range(model.vocab_size)], dtype=np.int64)
    probabilities = model._probabilities(continued.ravel()).reshape(continued.shape)[:, -1]
    probabilities[[UNK, BOS, PAD]] = 0
    return probabilities


def test_bigrams_by_hand():
    model = NgramModel([[A, B], [A]], vocab_size=6, order=2)  # A, B and EOS can come next
    # Distinct tokens before A: BOS; before B: A; before EOS: A and B. Of 1, 1, 2, none is 3: the fallback
    # subtracts 0.5, 0.5 and 1, in all 2 of 4, and distributes it evenly.
    p_a = p_b = (1 - 0.5) / 4 + 2 / 4 / 3
    p_eos = (2 - 1) / 4 + 2 / 4 / 3
    # BOS A occurs twice, A B, A EOS and B EOS once: the fallback again.
    assert next_probabilities(model, [])[A] == pytest.approx((2 - 1) / 2 + 1 / 2 * p_a)
    assert next_probabilities(model, [])[B] == pytest.approx(1 / 2 * p_b)
    assert next_probabilities(model, [A])[B] == pytest.approx((1 - 0.5) / 2 + (0.5 + 0.5) / 2 * p_b)
    assert next_probabilities(model, [B])[EOS] == pytest.approx((1 - 0.5) / 1 + 0.5 / 1 * p_eos)
    nll, num_targets = model.nll_of_rows([[A], []])
    first = (2 - 1) / 2 + 1 / 2 * p_a
    then_eos = (1 - 0.5) / 2 + (0.5 + 0.5) / 2 * p_eos
    assert nll == pytest.approx([-math.log(first * then_eos), -math.log(1 / 2 * p_eos)])
    assert num_targets.tolist() == [2, 1]


def test_grams_after_the_sentence_start_keep_their_occurrences_at_every_order():
    # Nothing precedes BOS A, and yet, in a model of trigrams, it counts 3, not 0; BOS B counts 1. A B is a
    # trigram's end once (after BOS), whatever its 3 occurrences. Fallback: 1.5 from the 3, 0.5 from each 1.
    model = NgramModel([[A, B], [A, B], [A, B], [B]], vocab_size=6, order=3)
    # Before A: BOS; before B: BOS, A; before EOS: B. Counts 1, 2, 1 of 4; subtracted 0.5 + 1 + 0.5.
    p_a, p_b = (1 - 0.5) / 4 + 2 / 4 / 3, (2 - 1) / 4 + 2 / 4 / 3
    assert next_probabilities(model, [])[A] == pytest.approx((3 - 1.5) / 4 + (1.5 + 0.5) / 4 * p_a)
    # After BOS A, always B, 3 times; below it A B, 1 of 1.
    p_b_after_a = (1 - 0.5) / 1 + 0.5 / 1 * p_b
    assert next_probabilities(model, [A])[B] == pytest.approx((3 - 1.5) / 3 + 1.5 / 3 * p_b_after_a)


def test_discounts_by_hand_order_one():
    # Counts: EOS 1, A 1, B 1, C 2, D 3, 8 4. n = 3, 1, 1, 1; Y = 3 / 5; D = 1 - 2Y/3, 2 - 3Y, 3 - 4Y.
    model = NgramModel([[A, B, C, C, D, D, D, 8, 8, 8, 8]], vocab_size=10, order=1)
    base = (3 * 0.6 + 0.2 + 0.6 + 0.6) / 12 / 7
    expected = {EOS: 0.4 / 12, A: 0.4 / 12, C: 1.8 / 12, D: 2.4 / 12, 8: 3.4 / 12, 9: 0}
    for context in ([], [A], [9, 9]):
        probabilities = next_probabilities(model, context)
        assert {token: probabilities[token] - base for token in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("counts", "expected"), [
    ([1, 1, 1, 2, 3, 4], (0.6, 0.2, 0.6)),
    ([0, 1, 1, 1, 2, 3, 4, 9], (0.6, 0.2, 0.6)),  # neither 0 nor more than 4 has a say
    ([2, 3, 4], (0.5, 1, 1.5)), ([1, 3, 4], (0.5, 1, 1.5)), ([1, 2, 4], (0.5, 1, 1.5)), ([1, 2, 3], (0.5, 1, 1.5)),
    ([1, 1, 1, 2, 3, 3, 4], (0.5, 1, 1.5)),  # 2 - 3 * 0.6 * 2 < 0
    ([], (0.5, 1, 1.5))])
def test_discounts_and_where_they_fall_back(counts, expected):
    assert discounts(np.array(counts)).tolist() == pytest.approx([0, *expected])


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_equals_the_formula_written_with_dictionaries(order):
    training, others = random_rows(1, 300), random_rows(2, 60)
    others += [np.arange(A, 30), np.array([], dtype=np.int64), *training[:20]]
    model, slow = NgramModel(training, 30, order), SlowModel(training, 30, order)
    if order > 1:  # the formula itself is tested, not only its fallback
        assert slow.discounts[order] != (0.5, 1, 1.5)
    nll, num_targets = model.nll_of_rows(others)
    np.testing.assert_allclose(nll, [slow.nll(row) for row in others], rtol=1e-10, atol=0)
    assert num_targets.tolist() == [len(row) + 1 for row in others]


@settings(max_examples=60, deadline=None)
@given(training=ROWS, others=ROWS, order=st.integers(1, 5))
def test_tiny_corpora_equal_the_formula_too(training, others, order):
    slow = SlowModel(training, V, order)
    nll, _ = NgramModel(training, V, order).nll_of_rows(others)
    np.testing.assert_allclose(nll, [slow.nll(row) for row in others], rtol=1e-10, atol=0)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("training", [random_rows(3, 200), [[]], [[A]], [[A] * 20] * 9], ids=len)
def test_probabilities_sum_to_one_in_contexts_seen_and_unseen(training, order):
    model = NgramModel(training, 40, order)  # 30 to 39 never occur
    contexts = [[], [A], [39], [A, 39, A], [39, A], [A, A, A, A, A], *random_rows(3, 10), *random_rows(4, 10)]
    for context in contexts:
        probabilities = next_probabilities(model, context)
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)
        assert (probabilities[[UNK, BOS, PAD]] == 0).all()
        assert (np.delete(probabilities, [UNK, BOS, PAD]) > 0).all()


def test_sees_order_minus_one_tokens_back_and_no_further():
    model = NgramModel(random_rows(5, 300), 40, order=3)
    row = max(random_rows(5, 300), key=len)
    for end in range(3, len(row)):
        two_back = next_probabilities(model, [9, *row[end - 2:end]])
        assert (next_probabilities(model, [8, 12, *row[end - 2:end]]) == two_back).all()
        assert not np.allclose(next_probabilities(model, [9, 39, row[end - 1]]), two_back)


def test_text_like_the_training_is_likelier_than_its_words_shuffled():
    model = NgramModel(random_rows(6, 2000), 30)
    held_out = random_rows(7, 200)
    rng = np.random.default_rng(8)
    nll, num_targets = model.nll_of_rows(held_out)
    shuffled, _ = model.nll_of_rows([rng.permutation(row) for row in held_out])
    assert nll.sum() / num_targets.sum() + 1 < shuffled.sum() / num_targets.sum()
    order_one = NgramModel(random_rows(6, 2000), 30, order=1)
    np.testing.assert_allclose(order_one.nll_of_rows(held_out)[0],
                               order_one.nll_of_rows([row[::-1] for row in held_out])[0])


def test_the_score_of_a_sentence_is_independent_of_the_other_sentences():
    training, others = random_rows(9, 300), random_rows(10, 50)
    model, again = NgramModel(training, 30), NgramModel(iter(training[::-1]), 30)
    nll, _ = model.nll_of_rows(others)
    assert (again.nll_of_rows(iter(others))[0] == nll).all()
    assert [model.nll_of_rows([row])[0][0] for row in others] == pytest.approx(nll.tolist(), rel=1e-12)
    nll, num_targets = model.nll_of_rows([])
    assert nll.shape == num_targets.shape == (0,)


def test_invalid_rows_are_errors():
    for stranger in (-1, UNK, BOS, EOS, PAD, V):
        with pytest.raises(ValueError, match="Only ids of pieces"):
            NgramModel([[A], [A, stranger]], V)
        with pytest.raises(ValueError, match="Only ids of pieces"):
            NgramModel([[A]], V).nll_of_rows([[stranger]])
