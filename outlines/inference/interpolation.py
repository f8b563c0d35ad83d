"""Walks between two sentences, as rows of vectors for the decoder, and a measure of how smooth a walk is.

    linear      the straight line between two vectors
    spherical   the arc between them
    noise       the arc between the generator's noise of each (outlines/inference/inversion.py), generated again
    gradient    from the first outline, up the gradient of log p(second sentence | outline)

Pure functions of vectors and models; what decodes and prints is `outlines.inference.pipeline`.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from outlines.corpus.batching import collate
from outlines.decoding.scoring import nll_of_rows
from outlines.inference.inversion import invert
from outlines.models.outlines import OutlineModel
from outlines.networks.decoder import Decoder
from outlines.networks.losses import sequence_nll

WALKS = ("linear", "spherical", "noise", "gradient")


def linear(start: Tensor, end: Tensor, num: int) -> Tensor:
    """`num` vectors [num, D] at equal distances on the line from start [D] to end [D], both included.

    Between unit vectors the line passes inside the sphere, where no outline lies: it is the walk to compare with.
    """
    return start + _shares(start, num) * (end - start)


def spherical(start: Tensor, end: Tensor, num: int) -> Tensor:
    """`num` vectors [num, D] at equal angles on the arc from start [D] to end [D], both included.

    sin((1 - t) ω) / sin ω · start + sin(t ω) / sin ω · end, with ω the angle between them; the line where they are
    parallel. Source: Shoemake, Animating Rotation with Quaternion Curves (1985), equation 8; for latent spaces White,
    Sampling Generative Networks (2016), section 2.1.
    """
    angle, shares = torch.cosine_similarity(start, end, dim=0).clamp(-1, 1).arccos(), _shares(start, num)
    if angle.sin() < 1e-3:  # as good as parallel, in float32
        return linear(start, end, num)
    return (((1 - shares) * angle).sin() * start + (shares * angle).sin() * end) / angle.sin()


def _shares(start: Tensor, num: int) -> Tensor:
    return torch.linspace(0, 1, num, dtype=start.dtype, device=start.device)[:, None]


@torch.no_grad()
def noise(model: OutlineModel, start: Tensor, end: Tensor, num: int) -> Tensor:
    """`num` outlines [num, D] that the generator makes on the arc between the noise of start [D] and of end [D].

    The drawn centre is part of the noise and has no arc: it goes straight from one to the other, in step.
    """
    normal, centre = invert(model, torch.stack([start, end]))
    normals = spherical(normal[0], normal[1], num)
    generator = model.generator
    if not generator.config.num_centres:
        return model.normalise(generator.mlp(normals))
    return model.normalise(generator.around(linear(centre[0], centre[1], num), normals))


class Ascent(NamedTuple):
    """A gradient walk: its vectors [S, D], the first included, and why it stopped: `reached`, `stuck` or `max_steps`."""

    vectors: Tensor
    stopped: str


def gradient(decoder: Decoder, start: Tensor, row: np.ndarray, own_nll: float, step: float,
             normalise: Callable[[Tensor], Tensor] = lambda vector: vector, max_steps: int = 200) -> Ascent:
    """Walk from start [D] up the gradient of log p(sentence | vector), by steps of length `step`.

    A step that does not raise the likelihood is taken back and halved. The walk has reached the sentence where its nll is
    no more than `own_nll`, the decoder's own nll of it under its own vector; it is stuck where a step of a thousandth of
    the first no longer helps.

    row: the sentence's token ids. own_nll: nats per sentence. step: in the vector's units. normalise: brings vectors
    [B, D] back to where the decoder's vectors lie, after every step.
    Source: Subramanian et al., Adversarially Learned Neural Outlines (2018), whose interpolation follows this gradient;
    the steps of fixed length, their halving and the stopping rule are ours.
    """
    if decoder.training:
        raise ValueError("walk with a decoder in evaluation mode")
    batch = collate([row]).to(start.device)
    vectors, length = [start], step

    def nll(vector: Tensor) -> Tensor:
        return sequence_nll(decoder(batch.inputs, vector[None]), batch.targets, batch.mask)[0]

    # cuDNN's GRU has no backward pass in evaluation mode.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        while len(vectors) <= max_steps:
            here = vectors[-1].detach().requires_grad_()
            reached = nll(here)
            if reached.item() <= own_nll:
                return Ascent(torch.stack(vectors), "reached")
            slope = torch.autograd.grad(reached, here)[0]
            direction = slope / slope.norm().clamp_min(1e-30)
            while True:
                tried = normalise((here - length * direction).detach()[None])[0]
                with torch.no_grad():
                    if nll(tried).item() < reached.item():
                        break
                length /= 2
                if length <= step / 1000:
                    return Ascent(torch.stack(vectors), "stuck")
            vectors.append(tried)
    return Ascent(torch.stack(vectors), "max_steps")


def nll_along(decoder: Decoder, row: np.ndarray, vectors: Tensor) -> np.ndarray:
    """-log p(sentence | vector) at every vector [S, D] of a walk, nats per sentence [S]. row: the sentence's token ids."""
    return nll_of_rows(decoder, [row] * len(vectors), vectors)[0]


def folded(sentences: Sequence[str]) -> list[tuple[int, int]]:
    """(number of the first, how many) of every stretch of equal neighbours."""
    stretches, first = [], 0
    for _, equal in groupby(sentences):
        count = len(list(equal))
        stretches.append((first, count))
        first += count
    return stretches


class Smoothness(NamedTuple):
    """How a walk's sentences follow one another.

    num_sentences: with equal neighbours folded. mean_step, largest_step: distance between neighbours once they are encoded
    again, in the encoder's units (unit norm: 0 the same, 1.41 unrelated). middle_nll_per_token: of the sentences between
    the first and the last, nats, eos included; NaN where there are none.
    """

    num_sentences: int
    mean_step: float
    largest_step: float
    middle_nll_per_token: float


def smoothness(encoded: Tensor, nll: np.ndarray, num_targets: np.ndarray) -> Smoothness:
    """The measures of a folded walk. A smooth one has many sentences, no step far above the mean, and likely middles.

    encoded: [S, D] its sentences encoded again, in the encoder's units. nll, num_targets: [S] nats and real targets each.
    """
    steps = (encoded[1:] - encoded[:-1]).norm(dim=1)
    middle = slice(1, len(nll) - 1)
    tokens = num_targets[middle].sum()
    return Smoothness(len(encoded), float(steps.mean()) if len(steps) else 0.0, float(steps.max()) if len(steps) else 0.0,
                      float(nll[middle].sum() / tokens) if tokens else float("nan"))
