"""Evaluation of conditional outlines: the model, its baselines and real text on conditions of the test split."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from outlines.corpus.pairs import Pairs
from outlines.decoding.sample import SamplingConfig
from outlines.encoders import load_encoder
from outlines.inference.neighbours import nearest_rows
from outlines.metrics.bleu import References, bleu_scores
from outlines.metrics.outlines import energy_score
from outlines.metrics.text import words
from outlines.models.conditional import ConditionalModel
from train.config import RunConfig
from train.data import Dataset
from train.evaluation.sampling import Row
from train.runtime.progress import Reporter

PAIRING_SEED, NOISE_SEED = 17, 7
NUM_DRAWS = 5  # samples per condition
TEMPERATURE = 0.7
REAL_DECODED = "another real text, decoded"
TITLE = (f"Texts written for conditions of the test split, {NUM_DRAWS} samples per condition. Similarity: cosine between "
         "the encoder's outlines of samples and of the other texts in the condition's group (docs/conditional.md):")


class PairRows(NamedTuple):
    """Indices of the rows of pairs, [B] each: of the texts and of their conditions."""

    targets: np.ndarray
    conditions: np.ndarray


def held_out_pairs(pairs: Pairs, num: int) -> PairRows:
    """Return at most `num` pairs of a split, one per group; deterministic."""
    rng = np.random.default_rng(PAIRING_SEED)
    shuffled = rng.permutation(pairs.targets)
    targets = shuffled[np.sort(np.unique(pairs.first[shuffled], return_index=True)[1])[:num]]
    return PairRows(targets, pairs.conditions(targets, rng.random(len(targets))))


def conditions_of(model: ConditionalModel, data: Dataset, split: str, rows: PairRows) -> Tensor:
    """Return conditions [B, P] of pairs: the outlines of the condition rows and the labels of the texts."""
    labels = torch.from_numpy(data.pairs(split).labels[rows.targets]).to(data.device)
    return model.condition(data.outlines(split, rows.conditions), labels)


@torch.no_grad()
def draws(model: ConditionalModel, conditions: Tensor, source: str, rng: torch.Generator) -> Tensor:
    """Return outlines [N, NUM_DRAWS, D] from a source of the model for conditions [N, P]. rng: draws the noise."""
    repeated = conditions.repeat_interleave(NUM_DRAWS, dim=0)
    return model.given(repeated, model.generator.draw(len(repeated), rng), source).view(len(conditions), NUM_DRAWS, -1)


class Comparison:
    """Compares the model with its baselines and with real text on conditions of the test split."""

    def __init__(self, config: RunConfig, model: ConditionalModel, data: Dataset):
        self.model, self.data, pairs = model, data, data.pairs("test")
        self.encoder = load_encoder(data.stores["test"].encoder["name"], data.device.type)
        found = held_out_pairs(pairs, max(2, config.training.num_evaluation // NUM_DRAWS))
        texts = [[row for row in pairs.alike(target) if row not in (target, condition)]
                 for target, condition in zip(*found, strict=True)]
        # The target is the real text; the other texts of its group are the references. If fewer than two groups have other
        # texts, the targets are the references.
        kept = np.array([bool(others) for others in texts])
        self.has_others = bool(kept.sum() > 1)
        if self.has_others:
            found, texts = PairRows(*(rows[kept] for rows in found)), [others for others in texts if others]
        else:
            texts = [[target] for target in found.targets]
        self.found = found
        self.references = [References([words(text) for text in data.text("test", np.array(rows))], 4) for rows in texts]
        self.outlines = [functional.normalize(torch.from_numpy(data.stores["test"].rows(np.array(rows)))) for rows in texts]

    def rows(self, reporter: Reporter) -> list[Row]:
        """Return one row per source: the model's own source, its baselines, then real text."""
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
            reporter.line(f"write for {len(found.targets)} conditions: {source}")
            sampling = SamplingConfig(temperature=TEMPERATURE, max_len=data.corpus.meta["max_len"])
            texts = iter(data.tokenizer.lines(model.decode(outlines.flatten(0, 1), NOISE_SEED, sampling)))
            row = self._measured([list(islice(texts, NUM_DRAWS)) for _ in outlines])
            if source != REAL_DECODED:  # Its outlines are the observed outlines.
                row["energy_score"] = float(energy_score(outlines, data.outlines("test", found.targets)).mean())
            rows.append({"source": source, "temperature": TEMPERATURE, **row})
        real = {"the condition itself": found.conditions, "random real text": np.roll(found.targets, 2)}
        if self.has_others:
            real["another real text"] = found.targets
        return rows + [{"source": source, **self._measured([[text] for text in data.text("test", chosen)])}
                       for source, chosen in real.items()]

    def _retrieved(self) -> Tensor:
        """Return outlines [N, NUM_DRAWS, D]: for each condition, of texts in the group of the nearest training sentence."""
        pairs = self.data.pairs("train")
        queries = torch.from_numpy(self.data.stores["test"].rows(self.found.conditions))
        nearest = nearest_rows(queries, self.data.stores["train"], 1)[1][:, 0].numpy()
        groups = [pairs.texts(row) for row in nearest]
        rows = np.stack([np.resize(group[group != row] if len(group) > 1 else group, NUM_DRAWS)
                         for group, row in zip(groups, nearest, strict=True)])
        return self.data.outlines("train", rows.ravel()).view(len(rows), NUM_DRAWS, -1)

    def _measured(self, texts: Sequence[list[str]]) -> Row:
        """Return metrics, averaged over conditions. texts: the same number of texts for each condition."""
        flat = [text for group in texts for text in group]
        encoded = functional.normalize(torch.from_numpy(self.encoder.encode(flat))).view(len(texts), len(texts[0]), -1)
        raw = torch.from_numpy(self.data.stores["test"].rows(self.found.conditions))
        own, other = (torch.stack([(group @ real.T).mean(dim=1) for group, real in zip(encoded, outlines, strict=True)])
                      for outlines in (self.outlines, self.outlines[1:] + self.outlines[:1]))
        bleu = np.array([[bleu_scores([words(text)], real)[4] for text in group]
                         for group, real in zip(texts, self.references, strict=True)])
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
