"""Noise → outline → tokens → text, from a run's directory alone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from outlines.corpus.tokenizer import Tokenizer
from outlines.errors import OutlinesError
from outlines.families import load_model
from outlines.sampling import SamplingConfig
from outlines.text_model import TextModel


@dataclass(frozen=True)
class Pipeline:
    """A finished run: its model and its tokenizer."""

    model: TextModel
    tokenizer: Tokenizer

    def sentences(self, num: int, seed: int, sampling: SamplingConfig, source: str | None) -> Iterator[str]:
        """`num` sentences as they come; sentence i depends on (seed, i) alone."""
        for ids, _ in self.model.generate(num, seed, sampling, source):
            for text in self.tokenizer.decode(ids):
                # The tokenizer can spell any byte, so a sentence could hold a line break; one sentence is one line.
                yield " ".join(text.split())


def load_pipeline(run: Path, device: torch.device) -> Pipeline:
    """Load a run; raises OutlinesError that says what is missing or damaged."""
    if not (run / "run.json").is_file():
        raise OutlinesError(f"{run}: no run here (no run.json)")
    if not (run / "model").is_dir():
        raise OutlinesError(f"{run}: training has not finished (no model/): go on with `python -m train --resume {run}`")
    tokenizer = Tokenizer.load(run / "tokenizer.model")
    try:
        expected = json.loads((run / "run.json").read_text())["hashes"]["tokenizer"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutlinesError(f"{run / 'run.json'}: damaged: {error}") from error
    if tokenizer.fingerprint != expected:
        raise OutlinesError(f"{run / 'tokenizer.model'}: damaged, or of another run: its SHA-256 is not that of run.json")
    model = load_model(run / "model")
    if model.decoder.config.vocab_size != tokenizer.vocab_size:
        raise OutlinesError(f"{run}: model and tokenizer do not belong together")
    return Pipeline(model.to(device), tokenizer)


def write_sentences(sentences: Iterator[str], file: IO[str], as_json: bool) -> int:
    """One line a sentence, plain or as {"text": …}; each line is written whole. Returns the number written."""
    num = 0
    for sentence in sentences:
        line = json.dumps({"text": sentence}, ensure_ascii=False) if as_json else sentence
        file.write(line + "\n")
        num += 1
    return num
