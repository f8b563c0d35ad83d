"""Interpolations ("walks") between two sentences, and the smoothness of a walk. docs/generate.md explains the four walks."""

from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from outlines.corpus.batching import collate
from outlines.inference.inversion import invert
from outlines.models.outlines import OutlineModel
from outlines.networks.decoder import Decoder

WALKS = ("linear", "spherical", "noise", "gradient")


class Point(NamedTuple):
    """Consecutive vectors of a walk that decode to the same sentence. step: index of the first of these vectors."""

    step: int
    text: str
    nll_start: list[float]  # -log p(first sentence of the walk | vector) for each vector, nats
    nll_end: list[float]  # -log p(last sentence of the walk | vector) for each vector, nats


class Walk(NamedTuple):
    """An interpolation between two sentences: S vectors [S, D]. ended: why the walk ended, see `gradient`."""

    vectors: Tensor
    points: list[Point]
    ended: str

    @property
    def sentences(self) -> list[str]:
        return [point.text for point in self.points]


def linear(start: Tensor, end: Tensor, num: int) -> Tensor:
    """Return `num` equidistant vectors [num, D] on the line from start [D] to end [D], both included."""
    return start + torch.linspace(0, 1, num).to(start)[:, None] * (end - start)


def spherical(start: Tensor, end: Tensor, num: int) -> Tensor:
    """Return `num` vectors [num, D] at equal angles on the arc from start [D] to end [D], both included.

    Source: Shoemake, Animating Rotation with Quaternion Curves (1985), eq. 8; White, Sampling Generative Networks (2016).
    """
    angle = torch.cosine_similarity(start, end, dim=0).clamp(-1, 1).arccos()
    fractions = torch.linspace(0, 1, num).to(start)[:, None]
    if angle.sin() < 1e-3:  # parallel, up to float32
        return linear(start, end, num)
    return (((1 - fractions) * angle).sin() * start + (fractions * angle).sin() * end) / angle.sin()


@torch.no_grad()
def noise(model: OutlineModel, start: Tensor, end: Tensor, num: int) -> Tensor:
    """Return `num` generated outlines [num, D] from start [D] to end [D].

    The generator's inputs are interpolated: the noise on an arc, the centre on a line.
    """
    normal, centre = invert(model, torch.stack([start, end]))
    generator: Any = model.generator
    return model.normalise(generator.around(linear(centre[0], centre[1], num), spherical(normal[0], normal[1], num)))


def gradient(decoder: Decoder, start: Tensor, row: np.ndarray, own_nll: float, step: float,
             normalise: Callable[[Tensor], Tensor] = lambda vector: vector, max_steps: int = 200) -> tuple[Tensor, str]:
    """Return the vectors [S, D] of gradient ascent on log p(sentence | vector) from start [D], and why the ascent ended.

    A step that does not raise the likelihood is undone, and the step length is halved. Reasons for the end: `reached`, the
    sentence's NLL is at most `own_nll` (nats); `stuck`, the step length is at most step / 1000; `max_steps`.
    row: token ids of the sentence. step: the first step length. normalise: rescales vectors [B, D] to the encoder's norm.
    Source: Subramanian et al., Towards Text Generation with Adversarially Learned Neural Outlines (2018).
    """
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
                return torch.stack(vectors), "reached"
            slope = torch.autograd.grad(current, here)[0]
            direction = slope / slope.norm().clamp_min(1e-30)
            while True:
                candidate = normalise((here - length * direction).detach()[None])[0]
                with torch.no_grad():
                    if nll(candidate).item() < current.item():
                        break
                length /= 2
                if length <= step / 1000:
                    return torch.stack(vectors), "stuck"
            vectors.append(candidate)
    return torch.stack(vectors), "max_steps"


def folded(texts: list[str], nll_start: list[float], nll_end: list[float]) -> list[Point]:
    """Return the points of a walk: consecutive vectors with the same text become one point."""
    runs = [list(run) for _, run in groupby(range(len(texts)), key=texts.__getitem__)]
    return [Point(run[0], texts[run[0]], nll_start[run[0]:run[-1] + 1], nll_end[run[0]:run[-1] + 1]) for run in runs]


class Smoothness(NamedTuple):
    """How smoothly the sentences of a walk change. A smooth walk has many sentences, similar steps and a low NLL."""

    num_sentences: int  # without consecutive duplicates
    mean_step: float  # mean distance between the outlines of consecutive sentences, in the encoder's units
    largest_step: float
    middle_nll_per_token: float  # nats; of the sentences between the first and the last; NaN if there are none


def smoothness(encoded: Tensor, nll: np.ndarray, num_targets: np.ndarray) -> Smoothness:
    """Return the smoothness of a walk of S sentences. encoded: their outlines [S, D]. nll: [S], nats. num_targets: [S]."""
    steps = (encoded[1:] - encoded[:-1]).norm(dim=1)
    middle = slice(1, len(nll) - 1)
    tokens = num_targets[middle].sum()
    return Smoothness(len(encoded), float(steps.mean()) if len(steps) else 0.0, float(steps.max()) if len(steps) else 0.0,
                      float(nll[middle].sum() / tokens) if tokens else float("nan"))
