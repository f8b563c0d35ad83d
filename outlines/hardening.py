"""Checks of files before they are used, because they may be damaged or hostile.

A file must not select code to run, name files outside its own directory, or cause the use of much more memory than its own
size (docs/reliability.md).
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from outlines.errors import CheckpointError, OutlinesError, TokenizerError, one_line

Module = TypeVar("Module", bound=torch.nn.Module)
MAX_JSON_BYTES = 1 << 26
RESTORE = "Restore it from a copy."
PREPARE_AGAIN = "Delete the directory; the next run prepares the corpus again."


def _parse(path: Path, remedy: str) -> Any:
    """Return the JSON data in a file. Raises CheckpointError, which ends with `remedy`."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES:,} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing. {remedy}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({one_line(error)}). {remedy}") from error


def read_json(path: Path, remedy: str = RESTORE) -> dict[str, Any]:
    """Return the JSON object in a file. Raises CheckpointError, which ends with `remedy`."""
    data = _parse(path, remedy)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: damaged (not a JSON object). {remedy}")
    return data


def check_plain_files(directory: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError if one of `names` is not a plain file in `directory` itself. A link is not a plain file."""
    found = {file.name for file in directory.iterdir()} if directory.is_dir() else set()
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{directory}: its manifest names a file outside the directory: {name[:200]!r}. {RESTORE}")
        if name not in found or (directory / name).is_symlink() or not (directory / name).is_file():
            raise CheckpointError(f"{directory / name}: missing, or not a plain file. {RESTORE}")


def map_numbers(path: Path, kinds: tuple[str, ...]) -> np.ndarray:
    """Return a one-dimensional .npy file as a memory map. Raises CheckpointError for another shape or dtype."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: not a .npy file of numbers ({one_line(error)}). {PREPARE_AGAIN}") from error
    if not isinstance(mapped, np.ndarray) or mapped.ndim != 1 or mapped.dtype.str not in kinds:
        raise CheckpointError(f"{path}: not a one-dimensional array of type {' or '.join(kinds)}. {PREPARE_AGAIN}")
    return np.asarray(mapped)  # slicing an np.memmap is slow


def map_offsets(path: Path, num_values: int) -> np.ndarray:
    """Return the offsets of N rows in an array of `num_values` values: int64 [N + 1]. Raises CheckpointError if invalid."""
    offsets = map_numbers(path, ("<i8",))
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != num_values or (np.diff(offsets) < 0).any():
        raise CheckpointError(f"{path}: its offsets do not match the {num_values:,} stored values. {PREPARE_AGAIN}")
    return offsets


def build_module(build: Callable[[], Module], sizes: Any, tensors: dict[str, Tensor], where: Path) -> Module:
    """Return the module that `build` creates, loaded with `tensors`. Raises CheckpointError if they do not match.

    sizes: the JSON data that `build` reads. The module is first built on the meta device, which uses no memory, so a small
    file cannot request much memory.
    """
    try:
        if _largest(sizes) > max((max(tensor.shape, default=1) for tensor in tensors.values()), default=1):
            raise ValueError("a size is larger than every tensor")
        with torch.device("meta"), _SkipInit():
            expected = {name: tensor.shape for name, tensor in build().state_dict().items()}
        odd = sorted(name for name in expected.keys() | tensors.keys()
                     if name not in expected or name not in tensors or expected[name] != tensors[name].shape)
        if odd:
            raise ValueError(f"missing, unexpected or wrong shape: {', '.join(odd[:3])}")
        module = build()
        module.load_state_dict(tensors)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, RuntimeError, TypeError,
            ValueError) as error:
        raise CheckpointError(f"{where}: does not match this version ({one_line(error)}). Train it again.") from error
    return module


