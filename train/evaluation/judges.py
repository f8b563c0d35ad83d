"""Language models that are trained to measure others; each kept under the hash of all it depends on, never trained twice.

scorer    learns the real training text with a seed of its own, and scores samples: forward nll
baseline  the decoder's own architecture without a vector, as many steps: what any generator has to beat
reverse   learns samples, and scores real held-out text: reverse nll
"""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from outlines.decoding.scoring import nll_of_rows
from outlines.errors import OutlinesError
from outlines.metrics.text import words
from outlines.models.base import TextModel
from outlines.models.lm import LanguageModel
from outlines.models.registry import load_model
from train.config import CorpusConfig, RunConfig, TrainingConfig
from train.data import Dataset
from train.method import find_method
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks
from train.runtime.run_directory import locked, read_json, write_json
from train.session import Session, begin_run, train_run

SCORER_SEED = 1001
REVERSE_SEED = 2001
REVERSE_BATCH_SIZE = 128
MOST_FRESH = 1_000_000
"""Sentences of the embedded corpus that a scorer is given, at most."""
FRESH_EMBED_DIM = 128
"""Width of such a scorer's embeddings, at most. Where they start at the counts, a wider one learns no more from as many
steps, and each takes longer."""


class Nll(NamedTuple):
    """How likely a language model finds sentences, nats."""

    per_token: float
    """per token of the project's tokenizer, the end of each sentence one of them"""
    ppl_per_word: float
    """perplexity per word, words and marks as `metrics.text.words` splits them, the end of each sentence one of them"""

    @classmethod
    def of(cls, nll: np.ndarray, num_targets: np.ndarray, sentences: Sequence[str]) -> "Nll":
        """From nats and tokens of each sentence [N]."""
        num_words = sum(len(words(sentence)) + 1 for sentence in sentences)
        return cls(float(nll.sum() / num_targets.sum()), float(np.exp(nll.sum() / num_words)))


def tokens_of(sentences: Sequence[str], data: Dataset) -> list[np.ndarray]:
    """Token ids of each sentence, tokenised anew from its text: a sampler's own split of a word earns it nothing."""
    limit = data.corpus.meta["max_len"]
    return [np.array(ids[:limit], dtype=np.int64) for ids in data.tokenizer.encode(list(sentences))]


def score(model: TextModel, sentences: Sequence[str], data: Dataset) -> Nll:
    """What a language model makes of sentences."""
    return Nll.of(*nll_of_rows(model.decoder, tokens_of(sentences, data)), sentences)


def scorer(config: RunConfig, data: Dataset, session: Session) -> TextModel:
    """The language model that scores samples of this corpus."""
    # One scorer for runs of every seed, and never of a run's own: else it would favour the samples of its twin.
    seed = SCORER_SEED + (config.training.seed == SCORER_SEED)
    steps = config.training.evaluator_steps
    corpus = config.corpus
    if data.embedded:
        # Of a grammar there are more sentences to be had: the scorer sees none twice, and comes as near to the grammar as
        # so many steps bring it. Those held out stay so, for that is decided by a sentence's hash.
        share = 1 - corpus.valid_fraction - corpus.test_fraction
        fresh = min(math.ceil(steps * config.model.decoder_batch_size / share), MOST_FRESH)
        corpus = dataclasses.replace(corpus, num_sentences=max(fresh, corpus.num_sentences))
    return _language_model(config, data, session, seed, steps, "the scorer of samples", corpus)


def baseline(config: RunConfig, data: Dataset, session: Session) -> TextModel:
    """The language model of the run's own seed, size and number of decoder steps."""
    return _language_model(config, data, session, config.training.seed, config.model.decoder_steps, "the LM baseline",
                           config.corpus)


