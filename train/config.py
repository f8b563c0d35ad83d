"""Configuration: frozen dataclasses, one flat set of names, flags generated from the fields.

Precedence: defaults < preset < --config FILE.toml < flags. A name nobody knows is an error that suggests the nearest.
"""

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from outlines.corpus.reading import CorpusFiles
from outlines.devices import DEVICES, PRECISIONS
from outlines.errors import OutlinesError
from outlines.options import choices_of, option, unknown_name


@dataclass(frozen=True)
class CorpusConfig:
    """Which sentences, and how they become tokens."""

    corpus: tuple[str, ...] = option((), "training files, one sentence a line: .txt .jsonl .csv, each also .gz "
                                         "(default: the embedded corpus, a grammar of everyday scenes)")
    valid: tuple[str, ...] = option((), "validation files (default: a share of --corpus)")
    test: tuple[str, ...] = option((), "test files (default: a share of --corpus)")
    text_column: str = option("text", "column that holds the sentence in .csv and .jsonl files")
    group_lines: int = option(0, "for conditional: so many consecutive lines of a .txt file describe one thing, and any of "
                                 "them is a condition of the others; 0 takes --condition-column", low=0)
    condition_column: str = option("", "for conditional: column that holds the condition in .csv and .jsonl files (default "
                                       "there: condition)")
    label_column: str = option("", "for conditional: column that holds a label of the pair, given beside the condition "
                                   "(default: no label)")
    strict: bool = option(False, "stop at the first bad line instead of counting and skipping it")
    max_chars: int = option(2000, "characters above which a line is rejected", low=1)
    valid_fraction: float = option(0.02, "share of sentences, 0 to 1, held out for validation by their hash",
                                   low=0, high=0.5)
    test_fraction: float = option(0.02, "share of sentences, 0 to 1, held out for testing by their hash",
                                  low=0, high=0.5)
    num_sentences: int = option(20000, "sentences of the embedded corpus, before splitting", low=100)
    tokenizer: str = option("", "a SentencePiece model to use as it is (default: one is trained on the training split)")
    vocab_size: int = option(0, "SentencePiece pieces; 0 sizes the vocabulary to the corpus", low=0)
    lowercase: bool = option(False, "fold the case of the text")
    max_len: int = option(64, "tokens at which a sentence is cut", low=1)

    def files(self) -> CorpusFiles:
        return CorpusFiles(train=self.corpus, valid=self.valid, test=self.test, text_column=self.text_column,
                           strict=self.strict, max_chars=self.max_chars, valid_fraction=self.valid_fraction,
                           test_fraction=self.test_fraction, group_lines=self.group_lines,
                           condition_column=self.condition_column, label_column=self.label_column)


@dataclass(frozen=True)
class TrainingConfig:
    """How a run goes, whatever it trains."""

    seed: int = option(1, "decides weights, batches and noise")
    device: str = option("auto", "where to train; auto takes cuda, then mps, then cpu",
                         DEVICES)
    precision: str = option("auto", "autocast of the decoder; auto takes bfloat16 where the processor is faster with it",
                            PRECISIONS)
    warmup_steps: int = option(200, "optimiser steps over which a learning rate rises from 0", low=0)
    min_learning_rate: float = option(0.02, "share of the learning rate that is left at the end of the cosine",
                                      low=0, high=1)
    clip_norm: float = option(1.0, "gradient norm above which gradients are scaled down", low=1e-09)
    max_bad_steps: int = option(10, "optimiser steps in a row with a loss or gradient that is not finite, each of them "
                                    "skipped, at which the run stops", low=1)
    log_every: int = option(50, "optimiser steps between two log lines", low=1)
    checkpoint_every: int = option(500, "optimiser steps between two checkpoints", low=1)
    evaluator_steps: int = option(1200, "optimiser steps of the language model that scores the samples in the report",
                                  low=1)
    num_evaluation: int = option(2000, "held-out sentences, at most, and samples of each source in the report", low=20)
    keep_checkpoints: int = option(3, "checkpoints kept; the best weights on validation are inside each", low=1)


@dataclass(frozen=True)
class ModelOptions:
    """The options that every family has: those of its decoder (methods/decoder_stage.py sets their defaults)."""

    embed_dim: int
    decoder_steps: int
    decoder_batch_size: int
    num_validation: int

    learns_pairs: ClassVar[bool] = False
    """whether the family learns from pairs of sentences, so that the corpus must define them"""

    def encoding(self) -> tuple[str, bool] | None:
        """Return the frozen encoder and whether its outlines are whitened, or None for a family without outlines."""
        return None

    def without_effect(self) -> dict[str, str]:
        """Return the options that have no effect given the values of the others, and why; setting one is an error."""
        return {}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    family: str
    corpus: CorpusConfig
    training: TrainingConfig
    model: ModelOptions
    """the family's own options, from its file in train/methods"""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


SIZES = ("tiny", "default", "small", "full")
"""Presets of every family that say how large a run is; any other goes on top of one of them."""

SECTIONS = {"corpus": CorpusConfig, "training": TrainingConfig}


def sections(model_config: type) -> dict[str, Any]:
    return {**SECTIONS, "model": model_config}