class _SkipInit(TorchFunctionMode):
    """Skip weight initialisation, which would import torch's compiler on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return torch.empty(args[0], args[0]) if func is torch.eye else func(*args, **kwargs)


def _largest(data: Any) -> float:
    """Return the largest number in JSON data."""
    if isinstance(data, (dict, list)):
        return max(map(_largest, data.values() if isinstance(data, dict) else data), default=0)
    return data if isinstance(data, (int, float)) else 0


# Tokenizers: SentencePiece models, and JSON files with the tokenizer of a language model (corpus/lm_tokenizer.py)

MAX_TOKENIZER_BYTES = 1 << 26  # a model with 32,000 pieces has 1 MB
TRIAL_SEC = 60
# Programs that test a tokenizer in a child process.
TRIAL = """
import sys
import sentencepiece
processor = sentencepiece.SentencePieceProcessor(model_proto=sys.stdin.buffer.read())
characters = [*map(chr, range(1, 0xD800)), *map(chr, range(0xE000, 0x10000)), chr(0x1F600), chr(0x10FFFF)]
for text in (" ".join(characters), "".join(characters), "a" * 1000, "A dog runs."):
    processor.normalize(text)
    processor.decode(processor.encode(text))
processor.decode([[piece] for piece in range(processor.get_piece_size())])
"""
LM_TRIAL = """
import json
import sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_str(json.dumps(json.loads(sys.stdin.buffer.read())["tokenizer"]))
for text in ("A dog runs.", "a" * 1000, "".join(map(chr, range(32, 0xD800)))):
    tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)
