"""BLEU and self-BLEU of files with samples, with the protocol of Texygen's published tables (Zhu et al. 2018).

    python -m benchmarks.texygen TEST.txt SAMPLES.txt…

BLEU compares each sample with all test sentences. Self-BLEU compares each sample with all other samples. Both scores are
means over samples, with NLTK's smoothing method1.
"""

import argparse
import gzip
from collections.abc import Sequence
from pathlib import Path

from outlines.metrics.bleu import References, bleu_scores, self_bleu_scores
from outlines.metrics.text import words


def read(path: str) -> list[list[str]]:
    """Return the words of each line of a file, which may be compressed (.gz)."""
    data = Path(path).read_bytes()
    return [words(line) for line in (gzip.decompress(data) if path.endswith(".gz") else data).decode().splitlines()]


def main(test: str, samples: Sequence[str]) -> None:
    references = References(read(test))
    print("| samples | BLEU-2 | BLEU-3 | BLEU-4 | BLEU-5 | self-BLEU-2 | self-BLEU-3 | self-BLEU-4 | self-BLEU-5 |")
    print(f"|---{'|---' * 8}|")
    for path in samples:
        split = read(path)
        scores = [*bleu_scores(split, references).values(), *self_bleu_scores(split).values()]
        print(f"| {path} ({len(split):,}) | {' | '.join(f'{score:.3f}' for score in scores)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test")
    parser.add_argument("samples", nargs="+")
    main(**vars(parser.parse_args()))
