"""BLEU of generated sentences: against a test set, against one another, against the sentence to reconstruct.

Last on the way from noise to text. A sentence is a list of words, as `outlines.metrics.text.words` splits it,
except where a function takes raw strings.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate

from outlines.errors import OutlinesError
from outlines.metrics.text import Ngram, Words, ngrams, require_sentences


class References:
    """Reference sentences, counted once: BLEU against them then costs the same however many they are.

    BLEU clips the count of an n-gram at its largest count in any one reference. For a hypothesis that is
    itself a member, the largest among the others is the second largest of all if the hypothesis holds the
    largest.
    """

    def __init__(self, sentences: Sequence[Words], max_n: int = 5) -> None:
        require_sentences("BLEU references", sentences)
        self.max_n = max_n
        self.lengths = Counter(len(sentence) for sentence in sentences)
        self.largest_two: dict[Ngram, tuple[int, int]] = {}  # equal where two sentences attain the largest
        for sentence in sentences:
            for n in range(1, max_n + 1):
                for ngram, count in Counter(ngrams(sentence, n)).items():
                    first, second = self.largest_two.get(ngram, (0, 0))
                    if count > second:
                        self.largest_two[ngram] = (max(first, count), min(first, count))

    def matches(self, hypothesis: Words, n: int, is_member: bool = False) -> int:
        """How many n-grams of the hypothesis the references hold, each clipped at its count there."""
        total = 0
        for ngram, count in Counter(ngrams(hypothesis, n)).items():
            first, second = self.largest_two.get(ngram, (0, 0))
            total += min(count, second if is_member and count == first else first)
        return total

    def closest_length(self, length: int, is_member: bool = False) -> int:
        """The reference length nearest to `length`; of two equally near, the shorter."""
        if self.lengths[length] > (1 if is_member else 0):
            return length
        others = (other for other in self.lengths if other != length)
        return min(others, key=lambda other: (abs(other - length), other))


def _brevity_penalty(length: int, reference_length: int) -> float:
    return math.exp(min(0.0, 1 - reference_length / length)) if length else 0.0


def _sentence_bleu(hypothesis: Words, references: References, is_member: bool) -> list[float]:
    """BLEU-1 to BLEU-max_n of one sentence; no match of an order counts as 0.1 (NLTK's method1)."""
    orders = range(1, references.max_n + 1)
    matches = [references.matches(hypothesis, n, is_member) for n in orders]
    if matches[0] == 0:
        return [0.0] * len(matches)
    length = len(hypothesis)
    log_precisions = [math.log((matches[n - 1] or 0.1) / max(1, length - n + 1)) for n in orders]
    penalty = _brevity_penalty(length, references.closest_length(length, is_member))
    sums = accumulate(log_precisions)
    return [penalty * math.exp(log_sum / n) for n, log_sum in zip(orders, sums, strict=True)]


def _mean_bleu(hypotheses: Sequence[Words], references: References, is_member: bool) -> dict[int, float]:
    scores = [_sentence_bleu(hypothesis, references, is_member) for hypothesis in hypotheses]
    means = [math.fsum(column) / len(scores) for column in zip(*scores, strict=True)]
    return dict(enumerate(means[1:], start=2))


def bleu_scores(hypotheses: Sequence[Words], references: Sequence[Words] | References,
                max_n: int = 5) -> dict[int, float]:
    """BLEU-2 to BLEU-max_n of samples against a whole test set: {n: score in 0..1}, higher = more like it.

    Estimator: the mean over hypotheses of sentence BLEU-n with the whole set as references and NLTK's
    smoothing method1 (Chen & Cherry 2014). It grows with the number of references, so state both numbers. The
    ceiling is 1; as many real held-out sentences, scored alike, show what can be reached.
    references: sentences, or `References` to count one test set once for many calls.
    Source: Texygen, Zhu et al. (2018), BLEU. Deviation: its published code may take only the first 500
    references ("fast"); this takes all.
    """
    require_sentences("BLEU", hypotheses)
    counted = references if isinstance(references, References) else References(references, max_n)
    if counted.max_n != max_n:
        raise OutlinesError(f"BLEU: references counted to n = {counted.max_n}, not {max_n}; pass that max_n")
    return _mean_bleu(hypotheses, counted, is_member=False)


def self_bleu_scores(samples: Sequence[Words], max_n: int = 5) -> dict[int, float]:
    """Self-BLEU-2 to self-BLEU-max_n: {n: score in 0..1}, higher = the samples are more alike (less diverse).

    Estimator: the mean over samples of sentence BLEU-n with all *other* samples as references and NLTK's
    smoothing method1. A sample is never its own reference, though an exact duplicate of it is one. It grows
    with the number of samples, so compare equal numbers only, and lay as many real sentences beside it: they
    are far from 0. The ceiling is 1: every sentence has a duplicate.
    Source: Texygen, Zhu et al. (2018), self-BLEU. Deviation: its published code may take only the first 500
    samples ("fast"); this takes all.
    """
    require_sentences("self-BLEU", samples, at_least=2)
    return _mean_bleu(samples, References(samples, max_n), is_member=True)


def _corpus_statistics(hypotheses: Sequence[Words], references: Iterable[References],
                       max_n: int) -> tuple[list[int], list[int], float]:
    """Matches and n-grams of each order, summed over the corpus, and the brevity penalty."""
    matches, totals, length, reference_length = [0] * max_n, [0] * max_n, 0, 0
    for hypothesis, own_references in zip(hypotheses, references, strict=True):
        length += len(hypothesis)
        reference_length += own_references.closest_length(len(hypothesis))
        for n in range(1, max_n + 1):
            matches[n - 1] += own_references.matches(hypothesis, n)
            totals[n - 1] += max(0, len(hypothesis) - n + 1)
    return matches, totals, _brevity_penalty(length, reference_length)


def _geometric_mean(numerators: Sequence[float], denominators: Sequence[int]) -> float:
    logs = (math.log(top / bottom) for top, bottom in zip(numerators, denominators, strict=True))
    return math.exp(math.fsum(logs) / len(denominators))


def corpus_bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]] | References,
                max_n: int = 4) -> float:
    """Corpus BLEU-max_n in 0..1, unsmoothed: 0 where an order has no match in the whole corpus.

    Estimator: matches and n-grams are summed over all sentences, then divided. It grows with the number of
    references; the ceiling is 1.
    references: a list of references for each hypothesis, or one `References` that all hypotheses share.
    Source: Papineni et al., BLEU: a Method for Automatic Evaluation of Machine Translation (2002).
    """
    require_sentences("corpus BLEU", hypotheses)
    if isinstance(references, References):
        if references.max_n < max_n:
            raise OutlinesError(f"corpus BLEU: the references were counted up to n = {references.max_n} only")
        counted = [references] * len(hypotheses)
    else:
        _require_pairs("corpus BLEU", hypotheses, references)
        counted = [References(own_references, max_n) for own_references in references]
    matches, totals, penalty = _corpus_statistics(hypotheses, counted, max_n)
    return penalty * _geometric_mean(matches, totals) if all(matches) else 0.0


