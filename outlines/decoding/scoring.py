"""Teacher-forced scores: how likely a decoder finds given sentences."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from outlines.corpus.batching import collate
from outlines.networks.decoder import Decoder


@torch.no_grad()
def nll_of_rows(decoder: Decoder, rows: Sequence[np.ndarray], vectors: Tensor | None = None,
                batch_size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """nll in nats per sentence [N] and real targets (eos included) per sentence [N].

    rows: token ids of each sentence. vectors: [N, D], one for each row, or None. Rows are scored in batches of like
    length; the decoder must be in evaluation mode, or dropout would blur the score.
    """
    if decoder.training:
        raise ValueError("score with a decoder in evaluation mode")
    device = next(decoder.parameters()).device
    nll, num_targets = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    for chosen in in_like_length(rows, batch_size):
        batch = collate([rows[row] for row in chosen], decoder.config).to(device)
        vector = None if vectors is None else vectors[torch.from_numpy(chosen)].to(device)
        nll[chosen] = decoder.nll(batch, vector).double().cpu().numpy()
        num_targets[chosen] = batch.lengths.cpu().numpy()
    return nll, num_targets


def in_like_length(rows: Sequence[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """The numbers of all rows, a batch at a time, those of like length together."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(rows), batch_size):
        yield order[start:start + batch_size]
