"""State on disk: atomic, verified, no pickle.

A checkpoint is a directory of safetensors and JSON files with a manifest of their SHA-256 sums. It is written beside
its target, flushed to the disk and renamed into place, so a reader sees the whole of it or nothing. Neither
safetensors nor torch.save notices a flipped bit in a tensor; the manifest does.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from outlines.errors import OutlinesError

MANIFEST = "manifest.json"
STAGING_PREFIX = ".staging-"
Module = TypeVar("Module", bound=torch.nn.Module)
ASIDE_PREFIX = ".aside-"


class CheckpointError(OutlinesError):
    """A file of a checkpoint is missing, damaged or not what its manifest says."""


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; memory does not grow with the file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes) -> None:
    """Replace `path` by a file with these bytes, or leave it as it was; the parent directory is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=STAGING_PREFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _fsync(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a staging directory; when the block ends it becomes `path`, with a manifest of its files' SHA-256.

    An existing `path` is replaced. If the block raises, the staging directory goes and `path` stays as it was.
    """
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
    """Rename a directory to `path`; what was there steps aside first, for a rename cannot replace a full directory.

    Its name there says where it belongs, so that `sweep` can bring it back if the process dies between the two.
    """
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
    """Clear what an interrupted write left in `directory`. Call it only while no other process writes there."""
    for aside in directory.glob(ASIDE_PREFIX + "*"):
        path = aside.with_name(aside.name[len(ASIDE_PREFIX):])
        if path.exists():
            shutil.rmtree(aside)
        else:
            os.replace(aside, path)
    for leftover in directory.glob(STAGING_PREFIX + "*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _manifest(directory: Path) -> dict[str, str]:
    """The SHA-256 of each file that `directory` must hold; raises CheckpointError."""
    try:
        if (directory / MANIFEST).is_symlink():
            raise CheckpointError(f"{directory / MANIFEST}: a link, where a plain file must be")
        manifest = json.loads((directory / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory}: no {MANIFEST}: not a checkpoint, or not a whole one") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{directory / MANIFEST}: damaged ({error})") from error
    if not isinstance(manifest, dict) or not manifest:
        raise CheckpointError(f"{directory / MANIFEST}: damaged (not a table of sums)")
    there = {file.name for file in directory.iterdir()}
    for name in manifest:
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{directory / MANIFEST}: names a file outside the directory: {name!r}")
        file = directory / name
        if name not in there or file.is_symlink() or not file.is_file():
            raise CheckpointError(f"{file}: missing, or not a plain file")
    return manifest


def _check_sum(file: Path, found: str, expected: str) -> None:
    if found != expected:
        raise CheckpointError(f"{file}: damaged: its SHA-256 is not the manifest's")


def verify(directory: Path, names: Iterable[str] = ()) -> None:
    """Raise CheckpointError unless `directory` holds the plain files of its manifest, bit for bit, `names` among them."""
    manifest = _manifest(directory)
    for name in names:
        if name not in manifest:
            raise CheckpointError(f"{directory / MANIFEST}: names no {name}")
    for name, expected in manifest.items():
        _check_sum(directory / name, sha256_file(directory / name), expected)


def write_state(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write named tensors and JSON data as one atomic, verified directory; raises OSError."""
    with atomic_directory(path) as staging:
        # Clones, because safetensors refuses tensors that share storage (tied embeddings do).
        clones = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        try:
            save_file(clones, staging / "tensors.safetensors")
        except SafetensorError as error:  # What the library makes of a disk that is full.
            raise OSError(f"{path / 'tensors.safetensors'}: {error}") from error
        (staging / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True))


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what write_state wrote; raises CheckpointError. The bytes that are verified are those that are taken."""
    found: dict[str, bytes] = {}
    try:
        for name, expected in _manifest(path).items():
            found[name] = (path / name).read_bytes()
            _check_sum(path / name, hashlib.sha256(found[name]).hexdigest(), expected)
        tensors, meta = load(found["tensors.safetensors"]), json.loads(found["meta.json"])
    except KeyError as error:
        raise CheckpointError(f"{path / MANIFEST}: names no {error.args[0]}") from error
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path / 'meta.json'}: not a JSON object")
    return tensors, meta


def flatten_optimizer(state: dict[str, Any], prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split `optimizer.state_dict()` into named tensors and JSON data, the inverse of `unflatten_optimizer`."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.{index}.{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    return tensors, {"plain": plain, "param_groups": state["param_groups"]}


def unflatten_optimizer(tensors: dict[str, Tensor], data: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The state dict that `flatten_optimizer` took apart."""
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in data["plain"].items()}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1:].split(".", 1)
            state.setdefault(int(index), {})[key] = tensor.clone()
    return {"state": state, "param_groups": data["param_groups"]}


def module_tensors(modules: dict[str, torch.nn.Module], prefix: str) -> dict[str, Tensor]:
    """Every parameter and buffer of several modules under `prefix.module.name`."""
    return {f"{prefix}.{module_name}.{name}": tensor
            for module_name, module in modules.items() for name, tensor in module.state_dict().items()}


def load_modules(modules: dict[str, torch.nn.Module], tensors: dict[str, Tensor], prefix: str) -> None:
    """Fill modules with what `module_tensors` named; a missing, surplus or misshapen tensor is an error."""
    for module_name, module in modules.items():
        start = f"{prefix}.{module_name}."
        module.load_state_dict({name[len(start):]: tensor for name, tensor in tensors.items() if name.startswith(start)})


def build_module(build: Callable[[], Module], sizes: Any, tensors: dict[str, Tensor], where: Path) -> Module:
    """The module that `build` makes, filled with `tensors`; raises CheckpointError where the two do not fit.

    sizes: the JSON data that `build` goes by. It comes from a file, so the module is built without memory first: a file
    of a few bytes cannot ask for more than its own tensors take.
    """
    try:
        if _largest(sizes) > max((max(tensor.shape, default=1) for tensor in tensors.values()), default=1):
            raise ValueError("it claims to be larger than its tensors")
        with torch.device("meta"), _Unfilled():
            due = {name: tensor.shape for name, tensor in build().state_dict().items()}
        odd = sorted(name for name in due.keys() | tensors.keys()
                     if name not in due or name not in tensors or due[name] != tensors[name].shape)
        if odd:
            raise ValueError(f"missing, surplus or misshapen: {', '.join(odd[:3])}")
        module = build()
        module.load_state_dict(tensors)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, RuntimeError, TypeError,
            ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{where}: not of this version ({reason}): train it again") from error
    return module


class _Unfilled(TorchFunctionMode):
    """Modules are built without their first values: to make these on the meta device, torch imports its compiler.

    That took as long as the import of torch itself.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return torch.empty(args[0], args[0]) if func is torch.eye else func(*args, **kwargs)


def _largest(data: Any) -> float:
    """The largest number within JSON data."""
    if isinstance(data, (dict, list)):
        return max(map(_largest, data.values() if isinstance(data, dict) else data), default=0)
    return data if isinstance(data, (int, float)) else 0
