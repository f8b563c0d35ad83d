"""The raw outlines of one split on disk: encoded once, then memory-mapped.

A store is a directory of shards: files of [shard_rows, D] raw outlines in little-endian float16. Each shard has a JSON file,
the label, with the shard's SHA-256, the corpus and the encoder. After an interruption, only missing shards are encoded.
"""

import hashlib
import json
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from outlines.checkpoint import atomic_write, sha256_file, sweep
from outlines.corpus.prepared import Sentences
from outlines.encoders import SentenceEncoder
from outlines.errors import CheckpointError, OutlinesError
from outlines.hardening import read_json

META = "meta.json"
SHARD_ROWS = 16_384
CHUNK_SENTENCES = 2_048  # per call of the encoder: enough to sort by length, few enough to report progress
NUM_CHECKED = 21  # rows of each split that are encoded again and compared with the stored ones
MAX_DRIFT = 0.045  # relative distance of two outlines of equal norm with a cosine of 0.999
MAX_MAPPED_SHARDS = 512  # each map needs a file descriptor; a process can usually have 1,024
DTYPE = np.dtype("<f2")
KEY = {"rows": "number of sentences", "shard_rows": "shard size", "dim": "outline width",
       "encoder_fingerprint": "encoder", "corpus_fingerprint": "corpus"}
ENCODE_AGAIN = "Delete it if it exists and run the encoding again."


