"""Conditional outlines: the decoder of neural outlines, then a generator and a critic that read a condition."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from outlines.metrics.outlines import energy_score, f1, knn_precision_recall
from outlines.models.conditional import ConditionalModel
from outlines.networks.conditional import ConditionalGeneratorConfig, fit_linear_gaussian
from outlines.networks.flow import VelocityField
from train.config import RunConfig
from train.data import MAX_FITTED_ROWS, Batch, Dataset
from train.evaluation import conditions as evaluation
from train.evaluation.conditions import PairRows, conditions_of, draws, held_out_pairs
from train.evaluation.sampling import Row
from train.evaluation.yardstick import NEIGHBOURS
from train.method import Method, Validation
from train.methods.gan_stage import Game, GanStage
from train.methods.generator_stages import GENERATOR_STAGES, GeneratorOptions
from train.methods.outlines import OutlineDecoderOptions, OutlineDecoderStage, outline_decoder_config
from train.runtime.progress import Progress, Reporter

MAX_KEPT_CONDITIONS = 2000  # maximum number of training conditions in a model, for sampling without a given condition


@dataclass(frozen=True)
class ConditionalOptions(GeneratorOptions, OutlineDecoderOptions):
    learns_pairs: ClassVar[bool] = True

    def without_effect(self) -> dict[str, str]:
        return super().without_effect() | self.unused()


@dataclass(frozen=True)
class PairBatch(Batch):
    """A batch of pairs of condition and outline. conditions: [B, P], used for both real and generated outlines."""

    conditions: Tensor


class PairGame(Game):
    """The Game of conditional outlines: the critic compares generated pairs of condition and outline with real pairs."""

    def begin(self, progress: Progress) -> None:
        """Fit the linear-Gaussian baseline, set the generator to it, and store conditions in the model for sampling."""
        rng = np.random.default_rng(self.seed)
        targets = rng.permutation(self.data.pairs("train").targets)[:MAX_FITTED_ROWS]
        conditions, outlines = self._pairs(targets, rng.random(len(targets)))
        kept = np.resize(np.arange(len(conditions)), self.model.conditions.num_embeddings)
        self.model.conditions.weight.data.copy_(conditions[kept])
        start = fit_linear_gaussian(conditions, outlines)
        for generator in (self.generator, self.model.linear):
            generator.start_at(start)

    def _pairs(self, targets: np.ndarray, uniforms: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return conditions [B, P] and outlines [B, D] of training rows `targets`; uniforms [B] choose the conditions."""
        rows = PairRows(targets, self.data.pairs("train").conditions(targets, uniforms))
        return conditions_of(self.model, self.data, "train", rows), self.data.outlines("train", targets)

    def real(self, batch: Batch) -> PairBatch:
        """Return a batch of random pairs. The rows of `batch` are not used, because some rows have no condition."""
        targets = self.data.pairs("train").targets
        chosen = batch.own(torch.rand(2, batch.num_rows, dtype=torch.float64).T).numpy()
        rows = targets[(chosen[:, 0] * len(targets)).astype(np.int64)]
        conditions, outlines = self._pairs(rows, chosen[:, 1])
        return PairBatch(rows, batch.read_tokens, outlines, batch.num_rows, batch.num_targets, batch.ranks, conditions)

    def path(self, generator: Any, batch: Any, normal: Tensor) -> tuple[Tensor, VelocityField]:
        return generator.start(normal, batch.conditions), generator.velocity_given(batch.conditions)

    def fake(self, generator: Any, batch: Any, rng: torch.Generator) -> Tensor:
        return self.model.normalise(generator(batch.own(generator.draw(batch.num_rows, rng)), batch.conditions))

    def scorer(self, batch: Any, rows: slice = slice(None)) -> Callable[[Tensor], Tensor]:
        embedding = self.critic.embedding(batch.conditions[rows])
        return lambda outlines: self.critic.score(outlines, embedding)

    @torch.no_grad()
    def validate(self) -> Validation:
        rows = held_out_pairs(self.data.pairs("valid"), self.options.num_validation)
        conditions, real = conditions_of(self.model, self.data, "valid", rows), self.data.outlines("valid", rows.targets)
        fakes, starts = (draws(self.model, conditions, source, torch.Generator().manual_seed(evaluation.NOISE_SEED))
                         for source in self.model.sources)
        score, score_at_start = (float(energy_score(outlines, real).mean()) for outlines in (fakes, starts))
        precision, recall = knn_precision_recall(real, fakes[:, 0], min(NEIGHBOURS, len(real) - 1))
        unlike = 1 - f1(precision, recall)
        # The shortfall (1 - F1) ignores conditions. The energy score is also low if outlines match only in the mean. The sum
        # detects both errors. The energy score is divided by that of the linear baseline, at which the generator starts.
        criterion = unlike + score / score_at_start
        figures = {"valid/precision": precision, "valid/recall": recall, "valid/outline_shortfall": unlike,
                   "valid/energy_score": score, "valid/conditional_shortfall": criterion}
        if self.critic is not None:
            figures |= {"scores/held_out": float(self.critic(real, conditions).mean()),
                        "scores/generated": float(self.critic(fakes[:, 0], conditions).mean())}
        return Validation(figures, criterion)


class ConditionalMethod(Method):
    family = "conditional"
    config_class = ConditionalOptions
    own_title = evaluation.TITLE

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        options: Any = config.model
        seed = config.training.seed
        store, labels = data.stores["train"], data.pairing.labels if data.pairing else ()
        stages, flow = GENERATOR_STAGES[options.generator], options.generator != "gan"
        critic = {"hidden_dim": options.gan_hidden_dim, "num_layers": options.gan_num_layers}
        sizes = {"hidden_dim": options.flow_hidden_dim, "num_blocks": options.flow_blocks,
                 "num_steps": options.flow_sampling_steps} if flow else critic
        self.model = model = ConditionalModel(
            outline_decoder_config(options, data),
            ConditionalGeneratorConfig(store.dim, store.dim + len(labels), **sizes),
            critic if issubclass(stages[-1], GanStage) else None,
            labels, min(MAX_KEPT_CONDITIONS, data.num_rows("train")), data.normalized, store.encoder)
        data.set_scaling(model)
        game = PairGame(options, data, model, seed, bfloat16)
        self.assemble(OutlineDecoderStage(options, data, model, bfloat16, seed),
                      *(stage(game) for stage in stages),
                      linear=model.linear, conditions=model.conditions, scaling=model.scaling)

    @classmethod
    def own_rows(cls, config: RunConfig, model: Any, data: Dataset, reporter: Reporter) -> list[Row]:
        return evaluation.Comparison(config, model, data).rows(reporter)
