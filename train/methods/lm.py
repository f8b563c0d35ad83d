"""The language model: maximum likelihood without a vector."""

from typing import Any

from outlines.models.lm import LanguageModel
from train.config import RunConfig
from train.data import Dataset
from train.method import Method
from train.methods.decoder_stage import DecoderOptions, DecoderStage, decoder_config, presets_of


class LanguageModelMethod(Method):
    family = "lm"
    config_class = DecoderOptions
    presets = presets_of("lm")

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: Any = config.model
        self.model = model = LanguageModel(decoder_config(options, data, vector_dim=0)).to(data.device)
        self.assemble(DecoderStage(options, data, model, bfloat16, config.training.seed, decoder=model.decoder))
