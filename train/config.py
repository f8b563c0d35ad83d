"""Configuration: frozen dataclasses whose fields are options. All options of a run have different names.

Precedence: defaults < preset < --config FILE.toml < flags. An unknown name is an error. Its message suggests a similar name.
"""

import dataclasses
import math
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from outlines.causal_lm import is_causal_lm
from outlines.corpus.formats import TABLES, extension
from outlines.corpus.reading import CorpusFiles
from outlines.errors import OutlinesError
from outlines.networks.decoder import Decoder, decoder_class
from outlines.networks.pretrained import TUNINGS
from outlines.options import DEVICES, PRECISIONS, Registry, option, unknown_name
from outlines.pretrained import SHIPPED


@dataclass(frozen=True)
class CorpusConfig(CorpusFiles):
    """Options of the corpus and the tokenizer."""

    group: ClassVar[str] = "corpus"
    num_sentences: int = option(20000, "number of sentences of the built-in corpus, all splits together", low=100)
    tokenizer: str = option("", "tokenizer: a SentencePiece model file, or the tokenizer of a language model: smollm2 or "
                            "hf:NAME_OR_DIRECTORY (default: train a SentencePiece model on the training split)")
    vocab_size: int = option(0, "vocabulary size of the SentencePiece model; 0: computed from the corpus's word counts",
                             low=0)
    lowercase: bool = option(False, "convert the text to lower case")
    max_len: int = option(64, "maximum length of a sentence in tokens; longer sentences are cut", low=1)


@dataclass(frozen=True)
class TrainingConfig:
    """Options of training and of the report, which all families have."""

    group: ClassVar[str] = "training"
    seed: int = option(1, "seed of weights, batches and noise")
    device: str = option("auto", "device; auto: the first of cuda, mps, cpu that is available", DEVICES)
    precision: str = option("auto", "precision of matrix products in training; auto: bfloat16 if that is faster",
                            PRECISIONS)
    warmup_steps: int = option(200, "optimiser steps over which the learning rate rises from 0", low=0, flag=False)
    min_learning_rate: float = option(0.02, "final fraction of the peak learning rate, after cosine decay", low=0, high=1,
                                      flag=False)
    clip_norm: float = option(1.0, "gradient norm above which gradients are scaled down", low=1e-09, flag=False)
    log_every: int = option(50, "optimiser steps between two log lines", low=1, flag=False)
    checkpoint_every: int = option(500, "optimiser steps between two checkpoints", low=1, flag=False)
    evaluator_steps: int = option(1200, "optimiser steps of the judge, the language model that scores samples; no effect "
                                        "with the built-in corpus and its default tokenizer, whose judge ships", low=1)
    num_evaluation: int = option(2000, "maximum number of test sentences in the report, and of samples from each "
                                "model or baseline", low=20)


@dataclass(frozen=True)
class DecoderOptions:
    """The options that every family has: the decoder and its training. A family adds more options in a subclass."""

    group: ClassVar[str] = "decoder"  # heading of this class's options in the help
    learns_pairs: ClassVar[bool] = False
    """whether the family learns from pairs of sentences; if so, the corpus must define the pairs"""
    reads_words: ClassVar[bool] = False
    """whether a network other than the decoder uses embed_dim"""
    decoder: str = option("gru", "kind of decoder: gru, transformer, or a pretrained language model: smollm2 or "
                          "hf:NAME_OR_DIRECTORY")
    lm_tuning: str = option("lora", "weights of a pretrained language model to train: low-rank adapters (lora), all (full), "
                            "or none (frozen)", TUNINGS, flag=False)
    embed_dim: int = option(256, "width of the token embeddings, tied with the output layer", low=1)
    hidden_dim: int = option(512, "width of the GRU state, or of the transformer's feed-forward layers", low=1)
    mix_dim: int = option(0, "width of a hidden layer of the GRU decoder that reads the state and the vector together; 0: "
                             "none", low=0, flag=False)
    num_layers: int = option(0, "layers of the decoder; 0: 1 for gru, 4 for transformer", low=0, flag=False)
    num_sampled: int = option(0, "number of words in the training softmax, in addition to those of the batch; 0: all",
                              low=0, flag=False)
    word_start: str = option("random", "initial embeddings and output bias: random numbers (random), or values "
                             "computed from word counts (counts)", choices=("random", "counts"))
    dropout: float = option(0.1, "dropout probability in the decoder, 0 to 0.95", low=0, high=0.95)
    decoder_steps: int = option(1200, "optimiser steps of the decoder", low=1)
    decoder_batch_size: int = option(128, "sentences per decoder step", low=1)
    decoder_learning_rate: float = option(3e-3, "peak learning rate of AdamW for the decoder", low=0)
    decoder_validate_every: int = option(500, "decoder steps between two validations", low=1)
    num_validation: int = option(2000, "maximum number of validation sentences", low=10, flag=False)
    init_from: str = option("", "initialise the decoder from this finished run, or from english, the model that ships with "
                                "the package; use its tokenizer, encoder and decoder size")

    def encoder_name(self) -> str | None:
        """Return the name of the frozen encoder, or None for a family without outlines."""
        return None

    def without_effect(self) -> dict[str, str]:
        """Return the options that have no effect with these values, with the reason. Setting such an option is an error."""
        kind = _decoder_class(self.decoder)
        known = {field.name for field in dataclasses.fields(kind.config_class)}
        known |= {"embed_dim"} if self.reads_words else set()
        kinds_own = "hidden_dim", "mix_dim", "num_layers", "dropout", "num_sampled", "lm_tuning", "embed_dim"
        names = [name for name in kinds_own if name not in known] + ["word_start"] * kind.pretrained
        unused = dict.fromkeys(names, f"decoder {self.decoder!r} does not use it")
        return unused | ({"word_start": "with --init-from"} if self.init_from else {})


