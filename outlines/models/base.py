"""What every family is to those who sample from it: a decoder, and a source of vectors for it."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from outlines.decoding.sample import SamplingConfig
from outlines.decoding.sampler import Sampler
from outlines.decoding.scoring import nll_of_rows
from outlines.errors import OutlinesError
from outlines.metrics.collapse import Steps
from outlines.networks.decoder import Decoder

Item = TypeVar("Item")
Result = TypeVar("Result")
BLOCK = 256
"""Sentences whose noise is drawn together: sentence i depends on (seed, i) alone, however many are asked for."""
BATCH, GPU_BATCH = 4096, 65_536
"""Sentences that one call decodes: enough that the longest ones, which end alone, cost little; a GPU's steps cost little
more for many."""

Draw = Callable[[int, torch.Generator], Tensor | None]
"""(num, rng) → `num` vectors for the decoder, or None for a decoder that takes none."""


class CannotReject(OutlinesError):
    """The model has no critic, or one that says nothing."""


class TextModel(nn.Module, ABC):
    """A trained generator of text."""

    family: ClassVar[str]
    sources: ClassVar[tuple[str, ...]]
    """where vectors can come from: the family's own first, then its controls; none where it cannot invent"""
    latent_per_step: ClassVar[bool] = False
    """whether a vector is a latent for every step: it rebuilds its sentence, but has no meaning to move or to average"""
    has_critic: ClassVar[bool] = False
    decoder: Decoder

    def posterior(self, rows: Sequence[np.ndarray], outlines: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """The Gaussians that the decoder's vectors for given sentences are drawn from: mu and logvar, [N, D] each.

        logvar = log sigma² is None where the vector is mu itself; the whole is None where the decoder takes no vector.
        rows: token ids of each sentence. outlines: scaled, [N, D], where the family uses them, else None.
        """
        return None

    def posterior_steps(self, rows: Sequence[np.ndarray], rng: torch.Generator) -> Steps:
        """The posterior's latents of given sentences, one draw, from a family with a latent per step."""
        raise NotImplementedError(f"{self.family} has no latent per step")

    def nll_terms(self, rows: Sequence[np.ndarray], outlines: Tensor | None, num_draws: int,
                  rng: torch.Generator) -> dict[str, Tensor]:
        """What the family can say of how likely sentences are: named terms, nats per sentence, [N] each, on the CPU.

        nll: -log p(x); a family that cannot compute it has none. reconstruction_nll: -log p(x | vector), each sentence
        given its own vector, which knows the sentence: it can be compared with no nll. A VAE adds the terms of its bound.
        num_draws: draws of a latent, where there is one. rng: a CPU generator for them.
        """
        posterior = self.posterior(rows, outlines)
        nll, _ = nll_of_rows(self.decoder, rows, None if posterior is None else posterior[0])
        return {"nll" if posterior is None else "reconstruction_nll": torch.from_numpy(nll)}

    def frozen_encoder(self) -> dict[str, str] | None:
        """Name and fingerprint of the frozen encoder that its outlines come from; None for a family without outlines."""
        return None

    def to_encoder(self, vectors: Tensor) -> Tensor:
        """Vectors [..., D] in the units in which angles and sums of them mean something: an encoder's own."""
        return vectors

    def from_encoder(self, vectors: Tensor) -> Tensor:
        """The inverse of `to_encoder`, for vectors [..., D] near the encoder's own: brought to the norm that those have."""
        return vectors

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor | None:
        """`num` vectors for the decoder [num, D], drawn from `source` with a CPU generator; None if it takes none.

        noise_scale: factor on the normal noise (Brock, Donahue and Simonyan 2019 truncate it to the same end).
        """
        if noise_scale != 1:
            raise OutlinesError(f"noise-scale has no effect on a run of the family {self.family}: leave it out")
        return None

    def critic_scores(self, vectors: Tensor) -> Tensor | None:
        """A critic's scores [N] of vectors [N, D], higher where it takes them for real; None for a family without one.

        A score has no unit: it means something beside other scores of the same run alone.
        """
        return None

    def log_density_ratio(self, vectors: Tensor) -> Tensor:
        """An estimate of log p(vector) of real ones over that of the family's own source, nats, up to one constant [N].

        Raises CannotReject where there is none to be had.
        """
        raise CannotReject(f"a run of the family {self.family} has no critic: it cannot reject what it draws")

    @abstractmethod
    def shape(self) -> dict[str, Any]:
        """JSON data from which `from_shape` makes an untrained model of the same shape."""

    @classmethod
    @abstractmethod
    def from_shape(cls, shape: dict[str, Any]) -> "TextModel":
        """The inverse of `shape`."""

    def generate(self, num: int | None, seed: int, sampling: SamplingConfig, source: str | None = None,
                 batch_size: int | None = None, prefix: Sequence[int] = (),
                 workers: int = 1) -> Iterator[tuple[list[list[int]], Tensor | None]]:
        """Yield batches of new sentences (token ids) and the vectors they were decoded from, `num` in all.

        num: None goes on for ever. batch_size: None for what suits the device. prefix: tokens that every sentence begins
        with. workers: threads, each with a batch.
        """
        name = self.check_source(source)
        return self.decode_draws(lambda count, rng: self.vectors(count, rng, name, sampling.noise_scale), num, seed,
                                 sampling, batch_size, prefix, workers)

    def check_source(self, source: str | None) -> str:
        """The source itself, or the family's own for None; raises OutlinesError where the family has none of the name."""
        if not self.sources:
            raise OutlinesError(f"a run of the family {self.family} rebuilds sentences and has no source of new ones")
        name = source or self.sources[0]
        if name not in self.sources:
            raise OutlinesError(f"{self.family}: no source {name!r}: choose from {', '.join(self.sources)}")
        return name

    def decode_draws(self, draw: Draw, num: int | None, seed: int, sampling: SamplingConfig,
                     batch_size: int | None = None, prefix: Sequence[int] = (),
                     workers: int = 1, sampler: Sampler | None = None) -> Iterator[tuple[list[list[int]], Tensor | None]]:
        """As `generate`, with vectors that `draw` gives. sampler: the decoder's, if it exists already."""
        sampler = sampler or Sampler(self.decoder)

        def decoded(span: tuple[int, int]) -> tuple[list[list[int]], Tensor | None]:
            vectors, uniforms = self.draw_rows(draw, *span, seed, sampling.max_len)
            return sampler(vectors, uniforms, sampling, prefix), vectors

        suited = BATCH if next(self.parameters()).device.type == "cpu" else GPU_BATCH
        return in_order(decoded, spans(num, batch_size or suited), workers)

    def decode(self, vectors: Tensor, seed: int, sampling: SamplingConfig,
               sampler: Sampler | None = None) -> list[list[int]]:
        """Return a sentence (token ids) for each of the vectors [N, D]; sentence i depends on (seed, i) and its vector."""
        _, uniforms = self.draw_rows(lambda count, rng: None, 0, len(vectors), seed, sampling.max_len)
        return (sampler or Sampler(self.decoder))(vectors.to(uniforms.device), uniforms, sampling)

    @torch.no_grad()
    def draw_rows(self, draw: Draw, start: int, stop: int, seed: int, max_len: int) -> tuple[Tensor | None, Tensor]:
        """The vectors and the uniform numbers [stop - start, max_len] of sentences `start` to `stop`, by (seed, i) alone."""
        device = next(self.parameters()).device
        vectors, uniforms = [], []
        for block in range(start - start % BLOCK, stop, BLOCK):
            rng = torch.Generator().manual_seed(block_seed(seed, block))
            rows = slice(max(start - block, 0), stop - block)
            drawn = draw(BLOCK, rng)
            vectors += [] if drawn is None else [drawn[rows]]
            uniforms.append(torch.rand(BLOCK, max_len, generator=rng)[rows])
        return torch.cat(vectors) if vectors else None, torch.cat(uniforms).to(device)


def spans(num: int | None, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of batches of `size`; the first ones are smaller, for someone may wait for a first sentence."""
    start, length = 0, min(BLOCK, size)
    while num is None or start < num:
        stop = start + length if num is None else min(start + length, num)
        yield start, stop
        start, length = stop, min(4 * length, size)


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map`, by so many threads; a batch at most is made ahead for each."""
    if workers == 1:
        yield from map(function, items)
        return
    pool, pending = ThreadPoolExecutor(workers), deque[Future[Result]]()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def block_seed(seed: int, start: int) -> int:
    """One 63-bit seed for each (seed, block), far apart for near ones (the finaliser of splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + start * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1
