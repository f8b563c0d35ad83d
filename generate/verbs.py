"""What each verb writes, line by line, as plain text and as data."""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from outlines.decoding.sample import SamplingConfig
from outlines.devices import sampling_workers
from outlines.errors import OutlinesError
from outlines.inference.pipeline import TEMPERATURE, Condition, Pipeline, Sentence, Walk, load_pipeline
from outlines.metrics.bleu import reconstruction_bleu

CHUNK = 256
"""Sentences read and answered together."""
MAX_REPEATS = 10_000
"""Sentences in a row that were all written before, after which --unique gives up."""


class Line(NamedTuple):
    """One line of output: as text, and as the object of --format jsonl."""

    text: str
    data: dict[str, Any]


def sampling_of(options: argparse.Namespace) -> SamplingConfig:
    """How the options say that tokens are chosen; verbs without a temperature decode greedily."""
    samples = hasattr(options, "temperature") and not options.greedy
    temperature = (TEMPERATURE if options.temperature is None else options.temperature) if samples else 0.0
    top_k, top_p = getattr(options, "top_k", None), getattr(options, "top_p", None)
    if options.beam is not None and options.beam < 1:
        raise OutlinesError(f"--beam must be at least 1, not {options.beam}")
    factors = {name: getattr(options, name, None) for name in ("noise_scale", "guidance")}
    return SamplingConfig(temperature, top_k or 0, 1.0 if top_p is None else top_p, options.max_len, options.beam or 0,
                          **{name: value for name, value in factors.items() if value is not None})