def _decoder_class(name: str) -> type[Decoder]:
    try:
        return decoder_class(name)
    except OutlinesError as error:
        raise OutlinesError(f"--decoder {name}: {error}") from error


@dataclass(frozen=True)
class RunConfig:
    """All options that determine a run."""

    family: str
    corpus: CorpusConfig
    training: TrainingConfig
    model: DecoderOptions

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


SIZES = ("tiny", "default", "small", "full")
"""presets that every family has; they set the size of a run. Any other preset is combined with one of these sizes."""
PAIRING = ("group_lines", "condition_column", "label_column")
"""options that define pairs, for families that learn from pairs"""


def sections(model_config: type) -> dict[str, Any]:
    return {"corpus": CorpusConfig, "training": TrainingConfig, "model": model_config}


def known_fields(model_config: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the dataclass field of every option, by name."""
    return {field.name: field for section in sections(model_config).values() for field in dataclasses.fields(section)}


def group_of(name: str, model_config: type) -> str:
    """Return the help group of an option: the group of the base class that first defines this option."""
    for section in sections(model_config).values():
        for base in reversed(section.__mro__):
            if name in getattr(base, "__annotations__", ()):
                return str(getattr(base, "group", section.group))
    raise KeyError(name)


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def coerce(field: dataclasses.Field[Any], value: Any, where: str) -> Any:
    """Return a value from a file or a flag, converted to the field's type. Raises OutlinesError if the value is invalid."""
    kind, choices = field.type, tuple(field.metadata["choices"])
    fits: bool
    if kind is bool:
        fits = isinstance(value, bool)
    elif kind in (int, float):
        numbers, limit = (int, 2**63) if kind is int else ((int, float), 1e300)
        fits = isinstance(value, numbers) and not isinstance(value, bool) and abs(value) < limit
        value = kind(value) if fits else value
    else:
        value = tuple(value) if isinstance(value, list) and kind is not str else value
        texts = (value,) if kind is str else value
        fits = isinstance(texts, tuple) and all(isinstance(item, str) and _is_text(item) for item in texts)
    if not fits or (choices and value not in choices):
        kinds: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        expected = " or ".join(choices) if choices else kinds.get(kind, "a list of words")
        raise OutlinesError(f"{where}: {field.name} = {value!r} is not valid. Use {expected}.")
    low, high = field.metadata["low"], field.metadata["high"]
    if kind in (int, float) and not low <= value <= high:
        allowed = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
        raise OutlinesError(f"{where}: {field.name} = {value} is out of range. Use a value {allowed}.")
    return value


def _is_text(value: str) -> bool:
    """Return whether a text can be a file name."""
    try:
        value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OutlinesError(f"{path}: not a readable TOML file ({getattr(error, 'strerror', error)}). Check the "
                            "path and the syntax.") from error


def presets_of(family: str) -> Registry:
    """Return all presets of a family, including the sizes, from presets.toml."""
    known = read_toml(str(Path(__file__).with_name("presets.toml")))
    shared, own = known["sizes"], known.get(family, {})
    return Registry("preset", {name: shared.get(name, {}) | own.get(name, {}) for name in shared | own})


def names_of(preset: str) -> list[str]:
    """Return the names in a text with spaces between them; if no name is a size, the preset `default` first."""
    names = preset.split()
    return names if set(names) & set(SIZES) else ["default", *names]


def resolve(family: str, model_config: Any, presets: dict[str, dict[str, Any]], preset: str,
            config_file: str | None, flags: dict[str, Any]) -> RunConfig:
    """Return the configuration from defaults, presets, file and flags. Later values override earlier ones.

    preset: see `names_of`. Raises OutlinesError.
    """
    fields = known_fields(model_config)
    names = names_of(preset)
    layers: list[tuple[str, dict[str, Any]]] = [(f"preset {name}", presets[name]) for name in names]
    if config_file:
        layers.append((config_file, read_toml(config_file)))
    layers.append(("command line", flags))
    values: dict[str, Any] = {}
    for where, layer in layers:
        values |= _coerced(fields, layer, where)
    given = {name for _, layer in layers[len(names):] for name in layer}
    if model_config.learns_pairs and not (values.get("group_lines") or values.get("condition_column")):
        values["condition_column"] = "condition"
    kind = _decoder_class(str(values.get("decoder", fields["decoder"].default)))
    values |= {name: value for name, value in kind.defaults.items() if name not in given}
    if kind.pretrained:
        values |= {"tokenizer": values["decoder"], "vocab_size": 0, "lowercase": False}
    parts = {key: section(**{field.name: values[field.name] for field in dataclasses.fields(section)
                             if field.name in values})
             for key, section in sections(model_config).items()}
    config = RunConfig(family=family, **parts)
    check(config, given)
    return config


def absolute(config: RunConfig) -> RunConfig:
    """Return the configuration with absolute paths, so that a run does not depend on the working directory."""
    def full(path: str) -> str:
        return str(Path(os.path.expanduser(path)).absolute()) if path else path

    def named(name: str) -> str:
        kind, colon, path = name.partition(":")
        is_path = kind == "recurrent" or (kind in ("st", "hf") and os.path.isdir(os.path.expanduser(path)))
        return kind + colon + (full(path) if is_path else path)

    corpus: dict[str, Any] = {name: tuple(map(full, getattr(config.corpus, name))) for name in ("corpus", "valid", "test")}
    model: dict[str, Any] = {name: path if path in SHIPPED else full(path) for name, path in vars(config.model).items()
                             if name in ("decoder_from", "init_from")}
    model |= {name: named(value) for name, value in vars(config.model).items() if name in ("encoder", "decoder")}
    tokenizer = config.corpus.tokenizer
    corpus["tokenizer"] = named(tokenizer) if is_causal_lm(tokenizer) else full(tokenizer)
    return dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, **corpus),
                               model=dataclasses.replace(config.model, **model))


