"""Flow matching: trains a flow (networks/flow.py, networks/conditional.py) without a critic, or as the start of a GAN."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from outlines.networks.flow import flow_matching_loss
from outlines.networks.gan import update_ema
from outlines.options import option
from train.data import Batch
from train.method import Update, adamw
from train.methods.gan_stage import FitStage, Game, GanStage
from train.runtime.progress import Progress

GENERATOR_RATE = 0.1  # learning rate of a GAN's generator that starts as a flow, divided by the critic's learning rate


@dataclass(frozen=True)
class FlowOptions:
    """Options of a flow and its training."""

    group: ClassVar[str] = "flow"
    flow_steps: int = option(2000, "updates of the flow", low=1, flag=False)
    flow_batch_size: int = option(256, "outlines per update of the flow", low=2, flag=False)
    flow_learning_rate: float = option(2e-3, "peak learning rate of AdamW for the flow", low=0, flag=False)
    flow_hidden_dim: int = option(384, "width of the flow's residual blocks", low=1, flag=False)
    flow_blocks: int = option(2, "residual blocks of the flow", low=1, flag=False)
    flow_sampling_steps: int = option(2, "Heun steps from the start to an outline", low=1, flag=False)
    flow_weight: float = option(0.0, "flow-gan: weight of the flow-matching loss in the generator's loss", low=0, flag=False)
    flow_validate_every: int = option(500, "updates of the flow between two validations", low=1, flag=False)


def flow_loss(game: Game, generator: Any, batch: Batch) -> Tensor:
    """Return this rank's share of the mean flow-matching loss of a batch."""
    assert batch.outlines is not None
    normal, times = torch.randn(batch.num_rows, batch.outlines.shape[1]), torch.randn(batch.num_rows).sigmoid()
    begin, velocity = game.path(generator, batch, batch.own(normal).to(batch.outlines))
    with game.autocast():
        losses = flow_matching_loss(velocity, begin, batch.outlines, batch.own(times).to(begin))
    return losses.sum() / batch.num_rows


class FlowStage(FitStage):
    """Trains a flow by flow matching, and keeps a moving average of it."""

    name, batch_flag = "flow", "flow_batch_size (an option for --config FILE)"

    def __init__(self, game: Game):
        super().__init__(game)
        options = self.options
        self.trained = copy.deepcopy(game.generator)
        self.modules = {"flow": self.trained, "ema": game.generator}
        self.num_steps, self.batch_size = options.flow_steps, options.flow_batch_size
        self.validate_every = options.flow_validate_every
        self.optimizers = {"flow": adamw([self.trained.velocity], options.flow_learning_rate)}

    def begin(self, progress: Progress) -> None:
        super().begin(progress)
        self.trained.load_state_dict(self.game.generator.state_dict())

    def step(self, step: int, batch: Batch, update: Update) -> dict[str, Tensor]:
        loss = flow_loss(self.game, self.trained, self.game.real(batch))
        norm = update("flow loss", self.optimizers["flow"], loss)
        # A constant decay would keep too much of the untrained flow in early averages.
        decay = min(self.options.ema_decay, (step + 1) / (step + 10))
        update_ema(self.game.generator.velocity, self.trained.velocity, decay)
        return {"train/flow_loss": loss.detach(), "norm/flow": norm}

    def finish(self, directory: Path) -> None:
        if self.game.critic is None:  # With a critic, a FlowGanStage follows and calls `finish`.
            self.game.finish()


class FlowGanStage(GanStage):
    """Continues to train a flow, against a critic. Keeps the initial flow if no later validation is better."""

    validates_start = True

    def __init__(self, game: Game):
        super().__init__(game)
        # With the critic's learning rate, the flow would move away from real outlines before the critic can recognise them.
        rate = GENERATOR_RATE * self.options.gan_learning_rate
        self.optimizers["generator"] = adamw([self.generator.velocity], rate, (0.0, self.options.gan_beta2), 0.0)

    def begin(self, progress: Progress) -> None:
        self.continue_from_saved()  # The FlowStage has fitted everything.

    def further_terms(self, batch: Batch) -> dict[str, Tensor]:
        if not (weight := self.options.flow_weight):
            return {}
        return {"train/flow_loss": weight * flow_loss(self.game, self.generator, batch)}