def _language_model(config: RunConfig, data: Dataset, session: Session, seed: int, steps: int, what: str,
                    corpus: CorpusConfig) -> TextModel:
    """A language model of the corpus in `data`, or of a larger one embedded like it, with its tokenizer."""
    larger = corpus.num_sentences > config.corpus.num_sentences
    changes: dict[str, Any] = {"decoder_steps": steps, "decoder_validate_every": max(1, steps // 4)}
    if larger:
        changes |= {"dropout": 0.0, "word_start": "counts", "embed_dim": min(config.model.embed_dim, FRESH_EMBED_DIM)}
    run = _configuration(config, corpus, seed, changes)
    more = [corpus.num_sentences] if larger else []
    directory = session.cache / f"lm-{_key(_content(run), data.corpus.fingerprint, *more)}"
    session.reporter.line(f"{what}, a language model:")
    if larger and not (directory / "model").exists():
        directory.mkdir(parents=True, exist_ok=True)
        data.tokenizer.save(directory / "given.model")
        given = dataclasses.replace(corpus, tokenizer=str(directory / "given.model"), vocab_size=0, lowercase=False)
        run = dataclasses.replace(run, corpus=given)
    return _trained(directory, run, data, session, what)


def _configuration(config: RunConfig, corpus: CorpusConfig, seed: int, changes: dict[str, Any]) -> RunConfig:
    """A language model of the shape of a run's decoder."""
    method = find_method(LanguageModel.family)
    model = method.config_class(**{field.name: getattr(config.model, field.name)
                                   for field in dataclasses.fields(method.config_class)} | changes)
    training = dataclasses.replace(TrainingConfig(), seed=seed, device=config.training.device,
                                   precision=config.training.precision, warmup_steps=config.training.warmup_steps)
    return RunConfig(LanguageModel.family, corpus, training, model)


def _content(run: RunConfig) -> dict[str, Any]:
    """What decides a language model beside its corpus, whose fingerprint stands for it wherever its files lie."""
    return dataclasses.replace(run, corpus=CorpusConfig()).to_json()


def _trained(directory: Path, run: RunConfig, data: Dataset, session: Session, what: str) -> TextModel:
    if (directory / "model").exists():  # Only read: several comparisons may share it.
        return load_model(directory / "model").to(data.device)
    alone = dataclasses.replace(session, ranks=Ranks())
    directory.mkdir(parents=True, exist_ok=True)
    # Two runs on one corpus want the same one: the second waits, and finds it finished.
    with locked(directory, session.reporter.line):
        if not (directory / "model").exists():
            # Written anew where one was interrupted: the corpus may lie elsewhere now.
            begin_run(run, directory, alone, {"preset": [], "command": what})
        return train_run(directory, alone)[0]


def reverse_nll(samples: Sequence[str], held_out: Sequence[str], config: RunConfig, data: Dataset, session: Session,
                steps: int) -> Nll:
    """Reverse nll: of real held-out text, by a language model that has seen samples alone.

    Its best weights are chosen on real validation text, eight times in `steps`; all families get the same steps. It rises
    where samples lack variety or truth, and falls with their number: compare equal numbers only.
    Source: Zhao et al., Adversarially Regularized Autoencoders (2018), reverse perplexity. Deviation: nothing of the
    samples' vocabulary is appended to them, and the real text that chooses weights is not the one that is scored.
    """
    options = {"decoder_steps": steps, "decoder_validate_every": max(1, steps // 8),
               "decoder_batch_size": REVERSE_BATCH_SIZE}
    key = _key(_content(_configuration(config, config.corpus, REVERSE_SEED, options)), data.corpus.fingerprint,
               list(samples), list(held_out))
    directory = session.cache / f"reverse-{key}"
    result = directory / "nll.json"
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory, session.reporter.line):
        if not result.exists():
            write_json(result, _learn_and_score(samples, held_out, config, options, data, session, directory)._asdict())
        for entry in directory.iterdir():  # The figure is what is kept: a comparison needs dozens of them.
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in (result.name, "lock"):
                entry.unlink()
    try:
        return Nll(**read_json(result))
    except TypeError as error:
        raise OutlinesError(f"{result}: damaged: delete it, and the figure is measured again") from error


def _learn_and_score(samples: Sequence[str], held_out: Sequence[str], config: RunConfig, options: dict[str, Any],
                     data: Dataset, session: Session, directory: Path) -> Nll:
    """Train a language model on samples in this directory, and let it score held-out text."""
    valid = data.text("valid", data.sample_rows("valid", len(held_out)))
    files = {"train": samples, "valid": valid, "test": held_out}
    for split, sentences in files.items():
        (directory / f"{split}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    data.tokenizer.save(directory / "given.model")
    corpus = CorpusConfig(corpus=(str(directory / "train.txt"),), valid=(str(directory / "valid.txt"),),
                          test=(str(directory / "test.txt"),), tokenizer=str(directory / "given.model"),
                          max_len=data.corpus.meta["max_len"])
    inside = dataclasses.replace(session, cache=directory / "cache", reporter=Reporter(quiet=True))
    run = _configuration(config, corpus, REVERSE_SEED, options)
    model = _trained(directory / "run", run, data, inside, "a language model of samples")
    return score(model, held_out, data)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
