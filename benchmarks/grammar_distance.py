"""NLL of language models compared with the built-in grammar: `python -m benchmarks.grammar_distance DIRECTORY ...`.

DIRECTORY: a run of the family lm on the built-in corpus, or a directory runs-cache/lm-... . Computes the NLL of NUM new
sentences of the grammar under each model and under the grammar. Prints the grammar's entropy plus the mean difference of
both NLLs, because the grammar's mean NLL on these sentences differs from the entropy by some hundredths of a nat by chance.
"""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from outlines.corpus import grammar
from outlines.corpus.tokenizer import SentencePieceTokenizer
from outlines.decoding.scoring import nll_of_rows
from outlines.models.registry import load_model

NUM, SEED = 20_000, 20260101


def main(directories: list[str]) -> None:
    language = grammar.scenes()
    sentences = list(grammar.sentences(NUM, SEED))
    exact = -np.array([language.log_prob(sentence) for sentence in tqdm(sentences, "exact", leave=False)])
    entropy = language.entropy()
    print(f"{NUM:,} sentences, nats per sentence; the grammar's entropy {entropy:.3f}, exactly on these {exact.mean():.3f}")
    for directory in directories:
        decoder = load_model(Path(directory) / "model").eval().decoder
        rows = [np.array(row) for row in SentencePieceTokenizer.load(Path(directory) / "tokenizer.model").encode(sentences)]
        parts = [rows[start:start + 1024] for start in range(0, NUM, 1024)]
        nll = np.concatenate([nll_of_rows(decoder, part)[0] for part in tqdm(parts, directory, leave=False)])
        more, error = (nll - exact).mean(), (nll - exact).std() / NUM ** 0.5
        print(f"{directory} {entropy + more:.3f} ± {error:.3f}, {100 * more / entropy:.2f} % above the entropy", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