def sample(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    if options.condition:
        return _answers(pipeline, options)
    drawn = pipeline.sentences(None if options.unique else options.num, options.seed, sampling_of(options), options.source,
                               scored=options.with_score, batch_size=options.batch_size, rejection=_rejection(options),
                               workers=sampling_workers(pipeline.device))
    return _lines(islice(unique(drawn), options.num) if options.unique else drawn)


def _rejection(options: argparse.Namespace) -> float:
    return 1.0 if options.rejection is None else options.rejection


def unique(sentences: Iterable[Sentence]) -> Iterator[Sentence]:
    """Each sentence the first time; raises OutlinesError after MAX_REPEATS repetitions in a row."""
    seen: set[bytes] = set()
    repeats = 0
    for sentence in sentences:
        digest = hashlib.blake2b(sentence.text.encode(), digest_size=16).digest()
        repeats = repeats + 1 if digest in seen else 0
        if repeats == MAX_REPEATS:
            raise OutlinesError(f"--unique: {len(seen)} different sentences, and the last {MAX_REPEATS:,} drawn were all "
                                "among them: ask for fewer, or raise --temperature")
        if not repeats:
            seen.add(digest)
            yield sentence


def _lines(sentences: Iterable[Sentence]) -> Iterator[Line]:
    for text, *scores in sentences:
        given = {name: score for name, score in zip(("nll", "critic_score"), scores, strict=True) if score is not None}
        yield Line("\t".join([*(f"{score:.3f}" for score in given.values()), text]), {"text": text, **given})


def _answers(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    for condition, sentence in pipeline.given(_read_conditions(options.condition), options.num, options.seed,
                                              sampling_of(options), options.source, options.with_score, options.batch_size):
        line = next(_lines([sentence]))
        label = {} if condition.label is None else {"label": condition.label}
        yield Line(line.text, {"condition": condition.text, **label, **line.data})


def _read_conditions(path: Path) -> Iterator[Condition]:
    """The conditions of a file, one a line: of .jsonl the fields condition and label, else the whole line."""
    for number, line in enumerate(_read(None if str(path) == "-" else path), start=1):
        if path.suffix != ".jsonl":
            yield Condition(line)
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        fields = record if isinstance(record, dict) else {}
        condition, label = fields.get("condition"), fields.get("label")
        if not isinstance(condition, str) or not condition.strip() or not isinstance(label, str | None):
            raise OutlinesError(f'{path}: condition {number}: expected {{"condition": a sentence}}, with a "label" '
                                "if the run has any")
        yield Condition(condition, label)


def reconstruct(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    sampling, pairs, nll, num_targets = sampling_of(options), [], 0.0, 0
    for chunk in _chunks(options):
        for done in pipeline.reconstruct(chunk, sampling):
            pairs.append((done.rebuilt, done.text))
            nll, num_targets = nll + done.nll, num_targets + done.num_targets
            yield Line(f"{done.bleu:.1f}\t{done.nll:.2f}\t{done.rebuilt}", {
                "text": done.text, "reconstruction": done.rebuilt, "bleu": done.bleu, "nll": done.nll})
    if pairs:
        bleu = reconstruction_bleu(*map(list, zip(*pairs, strict=True)))
        print(f"{len(pairs)} sentences: BLEU {bleu:.2f}, nll {nll / len(pairs):.2f} nats per sentence, "
              f"{nll / num_targets:.3f} per token", file=sys.stderr)


def interpolate(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    judge = load_pipeline(options.lm, pipeline.device) if options.lm else None
    for kind in pipeline.walks if options.walk == "all" else (options.walk,):
        walk = pipeline.interpolate(options.start, options.end, kind, options.num, sampling_of(options))
        yield from _walk_lines(walk)
        if options.smoothness:
            measured = pipeline.smoothness(walk, judge)
            data = {name: None if math.isnan(value) else value for name, value in measured._asdict().items()}
            yield Line(f"{kind}: {measured.num_sentences} sentences, mean step {measured.mean_step:.3f}, largest step "
                       f"{measured.largest_step:.3f}, nll of the middle {measured.middle_nll_per_token:.3f} nats per token",
                       {"walk": kind, **data})


def _walk_lines(walk: Walk) -> Iterator[Line]:
    for point in walk.points:
        steps = _span([point.step, point.step + len(point.nll_start) - 1], "d")
        yield Line(f"{walk.kind}\t{steps}\t{_span(point.nll_start, '.1f')}\t{_span(point.nll_end, '.1f')}\t{point.text}", {
            "walk": walk.kind, "step": point.step, "nll_a": point.nll_start, "nll_b": point.nll_end, "text": point.text})
    if walk.ended != "reached":
        print(f"{walk.kind}: ended before the second sentence ({walk.ended}) after {len(walk.vectors)} steps",
              file=sys.stderr)


def _span(values: Sequence[float], form: str) -> str:
    """The first and the last of a stretch's values, or the one where they read alike."""
    first, last = format(values[0], form), format(values[-1], form)
    return first if first == last else f"{first}…{last}"


def vary(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    vector = pipeline.encode([options.sentence])[0]
    return _lines(pipeline.around(vector, options.radius, options.num, options.seed, sampling_of(options),
                                  scored=options.with_score))


def analogy(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    return _decoded(pipeline, options, pipeline.analogy(options.a, options.b, options.c))


def mean(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    return _decoded(pipeline, options, pipeline.mean(_read(None if str(options.file) == "-" else options.file)))


def _decoded(pipeline: Pipeline, options: argparse.Namespace, vector: Tensor) -> Iterator[Line]:
    return _lines(Sentence(text) for text in pipeline.decode(vector[None], sampling_of(options)))


def nearest(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    for chunk in _chunks(options):
        for text, neighbours in zip(chunk, pipeline.nearest(chunk, options.num), strict=True):
            plain = "\n".join(f"{near.cosine:.3f}\t{near.row}\t{near.text}" for near in neighbours)
            yield Line(f"{text}\n{plain}", {"text": text, "neighbours": [near._asdict() for near in neighbours]})


def complete(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    if not options.prefix.strip():
        raise OutlinesError("the beginning holds no words; to begin anyhow, use `python -m generate RUN`")
    sampling = sampling_of(options)
    if options.like is None:
        return _lines(pipeline.sentences(options.num, options.seed, sampling, options.source, prefix=options.prefix,
                                         scored=options.with_score, rejection=_rejection(options)))
    vector = pipeline.encode([options.like])[0]
    return _lines(pipeline.around(vector, 0.0, options.num, options.seed, sampling, prefix=options.prefix,
                                  scored=options.with_score))


def _chunks(options: argparse.Namespace) -> Iterator[list[str]]:
    """The verb's sentences, CHUNK at a time."""
    stream = iter(options.sentences or _read(options.file))
    while chunk := list(islice(stream, CHUNK)):
        yield chunk


def _read(path: Path | None) -> Iterator[str]:
    """The lines of a file, or of standard input, that hold anything."""
    name = "standard input" if path is None else str(path)
    try:
        with open(0 if path is None else path, "rb", closefd=path is not None) as file:
            for number, line in enumerate(file, start=1):
                try:
                    sentence = line.decode().strip()
                except UnicodeDecodeError as error:
                    raise OutlinesError(f"{name}: line {number}: not UTF-8") from error
                if sentence:
                    yield sentence
    except OSError as error:
        raise OutlinesError(f"{name}: cannot be read: {error.strerror}") from error


WRITERS: dict[str, Callable[[Pipeline, argparse.Namespace], Iterator[Line]]] = {
    "sample": sample, "reconstruct": reconstruct, "interpolate": interpolate, "vary": vary, "analogy": analogy,
    "mean": mean, "nearest": nearest, "complete": complete}
