"""Sentences/s of the default encoder on the embedded corpus: `python -m benchmarks.encoding_speed`."""

import time

import torch

from outlines.corpus.grammar import sentences
from outlines.encoders import load_encoder


def main() -> None:
    corpus = list(sentences(4096, seed=1))
    encoder = load_encoder("minilm")
    encoder.encode(corpus[:256])
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        encoder.encode(corpus)
        rates.append(len(corpus) / (time.perf_counter() - started))
    words = sum(len(sentence.split()) for sentence in corpus) / len(corpus)
    print(f"minilm, {torch.get_num_threads()} threads, sentences of {words:.1f} words: {max(rates):,.0f} sentences/s, "
          f"best of {len(rates)} ({min(rates):,.0f} to {max(rates):,.0f})")


if __name__ == "__main__":
    main()
