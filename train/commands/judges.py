"""Training of the judges (evaluation/judges.py) and of the LM baseline.

The cache stores each neural model, or only the score of a reverse judge, under a hash of everything that determines it.
"""

import dataclasses
import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlines.checkpoint import read_state, short_hash, verify
from outlines.decoding.scoring import nll_of_rows
from outlines.metrics.ngram import NgramModel
from outlines.models.base import TextModel
from outlines.models.lm import LanguageModel
from outlines.models.registry import load_model
from outlines.networks.decoder import decoder_class
from outlines.pretrained import SCENES_MODEL
from train.config import CorpusConfig, DecoderOptions, RunConfig, TrainingConfig, names_of, presets_of
from train.data import Dataset
from train.evaluation.judges import Judge, Judges, Nll, ReverseJudge, judge, tokens_of
from train.evaluation.pretrained import PretrainedLM
from train.method import find_method
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks
from train.runtime.run_directory import locked, read_json, write_json
from train.session import Session, begin_run, train_run
from train.start_from import pretrained_source

JUDGE_SEED = 1001
REVERSE_SEED = 2001
REVERSE_BATCH_SIZE = 128


def quick_judges(config: RunConfig, data: Dataset, session: Session) -> Judges:
    """Return the judge for the report at the end of training, as `Judges`. Trains it, or loads it from the cache."""
    return Judges({"forward": neural_judge(judge_lm(config, data, session), data)})


def full_judges(config: RunConfig, data: Dataset, session: Session, reverse_steps: int,
                pretrained: PretrainedLM | None = None) -> Judges:
    """Return the judges for a full evaluation.

    reverse_steps: optimiser steps of a language model trained on samples; 0: no reverse judges.
    """
    def ngram_judge(rows: Sequence[np.ndarray]) -> Judge:
        return judge(NgramModel(rows, data.tokenizer.vocab_size).nll_of_rows, data)

    tokens = data.corpus.tokens["train"]
    forward = {**quick_judges(config, data, session).forward, "forward_ngram": ngram_judge(tokens.rows(range(len(tokens))))}
    reverse: dict[str, ReverseJudge] = {}
    if reverse_steps:
        reverse["reverse"] = functools.partial(reverse_nll, config=config, data=data, session=session, steps=reverse_steps)
        reverse["reverse_ngram"] = lambda samples, held_out: ngram_judge(tokens_of(samples, data))(held_out)
    return Judges(forward, reverse, pretrained)


def neural_judge(model: TextModel, data: Dataset) -> Judge:
    return judge(functools.partial(nll_of_rows, model.decoder), data)


def judge_lm(config: RunConfig, data: Dataset, session: Session) -> TextModel:
    """Return the language model that scores samples: the shipped one, or one trained on the run's corpus."""
    if (shipped := judge_of_scenes(data)) is not None:
        return shipped
    # Runs of all seeds share one judge. It must not have a run's seed, or else it would prefer the samples of that run.
    config = _of_judge(config)
    seed = JUDGE_SEED + (config.training.seed == JUDGE_SEED)
    return _language_model(config, data, session, seed, config.training.evaluator_steps,
                           "language model that scores samples")


def judge_of_scenes(data: Dataset) -> TextModel | None:
    """Return the judge that ships with the package, or None if the data has another grammar or tokenizer."""
    if not data.embedded or data.tokenizer.fingerprint != verify(SCENES_MODEL)["tokenizer.model"]:
        return None
    if not data.corpus.meta["source"].startswith(read_state(SCENES_MODEL)[1]["source"]):
        return None
    return load_model(SCENES_MODEL).to(data.device)


def baseline(config: RunConfig, data: Dataset, session: Session, preset: str) -> TextModel:
    """Return the LM baseline: a language model with the seed, decoder options and pretrained weights of the run.

    preset: the run's preset. It can have other values for language models than for the run's family, such as a dropout.
    """
    config = _with_preset_of_lms(config, preset)
    return _language_model(config, data, session, config.training.seed, config.model.decoder_steps, "LM baseline",
                           pretrained_source(config, data.hashes()["corpus"]))


