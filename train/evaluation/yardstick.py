"""All metrics of the sentences of one source (a generator, a baseline or real text), compared with the test split.

A training run ends with the quick form of this evaluation; `python -m train evaluate` computes the full form. A new metric
is one function in METRICS or FULL_METRICS, and its key and title in tables.toml. A new judge is one line in
train/commands/judges.py and one in tables.toml.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from outlines.corpus import grammar
from outlines.encoders import SentenceEncoder
from outlines.inference.neighbours import nearest_rows
from outlines.metrics.bleu import References, bleu_scores, self_bleu_scores
from outlines.metrics.mauve import MIN_ROWS, mauve
from outlines.metrics.outlines import frechet_distance, knn_precision_recall, two_sample_accuracy
from outlines.metrics.text import (
    Words,
    copied_rate,
    distinct_n,
    diversity,
    length_distance,
    memorised_ngrams,
    nearest_overlap,
    unique_rate,
    words,
)
from train.config import RunConfig
from train.data import LEAST_ROWS, Dataset
from train.evaluation.judges import Judges
from train.evaluation.sampling import Row, Sentences, training_outlines


class FeatureEncoder(Protocol):
    """The part of an encoder that MAUVE needs."""

    name: str
    fingerprint: str

    def encode(self, sentences: list[str]) -> np.ndarray:
        """Return features [N, D]."""
        ...


Split = list[list[str]]  # the lower-case words of each sentence

NEIGHBOURS = 5
LEAST_TWO_SAMPLE = 20
NUM_SHOWN = 20  # samples of each source in a report
MOST_HELD = 1_000_000  # largest number of training sentences whose words are kept in memory, about 120 bytes per sentence


class Yardstick:
    """Measures sentences with the judges and the held-out text of a corpus.

    num_samples: number of samples for forward and reverse NLL in the full form; None: the quick form. encoder: encodes
    generated text again, for metrics of this text. features: encodes text for MAUVE; None: use `encoder`.
    """

    def __init__(self, config: RunConfig, data: Dataset, judges: Judges, num_samples: int | None = None,
                 encoder: SentenceEncoder | None = None, features: FeatureEncoder | None = None):
        self.data, self.judges, self.full, self.encoder = data, judges, num_samples is not None, encoder
        self.features = features or encoder
        self.num_samples = num_samples or config.training.num_evaluation
        # Most metrics depend on the number of sentences, so real text has the same number of sentences as the references.
        size = min(self.num_samples, data.num_rows("test"), data.num_rows("valid"))
        self.rows = data.sample_rows("test", size, seed=1)
        self.references = data.text("test", self.rows)
        self.split_references = [words(sentence) for sentence in self.references]
        self.others = data.sample_rows("valid", size, seed=1)
        self._training: list[Words] = []  # each distinct word is in memory only once
        self._outline_figures: dict[bytes, Row] = {}  # by hash of the outlines, because temperatures share outlines

    def training(self) -> Iterable[Words]:
        """Return the lower-case words of each training sentence. Above MOST_HELD sentences, they are not kept in memory."""
        split = (words(sentence) for sentence in self.data.corpus.sentences["train"])
        if self.data.num_rows("train") > MOST_HELD:
            return split
        self._training = self._training or [tuple(map(sys.intern, sentence)) for sentence in split]
        return self._training

    @cached_property
    def known_words(self) -> set[str]:
        """The words of training and test split. Real text is from the validation split, so it can have unknown words."""
        tested = (word for sentence in self.data.corpus.sentences["test"] for word in words(sentence))
        return set(tested).union(*self.training())

    @cached_property
    def counted_references(self) -> References:
        return References(self.split_references, max_n=5)

    @cached_property
    def encoded_references(self) -> Tensor:
        """Raw outlines [N, D] of the references, from `encoder`."""
        assert self.encoder
        stores = self.data.stores
        if stores and stores["test"].encoder_fingerprint == self.encoder.fingerprint:
            return self.real_outlines
        return torch.from_numpy(self.encoder.encode(self.references))

    @cached_property
    def features_of_references(self) -> Tensor:
        """Features [N, D] of the references for MAUVE."""
        assert self.features
        same = self.features is self.encoder
        return self.encoded_references if same else torch.from_numpy(self.features.encode(self.references))

    @cached_property
    def real_outlines(self) -> Tensor:
        """Raw outlines [N, D] of the references, from the encoder of the runs."""
        return torch.from_numpy(self.data.stores["test"].rows(self.rows))

    def real_text(self) -> Sentences:
        """Return held-out sentences other than the references, with their outlines if the corpus is encoded."""
        stores = self.data.stores
        raw = torch.from_numpy(stores["valid"].rows(self.others)) if stores else None
        further = training_outlines(self.data)[1] if stores and self.full else None
        return Sentences(self.data.text("valid", self.others), raw, further)

    def measure(self, sentences: Sentences, learnt: Sequence[str] | None = None) -> Row:
        """Return all metrics of one source's sentences. learnt: text to train the reverse judges on; None: `sentences`."""
        text = sentences.text
        row: Row = {"num_samples": len(text), "samples": list(text[:NUM_SHOWN])}
        for name, judge in self.judges.forward.items():
            row |= judge(text).figures(name)
        if self.judges.pretrained is not None:
            row |= self.judges.pretrained.score(text).figures("pretrained")
        compared = text[:len(self.references)]
        row["num_compared"] = len(compared)
        split = [words(sentence) for sentence in compared]
        for metric in (*METRICS, *(FULL_METRICS if self.full else ())):
            row |= metric(self, compared, split)
        if sentences.outlines is not None:
            key = hashlib.sha256(sentences.outlines.numpy().tobytes()).digest()
            if key not in self._outline_figures:
                self._outline_figures[key] = self.outline_figures(sentences, self.full)
            row |= self._outline_figures[key]
        if self.full:
            row |= self.reverse(text if learnt is None else learnt)
            encoded = None
            if self.encoder is not None:
                encoded = torch.from_numpy(self.encoder.encode(list(compared)))
                row |= outline_figures("text", self.encoded_references, encoded, full=True, device=self.data.device)
            if self.features is not None:
                row |= self.mauve(compared, encoded if self.features is self.encoder else None)
        return row

    def mauve(self, text: Sequence[str], encoded: Tensor | None = None) -> Row:
        """Return MAUVE of a source's sentences. encoded: features [N, D] of these sentences; None: compute them."""
        assert self.features
        if encoded is None:
            encoded = torch.from_numpy(self.features.encode(list(text[:len(self.references)])))
        return mauve_figures(self.features_of_references, encoded)

    def outline_figures(self, sentences: Sentences, full: bool) -> Row:
        """Return the metrics of the outlines from which sentences were decoded. full: see the function `outline_figures`."""
        assert sentences.outlines is not None
        further = sentences.further if full else None
        learn_from = None if further is None else (training_outlines(self.data)[0], further)
        row = outline_figures("outline", self.real_outlines, sentences.outlines, full, learn_from, self.data.device)
        if full:
            raw = sentences.outlines[:len(self.references)]
            row["outline_nearest_cosine"] = float(nearest_rows(raw, self.data.stores["train"], 1, chunk=2048)[0].mean())
        return row

    def reverse(self, text: Sequence[str]) -> Row:
        """Return the scores of the reverse judges. Skips samples that no corpus contains: empty ones and ones with NUL."""
        text = [sentence for sentence in text if sentence.strip() and "\0" not in sentence]
        row: Row = {"num_reverse": len(text)}
        if len(text) >= LEAST_ROWS:  # After little training, most samples of a model can be empty.
            for name, judge in self.judges.reverse.items():
                row |= judge(text, self.references).figures(name)
        return row


