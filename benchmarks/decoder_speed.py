"""Tokens/s of decoder training, float32 beside bfloat16: `python -m benchmarks.decoder_speed`.

Batches of 128 sentences of 15 tokens over 4,000 pieces, as Multi30k's are on average; forward, backward, clipping, AdamW.
Rounds of the two precisions alternate, and the best round of each counts, for other processes only ever slow one down.
"""

import time

import torch

from outlines.corpus.batching import collate
from outlines.decoder import Decoder, DecoderConfig
from outlines.losses import sequence_nll
from train.distributed import Ranks
from train.method import Update, adamw
from train.runs import has_bfloat16_units

BATCH_SIZE, LENGTH, STEPS, ROUNDS = 128, 14, 10, 6


def main() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(vocab_size=4000, vector_dim=384, embed_dim=224, hidden_dim=384))
    batch = collate([torch.randint(4, 4000, (LENGTH,)).numpy() for _ in range(BATCH_SIZE)])
    vector = torch.randn(BATCH_SIZE, 384)
    optimizer = adamw([decoder], 1e-3, (0.9, 0.99), 0.01)
    update = Update(Ranks(), clip_norm=1.0)

    def step(bfloat16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = decoder(batch.inputs, vector)
        update("nll", optimizer, sequence_nll(logits, batch.targets, batch.mask).sum() / int(batch.lengths.sum()))

    best = {False: 0.0, True: 0.0}
    for _ in range(ROUNDS):
        for bfloat16 in best:
            step(bfloat16)
            started = time.perf_counter()
            for _ in range(STEPS):
                step(bfloat16)
            best[bfloat16] = max(best[bfloat16], STEPS * int(batch.lengths.sum()) / (time.perf_counter() - started))
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"float32   {best[False]:8,.0f} tokens/s")
    print(f"bfloat16  {best[True]:8,.0f} tokens/s ({best[True] / best[False]:.2f} x)")
    print(f"--precision auto takes {'bfloat16' if has_bfloat16_units(torch.device('cpu')) else 'float32'} here")


if __name__ == "__main__":
    main()
