"""The recurrent encoder, trained as a denoising autoencoder: reconstruct a sentence from the outline of a noisy copy.

A finished run contains the directory `encoder/`. Other runs use it with `--encoder recurrent:RUN/encoder`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from outlines.encoders.recurrent import RecurrentEncoderConfig, corrupt, save_recurrent_encoder
from outlines.models.autoencoder import Autoencoder
from outlines.options import option
from train.config import DecoderOptions, RunConfig
from train.data import Batch, Dataset
from train.method import Method, draw_seed
from train.methods.decoder_stage import DecoderStage, decoder_config


@dataclass(frozen=True)
class EncoderOptions(DecoderOptions):
    """Options of the encoder and of the decoder that is trained with it."""

    group: ClassVar[str] = "encoder"
    reads_words: ClassVar[bool] = True
    encoder_hidden_dim: int = option(384, "width of each direction of the encoder's GRU", low=1)
    outline_dim: int = option(384, "width of the outlines", low=1)
    drop: float = option(0.1, "probability of dropping an input token, 0 to 1", low=0, high=0.9)
    shuffle_distance: int = option(3, "shuffle input tokens: each moves by at most this number of places", low=0)


class EncoderStage(DecoderStage):
    def vector(self, batch: Batch) -> Tensor:
        noise = torch.Generator().manual_seed(draw_seed())
        noisy = corrupt(batch.tokens.inputs, batch.tokens.lengths, self.options.drop, self.options.shuffle_distance, noise,
                        self.data.tokenizer.special)
        return self.model.scaled(self.model.encoder(*noisy))

    def finish(self, directory: Path) -> None:
        save_recurrent_encoder(directory / "encoder", self.model.encoder, directory / "tokenizer.model")


class EncoderMethod(Method):
    family = "encoder"
    config_class = EncoderOptions

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: Any = config.model
        encoder = RecurrentEncoderConfig(data.tokenizer.vocab_size, options.embed_dim, options.encoder_hidden_dim,
                                         options.outline_dim, options.dropout)
        self.model = model = Autoencoder(encoder, decoder_config(options, data, options.outline_dim)).to(data.device)
        self.assemble(EncoderStage(options, data, model, bfloat16, config.training.seed, encoder=model.encoder,
                                   decoder=model.decoder))
