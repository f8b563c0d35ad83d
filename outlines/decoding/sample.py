"""From logits to tokens: greedy and ancestral sampling, with temperature, top-k and nucleus, and beam search.

Randomness comes in as numbers, not as a generator: row i, step t consumes uniforms[i, t] alone. So a sentence depends
on its own row only, whatever stands beside it in the batch and whichever rows have already ended.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from outlines.corpus.tokenizer import BOS, EOS, PAD, UNK
from outlines.errors import OutlinesError
from outlines.networks.decoder import Decoder

RUN = 64
"""Probabilities that are summed together where a token is chosen."""
SLICE = 256
"""Rows whose logits are computed and chosen from together on a CPU, so that they stay in its cache."""
GPU_SLICE = 16_384
"""As many on a GPU, which bounds their memory."""
PLACES = 512
"""Sentences that are decoded together on a CPU; others wait, and take the places of those that end."""
ONES = 8
"""Columns of ones beside what the output layer reads, the first two for its bias; a GPU reads eight numbers at a time."""
LEAST_ROWS = 16
"""Rows of the smallest matrix product: with fewer, MKL rounds otherwise, and a sentence would depend on the batch size."""


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
    guidance: float = 1.0
    """w in logits(no vector) + w · (logits(vector) - logits(no vector)): 1 is the decoder as it is, 0 ignores the vector

    Source: Ho and Salimans, Classifier-Free Diffusion Guidance (2022), whose w is this less 1."""

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
        if not 0 <= self.guidance < float("inf"):
            raise OutlinesError(f"guidance must be 0 (the vector is ignored) or above and finite, not {self.guidance}")

    @property
    def draws(self) -> bool:
        """Whether chance has a part in it; else the likeliest token or sentence is taken."""
        return self.temperature > 0 and self.top_k != 1 and not self.beam


def choose(logits: Tensor, uniforms: Tensor, config: SamplingConfig) -> Tensor:
    """One token per row [B] from logits [B, V], which may be overwritten; uniforms: [B] in [0, 1).

    Order of the filters: temperature, top-k, nucleus (Holtzman et al. 2020). Ties at the k-th logit are all kept.
    """
    return _draw(functional.pad(logits.float(), (0, -logits.shape[1] % RUN), value=-torch.inf), uniforms, config)


def _draw(logits: Tensor, uniforms: Tensor, config: SamplingConfig) -> Tensor:
    """As `choose`, from float32 logits that it overwrites, V a multiple of RUN."""
    return _invert(logits, weigh(logits, config), uniforms) if config.temperature else logits.argmax(dim=1)


def weigh(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Write the probabilities that a temperature above 0 draws from over float32 logits [B, V], V a multiple of RUN.

    Returned: their sums over each run, [B, V / RUN].
    """
    if config.temperature != 1:
        logits.div_(config.temperature)
    if 0 < config.top_k < logits.shape[1]:
        smallest_kept = logits.topk(config.top_k, dim=1).values[:, -1:]
        logits.masked_fill_(logits < smallest_kept, -torch.inf)
    probabilities = torch.softmax(logits, dim=1, out=logits)
    if config.top_p < 1:
        ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
        # A token goes when those before it already hold the nucleus; the first one always stays.
        outside = ordered.cumsum(dim=1) - ordered >= config.top_p
        probabilities.scatter_(1, order, ordered.masked_fill(outside, 0))
    return probabilities.unflatten(1, (-1, RUN)).sum(dim=2)


