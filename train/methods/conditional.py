"""Conditional outlines: the decoder as in neural outlines, then a generator and a critic that both see a condition.

A pair is a text and a condition, another sentence of its group (outlines/corpus/pairs.py). The critic sees real and
generated outlines under the same conditions, so all that it can tell them apart by is how they go with those.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.corpus.pairs import Pairs
from outlines.decoding.sample import SamplingConfig
from outlines.encoders import load_encoder
from outlines.errors import OutlinesError
from outlines.inference.neighbours import nearest_rows
from outlines.metrics.bleu import References, bleu_scores
from outlines.metrics.outlines import energy_score, knn_precision_recall
from outlines.metrics.text import words
from outlines.models.base import TextModel
from outlines.models.conditional import (
    ConditionalGenerator,
    ConditionalGeneratorConfig,
    ConditionalModel,
    ProjectionCritic,
    fit_linear_gaussian,
)
from train.config import RunConfig
from train.data import MAX_FITTED_ROWS, Batch, Dataset
from train.evaluation.sampling import Row, decode
from train.evaluation.yardstick import NEIGHBOURS
from train.method import Method, Stage, Update, Views
from train.methods.outlines import NOISE_SEED, GanOptions, OutlinesMethod, outline_decoder_config
from train.runtime.progress import Progress, Reporter

MAX_KEPT_CONDITIONS = 2000
"""Training conditions that a model keeps, to be sampled without one."""
PAIRING_SEED = 17
LEAST_HELD_OUT = 4
"""Validation pairs, at least."""
NUM_DRAWS = 5
"""Draws of noise for one condition, in a validation and in the report."""
TEMPERATURE = 0.7
REAL_DECODED = "another real text, decoded"


@dataclass(frozen=True)
class ConditionalOptions(GanOptions):
    """The decoder's options, and the GAN's."""

    learns_pairs: ClassVar[bool] = True


@dataclass(frozen=True)
class PairBatch(Batch):
    """A batch of pairs: beside the real outlines, the conditions [B, P] that real and generated ones stand under."""

    conditions: Tensor


class PairRows(NamedTuple):
    """Rows of pairs [B]: the texts and their conditions."""

    targets: np.ndarray
    conditions: np.ndarray


def held_out_pairs(pairs: Pairs, num: int) -> PairRows:
    """At most `num` pairs of a split, no two of one group; the same ones every time."""
    rng = np.random.default_rng(PAIRING_SEED)
    shuffled = rng.permutation(pairs.targets)
    targets = shuffled[np.sort(np.unique(pairs.first[shuffled], return_index=True)[1])[:num]]
    return PairRows(targets, pairs.conditions(targets, rng.random(len(targets))))


class ConditionalMethod(OutlinesMethod):
    family = "conditional"
    config_class = ConditionalOptions
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        size: {name: value for name, value in preset.items() if name != "num_centres"}
        for size, preset in OutlinesMethod.presets.items()}
    own_title = (f"Written for conditions of the test split, {NUM_DRAWS} samples each; similarity: cosine of the outlines "
                 "of the encoded samples and of the other texts of the condition's group (docs/conditional.md):")
    own_columns: ClassVar[dict[str, tuple[str, int]]] = {
        "similarity": ("similarity", 3), "similarity_random": ("... with a random group's", 3),
        "own_group": ("nearer to its own", 3), "similarity_condition": ("... with the condition", 3),
        "spread": ("spread over noise", 3), "unique": ("unique", 3), "bleu": ("BLEU-4", 3),
        "best_bleu": ("BLEU-4, best", 3), "energy_score": ("energy score", 3)}

    # The game is that of neural outlines; those who play it are others.
    model: ConditionalModel  # type: ignore[assignment]
    generator: ConditionalGenerator  # type: ignore[assignment]
    critic: ProjectionCritic

    def __init__(self, config: RunConfig, data: Dataset, bfloat16: bool):
        super().__init__(config, data, bfloat16)
        decoder, gan = self.stages
        self.stages = (decoder, replace(gan, criterion="valid/conditional_shortfall"))

    def _new_model(self) -> ConditionalModel:  # type: ignore[override]
        options, data, store = self.options, self.data, self.data.stores["train"]
        labels = data.pairing.labels if data.pairing else ()
        generator = ConditionalGeneratorConfig(store.dim, store.dim + len(labels), options.gan_hidden_dim,
                                               options.gan_num_layers)
        return ConditionalModel(outline_decoder_config(options, data), generator, labels,
                                min(MAX_KEPT_CONDITIONS, data.num_rows("train")), data.normalized, store.encoder,
                                options.whiten)

    def _fixed_modules(self) -> dict[str, nn.Module]:
        return {"linear": self.model.linear, "conditions": self.model.conditions}

    def begin(self, stage: Stage, progress: Progress) -> None:
        """Fit the linear-Gaussian, start the generator at it, and keep some conditions."""
        if len(self._validation_pairs.targets) < LEAST_HELD_OUT:
            raise OutlinesError(f"{len(self._validation_pairs.targets)} groups of sentences to validate on, "
                                f"where {LEAST_HELD_OUT} are the least: bring a larger corpus, or raise --valid-fraction")
        if stage.name != "gan":
            if self.options.decoder_from:
                found, _ = self._decoder_of(Path(self.options.decoder_from))
                self.model.decoder.load_state_dict(found.decoder.state_dict())
            return
        rng = np.random.default_rng(self.seed)
        conditions, outlines = self._pairs(rng.permutation(self._training_pairs.targets)[:MAX_FITTED_ROWS], rng.random)
        kept = np.resize(np.arange(len(conditions)), self.model.conditions.num_embeddings)
        self.model.conditions.weight.data.copy_(conditions[kept])
        start = fit_linear_gaussian(conditions, outlines)
        for generator in (self.generator, self.model.generator, self.model.linear):
            generator.start_at(start)

    @property
    def _training_pairs(self) -> Pairs:
        assert self.data.pairing is not None, "the configuration of this family says how its corpus is paired"
        return self.data.pairing.splits["train"]

    @property
    def _validation_pairs(self) -> PairRows:
        assert self.data.pairing is not None
        return held_out_pairs(self.data.pairing.splits["valid"], self.options.num_validation)

    def _pairs(self, targets: np.ndarray, uniforms: Callable[[int], np.ndarray]) -> tuple[Tensor, Tensor]:
        """Conditions [B, P] and outlines [B, D] of training texts."""
        rows = PairRows(targets, self._training_pairs.conditions(targets, uniforms(len(targets))))
        return conditions_of(self.model, self.data, "train", rows), self.data.outlines("train", targets)

    def step(self, stage: Stage, batch: Batch, update: Update) -> dict[str, Tensor]:
        if stage.name == "gan":
            batch = self._paired(batch)
        return super().step(stage, batch, update)

    def _paired(self, batch: Batch) -> PairBatch:
        """As many random pairs in a batch's place: its rows may be conditions, or alone in their group."""
        targets = self._training_pairs.targets
        chosen = torch.rand(2, batch.num_rows, dtype=torch.float64)[:, batch.ranks.rank::batch.ranks.world].numpy()
        conditions, outlines = self._pairs(targets[(chosen[0] * len(targets)).astype(np.int64)], lambda _: chosen[1])
        return PairBatch(batch.read_tokens, outlines, batch.num_rows, batch.num_targets, batch.ranks, conditions)

    def _fake(self, batch: Batch) -> Tensor:
        assert isinstance(batch, PairBatch)
        noise = self.generator.draw(batch.num_rows, self._noise_rng())[batch.ranks.rank::batch.ranks.world]
        return self.model.normalise(self.generator(noise, batch.conditions))

    def _critic_beside(self, batch: Batch, rows: slice = slice(None)) -> Callable[[Tensor], Tensor]:
        assert isinstance(batch, PairBatch)
        embedding = self.critic.embedding(batch.conditions[rows])
        return lambda outlines: self.critic.score(outlines, embedding)

    @torch.no_grad()
    def validate(self, stage: Stage) -> dict[str, float]:
        if stage.name == "decoder":
            return super().validate(stage)
        rows = self._validation_pairs
        conditions, real = conditions_of(self.model, self.data, "valid", rows), self.data.outlines("valid", rows.targets)
        fakes, starts = (draws(self.model, conditions, source, torch.Generator().manual_seed(NOISE_SEED))
                         for source in self.model.sources)
        score, score_at_start = (float(energy_score(outlines, real).mean()) for outlines in (fakes, starts))
        precision, recall = knn_precision_recall(real, fakes[:, 0], min(NEIGHBOURS, len(real) - 1))
        shortfall = 1 - 2 * precision * recall / max(precision + recall, 1e-9)
        return {"valid/precision": precision, "valid/recall": recall, "valid/outline_shortfall": shortfall,
                "valid/energy_score": score,
                # Outlines may be like real ones and fit no condition, or fit theirs in the mean and be like none: neither
                # figure sees what the other does, so both count; the control's own score makes the second a share.
                "valid/conditional_shortfall": shortfall + score / score_at_start,
                "scores/held_out": float(self.critic(real, conditions).mean()),
                "scores/generated": float(self.critic(fakes[:, 0], conditions).mean())}

    def views(self, stage: Stage) -> Views:
        return Views()  # There is no mixture or Gaussian to compare with.

    def finish(self, directory: Path) -> None:
        Method.finish(self, directory)  # The critic's scores hold under one condition: nothing is rejected by them.

    @classmethod
    def own_rows(cls, config: RunConfig, model: TextModel, data: Dataset, reporter: Reporter) -> list[Row]:
        assert isinstance(model, ConditionalModel)
        return Comparison(config, model, data).rows(reporter)


