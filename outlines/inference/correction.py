"""Correction with the frozen encoder: write several drafts, encode them, keep the draft nearest to the wanted outline.

Each further round adds half of the remaining error to the outline that the decoder reads, and writes new drafts.

Source: Morris et al., Text Embeddings Reveal (Almost) As Much As Text (2023). The source trains a model that corrects a
draft. Here, no model is trained.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from outlines.decoding.sample import SamplingConfig
from outlines.models.base import TextModel, Write

TEMPERATURE = 0.5  # with greedy decoding or beam search: temperature of all drafts of a round except the first
STEP = 0.5  # each round moves the outline by this share of the error
GOLDEN = (5 ** 0.5 - 1) / 2
DRAFTS_AT_ONCE = 4096  # number of drafts that are written and encoded together; limits the memory


@torch.no_grad()
def correct(model: TextModel, write: Write, encode: Callable[[list[list[int]]], Tensor], wanted: Tensor, uniforms: Tensor,
            sampling: SamplingConfig) -> list[list[int]]:
    """Return, for each wanted vector, the draft (token ids) whose outline has the largest cosine with the wanted outline.

    write: a function like `Sampler`. encode: token ids of N sentences → outlines [N, D], in the encoder's units.
    wanted: vectors [N, D] for the decoder. uniforms: [N, max_len] in [0, 1); row i is used for all drafts of vector i.
    """
    at_once = max(1, DRAFTS_AT_ONCE // sampling.drafts)
    return [sentence for some, numbers in zip(wanted.split(at_once), uniforms.split(at_once), strict=True)
            for sentence in _corrected(model, write, encode, some, numbers, sampling)]


def _corrected(model: TextModel, write: Write, encode: Callable[[list[list[int]]], Tensor], wanted: Tensor, uniforms: Tensor,
               sampling: SamplingConfig) -> list[list[int]]:
    raw = model.to_encoder(wanted)
    target, norm = functional.normalize(raw, dim=1), raw.norm(dim=1, keepdim=True)
    rows = torch.arange(len(wanted), device=wanted.device)
    vectors, aim, best = wanted, target, torch.full_like(norm[:, 0], -torch.inf)
    kept: list[list[int]] = [[] for _ in wanted]
    for number in range(1 + sampling.rounds):
        drafts = _drafts(write, vectors, uniforms, sampling, number)
        outlines = functional.normalize(encode(drafts), dim=1).to(target).unflatten(0, (len(wanted), -1))
        cosines, nearest = (outlines @ target[:, :, None])[:, :, 0].max(dim=1)
        for row in (cosines > best).nonzero()[:, 0].tolist():
            kept[row] = drafts[row * sampling.drafts + int(nearest[row])]
        best = torch.maximum(best, cosines)
        # The errors of all rounds are summed, so an error that occurs in every round is corrected.
        aim = aim + STEP * (target - outlines[rows, nearest])
        vectors = model.from_encoder(norm * functional.normalize(aim, dim=1))
    return kept


def _drafts(write: Write, vectors: Tensor, uniforms: Tensor, sampling: SamplingConfig, number: int) -> list[list[int]]:
    """Return `sampling.drafts` sentences per vector. The drafts of a vector are consecutive. number: the round, from 0.

    The first draft of the first round is the sentence that is written without correction.
    """
    # All uniforms of a draft are shifted by the same number modulo 1, so they are still uniform. Multiples of the golden
    # ratio are spread evenly, so the first tokens of the drafts differ more than in independent drafts.
    shifts = torch.arange(number * sampling.drafts, (number + 1) * sampling.drafts, device=uniforms.device) * GOLDEN
    shifted = (uniforms[:, None] + (shifts % 1)[:, None]) % 1
    if sampling.draws:
        return write(vectors.repeat_interleave(sampling.drafts, dim=0), shifted.flatten(0, 1), sampling)
    first = write(vectors, uniforms, sampling)
    if sampling.drafts == 1:
        return first
    drawn = replace(sampling, temperature=TEMPERATURE, top_k=0, beam=0)
    others = iter(write(vectors.repeat_interleave(sampling.drafts - 1, dim=0), shifted[:, 1:].flatten(0, 1), drawn))
    return [draft for own in first for draft in (own, *(next(others) for _ in range(sampling.drafts - 1)))]
