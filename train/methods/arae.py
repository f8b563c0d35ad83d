"""ARAE: autoencoder, critic and generator, trained together on one corpus.

A step of the one stage has three phases:

    critic       several rounds of WGAN-GP between real codes and generated ones, each on sentences drawn anew
    generator    towards the critic's higher scores
    autoencoder  nll of each sentence given its noised code, and the critic's score of the code itself, which the encoder
                 is to lower: a share of that gradient reaches the encoder, none of it the decoder

Zhao et al. (2018), algorithm 1, takes the encoder's two gradients in two steps of plain gradient descent, which is their
sum but for what the first step changes; an optimiser that rescales gradients, as AdamW does, needs the sum to keep the
share. The paper's code picks its weights by reverse perplexity of the *test* split; here it is the validation split's.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from outlines.decoding.sample import SamplingConfig
from outlines.metrics.collapse import active_units, latent_gap, other_rows
from outlines.metrics.ngram import NgramModel
from outlines.metrics.outlines import knn_precision_recall
from outlines.models.arae import ARAE, CodeGeneratorConfig
from outlines.networks.gan import Critic, fit_mixture
from outlines.networks.losses import (
    one_centred_penalty,
    score_gradients,
    wasserstein_critic_loss,
    wasserstein_generator_loss,
)
from outlines.options import option
from train.config import RunConfig
from train.data import Batch, Dataset
from train.evaluation.figures import held_out, nll_figures
from train.evaluation.judges import tokens_of
from train.method import Method, Stage, Update, adamw
from train.methods.lm import DecoderOptions, LanguageModelMethod, decoder_config, decoder_stage, decoder_step
from train.runtime.ranks import Ranks

VALIDATION_SEED = 17
ANNEAL_EVERY = 100
"""Steps after which the noise on the codes shrinks by one factor."""
MAX_GAUSSIAN_ROWS = 20_000
"""Codes, at most, that the control is fitted to: some fifty for each of a code's dimensions, in seconds."""


