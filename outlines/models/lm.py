"""The language model: the outline decoder without an outline."""

import dataclasses
from typing import Any

from outlines.models.base import TextModel
from outlines.networks.decoder import DecoderConfig, build_decoder


class LanguageModel(TextModel):
    """p(x), the baseline of every generator of text."""

    family = "lm"
    sources = ("lm",)

    def __init__(self, decoder: DecoderConfig):
        super().__init__()
        self.decoder = build_decoder(decoder)

    def shape(self) -> dict[str, Any]:
        return {"decoder": dataclasses.asdict(self.decoder.config)}

    @classmethod
    def from_shape(cls, shape: dict[str, Any]) -> "LanguageModel":
        return cls(DecoderConfig.from_json(shape["decoder"]))
