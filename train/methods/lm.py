"""The language model: a decoder without a vector, trained by maximum likelihood."""

from typing import Any

from outlines.models.lm import LanguageModel
from train.config import DecoderOptions, RunConfig
from train.data import Dataset
from train.method import Method
from train.methods.decoder_stage import DecoderStage, decoder_config


class LanguageModelMethod(Method):
    family = "lm"
    config_class = DecoderOptions

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: Any = config.model
        self.model = model = LanguageModel(decoder_config(options, data, vector_dim=0)).to(data.device)
        self.assemble(DecoderStage(options, data, model, bfloat16, config.training.seed, decoder=model.decoder))
