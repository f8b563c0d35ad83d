"""From logits to tokens: greedy and ancestral sampling, with temperature, top-k and nucleus.

Randomness comes in as numbers, not as a generator: row i, step t consumes uniforms[i, t] alone. So a sentence depends
on its own row only, whatever stands beside it in the batch and whichever rows have already ended.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from outlines.corpus.tokenizer import BOS, EOS, PAD, UNK
from outlines.decoder import Decoder
from outlines.errors import OutlinesError


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is chosen from the decoder's distribution."""

    temperature: float = 1.0
    """divides the logits; 0 is greedy decoding"""
    top_k: int = 0
    """keep the k likeliest tokens; 0 keeps all"""
    top_p: float = 1.0
    """keep the smallest set of tokens with at least this probability (nucleus)"""
    max_len: int = 64
    """tokens after which a sentence is cut"""

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise OutlinesError(f"temperature must be 0 (greedy) or above and finite, not {self.temperature}")
        if self.top_k < 0:
            raise OutlinesError(f"top-k must be 0 (all tokens) or above, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise OutlinesError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if self.max_len < 1:
            raise OutlinesError(f"max-len must be at least 1 token, not {self.max_len}")


def choose(logits: Tensor, uniforms: Tensor, config: SamplingConfig) -> Tensor:
    """One token per row [B] from logits [B, V]; uniforms: [B] in [0, 1).

    Order of the filters: temperature, top-k, nucleus (Holtzman et al. 2020). Ties at the k-th logit are all kept.
    """
    if config.temperature == 0:
        return logits.argmax(dim=1)
    logits = logits.float() / config.temperature
    if 0 < config.top_k < logits.shape[1]:
        smallest_kept = logits.topk(config.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    probabilities = logits.softmax(dim=1)
    if config.top_p < 1:
        ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
        # A token goes when those before it already hold the nucleus; the first one always stays.
        outside = ordered.cumsum(dim=1) - ordered >= config.top_p
        probabilities = torch.zeros_like(probabilities).scatter(1, order, ordered.masked_fill(outside, 0))
    cumulative = probabilities.cumsum(dim=1)
    # Inverse transform sampling. right=True steps over tokens of probability zero at the left edge; scaling by the
    # last sum keeps rounding from pointing past the last possible token.
    threshold = (uniforms[:, None].to(cumulative) * cumulative[:, -1:]).contiguous()
    chosen = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    return torch.minimum(chosen, _last_possible(probabilities))


def _last_possible(probabilities: Tensor) -> Tensor:
    """The index [B] of each row's last token that has any probability."""
    width = probabilities.shape[1]
    return width - 1 - (probabilities > 0).flip(1).to(torch.uint8).argmax(dim=1)


@torch.no_grad()
def sample(decoder: Decoder, vector: Tensor | None, uniforms: Tensor, config: SamplingConfig) -> list[list[int]]:
    """Decode one sentence per row: token ids without bos and eos, at most `config.max_len` of them.

    vector: [B, D] or None for a language model. uniforms: [B, max_len] in [0, 1); ignored by greedy decoding.
    Rows that have ended leave the batch, so long sentences do not make short ones wait.
    """
    num = len(uniforms)
    sentences: list[list[int]] = [[] for _ in range(num)]
    alive = torch.arange(num, device=uniforms.device)
    state = decoder.start(vector, num)
    tokens = torch.full((num, 1), BOS, device=uniforms.device)
    for position in range(config.max_len):
        logits, state = decoder.step(tokens, state, vector)
        logits = logits[:, -1].float()
        logits[:, [UNK, BOS, PAD]] = -torch.inf
        chosen = choose(logits, uniforms[alive, position], config)
        going_on = chosen != EOS
        if not bool(going_on.all()):
            alive, chosen, state = alive[going_on], chosen[going_on], state[:, going_on]
            vector = None if vector is None else vector[going_on]
        for row, token in zip(alive.tolist(), chosen.tolist(), strict=True):
            sentences[row].append(token)
        if not len(alive):
            break
        tokens = chosen[:, None]
    return sentences
