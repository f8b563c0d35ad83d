"""Bounds on the nll of sentences under a model with a latent z, from draws of its posterior."""

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from outlines.networks.losses import importance_weighted_nll

Latent = TypeVar("Latent")


class Draw(NamedTuple, Generic[Latent]):
    """One draw of the latents of N sentences; nats per sentence [N], on the CPU."""

    latent: Latent
    nll: Tensor  # -log p(x | z)
    kl: Tensor  # KL(posterior || prior), exact; for a latent per step: at every step, given the z before it
    log_weight: Tensor  # log p(x, z) - log q(z | x)


def bound_terms(draws: "Iterable[Draw[Latent]]") -> dict[str, Tensor]:
    """Return the terms of `TextModel.nll_terms`; nll is the importance-weighted bound, the others are means over draws."""
    nll, kl, log_weights = (torch.stack(part) for part in zip(*(draw[1:] for draw in draws), strict=True))
    reconstruction_nll, mean_kl = nll.mean(dim=0), kl.mean(dim=0)
    return {"nll": importance_weighted_nll(log_weights), "negative_elbo": reconstruction_nll + mean_kl,
            "reconstruction_nll": reconstruction_nll, "kl": mean_kl}
