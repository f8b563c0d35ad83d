"""The plain language model: maximum likelihood, nothing else."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from outlines.models.lm import LanguageModel
from outlines.networks.decoder import Decoder, DecoderConfig
from outlines.options import option
from train.config import RunConfig
from train.data import Batch, Dataset
from train.evaluation.figures import held_out, nll_figures
from train.method import Method, Stage, Update, adamw


@dataclass(frozen=True)
class DecoderOptions:
    """The decoder and its training; the same names and defaults in every family that has one."""

    embed_dim: int = option(256, "width of a token's embedding, tied to the output layer", low=1)
    hidden_dim: int = option(512, "width of the decoder's GRU state", low=1)
    num_layers: int = option(1, "GRU layers of the decoder", low=1)
    word_start: str = option("random", "where the decoder's embeddings and output bias start: random, or counts, at what "
                             "the words' neighbours and shares in the training split say",
                             choices=("random", "counts"))
    dropout: float = option(0.1, "share of the decoder's values dropped in training, 0 to 1", low=0, high=0.95)
    decoder_steps: int = option(1200, "optimiser steps of the decoder", low=1)
    decoder_batch_size: int = option(128, "sentences a step of the decoder", low=1)
    decoder_learning_rate: float = option(3e-3, "AdamW's peak rate for the decoder", low=0)
    decoder_validate_every: int = option(500, "decoder steps between two validations", low=1)
    num_validation: int = option(2000, "sentences, at most, of a validation", low=10)

    learns_pairs: ClassVar[bool] = False
    """whether the family learns from pairs of sentences, so that the corpus must say which belong together"""

    def without_effect(self) -> dict[str, str]:
        """Options that change nothing beside the others' values, and why: to give one of them is an error."""
        return {}


def decoder_stage(options: DecoderOptions, criterion: str) -> Stage:
    return Stage("decoder", options.decoder_steps, options.decoder_batch_size, True, options.decoder_validate_every,
                 criterion, ("decoder",), ("decoder",))


def decoder_config(options: DecoderOptions, data: Dataset, vector_dim: int) -> DecoderConfig:
    """The decoder's shape for this corpus."""
    shape = {field.name: getattr(options, field.name) for field in dataclasses.fields(DecoderOptions)
             if field.name in DecoderConfig.__dataclass_fields__}
    return DecoderConfig(data.tokenizer.vocab_size, vector_dim, **shape)


def decoder_step(decoder: Decoder, vector: Tensor | None, batch: Batch, bfloat16: bool) -> tuple[Tensor, Tensor]:
    """This rank's share of the global nll per token, and of the nll per sentence; both nats."""
    with torch.autocast(batch.tokens.inputs.device.type, torch.bfloat16, enabled=bfloat16):
        nll = decoder.nll(batch.tokens.inputs, vector, batch.tokens.targets, batch.tokens.mask)
    return nll / batch.num_targets, nll.detach() / batch.num_rows


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
        options: DecoderOptions = config.model
        self.data, self.bfloat16, self.options = data, bfloat16, options
        self.model = LanguageModel(decoder_config(options, data, vector_dim=0)).to(data.device)
        self.modules = {"decoder": self.model.decoder}
        self.optimizers = {"decoder": adamw([self.model.decoder], options.decoder_learning_rate, (0.9, 0.99), 0.01)}
        self.stages = (decoder_stage(options, "valid/nll_per_token"),)

    def step(self, stage: Stage, batch: Batch, update: Update) -> dict[str, Tensor]:
        per_token, per_sentence = decoder_step(self.model.decoder, None, batch, self.bfloat16)
        norm = update("nll", self.optimizers["decoder"], per_token)
        return {"train/nll_per_token": per_token.detach(), "train/nll": per_sentence, "norm/decoder": norm}

    def validate(self, stage: Stage) -> dict[str, float]:
        tokens, outlines, _ = held_out(self.data, "valid", self.options.num_validation)
        return nll_figures("valid", self.model, tokens, outlines, num_draws=0)
