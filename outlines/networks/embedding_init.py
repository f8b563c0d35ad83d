"""Initialisation of a decoder's embeddings and output bias from training-set counts.

A token's embedding is computed from its neighbours (positive pointwise mutual information, reduced to the largest singular
values). Its output bias is computed from its frequency. This saves about a third of the time of a short training run.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from outlines.corpus.tokenizer import SpecialIds
from outlines.errors import OutlinesError
from outlines.networks.decoder import Decoder

REACH = 3  # maximum distance of neighbours; each distance on each side has its own counts
MAX_COUNTED_ROWS = 200_000  # training sentences; limits the memory for counts


@torch.no_grad()
def start_words(decoder: Decoder, rows: Sequence[np.ndarray], seed: int) -> None:
    """Initialise a decoder's embeddings and output bias from training sentences. rows: token ids without bos and eos."""
    config, words = decoder.config, decoder.words()
    if not words:
        raise OutlinesError(f"Decoder {config.kind!r} has no embeddings to initialise from counts. Use --word-start random.")
    embeddings, bias = words
    vectors = word_vectors(rows, config.vocab_size, embeddings.shape[1], seed, config).to(embeddings)
    embeddings.copy_(torch.where(vectors.any(dim=1, keepdim=True), vectors, embeddings))
    bias.copy_(log_shares(rows, config.vocab_size, config))


def word_vectors(rows: Sequence[np.ndarray], vocab_size: int, width: int, seed: int, special: SpecialIds) -> Tensor:
    """Return vectors [V, width] of tokens, with variance 1 / width; zeros for tokens without informative neighbours.

    rows: token ids of sentences; bos and eos count as neighbours. seed: for the randomised SVD and a random rotation.
    Source: Levy and Goldberg, Neural Word Embedding as Implicit Matrix Factorization (2014), section 5, without a shift.
    Deviation: each distance and side has its own columns.
    """
    apart = np.full(REACH, -1)
    text = np.concatenate([part for row in rows for part in ([special.bos_id], row, [special.eos_id], apart)])
    places, counts = [], []
    for distance in range(1, REACH + 1):
        left, right = text[:-distance], text[distance:]
        # Between two sentences are REACH separators (-1), so the tokens of a pair are from the same sentence.
        near = (left >= 0) & (right >= 0)
        pairs, number = np.unique(left[near].astype(np.int64) * vocab_size + right[near], return_counts=True)
        first, second = np.divmod(pairs, vocab_size)
        columns = (2 * distance - 2) * vocab_size
        places += [np.stack([first, columns + second]), np.stack([second, columns + vocab_size + first])]
        counts += [number, number]
    where, number = np.concatenate(places, axis=1), np.concatenate(counts).astype(np.float64)
    of_word, of_column = (np.bincount(axis, number)[axis] for axis in where)
    information = np.log(number * number.sum() / (of_word * of_column))
    positive = information > 0
    matrix = torch.sparse_coo_tensor(torch.from_numpy(where[:, positive]), torch.from_numpy(information[positive]).float(),
                                     (vocab_size, 2 * REACH * vocab_size), check_invariants=True).coalesce()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left_vectors, values, _ = torch.svd_lowrank(matrix, q=min(width, vocab_size), niter=4)
        turn = torch.linalg.qr(torch.randn(width, width))[0]
    vectors = (left_vectors * values.sqrt()) @ turn[:len(values)]
    told = torch.from_numpy(np.bincount(where[0, positive], minlength=vocab_size) > 0)
    scale = vectors[told].square().mean().sqrt()
    return torch.where(told[:, None], vectors / (scale * width ** 0.5), 0.0)


def log_shares(rows: Sequence[np.ndarray], vocab_size: int, special: SpecialIds) -> Tensor:
    """Return the log of each token's share of the targets [V], eos included. 0.5 is added to each count."""
    counts = np.bincount(np.concatenate(rows), minlength=vocab_size) + 0.5
    counts[special.eos_id] += len(rows)
    return torch.from_numpy(np.log(counts) - math.log(counts.sum())).float()
