"""Beam search: an approximate search for the likeliest sentence under a decoder."""

import torch
from torch import Tensor

from outlines.decoding.fast_gru import FastGRU, FastReader
from outlines.decoding.sample import Prefix, Reader, SamplingConfig, of_rows
from outlines.networks.decoder import Decoder


@torch.no_grad()
def beam_search(decoder: Decoder, vector: Tensor | None, num: int, config: SamplingConfig,
                prefix: Prefix = (), fast: FastGRU | None = None) -> list[list[int]]:
    """Return `num` sentences, one per row. The search maximises log p(sentence, eos | vector).

    The search of a row ends when no prefix in the beam is likelier than the row's best finished sentence. If no sentence
    ends within max_len tokens, the likeliest prefix is returned. Log-probabilities are not divided by the length.
    Arguments: see `sample`.
    Source: Sutskever, Vinyals and Le, Sequence to Sequence Learning with Neural Networks (2014), section 3.2.
    """
    device = next(decoder.parameters()).device
    prefix = of_rows(prefix, num, device)
    reader = FastReader(fast, vector, config, prefix) if fast else Reader(decoder, vector, config, prefix)
    width, vocab_size, eos = config.beam, decoder.config.vocab_size, decoder.config.eos_id
    reader.select(torch.arange(num, device=device).repeat_interleave(width))
    tokens = reader.tokens.repeat_interleave(width)
    scores = torch.full((num, width), -torch.inf, device=device)
    scores[:, 0] = 0.0  # each row starts with one prefix: the other prefixes would be equal to it
    beams = prefix[:, None].expand(-1, width, -1)
    rows = torch.arange(num, device=device)
    best = torch.full((num,), -torch.inf, device=device)
    sentences: list[list[int]] = [[] for _ in range(num)]
    for position in range(prefix.shape[1], config.max_len + 1):
        totals = scores[:, :, None] + reader.logits(tokens)[:, :vocab_size].log_softmax(dim=1).view(len(rows), width, -1)
        ended, which = totals[:, :, eos].max(dim=1)
        for row in (ended > best).nonzero()[:, 0].tolist():
            sentences[int(rows[row])] = beams[row, which[row]].tolist()
        best = torch.maximum(best, ended)
        totals[:, :, eos] = -torch.inf
        if position == config.max_len:
            for row in best.isneginf().nonzero()[:, 0].tolist():
                sentences[int(rows[row])] = beams[row, 0].tolist()
            break
        scores, flat = totals.flatten(1).topk(width, dim=1)  # sorted: the first prefix is the likeliest
        parent, token = flat // vocab_size, flat % vocab_size
        beams = torch.cat([beams.gather(1, parent[:, :, None].expand(-1, -1, beams.shape[2])), token[:, :, None]], dim=2)
        going_on = scores[:, 0] > best
        if not bool(going_on.any()):
            break
        kept = (torch.arange(len(rows), device=device)[:, None] * width + parent)[going_on].flatten()
        reader.select(kept)
        rows, best, scores, beams = rows[going_on], best[going_on], scores[going_on], beams[going_on]
        tokens = beams[:, :, -1].flatten()
    return sentences
