"""Conditional outlines: noise and a condition → generator → outline → decoder → sentence.

The condition is another sentence's outline and, where the pairs have labels, a label. As the unconditional generator
starts at a mixture that no adversary fitted, this one starts at a linear-Gaussian p(outline | condition), fitted to pairs
in closed form:

    outline = A · condition + b + factor · noise + mlp(noise, condition)

with the MLP's last layer zero at the start. The start itself is kept beside it, as the source `linear`: what no GAN is
needed for. The decoder is that of neural outlines, and sees the outline alone.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.errors import OutlinesError
from outlines.models.outline_decoding import OutlineDecoding
from outlines.networks.decoder import DecoderConfig
from outlines.networks.gan import mlp


class LinearGaussian(NamedTuple):
    """outline ~ N(weight · condition + bias, factor · factorᵀ); weight [D, P], bias [D], factor [D, D]."""

    weight: Tensor
    bias: Tensor
    factor: Tensor


def fit_linear_gaussian(conditions: Tensor, outlines: Tensor, chunk: int = 8192) -> LinearGaussian:
    """The linear regression of outlines [N, D] on conditions [N, P], and a factor of its residuals' covariance.

    Least squares, of the smallest norm where conditions are linearly dependent, as one-hot labels are; the covariance is
    divided by N less the rank and one. From moments, summed in float64 over chunks of rows: no copy of the rows is made.
    """
    num, width = conditions.shape
    size = width + outlines.shape[1]
    means = [rows.double().mean(dim=0) for rows in (conditions, outlines)]
    moments = torch.zeros(size, size, dtype=torch.float64, device=outlines.device)
    for pair in zip(conditions.split(chunk), outlines.split(chunk), strict=True):
        rows = torch.cat([part - mean.to(part.dtype) for part, mean in zip(pair, means, strict=True)], dim=1)
        moments += rows.T @ rows
    gram, cross, total = moments[:width, :width], moments[:width, width:], moments[width:, width:]
    variances, axes = torch.linalg.eigh(gram)
    kept = variances > 1e-6 * variances.max()
    axes, variances = axes[:, kept], variances[kept]
    weight = (axes @ ((axes.T @ cross) / variances[:, None])).T
    values, directions = torch.linalg.eigh((total - weight @ cross) / max(1, num - len(variances) - 1))
    factor = directions * values.clamp(min=0).sqrt()
    bias = means[1] - weight @ means[0]
    return LinearGaussian(weight.to(outlines.dtype), bias.to(outlines.dtype), factor.to(outlines.dtype))


@dataclass(frozen=True)
class ConditionalGeneratorConfig:
    """The generator's shape."""

    outline_dim: int
    condition_dim: int
    """P: the outline's width and one for each label"""
    hidden_dim: int = 512
    num_layers: int = 3


