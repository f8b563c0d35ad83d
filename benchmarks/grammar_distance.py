"""How far language models are from the embedded grammar: `python -m benchmarks.grammar_distance DIRECTORY…`.

DIRECTORY: a run of the family lm on the embedded corpus, or one under runs-cache/lm-… . NUM new sentences of the grammar,
scored by each model and exactly. The mean of what a model gives beyond the exact value is what counts: that of the sentences
themselves is some hundredths of a nat off the entropy by chance.
"""

import sys
from pathlib import Path

import numpy as np

from outlines.corpus import grammar
from outlines.corpus.tokenizer import Tokenizer
from outlines.decoding.scoring import nll_of_rows
from outlines.models.registry import load_model

NUM, SEED = 20_000, 20260101


def main(directories: list[str]) -> None:
    language = grammar.scenes()
    sentences = list(grammar.sentences(NUM, SEED))
    exact = -np.array([language.log_prob(sentence) for sentence in sentences])
    entropy = language.entropy()
    print(f"{NUM:,} sentences, nats per sentence; the grammar's entropy {entropy:.3f}, exactly on these {exact.mean():.3f}")
    for directory in directories:
        rows = Tokenizer.load(Path(directory) / "tokenizer.model").encode(sentences)
        nll, _ = nll_of_rows(load_model(Path(directory) / "model").eval().decoder, [np.array(row) for row in rows])
        more, error = (nll - exact).mean(), (nll - exact).std() / NUM ** 0.5
        print(f"{directory} {entropy + more:.3f} ± {error:.3f}, {100 * more / entropy:.2f} % above the entropy")


if __name__ == "__main__":
    main(sys.argv[1:])
