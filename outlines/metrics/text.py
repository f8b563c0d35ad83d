"""Diversity and originality of generated sentences: distinct-n, repeats, copies, lengths.

A sentence is a list of words from `words`. All figures are exact: no sampling, no hashing.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

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
    """Return distinct n-grams / n-grams of the samples, 0..1; 0 if no sample has n words.

    It falls as samples are added: compare equal numbers, also with real sentences.
    Source: Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models (2016).
    """
    require_sentences("distinct-n", samples)
    counts = Counter(ngram for sample in samples for ngram in ngrams(sample, n))
    return len(counts) / max(1, counts.total())


def unique_rate(samples: Sequence[Words]) -> float:
    """Return distinct sentences / sentences, 0..1. It falls as samples are added: compare equal numbers.

    Source: common usage; "uniqueness" in Brown et al., GuacaMol (2019).
    """
    require_sentences("unique rate", samples)
    return len(set(map(tuple, samples))) / len(samples)


def copied_rate(samples: Sequence[Words], training: Iterable[Words]) -> float:
    """Return the share of samples that occur word for word in the training text, 0..1.

    Short sentences recur, so real held-out text is not at 0 either. `training` is read once; memory grows with the samples.
    Source: common usage; the complement of "novelty", Brown et al., GuacaMol (2019).
    """
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

    Also finds training sentences with a changed beginning or end, unlike `copied_rate`. A sentence of fewer than n words
    counts as one n-gram. It grows with the number of training sentences; real held-out text shows the expected value.
    Memory: an inverted index of the samples' n-grams.
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
    """Return the 1-Wasserstein distance between two distributions of sentence length, in words.

    The area between the two empirical distribution functions. Two samples of N sentences of the same text differ by about
    the standard deviation of the length / √N.
    Source: Vallender, Calculation of the Wasserstein Distance Between Probability Distributions on the Line (1974).
    """
    require_sentences("length distance", samples)
    require_sentences("length distance", reference)
    excess: Counter[int] = Counter()  # units of 1 / (samples × reference), so sums are exact
    for sentences, weight in ((samples, len(reference)), (reference, -len(samples))):
        for sentence in sentences:
            excess[len(sentence)] += weight
    lengths = sorted(excess)
    heights = accumulate(excess[length] for length in lengths)
    area = sum(abs(height) * (end - start)
               for height, start, end in zip(heights, lengths, lengths[1:], strict=False))
    return area / (len(samples) * len(reference))
