"""Checkpoints: safetensors and JSON files, written atomically and verified when they are read.

A checkpoint is a directory with a manifest: the SHA-256 of each file. safetensors itself does not detect a flipped bit.
A checkpoint is written to a staging directory, flushed to disk and renamed, so a reader never sees an incomplete checkpoint.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from outlines.errors import CheckpointError, one_line
from outlines.hardening import RESTORE, check_plain_files, read_json

MANIFEST = "manifest.json"
STAGING_PREFIX, ASIDE_PREFIX = ".staging-", ".aside-"
ALTERED = f"damaged (its SHA-256 differs from {MANIFEST}). {RESTORE}"


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. The file is read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(data: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of JSON data: a key for a cache."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _fsync(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open directories, and flushes only files that are open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes) -> None:
    """Replace `path` by a file with these bytes. If this fails, `path` is unchanged. Creates the parent directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=STAGING_PREFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _fsync(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a staging directory. At the end of the block, it replaces `path`. If the block raises, it is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=path.parent))
    try:
        yield staging
        files = sorted(file for file in staging.iterdir() if file.name != MANIFEST)
        manifest = {file.name: sha256_file(file) for file in files}
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for file in [*files, staging / MANIFEST, staging]:
            _fsync(file)
        _rename_over(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _fsync(path.parent)


def _rename_over(staging: Path, path: Path) -> None:
    """Rename `staging` to `path`. An existing `path` is first moved aside. If the process dies, `sweep` restores it."""
    if not path.exists():
        os.replace(staging, path)
        return
    aside = path.with_name(ASIDE_PREFIX + path.name)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    try:
        os.replace(staging, path)
    except BaseException:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Delete the leftovers of interrupted writes in `directory`, and restore directories that were moved aside.

    No other process may write to `directory` at the same time.
    """
    for aside in directory.glob(ASIDE_PREFIX + "*"):
        path = aside.with_name(aside.name.removeprefix(ASIDE_PREFIX))
        if path.exists():
            shutil.rmtree(aside)
        else:
            os.replace(aside, path)
    for leftover in directory.glob(STAGING_PREFIX + "*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _manifest(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the manifest: file name → SHA-256. Raises CheckpointError if it is damaged or one of `names` is missing."""
    check_plain_files(directory, [MANIFEST])
    manifest = read_json(directory / MANIFEST)
    missing = [name for name in names if name not in manifest]
    if missing or not manifest:
        found = ", ".join(missing) or "any file"
        raise CheckpointError(f"{directory / MANIFEST}: damaged (no entry for {found}). {RESTORE}")
    check_plain_files(directory, manifest)
    return manifest


def verify(directory: Path, names: Iterable[str] = ()) -> dict[str, str]:
    """Check all files that the manifest lists; it must list `names`. Return file name → SHA-256. Raises CheckpointError."""
    manifest = _manifest(directory, names)
    for name, expected in manifest.items():
        if sha256_file(directory / name) != expected:
            raise CheckpointError(f"{directory / name}: {ALTERED}")
    return manifest


def write_state(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write named tensors and JSON data to a directory with a manifest, atomically. Raises OSError."""
    with atomic_directory(path) as staging:
        # Cloned, because safetensors refuses tensors that share storage, such as tied embeddings.
        clones = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        try:
            save_file(clones, staging / "tensors.safetensors")
        except SafetensorError as error:  # for example, a full disk
            raise OSError(f"{path / 'tensors.safetensors'}: {error}") from error
        (staging / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True))


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON data that `write_state` wrote. Raises CheckpointError. Reads each file only once."""
    found: dict[str, bytes] = {}
    try:
        for name, expected in _manifest(path, ("tensors.safetensors", "meta.json")).items():
            found[name] = (path / name).read_bytes()
            if hashlib.sha256(found[name]).hexdigest() != expected:
                raise CheckpointError(f"{path / name}: {ALTERED}")
        tensors, meta = load(found["tensors.safetensors"]), json.loads(found["meta.json"])
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({one_line(error)}). {RESTORE}") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path / 'meta.json'}: damaged (not a JSON object). {RESTORE}")
    return tensors, meta


def flatten_optimizer(state: dict[str, Any], prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the named tensors and the JSON data of `optimizer.state_dict()`, whose state must contain only tensors."""
    return {f"{prefix}.{index}.{key}": value for index, entries in state["state"].items()
            for key, value in entries.items()}, {"param_groups": state["param_groups"]}


def unflatten_optimizer(tensors: dict[str, Tensor], data: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the optimizer's state dict from the results of `flatten_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name.removeprefix(prefix + ".").split(".", 1)
            state.setdefault(int(index), {})[key] = tensor.clone()
    return {"state": state, "param_groups": data["param_groups"]}


def module_tensors(modules: dict[str, nn.Module], prefix: str) -> dict[str, Tensor]:
    """Return all parameters and buffers of several modules, named `prefix.module.name`."""
    return {f"{prefix}.{module_name}.{name}": tensor
            for module_name, module in modules.items() for name, tensor in module.state_dict().items()}


def load_modules(modules: dict[str, nn.Module], tensors: dict[str, Tensor], prefix: str) -> None:
    """Load the result of `module_tensors`. Raises RuntimeError if a tensor is missing, unexpected or of another shape."""
    for module_name, module in modules.items():
        start = f"{prefix}.{module_name}."
        module.load_state_dict({name[len(start):]: tensor for name, tensor in tensors.items() if name.startswith(start)})
