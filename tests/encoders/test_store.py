"""The outline store: resuming, damage, several ranks, and its moments."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from outlines.encoders import store as outline_store
from outlines.encoders.store import OutlineStore, encode_shards, finish_store
from outlines.errors import OutlinesError
from outlines.networks.scaling import Scaling

DIM = 8
SENTENCES = [f"sentence number {number}" for number in range(103)]
SHARD_ROWS = 10


class HashEncoder:
    """Outlines sampled from the hash of the sentence. Records what it encodes; may stop after `breaks_after` sentences."""

    name, dim, fingerprint, normalized = "hash", DIM, "f" * 64, False

    def __init__(self, breaks_after: int | None = None):
        self.seen: list[str] = []
        self.breaks_after = breaks_after

    def encode(self, sentences: list[str]) -> np.ndarray:
        self.seen += sentences
        if self.breaks_after is not None and len(self.seen) > self.breaks_after:
            raise KeyboardInterrupt
        seeds = [int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8]) for sentence in sentences]
        return np.stack([np.random.default_rng(seed).normal(1, 2, DIM) for seed in seeds]).astype(np.float32)


def encode(directory: Path, encoder: HashEncoder, **options: object) -> OutlineStore:
    options = {"corpus_fingerprint": "c", "shard_rows": SHARD_ROWS, **options}
    encode_shards(SENTENCES, encoder, directory, **options)  # type: ignore[arg-type]
    return finish_store(directory)


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_rows_equal_the_encoders_output_in_the_requested_order(tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outline_store, "MAX_MAPPED_SHARDS", 3)
    encode(tmp_path, HashEncoder())
    store = OutlineStore(tmp_path)
    direct = HashEncoder().encode(SENTENCES).astype(np.float16).astype(np.float32)
    assert (len(store), store.dim, store.encoder["name"]) == (103, DIM, "hash")
    assert (store.encoder_fingerprint, store.corpus_fingerprint) == ("f" * 64, "c")
    indices = np.random.default_rng(0).integers(0, 103, 500)  # with repeats, over all eleven shards
    rows = store.rows(indices)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, direct[indices])
    assert store._shard.cache_info().currsize == 3
    assert store.rows(np.array([], dtype=np.int64)).shape == (0, DIM)
    for outside in (-1, 103):
        with pytest.raises(IndexError):
            store.rows(np.array([0, outside]))


def test_mean_and_scale_cover_all_rows(tmp_path: Path) -> None:
    encode(tmp_path, HashEncoder())
    store = OutlineStore(tmp_path)
    rows = HashEncoder().encode(SENTENCES).astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(store.mean, rows.mean(axis=0), rtol=1e-13)
    assert store.scale == pytest.approx(np.sqrt(rows.var(axis=0).mean()), rel=1e-13)


def test_interrupted_encoding_continues(tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outline_store, "CHUNK_SENTENCES", 4)
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "store", HashEncoder(breaks_after=57))
    with pytest.raises(OutlinesError, match="missing"):
        OutlineStore(tmp_path / "store")
    with pytest.raises(OutlinesError, match=r"shard-00005\.json: missing"):
        finish_store(tmp_path / "store")
    encoder, reports = HashEncoder(), []
    encode(tmp_path / "store", encoder, progress=lambda done, total: reports.append((done, total)))
    assert encoder.seen == SENTENCES[50:]
    assert reports == sorted(reports) and reports[0] == (10, 103) and reports[-1] == (103, 103)
    encode(tmp_path / "whole", HashEncoder())
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_a_whole_store_is_not_encoded_again(tmp_path: Path) -> None:
    encode(tmp_path, HashEncoder())
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    encoder = HashEncoder()
    encode(tmp_path, encoder)
    assert encoder.seen == []
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damage", ["flip", "tear", "remove"])
def test_a_damaged_shard_is_detected_and_encoded_again(tmp_path: Path, damage: str) -> None:
    encode(tmp_path, HashEncoder())
    whole = files(tmp_path)
    shard = tmp_path / "shard-00003.f16"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 4
    if damage == "remove":
        shard.unlink()
    else:
        shard.write_bytes(data if damage == "flip" else data[:-20])
    with pytest.raises(OutlinesError, match=r"shard-00003\.f16: missing or damaged\. Delete it .* again"):
        OutlineStore(tmp_path)
    if damage != "flip":
        with pytest.raises(OutlinesError, match=r"shard-00003\.f16"):
            OutlineStore(tmp_path, verify=False)
    encoder = HashEncoder()
    encode(tmp_path, encoder)
    assert encoder.seen == SENTENCES[30:40]
    assert files(tmp_path) == whole


def test_finish_refuses_a_shard_that_does_not_match_its_label(tmp_path: Path) -> None:
    encode(tmp_path, HashEncoder())
    (tmp_path / "meta.json").unlink()
    shard = tmp_path / "shard-00003.f16"
    shard.write_bytes(shard.read_bytes()[:-2] + b"!!")
    with pytest.raises(OutlinesError, match=r"shard-00003\.f16"):
        finish_store(tmp_path)
    assert not (tmp_path / "meta.json").exists()


def test_two_ranks_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    encode(tmp_path / "one", HashEncoder())
    encoders = [HashEncoder(), HashEncoder()]
    for rank, encoder in enumerate(encoders):
        encode_shards(SENTENCES, encoder, tmp_path / "two", corpus_fingerprint="c", shard_rows=SHARD_ROWS,
                      rank=rank, world=2)
    finish_store(tmp_path / "two")
    assert sorted(encoders[0].seen + encoders[1].seen) == sorted(SENTENCES)
    assert encoders[1].seen[:10] == SENTENCES[10:20]
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.parametrize(("change", "what"), [
    ({"corpus_fingerprint": "d"}, "corpus"),
    ({"shard_rows": 20}, "shard size"),
])
def test_another_corpus_is_refused(tmp_path: Path, change: dict[str, object], what: str) -> None:
    encode(tmp_path, HashEncoder())
    whole = files(tmp_path)
    with pytest.raises(OutlinesError, match=f"outlines of another {what}\\."):
        encode(tmp_path, HashEncoder(), **change)
    assert files(tmp_path) == whole


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path, HashEncoder(breaks_after=30))
    (tmp_path / "shard-00000.f16").unlink()
    other = HashEncoder()
    other.fingerprint = "e" * 64
    with pytest.raises(OutlinesError, match=r"outlines of another encoder\."):
        encode(tmp_path, other)
    assert other.seen == []


def test_outlines_that_are_not_finite_or_too_narrow_are_reported(tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outline_store, "CHUNK_SENTENCES", 4)

    class Faulty(HashEncoder):
        value = np.inf

        def encode(self, sentences: list[str]) -> np.ndarray:
            outlines = super().encode(sentences)
            outlines[[sentence == SENTENCES[47] for sentence in sentences], 2] = self.value
            return outlines

    for value in (np.nan, -np.inf, 1e5):  # the last is finite in float32 and not in float16
        Faulty.value = value
        with pytest.raises(OutlinesError, match=r"Sentence 47: .* not finite"):
            encode(tmp_path / str(value), Faulty())

    class Narrow(HashEncoder):
        def encode(self, sentences: list[str]) -> np.ndarray:
            return super().encode(sentences)[:, :-1]

    with pytest.raises(OutlinesError, match=r"Sentences 0 to 3: .* shape \(4, 7\), expected \(4, 8\)"):
        encode(tmp_path / "narrow", Narrow())


def test_damaged_metadata_is_reported(tmp_path: Path) -> None:
    encode(tmp_path, HashEncoder())
    meta = tmp_path / "meta.json"
    content = json.loads(meta.read_text())
    del content["scale"]
    for text in ("{", "[1]", json.dumps(content)):
        meta.write_text(text)
        with pytest.raises(OutlinesError, match=r"meta\.json: (missing or )?damaged"):
            OutlineStore(tmp_path)


def test_scaling_with_a_stores_moments_equals_scaling_with_its_rows(tmp_path: Path) -> None:
    store = encode(tmp_path, HashEncoder())
    rows = torch.from_numpy(store.rows(np.arange(len(store)))).double()
    scaling = Scaling(torch.from_numpy(store.mean).float(), store.scale)
    torch.testing.assert_close(scaling.mean, rows.mean(dim=0).float())
    torch.testing.assert_close(scaling.std, rows.var(dim=0, correction=0).mean().sqrt().float())
    assert set(scaling.state_dict()) == {"mean", "std"}


@pytest.mark.parametrize("change", [lambda outlines: outlines + np.eye(1, DIM), lambda outlines: outlines * 1.1,
                                    lambda outlines: outlines * np.nan, lambda outlines: outlines[:, ::-1]])
def test_outlines_of_another_version_of_the_library_are_noticed(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    class Changed(HashEncoder):
        def encode(self, sentences: list[str]) -> np.ndarray:
            return np.asarray(change(super().encode(sentences)))

    encode(tmp_path, HashEncoder())
    store, same = OutlineStore(tmp_path), HashEncoder()
    store.check_current(SENTENCES, same)
    assert len(same.seen) == 21 and {same.seen[0], same.seen[-1]} == {SENTENCES[0], SENTENCES[-1]}
    with pytest.raises(OutlinesError, match=r"hash now computes different outlines\. .* delete this"):
        store.check_current(SENTENCES, Changed())
