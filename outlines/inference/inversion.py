"""The generator backwards: outline → noise.

Noise that is improbable enough reaches any outline from any centre. `invert` therefore looks for the noise that the
generator most probably drew, by minimising

    |normalise(G(noise, k)) - outline|² / tolerance² + |noise|² - 2 log share_k
"""

from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

TOLERANCES = (0.1, 0.03, 0.01)
"""Standard deviation of the remaining error, in scaled units (an outline has 1 per dimension). The descent uses them in
turn; with only the last one it gets stuck where the MLP is nonlinear."""
STEPS_EACH = 5
NUM_FIRST = 16
"""Number of likeliest centres that are combined with every offset."""


@runtime_checkable
class InvertibleGenerator(Protocol):
    """A generator whose noise is a drawn centre and normal values; see `outlines.networks.gan.Generator`."""

    config: Any

    def around(self, centre: Tensor, normal: Tensor) -> Tensor: ...


class InvertibleModel(Protocol):
    """A model with such a generator. normalise: outlines [B, D], in scaled units, to the norm of the encoder's."""

    generator: Any

    def normalise(self, scaled: Tensor) -> Tensor: ...


def can_invert(model: Any) -> TypeGuard[InvertibleModel]:
    """Whether `invert` works for a model."""
    return isinstance(getattr(model, "generator", None), InvertibleGenerator)


class Inverted(NamedTuple):
    """The noise of outlines: normal values [N, D] and the drawn centres as points [N, D] (0 without centres)."""

    normal: Tensor
    centre: Tensor


def regenerate(model: InvertibleModel, noise: Inverted) -> Tensor:
    """The outlines [N, D] that the model's generator makes of the noise, normalised."""
    generator = model.generator
    return model.normalise(generator.around(noise.centre, noise.normal) if generator.config.num_centres else
                           generator.mlp(noise.normal))


@torch.no_grad()
def invert(model: InvertibleModel, outlines: Tensor, num_candidates: int = 2) -> Inverted:
    """The noise from which the model's generator makes the outlines [N, D], in scaled units.

    num_candidates: number of centres (with their offsets) to descend from: the most probable ones if the MLP is ignored.
    Memory: N × num_candidates × D².
    """
    generator = model.generator
    if not generator.config.num_centres:
        centre = torch.zeros_like(outlines)
        return Inverted(descend(model, outlines, centre, centre)[0], centre)
    factor = generator.factor
    inverse = torch.linalg.solve(_ridge(factor.T @ factor, TOLERANCES[0] ** 2), factor.T)
    precision = _precision(generator) if generator.config.num_offsets else None
    found = [_likeliest(generator, outline, inverse, precision, num_candidates) for outline in outlines]
    centre, log_share = (torch.stack(parts) for parts in zip(*found, strict=True))  # [N, candidates, D] and [N, candidates]
    candidates = centre.shape[1]
    centre = centre.flatten(0, 1)
    targets = outlines.repeat_interleave(candidates, dim=0)
    normal, cost = descend(model, targets, centre, (targets - centre) @ inverse.T)
    best = (cost.view(log_share.shape) - 2 * log_share).argmin(dim=1)
    best += candidates * torch.arange(len(outlines), device=outlines.device)
    return Inverted(normal[best], centre[best])


def _precision(generator: Any) -> Tensor:
    """The inverse covariance [D, D] of outlines around a first-level centre, from offsets and factor, without the MLP."""
    offsets, shares = generator.offsets, generator.offset_shares
    covariance = (offsets * shares[:, None]).T @ offsets + generator.factor @ generator.factor.T
    return torch.linalg.inv(_ridge(covariance, TOLERANCES[0] ** 2))


def _likeliest(generator: Any, outline: Tensor, inverse: Tensor, precision: Tensor | None,
               num: int) -> tuple[Tensor, Tensor]:
    """At most `num` centres [C, D] that an outline [D] most probably comes from without the MLP, and their log shares [C].

    inverse: of the factor. precision: see _precision; if given, each centre is the sum of one of the NUM_FIRST likeliest
    centres and the offset that fits it best.
    """
    def cost(rest: Tensor) -> Tensor:
        return (rest @ inverse.T).square().sum(dim=-1)

    centres: Tensor = generator.centres
    log_shares = generator.shares.log()
    if precision is not None:
        offsets, offset_shares = generator.offsets, generator.offset_shares
        rest = outline - centres
        first = ((rest @ precision * rest).sum(dim=1) - 2 * log_shares).topk(
            min(NUM_FIRST, len(centres)), largest=False).indices
        offset = (torch.stack([cost(row - offsets) for row in rest[first]]) - 2 * offset_shares.log()).argmin(dim=1)
        centres, log_shares = centres[first] + offsets[offset], log_shares[first] + offset_shares[offset].log()
    likely = (cost(outline - centres) - 2 * log_shares).topk(min(num, len(centres)), largest=False).indices
    return centres[likely], log_shares[likely]


def descend(model: InvertibleModel, outlines: Tensor, centre: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise the cost above without its shares, starting at `normal` [N, D]; returns the noise [N, D] and its cost [N].

    A step is the gradient divided by the curvature from the generator's Jacobian (Levenberg 1944, Marquardt 1963); a step
    that does not reduce the cost is undone and shortened. Plain gradient steps do not converge: an outline moves a thousand
    times as far along the noise's widest direction as along its narrowest.
    """
    def outline(normal: Tensor, centre: Tensor) -> Tensor:
        return regenerate(model, Inverted(normal[None], centre[None]))[0]

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
    """square [..., D, D] with damping [...] added to its diagonal."""
    damping = torch.as_tensor(damping, dtype=square.dtype, device=square.device)
    return square + damping[..., None, None] * torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
