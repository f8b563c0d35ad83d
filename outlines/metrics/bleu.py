"""BLEU of samples against a test set, of samples against each other, and of reconstructions against the originals."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from outlines.errors import OutlinesError
from outlines.metrics.text import Ngram, Words, ngrams, separated


class References:
    """Reference sentences with counts of n-grams. The time for a score hardly depends on the number of references."""

    def __init__(self, sentences: Sequence[Words], max_n: int = 5) -> None:
        self.max_n = max_n
        self.lengths = Counter(len(sentence) for sentence in sentences)
        self.largest_two: dict[Ngram, tuple[int, int]] = {}  # the two largest counts in single sentences
        for sentence in sentences:
            for n in range(1, max_n + 1):
                for ngram, count in Counter(ngrams(sentence, n)).items():
                    first, second = self.largest_two.get(ngram, (0, 0))
                    if count > second:
                        self.largest_two[ngram] = (max(first, count), min(first, count))

    def matches(self, hypothesis: Words, n: int, is_member: bool = False) -> int:
        """Return the number of matching n-grams. An n-gram counts at most as often as it occurs in any one reference.

        is_member: whether the hypothesis is one of the references. If it is, it is compared only with the other references.
        """
        total = 0
        for ngram, count in Counter(ngrams(hypothesis, n)).items():
            first, second = self.largest_two.get(ngram, (0, 0))
            total += min(count, second if is_member and count == first else first)
        return total

    def closest_length(self, length: int, is_member: bool = False) -> int:
        """Return the reference length nearest to `length`; if two are equally near, the shorter one."""
        if self.lengths[length] > (1 if is_member else 0):
            return length
        others = (other for other in self.lengths if other != length)
        return min(others, key=lambda other: (abs(other - length), other))


def _sentence_bleu(hypothesis: Words, references: References, is_member: bool) -> list[float]:
    """Return BLEU-1 to BLEU-max_n of one sentence; an order n without matches counts as 0.1 matches (NLTK's method1)."""
    orders = range(1, references.max_n + 1)
    matches = [references.matches(hypothesis, n, is_member) for n in orders]
    if matches[0] == 0:
        return [0.0] * len(matches)
    length = len(hypothesis)
    log_precisions = accumulate(math.log((matches[n - 1] or 0.1) / max(1, length - n + 1)) for n in orders)
    penalty = math.exp(min(0.0, 1 - references.closest_length(length, is_member) / length))
    return [penalty * math.exp(log_sum / n) for n, log_sum in zip(orders, log_precisions, strict=True)]


def bleu_scores(hypotheses: Sequence[Words], references: References, are_members: bool = False) -> dict[int, float]:
    """Return BLEU-2 to BLEU-max_n of samples against a test set, as {n: score from 0 to 1}. `references` sets max_n.

    Each score is the mean over samples, with all test sentences as references and NLTK's smoothing method1. The scores grow
    with the number of references.
    are_members: whether the samples are the references. If they are, each sample is compared with all other samples.
    Source: Texygen, Zhu et al. (2018), with all references instead of the first 500.
    """
    scores = [_sentence_bleu(hypothesis, references, are_members) for hypothesis in hypotheses]
    means = [math.fsum(column) / len(scores) for column in zip(*scores, strict=True)]
    return dict(enumerate(means[1:], start=2))


def self_bleu_scores(samples: Sequence[Words], max_n: int = 5) -> dict[int, float]:
    """Return self-BLEU-2 to self-BLEU-max_n, as {n: score from 0 to 1}; a higher score means less diversity.

    Each score is the mean over samples, with all other samples as references and NLTK's smoothing method1. The scores grow
    with the number of samples.
    Source: Texygen, Zhu et al. (2018), with all samples instead of the first 500.
    """
    return bleu_scores(samples, References(samples, max_n), are_members=True)


def reconstruction_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return sacrebleu's corpus BLEU-4 (0 to 100, ignoring case) of reconstructions against the original sentences.

    If no hypothesis has four words, the longest possible n-grams are used (effective order).
    """
    import sacrebleu  # Imported here, because `python -m generate` does not need it to start.

    if len(hypotheses) != len(references):
        raise OutlinesError(f"reconstruction BLEU: {len(hypotheses)} hypotheses, but {len(references)} references. Pass one "
                            "reference for each hypothesis.")
    made, wanted = (list(map(separated, sentences)) for sentences in (hypotheses, references))
    return float(sacrebleu.corpus_bleu(made, [wanted], force=True, use_effective_order=True).score)
