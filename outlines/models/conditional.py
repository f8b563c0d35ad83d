"""Conditional outlines: noise and a condition → generator → outline → decoder → sentence."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from outlines.errors import OutlinesError
from outlines.models.outlines import OutlineDecoding
from outlines.networks.conditional import (
    ConditionalFlow,
    ConditionalGenerator,
    ConditionalGeneratorConfig,
    ProjectionCritic,
)
from outlines.networks.decoder import DecoderConfig


class ConditionalModel(OutlineDecoding):
    """Decoder, generator, critic, the linear-Gaussian baseline, and stored conditions for use if no condition is given."""

    family = "conditional"
    sources = ("generator", "linear")
    generator: ConditionalGenerator | ConditionalFlow
    linear: ConditionalGenerator
    critic: ProjectionCritic | None

    def __init__(self, decoder: DecoderConfig, generator: ConditionalGeneratorConfig, critic: Mapping[str, int] | None,
                 labels: Sequence[str], num_conditions: int, normalized: bool, encoder: dict[str, str]):
        """critic: hidden_dim, num_layers; None: no critic. labels: names of all labels. num_conditions: number of stored
        conditions. Other arguments: see OutlineDecoding.
        """
        super().__init__(decoder, normalized, encoder, generator=generator, critic=critic, labels=labels,
                         num_conditions=num_conditions)
        self.labels = tuple(labels)
        self.generator = (ConditionalFlow if generator.num_blocks else ConditionalGenerator)(generator)
        self.linear = ConditionalGenerator(dataclasses.replace(generator, hidden_dim=1, num_layers=1)).requires_grad_(False)
        self.critic = ProjectionCritic(generator.outline_dim, generator.condition_dim, **critic) if critic else None
        self.conditions = nn.Embedding(num_conditions, generator.condition_dim).requires_grad_(False)

    def condition(self, outlines: Tensor, labels: Tensor) -> Tensor:
        """Return conditions [B, P] for scaled outlines [B, D] and indices of labels [B]; -1: no label."""
        one_hot = labels[:, None] == torch.arange(len(self.labels), device=labels.device)
        return torch.cat([outlines, one_hot.to(outlines)], dim=1)

    def number_of(self, label: str | None) -> int:
        """Return the index of a label, or -1 if the run has no labels. Raises OutlinesError if it is unknown or missing."""
        if label is None and not self.labels:
            return -1
        if label is None or label not in self.labels:
            if not self.labels:
                raise OutlinesError(f"Label {label!r} has no effect: this run was trained without labels. Leave it out.")
            problem = f"Unknown label {label!r}." if label else "A condition has no label."
            raise OutlinesError(f"{problem} Use one of {', '.join(self.labels)}.")
        return self.labels.index(label)

    def given(self, condition: Tensor, noise: Tensor, source: str | None = None) -> Tensor:
        """Return generated outlines [B, D], in scaled units, for conditions [B, P] and normal noise [B, D]."""
        generator: ConditionalGenerator | ConditionalFlow = getattr(self, self.check_source(source))
        return self.normalise(generator(noise, condition))

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> Tensor:
        rows = torch.randint(self.conditions.num_embeddings, (num,), generator=rng)
        noise = self.generator.draw(num, rng) * noise_scale
        return self.given(self.conditions(rows.to(noise.device)), noise, source)
