"""Maximum-likelihood training of a decoder, the stage that every family has."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outlines.errors import OutlinesError
from outlines.models.base import TextModel
from outlines.networks.decoder import Decoder, DecoderConfig, decoder_kinds, find_decoder
from outlines.networks.embedding_init import MAX_COUNTED_ROWS, start_words
from outlines.options import option
from train.config import ModelOptions
from train.data import Batch, Dataset
from train.evaluation.figures import held_out, nll_figures
from train.method import Stage, Update, Validation, adamw
from train.runtime.progress import Progress


@dataclass(frozen=True)
class DecoderOptions(ModelOptions):
    """Options of the decoder and its training, with the same names and defaults in every family."""

    group: ClassVar[str] = "decoder"
    decoder: str = option("gru", "kind of decoder", choices=decoder_kinds)
    embed_dim: int = option(256, "width of token embeddings, tied to the output layer", low=1)
    hidden_dim: int = option(512, "width of the decoder's GRU state", low=1)
    num_layers: int = option(1, "GRU layers of the decoder", low=1, flag=False)
    word_start: str = option("random", "initialisation of embeddings and output bias: random, or from training-set "
                             "co-occurrence counts", choices=("random", "counts"))
    dropout: float = option(0.1, "dropout probability in the decoder, 0 to 1", low=0, high=0.95)
    decoder_steps: int = option(1200, "optimiser steps of the decoder", low=1)
    decoder_batch_size: int = option(128, "sentences per decoder step", low=1, flag=False)
    decoder_learning_rate: float = option(3e-3, "peak learning rate of AdamW for the decoder", low=0)
    decoder_validate_every: int = option(500, "decoder steps between two validations", low=1)
    num_validation: int = option(2000, "maximum number of validation sentences", low=10, flag=False)

    def without_effect(self) -> dict[str, str]:
        known = {field.name for field in dataclasses.fields(find_decoder(self.decoder).config_class)}
        return {name: f"decoder {self.decoder!r} does not use it" for name in ("hidden_dim", "num_layers", "dropout")
                if name not in known}


def decoder_config(options: DecoderOptions, data: Dataset, vector_dim: int, **settings: Any) -> DecoderConfig:
    """Return the decoder's configuration for this corpus: every field that the decoder kind shares with the options.

    settings: fields that a family sets itself; raises OutlinesError if the decoder kind has no such field.
    """
    config_class = find_decoder(options.decoder).config_class
    known = {field.name for field in dataclasses.fields(config_class)}
    for name in settings.keys() - known:
        raise OutlinesError(f"Decoder {options.decoder!r} has no setting {name!r}. Choose another --decoder.")
    shape = {name: value for name, value in vars(options).items() if name in known}
    return config_class(data.tokenizer.vocab_size, vector_dim, **{**vars(data.tokenizer.special), **shape, **settings})


def decoder_step(decoder: Decoder, vector: Tensor | None, batch: Batch, bfloat16: bool) -> tuple[Tensor, Tensor]:
    """Return this rank's shares of the global nll per token and per sentence, nats; the second has no gradient."""
    with torch.autocast(batch.tokens.inputs.device.type, torch.bfloat16, enabled=bfloat16):
        nll = decoder.nll(batch.tokens, vector).sum()
    return nll / batch.num_targets, nll.detach() / batch.num_rows


class DecoderStage(Stage):
    """Trains a decoder on sentences. A family with vectors overrides `vector`; one with another loss overrides `step`."""

    name = "decoder"
    like_length = True
    term = "nll"
    """name of the loss in log keys: nll, or reconstruction_nll if the decoder sees the sentence's own vector"""

    def __init__(self, options: DecoderOptions, data: Dataset, model: TextModel, modules: dict[str, nn.Module],
                 bfloat16: bool, seed: int):
        """modules: the trained ones, by name, in the order of the optimiser's parameters."""
        self.num_validation, self.data, self.model = options.num_validation, data, model
        self.modules, self.bfloat16, self.seed = modules, bfloat16, seed
        self.num_steps, self.batch_size = options.decoder_steps, options.decoder_batch_size
        self.validate_every, self.counts_words = options.decoder_validate_every, options.word_start == "counts"
        self.optimizers = {"decoder": adamw(modules.values(), options.decoder_learning_rate)}

    def begin(self, progress: Progress) -> None:
        if self.counts_words:
            rows = self.data.corpus.tokens["train"].rows(self.data.sample_rows("train", MAX_COUNTED_ROWS))
            start_words(self.model.decoder, rows, self.seed)

    def vector(self, batch: Batch) -> Tensor | None:
        """Return the decoder's vectors [B, D] for a batch, or None for a decoder without a vector."""
        return None

    def step(self, step: int, batch: Batch, update: Update) -> dict[str, Tensor]:
        per_token, per_sentence = decoder_step(self.model.decoder, self.vector(batch), batch, self.bfloat16)
        norm = update("nll", self.optimizers["decoder"], per_token)
        return {f"train/{self.term}_per_token": per_token.detach(), f"train/{self.term}": per_sentence,
                "norm/decoder": norm}

    def validate(self) -> Validation:
        tokens, outlines, _ = held_out(self.data, "valid", self.num_validation)
        figures = nll_figures("valid", self.model, tokens, outlines, num_draws=0)
        return Validation(figures, figures[f"valid/{self.term}_per_token"])
