"""Diversity and originality of generated sentences. Each sentence is a list of words from `words`. All values are exact."""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from sentencepiece import SentencePieceNormalizer

Words = Sequence[str]
Ngram = tuple[str, ...]

_NORMALIZER = SentencePieceNormalizer(rule_name="nmt_nfkc_cf")
# Scripts without spaces: Thai to Myanmar, Khmer, Tai Le to Tai Tham, Balinese, Chinese to Yi, Javanese, Myanmar.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u1950-\u1aaf\u1b00-\u1b7f\u2e80-\ua4cf\ua980-\ua9df\uaa60-\uaa7f"
# With all characters, not only the first 65,536, `re` is four times slower.
_KINDS = {chr(code): unicodedata.category(chr(code))[0] for code in range(1 << 16)}
_MARKS = re.escape(string.punctuation + "".join(character for character, kind in _KINDS.items() if kind == "P"))
_COMBINING = re.escape("".join(character for character, kind in _KINDS.items() if kind == "M"))
_CHARACTER = rf"[{_UNSPACED}][{_COMBINING}]*"
_LETTERS = rf"[^\s{_MARKS}{_UNSPACED}]+"
_WORD = re.compile(rf"{_LETTERS}(?:[-'’]{_LETTERS})*|{_CHARACTER}|[{_MARKS}]")
_SEPARATE = re.compile(rf"{_CHARACTER}|(?![\0-\u036f\u2000-\u206f])[{_MARKS}]")


def normalized(sentence: str) -> str:
    """Return the sentence in the form that metrics compare: lower case, and NFKC like decoded text."""
    if sentence.isascii() and sentence.isprintable():
        return sentence.lower().strip()
    return unicodedata.normalize("NFKC", _NORMALIZER.normalize(sentence)).replace("▁", " ").strip()


def words(sentence: str) -> list[str]:
    """Return the normalised words (such as t-shirt and man's) and punctuation marks of a sentence.

    In scripts without spaces, each character is a word.
    """
    return _WORD.findall(normalized(sentence))


def unspaced(sentences: Iterable[str]) -> bool:
    """Return whether most words are characters of a script without spaces, such as Chinese."""
    found = [bool(re.match(_CHARACTER, word)) for sentence in sentences for word in words(sentence)]
    return 2 * sum(found) > len(found)


def separated(sentence: str) -> str:
    """Return a normalised sentence with spaces around the characters and marks that sacrebleu's tokenizer does not split."""
    return _SEPARATE.sub(r" \g<0> ", normalized(sentence))


def ngrams(sentence: Words, n: int) -> Iterable[Ngram]:
    """Return the n-grams of a sentence, in order."""
    return zip(*(sentence[start:] for start in range(n)), strict=False)


def distinct_n(samples: Sequence[Words], n: int) -> float:
    """Return the number of distinct n-grams divided by the number of all n-grams: 0 to 1 (Li et al. 2016).

    The value falls as samples are added, so compare equal numbers of samples.
    """
    counts = Counter(ngram for sample in samples for ngram in ngrams(sample, n))
    return len(counts) / max(1, counts.total())


def diversity(samples: Sequence[Words]) -> float:
    """Return the product of 1 - rep-n for n = 2 to 4, from 0 to 1. rep-n is the share of n-grams that are repetitions.

    All samples count as one text, so the diversity falls as samples are added. Compare equal numbers of samples.
    Source: Su et al., A Contrastive Framework for Neural Text Generation (2022); over samples as in Lovelace et al. (2023).
    """
    return math.prod(distinct_n(samples, n) for n in (2, 3, 4))


def memorised_ngrams(samples: Sequence[Words], training: Iterable[Words], n: int = 4) -> float:
    """Return the share of the samples' n-grams that occur in the training text, 0 to 1. Reads `training` once.

    Source: memorisation in Lovelace et al., Latent Diffusion for Language Generation (2023).
    """
    counts = Counter(ngram for sample in samples for ngram in ngrams(sample, n))
    known = {ngram for sentence in training for ngram in counts.keys() & ngrams(sentence, n)}
    return sum(counts[ngram] for ngram in known) / max(1, counts.total())


def unique_rate(samples: Sequence[Words]) -> float:
    """Return the share of distinct samples. The share falls as samples are added, so compare equal numbers of samples."""
    return len(set(map(tuple, samples))) / len(samples)


def copied_rate(samples: Sequence[Words], training: Iterable[Words]) -> float:
    """Return the share of samples that are also training sentences, word for word: 0 to 1. Reads `training` once."""
    counts = Counter(map(tuple, samples))
    copied = {sentence for sentence in map(tuple, training) if sentence in counts}
    return sum(counts[sentence] for sentence in copied) / len(samples)


class NearestOverlap(NamedTuple):
    """Overlap of samples with training sentences, see `nearest_overlap`."""

    mean: float  # mean overlap of the samples, 0 to 1
    near_copies: float  # share of samples with an overlap above 0.9


def nearest_overlap(samples: Sequence[Words], training: Iterable[Words], n: int = 4) -> NearestOverlap:
    """Return how much the samples overlap with the training text.

    The overlap of a sample is the largest share of its distinct n-grams that one training sentence contains. A sentence of
    fewer than n words counts as one n-gram. The overlap grows with the number of training sentences.
    Source: McCoy et al., How Much Do Language Models Copy From Their Training Data? (2023); here for one training sentence.
    """
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
    size = max(map(len, [*samples, *reference])) + 1
    below, below_reference = (np.bincount(list(map(len, sentences)), minlength=size).cumsum()
                              for sentences in (samples, reference))
    heights = abs(below * len(reference) - below_reference * len(samples))  # integers, so the sum is exact
    return float(heights.sum()) / (len(samples) * len(reference))
