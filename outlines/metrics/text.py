"""Diversity and originality of generated sentences: distinct-n, repeats, copies, lengths.

A sentence is a list of words from `words`. All figures are exact: no sampling, no hashing.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from outlines.errors import OutlinesError

Words = Sequence[str]
Ngram = tuple[str, ...]

_MARKS = re.escape(string.punctuation + "“”„‘’«»‹›…–—¡¿、。「」")
_WORD = re.compile(rf"[^\s{_MARKS}]+(?:[-'’][^\s{_MARKS}]+)*|[{_MARKS}]")


def words(sentence: str, lowercase: bool = False) -> list[str]:
    """Split at white space and around punctuation; a hyphen or apostrophe inside a word stays (t-shirt, man's)."""
    return _WORD.findall(sentence.lower() if lowercase else sentence)


def ngrams(sentence: Words, n: int) -> Iterable[Ngram]:
    """Return the n-grams of a sentence, in order."""
    return zip(*(sentence[start:] for start in range(n)), strict=False)


def require_sentences(metric: str, sentences: Sequence[object], at_least: int = 1) -> None:
    """Raise OutlinesError if a metric has too few sentences."""
    if len(sentences) < at_least:
        raise OutlinesError(f"{metric}: got {len(sentences)} sentences; at least {at_least} needed.")


def distinct_n(samples: Sequence[Words], n: int) -> float:
    """Return distinct n-grams / n-grams, 0..1 (Li et al. 2016). It falls as samples are added: compare equal numbers."""
    require_sentences("distinct-n", samples)
    counts = Counter(ngram for sample in samples for ngram in ngrams(sample, n))
    return len(counts) / max(1, counts.total())


def unique_rate(samples: Sequence[Words]) -> float:
    """Return distinct sentences / sentences, 0..1. It falls as samples are added: compare equal numbers."""
    require_sentences("unique rate", samples)
    return len(set(map(tuple, samples))) / len(samples)


def copied_rate(samples: Sequence[Words], training: Iterable[Words]) -> float:
    """Return the share of samples that occur word for word in the training text, 0..1. Reads `training` once."""
    require_sentences("copied rate", samples)
    counts = Counter(map(tuple, samples))
    copied = {sentence for sentence in map(tuple, training) if sentence in counts}
    return sum(counts[sentence] for sentence in copied) / len(samples)


class NearestOverlap(NamedTuple):
    """Overlap of samples with their nearest training sentence."""

    mean: float  # over samples, 0..1
    near_copies: float  # share of samples with more than 0.9 of their n-grams in one training sentence


def nearest_overlap(samples: Sequence[Words], training: Iterable[Words], n: int = 4) -> NearestOverlap:
    """Return, for each sample, the largest share of its distinct n-grams that one training sentence contains.

    A sentence of fewer than n words counts as one n-gram. It grows with the number of training sentences.
    Source: McCoy et al., How Much Do Language Models Copy From Their Training Data? (2023), here per training sentence.
    """
    require_sentences("nearest overlap", samples)
    sample_ngrams = [set(ngrams(sample, n)) or {tuple(sample)} for sample in samples]
    holders: dict[Ngram, list[int]] = {ngram: [] for own in sample_ngrams for ngram in own}
    for index, sentence in enumerate(training):
        for ngram in holders.keys() & (ngrams(sentence, n) if len(sentence) >= n else [tuple(sentence)]):
            holders[ngram].append(index)
    shares = []
    for own in sample_ngrams:
        held: Counter[int] = Counter()
        for ngram in own:
            held.update(holders[ngram])
        shares.append(max(held.values(), default=0) / len(own))
    return NearestOverlap(math.fsum(shares) / len(shares), sum(share > 0.9 for share in shares) / len(shares))


def length_distance(samples: Sequence[Words], reference: Sequence[Words]) -> float:
    """Return the 1-Wasserstein distance between two distributions of sentence length, in words (Vallender 1974)."""
    require_sentences("length distance", samples)
    require_sentences("length distance", reference)
    lengths = [np.sort([len(sentence) for sentence in sentences]) for sentences in (samples, reference)]
    points = np.unique(np.concatenate(lengths))
    below, below_reference = (np.searchsorted(own, points, side="right") for own in lengths)
    heights = abs(below * len(reference) - below_reference * len(samples))  # integers, so the sum is exact
    return float(heights[:-1] @ np.diff(points)) / (len(samples) * len(reference))
