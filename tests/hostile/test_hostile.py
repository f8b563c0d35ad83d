"""Hostile files: pickles, fuzzed tokenizers, configurations that name code or other paths, and malformed text.

They have the counts of docs/reliability.md: a part of the cases in a normal `pytest`, all cases with `-m full`.
"""

import dataclasses
import difflib
import gzip
import io
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tomllib
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from outlines import hardening, load
from outlines.checkpoint import MANIFEST, read_state, sha256_file, verify, write_state
from outlines.corpus import tokenizer as tokenizing
from outlines.corpus.formats import MAX_LINE_CHARS, CorpusError
from outlines.corpus.prepared import PreparedCorpus
from outlines.corpus.reading import ReadingReport
from outlines.corpus.tokenizer import SentencePieceTokenizer
from outlines.encoders import load_encoder
from outlines.encoders.store import OutlineStore, finish_store
from outlines.errors import CheckpointError, OutlinesError, TokenizerError
from outlines.hardening import check_sentence_transformer
from outlines.models.registry import load_model
from tests.conftest import environment
from tests.corpus.test_reading import read_sentences
from train.config import RunConfig, from_json, known_fields, read_toml, resolve
from train.method import all_methods, find_method
from train.runtime.run_directory import newest_checkpoint, read_group, read_json, read_run, runs_of

# Pickles


class Payload:
    """Runs a statement when it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def payloads(ran: Path) -> dict[str, bytes]:
    """Return ten files that create the file `ran` when unpickled, in the formats of several tensor loaders."""
    touch = f"open({str(ran)!r}, 'w').close()"
    execute, system = Payload(exec, touch), Payload(os.system, f"touch {ran}")

    def saved(write: Callable[[io.BytesIO], object]) -> bytes:
        buffer = io.BytesIO()
        write(buffer)
        return buffer.getvalue()

    def archived(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(execute))
            archive.writestr("archive/version", "3")

    objects = np.array([execute], dtype=object)
    return {
        "text protocol": pickle.dumps(execute, 0), "protocol 2": pickle.dumps(execute, 2),
        "protocol 5": pickle.dumps(execute, 5),
        "system": pickle.dumps(system), "eval": pickle.dumps(Payload(eval, f"__import__('os').system('touch {ran}')")),
        "nested": pickle.dumps({"weights": [(execute,)]}),
        "torch archive": saved(archived),
        "torch.save": saved(lambda file: torch.save({"weight": execute}, file)),
        "torch.save, old": saved(lambda file: torch.save([execute], file, _use_new_zipfile_serialization=False)),
        "npy of objects": saved(lambda file: np.save(file, objects, allow_pickle=True)),
    }


def sign(directory: Path) -> None:
    """Update a manifest, as the author of a hostile file would."""
    if (directory / MANIFEST).exists():
        names = [file.name for file in directory.iterdir() if file.name != MANIFEST]
        (directory / MANIFEST).write_text(json.dumps({name: sha256_file(directory / name) for name in names}))


def note_tokenizer(run: Path) -> None:
    """Update the hash of the tokenizer in run.json."""
    if (run / "tokenizer.model").is_file():
        data = json.loads((run / "run.json").read_text())
        data["hashes"]["tokenizer"] = sha256_file(run / "tokenizer.model")
        (run / "run.json").write_text(json.dumps(data))


@pytest.fixture(scope="module")
def places(tiny_run: Path, recurrent_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of everything that can be loaded: a run, its checkpoints, its cache, an encoder."""
    root = tmp_path_factory.mktemp("places")
    cache = Path(json.loads((tiny_run / "run.json").read_text())["cache"])
    shutil.copytree(tiny_run, root / "run")
    shutil.copytree(cache, root / "cache")
    shutil.copytree(recurrent_encoder, root / "encoder")
    return root


Load = Callable[[Path], object]


