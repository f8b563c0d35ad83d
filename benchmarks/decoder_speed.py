"""Tokens/s of decoder training, for several precisions and softmaxes: `python -m benchmarks.decoder_speed`.

A batch has 128 sentences of 15 tokens (the mean of Multi30k), and the vocabulary has 4,000 pieces. Other rows have 12,000
pieces whose frequencies follow Zipf's law, and the full or the sampled softmax (the pieces of the batch and 1,000 others). A
step is forward, backward, clipping and AdamW. On a CPU without bfloat16, only float32 is measured.
"""

import dataclasses
from collections.abc import Callable

import torch

from benchmarks.rounds import has_bfloat16, shortest
from outlines.corpus.batching import collate
from outlines.devices import choose_precision
from outlines.networks.gru import GRUConfig, GRUDecoder
from train.method import Update, adamw
from train.runtime.ranks import Ranks

CONFIG = GRUConfig(vocab_size=4000, vector_dim=384, embed_dim=224, hidden_dim=384)
BATCH_SIZE, LENGTH, ROUNDS = 128, 14, 30
WORDS, NUM_SAMPLED = 12_000, 1000


def training_step(bfloat16: bool, config: GRUConfig = CONFIG) -> tuple[int, Callable[[], object]]:
    """Return the number of tokens of a batch, and a function that makes one training step on this batch."""
    torch.manual_seed(0)
    ranks = torch.arange(1, config.vocab_size - 3)
    frequency = 1 / ranks if config.vocab_size == WORDS else torch.ones(len(ranks))
    rows = 4 + torch.multinomial(frequency, BATCH_SIZE * LENGTH, replacement=True).view(BATCH_SIZE, LENGTH)
    batch = collate(list(rows.numpy()), config)
    num_tokens, vector = int(batch.lengths.sum()), torch.randn(BATCH_SIZE, 384)
    decoder, update = GRUDecoder(config), Update(Ranks(), clip_norm=1.0)
    optimizer = adamw([decoder], 1e-3, (0.9, 0.99), 0.01)

    def step() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            nll = decoder.nll(batch, vector).sum()
        return update("nll", optimizer, nll / num_tokens)

    return num_tokens, step


def main() -> None:
    num_parameters = sum(parameter.numel() for parameter in GRUDecoder(CONFIG).parameters())
    print(f"{num_parameters / 1e6:.2f} M parameters, {torch.get_num_threads()} threads, torch {torch.__version__}")
    steps = {name: training_step(name == "bfloat16") for name in ("float32", "bfloat16")[:1 + has_bfloat16()]}
    many = dataclasses.replace(CONFIG, vocab_size=WORDS)
    partial = dataclasses.replace(many, num_sampled=NUM_SAMPLED)
    for name in tuple(steps):
        steps[f"{name}, {WORDS:,} pieces"] = training_step(name == "bfloat16", many)
        steps[f"{name}, {NUM_SAMPLED:,} sampled"] = training_step(name == "bfloat16", partial)
    best = shortest({name: step for name, (_, step) in steps.items()}, ROUNDS, 2)
    num_tokens, _ = steps["float32"]
    for name, seconds in best.items():
        print(f"{name:24} {num_tokens / seconds:8,.0f} tokens/s ({best['float32'] / seconds:.2f} x)")
    print(f"--precision auto chooses {choose_precision('auto', torch.device('cpu'))} here")


if __name__ == "__main__":
    main()
