"""Interpolations ("walks") between two sentences, as rows of vectors for the decoder, and how smooth they are.

    linear      the straight line between two vectors
    spherical   the arc between them
    noise       the arc between the generator's noise of both (outlines/inference/inversion.py), mapped to outlines again
    gradient    gradient ascent on log p(second sentence | outline), starting at the first outline

Pure functions of vectors and models; `outlines.inference.pipeline` encodes and decodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from outlines.corpus.batching import collate
from outlines.decoding.scoring import nll_of_rows
from outlines.inference.inversion import Inverted, InvertibleModel, invert, regenerate
from outlines.networks.decoder import Decoder

WALKS = ("linear", "spherical", "noise", "gradient")


class Point(NamedTuple):
    """Consecutive vectors of a walk that decode to the same sentence.

    step: index of the first of them. nll_start, nll_end: -log p of the walk's first and last sentence under each of these
    vectors, nats.
    """

    step: int
    text: str
    nll_start: list[float]
    nll_end: list[float]


@dataclass(frozen=True)
class Walk:
    """An interpolation between two sentences. vectors: [S, D]. ended: why it stopped (see Ascent)."""

    kind: str
    vectors: Tensor
    points: list[Point]
    ended: str

    @property
    def sentences(self) -> list[str]:
        """The sentences on the way, without consecutive duplicates."""
        return [point.text for point in self.points]


def linear(start: Tensor, end: Tensor, num: int) -> Tensor:
    """`num` equidistant vectors [num, D] on the line from start [D] to end [D], both included.

    Between unit vectors the line passes inside the sphere, where there are no outlines: a baseline for the other walks.
    """
    return start + _fractions(start, num) * (end - start)


def spherical(start: Tensor, end: Tensor, num: int) -> Tensor:
    """`num` vectors [num, D] at equal angles on the arc from start [D] to end [D], both included.

    sin((1 - t) ω) / sin ω · start + sin(t ω) / sin ω · end, where ω is the angle between them; for parallel vectors the
    line. Source: Shoemake, Animating Rotation with Quaternion Curves (1985), equation 8; for latent spaces White, Sampling
    Generative Networks (2016), section 2.1.
    """
    angle, fractions = torch.cosine_similarity(start, end, dim=0).clamp(-1, 1).arccos(), _fractions(start, num)
    if angle.sin() < 1e-3:  # parallel, up to float32
        return linear(start, end, num)
    return (((1 - fractions) * angle).sin() * start + (fractions * angle).sin() * end) / angle.sin()


def _fractions(start: Tensor, num: int) -> Tensor:
    return torch.linspace(0, 1, num, dtype=start.dtype, device=start.device)[:, None]


@torch.no_grad()
def noise(model: InvertibleModel, start: Tensor, end: Tensor, num: int) -> Tensor:
    """`num` outlines [num, D] from the generator, on the arc between the noise of start [D] and of end [D].

    The drawn centre, a part of the noise, moves on the straight line.
    """
    normal, centre = invert(model, torch.stack([start, end]))
    return regenerate(model, Inverted(spherical(normal[0], normal[1], num), linear(centre[0], centre[1], num)))


class Ascent(NamedTuple):
    """A gradient walk: its vectors [S, D] with the start, and why it ended: `reached`, `stuck` or `max_steps`."""

    vectors: Tensor
    ended: str


def gradient(decoder: Decoder, start: Tensor, row: np.ndarray, own_nll: float, step: float,
             normalise: Callable[[Tensor], Tensor] = lambda vector: vector, max_steps: int = 200) -> Ascent:
    """Gradient ascent on log p(sentence | vector) from start [D], with steps of length `step`.

    A step that does not raise the likelihood is undone and halved. The walk has reached the sentence when its NLL is at most
    `own_nll`, its NLL under its own vector. It is stuck when a step of step / 1000 does not help.

    row: the sentence's token ids. own_nll: nats. step: in the vectors' units. normalise: maps vectors [B, D] back to where
    the decoder's vectors lie, after every step.
    Source: Subramanian et al., Adversarially Learned Neural Outlines (2018), interpolate along this gradient. The fixed step
    length, the halving and the stopping rule are ours.
    """
    if decoder.training:
        raise ValueError("walk with a decoder in evaluation mode")
    batch = collate([row], decoder.config).to(start.device)
    vectors, length = [start], step

    def nll(vector: Tensor) -> Tensor:
        return decoder.nll(batch, vector[None])[0]

    # cuDNN's GRU has no backward pass in evaluation mode.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        while len(vectors) <= max_steps:
            here = vectors[-1].detach().requires_grad_()
            current = nll(here)
            if current.item() <= own_nll:
                return Ascent(torch.stack(vectors), "reached")
            slope = torch.autograd.grad(current, here)[0]
            direction = slope / slope.norm().clamp_min(1e-30)
            while True:
                candidate = normalise((here - length * direction).detach()[None])[0]
                with torch.no_grad():
                    if nll(candidate).item() < current.item():
                        break
                length /= 2
                if length <= step / 1000:
                    return Ascent(torch.stack(vectors), "stuck")
            vectors.append(candidate)
    return Ascent(torch.stack(vectors), "max_steps")


def nll_along(decoder: Decoder, row: np.ndarray, vectors: Tensor) -> np.ndarray:
    """-log p(sentence | vector) for every vector [S, D] of a walk, nats [S]. row: the sentence's token ids."""
    return nll_of_rows(decoder, [row] * len(vectors), vectors)[0]


def folded(sentences: Sequence[str]) -> list[tuple[int, int]]:
    """(index of the first, length) of every run of equal neighbours."""
    stretches, first = [], 0
    for _, equal in groupby(sentences):
        length = len(list(equal))
        stretches.append((first, length))
        first += length
    return stretches


class Smoothness(NamedTuple):
    """How a walk's sentences follow one another.

    num_sentences: without consecutive duplicates. mean_step, largest_step: distance between the outlines of neighbouring
    sentences, in the encoder's units (for unit norm, 0: equal, 1.41: unrelated). middle_nll_per_token: nats, over the
    sentences between the first and the last, eos included; NaN if there are none.
    """

    num_sentences: int
    mean_step: float
    largest_step: float
    middle_nll_per_token: float


def smoothness(encoded: Tensor, nll: np.ndarray, num_targets: np.ndarray) -> Smoothness:
    """The smoothness of a walk: a smooth one has many sentences, steps of similar length and likely middle sentences.

    encoded: [S, D], its sentences encoded again, in the encoder's units. nll, num_targets: [S], nats and numbers of targets.
    """
    steps = (encoded[1:] - encoded[:-1]).norm(dim=1)
    middle = slice(1, len(nll) - 1)
    tokens = num_targets[middle].sum()
    return Smoothness(len(encoded), float(steps.mean()) if len(steps) else 0.0, float(steps.max()) if len(steps) else 0.0,
                      float(nll[middle].sum() / tokens) if tokens else float("nan"))
