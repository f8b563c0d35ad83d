"""Sentences/s of the default encoder on the built-in corpus: `python -m benchmarks.encoding_speed`."""

import torch

from benchmarks.rounds import shortest
from outlines.corpus.grammar import sentences
from outlines.encoders import load_encoder

NUM, ROUNDS = 1024, 5


def main() -> None:
    corpus = list(sentences(NUM, seed=1))
    encoder = load_encoder("minilm")
    encoder.encode(corpus[:256])
    seconds = shortest({"minilm": lambda: encoder.encode(corpus)}, ROUNDS, num_warmup=0)["minilm"]
    words = sum(len(sentence.split()) for sentence in corpus) / NUM
    print(f"minilm, {torch.get_num_threads()} threads, sentences of {words:.1f} words: {NUM / seconds:,.0f} sentences/s")


if __name__ == "__main__":
    main()