"""


def read_tokenizer(path: Path) -> bytes:
    """Return the bytes of a tokenizer file. Raises TokenizerError without the path of the file, which the caller adds."""
    try:
        if path.exists() and not path.is_file():
            raise TokenizerError("not a plain file.")
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise TokenizerError(f"not a SentencePiece model: larger than {MAX_TOKENIZER_BYTES:,} bytes.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise TokenizerError("missing.") from error
    except OSError as error:
        raise TokenizerError(f"cannot be read ({error.strerror}).") from error


def try_tokenizer(model: bytes) -> None:
    """Test a tokenizer in a child process, because a damaged one can crash or hang. Raises TokenizerError."""
    program, kind = (LM_TRIAL, "tokenizer of a language model") if model[:1] == b"{" else (TRIAL, "SentencePiece model")
    try:
        # -P: nothing in the working directory can replace a package.
        status = subprocess.run([sys.executable, "-P", "-c", program], input=model, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, timeout=TRIAL_SEC, check=False).returncode
    except subprocess.TimeoutExpired as error:
        raise TokenizerError(f"not a {kind}: it did not finish in {TRIAL_SEC} s. Use another file.") from error
    if status < 0:
        raise TokenizerError(f"not a {kind}: its library crashed with signal {-status}. Use another file.")
    if status:
        raise TokenizerError(f"not a {kind}, or a damaged one. Use another file.")


# Pretrained models: sentence-transformers models and causal language models

DOWNLOAD_AGAIN = "Download the model again."
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
# Keys with which a configuration can select code, or change the arguments of the function that loads the model.
CODE_KEYS = {"auto_map", "attn_implementation", "_attn_implementation", "config_args", "config_kwargs", "custom_pipelines",
             "model_args", "model_kwargs", "processor_kwargs", "quantization_config", "tokenizer_args",
             "tokenizer_name_or_path", "trust_remote_code"}
# Modules that contain only data. A check of only the name's prefix would also allow everything that these modules import.
MODULE_TYPES = {"Dense", "Dropout", "LayerNorm", "Normalize", "Pooling", "StaticEmbedding", "Transformer",
                "WeightedLayerPooling"}


def check_sentence_transformer(directory: Path) -> list[Path]:
    """Return the folders of a model. Raises OutlinesError if the model is unsafe or has no weights.

    Unsafe: it can run its own code, refers to files outside its directory, or has only pickled weights.
    """
    folders, listing = {directory}, directory / "modules.json"
    modules = _parse(listing, DOWNLOAD_AGAIN) if listing.exists() else []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise OutlinesError(f"{listing}: damaged (not a list of modules). {DOWNLOAD_AGAIN}")
    for module in modules:
        kind, path = str(module.get("type")), PurePosixPath(str(module.get("path", "")))
        if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in MODULE_TYPES:
            raise OutlinesError(f"{listing}: module type {kind!r} is refused, because it could run code from the model. "
                                f"Use a model with only these modules: {', '.join(sorted(MODULE_TYPES))}.")
        folder = directory / path
        if path.is_absolute() or ".." in path.parts or any(
                part.is_symlink() for part in (folder, *folder.parents) if directory in part.parents):
            raise OutlinesError(f"{listing}: {str(path)!r} is a link or a folder outside the model, which is refused. "
                                "Use another model.")
        folders.add(folder)
    for folder in sorted(folders):
        for file in sorted(folder.glob("*.json")):
            # modules.json was checked above. The other two files are lists of words and can be large.
            if file.name not in ("modules.json", "tokenizer.json", "vocab.json"):
                _check_configuration(file)
        _check_weights(folder)
    if not any(any(folder.glob("model*.safetensors")) for folder in folders):
        raise OutlinesError(f"{directory}: no model.safetensors, so this model is incomplete. {DOWNLOAD_AGAIN}")
    return sorted(folders)


def check_causal_lm(directory: Path) -> None:
    """Raise OutlinesError if a model can run its own code, has no safetensors, or is not a causal language model."""
    for file in sorted(directory.glob("*.json")):
        if file.name not in ("tokenizer.json", "vocab.json"):
            _check_configuration(file, {"activation_function"})  # here it is a key of a table in transformers
    if not (directory / "config.json").is_file():
        raise OutlinesError(f"{directory}: no config.json, so this is not a language model. Check the path.")
    classes = read_json(directory / "config.json", DOWNLOAD_AGAIN).get("architectures")
    if not isinstance(classes, list) or not any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in classes):
        raise OutlinesError(f"{directory}: not a causal language model (config.json has architectures {classes}). "
                            "Use a model like gpt2.")
    _check_weights(directory)
    if not any(directory.glob("model*.safetensors")):
        raise OutlinesError(f"{directory}: no model.safetensors, so this model is incomplete. {DOWNLOAD_AGAIN}")


def _check_weights(folder: Path) -> None:
    """Raise OutlinesError if a folder contains an adapter, or pickled weights and no safetensors."""
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLE_SUFFIXES)
    if pickles and not any(folder.glob("model*.safetensors")):
        raise OutlinesError(f"{folder / pickles[0]}: pickled weights are refused, because they can run code. "
                            "Convert them to safetensors.")
    if (folder / "adapter_config.json").exists():
        raise OutlinesError(f"{folder}: an adapter, not a complete model. Merge it into its base model first.")


def _check_configuration(file: Path, known: Collection[str] = ()) -> None:
    """Raise OutlinesError if a JSON file of a model can select code to run, or weights outside the file's folder.

    known: keys whose values need no check.
    """
    data = _parse(file, DOWNLOAD_AGAIN)
    if not isinstance(data, dict):
        return
    chosen = sorted(_code_keys(data))
    if chosen:
        raise OutlinesError(f"{file}: {chosen[0]!r} can make a model run its own code, so this model is refused. "
                            "Use another model.")
    activation = data.get("activation_function", "torch.nn.Identity")
    if "activation_function" not in known and (
            not isinstance(activation, str) or not re.fullmatch(r"torch\.nn(\.modules\.\w+)?\.[A-Z]\w*", activation)):
        raise OutlinesError(f"{file}: activation_function {activation!r} is not a class of torch.nn, so it is refused. "
                            "Use another model.")
    weights = data.get("weight_map", {})
    if not isinstance(weights, dict) or not all(
            isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) for name in weights.values()):
        raise OutlinesError(f"{file}: refused, because some weights are not safetensors files in the model's own folder. "
                            "Use another model.")


def _code_keys(data: Any) -> set[str]:
    """Return the keys, at any depth of JSON data, that can select code and whose value is not empty."""
    if not isinstance(data, (dict, list)):
        return set()
    found = {key for key in CODE_KEYS & data.keys() if data[key]} if isinstance(data, dict) else set()
    return found.union(*map(_code_keys, data.values() if isinstance(data, dict) else data))
