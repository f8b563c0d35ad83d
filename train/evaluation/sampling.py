"""Sentences to evaluate: sampled from a source of a run, or reconstructed from held-out sentences."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import sacrebleu
import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig
from outlines.inference.rejection import rejecting
from outlines.metrics.bleu import reconstruction_bleu
from outlines.metrics.text import normalized, unspaced
from outlines.models.base import TextModel
from train.data import Dataset
from train.evaluation.figures import held_out, nll_figures

SAMPLING_SEED = 11
QUICK_DRAWS, FULL_DRAWS = 16, 100  # number of latents that are drawn per held-out sentence for its nll
MOST_LEARNT = 20_000  # rows per class to train the two-sample classifier; 2,500 hardly detect a mixture of 2,000 centres
REAL_TEXT, REAL_OUTLINES, LM = "real text", "real outlines", "lm"

Row = dict[str, Any]  # the values of one line of a table, by key


@dataclass(frozen=True)
class Sentences:
    """Sentences of one source and, if the source has outlines, the raw outlines [N, D] that they were decoded from."""

    text: list[str]
    outlines: Tensor | None = None
    further: Tensor | None = None  # more raw outlines [M, D] of the source; the two-sample classifier learns from them


class Variant(NamedTuple):
    """A source of vectors, and the settings with which sentences are sampled from it."""

    source: str
    noise_scale: float = 1.0  # as in SamplingConfig; real outlines have no noise
    rejection: float = 1.0  # average number of draws per accepted vector (outlines/inference/rejection.py)
    guidance: float = 1.0  # as in SamplingConfig
    strength: float | None = None  # as in SamplingConfig
    best_of: int = 1  # as in SamplingConfig

    def __str__(self) -> str:
        changed = (("noise x", self.noise_scale, 1), ("rejection", self.rejection, 1), ("guidance", self.guidance, 1),
                   ("strength", self.strength, None), ("best of", self.best_of, 1))
        return ", ".join([self.source, *(f"{name} {value:g}" for name, value, usual in changed if value != usual)])


def num_learnt(data: Dataset) -> int:
    return min(MOST_LEARNT, data.num_rows("train") // 2)


def training_outlines(data: Dataset) -> tuple[Tensor, Tensor]:
    """Return two disjoint samples of raw training outlines, [M, D], for the two-sample classifier.

    The first is the classifier's real class. If real outlines or real text are measured, the second is the fake class.
    """
    rows = data.sample_rows("train", 2 * num_learnt(data), seed=2)
    ours, others = (torch.from_numpy(data.stores["train"].rows(rows[start::2])) for start in (0, 1))
    return ours, others


def sources_of(model: TextModel, data: Dataset) -> tuple[str, ...]:
    """Return the sources of a run: real outlines (for comparison), the model's own source, and its fitted baselines."""
    return (*((REAL_OUTLINES,) if data.stores else ()), *model.sources)


def draw(model: TextModel, data: Dataset, variant: Variant, temperature: float, num: int,
         further: bool = False) -> Sentences:
    """Return `num` sentences of a source; fewer if there are fewer real outlines. further: add `num_learnt` outlines."""
    sampling = SamplingConfig(temperature=temperature, max_len=data.corpus.meta["max_len"], guidance=variant.guidance,
                              strength=variant.strength, best_of=variant.best_of)
    more: Tensor | None = None
    if variant.source == REAL_OUTLINES:
        more = training_outlines(data)[1] if further else None
        # Not from the test split, because a reverse judge would then learn the references.
        both = [data.outlines(split, data.sample_rows(split, num, seed=1)) for split in ("valid", "train")]
        vectors = [torch.cat(both)[:num]]
        ids = model.decode(vectors[0], SAMPLING_SEED, model.chosen(sampling))
    else:
        vectors_of = rejecting(model, model.source(variant.source, variant.noise_scale), variant.rejection)
        blocks = list(model.generate(num, SAMPLING_SEED, sampling, vectors_of))
        vectors = [part for _, part in blocks if part is not None]
        if further and vectors and data.stores:
            drawn = vectors_of(num_learnt(data), torch.Generator().manual_seed(SAMPLING_SEED))
            assert drawn is not None
            more = data.scaling.unscale(drawn).cpu()
        ids = [row for block, _ in blocks for row in block]
    text = data.tokenizer.lines(ids)
    if not vectors or not data.stores or variant.best_of > 1:  # Best-of-N selects sentences, not outlines.
        return Sentences(text)
    return Sentences(text, data.scaling.unscale(torch.cat(vectors)).cpu(), more)


def draw_outlines(model: TextModel, data: Dataset, variant: Variant, num: int) -> Sentences:
    """Return `num` outlines of a source, or all real outlines of the validation split if there are fewer; no sentences.

    Adds `num_learnt` more outlines for the two-sample classifier.
    """
    if variant.source == REAL_OUTLINES:
        raw = torch.from_numpy(data.stores["valid"].rows(data.sample_rows("valid", num, seed=1)))
        return Sentences([], raw, training_outlines(data)[1])
    vectors_of = rejecting(model, model.source(variant.source, variant.noise_scale), variant.rejection)
    drawn = [vectors_of(size, torch.Generator().manual_seed(SAMPLING_SEED + part))
             for part, size in enumerate((num, num_learnt(data)))]
    outlines, further = (data.scaling.unscale(part).cpu() for part in drawn if part is not None)
    return Sentences([], outlines, further)


def reconstruction(model: TextModel, data: Dataset, num: int, num_draws: int) -> Row:
    """Return the nll of at most `num` test sentences, and BLEU and chrF of their reconstructions.

    num_draws: number of latents that are drawn per sentence for the nll.
    """
    tokens, outlines, text = held_out(data, "test", num, seed=1)
    figures: Row = {"num_sentences": len(text), "unspaced": unspaced(text),
                    **nll_figures("test", model, tokens, outlines, num_draws)}
    if (posterior := model.posterior(tokens, outlines)) is not None:
        greedy = SamplingConfig(temperature=0, max_len=data.corpus.meta["max_len"])
        rebuilt = data.tokenizer.decode(model.decode(posterior[0], 0, greedy))
        figures["test/reconstruction_bleu"] = reconstruction_bleu(rebuilt, text)
        made, wanted = (list(map(normalized, sentences)) for sentences in (rebuilt, text))
        figures["test/reconstruction_chrf"] = float(sacrebleu.corpus_chrf(made, [wanted]).score)
        if posterior[1] is not None:
            figures["num_draws"] = num_draws
    return figures