def encode_shards(sentences: Sentences, encoder: SentenceEncoder, directory: Path, *, corpus_fingerprint: str,
                  shard_rows: int = SHARD_ROWS, rank: int = 0, world: int = 1,
                  progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Encode the missing or damaged shards of one process. Each of `world` processes encodes every `world`-th shard.

    rank: number of the process, from 0. progress: called with (sentences done, total) of this process.
    """
    label = {"rows": len(sentences), "shard_rows": shard_rows, "dim": encoder.dim, "encoder": encoder.name,
             "encoder_fingerprint": encoder.fingerprint, "corpus_fingerprint": corpus_fingerprint}
    for file in sorted(directory.glob("shard-*.json")):
        _check_key(directory, read_sealed(file), label)
    starts = range(rank * shard_rows, len(sentences), world * shard_rows)
    done, total = 0, sum(min(shard_rows, len(sentences) - start) for start in starts)
    for start in starts:
        stop = min(start + shard_rows, len(sentences))
        file = _shard_file(directory, start // shard_rows)
        seal = file.with_suffix(".json")
        if not (file.is_file() and seal.is_file() and sha256_file(file) == read_sealed(seal).get("sha256")):
            outlines = np.empty((stop - start, encoder.dim), dtype=DTYPE)
            for first in range(start, stop, CHUNK_SENTENCES):
                last = min(first + CHUNK_SENTENCES, stop)
                outlines[first - start:last - start] = _encode_chunk(sentences, encoder, first, last)
                if last < stop:
                    progress(done + last - start, total)
            data = outlines.tobytes()
            atomic_write(file, data)
            _write_sealed(seal, {**label, "sha256": hashlib.sha256(data).hexdigest()})
        done += stop - start
        progress(done, total)


def finish_store(directory: Path) -> "OutlineStore":
    """Verify all shards, write `meta.json`, and return the store, when all ranks are done. Raises OutlinesError."""
    first = read_sealed(_shard_file(directory, 0).with_suffix(".json"))
    sums, mean, square = list[str](), np.zeros(first["dim"]), 0.0
    for shard in range(math.ceil(first["rows"] / first["shard_rows"])):
        file = _shard_file(directory, shard)
        label, data = read_sealed(file.with_suffix(".json")), file.read_bytes() if file.is_file() else b""
        _check_key(directory, label, first)
        sums.append(hashlib.sha256(data).hexdigest())
        if sums[-1] != label.get("sha256"):
            raise _damaged(file)
        values = np.frombuffer(data, dtype=DTYPE).reshape(-1, first["dim"]).astype(np.float64)
        mean += values.sum(axis=0) / first["rows"]
        square += np.square(values).sum() / first["rows"]
    scale = math.sqrt(max(square - mean @ mean, 0.0) / first["dim"])
    meta = {**first, "shards": sums, "mean": mean.tolist(), "scale": scale}
    del meta["sha256"]
    if not (directory / META).exists() or meta != read_sealed(directory / META):
        _write_sealed(directory / META, meta)
    sweep(directory)
    return OutlineStore(directory, verify=False)


class OutlineStore:
    """The raw outlines of one split, [N, D], memory-mapped.

    mean: [D] float64, over all rows. scale: square root of the mean of the D variances.
    verify: check the SHA-256 of every shard. Raises OutlinesError if a file is missing or damaged.
    """

    def __init__(self, directory: Path, verify: bool = True):
        meta = read_sealed(directory / META)
        counts, mean, shards = [meta[name] for name in ("dim", "rows", "shard_rows")], meta.get("mean"), meta.get("shards")
        if (not all(type(count) is int and 0 < count < 2**53 for count in counts) or not isinstance(mean, list)
                or not all(isinstance(value, float) for value in [*mean, meta.get("scale")])
                or len(mean) != meta["dim"] or not isinstance(shards, list)
                or len(shards) != math.ceil(meta["rows"] / meta["shard_rows"])):
            raise _damaged(directory / META)
        self.directory, self.corpus_fingerprint = directory, str(meta["corpus_fingerprint"])
        self.mean, self.scale = np.array(mean, dtype=np.float64), float(meta["scale"])
        self.dim, self._num_rows, self._shard_rows = (int(count) for count in counts)
        self.encoder_fingerprint = str(meta["encoder_fingerprint"])
        self.encoder = {"name": str(meta["encoder"]), "fingerprint": self.encoder_fingerprint}  # as models store it
        self._shard = lru_cache(MAX_MAPPED_SHARDS)(self._map)
        for shard, expected in enumerate(shards):
            file = _shard_file(directory, shard)
            if (not file.is_file() or file.stat().st_size != math.prod(self._shape(shard)) * DTYPE.itemsize
                    or (verify and sha256_file(file) != expected)):
                raise _damaged(file)

    def __len__(self) -> int:
        return self._num_rows

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the outlines [B, D], float32, of the rows `indices` [B], 0 to N - 1, in this order. Raises IndexError."""
        outlines = np.empty((len(indices), self.dim), dtype=np.float32)
        if ((indices < 0) | (indices >= len(self))).any():
            raise IndexError(f"rows {indices.min()} to {indices.max()} of a store of {len(self)}")
        shards, rows = np.divmod(indices, self._shard_rows)
        for shard in np.unique(shards):
            outlines[shards == shard] = self._shard(int(shard))[rows[shards == shard]]
        return outlines

    def check_current(self, sentences: Sentences, encoder: SentenceEncoder) -> None:
        """Encode NUM_CHECKED sentences again. Raise OutlinesError if an outline differs from the stored outline."""
        rows = np.unique(np.linspace(0, len(self) - 1, NUM_CHECKED).astype(np.int64))
        stored = self.rows(rows)
        distances = np.linalg.norm(encoder.encode([sentences[row] for row in rows]) - stored, axis=1)
        if not (distances <= MAX_DRIFT * np.maximum(np.linalg.norm(stored, axis=1), 1e-3)).all():
            raise OutlinesError(f"{self.directory}: {encoder.name} now computes different outlines. "
                                "Install the library versions of run.json again, or delete this directory to encode again.")

    def _shape(self, shard: int) -> tuple[int, int]:
        return min(self._shard_rows, self._num_rows - shard * self._shard_rows), self.dim

    def _map(self, shard: int) -> np.ndarray:
        return np.memmap(_shard_file(self.directory, shard), dtype=DTYPE, mode="r", shape=self._shape(shard))


def _encode_chunk(sentences: Sentences, encoder: SentenceEncoder, first: int, last: int) -> np.ndarray:
    outlines = encoder.encode([sentences[index] for index in range(first, last)])
    if outlines.shape != (last - first, encoder.dim):
        raise OutlinesError(f"Sentences {first} to {last - 1}: encoder {encoder.name} returned shape {outlines.shape}, "
                            f"expected ({last - first}, {encoder.dim}). Check the encoder.")
    with np.errstate(over="ignore"):
        halves = outlines.astype(DTYPE)
    finite = np.isfinite(halves).all(axis=1)
    if not finite.all():
        raise OutlinesError(f"Sentence {first + int(finite.argmin())}: its outline from encoder {encoder.name} is not "
                            "finite in float16 (NaN or too large). Remove the sentence or use another encoder.")
    return halves


def _shard_file(directory: Path, shard: int) -> Path:
    return directory / f"shard-{shard:05d}.f16"


def _check_key(directory: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [what for name, what in KEY.items() if found.get(name) != wanted[name]]
    if differing:
        raise OutlinesError(f"{directory}: contains outlines of another {' and '.join(differing)}. "
                            "Encode into another directory, or delete this one.")


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _write_sealed(file: Path, content: dict[str, Any]) -> None:
    """Write a label or a store's meta.json, with the SHA-256 of its content."""
    atomic_write(file, json.dumps({**content, "seal": _seal(content)}).encode())


def read_sealed(file: Path) -> dict[str, Any]:
    """Return the data in a label or in a store's meta.json. Raises OutlinesError if the file is missing or damaged."""
    content = read_json(file, ENCODE_AGAIN)
    if content.pop("seal", None) != _seal(content) or not {*KEY, "encoder"} <= content.keys():
        raise _damaged(file)
    return content


def _damaged(file: Path) -> CheckpointError:
    return CheckpointError(f"{file}: missing or damaged. {ENCODE_AGAIN}")
