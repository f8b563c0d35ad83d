"""From logits to tokens: the settings of sampling, the choice of one token, and the plain sampler, for every decoder.

Random numbers are an argument: step t of row i uses only uniforms[i, t]. So a sentence does not depend on the other
sentences of its batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from outlines.errors import OutlinesError
from outlines.networks.decoder import Decoder

RUN = 64  # tokens per block: the probabilities of a block are summed before a token is sampled
LIKELIEST = 256  # number of likeliest tokens among which the nucleus is searched first
Prefix = Sequence[int] | Tensor  # first tokens of the sentences: [T] for all sentences, or [N, T] with one row per sentence


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling: the noise of the vectors, and the choice of each token."""

    temperature: float = 1.0  # divides the logits; 0 is greedy decoding
    top_k: int = 0  # keep the k likeliest tokens; 0 keeps all
    top_p: float = 1.0  # nucleus: keep the smallest set of tokens with at least this total probability
    max_len: int = 64  # maximum number of tokens; longer sentences are cut
    beam: int = 0  # width of beam search; 0: no beam search
    noise_scale: float = 1.0  # factor on the normal noise of the vectors; below 1, vectors are more typical
    # w in logits(no vector) + w · (logits(vector) - logits(no vector)): 1 is no guidance, 0 ignores the vector.
    # Source: Ho and Salimans, Classifier-Free Diffusion Guidance (2022), where w - 1 is called w.
    guidance: float = 1.0
    # How much the decoder trusts the vector, from 0 to 1. Below 1, sentences are likelier and less faithful to the vector.
    # None: `TextModel.strength` for sampled vectors (`generate`, `given`), 1 for vectors of the caller (`decode`).
    strength: float | None = None
    drafts: int = 1  # sentences written per vector; the sentence with the nearest outline is kept (inference/correction.py)
    rounds: int = 0  # rounds after the first drafts; each moves the vector by half of the error and writes new drafts
    # Sentences written per new sentence, each with its own vector; the best is kept (decoding/best_of.py). None: the default
    # of `Pipeline.chosen`, and 1 for vectors of the caller.
    best_of: int | None = None

    def __post_init__(self) -> None:
        # Outside these bounds, float32 overflows or the memory is not sufficient.
        bounds = {"temperature": (1e-3, 1e3), "top_k": (0, math.inf), "top_p": (1e-6, 1), "max_len": (1, 10_000),
                  "beam": (0, 256), "noise_scale": (0, 1e3), "guidance": (0, 1e3), "strength": (0, 1), "drafts": (1, 1024),
                  "rounds": (0, 100), "best_of": (1, 1024)}
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most and (name, value) != ("temperature", 0):
                greedy = "0 (greedy) or " if name == "temperature" else ""
                raise OutlinesError(f"{name.replace('_', '-')} must be {greedy}from {least:g} to {most:g}, not {value}.")

    @property
    def draws(self) -> bool:
        """Whether the choice of tokens depends on random numbers."""
        return self.temperature > 0 and self.top_k != 1 and not self.beam


def pad(logits: Tensor) -> Tensor:
    """Return a float32 copy of logits [B, V], padded with -inf to a multiple of RUN."""
    return functional.pad(logits.float(), (0, -logits.shape[1] % RUN), value=-torch.inf)


def draw(logits: Tensor, uniforms: Tensor, config: SamplingConfig) -> Tensor:
    """Return one token per row of padded logits [B, V]: [B]. Overwrites the logits. uniforms: [B] in [0, 1).

    Applies the temperature, then top-k, then the nucleus (Holtzman et al. 2020). Tokens that are as likely as the last kept
    token are also kept.
    """
    return _invert(logits, weigh(logits, config), uniforms) if config.temperature else logits.argmax(dim=1)


