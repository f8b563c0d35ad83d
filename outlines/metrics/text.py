"""Diversity and originality of generated sentences, from their words: distinct-n, repeats, copies, lengths.

Last on the way from noise to text; nothing here needs a model. A sentence is a list of words, as `words`
splits it,
and every figure is exact for the sentences given: no sampling, no hashing.
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
    """Split at white space and around punctuation: a mark is a word of its own.

    A hyphen or an apostrophe inside a word stays there (t-shirt, man's).
    """
    return _WORD.findall(sentence.lower() if lowercase else sentence)


def ngrams(sentence: Words, n: int) -> Iterable[Ngram]:
    """The n-grams of a sentence, in order; none where it has fewer than n words."""
    return zip(*(sentence[start:] for start in range(n)), strict=False)


def require_sentences(metric: str, sentences: Sequence[object], at_least: int = 1) -> None:
    """Raise OutlinesError where a metric has too few sentences to be defined."""
    if len(sentences) < at_least:
        raise OutlinesError(f"{metric}: needs {at_least} or more sentences, got {len(sentences)}")


def distinct_n(samples: Sequence[Words], n: int) -> float:
    """Distinct-n: distinct n-grams over all n-grams of the samples, in 0..1; 0 where no sample has n words.

    It falls as samples are added, because n-grams run out, so compare equal numbers only. The ceiling in
    practice is the figure of as many real sentences.
    Source: Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models (2016).
    """
    require_sentences("distinct-n", samples)
    counts = Counter(ngram for sample in samples for ngram in ngrams(sample, n))
    return len(counts) / max(1, counts.total())


def unique_rate(samples: Sequence[Words]) -> float:
    """Unique rate: distinct sentences over all sentences, in 0..1.

    It falls as samples are added, so compare equal numbers only. The ceiling in practice is real text's own
    figure: short sentences recur.
    Source: common usage; "uniqueness" in molecule generation, Brown et al., GuacaMol (2019).
    """
    require_sentences("unique rate", samples)
    return len(set(map(tuple, samples))) / len(samples)


def copied_rate(samples: Sequence[Words], training: Iterable[Words]) -> float:
    """Copied-from-training rate: the share of samples that the training text holds word for word, in 0..1.

    A sample drawn twice counts twice. Lay the rate of real held-out text beside it: short sentences recur, so
    an honest generator is not at 0. `training` is read once; memory grows with the samples only.
    Source: common usage; the complement of "novelty", Brown et al., GuacaMol (2019).
    """
    require_sentences("copied rate", samples)
    counts = Counter(map(tuple, samples))
    copied = {sentence for sentence in map(tuple, training) if sentence in counts}
    return sum(counts[sentence] for sentence in copied) / len(samples)


class NearestOverlap(NamedTuple):
    """How much of a sample stands in the one training sentence nearest to it."""

    mean: float  # over samples, 0..1
    near_copies: float  # the share of samples with more than 0.9 of their n-grams in one training sentence


def nearest_overlap(samples: Sequence[Words], training: Iterable[Words], n: int = 4) -> NearestOverlap:
    """For each sample, the largest share of its distinct n-grams that any single training sentence holds.

    Sees what `copied_rate` misses: a training sentence with its beginning or end changed. A sentence of fewer
    than n words is one n-gram, found only in its exact like. The more training sentences, the larger the
    overlap; the figure of as many real held-out sentences is what an honest generator reaches. The ceiling is
    1.
    Memory: an inverted index of the samples' own n-grams only.
    Source: McCoy et al., How Much Do Language Models Copy From Their Training Data? (2023), n-gram novelty.
    Deviation: per training sentence, because n-grams scattered over a corpus are no copy.
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
    """1-Wasserstein distance between two distributions of sentence length, in words; 0 = alike, no ceiling.

    Estimator: the area between the two empirical distribution functions. Two samples of the same text differ
    by about the standard deviation of the length over the root of their number; that is the floor.
    Source: Vallender, Calculation of the Wasserstein Distance Between Probability Distributions on the Line
    (1974).
    """
    require_sentences("length distance", samples)
    require_sentences("length distance", reference)
    excess: Counter[int] = Counter()  # in units of 1 / (samples x reference), so that the sums are exact
    for sentences, weight in ((samples, len(reference)), (reference, -len(samples))):
        for sentence in sentences:
            excess[len(sentence)] += weight
    lengths = sorted(excess)
    heights = accumulate(excess[length] for length in lengths)
    area = sum(abs(height) * (end - start)
               for height, start, end in zip(heights, lengths, lengths[1:], strict=False))
    return area / (len(samples) * len(reference))
