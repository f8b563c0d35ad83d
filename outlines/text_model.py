"""What every family is to those who sample from it: a decoder, and a source of vectors for it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from outlines.decoder import Decoder
from outlines.errors import OutlinesError
from outlines.sampling import SamplingConfig, sample
from outlines.scoring import nll_of_rows

BLOCK = 256
"""Sentences whose noise is drawn together: sentence i depends on (seed, i) alone, however many are asked for."""


class TextModel(nn.Module, ABC):
    """A trained generator of text."""

    family: ClassVar[str]
    sources: ClassVar[tuple[str, ...]]
    """where vectors can come from: the family's own first, then its controls; none where it cannot invent"""
    decoder: Decoder

    def posterior(self, rows: Sequence[np.ndarray], outlines: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
        """The Gaussians that the decoder's vectors for given sentences are drawn from: mu and logvar, [N, D] each.

        logvar = log sigma² is None where the vector is mu itself; the whole is None where the decoder takes no vector.
        rows: token ids of each sentence. outlines: scaled, [N, D], where the family uses them, else None.
        """
        return None

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

    def vectors(self, num: int, rng: torch.Generator, source: str) -> Tensor | None:
        """`num` vectors for the decoder [num, D], drawn from `source` with a CPU generator; None if it takes none."""
        return None

    @abstractmethod
    def shape(self) -> dict[str, Any]:
        """JSON data from which `from_shape` makes an untrained model of the same shape."""

    @classmethod
    @abstractmethod
    def from_shape(cls, shape: dict[str, Any]) -> "TextModel":
        """The inverse of `shape`."""

    @torch.no_grad()
    def generate(self, num: int, seed: int, sampling: SamplingConfig, source: str | None = None,
                 block: int = BLOCK) -> Iterator[tuple[list[list[int]], Tensor | None]]:
        """Yield blocks of sentences (token ids) and the vectors they were decoded from, `num` sentences in all."""
        if not self.sources:
            raise OutlinesError(f"a run of the family {self.family} rebuilds sentences and has no source of new ones")
        source = source or self.sources[0]
        if source not in self.sources:
            raise OutlinesError(f"{self.family}: no source {source!r}: choose from {', '.join(self.sources)}")
        device = next(self.parameters()).device
        for start in range(0, num, block):
            rng = torch.Generator().manual_seed(block_seed(seed, start))
            vectors = self.vectors(block, rng, source)
            uniforms = torch.rand(block, sampling.max_len, generator=rng).to(device)
            keep = min(block, num - start)
            vectors = None if vectors is None else vectors[:keep]
            yield sample(self.decoder, vectors, uniforms[:keep], sampling), vectors


def block_seed(seed: int, start: int) -> int:
    """One 63-bit seed for each (seed, block), far apart for near ones (the finaliser of splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + start * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1
