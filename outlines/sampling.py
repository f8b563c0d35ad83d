"""From logits to tokens: greedy and ancestral sampling, with temperature, top-k and nucleus, and beam search.

Randomness comes in as numbers, not as a generator: row i, step t consumes uniforms[i, t] alone. So a sentence depends
on its own row only, whatever stands beside it in the batch and whichever rows have already ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outlines.corpus.tokenizer import BOS, EOS, PAD, UNK
from outlines.decoder import Decoder
from outlines.errors import OutlinesError


@dataclass(frozen=True)
class SamplingConfig:
    """How sentences are drawn: the vector's noise, and how a token is chosen from the decoder's distribution."""

    temperature: float = 1.0
    """divides the logits; 0 is greedy decoding"""
    top_k: int = 0
    """keep the k likeliest tokens; 0 keeps all"""
    top_p: float = 1.0
    """keep the smallest set of tokens with at least this probability (nucleus)"""
    max_len: int = 64
    """tokens after which a sentence is cut"""
    beam: int = 0
    """width of a beam search for the likeliest sentence, in place of sampling; 0 samples"""
    noise_scale: float = 1.0
    """factor on the normal noise that vectors are made from; below 1, they lie nearer to the commonest ones"""

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise OutlinesError(f"temperature must be 0 (greedy) or above and finite, not {self.temperature}")
        if self.top_k < 0:
            raise OutlinesError(f"top-k must be 0 (all tokens) or above, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise OutlinesError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if self.max_len < 1:
            raise OutlinesError(f"max-len must be at least 1 token, not {self.max_len}")
        if self.beam < 0:
            raise OutlinesError(f"beam must be 0 (no beam search) or a width above, not {self.beam}")
        if not 0 <= self.noise_scale < float("inf"):
            raise OutlinesError(f"noise-scale must be 0 or above and finite, not {self.noise_scale}")


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
def sample(decoder: Decoder, vector: Tensor | None, uniforms: Tensor, config: SamplingConfig,
           prefix: Sequence[int] = ()) -> list[list[int]]:
    """Decode one sentence per row: token ids without bos and eos, at most `config.max_len` of them.

    vector: [B, D] or None for a language model. uniforms: [B, max_len] in [0, 1); ignored by greedy decoding and by beam
    search. prefix: tokens that every sentence begins with, counted in max_len; step t of what follows consumes
    uniforms[:, t] as it does without one.
    Rows that have ended leave the batch, so long sentences do not make short ones wait.
    """
    if config.beam:
        return beam_search(decoder, vector, len(uniforms), config, prefix)
    sentences: list[list[int]] = [list(prefix) for _ in range(len(uniforms))]
    alive = torch.arange(len(uniforms), device=uniforms.device)
    tokens, state = _begin(decoder, vector, len(uniforms), prefix, config.max_len)
    for position in range(len(prefix), config.max_len):
        logits, state = decoder.step(tokens, state, vector)
        chosen = choose(_speakable(logits[:, -1]), uniforms[alive, position], config)
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


def _begin(decoder: Decoder, vector: Tensor | None, num: int, prefix: Sequence[int],
           max_len: int) -> tuple[Tensor, Tensor]:
    """The tokens [num, 1] to read next, and the state once all before them has been read."""
    if len(prefix) >= max_len:
        raise OutlinesError(f"the beginning has {len(prefix)} tokens, which leaves none of max-len {max_len} to add")
    read = decoder.output_bias.new_tensor([BOS, *prefix], dtype=torch.long).expand(num, -1)
    state = decoder.start(vector, num)
    if prefix:
        state = decoder.hidden(read[:, :-1], state, vector)[1]
    return read[:, -1:], state


def _speakable(logits: Tensor) -> Tensor:
    """Logits [B, V] in float32, with those of tokens that no sentence holds at -inf."""
    logits = logits.float()
    logits[:, [UNK, BOS, PAD]] = -torch.inf
    return logits


@torch.no_grad()
def beam_search(decoder: Decoder, vector: Tensor | None, num: int, config: SamplingConfig,
                prefix: Sequence[int] = ()) -> list[list[int]]:
    """The sentence of each of `num` rows for which the highest log p(sentence, eos | vector) was found.

    The sum is not divided by the length: what is returned is an estimate of the mode, and widening the beam to all
    prefixes makes it the mode. A sentence that ends leaves its place in the beam to others; a row is done when no prefix
    in its beam is likelier than its best whole sentence, for no prefix gets likelier by growing. A row of whose beam
    nothing ended within max_len gives its likeliest prefix.

    Source: Sutskever, Vinyals and Le, Sequence to Sequence Learning with Neural Networks (2014), section 3.2.
    """
    width, device = config.beam, decoder.output_bias.device
    tokens, state = _begin(decoder, vector, num, prefix, config.max_len)
    tokens, state = tokens.repeat_interleave(width, dim=0), state.repeat_interleave(width, dim=1)
    vector = None if vector is None else vector.repeat_interleave(width, dim=0)
    scores = torch.full((num, width), -torch.inf, device=device)
    scores[:, 0] = 0.0  # the others would be copies of the first
    beams = torch.empty(num, width, 0, dtype=torch.long, device=device)
    rows = torch.arange(num, device=device)
    best = torch.full((num,), -torch.inf, device=device)
    sentences: list[list[int]] = [[] for _ in range(num)]
    for position in range(len(prefix), config.max_len + 1):
        logits, state = decoder.step(tokens, state, vector)
        totals = scores[:, :, None] + _speakable(logits[:, -1]).log_softmax(dim=1).view(len(rows), width, -1)
        ended, which = totals[:, :, EOS].max(dim=1)
        for row in (ended > best).nonzero()[:, 0].tolist():
            sentences[int(rows[row])] = [*prefix, *beams[row, which[row]].tolist()]
        best = torch.maximum(best, ended)
        totals[:, :, EOS] = -torch.inf
        if position == config.max_len:
            for row in best.isneginf().nonzero()[:, 0].tolist():
                sentences[int(rows[row])] = [*prefix, *beams[row, 0].tolist()]
            break
        vocab_size = totals.shape[2]
        scores, flat = totals.flatten(1).topk(width, dim=1)  # in order: the first is the likeliest
        parent, token = flat // vocab_size, flat % vocab_size
        beams = torch.cat([beams.gather(1, parent[:, :, None].expand(-1, -1, beams.shape[2])), token[:, :, None]], dim=2)
        going_on = scores[:, 0] > best
        if not bool(going_on.any()):
            break
        kept = (torch.arange(len(rows), device=device)[:, None] * width + parent)[going_on].flatten()
        state, vector = state[:, kept], None if vector is None else vector[kept]
        rows, best, scores, beams = rows[going_on], best[going_on], scores[going_on], beams[going_on]
        tokens = beams[:, :, -1].reshape(-1, 1)
    return sentences