def weigh(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Overwrite padded logits [B, V] with sampling weights. Return the sums of blocks of RUN weights, [B, V / RUN]."""
    if config.temperature != 1:
        logits.div_(config.temperature)
    if 0 < config.top_k < logits.shape[1]:
        logits.masked_fill_(logits < logits.topk(config.top_k, dim=1).values[:, -1:], -torch.inf)
    probabilities = torch.softmax(logits, dim=1, out=logits)
    if config.top_p < 1:
        # The LIKELIEST tokens nearly always contain the nucleus, and sorting all tokens is much slower.
        ordered = probabilities.topk(min(LIKELIEST, probabilities.shape[1]), dim=1).values
        if bool((ordered.sum(dim=1) < config.top_p).any()):
            ordered = probabilities.sort(dim=1, descending=True).values
        # Remove a token if the likelier tokens already reach top_p. The likeliest token always stays.
        outside = ordered.cumsum(dim=1) - ordered >= config.top_p
        least = ordered.masked_fill(outside, torch.inf).amin(dim=1, keepdim=True)
        probabilities.masked_fill_(probabilities < least, 0)
    return probabilities.unflatten(1, (-1, RUN)).sum(dim=2)


def _invert(weights: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
    """Return the first index [B] at which the cumulative sum of weights [B, V] exceeds uniforms [B] times the total.

    sums: the sums of blocks of RUN weights, [B, V / RUN], from `weigh`. The search first finds the block, then the token,
    because a cumulative sum over all weights would be as slow as the softmax. This is inverse transform sampling.
    """
    cumulative = functional.pad(sums, (1, 0)).cumsum(dim=1)
    # right=True skips blocks and tokens of weight 0. A float32 below 1 is at most 1 - 2^-24, so the threshold is below the
    # last sum and always inside a block (`run`).
    threshold = uniforms[:, None].to(weights) * cumulative[:, -1:]
    run = torch.searchsorted(cumulative, threshold, right=True) - 1
    within = weights.unflatten(1, (-1, RUN))[torch.arange(len(weights), device=weights.device), run[:, 0]].cumsum(dim=1)
    # The two sums round differently, so `rest` can be beyond the end of the block. Then the last possible token of the block
    # is chosen.
    whole = within[:, -1:]
    rest = torch.minimum(threshold - cumulative.gather(1, run), whole.nextafter(torch.zeros_like(whole)))
    return (run * RUN + torch.searchsorted(within, rest, right=True))[:, 0]


def of_rows(prefix: Prefix, num: int, device: torch.device) -> Tensor:
    """Return prefixes [num, T]. A single prefix is repeated for each sentence."""
    return torch.as_tensor(prefix, dtype=torch.long, device=device).expand(num, -1)


class Reader:
    """A decoder that reads a batch of sentences token by token. Applies guidance and excludes special tokens."""

    def __init__(self, decoder: Decoder, vector: Tensor | None, config: SamplingConfig, prefix: Tensor):
        """vector: [N, D] or None. prefix: [N, T]. Pass `tokens` [N], the last tokens of the prefix (or bos), to `logits`."""
        check(decoder, vector, config, prefix.shape[1])
        vector = at_strength(vector, config)
        self._decoder, self._guidance = decoder, config.guidance
        vectors = [vector] if vector is None or config.guidance == 1 else [vector, torch.zeros_like(vector)]
        self._caches = [decoder.start(each, len(prefix)) for each in vectors]
        *before, self.tokens = functional.pad(prefix, (1, 0), value=decoder.config.bos_id).T
        self._never = torch.tensor(decoder.config.never_written, device=prefix.device)
        for tokens in before:
            self.logits(tokens)

    def logits(self, tokens: Tensor) -> Tensor:
        """Read tokens [B]; return the padded logits of the next tokens, a new tensor. Special tokens but eos get -inf."""
        given, *blind = (self._decoder.step(tokens, cache) for cache in self._caches)
        logits = torch.lerp(blind[0].float(), given.float(), self._guidance) if blind else given.float()
        return pad(logits).index_fill_(1, self._never, -torch.inf)

    def select(self, rows: Tensor) -> None:
        """Continue with the rows at these indices [N]. Rows may be reordered, left out or repeated."""
        self._caches = [cache.select(rows) for cache in self._caches]


def check(decoder: Decoder, vector: Tensor | None, config: SamplingConfig, prefix_len: int) -> None:
    """Raise OutlinesError if the prefix is too long, or if the decoder was not trained for the guidance or the strength."""
    if prefix_len >= config.max_len:
        raise OutlinesError(f"The prefix has {prefix_len} tokens, but a sentence has at most {config.max_len}. "
                            "Use a shorter prefix, or raise --max-len.")
    if config.guidance != 1 and (vector is None or not decoder.config.vector_dropout):
        raise OutlinesError("This decoder was not trained to write without its vector, so guidance is not available. "
                            "Train an outline model with --outline-dropout above 0.")
    if config.strength not in (None, 1) and (vector is None or config.strength < decoder.config.min_strength):
        raise OutlinesError(f"This decoder was not trained with vectors of strength {config.strength:g}. Use a higher "
                            "--strength, or train an outline model with a lower --min-strength.")


def at_strength(vector: Tensor | None, config: SamplingConfig) -> Tensor | None:
    """Return the vector that the decoder reads: `vector` times `config.strength`."""
    return vector if vector is None or config.strength in (None, 1) else config.strength * vector


@torch.no_grad()
def sample(decoder: Decoder, vector: Tensor | None, uniforms: Tensor, config: SamplingConfig,
           prefix: Prefix = (), bfloat16: bool = False) -> list[list[int]]:
    """Return one sentence per row of `uniforms`: at most `config.max_len` token ids, without bos and eos.

    vector: [B, D] or None for a language model. uniforms: [B, max_len] in [0, 1); greedy decoding ignores them.
    prefix: the first tokens of the sentences; they count towards max_len.
    """
    prefix = of_rows(prefix, len(uniforms), uniforms.device)
    with torch.autocast(uniforms.device.type, torch.bfloat16, enabled=bfloat16 and config.draws):
        reader = Reader(decoder, vector, config, prefix)
        rows, tokens, eos = torch.arange(len(uniforms), device=uniforms.device), reader.tokens, decoder.config.eos_id
        written = torch.full((len(uniforms), config.max_len + 1), eos, device=uniforms.device)
        written[:, :prefix.shape[1]] = prefix
        for step in range(prefix.shape[1], config.max_len):
            tokens = draw(reader.logits(tokens), uniforms[rows, step], config)
            written[rows, step] = tokens
            going = (tokens != eos).nonzero()[:, 0]
            if not len(going):
                break
            if len(going) < len(rows):
                rows, tokens = rows[going], tokens[going]
                reader.select(going)
    return until_eos(written, eos)


def until_eos(written: Tensor, eos_id: int) -> list[list[int]]:
    """Return the tokens of each row before the first eos. written: [B, T]; every row contains an eos."""
    written = written.cpu()
    lengths = (written == eos_id).to(torch.uint8).argmax(dim=1)
    tokens = written[torch.arange(written.shape[1]) < lengths[:, None]].tolist()
    ends = lengths.cumsum(dim=0).tolist()
    return [tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)]
