"""Encoded corpora on disk: sentences → raw outlines, once; and raw outline ⇄ scaled outline, at load.

A store is a directory of shards, each the bare little-endian float16 values of [shard_rows, D] outlines,
beside a label: a small JSON file with its SHA-256 and the corpus and encoder that it belongs to. A shard
counts once both are there, so an interrupted encoding goes on where it stopped. `meta.json`, written last,
makes the store whole. Outlines are kept raw and scaled at load, so that the scaling can change without
encoding again, as the latents of EDM2 are (Karras et al., 2024).
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from outlines.checkpoint import atomic_write, sha256_file, sweep
from outlines.encoders import SentenceEncoder
from outlines.errors import OutlinesError

META = "meta.json"
SHARD_ROWS = 16_384
CHUNK_SENTENCES = 2_048  # one call of the encoder: enough to sort by length, few enough to report progress
MAX_MAPPED_SHARDS = 512  # each mapping holds a file descriptor, of which a process commonly has 1,024
DTYPE = np.dtype("<f2")
KEY = {"rows": "number of sentences", "shard_rows": "shard size", "dim": "outline width",
       "encoder_fingerprint": "encoder", "corpus_fingerprint": "corpus"}
LABEL_NAMES = {*KEY, "encoder", "sha256"}
META_NAMES = {*KEY, "encoder", "shards", "mean", "scale"}
SEAL = "seal"
Progress = Callable[[int, int], None]


class Sentences(Protocol):
    """Sentences by number: a list, or a memory-mapped corpus."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str: ...


def encode_corpus(sentences: Sentences, encoder: SentenceEncoder, directory: Path, *, corpus_fingerprint: str,
                  shard_rows: int = SHARD_ROWS, progress: Progress | None = None) -> "OutlineStore":
    """Encode a corpus in this one process, or go on where an earlier run stopped; returns the whole store."""
    encode_shards(sentences, encoder, directory, corpus_fingerprint=corpus_fingerprint, shard_rows=shard_rows,
                  progress=progress)
    return finish_store(directory)


