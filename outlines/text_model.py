"""What every family is to those who sample from it: a decoder, a source of vectors, and a directory to live in.

A new family is one file beside this one (or in baselines/) that subclasses TextModel; it is found by its `family`.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from outlines import baselines
from outlines.checkpoint import CheckpointError, load_modules, module_tensors, read_state, write_state
from outlines.decoder import Decoder
from outlines.errors import OutlinesError
from outlines.sampling import SamplingConfig, sample

BLOCK = 256
"""Sentences whose noise is drawn together: sentence i depends on (seed, i) alone, however many are asked for."""


class TextModel(nn.Module, ABC):
    """A trained generator of text."""

    family: ClassVar[str]
    sources: ClassVar[tuple[str, ...]]
    """where vectors can come from: the family's own first, then its controls; none where it cannot invent"""
    decoder: Decoder

    def vectors_of(self, rows: Sequence[np.ndarray], outlines: Tensor | None) -> Tensor | None:
        """The vectors [N, D] that the decoder is given to rebuild sentences: by default their scaled outlines.

        rows: token ids of each sentence. outlines: [N, D] where the family uses them, else None.
        """
        return outlines

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


def families() -> dict[str, type[TextModel]]:
    """Every family this package has, by name."""
    importlib.import_module("outlines.outline_model")
    for module in pkgutil.iter_modules(baselines.__path__):
        importlib.import_module(f"{baselines.__name__}.{module.name}")
    found: dict[str, type[TextModel]] = {}
    pending: list[Any] = [TextModel]
    while pending:
        for subclass in pending.pop().__subclasses__():
            found[subclass.family] = subclass
            pending.append(subclass)
    return found


def save_model(directory: Path, model: TextModel) -> None:
    """Write a model as one atomic, verified directory."""
    write_state(directory, module_tensors({"model": model}, "model"), {"family": model.family, "shape": model.shape()})


def load_model(directory: Path) -> TextModel:
    """Read what `save_model` wrote, in evaluation mode, on the CPU; raises OutlinesError.

    The file names a family of this package and gives its shape; nothing in it can name code.
    """
    tensors, meta = read_state(directory)
    known = families()
    try:
        model = known[meta["family"]].from_shape(meta["shape"])
        load_modules({"model": model}, tensors, "model")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{directory}: not a model of this version ({reason}): train it again") from error
    return model.eval()
