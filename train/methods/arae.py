"""ARAE, an adversarially regularised autoencoder: a step updates the critic, then the generator, then the autoencoder.

The encoder has two gradients: from the reconstruction loss and from the critic. Algorithm 1 of Zhao et al. (2018) makes one
step of plain gradient descent with each gradient. Here, one step uses the sum of both, because AdamW rescales gradients: two
separate steps would not preserve the ratio of the two gradients.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig
from outlines.encoders.recurrent import RecurrentEncoderConfig
from outlines.metrics.collapse import active_units, latent_gap, other_rows
from outlines.metrics.ngram import NgramModel
from outlines.metrics.outlines import knn_precision_recall
from outlines.models.arae import ARAE
from outlines.networks import losses
from outlines.networks.gan import Critic
from outlines.networks.mixture import fit_mixture
from outlines.options import option
from train.config import DecoderOptions, RunConfig
from train.data import Batch, Dataset
from train.evaluation.figures import held_out, nll_figures
from train.evaluation.judges import tokens_of
from train.method import Method, Update, Validation, adamw, draw_seed, frozen
from train.methods.decoder_stage import DecoderStage, decoder_config
from train.methods.gan_stage import update_critic

VALIDATION_SEED = 17
ANNEAL_EVERY = 100  # number of steps between two multiplications of the codes' noise by noise_anneal
MAX_GAUSSIAN_ROWS = 20_000  # maximum number of codes for the Gaussian baseline; about 50 per dimension of the default code


@dataclass(frozen=True)
class ARAEOptions(DecoderOptions):
    """Options of decoder, encoder, generator and critic."""

    group: ClassVar[str] = "ARAE"
    reads_words: ClassVar[bool] = True
    code_dim: int = option(384, "width of the learned code", low=1)
    encoder_hidden_dim: int = option(256, "width of each direction of the encoder's GRU", low=1)
    autoencoder_optimizer: str = option("adamw", "optimiser of encoder and decoder", ("adamw", "sgd"))
    noise_radius: float = option(0.05, "noise on codes (norm 1) in training: standard deviation per dimension", low=0)
    noise_anneal: float = option(0.9995, f"factor on the noise, applied every {ANNEAL_EVERY} steps, 0 to 1", low=0, high=1)
    noise_dim: int = option(384, "width of the generator's input", low=1)
    gan_hidden_dim: int = option(512, "width of the hidden layers of generator and critic", low=1)
    gan_num_layers: int = option(3, "hidden layers of generator and critic", low=1)
    gan_learning_rate: float = option(1e-3, "peak learning rate of Adam for generator and critic", low=0)
    gan_beta1: float = option(0.5, "first beta of Adam for generator and critic", low=0, high=0.9999)
    gan_beta2: float = option(0.999, "second beta of Adam for generator and critic", low=0, high=0.9999)
    critic_steps: int = option(5, "critic updates per step, each with new sentences and new noise", low=1)
    penalty_weight: float = option(1.0, "weight of the gradient penalty", low=0)
    encoder_share: float = option(0.1, "fraction of the critic's gradient that reaches the encoder; 0: only the "
                                       "reconstruction loss trains the encoder", low=0)

    def without_effect(self) -> dict[str, str]:
        return super().without_effect() | ({} if self.noise_radius else {"noise_anneal": "without --noise-radius"})

    def noise_radius_at(self, step: int) -> float:
        return self.noise_radius * self.noise_anneal ** (step // ANNEAL_EVERY)


class ARAEStage(DecoderStage):
    several_updates = True

    def __init__(self, options: ARAEOptions, data: Dataset, model: ARAE, bfloat16: bool, seed: int):
        super().__init__(options, data, model, bfloat16, seed, encoder=model.encoder, decoder=model.decoder)
        self.critic = Critic(options.code_dim, options.gan_hidden_dim, options.gan_num_layers).to(data.device)
        if options.autoencoder_optimizer == "sgd":
            rate, groups = options.decoder_learning_rate, self.optimizers["decoder"].param_groups
            self.optimizers["decoder"] = torch.optim.SGD([{"params": groups[0]["params"], "initial_lr": rate}], lr=rate)
        self.modules["generator"] = model.generator
        betas = (options.gan_beta1, options.gan_beta2)
        for name, module in (("generator", model.generator), ("critic", self.critic)):
            self.optimizers[name] = adamw([module], options.gan_learning_rate, betas, 0.0)
        # The sentences of a decoder batch have similar lengths. The critic needs random batches from the whole distribution.
        self.order = data.order(options.decoder_batch_size, False, seed)

    def step(self, step: int, batch: Batch, update: Update) -> dict[str, Tensor]:
        # One random number generator for all noise. It is seeded before dropout, so that all ranks draw the same noise.
        rng = torch.Generator().manual_seed(draw_seed())
        terms: dict[str, Tensor] = {}
        for codes, num_rows in self.real_codes(step, batch):
            terms |= self.critic_step(codes, num_rows, batch, rng, update)
        with frozen(self.critic):
            terms |= self.generator_step(batch, rng, update)
            terms |= self.autoencoder_step(batch, self.options.noise_radius_at(step), rng, update)
        return terms

    def _noise(self, num_rows: int, width: int, batch: Batch, rng: torch.Generator) -> Tensor:
        """Return this rank's rows of normal noise [num_rows, width] for a global batch."""
        return batch.own(torch.randn(num_rows, width, generator=rng)).to(self.data.device)

    def _generated(self, num_rows: int, batch: Batch, rng: torch.Generator) -> Tensor:
        return self.model.generate_codes(self._noise(num_rows, self.options.noise_dim, batch, rng))

    def real_codes(self, step: int, batch: Batch) -> list[tuple[Tensor, int]]:
        """Return for each critic update of a step this rank's codes [B, D], as constants, and the global number of rows."""
        rounds = self.options.critic_steps
        batches = [self.order.batch(index) for index in range(step * rounds, (step + 1) * rounds)]
        own = [batch.own(rows) for rows in batches]
        # Encode the rows of all updates together, sorted by length. This is a quarter faster.
        codes = self.model.codes(self.data.corpus.tokens["train"].rows(np.concatenate(own)))
        return [(part, len(rows)) for part, rows in zip(codes.split([len(rows) for rows in own]), batches, strict=True)]

    def critic_step(self, real: Tensor, num_rows: int, batch: Batch, rng: torch.Generator,
                    update: Update) -> dict[str, Tensor]:
        """Update the critic; return the terms for the log. real: codes [B, D], constants. num_rows: of the global batch."""
        with torch.no_grad():
            fake = self._generated(num_rows, batch, rng)
        share = batch.own(torch.rand(num_rows, 1, generator=rng)).to(real.device)
        real_scores, fake_scores = self.critic(real), self.critic(fake)
        adversarial = losses.wasserstein_loss(real_scores, fake_scores)
        penalties = losses.one_centred_penalty(losses.score_gradients(self.critic, torch.lerp(fake, real, share))[1])
        return update_critic(update, self.optimizers["critic"], self.options.penalty_weight, num_rows,
                             adversarial, penalties.sum() / num_rows, real_scores, fake_scores)

    def generator_step(self, batch: Batch, rng: torch.Generator, update: Update) -> dict[str, Tensor]:
        fake_scores = self.critic(self._generated(batch.num_rows, batch, rng))
        loss = losses.wasserstein_loss(fake_scores).sum() / batch.num_rows
        norm = update("generator loss", self.optimizers["generator"], loss)
        return {"train/generator_loss": loss.detach(), "norm/generator": norm}

    def autoencoder_step(self, batch: Batch, radius: float, rng: torch.Generator, update: Update) -> dict[str, Tensor]:
        loss, nll = self.autoencoder_loss(batch, radius, rng)
        norm = update("nll", self.optimizers["decoder"], loss)
        return self.nll_terms(batch, nll) | {"train/noise_radius": batch.share(radius), "norm/decoder": norm}

    def autoencoder_loss(self, batch: Batch, radius: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return this rank's share of the loss, and the summed nll of its sentences.

        The decoder reads codes with noise, the critic reads codes without noise.
        """
        codes = self.model.encoder(batch.tokens.inputs, batch.tokens.lengths)
        noised = codes + radius * self._noise(batch.num_rows, self.options.code_dim, batch, rng)
        nll = self.nll(batch, self.model.scaled(noised))
        # The critic is trained to raise its scores of real codes, the encoder to lower them.
        return nll / batch.num_targets + self.options.encoder_share * self.critic(codes).sum() / batch.num_rows, nll

    @torch.no_grad()
    def validate(self) -> Validation:
        tokens, _, _ = held_out(self.data, "valid", self.options.num_validation)
        rng = torch.Generator().manual_seed(VALIDATION_SEED)
        real, _ = self.model.posterior(tokens)
        gap = latent_gap(self.model.decoder, tokens, real, real[other_rows(len(real), 1, rng)[0]])
        sampling = SamplingConfig(max_len=self.data.corpus.meta["max_len"])
        blocks = list(self.model.generate(len(tokens), VALIDATION_SEED, sampling))
        samples = [ids for block, _ in blocks for ids in block]
        fake = torch.cat([vectors for _, vectors in blocks if vectors is not None])
        precision, recall = knn_precision_recall(real, fake)
        text = [sentence.replace("\0", " ") for sentence in self.data.tokenizer.decode(samples)]
        # The reverse NLL is low only if the samples are both good and diverse.
        nll, num_targets = NgramModel(tokens_of(text, self.data), self.data.tokenizer.vocab_size).nll_of_rows(tokens)
        reverse_nll = float(nll.sum() / num_targets.sum())
        return Validation({
            **nll_figures("valid", self.model, tokens, None, num_draws=0),
            "valid/active_units": float(active_units(real)), "valid/latent_gap_per_token": gap.per_token,
            "valid/precision": precision, "valid/recall": recall, "valid/reverse_ngram_nll_per_token": reverse_nll,
            "scores/held_out": float(self.critic(self.model.to_encoder(real)).mean()),
            "scores/generated": float(self.critic(self.model.to_encoder(fake)).mean())}, reverse_nll)

    def finish(self, directory: Path) -> None:
        """Fit the Gaussian baseline to the final codes."""
        rows = self.data.corpus.tokens["train"].rows(self.data.sample_rows("train", MAX_GAUSSIAN_ROWS, seed=self.seed))
        self.model.gaussian.start_at(fit_mixture(self.model.codes(rows), 1, self.seed))


class ARAEMethod(Method):
    family = "arae"
    config_class = ARAEOptions

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: Any = config.model
        generator = {"noise_dim": options.noise_dim, "hidden_dim": options.gan_hidden_dim,
                     "num_layers": options.gan_num_layers}
        encoder = RecurrentEncoderConfig(data.tokenizer.vocab_size, options.embed_dim, options.encoder_hidden_dim,
                                         options.code_dim, dropout=0.0)
        self.model = ARAE(encoder, generator, decoder_config(options, data, options.code_dim)).to(data.device)
        stage = ARAEStage(options, data, self.model, bfloat16, config.training.seed)
        self.assemble(stage, critic=stage.critic)
