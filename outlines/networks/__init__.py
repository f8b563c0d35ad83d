"""Neural networks and losses: nothing here samples or measures. Importing a kind of decoder or generator registers it."""

from outlines.networks import flow, gan, gru, pretrained, transformer

__all__ = ["flow", "gan", "gru", "pretrained", "transformer"]