def known_fields(model_config: type) -> dict[str, dataclasses.Field[Any]]:
    """Every option's name and field; two dataclasses that share a name would be a programming error."""
    fields: dict[str, dataclasses.Field[Any]] = {}
    for section in sections(model_config).values():
        for field in dataclasses.fields(section):
            assert field.name not in fields, f"option {field.name} is defined twice"
            fields[field.name] = field
    return fields


def coerce(field: dataclasses.Field[Any], value: Any, where: str) -> Any:
    """A value from a file or a flag as the field's type; raises OutlinesError."""
    kind = field.type
    choices = choices_of(field)
    fits: bool
    if kind is bool:
        fits = isinstance(value, bool)
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    elif kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
        value = float(value) if fits else value
    elif kind is str:
        fits = isinstance(value, str) and _is_text(value)
    else:
        if isinstance(value, (list, tuple)):
            value = tuple(value)
        fits = isinstance(value, tuple) and all(isinstance(item, str) and _is_text(item) for item in value)
    if not fits or (choices and value not in choices):
        expected = " or ".join(choices) if choices else getattr(kind, "__name__", "a list of words")
        raise OutlinesError(f"{where}: {field.name} = {value!r}: expected {expected}")
    low, high = field.metadata["low"], field.metadata["high"]
    if kind in (int, float) and not low <= value <= high:
        allowed = f"from {low} to {high}" if high < math.inf else f"at least {low}"
        raise OutlinesError(f"{where}: {field.name} = {value}: must be {allowed}")
    return value


def _is_text(value: str) -> bool:
    """What a file's name can be: no NUL, no lone surrogate but those by which Python spells bytes that are not UTF-8."""
    try:
        value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutlinesError(f"{path}: cannot read this configuration: {error}") from error


def resolve(family: str, model_config: Any, presets: dict[str, dict[str, Any]], preset: str,
            config_file: str | None, flags: dict[str, Any]) -> RunConfig:
    """Defaults < presets < file < flags, checked name by name and value by value.

    preset: one name or several, separated by spaces, a later one going before an earlier one; where none of them is a
    size, they go on top of `default`.
    """
    fields = known_fields(model_config)
    names = preset.split()
    for name in names:
        if name not in presets:
            raise unknown_name("preset", name, presets)
    names = names if set(names) & set(SIZES) else ["default", *names]
    layers: list[tuple[str, dict[str, Any]]] = [(f"preset {name}", presets[name]) for name in names]
    if config_file:
        layers.append((config_file, read_toml(config_file)))
    layers.append(("command line", flags))
    values: dict[str, Any] = {}
    for where, layer in layers:
        for name, value in layer.items():
            if name not in fields:
                raise unknown_name(f"option in {where}:", name, fields)
            values[name] = coerce(fields[name], value, where)
    given = {name for _, layer in layers[len(names):] for name in layer}
    parts = {key: section(**{field.name: values[field.name] for field in dataclasses.fields(section)
                             if field.name in values})
             for key, section in sections(model_config).items()}
    config = RunConfig(family=family, **parts)
    check(config, given)
    if model_config.learns_pairs and not (config.corpus.group_lines or config.corpus.condition_column):
        config = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, condition_column="condition"))
    return config


def from_json(data: dict[str, Any], model_config: type) -> RunConfig:
    """The configuration that `to_json` wrote; raises OutlinesError if a field is missing, unknown or misfitting."""
    parts = {}
    for key, section in sections(model_config).items():
        fields = {field.name: field for field in dataclasses.fields(section)}
        values = data.get(key)
        if not isinstance(values, dict):
            raise OutlinesError(f"run.json: no section {key!r}")
        for name in values:
            if name not in fields:
                raise unknown_name(f"option in run.json, section {key}:", name, fields)
        missing = sorted(set(fields) - set(values))
        if missing:
            raise OutlinesError(f"run.json, section {key}: {', '.join(missing)} missing: "
                                "this run was made by another version; train it again")
        parts[key] = section(**{name: coerce(fields[name], value, "run.json") for name, value in values.items()})
    return RunConfig(family=data["family"], **parts)


def check(config: RunConfig, given: set[str]) -> None:
    """Refuse options that would have no effect."""
    corpus = config.corpus
    without_effect = []
    if corpus.corpus:
        without_effect += ["num_sentences"]
        if not any(".csv" in path or ".jsonl" in path for path in (*corpus.corpus, *corpus.valid, *corpus.test)):
            without_effect += ["text_column"]
        without_effect += ["valid_fraction"] if corpus.valid else []
        without_effect += ["test_fraction"] if corpus.test else []
    else:
        without_effect += ["valid", "test", "text_column", "strict", "max_chars"]
        if config.model.learns_pairs:
            raise OutlinesError(f"{config.family} learns from pairs, which the embedded corpus has none of: give --corpus")
    if corpus.tokenizer:
        without_effect += ["vocab_size", "lowercase"]
    reasons = dict.fromkeys(without_effect, f"{'with' if corpus.corpus else 'without'} --corpus")
    if not config.model.learns_pairs:
        pairing = ("group_lines", "condition_column", "label_column")
        reasons |= dict.fromkeys(pairing, f"the family {config.family} pairs no sentences")
    for name, reason in {**reasons, **config.model.without_effect()}.items():
        if name in given:
            raise OutlinesError(f"--{name.replace('_', '-')} has no effect here ({reason}): leave it out")