def load_paths(root: Path) -> list[tuple[Path, Load]]:
    """Return every file that is ever read, with the function that reads it."""
    run, cache, encoder = root / "run", root / "cache", root / "encoder"
    paths: list[tuple[Path, Load]] = []

    def add(directory: Path, names: list[str], read: Load) -> None:
        paths.extend((directory / name, read) for name in names)

    state = ["tensors.safetensors", "meta.json", MANIFEST]
    add(sorted((run / "checkpoints").iterdir())[-1], state, lambda file: read_state(file.parent))
    add(run / "model", state, lambda file: load_model(file.parent))
    add(run, ["run.json", "tokenizer.model"], lambda file: load(file.parent, "cpu"))
    add(run, ["run.json"], lambda file: read_run(file.parent))
    add(run, ["report.json"], read_json)
    add(encoder / "state", state, lambda file: load_encoder(f"recurrent:{file.parents[1]}"))
    add(encoder, ["tokenizer.model"], lambda file: load_encoder(f"recurrent:{file.parent}"))
    corpus = next(cache.glob("corpus-*"))
    add(corpus, sorted(file.name for file in corpus.iterdir()), lambda file: PreparedCorpus(file.parent))
    store = next(cache.glob("outlines-*"))
    add(store, ["shard-00000.f16", "meta.json"], lambda file: OutlineStore(file.parent))
    add(store, ["shard-00000.json"], lambda file: finish_store(file.parent))
    scorer = next(cache.glob("lm-*"))
    add(scorer / "model", state, lambda file: load_model(file.parent))
    return paths


def st_model(directory: Path) -> None:
    """Write the files of a sentence-transformers model that are checked before it is loaded."""
    (directory / "1_Pooling").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "modules.json").write_text(json.dumps([
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]))
    (directory / "config.json").write_text('{"model_type": "bert"}')


def try_payload(data: bytes, file: Path, read: Load, ran: Path) -> bool:
    """Replace a file by a payload and read it; return True if it was refused, False if it was not examined."""
    good, run = file.read_bytes(), file.parent / "run.json"
    signed = {path: path.read_bytes() for path in (file.parent / MANIFEST, run) if path.exists()}
    try:
        file.write_bytes(data)
        if file.name != MANIFEST:
            sign(file.parent)
        if file.name == "tokenizer.model" and run.exists():
            note_tokenizer(file.parent)
        try:
            read(file)
        except OutlinesError as error:
            assert "\n" not in str(error), error
            return True
        return False
    finally:
        for path, content in [(file, good), *signed.items()]:
            path.write_bytes(content)
        assert not ran.exists(), f"{file}: code ran"


