"""The nll of given sentences under a decoder (teacher forcing), and bounds on the nll for models with a latent."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from outlines.corpus.batching import collate, in_like_length
from outlines.networks.decoder import Decoder
from outlines.networks.losses import importance_weighted_nll


class LatentDraw(NamedTuple):
    """One sample of the latents of N sentences, and the terms of the bound: nats per sentence, [N], on the CPU."""

    latent: Any
    nll: Tensor  # -log p(x | z)
    kl: Tensor  # KL(posterior || prior), exact; with a latent per step: given the sampled z of the earlier steps
    log_weight: Tensor  # log p(x, z) - log q(z | x)


def bound_terms(draws: Iterable[LatentDraw]) -> dict[str, Tensor]:
    """Return the terms for `TextModel.nll_terms`, [N] each. nll: importance-weighted bound. Others: means over draws."""
    nll, kl, log_weights = (torch.stack(part) for part in zip(*(draw[1:] for draw in draws), strict=True))
    reconstruction_nll, mean_kl = nll.mean(dim=0), kl.mean(dim=0)
    return {"nll": importance_weighted_nll(log_weights), "negative_elbo": reconstruction_nll + mean_kl,
            "reconstruction_nll": reconstruction_nll, "kl": mean_kl}


@torch.no_grad()
def nll_of_rows(decoder: Decoder, rows: Sequence[np.ndarray], vectors: Tensor | None = None,
                batch_size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Return the nll, nats per sentence [N], and the number of targets (eos included) per sentence [N].

    rows: token ids of each sentence. vectors: [N, D], one per row, or None.
    """
    if decoder.training:
        raise ValueError("The decoder is not in evaluation mode. Call eval() first.")
    device = next(decoder.parameters()).device
    nll = np.zeros(len(rows))
    for chosen in in_like_length(rows, batch_size):
        batch = collate([rows[row] for row in chosen], decoder.config).to(device)
        vector = None if vectors is None else vectors[torch.from_numpy(chosen)].to(device)
        nll[chosen] = decoder.nll(batch, vector).cpu().double().numpy()
    return nll, np.array([len(row) + 1 for row in rows], dtype=np.int64)
