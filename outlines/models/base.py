"""Base class of the models of all families: a decoder, and sources of vectors for the decoder."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from outlines.decoding.best_of import best_of
from outlines.decoding.decode import Sampler
from outlines.decoding.sample import SamplingConfig
from outlines.decoding.scoring import LatentDraw, bound_terms, nll_of_rows
from outlines.errors import OutlinesError
from outlines.networks.decoder import Decoder, DecoderConfig

Item = TypeVar("Item")
Result = TypeVar("Result")
Write = Callable[..., list[list[int]]]  # a function with the arguments of a `Sampler`'s call
Draw = Callable[[int, torch.Generator], Tensor | None]  # (num, rng) → vectors, or None for a decoder without a vector
BLOCK = 256  # number of sentences whose noise is sampled together, so that sentence i depends only on (seed, i)
BATCH, GPU_BATCH = 4096, 65_536  # sentences per call of the sampler; large, because only few are left at the last steps


class CannotReject(OutlinesError):
    """Rejection sampling is impossible: no critic, or the critic cannot distinguish real from generated vectors."""


class TextModel(nn.Module):
    """A model that writes sentences. Each family is a subclass."""

    family: ClassVar[str]
    sources: ClassVar[tuple[str, ...]]  # names: the family's own source of vectors, then baselines; () without sources
    latent_per_step: ClassVar[bool] = False  # a vector with a latent for each step cannot be interpolated or averaged
    has_critic = False
    decoder: Decoder

    def __init__(self, **arguments: Any):
        """arguments: the subclass's own arguments (JSON values or configs), which `shape` returns as JSON data."""
        super().__init__()
        self.arguments = arguments

    @property
    def strength(self) -> float:
        """The default strength for new sentences (see `SamplingConfig`)."""
        config = self.decoder.config
        return max(config.strength, config.min_strength) if config.vector_dim else 1.0

    def chosen(self, sampling: SamplingConfig) -> SamplingConfig:
        """Return `sampling`. A strength of None becomes the model's default strength for new sentences."""
        return sampling if sampling.strength is not None else dataclasses.replace(sampling, strength=self.strength)

    def posterior(self, rows: Sequence[np.ndarray], outlines: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """Return mu and logvar, [N, D] each, of the vectors of N sentences; None for a decoder without a vector.

        logvar is None if the vector is mu itself. rows: token ids. outlines: scaled, [N, D], if the family uses them.
        """
        return None

    def draws(self, rows: Sequence[np.ndarray], num_draws: int, rng: torch.Generator) -> Iterator[LatentDraw]:
        """Yield `num_draws` posterior samples of the sentences' latents; none for families without. rng: on the CPU."""
        return iter(())

    def nll_terms(self, rows: Sequence[np.ndarray], outlines: Tensor | None, num_draws: int,
                  rng: torch.Generator) -> dict[str, Tensor]:
        """Return named terms of the sentences' likelihoods, nats per sentence, [N] each, on the CPU.

        nll: -log p(x), or an upper bound; missing if unknown. reconstruction_nll: -log p(x | the sentence's own vector).
        Families with a latent add the terms of their bound, estimated from `num_draws` samples. rng: on the CPU.
        """
        if draws := [draw._replace(latent=None) for draw in self.draws(rows, num_draws, rng)]:
            return bound_terms(draws)
        posterior = self.posterior(rows, outlines)
        nll, _ = nll_of_rows(self.decoder, rows, None if posterior is None else posterior[0])
        return {"nll" if posterior is None else "reconstruction_nll": torch.from_numpy(nll)}

    def frozen_encoder(self) -> dict[str, str] | None:
        """Return name and fingerprint of the frozen encoder; None for families without a frozen encoder."""
        return None

    def to_encoder(self, vectors: Tensor) -> Tensor:
        """Return vectors [..., D] in the encoder's units, in which angles and sums are meaningful."""
        return vectors

    def from_encoder(self, vectors: Tensor) -> Tensor:
        """Return the inverse of `to_encoder` for vectors [N, D], after rescaling them to the norm of the encoder's."""
        return vectors

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor | None:
        """Return vectors [num, D] sampled from `source`; None for a decoder without a vector. rng: on the CPU."""
        if noise_scale != 1:
            raise OutlinesError(f"--noise-scale has no effect on {self.family!r} models. Remove it.")
        return None

    def critic_scores(self, vectors: Tensor) -> Tensor | None:
        """Return the critic's scores [N] of vectors [N, D]: higher means more real. None without a critic."""
        return None

    def log_density_ratio(self, vectors: Tensor) -> Tensor:
        """Return estimates [N] of log(real / generated density) in nats, up to a constant. Raises CannotReject."""
        raise CannotReject(f"This {self.family} model has no critic for rejection sampling. Remove the option.")

    def shape(self) -> dict[str, Any]:
        """Return JSON data from which `from_shape` builds an untrained model of the same shape."""
        return {name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
                for name, value in self.arguments.items()}

    @classmethod
    def from_shape(cls, shape: dict[str, Any]) -> Self:
        """Return an untrained model. shape: the result of the method `shape`."""
        kinds, arguments = get_type_hints(cls.__init__), dict(shape)
        for name, value in shape.items():
            if kinds[name] is DecoderConfig:
                arguments[name] = DecoderConfig.from_json(value)
            elif dataclasses.is_dataclass(kinds[name]):
                arguments[name] = kinds[name](**value)
        return cls(**arguments)

    def check_source(self, source: str | None) -> str:
        """Return `source`; for None, the family's own source. Raises OutlinesError if the family does not have it."""
        if not self.sources:
            raise OutlinesError(f"{self.family!r} models only reconstruct sentences and have no source of new ones. "
                                "Use another family.")
        name = source or self.sources[0]
        if name not in self.sources:
            raise OutlinesError(f"{self.family!r} models have no source {name!r}. Choose from {', '.join(self.sources)}.")
        return name

    def source(self, name: str | None = None, noise_scale: float = 1.0) -> Draw:
        """Return a function that samples vectors from the source `name`; None: the family's own. Raises OutlinesError."""
        return partial(self.vectors, source=self.check_source(name), noise_scale=noise_scale)

    def generate(self, num: int | None, seed: int, sampling: SamplingConfig, source: str | Draw | None = None,
                 batch_size: int | None = None, workers: int = 1,
                 sampler: Write | None = None) -> Iterator[tuple[list[list[int]], Tensor | None]]:
        """Yield batches of new sentences (token ids) with their vectors, `num` sentences in total.

        num: None for an endless stream. source: a name, or a function from `self.source`. batch_size: None for a size that
        suits the device. workers: threads, each with its own batch. sampler: None for a new `Sampler` of the decoder.
        """
        draw = source if callable(source) else self.source(source, sampling.noise_scale)
        sampling = self.chosen(sampling)
        sampler, group = sampler or Sampler(self.decoder), sampling.best_of or 1
        if group > 1 and not self.decoder.config.vector_dim and not sampling.draws:
            raise OutlinesError("Without random numbers, a language model writes only one sentence, so best-of has no "
                                "effect. Remove it, or sample with a temperature above 0.")

        def decoded(span: tuple[int, int]) -> tuple[list[list[int]], Tensor | None]:
            vectors, uniforms = self.draw_rows(draw, group * span[0], group * span[1], seed, sampling.max_len)
            return best_of(self.decoder, sampler(vectors, uniforms, sampling), vectors, sampling)

        suited = BATCH if next(self.parameters()).device.type == "cpu" else GPU_BATCH
        return in_order(decoded, spans(num, max(1, (batch_size or suited) // group)), workers)

    def decode(self, vectors: Tensor, seed: int, sampling: SamplingConfig, sampler: Write | None = None) -> list[list[int]]:
        """Return a sentence (token ids) for each of the vectors [N, D]. Sentence i depends on (seed, i) and vector i."""
        _, uniforms = self.draw_rows(lambda count, rng: None, 0, len(vectors), seed, sampling.max_len)
        return (sampler or Sampler(self.decoder))(vectors.to(uniforms.device), uniforms, sampling)

    @torch.no_grad()
    def draw_rows(self, draw: Draw, start: int, stop: int, seed: int, max_len: int) -> tuple[Tensor | None, Tensor]:
        """Return vectors [n, D] and uniform random numbers [n, max_len] for n = stop - start sentences, from `start` on."""
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
    """Yield (start, stop) of batches of `size`. The first batches are smaller, so that the first sentence appears early."""
    start, length = 0, min(BLOCK, size)
    while num is None or start < num:
        stop = start + length if num is None else min(start + length, num)
        yield start, stop
        start, length = stop, min(4 * length, size)


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield function(item) in order, computed by `workers` threads, at most `workers` items ahead."""
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
    """Return a 63-bit seed for the block at `start`; similar arguments have unrelated results (finaliser of splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + start * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1
