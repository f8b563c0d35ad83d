"""Tokens per CPU second of training SmolLM2 with low-rank adapters, per precision: `python -m benchmarks.pretrained_speed`.

A batch has 32 sentences of 14 tokens, and the output layer has rows for 10,000 pieces. A step is forward, backward, clipping
and AdamW. The shortest of three steps counts. CPU seconds are seconds of one thread, without the time in which other
processes use the core.
"""

import time

import torch

from benchmarks.rounds import has_bfloat16
from outlines.causal_lm import SMOLLM2, find_causal_lm
from outlines.corpus.batching import collate
from outlines.networks.pretrained import PretrainedConfig, PretrainedDecoder
from train.method import Update, adamw
from train.runtime.ranks import Ranks

BATCH_SIZE, LENGTH, NUM_PIECES, ROUNDS = 32, 13, 10_000, 3


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.process_time()
    config = PretrainedConfig(NUM_PIECES, vector_dim=384, base=SMOLLM2, fingerprint=find_causal_lm(SMOLLM2).fingerprint,
                              rows=f"0-{NUM_PIECES - 1}")
    decoder, update = PretrainedDecoder(config), Update(Ranks(), clip_norm=1.0)
    trained = sum(weights.numel() for weights in decoder.parameters() if weights.requires_grad)
    print(f"loaded in {time.process_time() - started:.0f} CPU seconds; {trained / 1e6:.1f} M trained weights of "
          f"{sum(weights.numel() for weights in decoder.parameters()) / 1e6:.0f} M; torch {torch.__version__}")
    optimizer = adamw([decoder], 1e-3)
    rows, vector = torch.randint(4, NUM_PIECES, (BATCH_SIZE, LENGTH)), torch.randn(BATCH_SIZE, 384)
    batch = collate(list(rows.numpy()), config)
    for name in ("float32", "bfloat16")[:1 + has_bfloat16()]:
        seconds = []
        for _ in range(1 + ROUNDS):  # the first step warms up
            before = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
                nll = decoder.nll(batch, vector).sum()
            update("nll", optimizer, nll / batch.mask.sum())
            seconds.append(time.process_time() - before)
        print(f"{name:10} {int(batch.mask.sum()) / min(seconds[1:]):6.0f} tokens per CPU second")


if __name__ == "__main__":
    main()
