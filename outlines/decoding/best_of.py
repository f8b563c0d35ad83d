"""Best-of-N sampling: of several new sentences, each with its own vector, keep the one that reads like the likeliest text.

The score of a sentence is its nll divided by (number of tokens)^0.75. Without the power, short sentences would win; with the
number of tokens itself, long ones (length normalisation, Wu et al., Google's Neural Machine Translation System, 2016). The
nll is the decoder's without a vector if it was trained to write without one, because a sentence can be likely given a vector
that no sentence has. Else it is the nll given the sentence's own vector.
"""

import numpy as np
import torch
from torch import Tensor

from outlines.decoding.scoring import nll_of_rows
from outlines.networks.decoder import Decoder

LENGTH_POWER = 0.75  # docs/results.md, "Best of several sentences"


def best_of(decoder: Decoder, ids: list[list[int]], vectors: Tensor | None,
            group: int) -> tuple[list[list[int]], Tensor | None]:
    """Return the best sentence of each group of consecutive sentences, with its vector.

    ids: token ids of N sentences. vectors: their vectors [N, D], or None for a language model. group: sentences per group.
    """
    if group == 1:
        return ids, vectors
    writes_blind = decoder.config.vector_dropout > 0 or decoder.config.min_strength == 0
    given = torch.zeros_like(vectors) if vectors is not None and writes_blind else vectors
    nll, num_targets = nll_of_rows(decoder, [np.asarray(row, dtype=np.int64) for row in ids], given)
    scores = torch.from_numpy(nll / num_targets ** LENGTH_POWER).view(-1, group)
    best = scores.argmin(dim=1) + group * torch.arange(len(scores))
    return [ids[row] for row in best], None if vectors is None else vectors[best.to(vectors.device)]