def variety(yardstick: Yardstick, text: Sequence[str], split: Split) -> Row:
    """Return the shares of empty, distinct and copied sentences and, if there are enough words, distinct-2 and self-BLEU."""
    row: Row = {"empty": split.count([]) / len(split), "unique": unique_rate(split),
                "copied": copied_rate(split, yardstick.training())}
    row |= {"distinct_2": distinct_n(split, 2)} if any(len(sentence) > 1 for sentence in split) else {}
    if any(split) and len(split) > 1:
        row |= {f"self_bleu_{n}": score for n, score in self_bleu_scores(split).items()}
    return row


def non_words(yardstick: Yardstick, text: Sequence[str], split: Split) -> Row:
    """Return the share of sentences with a word that is neither in the training nor in the test split."""
    return {"non_words": sum(not yardstick.known_words.issuperset(sentence) for sentence in split) / len(split)}


def in_grammar(yardstick: Yardstick, text: Sequence[str], split: Split) -> Row:
    """Return the share of sentences that the embedded grammar can derive, and the mean nll of these sentences.

    nll: under the grammar, nats per sentence. Returns nothing for other corpora.
    """
    if not yardstick.data.embedded:
        return {}
    each = (grammar.scenes().log_prob(" ".join(sentence.split())) for sentence in text)
    inside = [-value for value in each if value > -torch.inf]
    return {"in_language": len(inside) / len(text), **({"grammar_nll": sum(inside) / len(inside)} if inside else {})}


