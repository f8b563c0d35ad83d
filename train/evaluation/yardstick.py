"""What a run's sentences are worth, in figures: one row for every source of sentences and temperature, on the test split.

The quick form ends every training; the full form (`python -m train evaluate`) adds reverse nll, a second evaluator of
another architecture, and the outlines of the generated text. Weights and options were chosen on the validation split.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outlines.corpus import grammar
from outlines.decoding.sample import SamplingConfig, sample
from outlines.encoders import SentenceEncoder
from outlines.inference.neighbours import nearest_rows
from outlines.inference.rejection import rejecting
from outlines.metrics.bleu import References, bleu_scores, reconstruction_bleu, self_bleu_scores
from outlines.metrics.ngram import NgramModel
from outlines.metrics.outlines import frechet_distance, knn_precision_recall, two_sample_accuracy
from outlines.metrics.text import Words, copied_rate, distinct_n, length_distance, nearest_overlap, unique_rate, words
from outlines.models.base import Draw, TextModel, block_seed
from outlines.models.lm import LanguageModel
from train.config import RunConfig
from train.data import Dataset
from train.evaluation.figures import held_out, nll_figures
from train.evaluation.judges import Nll, baseline, reverse_nll, score, scorer, tokens_of
from train.session import Session

SAMPLING_SEED = 11
QUICK_TEMPERATURES = (0.7, 1.0)
QUICK_DRAWS, FULL_DRAWS = 16, 100
NEIGHBOURS = 5
LEAST_TWO_SAMPLE = 20
MOST_LEARNT = 20_000
"""Rows of each kind that the two-sample classifier learns from: with 2,500 it hardly sees a mixture of 2,000 centres."""
MOST_HELD = 1_000_000
"""Training sentences, at most, that are held in words from row to row: some 120 bytes each."""
REAL_TEXT, REAL_OUTLINES, LM = "real text", "real outlines", "lm"

Row = dict[str, Any]


@dataclass(frozen=True)
class Full:
    """What the full form needs beyond the quick one."""

    num_samples: int
    """that forward and reverse nll are taken on; the other figures compare as many as there are references"""
    reverse_steps: int
    encoder: SentenceEncoder | None


@dataclass(frozen=True)
class Sentences:
    """What one source gave: its sentences and, where it makes outlines, the raw ones they were decoded from, [N, D]."""

    text: list[str]
    outlines: Tensor | None = None
    further: Tensor | None = None
    """more raw outlines of the source, never decoded, for the two-sample classifier to learn from, [M, D]"""


class Variant(NamedTuple):
    """A source of vectors, and how they are drawn from it."""

    source: str
    noise_scale: float = 1.0
    """as in SamplingConfig; real outlines have no noise"""
    rejection: float = 1.0
    """vectors drawn, on average, for each that the critic keeps (outlines/inference/rejection.py)"""
    guidance: float = 1.0
    """as in SamplingConfig"""

    def __str__(self) -> str:
        changed = (("noise x", self.noise_scale), ("rejection", self.rejection), ("guidance", self.guidance))
        return ", ".join([self.source, *(f"{name} {value:g}" for name, value in changed if value != 1)])


class Yardstick:
    """One corpus's held-out text and the evaluators of it: every source is measured by the same one."""

    def __init__(self, config: RunConfig, data: Dataset, session: Session, full: Full | None = None):
        """config: of a run on this corpus; it gives the shape of the language models that score."""
        self.config, self.data, self.session, self.full = config, data, session, full
        self.num_samples = full.num_samples if full else config.training.num_evaluation
        # As many of both, for most figures move with the number of sentences. Real text stands against other real
        # text: against itself it would be perfect.
        size = min(self.num_samples, data.num_rows("test"), data.num_rows("valid"))
        self.rows = data.sample_rows("test", size, seed=1)
        self.references = data.text("test", self.rows)
        self.others = data.sample_rows("valid", size, seed=1)
        self._known: dict[bytes, Row] = {}  # outline figures, which do not change with temperature

    @cached_property
    def scorer(self) -> TextModel:
        return scorer(self.config, self.data, self.session)

    @cached_property
    def ngram(self) -> NgramModel:
        tokens = self.data.corpus.tokens["train"]
        return NgramModel(tokens.rows(range(len(tokens))), self.data.tokenizer.vocab_size)

    @cached_property
    def _held_training(self) -> list[Words]:
        """The training sentences in words, each distinct word in memory once."""
        known: dict[str, str] = {}
        return [tuple([known.setdefault(word, word) for word in split]) for split in self._split_training()]

    def _split_training(self) -> Iterator[list[str]]:
        return (words(sentence, lowercase=True) for sentence in self.data.corpus.sentences["train"])

    def training(self) -> Iterable[Words]:
        """The training sentences in words, lower case; those of a larger corpus are split anew each time."""
        return self._held_training if self.data.num_rows("train") <= MOST_HELD else self._split_training()

    @cached_property
    def counted_references(self) -> References:
        return References([words(sentence, lowercase=True) for sentence in self.references], max_n=5)

    @cached_property
    def encoded_references(self) -> Tensor:
        """Raw outlines of the references by the full form's encoder, [N, D]."""
        assert self.full and self.full.encoder
        stores = self.data.stores
        if stores and stores["test"].encoder_fingerprint == self.full.encoder.fingerprint:
            return self.real_outlines
        return torch.from_numpy(self.full.encoder.encode(self.references))

    @cached_property
    def real_outlines(self) -> Tensor:
        """Raw outlines of the references, as the runs of this corpus see them, [N, D]."""
        return torch.from_numpy(self.data.stores["test"].rows(self.rows))

    def real_text(self) -> Sentences:
        """Held-out sentences that are none of the references; their outlines, if the corpus is encoded."""
        stores = self.data.stores
        raw = torch.from_numpy(stores["valid"].rows(self.others)) if stores else None
        further = training_outlines(self.data)[1] if stores and self.full else None
        return Sentences(self.data.text("valid", self.others), raw, further)

    def outline_figures(self, sentences: Sentences, full: bool) -> Row:
        """Figures of the outlines that sentences were decoded from."""
        assert sentences.outlines is not None
        learn_from = None
        if full and sentences.further is not None:
            learn_from = training_outlines(self.data)[0], sentences.further
        return outline_figures("outline", self.real_outlines, sentences.outlines, full, learn_from, self.data.device)

    def measure(self, sentences: Sentences, learnt: Sequence[str] | None = None) -> Row:
        """All figures of one source's sentences that need no model but the evaluators.

        learnt: sentences of the same source that the reverse models learn, if not these.
        """
        text = sentences.text
        row: Row = {"num_samples": len(text), **_nll_figures("forward", score(self.scorer, text, self.data))}
        compared = text[:len(self.references)]
        row["num_compared"] = len(compared)
        row |= self._text_figures(compared)
        if sentences.outlines is not None:
            key = hashlib.sha256(sentences.outlines.numpy().tobytes()).digest()
            if key not in self._known:
                self._known[key] = self.outline_figures(sentences, self.full is not None)
                if self.full is not None:
                    raw = sentences.outlines[:len(self.references)]
                    nearest = nearest_rows(raw, self.data.stores["train"], 1, chunk=2048)[0]
                    self._known[key]["outline_nearest_cosine"] = float(nearest.mean())
            row |= self._known[key]
        if self.full is not None:
            row |= self._full_figures(text, compared, text if learnt is None else learnt)
        return row

    def _full_figures(self, text: Sequence[str], compared: Sequence[str], learnt: Sequence[str]) -> Row:
        assert self.full is not None
        tokens = tokens_of(text, self.data)
        row = _nll_figures("forward_ngram", Nll.of(*self.ngram.nll_of_rows(tokens), text))
        row |= self.reverse(learnt)
        if self.full.encoder is not None:
            outlines = torch.from_numpy(self.full.encoder.encode(list(compared)))
            row |= outline_figures("text", self.encoded_references, outlines, full=True, device=self.data.device)
        return row

    def reverse(self, text: Sequence[str]) -> Row:
        """Both reverse nlls of samples; a sample that no line of a text file can hold is left out."""
        assert self.full is not None
        text = [sentence for sentence in text if sentence.strip() and "\0" not in sentence]
        if not text:  # A model that has hardly been trained may end every sentence at once.
            return {"num_reverse": 0}
        samples = NgramModel(tokens_of(text, self.data), self.data.tokenizer.vocab_size)
        held_out = Nll.of(*samples.nll_of_rows(tokens_of(self.references, self.data)), self.references)
        return {**_nll_figures("reverse_ngram", held_out), "num_reverse": len(text), **_nll_figures("reverse", reverse_nll(
            text, self.references, self.config, self.data, self.session, self.full.reverse_steps))}

    def _text_figures(self, text: Sequence[str]) -> Row:
        """Diversity and originality; on the embedded corpus also how much of it is in the language."""
        split = [words(sentence, lowercase=True) for sentence in text]
        row: Row = {"distinct_2": distinct_n(split, 2), "unique": unique_rate(split),
                    "copied": copied_rate(split, self.training())}
        orders = range(2, 6)
        if len(split) > 1:
            self_bleu = self_bleu_scores(split)
            row |= {f"self_bleu_{n}": self_bleu[n] for n in orders}
        if self.full is not None:
            bleu = bleu_scores(split, self.counted_references)
            row |= {f"bleu_{n}": bleu[n] for n in orders}
            row["nearest_overlap"], row["near_copies"] = nearest_overlap(split, self.training())
            references = [words(sentence, lowercase=True) for sentence in self.references]
            row["length_distance"] = length_distance(split, references)
        if self.data.embedded:
            language = grammar.scenes()
            log_probabilities = [language.log_prob(" ".join(sentence.split())) for sentence in text]
            inside = [-value for value in log_probabilities if value > -torch.inf]
            row["in_language"] = len(inside) / len(text)
            if inside:
                row["grammar_nll"] = sum(inside) / len(inside)
        return row


