"""The generator backwards: outline → noise, so that a walk can be made where the generator starts from.

Noise far enough out reaches any outline from any centre. What is looked for is therefore the noise that the generator
most probably drew: the least of

    |normalise(G(noise, k)) - outline|² / tolerance² + |noise|² - 2 log share_k
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from outlines.models.outlines import OutlineModel
from outlines.networks.gan import Generator

TOLERANCES = (0.1, 0.03, 0.01)
"""Standard deviations of what may be left over, in scaled units (an outline's is 1 a dimension): descended in turn, for
the last alone gets stuck where the MLP bends."""
STEPS_EACH = 5
NUM_FIRST = 16
"""Centres of the first level, at most, of which each is tried with every offset."""


class Inverted(NamedTuple):
    """What the generator makes an outline from: normal noise [N, D] and the drawn centres as points [N, D]."""

    normal: Tensor
    centre: Tensor


@torch.no_grad()
def invert(model: OutlineModel, outlines: Tensor, num_candidates: int = 2) -> Inverted:
    """The noise from which the model's generator makes each of the outlines [N, D], in scaled units.

    num_candidates: centres (with their offsets, where there are some) to descend from, the most probable ones were there no
    MLP. Memory: N × num_candidates × D².
    """
    generator = model.generator
    if not generator.config.num_centres:
        centre = torch.zeros_like(outlines)
        return Inverted(descend(model, outlines, centre, centre)[0], centre)
    factor = generator.factor
    inverse = torch.linalg.solve(_ridge(factor.T @ factor, TOLERANCES[0] ** 2), factor.T)
    # Which centre it was is not to be told by the factor alone, which is what the offsets leave.
    of_both = _of_offsets_too(generator) if generator.config.num_offsets else None
    found = [_likeliest(generator, outline, inverse, of_both, num_candidates) for outline in outlines]
    centre, log_share = (torch.stack(parts) for parts in zip(*found, strict=True))  # [N, candidates, D] and [N, candidates]
    candidates = centre.shape[1]
    centre = centre.flatten(0, 1)
    targets = outlines.repeat_interleave(candidates, dim=0)
    normal, cost = descend(model, targets, centre, (targets - centre) @ inverse.T)
    best = (cost.view(log_share.shape) - 2 * log_share).argmin(dim=1)
    best += candidates * torch.arange(len(outlines), device=outlines.device)
    return Inverted(normal[best], centre[best])


def _of_offsets_too(generator: Generator) -> Tensor:
    """The inverse [D, D] of the covariance that a drawn offset and the factor leave around a centre, were there no MLP."""
    offsets, shares = generator.offsets, generator.offset_shares
    spread = (offsets * shares[:, None]).T @ offsets + generator.factor @ generator.factor.T
    return torch.linalg.inv(_ridge(spread, TOLERANCES[0] ** 2))


def _likeliest(generator: Generator, outline: Tensor, inverse: Tensor, of_both: Tensor | None,
               num: int) -> tuple[Tensor, Tensor]:
    """The centres [C, D] that an outline [D] most probably comes from were there no MLP, `num` at most, and their log
    shares [C].

    inverse: of the factor. of_both: as by _of_offsets_too; given, each centre is the sum of one of the likeliest NUM_FIRST
    centres and the offset that goes best with it.
    """
    def cost(rest: Tensor) -> Tensor:
        return (rest @ inverse.T).square().sum(dim=-1)

    centres: Tensor = generator.centres
    log_shares = generator.shares.log()
    if of_both is not None:
        offsets, offset_shares = generator.offsets, generator.offset_shares
        rest = outline - centres
        first = ((rest @ of_both * rest).sum(dim=1) - 2 * log_shares).topk(
            min(NUM_FIRST, len(centres)), largest=False).indices
        offset = (torch.stack([cost(row - offsets) for row in rest[first]]) - 2 * offset_shares.log()).argmin(dim=1)
        centres, log_shares = centres[first] + offsets[offset], log_shares[first] + offset_shares[offset].log()
    likely = (cost(outline - centres) - 2 * log_shares).topk(min(num, len(centres)), largest=False).indices
    return centres[likely], log_shares[likely]


def descend(model: OutlineModel, outlines: Tensor, centre: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Descend from `normal` [N, D] on the cost above, without shares; the noise reached [N, D] and its cost [N].

    A step is the gradient divided by the curvature that the generator's Jacobian gives (Levenberg 1944, Marquardt 1963);
    one that does not descend is taken back and the next is shorter. The plain gradient's steps do not arrive: an outline
    moves a thousand times as far along the noise's widest direction as along its thinnest.
    """
    def outline(normal: Tensor, centre: Tensor) -> Tensor:
        generator = model.generator
        made = generator.around(centre[None], normal[None]) if generator.config.num_centres else generator.mlp(normal[None])
        return model.normalise(made)[0]

    make, jacobian = vmap(outline), vmap(jacfwd(outline))
    for tolerance in TOLERANCES:
        weight = tolerance**2
        damping = torch.full((len(outlines),), weight, device=outlines.device)
        away = make(normal, centre) - outlines
        cost = away.square().sum(dim=1) + weight * normal.square().sum(dim=1)
        for _ in range(STEPS_EACH):
            slope = jacobian(normal, centre)  # [N, D of the outline, D of the noise]
            gradient = (slope.mT @ away[:, :, None])[:, :, 0] + weight * normal
            tried = normal - torch.linalg.solve(_ridge(slope.mT @ slope, weight + damping), gradient)
            tried_away = make(tried, centre) - outlines
            tried_cost = tried_away.square().sum(dim=1) + weight * tried.square().sum(dim=1)
            better = tried_cost < cost
            normal = torch.where(better[:, None], tried, normal)
            away = torch.where(better[:, None], tried_away, away)
            cost = torch.where(better, tried_cost, cost)
            damping = torch.where(better, damping / 10, damping * 10)
    return normal, cost / weight


def _ridge(square: Tensor, damping: Tensor | float) -> Tensor:
    """square [..., D, D] with `damping` [...] added to its diagonal."""
    damping = torch.as_tensor(damping, dtype=square.dtype, device=square.device)
    return square + damping[..., None, None] * torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