def likeness(yardstick: Yardstick, text: Sequence[str], split: Split) -> Row:
    """Return BLEU and length distance to the references, and the overlap with the nearest training sentence."""
    nearest = nearest_overlap(split, yardstick.training())
    return {"nearest_overlap": nearest.mean, "near_copies": nearest.near_copies,
            "length_distance": length_distance(split, yardstick.split_references),
            **{f"bleu_{n}": score for n, score in bleu_scores(split, yardstick.counted_references).items()}}


def repetition(yardstick: Yardstick, text: Sequence[str], split: Split) -> Row:
    """Return n-gram diversity and the share of 4-grams from the training text; nothing if no sample has four words."""
    if not any(len(sentence) >= 4 for sentence in split):
        return {}
    return {"diversity": diversity(split), "memorised_4grams": memorised_ngrams(split, yardstick.training(), 4)}


Metric = Callable[[Yardstick, Sequence[str], Split], Row]  # yardstick, sentences, words of each sentence → metrics
METRICS: tuple[Metric, ...] = (variety, non_words, in_grammar)
FULL_METRICS: tuple[Metric, ...] = (likeness, repetition)


def outline_figures(name: str, real: Tensor, fake: Tensor, full: bool,
                    learn_from: tuple[Tensor, Tensor] | None = None, device: torch.device | str = "cpu") -> Row:
    """Return metrics of real and fake raw outlines, [N, D] each; the larger set is cut to the size of the smaller one.

    Returns nothing if there are too few rows or if all real outlines are equal.

    name: prefix of the keys. full: add Fréchet distance and two-sample test. learn_from: other raw outlines, real and fake,
    from which the classifier of this test learns; None: it learns from half of the rows. device: of the classifier.
    """
    size = min(len(real), len(fake))
    mean = real.double().mean(dim=0)
    scale = (real - mean).square().mean().sqrt()
    if size <= NEIGHBOURS or scale <= 1e-5 * real.abs().max():
        return {}
    real, fake = ((rows[:size].cpu() - mean) / scale for rows in (real, fake))
    near = knn_precision_recall(real, fake, NEIGHBOURS)
    row: Row = {f"{name}_precision": near.precision, f"{name}_recall": near.recall}
    if full and size >= LEAST_TWO_SAMPLE:
        row[f"{name}_frechet"] = frechet_distance(real, fake)
        if learn_from is not None:
            most = min(map(len, learn_from))
            ours, theirs = ((rows[:most].cpu() - mean) / scale for rows in learn_from)
            learn_from = ours, theirs
        test = two_sample_accuracy(real, fake, learn_from, device=device)
        row |= {f"{name}_two_sample": test.accuracy, f"{name}_two_sample_low": test.low,
                f"{name}_two_sample_high": test.high}
    return row


def mauve_figures(real: Tensor, fake: Tensor) -> Row:
    """Return MAUVE and MAUVE* from the features [N, D] of real and of fake text; nothing if there are too few rows."""
    size = min(len(real), len(fake))
    if size < MIN_ROWS:
        return {}
    score = mauve(real[:size], fake[:size])
    return {"text_mauve": score.mauve, "text_mauve_star": score.star}
