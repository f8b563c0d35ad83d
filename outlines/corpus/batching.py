"""From token rows to batches. The order of rows is computed from (seed, epoch), so a checkpoint stores no loader state."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from outlines.corpus.tokenizer import SpecialIds


def permutation(num_rows: int, *key: int | str) -> np.ndarray:
    """Return a permutation of range(num_rows), int32 [num_rows]. It depends only on `num_rows` and `key`."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).permutation(np.arange(num_rows, dtype=np.int32))


class BatchOrder:
    """Chooses the rows of every batch. An epoch contains each row once. The sizes of batches differ by at most one row.

    With `lengths` (tokens per row), rows for `pool_batches` batches are sorted by length and then split into batches, so the
    rows of a batch have similar lengths and need little padding.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int, lengths: np.ndarray | None = None,
                 pool_batches: int = 64) -> None:
        self.num_rows, self.batches_per_epoch = num_rows, -(-num_rows // batch_size)
        self._seed, self._lengths, self._pool_batches = seed, lengths, pool_batches
        self._epoch_rows = lru_cache(1)(lambda epoch: permutation(num_rows, seed, epoch))
        self._pool = lru_cache(1)(self._sorted_pool)

    def batch(self, step: int) -> np.ndarray:
        """Return the row indices of the batch at `step`, int64 [B]. Steps are counted from 0 over all epochs."""
        epoch, index = divmod(step, self.batches_per_epoch)
        if self._lengths is None:
            return self._rows(epoch, index, index + 1)
        pool, place = divmod(index, self._pool_batches)
        return self._pool(epoch, pool)[place].copy()

    def _start(self, index: int) -> int:
        return index * self.num_rows // self.batches_per_epoch

    def _rows(self, epoch: int, first: int, end: int) -> np.ndarray:
        return self._epoch_rows(epoch)[self._start(first):self._start(end)].astype(np.int64)

    def _sorted_pool(self, epoch: int, pool: int) -> list[np.ndarray]:
        assert self._lengths is not None
        first = pool * self._pool_batches
        end = min(first + self._pool_batches, self.batches_per_epoch)
        rows = self._rows(epoch, first, end)
        rows = rows[np.argsort(self._lengths[rows], kind="stable")]
        batches = np.split(rows, [self._start(index) - self._start(first) for index in range(first + 1, end)])
        return [batches[place] for place in permutation(end - first, self._seed, epoch, f"pool {pool}")]


@dataclass(frozen=True)
class TokenBatch:
    """A padded batch for teacher forcing: `targets` are `inputs` shifted by one step."""

    inputs: Tensor  # int64 [B, T], bos and the tokens
    targets: Tensor  # int64 [B, T], the tokens and eos
    mask: Tensor  # bool [B, T], True at real targets
    lengths: Tensor  # int64 [B], number of real targets per row

    def to(self, device: torch.device | str) -> "TokenBatch":
        return TokenBatch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


def collate(rows: Sequence[np.ndarray], special: SpecialIds) -> TokenBatch:
    """Return a padded batch of rows (token ids, [length] each, without bos and eos). T: length of the longest row + 1."""
    lengths = torch.tensor([len(row) + 1 for row in rows])
    steps = int(lengths.max())
    tokens = np.full((len(rows), steps + 1), special.pad_id, dtype=np.int64)
    tokens[:, 0] = special.bos_id
    for padded, row in zip(tokens, rows, strict=True):
        padded[1:len(row) + 1] = row
    inputs = torch.from_numpy(tokens[:, :-1].copy())
    tokens[np.arange(len(rows)), lengths.numpy()] = special.eos_id
    mask = torch.arange(steps) < lengths[:, None]
    return TokenBatch(inputs, torch.from_numpy(tokens[:, 1:].copy()), mask, lengths)


def in_like_length(rows: Sequence[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Yield the indices of all rows in batches, int64 [B]. The rows of a batch have similar lengths."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(rows), batch_size):
        yield order[start:start + batch_size]