def test_the_payloads_work(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for name, data in payloads(ran).items():
        if name.startswith("torch"):
            torch.load(io.BytesIO(data), weights_only=False) if name != "torch archive" else pickle.loads(
                zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl"))
        elif name.startswith("npy"):
            np.load(io.BytesIO(data), allow_pickle=True)
        else:
            pickle.loads(data)
        assert ran.exists(), name
        ran.unlink()


def payload_cases(places: Path, ran: Path) -> list[tuple[bytes, Path, Load, Path]]:
    return [(data, file, read, ran) for data in payloads(ran).values() for file, read in load_paths(places)]


def test_pickles_are_refused_in_every_place(places: Path, tmp_path: Path) -> None:
    cases = payload_cases(places, tmp_path / "ran")
    of_tokenizers = [case for case in cases if case[1].name == "tokenizer.model"]  # each starts a process
    for case in [case for case in cases if case not in of_tokenizers][::17] + of_tokenizers[::15]:
        refused = try_payload(*case)
        assert refused or case[1].suffix in (".txt",), case[1]
    for file, read in load_paths(places)[::3]:
        read(file)  # the restored copy is valid, so the cases above tested the payloads


@pytest.mark.full
def test_ten_pickles_in_every_load_path(places: Path, tmp_path: Path) -> None:
    cases = payload_cases(places, tmp_path / "ran")
    refused = sum(try_payload(*case) for case in cases)
    print(f"{len(cases)} payloads in {len(load_paths(places))} places: {refused} refused, none ran")
    assert len(payloads(tmp_path / "ran")) == 10 and refused >= 0.9 * len(cases)


SECTIONS = ("corpus", "training", "model")  # of run.json
JUDGED_FILES = ["modules.json", "config.json", "1_Pooling/config.json", "pytorch_model.bin"]


def st_payload(model: Path, name: str, data: bytes) -> Path:
    st_model(model)
    (model / name).write_bytes(data)
    if name == "pytorch_model.bin":
        (model / "model.safetensors").unlink()
    return model


def test_pickles_in_a_sentence_transformers_model_are_refused(tmp_path: Path) -> None:
    for number, data in enumerate(payloads(tmp_path / "ran").values()):
        for name in JUDGED_FILES:
            with pytest.raises(OutlinesError):
                check_sentence_transformer(st_payload(tmp_path / f"{number}-{name}", name, data))
    assert not (tmp_path / "ran").exists()


@pytest.mark.full
def test_ten_pickles_in_every_file_of_a_sentence_transformers_model(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    cases = [(number, data, name) for number, data in enumerate(payloads(tmp_path / "ran").values())
             for name in [*JUDGED_FILES, "model.safetensors", "1_Pooling/model.safetensors"]]
    for number, data, name in cases:
        with pytest.raises(OutlinesError) as caught:
            load_encoder(f"st:{st_payload(tmp_path / f'{number}-{name}', name, data)}")
        assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists(), name
    print(f"{len(cases)} payloads in sentence-transformers models: all refused, none ran")


# Configurations that name code


@pytest.mark.parametrize(("name", "content"), [
    ("config.json", {"auto_map": {"AutoModel": "code.Model"}}), ("config.json", {"attn_implementation": "owner/kernel"}),
    ("config.json", {"quantization_config": {"quant_method": "evil"}}),
    ("tokenizer_config.json", {"auto_map": {"x": "y.Z"}}),
    ("config_sentence_transformers.json", {"trust_remote_code": True}),
    ("sentence_bert_config.json", {"model_args": {"use_safetensors": False}}),
    ("sentence_bert_config.json", {"tokenizer_name_or_path": "/etc"}),
    ("sentence_bert_config.json", {"config_kwargs": {"trust_remote_code": True}}),
    ("1_Pooling/config.json", {"activation_function": "os.abort"}),
    ("1_Pooling/config.json", {"activation_function": "torch.hub.load"}),
    ("model.safetensors.index.json", {"weight_map": {"a": "../../pytorch_model.bin"}}),
    ("model.safetensors.index.json", {"weight_map": {"a": "pytorch_model.bin"}}),
    ("model.safetensors.index.json", {"weight_map": 3}),
])
def test_a_model_whose_configuration_chooses_code_is_refused(tmp_path: Path, name: str, content: dict[str, Any]) -> None:
    st_model(tmp_path / "model")
    check_sentence_transformer(tmp_path / "model")
    (tmp_path / "model" / name).write_text(json.dumps(content))
    with pytest.raises(OutlinesError, match="refused"):
        check_sentence_transformer(tmp_path / "model")


HOSTILE_SHAPES: list[Callable[[dict[str, Any]], object]] = [
    lambda meta: meta.update(family="os.system"), lambda meta: meta.update(family=["lm"]),
    lambda meta: meta.update(family="../lm"), lambda meta: meta.update(shape="os"), lambda meta: meta.update(shape=None),
    lambda meta: meta.pop("shape"), lambda meta: meta["shape"]["decoder"].update(hidden_dim=10**12),
    lambda meta: meta["shape"]["decoder"].update(hidden_dim=400), lambda meta: meta["shape"]["decoder"].update(embed_dim=-3),
    lambda meta: meta["shape"]["decoder"].update(num_layers=10**9),
    lambda meta: meta["shape"]["decoder"].update(num_layers=0),
    lambda meta: meta["shape"]["decoder"].update(vocab_size=1e400),
    lambda meta: meta["shape"]["decoder"].update(vocab_size="9"),
    lambda meta: meta["shape"]["decoder"].update(__class__="os.system"), lambda meta: meta["shape"].update(decoder=[1]),
    lambda meta: meta["shape"].update(decoder=None),
]


@pytest.mark.parametrize("number", range(len(HOSTILE_SHAPES)))
def test_a_model_cannot_name_code_or_be_larger_than_its_tensors(places: Path, number: int) -> None:
    file = next((places / "cache").glob("lm-*")) / "model" / "meta.json"
    kept = {path: path.read_bytes() for path in (file, file.parent / MANIFEST)}
    meta = json.loads(kept[file])
    HOSTILE_SHAPES[number](meta)
    try:
        file.write_text(json.dumps(meta))
        sign(file.parent)
        with pytest.raises(CheckpointError, match=r"Train it again"):
            load_model(file.parent)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_endlessly_nested_json_is_an_error(places: Path, tmp_path: Path) -> None:
    deep = b'{"a":' * 100_000
    for file, read in load_paths(places):
        if file.suffix == ".json":
            assert try_payload(deep, file, read, tmp_path / "ran"), file
            assert try_payload(b"[" * 100_000, file, read, tmp_path / "ran"), file
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(OutlinesError, match="not a readable TOML file"):
        read_toml(str(tmp_path / "deep.toml"))


@pytest.mark.parametrize(("name", "change"), [
    ("train.ids.npy", lambda ids: ids * 0 + 60_000), ("train.ids.npy", lambda ids: ids[:-1]),
    ("train.ids.npy", lambda ids: ids.astype(np.float32)), ("train.ids.npy", lambda ids: ids[None]),
    ("valid.offsets.npy", lambda offsets: offsets[::-1]), ("valid.offsets.npy", lambda offsets: offsets + 10**12),
    ("valid.offsets.npy", lambda offsets: offsets[:0]), ("test.token_offsets.npy", lambda offsets: offsets[1:]),
    ("test.token_offsets.npy", lambda offsets: -offsets)])
def test_a_prepared_corpus_with_inconsistent_numbers_is_refused(places: Path, tmp_path: Path, name: str,
                                                                 change: Callable[[np.ndarray], np.ndarray]) -> None:
    shutil.copytree(next((places / "cache").glob("corpus-*")), tmp_path / "corpus")
    file = tmp_path / "corpus" / name
    np.save(file, change(np.load(file, allow_pickle=False)), allow_pickle=False)
    sign(file.parent)
    with pytest.raises(CheckpointError):
        PreparedCorpus(file.parent)


# Tokenizers

FUZZ = """
import json, os, random, signal, sys
from pathlib import Path
from outlines.corpus.tokenizer import SentencePieceTokenizer
from outlines.errors import TokenizerError

path, start, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
good = path.read_bytes()
counts = {}
for case in range(start, stop):
    rng, model = random.Random(case), bytearray(good)
    # Half the damage is among the pieces and the trainer's settings, which are small beside the table.
    table = good.find(b"nmt_nfkc")
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        place = rng.randrange(len(model)) if case % 2 else rng.choice(
            [rng.randrange(table), rng.randrange(max(0, len(model) - 300), len(model))])
        kind = rng.randrange(6)
        if kind == 0:
            model[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            model[place] = rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2:
            model[place:place + rng.randrange(1, 9)] = b""
        elif kind == 3:
            model[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            model[place:place + 8] = b"\\xff" * 8
        elif rng.random() < 0.3:
            del model[place:]
            break
    child = os.fork()
    if not child:
        file = path.with_name(f"fuzzed-{case}")
        file.write_bytes(model)
        signal.alarm(120)
        try:
            tokenizer = SentencePieceTokenizer.load(file)
        except TokenizerError as error:
            file.unlink()
            os._exit(1 if "\\n" not in str(error) else 3)
        file.unlink()
        tokenizer.decode(tokenizer.encode(["A dog runs.", "Z\\u00fcrich \\U0001f600 \\ufb01", "x" * 2000]))
        tokenizer._processor.normalize("\\uff21 \\u2460 \\u0301")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    counts[code] = counts.get(code, 0) + 1
print(json.dumps(counts))
"""


def fuzz(recurrent_encoder: Path, tmp_path: Path, count: int) -> Counter[int]:
    """Return how `count` damaged tokenizers end, each in its own process: 1 refused, 0 loaded and used."""
    shutil.copy(recurrent_encoder / "tokenizer.model", tmp_path / "a.model")
    done = subprocess.run([sys.executable, "-c", FUZZ, str(tmp_path / "a.model"), "0", str(count)], capture_output=True,
                          text=True, env=environment(), cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return Counter({int(code): number for code, number in json.loads(done.stdout).items()})


def test_a_fuzzed_tokenizer_is_refused_or_works(recurrent_encoder: Path, tmp_path: Path) -> None:
    found = fuzz(recurrent_encoder, tmp_path, 6)
    assert found.keys() <= {0, 1} and found[1] > 1, found


@pytest.mark.full
def test_eight_hundred_fuzzed_tokenizers(recurrent_encoder: Path, tmp_path: Path) -> None:
    found = fuzz(recurrent_encoder, tmp_path, 800)
    print(f"fuzzed tokenizers: {found[1]} refused, {found[0]} loaded and used, none died")
    assert found.keys() <= {0, 1} and found[1] > 300, found


@pytest.mark.parametrize(("trial", "message"), [
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with signal 11"),
    ("raise SystemExit(1)", "not a SentencePiece model"), ("import time; time.sleep(60)", "did not finish")])
def test_a_tokenizer_that_crashes_its_trial_is_a_one_line_error(
        recurrent_encoder: Path, monkeypatch: pytest.MonkeyPatch, trial: str, message: str) -> None:
    monkeypatch.setattr(hardening, "TRIAL", trial)
    monkeypatch.setattr(hardening, "TRIAL_SEC", 5 if "sleep" not in trial else 0.5)
    with pytest.raises(TokenizerError, match=message):
        SentencePieceTokenizer.load(recurrent_encoder / "tokenizer.model")


def test_only_a_tokenizer_without_a_recorded_hash_is_tried(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(tokenizing, "try_tokenizer", lambda model: tried.append(len(model)))
    file = places / "encoder" / "tokenizer.model"
    SentencePieceTokenizer.load(file, sha256_file(file))
    load(places / "run", "cpu")
    PreparedCorpus(next((places / "cache").glob("corpus-*")))
    load_encoder(f"recurrent:{places / 'encoder'}")
    assert not tried
    SentencePieceTokenizer.load(file)
    assert tried == [file.stat().st_size]
    with pytest.raises(TokenizerError, match="not the recorded one"):
        SentencePieceTokenizer.load(file, "0" * 64)


def test_a_tokenizer_must_be_a_plain_file_of_limited_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(TokenizerError, match="not a plain file"):
            SentencePieceTokenizer.load(path)
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TokenizerError, match="larger than"):
        SentencePieceTokenizer.load(tmp_path / "huge")


# Paths


def link(target: str) -> Callable[[Path], object]:
    """Replace a checkpoint's meta.json by a link."""
    def change(state: Path) -> None:
        (state / "meta.json").rename(state.parent / "elsewhere")
        (state / "meta.json").symlink_to(target)
    return change


def named(name: str) -> Callable[[Path], object]:
    """Add a name to the manifest, with the correct hash if the file exists."""
    def change(state: Path) -> None:
        manifest = json.loads((state / MANIFEST).read_text())
        sum_ = sha256_file(state / name) if "\0" not in name and len(name) < 200 and (state / name).is_file() else "0" * 64
        (state / MANIFEST).write_text(json.dumps({**manifest, name: sum_}))
    return change


def linked_manifest(state: Path) -> None:
    (state / MANIFEST).rename(state.parent / "elsewhere")
    (state / MANIFEST).symlink_to("../elsewhere")


@pytest.mark.parametrize("change", [
    *map(named, ["../outside", "/etc/passwd", "..", ".", "", "folder/file", "./meta.json", "folder/../meta.json", "a\0b",
                 "x" * 5000, "folder"]),
    link("../elsewhere"), link("nowhere"), link("."), link("/dev/zero"), linked_manifest])
def test_a_manifest_cannot_lead_outside_its_directory(tmp_path: Path, change: Callable[[Path], object]) -> None:
    state = tmp_path / "state"
    write_state(state, {"a": torch.arange(3.0)}, {"step": 7})
    (state / "folder").mkdir()
    for file in (tmp_path / "outside", state / "folder" / "file"):
        file.write_text("x")
    read_state(state)
    change(state)
    for check in (read_state, verify):
        with pytest.raises(CheckpointError):
            check(state)


@pytest.mark.parametrize("path", ["..", "../elsewhere", "/etc", "1_Pooling/../..", "linked", "linked/folder"])
def test_a_module_of_a_model_must_be_inside_it(tmp_path: Path, path: str) -> None:
    st_model(tmp_path / "model")
    (tmp_path / "elsewhere" / "folder").mkdir(parents=True)
    (tmp_path / "model" / "linked").symlink_to("../elsewhere")
    modules = [{"path": path, "type": "sentence_transformers.models.Pooling"}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(OutlinesError, match="outside"):
        check_sentence_transformer(tmp_path / "model")


@pytest.mark.parametrize("name", ["..", "../other", "/etc", "seed-1/..", "", ".", "linked", 7, "a\n"])
def test_a_group_of_runs_must_be_inside_its_directory(tmp_path: Path, name: Any) -> None:
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "linked").symlink_to(".")  # an endless recursion
    (tmp_path / "group" / "runs.json").write_text(json.dumps({"format": 1, "kind": "seeds", "runs": [name]}))
    with pytest.raises(OutlinesError):
        runs_of(tmp_path / "group")
    with pytest.raises(OutlinesError):
        read_group(tmp_path / "group")


def test_a_checkpoint_that_is_a_link_is_skipped(tmp_path: Path) -> None:
    write_state(tmp_path / "checkpoints" / "0-00000007", {"a": torch.zeros(1)}, {"stage": 0, "step": 7})
    (tmp_path / "checkpoints" / "0-00000009").symlink_to("0-00000007")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 7 and len(found[2]) == 1


# Text

PIECES = [b"A dog runs.", b"text", b",", b",", b'"', b'""', b"'", b"\\", b"{", b"}", b"[", b"]", b":", b'{"text": "A dog."}',
          b'{"text": "\\ud800"}', b'{"text": "\\u0000"}', b'{"text": 1e999}', b'{"text": NaN}',
          b'{"text": null}', b'{"tex": ""}', b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x80", b"\0",
          b"\x1a", b"\x1b[2J", b"\r", b"\r\n", b"\n", b"\n", b"\n", b"\t", b" ", b"\xef\xbb\xbf", b"\xff\xfe",
          "\u2028".encode(), "\u0085".encode(), "\u200b".encode(), "\u202e".encode(), "\U0001f600".encode(), b"9" * 5000,
          b"x" * 3000, b"[" * 2000, b"-", b"1,2"]
GOOD = {".txt": b"A dog.\n", ".jsonl": b'{"text": "A dog."}\n', ".csv": b"A dog.\n"}
HEADS = {".txt": [b"", b"\xef\xbb\xbf"], ".jsonl": [b"", b'{"text": "first"}\n'],
         ".csv": [b"text\n", b"id,text\n", b"\xef\xbb\xbftext\r\n", b'"text"\n', b"text,text\n", b""]}


def hostile_text(rng: random.Random, kind: str) -> bytes:
    """Return a file of this kind, composed of pieces that are difficult for parsers."""
    some = [*rng.sample(PIECES, rng.randrange(1, 8)), b"\n", GOOD[kind]]  # with all pieces, no line would be valid
    body = b"".join(rng.choice(some) if rng.random() < 0.97 else rng.randbytes(rng.randrange(20))
                    for _ in range(rng.randrange(60)))
    return rng.choice(HEADS[kind]) + body


def hold_to_promise(path: Path, data: bytes) -> str:
    """Read a file with and without strict: every line is a sentence or a counted skip, or one typed error names the file."""
    path.write_bytes(data)
    report = ReadingReport(max_examples=10**9)
    try:
        sentences = list(read_sentences([str(path)], report=report))
    except CorpusError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error), error
        whole_file = re.search("no sentence found|damaged|an archive|lines look like", str(error))
        assert whole_file or str(error)[len(str(path)):].split(":")[1].isdigit(), error
        return "no sentence" if "no sentence found" in str(error) else "error"
    assert sentences and all(text == " ".join(text.split()) and "\0" not in text for text in sentences)
    "".join(sentences).encode()  # no lone surrogate among them
    assert len(report.examples) == report.rejected.total()
    for example in report.examples:
        assert example.startswith(f"{path}:") and example[len(str(path)) + 1:].split(":")[0].isdigit(), example
    if path.name.startswith("a.txt"):
        plain = gzip.decompress(data) if path.suffix == ".gz" else data
        assert len(sentences) + report.rejected.total() == len(io.TextIOWrapper(io.BytesIO(plain), "latin-1").readlines())
    if report.rejected:
        with pytest.raises(CorpusError) as caught:
            list(read_sentences([str(path)], strict=True))
        assert str(caught.value).startswith(report.examples[0].rsplit(": ", 1)[0])
    return "read"


def generated_cases(tmp_path: Path, count: int) -> Counter[str]:
    """Read `count` generated files of each kind, every tenth one also as a valid and as a damaged .gz."""
    outcomes: Counter[str] = Counter()
    for kind in HEADS:
        for case in range(count):
            rng = random.Random(f"{kind} {case}")
            data = hostile_text(rng, kind)
            outcomes[f"{kind}: {hold_to_promise(tmp_path / f'a{kind}', data)}"] += 1
            if case % 10 == 0:
                packed = bytearray(gzip.compress(data))
                hold_to_promise(tmp_path / f"a{kind}.gz", bytes(packed))
                packed[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
                try:
                    hold_to_promise(tmp_path / f"a{kind}.gz", bytes(packed[:rng.randrange(len(packed))]))
                except (OSError, EOFError):  # raised by the test's own gzip.decompress
                    pytest.fail("damage that only the test saw")
    return outcomes


def test_generated_files_give_sentences_counted_skips_or_one_typed_error(tmp_path: Path) -> None:
    outcomes = generated_cases(tmp_path, 60)
    assert {outcome.split(": ")[1] for outcome in outcomes} == {"read", "error", "no sentence"}


@pytest.mark.full
def test_five_hundred_generated_files_of_each_format(tmp_path: Path) -> None:
    outcomes = generated_cases(tmp_path, 500)
    print(f"generated files: {dict(sorted(outcomes.items()))}")
    assert all(sum(number for outcome, number in outcomes.items() if outcome.startswith(kind)) == 500 for kind in HEADS)


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_named_cases_of_hostile_text(tmp_path: Path, kind: str, packed: bool) -> None:
    good = {".txt": b"good\n", ".jsonl": b'{"text": "good"}\n', ".csv": b"text\ngood\n"}[kind]
    path = tmp_path / f"a{kind}{'.gz' if packed else ''}"

    def outcome(data: bytes) -> str:
        return hold_to_promise(path, gzip.compress(data) if packed else data)

    for data in (good, b"\xef\xbb\xbf" + good, good.replace(b"\n", b"\r\n"), good + b"\0\n", good + b"\xed\xa0\x80\n",
                 good + b"x" * 10_000_000 + b"\n", good + b'{"text": ' + b"[" * 100_000 + b"\n", good + b'"' * 99_999,
                 good + b"\xff\xfe\n"):
        assert outcome(data) == "read"
    assert outcome(good.decode().encode("utf-16")) == "error"
    assert outcome(b"") == ("error" if kind == ".csv" else "no sentence")
    whole = gzip.compress(good * 1000)
    if packed:
        for stop in range(0, len(whole), 7):
            path.write_bytes(whole[:stop])
            with pytest.raises(CorpusError):
                list(read_sentences([str(path)]))


def test_a_gzip_bomb_stops_at_the_limit_without_using_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.txt.gz"
    monkeypatch.setattr("outlines.corpus.formats.GZ_BYTES", 1 << 20)
    with gzip.open(path, "wb") as file:
        for _ in range(64):
            file.write(b"0" * (1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(CorpusError, match=r"bomb\.txt\.gz:1: decompresses to more than [\d,]+ bytes"):
            list(read_sentences([str(path)]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MAX_LINE_CHARS


def test_an_argument_that_is_not_text_is_a_one_line_error(recurrent_encoder: Path) -> None:
    with pytest.raises(TokenizerError, match="lone surrogate"):
        SentencePieceTokenizer.load(recurrent_encoder / "tokenizer.model").encode([os.fsdecode(b"A \xff dog")])


# Configuration


def random_value(rng: random.Random, field: dataclasses.Field[Any]) -> Any:
    """Return a random value that the field allows."""
    kind, low, high = field.type, field.metadata["low"], field.metadata["high"]
    if choices := tuple(field.metadata["choices"]):
        return rng.choice(choices)
    if kind is bool:
        return rng.random() < 0.5
    if kind is int:
        largest = int(max(low, 0)) + rng.randrange(10**rng.randrange(1, 12))
        return rng.choice([int(max(low, -2**62)), min(largest, int(min(high, 2**62)))])
    if kind is float:
        return rng.choice([float(max(low, -1e9)), rng.uniform(max(low, 0), min(high, 1e3)),
                           min(max(low, 10.0 ** -rng.randrange(9)), high)])
    text = ["".join(rng.choice("aÄ😀 \"'\\=#[]\n\t\u2028/.~") for _ in range(rng.randrange(8))) for _ in range(3)]
    return text[0] if kind is str else tuple(text[:rng.randrange(1, 4)])


def as_toml(values: dict[str, Any]) -> str:
    return "".join(f"{name} = {json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)}\n"
                   for name, value in values.items())


PAIRS = {"corpus": ("pairs.jsonl",)}
PAIRING = ("group_lines", "condition_column", "label_column")


def random_round_trip(rng: random.Random, file: Path) -> str:
    """Check random options → TOML → configuration → run.json → configuration; return the family."""
    family = rng.choice(sorted(all_methods()))
    method = find_method(family)
    fields = known_fields(method.config_class)
    values = {name: random_value(rng, field) for name, field in fields.items() if rng.random() < 0.3}
    if method.config_class.learns_pairs:  # Files and columns of pairs depend on one another.
        values = {name: value for name, value in values.items() if name not in ("valid", "test", *PAIRING)} | PAIRS
    while True:
        file.write_text(as_toml(values), encoding="utf-8")
        assert tomllib.loads(file.read_text(encoding="utf-8")).keys() == values.keys()
        try:
            config = resolve(family, method.config_class, method.presets, rng.choice(sorted(method.presets)), str(file), {})
            break
        except OutlinesError as error:  # an option that conflicts with the others: remove it
            assert str(error).startswith("--"), error
            del values[str(error).split()[0].removeprefix("--").replace("-", "_")]
    sections = {**config.to_json()}
    flat = {name: value for key in SECTIONS for name, value in sections[key].items()}
    assert all(flat[name] == value for name, value in values.items())
    assert same(from_json(json.loads(json.dumps(config.to_json())), method.config_class), config)
    return family


def same(first: RunConfig, second: RunConfig) -> bool:
    return first == second and repr(first) == repr(second)


def test_random_configurations_round_trip(tmp_path: Path) -> None:
    for case in range(30):
        random_round_trip(random.Random(case), tmp_path / "a.toml")


@pytest.mark.full
def test_three_hundred_random_configurations_round_trip(tmp_path: Path) -> None:
    families = Counter(random_round_trip(random.Random(case), tmp_path / "a.toml") for case in range(300))
    print(f"round trips: {dict(sorted(families.items()))}")
    assert families.total() == 300 and families.keys() == all_methods().keys()


def misspelt(rng: random.Random, name: str) -> str:
    place = rng.randrange(1, len(name))
    return rng.choice([name[:place - 1] + name[place:], name[:place] + name[place - 1:], name + "s",
                       name[:place - 1] + name[place:place + 1] + name[place - 1:place] + name[place + 1:]])


@pytest.mark.parametrize("family", sorted(all_methods()))
def test_every_misspelt_option_is_refused_with_the_nearest_name(tmp_path: Path, family: str) -> None:
    from train.commands.train import parse

    method, rng = find_method(family), random.Random(family)
    fields, file = known_fields(method.config_class), tmp_path / "a.toml"
    needed = PAIRS if method.config_class.learns_pairs else {}
    whole = resolve(family, method.config_class, method.presets, "tiny", None, needed).to_json()
    for name in fields:
        wrong = misspelt(rng, name)
        if wrong in fields or wrong == "seeds":  # a valid name
            continue
        file.write_text(f"{wrong} = 1\n")
        section = next(key for key in SECTIONS if name in whole[key])
        renamed = {**whole, section: {wrong if key == name else key: value for key, value in whole[section].items()}}
        flag = "--" + wrong.replace("_", "-")
        attempts: list[Callable[[], object]] = [
            lambda: resolve(family, method.config_class, method.presets, "tiny", str(file), {}),
            lambda renamed=renamed: from_json(renamed, method.config_class)]
        if needed or name not in PAIRING:  # only families that learn from pairs have these flags
            attempts.append(lambda flag=flag: parse([family, flag, "1"]))
        for attempt in attempts:
            with pytest.raises(OutlinesError) as caught:
                attempt()
            shown = flag if "--" in str(caught.value) else wrong
            assert f"{shown!r}. Did you mean '" in str(caught.value), caught.value
            suggested = str(caught.value).split("Did you mean '")[1].split("'")[0].removeprefix("--").replace("-", "_")
            assert suggested == name or nearness(wrong, suggested) >= nearness(wrong, name), (wrong, suggested)


def nearness(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, second, first).ratio()


@pytest.mark.parametrize("text", ["[model]\nembed_dim = 3", "model.embed_dim = 3", "'' = 1", "__class__ = 'os.system'",
                                  "family = 'lm'", "embed_dim = 1e400", f"embed_dim = {10**30}", f"dropout = {10**400}",
                                  "dropout = inf", "dropout = 1979-05-27", "corpus = [[['a']]]", 'corpus = ["a\\u0000b"]',
                                  "tokenizer = 'a'\ntokenizer = 'b'", "corpus = [{a = 1}]", "seed = 'os.system'",
                                  "strict = 'true'"])
def test_a_hostile_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    method = find_method("outlines")
    with pytest.raises(OutlinesError) as caught:
        resolve("outlines", method.config_class, method.presets, "tiny", str(tmp_path / "a.toml"), {})
    assert "\n" not in str(caught.value)
