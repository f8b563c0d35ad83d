"""Teacher-forced scores: how likely a decoder finds given sentences."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from outlines.corpus.batching import collate, in_like_length
from outlines.networks.decoder import Decoder


@torch.no_grad()
def nll_of_rows(decoder: Decoder, rows: Sequence[np.ndarray], vectors: Tensor | None = None,
                batch_size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Return the nll, nats per sentence [N], and the number of targets (eos included) per sentence [N].

    rows: token ids of each sentence. vectors: [N, D], one per row, or None.
    """
    if decoder.training:
        raise ValueError("score with a decoder in evaluation mode")
    device = next(decoder.parameters()).device
    nll = np.zeros(len(rows))
    for chosen in in_like_length(rows, batch_size):
        batch = collate([rows[row] for row in chosen], decoder.config).to(device)
        vector = None if vectors is None else vectors[torch.from_numpy(chosen)].to(device)
        nll[chosen] = decoder.nll(batch, vector).double().cpu().numpy()
    return nll, np.array([len(row) + 1 for row in rows], dtype=np.int64)
