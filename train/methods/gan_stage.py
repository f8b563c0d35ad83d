"""Adversarial training of a generator against a critic, with the loss of R3 or of WGAN-GP."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from outlines.networks import losses
from outlines.networks.flow import VelocityField
from outlines.networks.gan import update_ema
from outlines.options import option
from train.data import Batch, Dataset
from train.method import Stage, Update, Validation, adamw, draw_seed, frozen
from train.runtime.progress import Progress


@dataclass(frozen=True)
class GanOptions:
    """Options of the generator, the critic and their training. With flow-gan, FlowOptions set the generator's sizes."""

    group: ClassVar[str] = "GAN"
    objective: str = option("r3", "adversarial loss", ("r3", "wgan-gp"))
    gan_hidden_dim: int = option(512, "width of the hidden layers of generator and critic", low=1, flag=False)
    gan_num_layers: int = option(3, "hidden layers of generator and critic", low=1, flag=False)
    gan_steps: int = option(1000, "number of generator updates", low=1)
    gan_batch_size: int = option(512, "outlines per generator update", low=2)
    gan_learning_rate: float = option(1e-3, "peak learning rate of Adam for generator and critic; with flow-gan, the "
                                      "generator uses a tenth of this rate", low=0)
    gan_beta2: float = option(0.99, "second beta of Adam for generator and critic; the first is 0", low=0, high=0.9999,
                              flag=False)
    critic_steps: int = option(1, "critic updates per generator update, each with new noise but the same real batch", low=1)
    penalty_weight: float = option(2.0, "weight of the gradient penalty: gamma of r3, lambda of wgan-gp", low=0)
    penalty_share: float = option(1.0, "fraction of each batch used for the gradient penalty, above 0 and at most 1",
                                  low=1e-3, high=1)
    ema_decay: float = option(0.995, "decay per step of the saved generator, a moving average", low=0, high=0.99999,
                              flag=False)
    gan_patience: int = option(10, "early stopping: validations without improvement; 0 never stops early", low=0, flag=False)
    gan_validate_every: int = option(200, "generator updates between two validations", low=1, flag=False)


class Game(ABC):
    """The part of generator training that a family defines: fit the start, generate and score outlines, validate."""

    def __init__(self, options: Any, data: Dataset, model: Any, seed: int, bfloat16: bool):
        """model: the generator of this model is saved. It is a moving average of the generator that a stage trains."""
        self.options, self.data, self.model, self.seed, self.bfloat16 = options, data, model, seed, bfloat16
        self.generator, self.critic = model.generator, model.critic

    def autocast(self) -> torch.autocast:
        """Return the context of forward passes. Inside it, matrix products use bfloat16 if `self.bfloat16` is True."""
        return torch.autocast(self.data.device.type, torch.bfloat16, enabled=self.bfloat16)

    @abstractmethod
    def begin(self, progress: Progress) -> None:
        """Fit the baselines, and the distribution at which the generator starts."""

    def real(self, batch: Batch) -> Batch:
        """Return a batch of the same size as `batch`, with the real outlines of this step."""
        return batch

    @abstractmethod
    def fake(self, generator: Any, batch: Batch, rng: torch.Generator) -> Tensor:
        """Return this rank's generated outlines [B, D]. rng: draws the noise of the global batch."""

    @abstractmethod
    def path(self, generator: Any, batch: Any, normal: Tensor) -> tuple[Tensor, VelocityField]:
        """Return, for flow matching, where the paths to real outlines begin [B, D], and the velocity that is trained.

        normal: [B, D], standard normal noise.
        """

    def scorer(self, batch: Batch, rows: slice = slice(None)) -> Callable[[Tensor], Tensor]:
        """Return the critic as a function from outlines [B, D] to scores [B]. rows: rows of `batch` for which it is used."""
        return self.critic

    @abstractmethod
    def validate(self) -> Validation: ...

    def finish(self) -> None:
        """Complete the model when training has ended."""
        return


def update_critic(update: Update, optimizer: Optimizer, penalty_weight: float, num_rows: int, adversarial: Tensor,
                  penalty: Tensor, real_scores: Tensor, fake_scores: Tensor) -> dict[str, Tensor]:
    """Update a critic and return the terms for the log.

    penalty: this rank's share of the mean gradient penalty. adversarial, real_scores, fake_scores: [B], this rank's rows.
    """
    means = {"train/critic_loss": adversarial.sum() / num_rows, "train/gradient_penalty": penalty,
             "scores/real": real_scores.sum() / num_rows, "scores/fake": fake_scores.sum() / num_rows}
    norm = update("critic loss", optimizer, means["train/critic_loss"] + penalty_weight * penalty)
    return {key: value.detach() for key, value in means.items()} | {"norm/critic": norm}


