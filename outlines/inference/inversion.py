"""Inversion of the generator: outline → noise.

From every centre, the generator G can produce every outline, but often only with improbable noise. `invert` searches for the
likeliest pair of noise and centre k: it minimises

    |normalise(G(noise, k)) - outline|² / tolerance² + |noise|² - 2 log share_k

A flow does not need this search, because it has an exact inverse.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from outlines.models.base import TextModel
from outlines.models.outlines import OutlineModel
from outlines.networks.flow import FlowGenerator

# Standard deviations of the remaining error in scaled units, used in turn. With only the last one, the descent gets stuck.
TOLERANCES = (0.1, 0.03, 0.01)
STEPS_EACH = 5
# Number of centres that are combined with all offsets; number of sums (without offsets: centres) at which descents start.
NUM_FIRST, NUM_CANDIDATES = 16, 2


def can_invert(model: TextModel) -> TypeGuard[OutlineModel]:
    """Return whether the generator of the model can be inverted: its input must be normal noise and a centre."""
    return hasattr(getattr(model, "generator", None), "around")


@torch.no_grad()
def invert(model: OutlineModel, outlines: Tensor) -> tuple[Tensor, Tensor]:
    """Return the generator's inputs for outlines [N, D]: normal noise [N, D] and centres [N, D].

    The centres are zeros if the generator has none. Needs memory for 2 N D² floats.
    """
    generator: Any = model.generator
    if isinstance(generator, FlowGenerator):
        return generator.inverse(outlines)
    if not generator.config.num_centres:
        centre = torch.zeros_like(outlines)
        return descend(model, outlines, centre, centre)[0], centre
    factor = generator.factor
    inverse = torch.linalg.solve(_ridge(factor.T @ factor, TOLERANCES[0] ** 2), factor.T)
    centre, log_share = _likeliest(generator, outlines, inverse)
    candidates = centre.shape[1]
    centre = centre.flatten(0, 1)
    targets = outlines.repeat_interleave(candidates, dim=0)
    normal, cost = descend(model, targets, centre, (targets - centre) @ inverse.T)
    best = (cost.view(log_share.shape) - 2 * log_share).argmin(dim=1)
    best += candidates * torch.arange(len(outlines), device=outlines.device)
    return normal[best], centre[best]


def _likeliest(generator: Any, outlines: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the C likeliest centres [N, C, D] for outlines [N, D], and the log shares [N, C] of these centres.

    The generator's MLP is ignored. If the generator has offsets, a centre here is the sum of one of the NUM_FIRST likeliest
    centres and the offset that is best for this centre.
    """
    def cost(rest: Tensor) -> Tensor:
        return (rest @ inverse.T).square().sum(dim=-1)

    def smallest(costs: Tensor, num: int) -> Tensor:
        return costs.topk(min(num, len(costs)), largest=False).indices

    if generator.config.num_offsets:
        offsets, offset_shares = generator.offsets, generator.offset_shares
        covariance = (offsets * offset_shares[:, None]).T @ offsets + generator.factor @ generator.factor.T
        precision = torch.linalg.inv(_ridge(covariance, TOLERANCES[0] ** 2))
    found = []
    for outline in outlines:
        centres, log_shares = generator.centres, generator.shares.log()
        if generator.config.num_offsets:
            rest = outline - centres
            first = smallest((rest @ precision * rest).sum(dim=1) - 2 * log_shares, NUM_FIRST)
            offset = (torch.stack([cost(row - offsets) for row in rest[first]]) - 2 * offset_shares.log()).argmin(dim=1)
            centres, log_shares = centres[first] + offsets[offset], log_shares[first] + offset_shares[offset].log()
        likely = smallest(cost(outline - centres) - 2 * log_shares, NUM_CANDIDATES)
        found.append((centres[likely], log_shares[likely]))
    centre, log_share = zip(*found, strict=True)
    return torch.stack(centre), torch.stack(log_share)


def descend(model: OutlineModel, outlines: Tensor, centre: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest noise [N, D] for outlines [N, D] and fixed centres [N, D], and the cost [N] of this noise.

    The search starts at `normal` [N, D]. The cost is the sum in the module's docstring, without log share_k. Uses
    Levenberg-Marquardt steps. A step that does not reduce the cost is undone, and the next step is shorter. Gradient descent
    does not converge, because the same change of the noise moves an outline a thousand times as far in some directions as in
    others.
    """
    generator: Any = model.generator

    def outline(normal: Tensor, centre: Tensor) -> Tensor:
        return model.normalise(generator.around(centre[None], normal[None]))[0]

    make, jacobian = vmap(outline), vmap(jacfwd(outline))
    for tolerance in TOLERANCES:
        weight = tolerance**2
        damping = torch.full((len(outlines),), weight, device=outlines.device)
        error = make(normal, centre) - outlines
        cost = error.square().sum(dim=1) + weight * normal.square().sum(dim=1)
        for _ in range(STEPS_EACH):
            jac = jacobian(normal, centre)  # [N, D of the outline, D of the noise]
            gradient = (jac.mT @ error[:, :, None])[:, :, 0] + weight * normal
            tried = normal - torch.linalg.solve(_ridge(jac.mT @ jac, weight + damping), gradient)
            tried_error = make(tried, centre) - outlines
            tried_cost = tried_error.square().sum(dim=1) + weight * tried.square().sum(dim=1)
            better = tried_cost < cost
            normal = torch.where(better[:, None], tried, normal)
            error = torch.where(better[:, None], tried_error, error)
            cost = torch.where(better, tried_cost, cost)
            damping = torch.where(better, damping / 10, damping * 10)
    return normal, cost / weight


def _ridge(square: Tensor, damping: Tensor | float) -> Tensor:
    """Return `square` [..., D, D] with `damping` [...] added to its diagonal."""
    damping = torch.as_tensor(damping, dtype=square.dtype, device=square.device)
    return square + damping[..., None, None] * torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
