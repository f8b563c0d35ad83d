"""Load a finished run from its directory."""

from pathlib import Path

import torch

from outlines.corpus.tokenizer import SentencePieceTokenizer
from outlines.errors import OutlinesError, TokenizerError
from outlines.hardening import read_json
from outlines.inference.pipeline import Pipeline
from outlines.models.registry import load_model


def load_pipeline(run: Path, device: torch.device, precision: str = "auto") -> Pipeline:
    """Load a finished run; raises OutlinesError. precision: see Pipeline."""
    if not (run / "run.json").is_file():
        raise OutlinesError(f"{run} is not a run: it has no run.json. Pass a run's directory, such as "
                            "runs/001-outlines-default.")
    if not (run / "model").is_dir():
        raise OutlinesError(f"{run}: training has not finished. Continue it with `python -m train --resume {run}`.")
    description = read_json(run / "run.json", "Restore it from a backup, or train again.")
    try:
        expected, max_len = description["hashes"]["tokenizer"], description["corpus"]["max_len"]
        if type(max_len) is not int or max_len < 1:
            raise ValueError(f"max_len is {max_len!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise OutlinesError(f"{run / 'run.json'}: damaged ({error}). Restore it from a backup, or train again.") from error
    try:
        tokenizer = SentencePieceTokenizer.load(run / "tokenizer.model", str(expected))
    except TokenizerError as error:
        raise OutlinesError(f"{error} `python -m train --resume {run}` writes it again.") from error
    model = load_model(run / "model")
    config = model.decoder.config
    if config.vocab_size != tokenizer.vocab_size or config.never_written != tokenizer.special.never_written:
        raise OutlinesError(f"{run}: the model and the tokenizer have different vocabularies. Train again.")
    return Pipeline(run, description, model.to(device), tokenizer, precision)