def from_json(data: dict[str, Any], model_config: type) -> RunConfig:
    """Return the configuration for the data of `to_json`. Raises OutlinesError for a missing, unknown or invalid field."""
    parts = {}
    for key, section in sections(model_config).items():
        fields = {field.name: field for field in dataclasses.fields(section)}
        given = data.get(key)
        values = _coerced(fields, given if isinstance(given, dict) else {}, f"run.json, section {key}")
        if missing := sorted(set(fields) - set(values)):
            raise OutlinesError(f"run.json, section {key}: no value for {', '.join(missing)}. "
                                "Another version wrote this run; train it again.")
        parts[key] = section(**values)
    return RunConfig(family=data["family"], **parts)


def _coerced(fields: dict[str, dataclasses.Field[Any]], values: dict[str, Any], where: str) -> dict[str, Any]:
    for name in values:
        if name not in fields:
            raise unknown_name(f"option in {where}:", name, fields)
    return {name: coerce(fields[name], value, where) for name, value in values.items()}


def check(config: RunConfig, given: set[str]) -> None:
    """Raise OutlinesError for an option that has no effect, and for a family that needs pairs if there is no --corpus.

    given: names of the options that a file or flags set.
    """
    corpus, reasons = config.corpus, dict[str, str]()
    if corpus.corpus:
        reasons["num_sentences"] = "with --corpus"
        if not any(extension(Path(path)) in TABLES for paths in corpus.paths().values() for path in paths):
            reasons["text_column"] = "no file has columns"
        reasons |= {"valid_fraction": "with --valid"} if corpus.valid else {}
        reasons |= {"test_fraction": "with --test"} if corpus.test else {}
    else:
        files_only = ("valid", "test", "text_column", "strict", "max_chars", "max_rejected")
        reasons |= dict.fromkeys(files_only, "without --corpus")
        if config.model.learns_pairs:
            raise OutlinesError(f"'{config.family}' models learn from pairs. The built-in corpus has none. Use --corpus.")
    if corpus.tokenizer:
        reasons |= dict.fromkeys(("vocab_size", "lowercase"), "with --tokenizer")
    if _decoder_class(config.model.decoder).pretrained:
        reasons |= dict.fromkeys(("tokenizer", "vocab_size", "lowercase"),
                                 f"decoder {config.model.decoder!r} has its own tokenizer")
    if not config.model.learns_pairs:
        reasons |= dict.fromkeys(PAIRING, f"'{config.family}' does not learn from pairs")
    for name, reason in {**reasons, **config.model.without_effect()}.items():
        if name in given:
            raise OutlinesError(f"{flag_of(name)} has no effect here ({reason}). Leave it out.")