def conditions_of(model: ConditionalModel, data: Dataset, split: str, rows: PairRows) -> Tensor:
    """Conditions [B, P] of pairs: the outlines of the condition rows, with the labels of the texts."""
    assert data.pairing is not None
    labels = torch.from_numpy(data.pairing.splits[split].labels[rows.targets]).to(data.device)
    return model.condition(data.outlines(split, rows.conditions), labels)


@torch.no_grad()
def draws(model: ConditionalModel, conditions: Tensor, source: str, rng: torch.Generator) -> Tensor:
    """NUM_DRAWS outlines for each of the conditions [N, P]: [N, NUM_DRAWS, D]."""
    repeated = conditions.repeat_interleave(NUM_DRAWS, dim=0)
    return model.given(repeated, model.generator.draw(len(repeated), rng), source).view(len(conditions), NUM_DRAWS, -1)


class Comparison:
    """What the test split's conditions are answered with, by the model, by its controls and by real text."""

    def __init__(self, config: RunConfig, model: ConditionalModel, data: Dataset):
        assert data.pairing is not None and data.scaling is not None
        self.model, self.data = model, data
        self.pairs = data.pairing.splits["test"]
        self.encoder = load_encoder(data.stores["test"].encoder_name, data.device.type)
        found = held_out_pairs(self.pairs, max(2, config.training.num_evaluation // NUM_DRAWS))
        texts = [[row for row in self.pairs.alike(target) if row not in (target, condition)]
                 for target, condition in zip(*found, strict=True)]
        # The target itself answers for real text, and is a reference only where its condition has no other text.
        kept = np.array([bool(others) for others in texts])
        self.has_others = bool(kept.sum() > 1)
        if self.has_others:
            found, texts = PairRows(*(rows[kept] for rows in found)), [others for others in texts if others]
        else:
            texts = [[target] for target in found.targets]
        self.found, self.texts = found, texts
        self.references = [[words(text, lowercase=True) for text in data.text("test", np.array(rows))] for rows in texts]
        self.outlines = [functional.normalize(torch.from_numpy(data.stores["test"].rows(np.array(rows)))) for rows in texts]

    def rows(self, reporter: Reporter) -> list[Row]:
        """One row a source: the model's own first, then controls, then real text."""
        model, data, found = self.model, self.data, self.found
        conditions = conditions_of(model, data, "test", found)
        answers = {source: draws(model, conditions, source, torch.Generator().manual_seed(NOISE_SEED))
                   for source in model.sources}
        answers["nearest training group"] = self._retrieved()
        answers["copy of the condition"] = data.outlines("test", found.conditions)[:, None].expand(-1, NUM_DRAWS, -1)
        if self.has_others:
            answers[REAL_DECODED] = data.outlines("test", found.targets)[:, None].expand(-1, NUM_DRAWS, -1)
        rows = []
        for source, outlines in answers.items():
            reporter.line(f"answer {len(found.targets)} conditions from {source}")
            sampling = SamplingConfig(temperature=TEMPERATURE, max_len=data.corpus.meta["max_len"])
            ids = (row for block in decode(model, outlines.flatten(0, 1), NOISE_SEED, sampling) for row in block)
            texts = iter(data.tokenizer.lines(list(ids)))
            row = self._measured([list(islice(texts, NUM_DRAWS)) for _ in outlines])
            if source != REAL_DECODED:  # Which is what was observed.
                row["energy_score"] = float(energy_score(outlines, data.outlines("test", found.targets)).mean())
            rows.append({"source": source, "temperature": TEMPERATURE, **row})
        real = {"the condition itself": found.conditions, "random real text": np.roll(found.targets, 2)}
        if self.has_others:
            real["another real text"] = found.targets
        return rows + [{"source": source, **self._measured([[text] for text in data.text("test", chosen)])}
                       for source, chosen in real.items()]

    def _retrieved(self) -> Tensor:
        """Outlines of the training texts that share a group with the sentence nearest to each condition."""
        assert self.data.pairing is not None
        pairs = self.data.pairing.splits["train"]
        queries = torch.from_numpy(self.data.stores["test"].rows(self.found.conditions))
        nearest = nearest_rows(queries, self.data.stores["train"], 1)[1][:, 0].numpy()
        groups = [pairs.texts(row) for row in nearest]
        rows = np.stack([np.resize(group[group != row] if len(group) > 1 else group, NUM_DRAWS)
                         for group, row in zip(groups, nearest, strict=True)])
        return self.data.outlines("train", rows.ravel()).view(len(rows), NUM_DRAWS, -1)

    def _measured(self, texts: Sequence[list[str]]) -> Row:
        """Figures of the texts written for each condition, as many for each: means over conditions."""
        flat = [text for group in texts for text in group]
        encoded = functional.normalize(torch.from_numpy(self.encoder.encode(flat))).view(len(texts), len(texts[0]), -1)
        raw = torch.from_numpy(self.data.stores["test"].rows(self.found.conditions))
        own = torch.stack([(group @ real.T).mean(dim=1) for group, real in zip(encoded, self.outlines, strict=True)])
        other = torch.stack([(group @ real.T).mean(dim=1) for group, real in zip(
            encoded, self.outlines[1:] + self.outlines[:1], strict=True)])
        bleu = np.array([[bleu_scores([words(text, lowercase=True)], counted, 4)[4] for text in group]
                         for group, counted in zip(texts, (References(real, 4) for real in self.references), strict=True)])
        row = {"num_conditions": len(texts), "num_samples": len(flat), "similarity": float(own.mean()),
               "similarity_random": float(other.mean()), "own_group": float((own > other).float().mean()),
               "similarity_condition": float((encoded * functional.normalize(raw)[:, None]).sum(dim=2).mean()),
               "bleu": float(bleu.mean())}
        if (num := len(texts[0])) > 1:
            alike = encoded @ encoded.mT
            row["spread"] = 1 - float((alike.sum(dim=(1, 2)) - num).mean()) / (num * (num - 1))
            row["unique"] = float(np.mean([len(set(group)) / num for group in texts]))
            row["best_bleu"] = float(bleu.max(axis=1).mean())
        return row