class FitStage(Stage):
    """The stage of a generator that is fitted, not trained: `begin` fits it, and the single step does nothing."""

    name, num_steps, batch_size, validate_every = "fit", 1, 1, 1

    def __init__(self, game: Game):
        self.game, self.options = game, game.options
        self.modules, self.optimizers = {"ema": game.generator}, {}

    def begin(self, progress: Progress) -> None:
        self.game.begin(progress)

    def step(self, step: int, batch: Batch, update: Update) -> dict[str, Tensor]:
        return {}

    def validate(self) -> Validation:
        return self.game.validate()

    def finish(self, directory: Path) -> None:
        self.game.finish()


class GanStage(FitStage):
    """Trains generator and critic in turn, and keeps a moving average of the generator."""

    name, batch_flag = "gan", "--gan-batch-size"
    several_updates = True
    passes = 3

    def __init__(self, game: Game):
        super().__init__(game)
        options, self.critic = self.options, game.critic
        self.generator = copy.deepcopy(game.generator)
        self.modules = {"generator": self.generator, "ema": game.generator, "critic": self.critic}
        self.num_steps, self.batch_size = options.gan_steps, options.gan_batch_size
        self.validate_every, self.patience = options.gan_validate_every, options.gan_patience
        self.optimizers = {name: adamw([self.modules[name]], options.gan_learning_rate, (0.0, options.gan_beta2), 0.0)
                           for name in ("generator", "critic")}

    def begin(self, progress: Progress) -> None:
        super().begin(progress)
        self.continue_from_saved()

    def continue_from_saved(self) -> None:
        """Start the trained generator at the saved one."""
        self.generator.load_state_dict(self.game.generator.state_dict())

    def step(self, step: int, batch: Batch, update: Update) -> dict[str, Tensor]:
        batch = self.game.real(batch)
        terms: dict[str, Tensor] = {}
        for _ in range(self.options.critic_steps):
            terms |= self.critic_step(batch, update)
        terms |= self.generator_step(batch, update)
        update_ema(self.game.generator, self.generator, self.options.ema_decay)
        return terms

    def fake(self, batch: Batch) -> Tensor:
        """Return this rank's generated outlines [B, D]. The noise has a seed from torch's global random number generator."""
        # With a GPU, draw the noise on the GPU. Drawing it on the CPU would double the time of a step.
        device = self.game.data.device if self.game.data.device.type == "cuda" else "cpu"
        return self.game.fake(self.generator, batch, torch.Generator(device).manual_seed(draw_seed()))

    def critic_step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        """Update the critic and return the terms for the log. Generated outlines are constants."""
        assert batch.outlines is not None
        real, options = batch.outlines, self.options
        # The penalty uses the first rows of the global batch, so that it does not depend on the number of ranks.
        num_penalised = math.ceil(options.penalty_share * batch.num_rows)
        own = len(batch.own(range(num_penalised)))
        with self.game.autocast():
            with torch.no_grad():
                fake = self.fake(batch)
            penalised, others = (self.game.scorer(batch, rows) for rows in (slice(own), slice(own, None)))
            if options.objective == "r3":
                real_scores, real_gradients = losses.score_gradients(penalised, real[:own])
                fake_scores, fake_gradients = losses.score_gradients(penalised, fake[:own])
                if own < len(real):
                    real_scores = torch.cat([real_scores, others(real[own:])])
                    fake_scores = torch.cat([fake_scores, others(fake[own:])])
                adversarial = losses.relativistic_loss(real_scores, fake_scores)
                penalties = losses.zero_centred_penalty(real_gradients) + losses.zero_centred_penalty(fake_gradients)
            else:
                critic = self.game.scorer(batch)
                real_scores, fake_scores = critic(real), critic(fake)
                adversarial = losses.wasserstein_loss(real_scores, fake_scores)
                share = batch.own(torch.rand(batch.num_rows, 1)).to(real.device)
                between = torch.lerp(fake, real, share)[:own]
                penalties = losses.one_centred_penalty(losses.score_gradients(penalised, between)[1])
        return update_critic(update, self.optimizers["critic"], options.penalty_weight, batch.num_rows, adversarial,
                             penalties.sum() / num_penalised, real_scores, fake_scores)

    def generator_step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        """Update the generator; return the terms for the log. Gradients pass through the critic, which does not change."""
        assert batch.outlines is not None
        with frozen(self.critic):
            with self.game.autocast():
                critic = self.game.scorer(batch)
                fake_scores = critic(self.fake(batch))
                if self.options.objective == "r3":
                    adversarial = losses.relativistic_loss(fake_scores, critic(batch.outlines))
                else:
                    adversarial = losses.wasserstein_loss(fake_scores)
            terms = {"train/generator_loss": adversarial.sum() / batch.num_rows, **self.further_terms(batch)}
            norm = update("generator loss", self.optimizers["generator"], torch.stack(list(terms.values())).sum())
        return {**{key: value.detach() for key, value in terms.items()}, "norm/generator": norm}

    def further_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return terms to add to the generator's adversarial loss, by log key: this rank's share of each global mean."""
        return {}
