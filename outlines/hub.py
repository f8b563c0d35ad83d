"""Pretrained models on disk: in an installed package, in the hub's cache, or downloaded. Only data files are used."""

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from outlines.checkpoint import sha256_file
from outlines.errors import OutlinesError, one_line

DATA_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")


def packaged(package: str, file: str) -> Iterator[Path]:
    """Yield the files of this name in an installed package, without importing the package."""
    if spec := importlib.util.find_spec(package):
        for location in spec.submodule_search_locations or ():
            yield from Path(location).rglob(file)


def from_hub(name: str, remedy: str = "Go online once, or train your own encoder: python -m train encoder.") -> Path:
    """Return the local copy of a model on the hub. Downloads it once. Raises an OutlinesError that ends with `remedy`."""
    from huggingface_hub import snapshot_download

    with quiet():
        with contextlib.suppress(OSError, ValueError):
            cached = Path(snapshot_download(name, allow_patterns=list(DATA_PATTERNS), local_files_only=True))
            if any(cached.rglob("model*.safetensors")):  # missing after an interrupted download
                return cached
        try:
            return Path(snapshot_download(name, allow_patterns=list(DATA_PATTERNS)))
        except (OSError, ValueError) as error:
            raise OutlinesError(f"{name}: neither in the local cache nor on the Hugging Face hub "
                                f"({one_line(error)}). {remedy}") from error


def data_listing(directory: Path, folders: Iterable[Path]) -> str:
    """Return a text with one line, path and SHA-256, for each data file in these folders of a model."""
    files = sorted({file for folder in folders for pattern in DATA_PATTERNS for file in folder.glob(pattern)})
    return "".join(f"{file.relative_to(directory).as_posix()} {sha256_file(file)}\n" for file in files)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and messages of transformers inside the block."""
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
