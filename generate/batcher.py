"""Decoding for many requests at once: requests that wait at the same time share a batch."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig

Decode = Callable[[Tensor | None, Tensor, SamplingConfig, Sequence[int]], list[list[int]]]

MAX_WAITING = 64
"""Requests that may wait or be processed; another one is refused."""
MAX_ROWS = 512
"""Sentences decoded in one batch; bounds the memory."""
ANSWER_SEC = 30
"""Longest wait for a result."""
GATHER_SEC = 0.01
"""How long the first request of a batch waits for others."""


class Busy(Exception):
    """Too many requests, or too long a wait."""


class Job(NamedTuple):
    """Rows to decode: vectors [B, D] or None, uniforms [B, max_len]. `result` receives the token ids."""

    vectors: Tensor | None
    uniforms: Tensor
    config: SamplingConfig
    prefix: tuple[int, ...]
    result: "Future[list[list[int]]]"


class Batcher:
    """One thread that decodes. Waiting jobs with the same sampling configuration and prefix share a batch.

    A sentence depends only on its own row, so batching does not change it.
    """

    def __init__(self, decode: Decode):
        self.decode_batch = decode
        self.batch_sizes: deque[int] = deque(maxlen=1000)
        self._jobs: queue.Queue[Job | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def decode(self, vectors: Tensor | None, uniforms: Tensor, config: SamplingConfig,
               prefix: Sequence[int]) -> list[list[int]]:
        """Return the token ids of each row; may be called from any thread. Raises Busy after ANSWER_SEC."""
        job = Job(vectors, uniforms, config, tuple(prefix), Future())
        until = time.monotonic() + ANSWER_SEC
        try:
            self._jobs.put(job, timeout=ANSWER_SEC)
            return job.result.result(timeout=max(0.0, until - time.monotonic()))
        except (queue.Full, TimeoutError) as error:
            job.result.cancel()
            raise Busy("The server is busy.") from error

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            time.sleep(GATHER_SEC)
            waiting = [job]
            while not self._jobs.empty():
                following = self._jobs.get()
                if following is None:
                    self._jobs.put(None)
                    break
                waiting.append(following)
            running = sorted((job for job in waiting if job.result.set_running_or_notify_cancel()), key=_kind)
            for _, alike in groupby(running, key=_kind):
                batch: list[Job] = []
                for job in alike:
                    if batch and sum(len(other.uniforms) for other in [*batch, job]) > MAX_ROWS:
                        self._decode(batch)
                        batch = []
                    batch.append(job)
                self._decode(batch)

    def _decode(self, jobs: list[Job]) -> None:
        first = jobs[0]
        self.batch_sizes.append(len(jobs))
        try:
            vectors = None if first.vectors is None else torch.cat([job.vectors for job in jobs if job.vectors is not None])
            uniforms = torch.cat([job.uniforms for job in jobs])
            ids = iter(self.decode_batch(vectors, uniforms, first.config, first.prefix))
            for job in jobs:
                job.result.set_result([next(ids) for _ in range(len(job.uniforms))])
        except Exception as error:  # the waiting threads must hear of any error
            for job in jobs:
                if not job.result.done():
                    job.result.set_exception(error)


def _kind(job: Job) -> str:
    return repr((job.config, job.prefix))