def _invert(weights: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse transform sampling: the index [B] at which the running sum of weights [B, V] passes uniforms [B] of the whole.

    sums: [B, V / RUN], as `weigh` gives them. Only the weights of the run that is met are added one by one: a running sum
    over all of them, one addition after another, takes as long as the softmax.
    """
    cumulative = functional.pad(sums, (1, 0)).cumsum(dim=1)
    # right=True steps over what has no weight. A number below 1 is at most 1 - 2^-24 in float32, which keeps the threshold
    # below the last sum: it always lies in some run.
    threshold = uniforms[:, None].to(weights) * cumulative[:, -1:]
    run = torch.searchsorted(cumulative, threshold, right=True) - 1
    within = weights.unflatten(1, (-1, RUN))[torch.arange(len(weights), device=weights.device), run[:, 0]].cumsum(dim=1)
    # Sums in another order round otherwise: past the run's end is its last possible one.
    whole = within[:, -1:]
    rest = torch.minimum(threshold - cumulative.gather(1, run), whole.nextafter(torch.zeros_like(whole)))
    return (run * RUN + torch.searchsorted(within, rest, right=True))[:, 0]


@torch.no_grad()
def sample(decoder: "Decoder | Layout", vector: Tensor | None, uniforms: Tensor, config: SamplingConfig,
           prefix: Sequence[int] = ()) -> list[list[int]]:
    """Decode one sentence per row: token ids without bos and eos, at most `config.max_len` of them.

    vector: [B, D] or None for a language model. uniforms: [B, max_len] in [0, 1); ignored by greedy decoding and by beam
    search. prefix: tokens that every sentence begins with, counted in max_len; step t of what follows consumes
    uniforms[:, t] as it does without one.
    A row that has ended gives its place in the batch to one that waits, and leaves it once none does, so long sentences do
    not make short ones wait, but for what it takes to make the batch a multiple of LEAST_ROWS.
    """
    num = len(uniforms)
    if not num:
        return []
    if config.beam:
        return beam_search(decoder, vector, num, config, prefix)
    device = uniforms.device
    # Each place of the batch has a row; beyond the first `going` places, whatever fills it up is decoded for nothing.
    going = min(num, PLACES) if device.type == "cpu" else num
    entered = going
    rows = torch.arange(_enough(num), device=device) % num
    # On the way to the logits the temperature divides fewer numbers than behind it.
    temperature = config.temperature or 1.0
    tempered = replace(config, temperature=config.temperature / temperature)
    reader = _Reader(decoder, None if vector is None else vector[rows], len(rows), prefix, config, temperature)
    reader.begin(_enough(going))
    first, rows = reader.tokens[:1], rows[:_enough(going)]
    positions = torch.full_like(rows, len(prefix))
    written = torch.full((num, config.max_len + 1), EOS, device=device)
    written[:, :len(prefix)] = written.new_tensor(prefix)
    while True:
        chosen = reader.choose(uniforms[rows, positions], tempered)
        written[rows[:going], positions[:going]] = chosen[:going]
        positions += 1
        goes_on = (chosen[:going] != EOS) & (positions[:going] < config.max_len)
        positions.clamp_(max=config.max_len - 1)  # for those that fill up
        left = int(goes_on.sum())
        entering = min(going - left, num - entered)
        if entering:
            places = (~goes_on).nonzero()[:entering, 0]
            reader.enter(entered, places)
            rows[places] = torch.arange(entered, entered + entering, device=device)
            positions[places], chosen[places], goes_on[places] = len(prefix), first, True
            entered, left = entered + entering, left + entering
        if not left:
            return _until_eos(written.cpu())
        if left < going:
            # The last rows move into the places of those that ended, so that nothing else has to.
            places, movers = (~goes_on[:left]).nonzero()[:, 0], goes_on[left:].nonzero()[:, 0] + left
            for values in (rows, positions, chosen):
                values[places] = values[movers]
            reader.move(movers, places, _enough(left))
            rows, positions, chosen = (values[:_enough(left)] for values in (rows, positions, chosen))
            going = left
        reader.tokens = chosen


def _until_eos(written: Tensor) -> list[list[int]]:
    """Each row's tokens before its first EOS; written: [B, T], on the CPU."""
    lengths = (written == EOS).to(torch.uint8).argmax(dim=1)
    tokens = written[torch.arange(written.shape[1]) < lengths[:, None]].tolist()
    ends = lengths.cumsum(dim=0).tolist()
    return [tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _enough(num: int) -> int:
    """The next multiple of LEAST_ROWS."""
    return num + -num % LEAST_ROWS


class Layout:
    """A decoder laid out for sampling: what is the same for every sentence, of its parameters as they are now.

    `sample` makes one of a decoder it is given; who samples often from parameters that stay makes it once.
    """

    @torch.no_grad()
    def __init__(self, decoder: Decoder, bfloat16: bool = False):
        """bfloat16: tokens are drawn with products of bfloat16 numbers; where the likeliest is taken, it stays float32."""
        self.decoder = decoder
        self.bfloat16 = bfloat16
        self.words = decoder.words()
        # Transposed for products of few rows, which are half as fast again; the bias, as one more row of weights, costs
        # hardly anything there. The tokens are those that no sentence holds; more of them fill up the last run.
        bias = decoder.output_bias.clone()
        bias[[UNK, BOS, PAD]] = -torch.inf
        more = -len(bias) % RUN
        bias = functional.pad(bias, (0, more), value=-torch.inf)
        self.output = functional.pad(decoder.embedding.weight.T, (0, more, 0, ONES))
        self.output[-ONES] = bias


def _in_bfloat16(output: Tensor) -> Tensor:
    """An output layer in bfloat16; what is lost of the bias makes a second row, for it would be lost at every step alike."""
    coarse = output.bfloat16()
    coarse[-ONES + 1] = (output[-ONES] - coarse[-ONES]).nan_to_num(0.0)  # inf - inf, of tokens that no sentence holds
    return coarse


class _Reading:
    """Where each of B rows stands, read under a vector of its own."""

    def __init__(self, decoder: Decoder, vector: Tensor | None, num: int):
        """vector: [B, D], or None for a language model."""
        # In float32, whatever products are rounded to: what goes on from step to step must not be rounded at each.
        self._state = decoder.start(vector, num).float()
        condition = decoder.condition(vector)
        self._condition = None if condition is None else condition.float()
        # Memory for what is looked up or computed at every step is asked for once: new pages each time took a tenth of it.
        self._words: Tensor | None = None

    def next(self, layout: Layout, tokens: Tensor) -> Tensor:
        """What the output layer sees after each row's token [B], [B, embed_dim]."""
        if self._words is None or len(self._words) < len(tokens):
            self._words = layout.words.new_empty(len(tokens), *layout.words.shape[1:])
        words = torch.index_select(layout.words, 0, tokens, out=self._words[:len(tokens)])
        hidden, self._state = layout.decoder.advance(words, self._state, self._condition)
        return hidden

    def begin(self, num: int) -> None:
        """Go on with the first `num`; the others wait."""
        self._first_state, self._conditions = self._state, self._condition
        self._state = self._first_state[:, :num]
        self._condition = None if self._conditions is None else self._conditions[:num]

    def enter(self, first: int, places: Tensor) -> None:
        """Put those that wait, from the number `first` on, into the places [N] of others."""
        waiting = slice(first, first + len(places))
        self._state[:, places] = self._first_state[:, waiting]
        if self._condition is not None and self._conditions is not None:
            self._condition[places] = self._conditions[waiting]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [N]."""
        self._state = self._state[:, rows]
        self._condition = None if self._condition is None else self._condition[rows]

    def move(self, rows: Tensor, places: Tensor, num: int) -> None:
        """Put rows [N] into the places of others [N], and go on with the first `num`."""
        self._state[:, places] = self._state[:, rows]
        self._state = self._state[:, :num]
        if self._condition is not None:
            self._condition[places] = self._condition[rows]
            self._condition = self._condition[:num]


class _Reader:
    """A decoder that reads one token of each of B rows at a time: where a row stands, and what is the same at every step."""

    def __init__(self, decoder: Decoder | Layout, vector: Tensor | None, num: int, prefix: Sequence[int],
                 config: SamplingConfig, temperature: float = 1.0):
        if len(prefix) >= config.max_len:
            raise OutlinesError(f"the beginning has {len(prefix)} tokens, which leaves none of max-len {config.max_len} "
                                "to add")
        self._layout = layout = decoder if isinstance(decoder, Layout) else Layout(decoder)
        decoder = layout.decoder
        *before, self.tokens = decoder.output_bias.new_tensor([BOS, *prefix], dtype=torch.long)[:, None].expand(-1, num)
        """[B], to be read next"""
        self._bfloat16 = layout.bfloat16 and config.draws
        self._guidance = config.guidance
        vectors = [vector]
        if config.guidance != 1:
            if vector is None or not decoder.config.vector_dropout:
                raise OutlinesError("guidance: this decoder has not learnt to write without its vector: "
                                    "train outlines with --outline-dropout above 0")
            vectors.append(torch.zeros_like(vector))
        with self._cast():
            self._readings = [_Reading(decoder, vector, num) for vector in vectors]
            for reading, tokens in itertools.product(self._readings, before):
                reading.next(layout, tokens)
        # The temperature divides what is the same at every step, and not what each step makes of it.
        self._output = layout.output if temperature == 1 else layout.output / temperature
        if self._bfloat16:
            self._output = _in_bfloat16(self._output)
        rows = min(num, SLICE if self.tokens.device.type == "cpu" else GPU_SLICE)
        self._products = self._output.new_empty(rows, self._output.shape[1])
        self._logits = self._products.float()

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.tokens.device.type, torch.bfloat16, enabled=self._bfloat16)

    def read(self) -> Tensor:
        """What the output layer sees after each row's token, [B, embed_dim]."""
        with self._cast():
            given, *blind = (reading.next(self._layout, self.tokens) for reading in self._readings)
        # Logits are linear in it, so they are mixed here, before the widest product.
        return torch.lerp(blind[0], given, self._guidance) if blind else given

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] over the temperature of any N rows; of tokens that no sentence holds, -inf."""
        return torch.mm(self._with_ones(hidden), self._output)[:, :len(self._layout.words)]

    def choose(self, uniforms: Tensor, config: SamplingConfig) -> Tensor:
        """Read, and choose each row's next token [B]; uniforms: [B]. config's temperature is what is left of it."""
        hidden, size, chosen = self._with_ones(self.read()), len(self._logits), []
        for part, numbers in zip(hidden.split(size), uniforms.split(size), strict=True):
            products, logits = self._products[:len(part)], self._logits[:len(part)]
            torch.mm(part, self._output, out=products)
            if self._bfloat16:
                logits.copy_(products)
            chosen.append(_draw(logits, numbers, config))
        return torch.cat(chosen)

    def _with_ones(self, hidden: Tensor) -> Tensor:
        return functional.pad(hidden.to(self._output), (0, ONES), value=1.0)

    def begin(self, num: int) -> None:
        """Go on with the first `num` of the rows; the others wait."""
        for reading in self._readings:
            reading.begin(num)
        self.tokens = self.tokens[:num]

    def enter(self, first: int, places: Tensor) -> None:
        """Put rows that wait, from the number `first` on, into the places [N] of others; their tokens are the caller's."""
        for reading in self._readings:
            reading.enter(first, places)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [N], any of them more than once."""
        for reading in self._readings:
            reading.keep(rows)

    def move(self, rows: Tensor, places: Tensor, num: int) -> None:
        """Put rows [N] into the places of others [N], and go on with the first `num`."""
        for reading in self._readings:
            reading.move(rows, places, num)


@torch.no_grad()
def beam_search(decoder: Decoder | Layout, vector: Tensor | None, num: int, config: SamplingConfig,
                prefix: Sequence[int] = ()) -> list[list[int]]:
    """The sentence of each of `num` rows for which the highest log p(sentence, eos | vector) was found.

    The sum is not divided by the length: what is returned is an estimate of the mode, and widening the beam to all
    prefixes makes it the mode. A sentence that ends leaves its place in the beam to others; a row is done when no prefix
    in its beam is likelier than its best whole sentence, for no prefix gets likelier by growing. A row of whose beam
    nothing ended within max_len gives its likeliest prefix.

    Source: Sutskever, Vinyals and Le, Sequence to Sequence Learning with Neural Networks (2014), section 3.2.
    """
    reader = _Reader(decoder, vector, num, prefix, config)
    width, device = config.beam, reader.tokens.device
    reader.keep(torch.arange(num, device=device).repeat_interleave(width))
    reader.tokens = reader.tokens.repeat_interleave(width)
    scores = torch.full((num, width), -torch.inf, device=device)
    scores[:, 0] = 0.0  # the others would be copies of the first
    beams = torch.empty(num, width, 0, dtype=torch.long, device=device)
    rows = torch.arange(num, device=device)
    best = torch.full((num,), -torch.inf, device=device)
    sentences: list[list[int]] = [[] for _ in range(num)]
    for position in range(len(prefix), config.max_len + 1):
        totals = scores[:, :, None] + reader.logits(reader.read()).log_softmax(dim=1).view(len(rows), width, -1)
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
        reader.keep(kept)
        rows, best, scores, beams = rows[going_on], best[going_on], scores[going_on], beams[going_on]
        reader.tokens = beams[:, :, -1].flatten()
    return sentences