def encode_shards(sentences: Sentences, encoder: SentenceEncoder, directory: Path, *, corpus_fingerprint: str,
                  shard_rows: int = SHARD_ROWS, rank: int = 0, world: int = 1,
                  progress: Progress | None = None) -> None:
    """Encode every `world`-th shard from `rank` on; once all ranks are done, `finish_store` makes the store.

    A whole shard is left as it is, a torn one is encoded again. Memory holds one shard at a time.

    progress: called with (sentences done, sentences in all) of this rank.
    Raises OutlinesError where the directory belongs to another corpus or encoder, and where an outline is not
    finite in float16 or not D wide, naming the sentence by its number, counted from 0.
    """
    if len(sentences) == 0:
        raise OutlinesError(f"{directory}: there are no sentences to encode")
    label = {"rows": len(sentences), "shard_rows": shard_rows, "dim": encoder.dim, "encoder": encoder.name,
             "encoder_fingerprint": encoder.fingerprint, "corpus_fingerprint": corpus_fingerprint}
    for file in sorted(directory.glob("shard-*.json")):
        _check_key(directory, read_json(file, LABEL_NAMES), label)
    starts = range(rank * shard_rows, len(sentences), world * shard_rows)
    total = sum(min(shard_rows, len(sentences) - start) for start in starts)
    done = 0
    for start in starts:
        stop = min(start + shard_rows, len(sentences))
        file = _shard_file(directory, start // shard_rows)
        if not _is_whole(file):
            outlines = np.empty((stop - start, encoder.dim), dtype=DTYPE)
            for first in range(start, stop, CHUNK_SENTENCES):
                last = min(first + CHUNK_SENTENCES, stop)
                outlines[first - start:last - start] = _encode_chunk(sentences, encoder, first, last)
                if progress and last < stop:
                    progress(done + last - start, total)
            data = outlines.tobytes()
            atomic_write(file, data)
            shard_label = {**label, "sha256": hashlib.sha256(data).hexdigest()}
            _write_json(file.with_suffix(".json"), shard_label)
        done += stop - start
        if progress:
            progress(done, total)


def finish_store(directory: Path) -> "OutlineStore":
    """Write `meta.json` once the shards of all ranks are there, and return the store; one process calls it.

    Raises OutlinesError naming the shard that is missing, damaged or of another corpus or encoder.
    """
    first = read_json(_shard_file(directory, 0).with_suffix(".json"), LABEL_NAMES)
    sums = []
    for shard in range(math.ceil(first["rows"] / first["shard_rows"])):
        label = read_json(_shard_file(directory, shard).with_suffix(".json"), LABEL_NAMES)
        _check_key(directory, label, first)
        sums.append(label["sha256"])
    label = {name: value for name, value in first.items() if name != "sha256"} | {"shards": sums}
    meta = directory / META
    if not meta.exists() or not label.items() <= read_json(meta, META_NAMES).items():
        mean, scale = _moments(directory, sums, first["dim"])
        _write_json(meta, {**label, "mean": mean.tolist(), "scale": scale})
    sweep(directory)
    return OutlineStore(directory, verify=False)


class OutlineStore:
    """The raw outlines of a whole corpus, [N, D], memory-mapped.

    mean: [D] float64, over all rows. scale: one number, the root of the mean over dimensions of the variance.
    verify: read every shard once and compare its SHA-256.
    Raises OutlinesError naming the file that is missing or damaged.
    """

    def __init__(self, directory: Path, verify: bool = True):
        meta = read_json(directory / META, META_NAMES)
        counts, mean, shards = [meta[name] for name in ("dim", "rows", "shard_rows")], meta["mean"], meta["shards"]
        if (not all(type(count) is int and 0 < count < 2**53 for count in counts) or not isinstance(mean, list)
                or not all(isinstance(value, float) for value in [*mean, meta["scale"]])
                or len(mean) != meta["dim"] or not isinstance(shards, list)
                or len(shards) != math.ceil(meta["rows"] / meta["shard_rows"])):
            raise _damaged(directory / META)
        self.directory = directory
        self.dim: int = meta["dim"]
        self.mean = np.array(meta["mean"], dtype=np.float64)
        self.scale: float = meta["scale"]
        self.encoder_name: str = meta["encoder"]
        self.encoder_fingerprint: str = meta["encoder_fingerprint"]
        self.corpus_fingerprint: str = meta["corpus_fingerprint"]
        self._num_rows: int = meta["rows"]
        self._shard_rows: int = meta["shard_rows"]
        self._mapped: dict[int, np.ndarray] = {}
        for shard, expected in enumerate(meta["shards"]):
            file = _shard_file(directory, shard)
            if not file.is_file() or file.stat().st_size != math.prod(self._shape(shard)) * DTYPE.itemsize:
                raise _damaged(file)
            if verify and sha256_file(file) != expected:
                raise _damaged(file)

    def __len__(self) -> int:
        return self._num_rows

    @property
    def encoder(self) -> dict[str, str]:
        """Name and fingerprint of the encoder, as a model keeps them."""
        return {"name": self.encoder_name, "fingerprint": self.encoder_fingerprint}

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The outlines of rows `indices` ([B], from 0 to N - 1), in that order: [B, D] float32."""
        outlines = np.empty((len(indices), self.dim), dtype=np.float32)
        if not len(indices):
            return outlines
        if not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"rows {indices.min()} to {indices.max()} of a store of {len(self)}")
        order = np.argsort(indices, kind="stable")  # each shard is visited once, from front to back
        shards = indices[order] // self._shard_rows
        for part in np.split(order, np.flatnonzero(np.diff(shards)) + 1):
            shard = int(indices[part[0]]) // self._shard_rows
            outlines[part] = self._shard(shard)[indices[part] - shard * self._shard_rows]
        return outlines

    def _shape(self, shard: int) -> tuple[int, int]:
        return min(self._shard_rows, self._num_rows - shard * self._shard_rows), self.dim

    def _shard(self, shard: int) -> np.ndarray:
        if shard not in self._mapped:
            if len(self._mapped) == MAX_MAPPED_SHARDS:
                del self._mapped[next(iter(self._mapped))]
            file = _shard_file(self.directory, shard)
            self._mapped[shard] = np.memmap(file, dtype=DTYPE, mode="r", shape=self._shape(shard))
        return self._mapped[shard]


def _encode_chunk(sentences: Sentences, encoder: SentenceEncoder, first: int, last: int) -> np.ndarray:
    outlines = encoder.encode([sentences[index] for index in range(first, last)])
    if outlines.shape != (last - first, encoder.dim):
        raise OutlinesError(f"sentences {first} to {last - 1}: encoder {encoder.name} gave outlines of shape "
                            f"{outlines.shape}, where ({last - first}, {encoder.dim}) were due")
    with np.errstate(over="ignore"):
        halves = outlines.astype(np.float16)
    finite = np.isfinite(halves).all(axis=1)
    if not finite.all():
        raise OutlinesError(f"sentence {first + int(finite.argmin())}: its outline by encoder {encoder.name} "
                            "is not finite in float16")
    return halves


def _moments(directory: Path, sums: list[str], dim: int) -> tuple[np.ndarray, float]:
    """Mean [D] and scale of the stored values in float64, one shard in memory at a time; each shard is
    verified.

    Source: Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances
    (1979).
    """
    mean, deviations, count = np.zeros(dim), np.zeros(dim), 0
    for shard, expected in enumerate(sums):
        file = _shard_file(directory, shard)
        data = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(data).hexdigest() != expected:
            raise _damaged(file)
        values = np.frombuffer(data, dtype=DTYPE).reshape(-1, dim).astype(np.float64)
        shard_mean = values.mean(axis=0)
        values -= shard_mean
        both = count + len(values)
        deviations += np.square(values, out=values).sum(axis=0)
        deviations += np.square(shard_mean - mean) * (count * len(values) / both)
        mean += (shard_mean - mean) * (len(values) / both)
        count = both
    return mean, math.sqrt(deviations.mean() / count)


def _shard_file(directory: Path, shard: int) -> Path:
    return directory / f"shard-{shard:05d}.f16"


def _is_whole(file: Path) -> bool:
    label = file.with_suffix(".json")
    if not (file.is_file() and label.is_file()):
        return False
    return sha256_file(file) == read_json(label, LABEL_NAMES)["sha256"]


def _check_key(directory: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [what for name, what in KEY.items() if found.get(name) != wanted[name]]
    if differing:
        raise OutlinesError(f"{directory}: holds outlines of another {' and '.join(differing)}; "
                            "encode into another directory, or delete this one")


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a label or a store's meta.json with the SHA-256 of what it says."""
    atomic_write(file, json.dumps({**content, SEAL: _seal(content)}).encode())


def read_json(file: Path, names: set[str]) -> dict[str, Any]:
    """A label or a store's meta.json, with the names it must have; raises OutlinesError.

    Stores of before there was a seal have none, and are taken as they are.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OutlinesError(f"{file}: missing: the encoding did not finish; run it again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file) from error
    if not isinstance(content, dict):
        raise _damaged(file)
    seal = content.pop(SEAL, None)
    if content.keys() != names or seal not in (None, _seal(content)):
        raise _damaged(file)
    return content


def _damaged(file: Path) -> OutlinesError:
    return OutlinesError(f"{file}: missing or damaged; delete it if it is there and run the encoding again")
