"""Decoding of vectors to tokens, by beam search, the fast GRU sampler or the plain sampler."""

import itertools
from collections.abc import Iterable

from torch import Tensor

from outlines.decoding.beam import beam_search
from outlines.decoding.fast_gru import FastGRU
from outlines.decoding.sample import Prefix, SamplingConfig, of_rows, sample
from outlines.networks.decoder import Decoder
from outlines.networks.gru import GRUDecoder

BEAM_ROWS = 4096  # number of prefixes that beam search extends together
CPU_ROWS = 1024  # number of sentences that the plain sampler writes together on a CPU; limits the memory of the logits


class Sampler:
    """Writes sentences with a decoder. Build a new Sampler when the decoder's parameters have changed."""

    def __init__(self, decoder: Decoder, bfloat16: bool = False):
        """bfloat16: use bfloat16 matrix products to sample tokens; greedy decoding and beam search always use float32."""
        self.decoder, self.bfloat16 = decoder, bfloat16
        self._fast = FastGRU(decoder, bfloat16) if type(decoder) is GRUDecoder else None

    def __call__(self, vector: Tensor | None, uniforms: Tensor, config: SamplingConfig,
                 prefix: Prefix = ()) -> list[list[int]]:
        """Return the token ids of one sentence per row of `uniforms`. Arguments: see `sample`. Beam search is not random."""
        if not len(uniforms):
            return []
        if self._fast and not config.beam:
            return self._fast.sample(vector, uniforms, config, prefix)
        prefix = of_rows(prefix, len(uniforms), uniforms.device)
        suited = CPU_ROWS if uniforms.device.type == "cpu" else len(uniforms)
        limit = self.decoder.rows_at_once
        rows_at_once = max(1, (limit or BEAM_ROWS) // config.beam) if config.beam else limit or suited
        vectors: Iterable[Tensor | None] = itertools.repeat(None) if vector is None else vector.split(rows_at_once)
        parts = zip(vectors, uniforms.split(rows_at_once), prefix.split(rows_at_once), strict=False)
        return [row for part, numbers, begun in parts for row in (
            beam_search(self.decoder, part, len(numbers), config, begun, self._fast) if config.beam else
            sample(self.decoder, part, numbers, config, begun, self.bfloat16))]
