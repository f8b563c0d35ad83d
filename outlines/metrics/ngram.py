"""An n-gram language model with modified Kneser-Ney smoothing. It scores samples of networks, but is not a network itself.

A prediction depends only on the last n - 1 tokens. The nll falls as the training text grows, so compare only models of equal
numbers of training sentences. A gram is a sequence of tokens (n-gram), and its order is its length.
Source: Chen and Goodman, An Empirical Study of Smoothing Techniques for Language Modeling (1998), interpolated models.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from outlines.corpus.tokenizer import SPECIAL

Row = np.ndarray | Sequence[int]
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


def discounts(counts: np.ndarray) -> np.ndarray:
    """Return the discounts D(c) for counts c = 0, 1, 2, and 3 or more. D(0) = 0; the others are above 0 and at most c.

    D(c) = c - (c + 1) Y n_{c+1} / n_c, where n_c is the number of grams that occur c times, and Y = n_1 / (n_1 + 2 n_2). If
    this formula cannot be used: KenLM's FALLBACK_DISCOUNTS. counts: the count of each gram of one order.
    Source: Chen and Goodman (1998), equation 26.
    """
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    found = FALLBACK_DISCOUNTS
    if n1 and n2 and n3 and n4:
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return np.array([0.0, *(found if min(found) > 0 else FALLBACK_DISCOUNTS)])


class _Grams:
    """The distinct grams of one order, smoothed. The id of a gram is its index. All unseen grams have the id `unseen`.

    keys: context id × V + last token of each gram, ascending, then a sentinel. discounted: (c - D(c)) / Σ c of each gram.
    backoff: backoff(h) of each context h, see NgramModel.
    """

    def __init__(self, keys: np.ndarray, counts: np.ndarray, num_contexts: int, vocab_size: int) -> None:
        contexts = keys // vocab_size
        removed = discounts(counts)[np.minimum(counts, 3)]
        totals = np.bincount(contexts, counts, num_contexts)
        self.unseen = len(keys)
        self.keys = np.append(keys, np.iinfo(np.int64).max)
        self.discounted = np.append((counts - removed) / totals[contexts], 0.0)
        self.backoff = np.ones(num_contexts + 1)
        # A gram that ends in EOS is never a context.
        np.divide(np.bincount(contexts, removed, num_contexts), totals, out=self.backoff[:-1], where=totals > 0)

    def find(self, keys: np.ndarray) -> np.ndarray:
        ids = np.searchsorted(self.keys, keys)
        return np.where(self.keys[ids] == keys, ids, self.unseen)


def _as_contexts(ids: np.ndarray, tokens: np.ndarray, unseen: int, bos_id: int) -> np.ndarray:
    """Return the id of the gram that ends before each token; `unseen` at BOS."""
    contexts = np.roll(ids, 1)
    contexts[tokens == bos_id] = unseen
    return contexts


class NgramModel:
    """A language model over V token ids, all of which except UNK, BOS and PAD can come next.

    With c the count of a gram, h its context (all but its last token w) and h' that context without its first token:

        p(w | h) = (c(h w) - D(c(h w))) / Σ_v c(h v) + backoff(h) p(w | h'),   backoff(h) = Σ_v D(c(h v)) / Σ_v c(h v)

    and p(w | h) = p(w | h') if h was never seen. The empty context backs off to the uniform distribution over V - 3 tokens,
    so no sentence has probability 0. For grams of `order` tokens, c is the number of occurrences. For shorter grams, c is
    the number of distinct preceding tokens. For grams that begin with BOS, which have no preceding token, c is the number of
    occurrences, as in KenLM.
    """

    def __init__(self, rows: Iterable[Row], vocab_size: int, order: int = 5) -> None:
        """Count the grams of `rows`: token ids of each sentence, without BOS and EOS."""
        self.vocab_size = vocab_size
        tokens, _ = self._joined(rows)
        self._orders: list[_Grams] = []
        # For each order and token: `ids` has the gram that ends at the token, `contexts` the gram that ends before it.
        keys, ids, counts = np.unique(tokens, return_inverse=True, return_counts=True)
        counts[keys == SPECIAL.bos_id] = 0  # BOS is only a context
        num_contexts = 1
        for _ in range(order - 1):
            contexts = _as_contexts(ids, tokens, len(keys), SPECIAL.bos_id)
            present = np.flatnonzero(contexts < len(keys))
            longer_keys, first, inverse, longer_counts = np.unique(
                contexts[present] * vocab_size + tokens[present], return_index=True, return_inverse=True, return_counts=True)
            # Every distinct longer gram adds one preceding token to its suffix.
            preceding = np.bincount(ids[present[first]], minlength=len(keys))
            self._orders.append(_Grams(keys, np.where(preceding, preceding, counts), num_contexts, vocab_size))
            ids = np.full(len(tokens), len(longer_keys))
            ids[present] = inverse
            num_contexts, keys, counts = len(keys), longer_keys, longer_counts
        self._orders.append(_Grams(keys, counts, num_contexts, vocab_size))

    def nll_of_rows(self, rows: Iterable[Row]) -> tuple[np.ndarray, np.ndarray]:
        """Return the nll [N] in nats and the number of targets [N], eos included, of each sentence."""
        tokens, starts = self._joined(rows)
        nll = -np.log(self._probabilities(tokens))
        nll[starts] = 0  # BOS is not predicted
        return np.add.reduceat(nll, starts), np.diff(starts, append=len(tokens)) - 1

    def _probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Return the probability of each of `tokens` given the tokens before it. The values at BOS have no meaning."""
        probabilities = np.full(len(tokens), 1 / (self.vocab_size - len(SPECIAL.never_written)))
        contexts = np.zeros_like(tokens)
        for grams in self._orders:
            ids = grams.find(contexts * self.vocab_size + tokens)
            probabilities = grams.discounted[ids] + grams.backoff[contexts] * probabilities
            contexts = _as_contexts(ids, tokens, grams.unseen, SPECIAL.bos_id)
        return probabilities

    def _joined(self, rows: Iterable[Row]) -> tuple[np.ndarray, np.ndarray]:
        """Return one int64 array of all sentences, each from BOS to EOS, and the indices at which the sentences start."""
        pieces = [np.asarray(row, dtype=np.int64) for row in rows]
        ends = np.array([len(piece) for piece in pieces], dtype=np.int64).cumsum()
        inner = np.concatenate([*pieces, np.empty(0, dtype=np.int64)])
        if len(inner) and not (max(vars(SPECIAL).values()) < inner.min() and inner.max() < self.vocab_size):
            raise ValueError(f"n-gram model: rows contain ids from {inner.min()} to {inner.max()}. Only ids of pieces below "
                             f"{self.vocab_size} are allowed.")
        starts = np.append(0, ends)[:-1]
        bounds = np.stack([starts, ends], axis=1).ravel()
        tokens = np.insert(inner, bounds, np.tile([SPECIAL.bos_id, SPECIAL.eos_id], len(pieces)))
        return tokens, starts + 2 * np.arange(len(pieces))
