"""The language model: the outline decoder without an outline."""

from outlines.models.base import TextModel
from outlines.networks.decoder import DecoderConfig, build_decoder


class LanguageModel(TextModel):
    """p(x) without a vector: the baseline of all other families."""

    family = "lm"
    sources = ("lm",)

    def __init__(self, decoder: DecoderConfig):
        super().__init__(decoder=decoder)
        self.decoder = build_decoder(decoder)