@dataclass(frozen=True)
class ARAEOptions(DecoderOptions):
    """The decoder's options, the encoder's, and those of generator and critic."""

    code_dim: int = option(384, "width of the learned code", low=1)
    encoder_hidden_dim: int = option(256, "width of each direction of the encoder's GRU", low=1)
    autoencoder_optimizer: str = option("adamw", "what steps encoder and decoder, at --decoder-learning-rate",
                                        ("adamw", "sgd"))
    noise_radius: float = option(0.05, "standard deviation, a dimension, of the noise on a code of unit norm in training",
                                 low=0)
    noise_anneal: float = option(0.9995, f"factor, 0 to 1, that the noise shrinks by every {ANNEAL_EVERY} steps", low=0,
                                 high=1)
    noise_dim: int = option(384, "width of the generator's input", low=1)
    gan_hidden_dim: int = option(512, "width of the generator's and the critic's layers", low=1)
    gan_num_layers: int = option(3, "hidden layers of the generator and of the critic", low=1)
    gan_learning_rate: float = option(1e-3, "Adam's peak rate for generator and critic", low=0)
    gan_beta1: float = option(0.5, "Adam's first beta for generator and critic", low=0, high=0.9999)
    gan_beta2: float = option(0.999, "Adam's second beta for generator and critic", low=0, high=0.9999)
    critic_steps: int = option(5, "critic steps a step of generator and autoencoder, each on sentences and noise of its own",
                               low=1)
    penalty_weight: float = option(1.0, "weight of the gradient penalty, for codes of unit norm", low=0)
    encoder_share: float = option(0.1, "share of the critic's gradient that reaches the encoder; 0 leaves a plain "
                                       "autoencoder, with a GAN beside it that it does not feel", low=0)

    def without_effect(self) -> dict[str, str]:
        return {} if self.noise_radius else {"noise_anneal": "without --noise-radius"}

    def noise_radius_at(self, step: int) -> float:
        """The noise on the codes at a step of the stage."""
        return self.noise_radius * self.noise_anneal ** (step // ANNEAL_EVERY)


class Progress(nn.Module):
    """What training remembers, in a buffer, so that a checkpoint holds it."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(0))


class ARAEMethod(Method):
    family = "arae"
    config_class = ARAEOptions
    # `arae` differs from `outlines` in where the code comes from: decoder, tokenizer, sizes and budget are the same.
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **LanguageModelMethod.presets,
        "tiny": {**LanguageModelMethod.presets["tiny"], "code_dim": 16, "encoder_hidden_dim": 16, "noise_dim": 16,
                 "gan_hidden_dim": 16, "gan_num_layers": 2},
        "full": {**LanguageModelMethod.presets["full"], "encoder_hidden_dim": 1024, "gan_hidden_dim": 2048,
                 "gan_num_layers": 4, "gan_learning_rate": 1e-4},
        "arae": {},
        # What the authors published for SNLI (their code's lang/run_snli.py), for sentences of at most 15 words, which the
        # corpus has to hold: a longer one is cut here. Theirs are 11,000 words, ours as many SentencePiece pieces; see
        # outlines/models/arae.py for the networks. Rates stay what they are, without warm-up or decay.
        "arae-snli": {"vocab_size": 11000, "lowercase": True, "max_len": 15, "embed_dim": 300, "hidden_dim": 300,
                      "num_layers": 1, "dropout": 0.0, "encoder_hidden_dim": 300, "code_dim": 300, "noise_radius": 0.05,
                      "noise_anneal": 0.9995, "noise_dim": 100, "gan_hidden_dim": 300, "gan_num_layers": 2,
                      "penalty_weight": 1.0, "encoder_share": 0.1, "critic_steps": 5, "gan_learning_rate": 1e-4,
                      "gan_beta1": 0.5, "gan_beta2": 0.999, "autoencoder_optimizer": "sgd", "decoder_learning_rate": 1.0,
                      "decoder_batch_size": 64, "clip_norm": 1.0, "warmup_steps": 0, "min_learning_rate": 1.0},
    }
    model: ARAE

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: ARAEOptions = config.model
        self.options, self.data, self.bfloat16, self.seed = options, data, bfloat16, config.training.seed
        generator = CodeGeneratorConfig(options.noise_dim, options.gan_hidden_dim, options.gan_num_layers)
        self.model = ARAE(options.encoder_hidden_dim, generator,
                          decoder_config(options, data, options.code_dim)).to(data.device)
        self.critic = Critic(options.code_dim, options.gan_hidden_dim, options.gan_num_layers).to(data.device)
        self.progress = Progress()
        self.modules = {"encoder": self.model.encoder, "decoder": self.model.decoder, "generator": self.model.generator,
                        "critic": self.critic, "progress": self.progress}
        betas = (options.gan_beta1, options.gan_beta2)
        self.optimizers = {
            "decoder": self._autoencoder_optimizer(),
            "generator": adamw([self.model.generator], options.gan_learning_rate, betas, 0.0),
            "critic": adamw([self.critic], options.gan_learning_rate, betas, 0.0)}
        self.stages = (dataclasses.replace(
            decoder_stage(options, "valid/reverse_ngram_nll_per_token"), optimizers=("decoder", "generator", "critic"),
            modules=("encoder", "decoder", "generator")),)
        # Like lengths suit the decoder; the critic must see the whole distribution in every batch.
        self.order = data.order(options.decoder_batch_size, False, config.training.seed)

    def _autoencoder_optimizer(self) -> Optimizer:
        modules, rate = [self.model.encoder, self.model.decoder], self.options.decoder_learning_rate
        if self.options.autoencoder_optimizer == "adamw":
            return adamw(modules, rate, (0.9, 0.99), 0.01)
        parameters = [parameter for module in modules for parameter in module.parameters()]
        return torch.optim.SGD([{"params": parameters, "initial_lr": rate}], lr=rate)

    def step(self, stage: Stage, batch: Batch, update: Update) -> dict[str, Tensor]:
        # One generator for all noise, seeded before anything else is drawn, so that ranks agree whatever dropout draws.
        rng, step = torch.Generator().manual_seed(int(torch.randint(2**62, ()))), int(self.progress.step)
        terms: dict[str, Tensor] = {}
        for codes, num_rows in self._real_codes(step, batch.ranks):
            terms |= self._critic_step(codes, num_rows, batch.ranks, rng, update)
        self.critic.requires_grad_(False)  # From here on it passes gradients on and keeps none.
        try:
            terms |= self._generator_step(batch, rng, update)
            terms |= self._autoencoder_step(batch, self.options.noise_radius_at(step), rng, update)
        finally:
            self.critic.requires_grad_(True)
        self.progress.step += 1
        return terms

    def _noise(self, num_rows: int, width: int, ranks: Ranks, rng: torch.Generator) -> Tensor:
        """This rank's normal noise [B, width]; it is drawn for the global batch, so that ranks agree."""
        return torch.randn(num_rows, width, generator=rng)[ranks.rank::ranks.world].to(self.data.device)

    def _generated(self, num_rows: int, ranks: Ranks, rng: torch.Generator) -> Tensor:
        """This rank's generated codes [B, D]."""
        return self.model.generate_codes(self._noise(num_rows, self.options.noise_dim, ranks, rng))

    def _real_codes(self, step: int, ranks: Ranks) -> list[tuple[Tensor, int]]:
        """For each of a step's critic rounds this rank's codes [B, D], constants, and the rows of the global batch."""
        rounds = self.options.critic_steps
        batches = [self.order.batch(index) for index in range(step * rounds, (step + 1) * rounds)]
        own = [rows[ranks.rank::ranks.world] for rows in batches]
        # Encoded together, for then lengths that are alike can be, which saves a quarter of the time.
        codes = self.model.codes(self.data.corpus.tokens["train"].rows(np.concatenate(own)))
        return [(part, len(rows)) for part, rows in zip(codes.split([len(rows) for rows in own]), batches, strict=True)]

    def _critic_step(self, real: Tensor, num_rows: int, ranks: Ranks, rng: torch.Generator,
                     update: Update) -> dict[str, Tensor]:
        """The critic's phase: real and generated codes are constants in it."""
        with torch.no_grad():
            fake = self._generated(num_rows, ranks, rng)
        share = torch.rand(num_rows, 1, generator=rng)[ranks.rank::ranks.world].to(real.device)
        real_scores, fake_scores = self.critic(real), self.critic(fake)
        adversarial = wasserstein_critic_loss(real_scores, fake_scores)
        _, gradients = score_gradients(self.critic, torch.lerp(fake, real, share))
        penalty = one_centred_penalty(gradients)
        loss = (adversarial + self.options.penalty_weight * penalty).sum() / num_rows
        norm = update("critic loss", self.optimizers["critic"], loss)
        means = {"train/critic_loss": adversarial, "train/gradient_penalty": penalty, "scores/real": real_scores,
                 "scores/fake": fake_scores}
        return {key: values.detach().sum() / num_rows for key, values in means.items()} | {"norm/critic": norm}

    def _generator_step(self, batch: Batch, rng: torch.Generator, update: Update) -> dict[str, Tensor]:
        fake_scores = self.critic(self._generated(batch.num_rows, batch.ranks, rng))
        loss = wasserstein_generator_loss(fake_scores, fake_scores).sum() / batch.num_rows
        norm = update("generator loss", self.optimizers["generator"], loss)
        return {"train/generator_loss": loss.detach(), "norm/generator": norm}

    def _autoencoder_step(self, batch: Batch, radius: float, rng: torch.Generator, update: Update) -> dict[str, Tensor]:
        loss, per_token, per_sentence = self._autoencoder_loss(batch, radius, rng)
        norm = update("nll", self.optimizers["decoder"], loss)
        return {"train/reconstruction_nll_per_token": per_token.detach(), "train/reconstruction_nll": per_sentence,
                "train/noise_radius": torch.tensor(radius / batch.ranks.world, device=norm.device), "norm/decoder": norm}

    def _autoencoder_loss(self, batch: Batch, radius: float, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and in it the nll a token; the nll a sentence: this rank's shares of the global means.

        The decoder reads noised codes, the critic the codes themselves.
        """
        codes = self.model.encode(batch.tokens.inputs, batch.tokens.lengths)
        noised = codes + radius * self._noise(batch.num_rows, self.options.code_dim, batch.ranks, rng)
        per_token, per_sentence = decoder_step(self.model.decoder, self.model.scaled(noised), batch, self.bfloat16)
        # The critic's loss is fake scores less real ones; what it lowers, the encoder raises.
        adversarial = self.critic(codes).sum() / batch.num_rows
        return per_token + self.options.encoder_share * adversarial, per_token, per_sentence

    @torch.no_grad()
    def validate(self, stage: Stage) -> dict[str, float]:
        tokens, _, _ = held_out(self.data, "valid", self.options.num_validation)
        rng = torch.Generator().manual_seed(VALIDATION_SEED)
        real, _ = self.model.posterior(tokens)
        gap = latent_gap(self.model.decoder, tokens, real, real[other_rows(len(real), 1, rng)[0]])
        sampling = SamplingConfig(max_len=self.data.corpus.meta["max_len"])
        blocks = list(self.model.generate(len(tokens), VALIDATION_SEED, sampling))
        samples = [ids for block, _ in blocks for ids in block]
        fake = torch.cat([vectors for _, vectors in blocks if vectors is not None])
        precision, recall = knn_precision_recall(real, fake)
        return {**nll_figures("valid", self.model, tokens, None, num_draws=0),
                "valid/active_units": float(active_units(real)), "valid/latent_gap_per_token": gap.per_token,
                "valid/precision": precision, "valid/recall": recall,
                "valid/reverse_ngram_nll_per_token": self._reverse_nll(samples, tokens),
                "scores/held_out": float(self.critic(self.model.to_encoder(real)).mean()),
                "scores/generated": float(self.critic(self.model.to_encoder(fake)).mean())}

    def _reverse_nll(self, samples: list[list[int]], tokens: list[Any]) -> float:
        """nll of held-out sentences by a 5-gram model of as many samples: low only where these are good and diverse."""
        text = [sentence.replace("\0", " ") for sentence in self.data.tokenizer.decode(samples)]
        nll, num_targets = NgramModel(tokens_of(text, self.data), self.data.tokenizer.vocab_size).nll_of_rows(tokens)
        return float(nll.sum() / num_targets.sum())

    def finish(self, directory: Path) -> None:
        """Fit the control to the codes as they are at the end."""
        rows = self.data.corpus.tokens["train"].rows(self.data.sample_rows("train", MAX_GAUSSIAN_ROWS, seed=self.seed))
        self.model.gaussian.start_at(fit_mixture(self.model.codes(rows), 1, self.seed))
        super().finish(directory)
