"""Runs that start from the decoder of a finished run, with --decoder-from or --init-from."""

import dataclasses
from pathlib import Path
from typing import Any

from outlines.corpus.lm_tokenizer import load_tokenizer
from outlines.errors import OutlinesError
from outlines.pretrained import run_path
from train.config import RunConfig, flag_of
from train.runtime.run_directory import read_run

SHAPE = {"decoder", "lm_tuning", "embed_dim", "hidden_dim", "mix_dim", "num_layers"}
READS_OUTLINES = {"encoder", "encoder_prompt", "encoder_dim"}
TRAINED_WITH = {"min_strength", "exact_outlines", "outline_dropout"}
TOKENS = {"tokenizer", "vocab_size", "lowercase", "max_len"}


def source_of(config: RunConfig) -> str:
    """Return the run whose decoder this run copies (--init-from or --decoder-from), or ""."""
    return config.model.init_from or getattr(config.model, "decoder_from", "")


def same_corpus(config: RunConfig, description: dict[str, Any]) -> bool:
    """Return whether two runs use the same corpus: `config`, and the run whose run.json is `description`."""
    own, theirs = dataclasses.asdict(config.corpus), description["corpus"]
    return all(theirs.get(name) == (list(value) if isinstance(value, tuple) else value)
               for name, value in own.items() if name not in TOKENS)


def with_source(config: RunConfig, given: set[str]) -> RunConfig:
    """Return the configuration. If its decoder is copied from a finished run, some options are copied from that run, too.

    given: names of the options that a file or flags set. Raises OutlinesError if the finished run has other values of these.
    """
    if not (source := source_of(config)):
        return config
    model: Any = config.model
    run = run_path(source)
    description = read_run(run)
    if model.init_from and getattr(model, "decoder_from", ""):
        raise OutlinesError("--decoder-from has no effect with --init-from. Leave one of them out.")
    if not model.init_from and description.get("family") != config.family:
        raise OutlinesError(f"--decoder-from {run}: this is a run of '{description.get('family')}'. "
                            f"Use a run of '{config.family}'.")
    if not (run / "model").is_dir():
        raise OutlinesError(f"{source}: training has not finished. Finish it with --resume.")
    load_tokenizer(run / "tokenizer.model", str(description.get("hashes", {}).get("tokenizer")))  # raises if damaged
    if model.init_from or not same_corpus(config, description):
        shared = SHAPE | READS_OUTLINES | (set() if model.init_from else TRAINED_WITH)
        tokens = {"tokenizer": str(run / "tokenizer.model"), "vocab_size": 0, "lowercase": False,
                  "max_len": description["corpus"]["max_len"]}
    else:
        shared = model.decides_decoder()
        tokens = {name: description["corpus"][name] for name in TOKENS}
    theirs = {name: description["model"][name] for name in shared
              if name in description["model"] and hasattr(model, name)} | tokens
    for name in sorted(given & theirs.keys()):
        own = getattr(model, name, getattr(config.corpus, name, None))
        if own != theirs[name] and name in ("tokenizer", "vocab_size", "lowercase"):
            raise OutlinesError(f"{flag_of(name)} has no effect, because {source} has its own tokenizer. Leave it out.")
        if own != theirs[name]:
            raise OutlinesError(f"{flag_of(name)}: {source} was trained with {name} = {theirs[name]}, not {own}. "
                                "Leave the option out.")
    corpus = dataclasses.replace(config.corpus, **tokens)
    return dataclasses.replace(config, corpus=corpus, model=dataclasses.replace(model, **{
        name: value for name, value in theirs.items() if name not in TOKENS}))


def pretrained_source(config: RunConfig, corpus: str) -> str:
    """Return the run that pretrained the decoder: the run of --init-from, or of --decoder-from if its corpus differs; or "".

    corpus: hash of this run's corpus.
    """
    if config.model.init_from or not (source := source_of(config)):
        return config.model.init_from
    return source if read_run(run_path(source)).get("hashes", {}).get("corpus") != corpus else ""


def pretraining_notes(config: RunConfig, corpus: str) -> list[str]:
    """Return a list with a note for the report if the decoder was pretrained; else []. corpus: hash of this run's corpus."""
    if not (source := pretrained_source(config, corpus)):
        return []
    files = ", ".join(Path(path).name for path in read_run(run_path(source))["corpus"]["corpus"]) or "the built-in corpus"
    further = " and then trained on this corpus" if config.model.init_from else ""
    return [f"The decoder was pretrained in {source} on {files}{further}. The LM baseline starts from the same weights, "
            "without outlines, and is trained on this corpus."]
