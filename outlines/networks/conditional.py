"""Conditional generators of outlines, the linear-Gaussian model that they start from, and their critic.

    linear-Gaussian: A · condition + b + factor · noise
    ConditionalGenerator: linear-Gaussian + mlp(noise, condition)
    ConditionalFlow: moves a sample x of the linear-Gaussian along dx/dt = velocity(x, t, condition)

The condition is another sentence's outline and, if pairs have labels, a label.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.devices import float64
from outlines.networks.flow import Velocity, VelocityField, moved
from outlines.networks.gan import mlp


class LinearGaussian(NamedTuple):
    """outline ~ N(weight · condition + bias, factor · factorᵀ); weight [D, P], bias [D], factor [D, D]."""

    weight: Tensor
    bias: Tensor
    factor: Tensor


def fit_linear_gaussian(conditions: Tensor, outlines: Tensor, chunk: int = 8192) -> LinearGaussian:
    """Return the least-squares regression of outlines [N, D] on conditions [N, P], with a factor of the residual covariance.

    If the centred columns of the conditions are linearly dependent (one-hot labels), returns the solution of smallest norm.
    """
    num, width = conditions.shape
    size = width + outlines.shape[1]
    means = [float64(rows).mean(dim=0) for rows in (conditions, outlines)]
    moments = torch.zeros(size, size).to(means[0])
    for pair in zip(conditions.split(chunk), outlines.split(chunk), strict=True):
        rows = torch.cat([part - mean.to(part) for part, mean in zip(pair, means, strict=True)], dim=1)
        moments += float64(rows.T @ rows)
    gram, cross, total = moments[:width, :width], moments[:width, width:], moments[width:, width:]
    variances, axes = torch.linalg.eigh(gram)
    kept = variances > 1e-6 * variances.max()
    axes, variances = axes[:, kept], variances[kept]
    weight = (axes @ ((axes.T @ cross) / variances[:, None])).T
    values, directions = torch.linalg.eigh((total - weight @ cross) / max(1, num - len(variances) - 1))
    factor = directions * values.clamp(min=0).sqrt()
    bias = means[1] - weight @ means[0]
    return LinearGaussian(weight.to(outlines), bias.to(outlines), factor.to(outlines))


@dataclass(frozen=True)
class ConditionalGeneratorConfig:
    """The sizes of a ConditionalGenerator or a ConditionalFlow."""

    outline_dim: int
    condition_dim: int  # P: the outline's width plus the number of labels
    hidden_dim: int = 512
    num_layers: int = 3
    num_blocks: int = 0  # of a flow; 0: no flow
    num_steps: int = 0  # Heun steps of a flow


class ConditionalGenerator(nn.Module):
    """Maps noise and a condition to outlines in scaled units."""

    def __init__(self, config: ConditionalGeneratorConfig):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.condition_dim, config.outline_dim)
        self.factor = nn.Parameter(torch.eye(config.outline_dim))
        self.mlp = mlp(config.outline_dim + config.condition_dim, config.hidden_dim, config.num_layers, config.outline_dim,
                       zero=True)

    @torch.no_grad()
    def start_at(self, start: LinearGaussian) -> None:
        self.linear.weight.copy_(start.weight)
        self.linear.bias.copy_(start.bias)
        self.factor.copy_(start.factor)

    def draw(self, num: int, rng: torch.Generator) -> Tensor:
        """Return normal noise [num, D]."""
        return torch.randn(num, self.config.outline_dim, generator=rng, device=rng.device).to(self.factor.device)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Return outlines [B, D], before normalisation, for noise [B, D] and conditions [B, P]."""
        return self.linear(condition) + noise @ self.factor.T + self.mlp(torch.cat([noise, condition], dim=1))


class ConditionalFlow(nn.Module):
    """Like a FlowGenerator (flow.py), but starts at the linear-Gaussian model, and its velocity also reads the condition."""

    def __init__(self, config: ConditionalGeneratorConfig):
        super().__init__()
        self.config = config
        self.start = ConditionalGenerator(dataclasses.replace(config, hidden_dim=1, num_layers=1)).requires_grad_(False)
        self.velocity = Velocity(config.outline_dim, config.hidden_dim, config.num_blocks, config.condition_dim)

    def start_at(self, start: LinearGaussian) -> None:
        self.start.start_at(start)

    def draw(self, num: int, rng: torch.Generator) -> Tensor:
        return self.start.draw(num, rng)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        return moved(self.velocity_given(condition), self.start(noise, condition), self.config.num_steps)

    def velocity_given(self, condition: Tensor) -> VelocityField:
        return partial(self.velocity, condition=condition)


class ProjectionCritic(nn.Module):
    """Maps outlines [B, D] and conditions [B, P] to unbounded scores [B]. It never mixes examples.

    score = psi(phi(outline)) + e(condition) · phi(outline) / sqrt(H): how real the outline is, plus how well it matches
    the condition. H: hidden_dim. Source: Miyato and Koyama, cGANs with Projection Discriminator (2018), eq. 3. In the paper,
    e is a matrix, and the product is not divided by sqrt(H).
    """

    def __init__(self, outline_dim: int, condition_dim: int, hidden_dim: int = 512, num_layers: int = 3):
        super().__init__()
        self.features = mlp(outline_dim, hidden_dim, num_layers, hidden_dim)
        self.embedding = mlp(condition_dim, hidden_dim, 1, hidden_dim)
        self.realness = nn.Linear(hidden_dim, 1)

    def score(self, outlines: Tensor, embedding: Tensor) -> Tensor:
        """Return scores [B] of outlines [B, D]. embedding: embedded conditions [B, H]."""
        features = functional.leaky_relu(self.features(outlines), 0.2)
        return self.realness(features)[:, 0] + (features * embedding).sum(dim=1) / features.shape[1] ** 0.5

    def forward(self, outlines: Tensor, condition: Tensor) -> Tensor:
        return self.score(outlines, self.embedding(condition))
