"""Peak memory of reading and encoding 30,000 and 300,000 sentences: `python -m benchmarks.memory`.

Each case runs in its own process. A dummy with MiniLM's outline width replaces the encoder, so that only the reading and the
store are measured. Peak resident memory includes pages of memory-mapped files, which the kernel keeps while memory is free.
Anonymous memory excludes these pages and is measured at the end.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from outlines.corpus.prepared import PreparedCorpus, prepare_corpus
from outlines.corpus.reading import CorpusFiles, ReadingReport, read_corpus
from outlines.encoders.store import encode_shards, finish_store

SIZES = (30_000, 300_000)


class StandInEncoder:
    """A dummy encoder that needs almost no time."""

    name, dim, fingerprint, normalized = "stand-in", 384, "stand-in", True

    def encode(self, sentences: list[str]) -> np.ndarray:
        lengths = np.array([len(sentence) for sentence in sentences], dtype=np.float32)
        return np.sin(lengths[:, None] + np.arange(self.dim, dtype=np.float32))


def write_corpus(path: Path, num: int) -> None:
    words = ("a", "man", "woman", "dog", "runs", "walks", "sits", "on", "in", "the", "red", "blue", "park", "street")
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        for index, row in enumerate(rng.integers(len(words), size=(num, 10))):
            file.write(" ".join(words[word] for word in row) + f" {index}\n")


def case(name: str, folder: Path) -> None:
    """Run one case. Print the peak resident memory and the anonymous memory at the end, in MiB, and the seconds."""
    started = time.perf_counter()
    if name == "prepare":
        files = CorpusFiles(corpus=(str(folder / "corpus.txt"),))
        pairs = ((member.split, member.sentence) for member in read_corpus(files, ReadingReport()))
        prepare_corpus(pairs, folder / "prepared", source="benchmark")
    else:
        sentences = PreparedCorpus(folder / "prepared").sentences["train"]
        encode_shards(sentences, StandInEncoder(), folder / "store", corpus_fingerprint=sentences.fingerprint)
        finish_store(folder / "store")
    status = Path("/proc/self/status").read_text()
    anonymous = int(status.split("RssAnon:")[1].split()[0]) // 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{peak:6,} {anonymous:10,} {time.perf_counter() - started:8.1f}")


def main() -> None:
    if len(sys.argv) == 3:
        case(sys.argv[1], Path(sys.argv[2]))
        return
    print(f"{'sentences':>10} {'case':>8} {'peak MiB':>9} {'anon. MiB':>9} {'s':>8}", flush=True)
    for num in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write_corpus(Path(folder) / "corpus.txt", num)
            for name in ("prepare", "encode"):
                done = subprocess.run([sys.executable, "-m", "benchmarks.memory", name, folder], capture_output=True,
                                      text=True, check=True)
                print(f"{num:>10,} {name:>8} {done.stdout.rstrip():>9}", flush=True)


if __name__ == "__main__":
    main()
