"""Neural networks and losses. Importing the file of a decoder or a generator registers it."""

from outlines.networks import flow, gan, gru, pretrained, transformer

__all__ = ["flow", "gan", "gru", "pretrained", "transformer"]
