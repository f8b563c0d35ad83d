import json
import os
import random
from pathlib import Path

import pytest
import torch

from outlines.checkpoint import (
    MANIFEST,
    atomic_directory,
    atomic_write,
    flatten_optimizer,
    load_modules,
    module_tensors,
    read_state,
    sweep,
    unflatten_optimizer,
    verify,
    write_state,
)
from outlines.errors import CheckpointError


@pytest.fixture
def state(tmp_path: Path) -> Path:
    write_state(tmp_path / "state", {"a": torch.arange(100.0), "b": torch.ones(3, dtype=torch.int64)}, {"step": 7})
    return tmp_path / "state"


def test_round_trip(state: Path) -> None:
    tensors, meta = read_state(state)
    assert torch.equal(tensors["a"], torch.arange(100.0)) and tensors["b"].dtype == torch.int64
    assert meta == {"step": 7}


def test_every_flipped_bit_and_truncation_is_detected(state: Path) -> None:
    rng = random.Random(0)
    files = sorted(state.iterdir())
    for _ in range(100):
        file = rng.choice(files)
        good = file.read_bytes()
        bad = bytearray(good)
        position = rng.randrange(len(bad))
        bad[position] ^= 1 << rng.randrange(8)
        if rng.random() < 0.2:
            bad = bad[:position]
        file.write_bytes(bytes(bad))
        if file.name == MANIFEST and _same_table(good, bytes(bad)):
            pass  # A flipped white space does not change the content of the manifest.
        else:
            with pytest.raises(CheckpointError):
                verify(state)
        file.write_bytes(good)
    verify(state)


def _same_table(good: bytes, bad: bytes) -> bool:
    try:
        return bool(json.loads(good) == json.loads(bad))
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["../state/meta.json", "/etc/passwd", "..", ""])
def test_a_manifest_cannot_name_files_outside(state: Path, name: str) -> None:
    (state / MANIFEST).write_text(json.dumps({name: "0" * 64}))
    with pytest.raises(CheckpointError, match="outside"):
        verify(state)


def test_a_link_is_no_checkpoint_file(state: Path, tmp_path: Path) -> None:
    (state / "meta.json").rename(tmp_path / "elsewhere")
    (state / "meta.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="not a plain file"):
        verify(state)


def test_a_failed_write_keeps_the_old_checkpoint_and_leaves_no_file(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, no_space)
            with pytest.raises(OSError, match="No space"):
                write_state(state, {"a": torch.zeros(1)}, {})
            with pytest.raises(OSError, match="No space"):
                atomic_write(state.parent / "file", b"new")
        assert sorted(path.name for path in state.parent.iterdir()) == ["state"]
        assert read_state(state)[1] == {"step": 7}


def test_sweep_deletes_what_a_killed_write_left(tmp_path: Path) -> None:
    (tmp_path / ".staging-x").mkdir()
    (tmp_path / ".staging-x" / "half").write_text("half")
    (tmp_path / ".staging-y").write_text("half")
    (tmp_path / "kept").write_text("kept")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_directory_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "new") as staging:
        (staging / "file").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_an_optimizer_can_be_flattened_and_restored() -> None:
    def steps(parameter: torch.Tensor, optimizer: torch.optim.Optimizer, num: int) -> None:
        for _ in range(num):
            optimizer.zero_grad()
            (parameter.square().sum() * 3).backward()
            optimizer.step()

    torch.manual_seed(0)
    first = torch.randn(4, requires_grad=True)
    optimizer = torch.optim.AdamW([first], lr=0.1)
    steps(first, optimizer, 3)
    second = first.detach().clone().requires_grad_(True)
    tensors, data = flatten_optimizer(optimizer.state_dict(), "o")
    restored = torch.optim.AdamW([second], lr=0.5)
    restored.load_state_dict(unflatten_optimizer(tensors, json.loads(json.dumps(data)), "o"))
    steps(first, optimizer, 3)
    steps(second, restored, 3)
    assert torch.equal(first, second)


def test_modules_refuse_missing_and_surplus_tensors() -> None:
    module = torch.nn.Linear(2, 2)
    tensors = module_tensors({"m": module}, "p")
    load_modules({"m": module}, tensors, "p")
    with pytest.raises(RuntimeError):
        load_modules({"m": module}, {"p.m.weight": tensors["p.m.weight"]}, "p")
