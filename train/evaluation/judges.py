"""Judges: language models that score text. train/commands/judges.py trains them, except the pretrained one.

A forward judge is trained on real text and scores samples. A reverse judge is trained on samples and scores real text.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from outlines.metrics.text import words
from train.data import Dataset
from train.evaluation.pretrained import PretrainedLM


class Nll(NamedTuple):
    """NLL per token (nats) and perplexity per word of sentences under a language model, including the end of sentence."""

    per_token: float
    ppl_per_word: float

    def figures(self, name: str) -> dict[str, float]:
        return {f"{name}_nll_per_token": self.per_token, f"{name}_ppl_per_word": self.ppl_per_word}


Judge = Callable[[Sequence[str]], Nll]  # sentences → their score
ReverseJudge = Callable[[Sequence[str], Sequence[str]], Nll]  # samples to train on, real sentences → score of the real ones
Scoring = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray]]  # token ids → nll [N] in nats, targets [N]


class Judges(NamedTuple):
    """All judges of a corpus, by the prefix of their keys in a row."""

    forward: Mapping[str, Judge] = {}
    reverse: Mapping[str, ReverseJudge] = {}
    pretrained: PretrainedLM | None = None


def tokens_of(sentences: Sequence[str], data: Dataset) -> list[np.ndarray]:
    """Return token ids of sentences, encoded anew: a score must not depend on how the sampler split words into tokens."""
    limit = data.corpus.meta["max_len"]
    return [np.array(ids[:limit], dtype=np.int64) for ids in data.tokenizer.encode(list(sentences))]


def judge(scoring: Scoring, data: Dataset) -> Judge:
    """Return a judge that tokenises sentences with the run's tokenizer and scores them by `scoring`."""
    def score(sentences: Sequence[str]) -> Nll:
        nll, num_targets = scoring(tokens_of(sentences, data))
        num_words = sum(len(words(sentence)) + 1 for sentence in sentences)
        return Nll(float(nll.sum() / num_targets.sum()), float(np.exp(nll.sum() / num_words)))
    return score
