"""Decoding for many requests: requests that wait at the same time share a batch."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig
from outlines.errors import OutlinesError

MAX_ROWS = 512  # Waiting requests join a batch up to this number of sentences; a larger request is a batch of its own
ANSWER_SEC = 30  # Longest wait of a request until its work begins
GATHER_SEC = 0.01  # How long a request waits for other requests, to share a batch with them


class Busy(OutlinesError):
    """The server is overloaded."""


@contextlib.contextmanager
def turn(lock: Any, wait_sec: float) -> Iterator[None]:
    """Acquire a lock or a semaphore for the block. Raises Busy if this takes longer than `wait_sec` seconds."""
    if not lock.acquire(timeout=wait_sec):
        raise Busy("The server is busy. Try again in a moment.")
    try:
        yield
    finally:
        lock.release()


@dataclass(eq=False)
class Job:
    """Rows to decode: vectors [B, D] or None, and uniforms [B, max_len]. ids: the result, the token ids of each row.

    Jobs with the same `kind` (sampling settings and prefix) can share a batch.
    """

    vectors: Tensor | None
    uniforms: Tensor
    kind: tuple[SamplingConfig, str]
    ids: list[list[int]] = field(default_factory=list)


class Batcher:
    """Decodes jobs of many threads. One thread at a time decodes its own job together with waiting jobs of other threads."""

    def __init__(self, decode: Callable[[Tensor | None, Tensor, SamplingConfig, str], list[list[int]]]):
        self.decode_batch = decode
        self.batch_sizes: deque[int] = deque(maxlen=1000)
        self._waiting: dict[Job, None] = {}
        self._turn = threading.Lock()

    def decode(self, job: Job) -> list[list[int]]:
        """Return the token ids of each row of the job. Thread-safe. Raises Busy if decoding does not begin in ANSWER_SEC."""
        ready = time.monotonic() + GATHER_SEC
        self._waiting[job] = None
        try:
            with turn(self._turn, ANSWER_SEC):
                if not job.ids:
                    time.sleep(max(0.0, ready - time.monotonic()))
                    self._decode_with_others(job)
        finally:
            self._waiting.pop(job, None)
        return job.ids

    def _decode_with_others(self, job: Job) -> None:
        batch, num = [job], len(job.uniforms)
        for other in list(self._waiting):
            if other is not job and not other.ids and other.kind == job.kind and num + len(other.uniforms) <= MAX_ROWS:
                batch.append(other)
                num += len(other.uniforms)
        self.batch_sizes.append(len(batch))
        vectors = None if job.vectors is None else torch.cat([each.vectors for each in batch if each.vectors is not None])
        ids = iter(self.decode_batch(vectors, torch.cat([each.uniforms for each in batch]), *job.kind))
        for each in batch:
            each.ids = list(islice(ids, len(each.uniforms)))
