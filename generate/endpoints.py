"""The JSON interface: from a request's checked fields to the data of its answer.

    GET  /about        what the run can do
    POST /sample       {"num", "seed", "temperature", "top_k", "top_p", "source", "noise_scale", "guidance", "prefix"}
                       → {"sentences": [{"text", "nll", "critic_score" if the run has a critic}]}
    POST /reconstruct  {"sentences"} → {"sentences": [{"text", "rebuilt", "bleu", "nll", "num_targets"}]}
    POST /interpolate  {"a", "b", "walk", "num"}
                       → {"ended", "points": [{"step", "text", "nll_start": [one per step], "nll_end": [one per step]}]}
    POST /nearest      {"sentence", "num"} → {"neighbours": [{"row", "cosine", "text"}]}
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from generate.options import BY_NAME
from outlines.decoding.sample import SamplingConfig
from outlines.errors import OutlinesError
from outlines.inference.pipeline import Pipeline

MAX_SENTENCES = int(BY_NAME["num"].max_served)
MAX_CHARACTERS = 1000
MAX_ROWS = 512
"""Sentences decoded in one batch; bounds the memory."""
ANSWER_SEC = 30
"""Longest wait of a request until its work begins."""
GATHER_SEC = 0.01
"""How long a request waits for others to share its batch."""


class Busy(Exception):
    """Too many requests, or too long a wait."""


@contextlib.contextmanager
def turn(lock: Any, wait_sec: float) -> Iterator[None]:
    """Hold a lock or a place of a semaphore; raises Busy if it is not free within `wait_sec`."""
    if not lock.acquire(timeout=wait_sec):
        raise Busy("The server is busy. Try again in a moment.")
    try:
        yield
    finally:
        lock.release()


@dataclass(eq=False)
class Job:
    """Rows to decode: vectors [B, D] or None, uniforms [B, max_len]. ids: the result, empty until then."""

    vectors: Tensor | None
    uniforms: Tensor
    kind: tuple[SamplingConfig, tuple[int, ...]]
    """only jobs with the same sampling configuration and prefix can share a batch"""
    ids: list[list[int]] = field(default_factory=list)


class Batcher:
    """Decodes for many threads: the first thread whose turn it is decodes the jobs of the others too.

    A sentence depends only on its own row, so batching does not change it.
    """

    def __init__(self, decode: Callable[[Tensor | None, Tensor, SamplingConfig, Sequence[int]], list[list[int]]]):
        self.decode_batch = decode
        self.batch_sizes: deque[int] = deque(maxlen=1000)
        self._waiting: dict[Job, None] = {}
        self._turn = threading.Lock()

    def decode(self, job: Job) -> list[list[int]]:
        """Return the token ids of each row; may be called from any thread. Raises Busy after ANSWER_SEC."""
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


class Fields:
    """The fields of a request, each checked as it is read; raises OutlinesError."""

    def __init__(self, data: Any):
        if not isinstance(data, dict):
            raise OutlinesError("The request must be a JSON object.")
        self._data = dict(data)

    def number(self, name: str) -> Any:
        """A number within the bounds of the option `name`, or the option's default."""
        option, key = BY_NAME[name].served(), name.partition("/")[0]
        value = self._data.pop(key, option.default)
        if not option.is_valid(value):
            raise OutlinesError(f"{key} must be {option.bounds()}.")
        return option.type(value)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._data.pop(name, default)
        if not isinstance(value, str) or len(value) > MAX_CHARACTERS:
            raise OutlinesError(f"{name} must be a text of at most {MAX_CHARACTERS} characters.")
        if any("\ud800" <= character <= "\udfff" for character in value):  # valid in JSON, not in UTF-8
            raise OutlinesError(f"{name} contains a lone surrogate. Send complete characters.")
        return value

    def texts(self, name: str) -> list[str]:
        values = self._data.pop(name, None)
        if not isinstance(values, list) or not 0 < len(values) <= MAX_SENTENCES:
            raise OutlinesError(f"{name} must be a list of 1 to {MAX_SENTENCES} texts.")
        return [Fields({name: value}).text(name) for value in values]

    def end(self) -> None:
        """Refuse fields that were not read."""
        if self._data:
            raise OutlinesError(f"Unknown field {next(iter(self._data))!r}.")


class Endpoints:
    """What each path does: fields in, JSON data out."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline
        self.batcher = Batcher(pipeline.sampler)
        # Work that cannot be batched runs one request at a time, so that it does not use every core.
        self._turn = threading.Lock()

    def about(self) -> dict[str, Any]:
        pipeline, model = self.pipeline, self.pipeline.model
        return {"run": pipeline.run.name, "family": model.family, "sources": list(model.sources),
                "walks": list(pipeline.walks), "neighbours": model.frozen_encoder() is not None,
                "noise": model.decoder.config.vector_dim > 0, "guided": model.decoder.config.vector_dropout > 0,
                "max_sentences": MAX_SENTENCES}

    def sample(self, fields: Fields) -> dict[str, Any]:
        num, seed = fields.number("num"), fields.number("seed")
        config = SamplingConfig(**{name: fields.number(name) for name in
                                   ("temperature", "top_k", "top_p", "noise_scale", "guidance")})
        source, prefix = fields.text("source", ""), fields.text("prefix", "")
        fields.end()
        draw, tokens = self.pipeline.source(source or None, config), self.pipeline.prefix_tokens(prefix)
        vectors, uniforms = self.pipeline.model.draw_rows(draw, 0, num, seed, config.max_len)
        ids = self.batcher.decode(Job(vectors, uniforms, (config, tuple(tokens))))
        return {"sentences": [{name: value for name, value in sentence._asdict().items() if value is not None}
                              for sentence in self.pipeline.written(ids, vectors, scored=True)]}

    def reconstruct(self, fields: Fields) -> dict[str, Any]:
        sentences = fields.texts("sentences")
        fields.end()
        with turn(self._turn, ANSWER_SEC):
            return {"sentences": [done._asdict() for done in self.pipeline.reconstruct(sentences)]}

    def interpolate(self, fields: Fields) -> dict[str, Any]:
        a, b, walk = fields.text("a"), fields.text("b"), fields.text("walk", "spherical")
        num = fields.number("num/walk")
        fields.end()
        with turn(self._turn, ANSWER_SEC):
            made = self.pipeline.interpolate(a, b, walk, num)
        return {"ended": made.ended, "points": [point._asdict() for point in made.points]}

    def nearest(self, fields: Fields) -> dict[str, Any]:
        sentence, num = fields.text("sentence"), fields.number("num/nearest")
        fields.end()
        with turn(self._turn, ANSWER_SEC):
            return {"neighbours": [near._asdict() for near in self.pipeline.nearest([sentence], num)[0]]}
