"""The recurrent encoder, trained as a denoising autoencoder: rebuild a sentence from the outline of a noisy copy.

The finished run holds `encoder/`, to be used as `--encoder recurrent:RUN/encoder`.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from outlines.encoders.recurrent import RecurrentEncoderConfig, corrupt, save_recurrent_encoder
from outlines.models.autoencoder import Autoencoder
from outlines.options import option
from train.config import RunConfig
from train.data import Batch, Dataset
from train.evaluation.figures import held_out, nll_figures
from train.method import Method, Stage, Update, adamw
from train.methods.lm import DecoderOptions, LanguageModelMethod, decoder_config, decoder_stage, decoder_step


@dataclass(frozen=True)
class EncoderOptions(DecoderOptions):
    """The decoder's options, which teach, and the encoder's."""

    encoder_hidden_dim: int = option(384, "width of each direction of the encoder's GRU", low=1)
    outline_dim: int = option(384, "width of the outlines", low=1)
    drop: float = option(0.1, "share of an input's tokens that are dropped, 0 to 1", low=0, high=0.9)
    shuffle_distance: int = option(3, "tokens that an input's token may move from its place", low=0)


class EncoderMethod(Method):
    family = "encoder"
    config_class = EncoderOptions
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **LanguageModelMethod.presets,
        "tiny": {**LanguageModelMethod.presets["tiny"], "encoder_hidden_dim": 16, "outline_dim": 16},
        "full": {**LanguageModelMethod.presets["full"], "encoder_hidden_dim": 1024, "outline_dim": 1024},
    }
    model: Autoencoder

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: EncoderOptions = config.model
        self.data, self.bfloat16, self.options = data, bfloat16, options
        encoder = RecurrentEncoderConfig(data.tokenizer.vocab_size, options.embed_dim, options.encoder_hidden_dim,
                                         options.outline_dim, options.dropout)
        self.model = Autoencoder(encoder, decoder_config(options, data, options.outline_dim)).to(data.device)
        self.modules = {"encoder": self.model.encoder, "decoder": self.model.decoder}
        self.optimizers = {"decoder": adamw([self.model], options.decoder_learning_rate, (0.9, 0.99), 0.01)}
        self.stages = (dataclasses.replace(decoder_stage(options, "valid/reconstruction_nll_per_token"),
                                           modules=("encoder", "decoder")),)

    def step(self, stage: Stage, batch: Batch, update: Update) -> dict[str, Tensor]:
        noise = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        noisy, lengths = corrupt(batch.tokens.inputs, batch.tokens.lengths, self.options.drop,
                                 self.options.shuffle_distance, noise)
        vector = self.model.encode(noisy, lengths)
        per_token, per_sentence = decoder_step(self.model.decoder, vector, batch, self.bfloat16)
        norm = update("nll", self.optimizers["decoder"], per_token)
        return {"train/reconstruction_nll_per_token": per_token.detach(), "train/reconstruction_nll": per_sentence,
                "norm/decoder": norm}

    def validate(self, stage: Stage) -> dict[str, float]:
        tokens, outlines, _ = held_out(self.data, "valid", self.options.num_validation)
        return nll_figures("valid", self.model, tokens, outlines, num_draws=0)

    def finish(self, directory: Path) -> None:
        save_recurrent_encoder(directory / "encoder", self.model.encoder, directory / "tokenizer.model")
        super().finish(directory)
