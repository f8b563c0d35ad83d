"""The language model: maximum likelihood without a vector."""

from typing import Any, ClassVar

from outlines.models.lm import LanguageModel
from train.config import RunConfig
from train.data import Dataset
from train.method import Method
from train.methods.decoder_stage import DecoderOptions, DecoderStage, decoder_config


class LanguageModelMethod(Method):
    family = "lm"
    config_class = DecoderOptions
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"num_sentences": 600, "vocab_size": 450, "embed_dim": 16, "hidden_dim": 24, "decoder_steps": 30,
                 "decoder_batch_size": 16, "decoder_validate_every": 10, "num_validation": 20, "log_every": 10,
                 "checkpoint_every": 10, "warmup_steps": 5, "evaluator_steps": 20, "num_evaluation": 40,
                 "valid_fraction": 0.1, "test_fraction": 0.1},
        "default": {"num_sentences": 24000, "valid_fraction": 0.08, "test_fraction": 0.08, "embed_dim": 224,
                    "hidden_dim": 384, "word_start": "counts", "decoder_steps": 500, "decoder_learning_rate": 4e-3,
                    "decoder_validate_every": 250, "warmup_steps": 100, "evaluator_steps": 2600},
        "small": {"decoder_steps": 2400, "decoder_validate_every": 600, "checkpoint_every": 600, "evaluator_steps": 800},
        "full": {"embed_dim": 512, "hidden_dim": 1024, "num_layers": 2, "dropout": 0.3, "decoder_steps": 40000,
                 "decoder_batch_size": 256, "decoder_learning_rate": 1e-3, "decoder_validate_every": 2000,
                 "checkpoint_every": 2000},
    }

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options = config.model
        assert isinstance(options, DecoderOptions)
        self.model = LanguageModel(decoder_config(options, data, vector_dim=0)).to(data.device)
        self.modules = {"decoder": self.model.decoder}
        self.stages = (DecoderStage(options, data, self.model, self.modules, bfloat16, config.training.seed),)