def _with_preset_of_lms(config: RunConfig, preset: str) -> RunConfig:
    """Return a run's configuration; decoder options that the run has from its preset get the preset's values for LMs."""
    def values(family: str) -> dict[str, Any]:
        presets = presets_of(family)
        return {option: value for name in names_of(preset) for option, value in presets.get(name, {}).items()}

    own, of_lms = values(config.family), values(LanguageModel.family)
    changes = {field.name: of_lms[field.name] for field in dataclasses.fields(DecoderOptions)
               if field.name in of_lms and getattr(config.model, field.name) == own.get(field.name)}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def _language_model(config: RunConfig, data: Dataset, session: Session, seed: int, steps: int, name: str,
                    init_from: str = "") -> TextModel:
    """Return a language model of the corpus in `data`, with a run's decoder options. name: for the progress line."""
    options = {"decoder_steps": steps, "decoder_validate_every": max(1, steps // 4), "init_from": init_from}
    run = _configuration(config, config.corpus, seed, options)
    directory = session.cache / f"lm-{_key(run, data.corpus.fingerprint)}"
    return _trained(directory, run, data, session, name, data.hashes(encoder=False))


def _configuration(config: RunConfig, corpus: CorpusConfig, seed: int, changes: dict[str, Any]) -> RunConfig:
    """Return the configuration of a language model with a run's decoder options, except for `changes`."""
    method = find_method(LanguageModel.family)
    model = method.config_class(**{field.name: getattr(config.model, field.name)
                                   for field in dataclasses.fields(method.config_class)} | changes)
    training = dataclasses.replace(TrainingConfig(), seed=seed, device=config.training.device,
                                   precision=config.training.precision, warmup_steps=config.training.warmup_steps)
    return RunConfig(LanguageModel.family, corpus, training, model)


def _of_judge(config: RunConfig) -> RunConfig:
    """Return a run's configuration for a judge: without dropout, so that all families have the same judge, and small.

    A GRU replaces a pretrained language model.
    """
    changes: dict[str, Any] = {"dropout": 0.0}
    if decoder_class(config.model.decoder).pretrained:
        changed = ("decoder", "decoder_learning_rate", "decoder_batch_size")
        changes |= {field.name: field.default for field in dataclasses.fields(DecoderOptions) if field.name in changed}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def _trained(directory: Path, run: RunConfig, data: Dataset, session: Session, name: str,
             hashes: dict[str, str]) -> TextModel:
    """Return the model of the run in this directory, trained if necessary. hashes: of corpus and tokenizer, if known."""
    if (directory / "model").exists():  # No lock: several processes may read the same model.
        return load_model(directory / "model").to(data.device)
    session.reporter.line(f"train the {name}")
    single = dataclasses.replace(session, ranks=Ranks())
    directory.mkdir(parents=True, exist_ok=True)
    # A second process on the same corpus waits here and then finds the model.
    with locked(directory, session.reporter.line):
        if not (directory / "model").exists():
            # run.json is written again after an interruption, because the corpus may have moved.
            begin_run(run, directory, single, {"preset": "", "command": name, "hashes": hashes})
        return train_run(directory, single)[0]


def reverse_nll(samples: Sequence[str], held_out: Sequence[str], config: RunConfig, data: Dataset, session: Session,
                steps: int) -> Nll:
    """Return the NLL of real held-out text under a language model that is trained only on samples.

    The model is validated on real text about eight times in `steps` updates, and the best weights are kept. The NLL falls if
    there are more samples.
    Source: Zhao et al., Adversarially Regularized Autoencoders (2018), reverse perplexity.
    """
    config = _of_judge(config)
    options = {"decoder_steps": steps, "decoder_validate_every": max(1, steps // 8),
               "decoder_batch_size": REVERSE_BATCH_SIZE, "init_from": ""}
    key = _key(_configuration(config, config.corpus, REVERSE_SEED, options), data.corpus.fingerprint, list(samples),
               list(held_out))
    directory = session.cache / f"reverse-{key}"
    result, work = directory / "nll.json", directory / "work"
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory, session.reporter.line):
        if not result.exists():
            work.mkdir(exist_ok=True)
            data.tokenizer.save(work / "given.model")
            files: dict[str, Any] = {"tokenizer": str(work / "given.model")}
            valid = data.text("valid", data.sample_rows("valid", len(held_out)))
            for split, sentences in (("corpus", samples), ("valid", valid), ("test", held_out)):
                file = work / f"{split}.txt"
                file.write_text("\n".join(sentences) + "\n", encoding="utf-8")
                files[split] = (str(file),)
            inside = dataclasses.replace(session, cache=work / "cache", reporter=Reporter(silent=True), all_threads=True)
            corpus = CorpusConfig(**files, max_len=data.corpus.meta["max_len"])
            run = _configuration(config, corpus, REVERSE_SEED, options)
            model = _trained(work / "run", run, data, inside, "language model of samples", {})
            write_json(result, neural_judge(model, data)(held_out)._asdict())
        shutil.rmtree(work, ignore_errors=True)  # Only the score is kept: an evaluation trains dozens of these models.
    return Nll(**read_json(result))


def _key(run: RunConfig, *parts: Any) -> str:
    """Return a hash of `parts` and of a configuration without its corpus, because corpus files may move."""
    content = dataclasses.replace(run, corpus=CorpusConfig()).to_json()
    return short_hash((content, *parts))
