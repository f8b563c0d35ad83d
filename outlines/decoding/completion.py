"""Sentences that start with a given text. The last word of the text may be unfinished: "A wom" can become "A woman"."""

from dataclasses import replace

import torch
from torch import Tensor

from outlines.corpus.tokenizer import Tokenizer
from outlines.decoding.decode import Sampler
from outlines.decoding.sample import Reader, SamplingConfig, check, draw, of_rows, pad


@torch.no_grad()
def complete(sampler: Sampler, tokenizer: Tokenizer, vector: Tensor | None, uniforms: Tensor, config: SamplingConfig,
             beginning: str) -> list[list[int]]:
    """Return one sentence per row of `uniforms`. Each sentence starts with `beginning`. Other arguments: see `sample`.

    The tokens of an unfinished word are rarely the first tokens of the finished word. So the last tokens of `beginning` can
    be replaced by one token whose text starts with the replaced text. `draw` chooses one of these prefixes for each row.
    """
    (tokens,) = tokenizer.encode([beginning])
    check(sampler.decoder, vector, config, len(tokens))
    texts = [tokenizer.pieces[token] for token in tokens] + [" "] * beginning.rstrip("\r\n")[-1:].isspace()
    prefixes, rest = list[list[int]](), ""
    for kept in reversed(range(len(texts))):
        rest = texts[kept] + rest
        found = [[*tokens[:kept], token] for token, piece in enumerate(tokenizer.pieces) if piece.startswith(rest)]
        if not texts[kept] or not found:  # a token that is a single byte has no text
            break
        prefixes = found + prefixes
    if not prefixes:
        return sampler(vector, uniforms, config, tokens)
    first = len(prefixes[0]) - 1
    reader = Reader(sampler.decoder, vector, config, of_rows(tokens[:first], len(uniforms), uniforms.device))
    read, log_p, scores = reader.tokens, torch.zeros_like(uniforms[:, :1]), []
    for kept in range(first, len(texts)):
        following = reader.logits(read).log_softmax(dim=1) + log_p
        scores.append(following[:, [prefix[-1] for prefix in prefixes if len(prefix) == kept + 1]])
        for token in tokens[kept:kept + 1]:
            log_p, read = following[:, token, None], torch.full_like(read, token)
    choice = replace(config, temperature=0) if config.beam else config
    chosen = [prefixes[number] for number in draw(pad(torch.cat(scores, dim=1)), uniforms[:, first], choice).tolist()]
    sentences = dict[int, list[int]]()
    for length in set(map(len, chosen)):
        rows = [row for row, prefix in enumerate(chosen) if len(prefix) == length]
        begun = torch.tensor([chosen[row] for row in rows], device=uniforms.device)
        sentences |= zip(rows, sampler(None if vector is None else vector[rows], uniforms[rows], config, begun), strict=True)
    return [sentences[row] for row in range(len(uniforms))]