class ConditionalGenerator(nn.Module):
    """Noise and a condition to outlines, in scaled units."""

    def __init__(self, config: ConditionalGeneratorConfig):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.condition_dim, config.outline_dim)
        self.factor = nn.Parameter(torch.eye(config.outline_dim))
        self.mlp = mlp(config.outline_dim + config.condition_dim, config.hidden_dim, config.num_layers, config.outline_dim)
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @torch.no_grad()
    def start_at(self, start: LinearGaussian) -> None:
        """Set the linear part; with the MLP's last layer at zero, the generator is then the linear-Gaussian."""
        self.linear.weight.copy_(start.weight)
        self.linear.bias.copy_(start.bias)
        self.factor.copy_(start.factor)

    def draw(self, num: int, rng: torch.Generator, noise_scale: float = 1.0) -> Tensor:
        """Normal noise [num, D] of standard deviation `noise_scale`, drawn where `rng` is."""
        normal = noise_scale * torch.randn(num, self.config.outline_dim, generator=rng, device=rng.device)
        return normal.to(self.factor.device)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Outlines [B, D], not yet normalised, for noise [B, D] and conditions [B, P]."""
        return self.linear(condition) + noise @ self.factor.T + self.mlp(torch.cat([noise, condition], dim=1))


class ProjectionCritic(nn.Module):
    """An unbounded score [B] for outlines [B, D] under conditions [B, P], in scaled units; it never mixes examples.

    score = psi · phi(outline) + e(condition) · phi(outline) / sqrt(H): how real the outline is, and how well it goes with
    the condition. Source: Miyato and Koyama, cGANs with Projection Discriminator (2018), eq. 3. Deviations: the condition
    is a vector, so its embedding e is a perceptron of one hidden layer, not a table; the product is divided by the root
    of its width H, so that it begins no larger than the first term.
    """

    def __init__(self, outline_dim: int, condition_dim: int, hidden_dim: int = 512, num_layers: int = 3):
        super().__init__()
        self.features = mlp(outline_dim, hidden_dim, num_layers, hidden_dim)
        self.embedding = mlp(condition_dim, hidden_dim, 1, hidden_dim)
        self.realness = nn.Linear(hidden_dim, 1)

    def score(self, outlines: Tensor, embedding: Tensor) -> Tensor:
        """Scores [B] under embedded conditions [B, H]: linear in them."""
        features = functional.leaky_relu(self.features(outlines), 0.2)
        return self.realness(features)[:, 0] + (features * embedding).sum(dim=1) / features.shape[1] ** 0.5

    def forward(self, outlines: Tensor, condition: Tensor) -> Tensor:
        return self.score(outlines, self.embedding(condition))


class ConditionalModel(OutlineDecoding):
    """The decoder, the generator (its moving average), its critic, the linear-Gaussian control, and training conditions.

    With a condition of its own it is sampled by `given`; without, it draws one of the conditions that it keeps.
    """

    family = "conditional"
    sources = ("generator", "linear")
    generator: ConditionalGenerator
    linear: ConditionalGenerator

    def __init__(self, decoder: DecoderConfig, generator: ConditionalGeneratorConfig, labels: Sequence[str],
                 num_conditions: int, normalized: bool, encoder: dict[str, str], whitened: bool = False):
        """labels: names of the labels that conditions come with, if any. num_conditions: kept. Others: OutlineDecoding."""
        super().__init__(decoder, normalized, encoder, whitened)
        self.labels = tuple(labels)
        self.generator = ConditionalGenerator(generator)
        self.linear = ConditionalGenerator(dataclasses.replace(generator, hidden_dim=1, num_layers=1))
        self.critic = ProjectionCritic(generator.outline_dim, generator.condition_dim, generator.hidden_dim,
                                       generator.num_layers)
        self.conditions = nn.Embedding(num_conditions, generator.condition_dim)
        for fixed in (self.linear, self.conditions):
            fixed.requires_grad_(False)

    def condition(self, outlines: Tensor, labels: Tensor) -> Tensor:
        """Conditions [B, P] from the conditions' outlines [B, D], scaled, and label numbers [B], -1 where there are none."""
        one_hot = labels[:, None] == torch.arange(len(self.labels), device=labels.device)
        return torch.cat([outlines, one_hot.to(outlines)], dim=1)

    def number_of(self, label: str | None) -> int:
        """The number of a label, -1 for None; raises OutlinesError where the model needs another."""
        if label is None and not self.labels:
            return -1
        if label is None or label not in self.labels:
            wanted = f"one of {', '.join(self.labels)}" if self.labels else "none: it was trained without labels"
            raise OutlinesError(f"label {label!r}: this run needs {wanted}" if label is not None else
                                f"a condition without a label: this run needs {wanted}")
        return self.labels.index(label)

    def given(self, condition: Tensor, noise: Tensor, source: str | None = None) -> Tensor:
        """Outlines [B, D] for the decoder, given conditions [B, P] and normal noise [B, D]."""
        generator: ConditionalGenerator = getattr(self, self.check_source(source))
        return self.normalise(generator(noise, condition))

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor:
        rows = torch.randint(self.conditions.num_embeddings, (num,), generator=rng)
        noise = self.generator.draw(num, rng, noise_scale)
        return self.given(self.conditions(rows.to(noise.device)), noise, source)

    def shape(self) -> dict[str, Any]:
        return {"decoder": dataclasses.asdict(self.decoder.config), "generator": dataclasses.asdict(self.generator.config),
                "labels": list(self.labels), "num_conditions": self.conditions.num_embeddings,
                "normalized": self.normalized, "encoder": self.encoder, "whitened": self.whitened}

    @classmethod
    def from_shape(cls, shape: dict[str, Any]) -> "ConditionalModel":
        return cls(DecoderConfig(**shape["decoder"]), ConditionalGeneratorConfig(**shape["generator"]), shape["labels"],
                   shape["num_conditions"], shape["normalized"], shape["encoder"], shape["whitened"])