def _require_pairs(metric: str, hypotheses: Sequence[object], references: Sequence[object]) -> None:
    if len(hypotheses) != len(references):
        raise OutlinesError(f"{metric}: {len(hypotheses)} hypotheses, {len(references)} references: no pairs")


_TOKENIZER_13A = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"([{-~\[-` -&(-+:-@/])", r" \1 "),  # every mark but ' - . ,
    (r"([^0-9])([.,])", r"\1 \2 "),  # . and , not after a digit
    (r"([.,])([^0-9])", r" \1 \2"),  # . and , not before a digit
    (r"([0-9])(-)", r"\1 \2 "))]


def _words_13a(line: str) -> list[str]:
    """Lower-cased words as the mteval-v13a script splits them."""
    line = line.lower().rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        line = line.replace(entity, character)
    line = f" {line} "
    for pattern, replacement in _TOKENIZER_13A:
        line = pattern.sub(replacement, line)
    return line.split()


def reconstruction_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 in 0..100 of raw sentences, each against the one it should reconstruct; 100 = equal.

    Equal to `sacrebleu.corpus_bleu(hypotheses, [references], lowercase=True)`: 13a words; the orders without
    a match count 1/2, 1/4, ... of a match (Chen & Cherry 2014, method 3). 0 where nothing matches or no
    hypothesis has four words. A ratio of sums, so the number of sentences moves its spread, not its level.
    Source: Post, A Call for Clarity in Reporting BLEU Scores (2018).
    """
    require_sentences("reconstruction BLEU", hypotheses)
    _require_pairs("reconstruction BLEU", hypotheses, references)
    counted = (References([_words_13a(line)], max_n=4) for line in references)
    matches, totals, penalty = _corpus_statistics([_words_13a(line) for line in hypotheses], counted, 4)
    if not any(matches) or not all(totals):
        return 0.0
    smoothed: list[float] = []
    credit = 1.0
    for match in matches:
        credit = credit if match else credit / 2
        smoothed.append(match or credit)
    return 100 * penalty * _geometric_mean(smoothed, totals)
