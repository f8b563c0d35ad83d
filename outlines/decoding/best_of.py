"""Best-of-N sampling: of N new sentences, each with its own vector, keep the one with the best score.

The score is -log p(sentence) / (number of tokens)^0.75; lower is better. A power of the length is used because -log p itself
prefers short sentences, and -log p per token prefers long ones (length normalisation: Wu et al., Google's Neural Machine
Translation System, 2016). p is the decoder without its vector if the decoder was trained to write without one. Otherwise, p
depends on the sentence's own vector.
"""

import numpy as np
import torch
from torch import Tensor

from outlines.decoding.sample import SamplingConfig, at_strength
from outlines.decoding.scoring import nll_of_rows
from outlines.networks.decoder import Decoder

LENGTH_POWER = 0.75  # with it, the kept sentences of english are as long as other ones: see its model card


def best_of(decoder: Decoder, ids: list[list[int]], vectors: Tensor | None,
            sampling: SamplingConfig) -> tuple[list[list[int]], Tensor | None]:
    """Return the best sentence of each group of `sampling.best_of` consecutive sentences, with its vector.

    ids: token ids of N sentences. vectors: their vectors [N, D], or None for a language model.
    """
    if (group := sampling.best_of or 1) == 1:
        return ids, vectors
    blind = decoder.config.vector_dropout > 0 or decoder.config.min_strength == 0
    given = vectors if vectors is None or not blind else torch.zeros_like(vectors)
    # Equal sentences need equal scores, but rounding depends on the other sentences of a batch. So only the first counts.
    first: dict[tuple[int, ...], int] = {}
    same = [first.setdefault(tuple(row), number) if given is None or blind else number for number, row in enumerate(ids)]
    rows = sorted(set(same))
    nll, num_targets = nll_of_rows(decoder, [np.asarray(ids[row], dtype=np.int64) for row in rows],
                                   None if given is None else at_strength(given[rows], sampling))
    score = dict(zip(rows, nll / num_targets ** LENGTH_POWER, strict=True))
    best = [min(range(start, start + group), key=lambda row: score[same[row]]) for start in range(0, len(ids), group)]
    return [ids[row] for row in best], None if vectors is None else vectors[best]
