"""Tokens/s of decoder training, float32 beside bfloat16: `python -m benchmarks.decoder_speed`.

Batches of 128 sentences of 15 tokens over 4,000 pieces, as Multi30k's are on average; forward, backward, clipping, AdamW.
Rounds of the arms alternate, and the best round of each counts, for other processes only ever slow one down.
"""

import time
from collections.abc import Callable

import torch

from outlines.corpus.batching import collate
from outlines.devices import choose_precision
from outlines.networks.gru import GRUConfig, GRUDecoder
from train.method import Update, adamw
from train.runtime.ranks import Ranks

CONFIG = GRUConfig(vocab_size=4000, vector_dim=384, embed_dim=224, hidden_dim=384)
BATCH_SIZE, LENGTH, STEPS, ROUNDS = 128, 14, 10, 6


def main() -> None:
    torch.manual_seed(0)
    batch = collate([torch.randint(4, 4000, (LENGTH,)).numpy() for _ in range(BATCH_SIZE)], CONFIG)
    vector = torch.randn(BATCH_SIZE, 384)
    update = Update(Ranks(), clip_norm=1.0)

    def arm(bfloat16: bool) -> Callable[[], object]:
        decoder = GRUDecoder(CONFIG)
        optimizer = adamw([decoder], 1e-3, (0.9, 0.99), 0.01)

        def step() -> object:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                nll = decoder.nll(batch, vector).sum()
            return update("nll", optimizer, nll / int(batch.lengths.sum()))

        return step

    arms = {"float32": arm(False), "bfloat16": arm(True)}
    best = dict.fromkeys(arms, 0.0)
    for _ in range(ROUNDS):
        for name, step in arms.items():
            step()
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            best[name] = max(best[name], STEPS * int(batch.lengths.sum()) / (time.perf_counter() - started))
    parameters = sum(parameter.numel() for parameter in GRUDecoder(CONFIG).parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, speed in best.items():
        print(f"{name:10} {speed:8,.0f} tokens/s ({speed / best['float32']:.2f} x)")
    print(f"--precision auto takes {choose_precision('auto', torch.device('cpu'))} here")


if __name__ == "__main__":
    main()
