from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlines.corpus.batching import BatchOrder, collate, permutation
from outlines.corpus.tokenizer import SPECIAL

BOS, EOS, PAD = SPECIAL.bos_id, SPECIAL.eos_id, SPECIAL.pad_id


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers())
def test_a_permutation_has_every_row_once(num_rows: int, seed: int) -> None:
    whole = permutation(num_rows, seed)
    assert whole.dtype == np.int32 and sorted(whole) == list(range(num_rows))
    assert (permutation(num_rows, seed) == whole).all()


def test_a_permutation_is_uniform() -> None:
    counts = np.zeros((10, 10))
    for key in range(4000):
        counts[np.arange(10), permutation(10, key)] += 1
    # Each count is binomial: mean 400, standard deviation 19. Their chi-squared has 81 degrees: 81 +- 13.
    assert abs(counts - 400).max() < 5 * 19
    assert ((counts - 400) ** 2 / 400).sum() < 81 + 5 * 13


def test_a_permutation_has_no_order_left() -> None:
    image = permutation(100_000, 0, 0)
    ranks = np.corrcoef(image[:-1], image[1:])[0, 1], np.corrcoef(np.arange(100_000), image)[0, 1]
    assert max(map(abs, ranks)) < 5 / 100_000 ** 0.5


def test_permutation_known_answer() -> None:
    # A change of this order would make every earlier run irreproducible.
    assert permutation(8, 0, 0).tolist() == [7, 4, 6, 3, 0, 1, 5, 2]


LENGTHS = np.random.default_rng(0).integers(1, 60, size=1003)


@pytest.mark.parametrize("lengths", [LENGTHS, None], ids=["by length", "uniform"])
def test_every_epoch_covers_every_row_once(lengths: np.ndarray | None) -> None:
    order = BatchOrder(1003, 16, seed=5, lengths=lengths, pool_batches=8)
    assert order.batches_per_epoch == 63
    epochs = []
    for epoch in range(3):
        batches = [order.batch(epoch * 63 + index) for index in range(63)]
        assert {len(batch) for batch in batches} == {15, 16}
        epochs.append(np.concatenate(batches))
        assert sorted(epochs[-1]) == list(range(1003))
    assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()


@pytest.mark.parametrize("lengths", [LENGTHS, None], ids=["by length", "uniform"])
def test_a_batch_depends_on_seed_and_step_and_not_on_history(lengths: np.ndarray | None) -> None:
    order = BatchOrder(1003, 16, seed=5, lengths=lengths, pool_batches=8)
    in_order = [order.batch(step) for step in range(130)]
    in_order[3][:] = -1  # changing a batch must not change later ones
    in_order[3] = order.batch(3)
    for step in (129, 0, 64, 3, 62, 63):
        fresh = BatchOrder(1003, 16, seed=5, lengths=lengths, pool_batches=8).batch(step)
        assert (fresh == in_order[step]).all() and (fresh == order.batch(step)).all()
    other = BatchOrder(1003, 16, seed=6, lengths=lengths, pool_batches=8)
    assert any(len(other.batch(step)) != len(in_order[step]) or (other.batch(step) != in_order[step]).any()
               for step in range(3))


def test_lengths_within_a_batch_are_close_and_batches_are_shuffled() -> None:
    lengths = np.random.default_rng(1).permutation(np.arange(6400))
    order = BatchOrder(6400, 10, seed=0, lengths=lengths, pool_batches=64)
    uniform = BatchOrder(6400, 10, seed=0, pool_batches=64)
    # A pool is 640 of 6,400 distinct lengths: ten neighbours span 90 on average, ten random rows 5,236.
    spans = [np.ptp(lengths[order.batch(step)]) for step in range(640)]
    assert 60 < np.mean(spans) < 120
    assert np.mean([np.ptp(lengths[uniform.batch(step)]) for step in range(640)]) > 4500
    # Batches sorted by length would be a curriculum, so means must rise about as often as they fall.
    means = [lengths[order.batch(step)].mean() for step in range(64)]
    assert 20 <= sum(first < second for first, second in pairwise(means)) <= 43


def test_fewer_rows_than_a_batch() -> None:
    order = BatchOrder(3, 8, seed=0, lengths=np.array([4, 2, 9]))
    assert order.batches_per_epoch == 1
    assert order.batch(0).tolist() == order.batch(7).tolist() == [1, 0, 2]  # sorted by length
    assert BatchOrder(1, 8, seed=0).batch(100).tolist() == [0]


def test_collate_by_hand() -> None:
    batch = collate([np.array(row, dtype=np.uint16) for row in ([7, 8, 9], [5], [])], SPECIAL)
    assert batch.inputs.tolist() == [[BOS, 7, 8, 9], [BOS, 5, PAD, PAD], [BOS, PAD, PAD, PAD]]
    assert batch.targets.tolist() == [[7, 8, 9, EOS], [5, EOS, PAD, PAD], [EOS, PAD, PAD, PAD]]
    assert batch.mask.tolist() == [[True] * 4, [True, True, False, False], [True, False, False, False]]
    assert batch.lengths.tolist() == [4, 2, 1]
    assert batch.inputs.dtype == batch.targets.dtype == batch.lengths.dtype == torch.int64
    assert batch.mask.dtype == torch.bool
    assert (batch.to("cpu").targets == batch.targets).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(4, 1000), max_size=12), min_size=1, max_size=6))
def test_collate_keeps_every_token(rows: list[list[int]]) -> None:
    batch = collate([np.array(row, dtype=np.int32) for row in rows], SPECIAL)
    assert (batch.mask.sum(1) == batch.lengths).all()
    for row, inputs, targets, mask in zip(rows, batch.inputs, batch.targets, batch.mask, strict=True):
        assert inputs[mask].tolist() == [BOS, *row]
        assert targets[mask].tolist() == [*row, EOS]
        assert (inputs[~mask] == PAD).all() and (targets[~mask] == PAD).all()
    assert batch.inputs.shape[1] == 1 + max(map(len, rows))