def num_learnt(data: Dataset) -> int:
    """Rows of each kind that the two-sample classifier learns from."""
    return min(MOST_LEARNT, data.num_rows("train") // 2)


def training_outlines(data: Dataset) -> tuple[Tensor, Tensor]:
    """Two disjoint samples of raw training outlines, [M, D] each: real ones to learn from, and to learn the floor from."""
    rows = data.sample_rows("train", 2 * num_learnt(data), seed=2)
    ours, others = (torch.from_numpy(data.stores["train"].rows(rows[start::2])) for start in (0, 1))
    return ours, others


def outline_figures(name: str, real: Tensor, fake: Tensor, full: bool,
                    learn_from: tuple[Tensor, Tensor] | None = None, device: torch.device | str = "cpu") -> Row:
    """Figures of raw outlines, as many of each set, in units of the real ones' deviation.

    None where there are too few of them to say anything. full: with those that take a model or the whole covariance.
    learn_from: other raw outlines, real and fake, that the two-sample classifier learns from, on `device`; without, the
    halves are.
    """
    size = min(len(real), len(fake))
    if size <= NEIGHBOURS:
        return {}
    mean = real.double().mean(dim=0)
    scale = (real - mean).square().mean().sqrt()
    real, fake = (real[:size] - mean) / scale, (fake[:size].cpu() - mean) / scale
    near = knn_precision_recall(real, fake, NEIGHBOURS)
    row: Row = {f"{name}_precision": near.precision, f"{name}_recall": near.recall}
    if full and size >= LEAST_TWO_SAMPLE:
        row[f"{name}_frechet"] = frechet_distance(real, fake)
        if learn_from is not None:
            most = min(len(learn_from[0]), len(learn_from[1]))
            learn_from = ((learn_from[0][:most] - mean) / scale, (learn_from[1][:most].cpu() - mean) / scale)
        test = two_sample_accuracy(real, fake, learn_from, device=device)
        row |= {f"{name}_two_sample": test.accuracy, f"{name}_two_sample_low": test.low,
                f"{name}_two_sample_high": test.high}
    return row


def _nll_figures(name: str, nll: Nll) -> Row:
    return {f"{name}_nll_per_token": nll.per_token, f"{name}_ppl_per_word": nll.ppl_per_word}


def sources_of(model: TextModel, data: Dataset) -> tuple[str, ...]:
    """What a run can be sampled from: real outlines, the upper bound, then its own sources, then its controls."""
    return (*((REAL_OUTLINES,) if data.stores else ()), *model.sources)


def draw(model: TextModel, data: Dataset, variant: Variant, temperature: float, num: int,
         further: bool = False) -> Sentences:
    """`num` sentences of a source, or as many as it has; further: with as many more outlines as `training_outlines` has.

    Of real outlines, those of the validation rows first, then of training rows; none of the test split, for what was
    decoded from an outline of a reference would teach a reverse model the reference.
    """
    sampling = SamplingConfig(temperature=temperature, max_len=data.corpus.meta["max_len"], guidance=variant.guidance)
    more: Tensor | None = None
    if variant.source == REAL_OUTLINES:
        more = training_outlines(data)[1] if further else None
        vectors = [data.outlines(split, data.sample_rows(split, num, seed=1)) for split in ("valid", "train")]
        vectors = [torch.cat(vectors)[:num]]
        ids = [row for block in decode(model, vectors[0], SAMPLING_SEED, sampling) for row in block]
    else:
        vectors_of: Draw = lambda count, rng: model.vectors(count, rng, variant.source, variant.noise_scale)  # noqa: E731
        if variant.rejection != 1:
            vectors_of = rejecting(model, vectors_of, variant.rejection)
        blocks = list(model.decode_draws(vectors_of, num, SAMPLING_SEED, sampling))
        vectors = [part for _, part in blocks if part is not None]
        if further and vectors and data.scaling is not None:
            drawn = vectors_of(num_learnt(data), torch.Generator().manual_seed(SAMPLING_SEED))
            assert drawn is not None
            more = data.scaling.unscale(drawn).cpu()
        ids = [row for block, _ in blocks for row in block]
    text = data.tokenizer.lines(ids)
    if not vectors or data.scaling is None:
        return Sentences(text)
    return Sentences(text, data.scaling.unscale(torch.cat(vectors)).cpu(), more)


def decode(model: TextModel, vectors: Tensor, seed: int, sampling: SamplingConfig) -> Iterator[list[list[int]]]:
    """Token ids for each of the vectors [N, D], in blocks."""
    for start in range(0, len(vectors), 256):
        rng = torch.Generator().manual_seed(block_seed(seed, start))
        block = vectors[start:start + 256]
        yield sample(model.decoder, block, torch.rand(len(block), sampling.max_len, generator=rng).to(block.device),
                     sampling)


def reconstruction(model: TextModel, data: Dataset, num: int, num_draws: int) -> Row:
    """How likely a run finds held-out sentences, and how well it rebuilds them from their vectors (of a VAE: mu).

    num_draws: draws of a latent for the nll, where there is one; the more, the tighter the bound.
    """
    tokens, outlines, text = held_out(data, "test", num, seed=1)
    figures: Row = {"num_sentences": len(text), **nll_figures("test", model, tokens, outlines, num_draws)}
    if (posterior := model.posterior(tokens, outlines)) is not None:
        greedy = SamplingConfig(temperature=0, max_len=data.corpus.meta["max_len"])
        rebuilt = [sentence for ids in decode(model, posterior[0], 0, greedy) for sentence in data.tokenizer.decode(ids)]
        figures["test/reconstruction_bleu"] = reconstruction_bleu(rebuilt, text)
        if posterior[1] is not None:
            figures["num_draws"] = num_draws
    return figures


def quick_rows(config: RunConfig, model: TextModel, data: Dataset, session: Session, beside_lm: bool) -> Iterator[Row]:
    """The quick form's rows: real text, every source of the run and, if asked for, the language model beside it."""
    yardstick = Yardstick(config, data, session)
    yield {"source": REAL_TEXT, **yardstick.measure(yardstick.real_text())}
    models = [(source, model) for source in sources_of(model, data)]
    if beside_lm and model.family != LanguageModel.family:
        models.append((LM, baseline(config, data, session)))
    for source, owner in models:
        for temperature in QUICK_TEMPERATURES:
            session.reporter.line(f"sample from {source} at T = {temperature}")
            # Real outlines: held-out ones alone, as in real text.
            num = len(yardstick.others) if source == REAL_OUTLINES else yardstick.num_samples
            sentences = draw(owner, data, Variant(source), temperature, num)
            yield {"source": source, "temperature": temperature, **yardstick.measure(sentences)}
