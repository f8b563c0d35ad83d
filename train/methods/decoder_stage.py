"""Maximum-likelihood training of a decoder. Every family has this stage or a subclass of it."""

import dataclasses
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from outlines.errors import OutlinesError
from outlines.metrics.collapse import signal_noise
from outlines.models.base import TextModel
from outlines.models.registry import load_model
from outlines.networks.decoder import DecoderConfig, decoder_class
from outlines.networks.embedding_init import MAX_COUNTED_ROWS, start_words
from outlines.pretrained import run_path
from train.config import DecoderOptions
from train.data import Batch, Dataset
from train.evaluation.figures import held_out, nll_figures
from train.evaluation.pictures import signal_noise_picture
from train.method import Stage, Update, Validation, adamw
from train.runtime.progress import Progress

PATIENCE = 3  # number of validations without improvement after which the training of a decoder from --init-from ends


def decoder_config(options: DecoderOptions, data: Dataset, vector_dim: int, **settings: Any) -> DecoderConfig:
    """Return the decoder's configuration: the options that this kind of decoder has, and the family's `settings`.

    Raises OutlinesError if this kind of decoder does not have one of the settings.
    """
    kind = decoder_class(options.decoder)
    config_class = kind.config_class
    known = {field.name for field in dataclasses.fields(config_class)}
    for name in settings.keys() - known:
        raise OutlinesError(f"Decoder {options.decoder!r} has no option {name!r}. Choose another --decoder.")
    shape = {name: value for name, value in vars(options).items() if name in known and (name, value) != ("num_layers", 0)}
    given = kind.settings(options.decoder, data.tokenizer) | settings
    return config_class(data.tokenizer.vocab_size, vector_dim, **shape | given)


class DecoderStage(Stage):
    """Trains a decoder on sentences. Families with vectors override `vector`; families with another loss override `step`."""

    name = "decoder"
    like_length = True

    def __init__(self, options: Any, data: Dataset, model: Any, bfloat16: bool, seed: int, /, **modules: nn.Module):
        """modules: the trained modules, in the order of the optimiser's parameters."""
        self.options, self.data, self.model, self.bfloat16, self.seed = options, data, model, bfloat16, seed
        self.modules = modules
        self.term = "reconstruction_nll" if model.decoder.config.vector_dim else "nll"  # name of the loss in log keys
        self.num_steps, self.batch_size = options.decoder_steps, options.decoder_batch_size
        self.validate_every = options.decoder_validate_every
        self.optimizers = {"decoder": adamw(modules.values(), options.decoder_learning_rate)}
        self.validates_start, self.patience = bool(options.init_from), PATIENCE if options.init_from else 0

    def begin(self, progress: Progress) -> None:
        if self.options.init_from:
            self.copy_weights(load_model(run_path(self.options.init_from) / "model"))
        elif self.options.word_start == "counts" and not self.model.decoder.pretrained:
            rows = self.data.corpus.tokens["train"].rows(self.data.sample_rows("train", MAX_COUNTED_ROWS))
            start_words(self.model.decoder, rows, self.seed)

    def copy_weights(self, found: TextModel) -> None:
        """Copy the weights of another run's decoder that have the same name and shape. found: the other run's model."""
        own, theirs = self.model.decoder.state_dict(), found.decoder.state_dict()
        self.model.decoder.load_state_dict({name: theirs[name] if name in theirs and theirs[name].shape == own[name].shape
                                            else own[name] for name in own})

    def vector(self, batch: Batch) -> Tensor | None:
        """Return the vectors [B, D] that the decoder reads for a batch; None for a decoder without a vector."""
        return None

    def nll(self, batch: Batch, vector: Tensor | None) -> Tensor:
        """Return the summed nll of this rank's part of the batch, nats."""
        with torch.autocast(batch.tokens.inputs.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.model.decoder.nll(batch.tokens, vector).sum()

    def step(self, step: int, batch: Batch, update: Update) -> dict[str, Tensor]:
        nll = self.nll(batch, self.vector(batch))
        norm = update("nll", self.optimizers["decoder"], nll / batch.num_targets)
        return self.nll_terms(batch, nll) | {"norm/decoder": norm}

    def nll_terms(self, batch: Batch, nll: Tensor) -> dict[str, Tensor]:
        """Return the terms for the log. nll: the sum that the method `nll` returned."""
        return {f"train/{self.term}_per_token": nll.detach() / batch.num_targets,
                f"train/{self.term}": nll.detach() / batch.num_rows}

    def validate(self) -> Validation:
        tokens, outlines, _ = held_out(self.data, "valid", self.options.num_validation)
        figures = nll_figures("valid", self.model, tokens, outlines, num_draws=0)
        return Validation(figures, figures[f"valid/{self.term}_per_token"])


class LatentStage(DecoderStage):
    """Base class of stages that train a model with a latent on the ELBO, a lower bound of log p(x)."""

    def validation_rows(self) -> list[np.ndarray]:
        return held_out(self.data, "valid", self.options.num_validation)[0]

    def elbo_terms(self, batch: Batch, nll: Tensor, kl: Tensor, kl_weight: float) -> dict[str, Tensor]:
        """Return the terms for the log. nll, kl: this rank's sums over sentences."""
        return {**self.nll_terms(batch, nll), "train/kl": kl / batch.num_rows, "train/kl_weight": batch.share(kl_weight),
                "train/negative_elbo_per_token": (nll + kl) / batch.num_targets}

    def validation(self, figures: dict[str, float], mu: Tensor, logvar: Tensor, **pictures: Figure) -> Validation:
        """Return a Validation whose criterion is the negative ELBO per token. mu, logvar: posteriors [N, Z]."""
        strength = signal_noise(mu, logvar)
        pictures["signal_noise"] = signal_noise_picture(strength.signal.tolist(), strength.noise.tolist())
        return Validation(figures, figures["valid/negative_elbo_per_token"],
                          histograms={"posterior/mu": mu, "posterior/sigma": (logvar / 2).exp()},
                          pictures={f"posterior/{name}": picture for name, picture in pictures.items()})
