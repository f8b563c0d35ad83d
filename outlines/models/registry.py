"""The list of families, and models on disk. To add a family, add a file with a subclass of TextModel to this folder."""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from outlines import models
from outlines.checkpoint import module_tensors, read_state, write_state
from outlines.errors import CheckpointError
from outlines.hardening import build_module
from outlines.models.base import TextModel
from outlines.options import Registry


def discover(base: type, package: ModuleType) -> Registry:
    """Return the subclasses of `base` that set `family`, by this name. First imports every file of `package`."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    found = Registry("family")
    pending: list[Any] = [base]
    while pending:
        for subclass in pending.pop().__subclasses__():
            if "family" in vars(subclass):
                found[subclass.family] = subclass
            pending.append(subclass)
    return found


def families() -> dict[str, type[TextModel]]:
    """Return the model class of each family, by name."""
    return discover(TextModel, models)


def save_model(directory: Path, model: TextModel) -> None:
    """Write a model atomically, as a directory with checksums."""
    write_state(directory, module_tensors({"model": model}, "model"), {"family": model.family, "shape": model.shape()})


def load_model(directory: Path) -> TextModel:
    """Return a model that `save_model` wrote, in evaluation mode, on the CPU; raises OutlinesError."""
    tensors, meta = read_state(directory)
    known, family, shape = families(), meta.get("family"), meta.get("shape")
    if not isinstance(family, str) or family not in known or not isinstance(shape, dict):
        raise CheckpointError(f"{directory}: does not match this version (family {str(family)[:40]!r}). Train it again.")
    own = {name.removeprefix("model.model."): tensor for name, tensor in tensors.items()}
    return build_module(lambda: known[family].from_shape(shape), shape, own, directory).eval()
