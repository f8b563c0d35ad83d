"""Load a finished run from its directory."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from outlines.checkpoint import sha256_file
from outlines.corpus.tokenizer import Tokenizer
from outlines.errors import OutlinesError
from outlines.inference.pipeline import Pipeline
from outlines.models.registry import load_model


def load_pipeline(run: Path, device: torch.device, precision: str = "auto") -> Pipeline:
    """Load a finished run; raises OutlinesError. precision: see Pipeline."""
    if not (run / "run.json").is_file():
        raise OutlinesError(f"{run} is not a run: it has no run.json. Pass a run's directory, such as "
                            "runs/001-outlines-default.")
    if not (run / "model").is_dir():
        raise OutlinesError(f"{run}: training has not finished. Continue it with `python -m train --resume {run}`.")
    try:
        description = json.loads((run / "run.json").read_text())
        expected, max_len = description["hashes"]["tokenizer"], description["corpus"]["max_len"]
        if type(max_len) is not int or max_len < 1:
            raise ValueError(f"max_len is {max_len!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutlinesError(f"{run / 'run.json'}: damaged ({error}). Restore it from a backup, or train again.") from error
    model_file = run / "tokenizer.model"
    remedy = f"`python -m train --resume {run}` writes it again."
    if not model_file.is_file():
        raise OutlinesError(f"{model_file}: missing. {remedy}")
    if sha256_file(model_file) != expected:  # before anything parses it
        raise OutlinesError(f"{model_file}: damaged, or from another run (its SHA-256 differs from run.json). {remedy}")
    with ThreadPoolExecutor(1) as pool:  # the tokenizer is tried in another process meanwhile
        reading = pool.submit(Tokenizer.load, model_file)
        model = load_model(run / "model")
        tokenizer = reading.result()
    if model.decoder.config.vocab_size != tokenizer.vocab_size:
        raise OutlinesError(f"{run}: the model and the tokenizer have different vocabularies. Train again.")
    return Pipeline(run, description, model.to(device), tokenizer, precision)
