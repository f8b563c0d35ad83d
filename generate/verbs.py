"""The verbs of `python -m generate`. Each verb is a function here and an entry in VERBS of generate/options.py."""

import argparse
import dataclasses
import hashlib
import io
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import outlines
from outlines.corpus.formats import extension, opened
from outlines.decoding.sample import SamplingConfig
from outlines.devices import sampling_workers
from outlines.errors import OutlinesError
from outlines.inference.pipeline import Condition, Pipeline, Sentence
from outlines.metrics.bleu import reconstruction_bleu
from outlines.metrics.text import unspaced

MAX_REPEATS = 10_000  # --unique stops after this many consecutive duplicates
Item = TypeVar("Item")
Line = tuple[str, dict[str, Any]]  # the text, and the object that --format jsonl writes


def sampling_of(options: argparse.Namespace) -> SamplingConfig:
    """Return the sampling settings. Verbs without the option --temperature decode greedily."""
    names = {field.name for field in dataclasses.fields(SamplingConfig)}
    chosen = {name: value for name, value in vars(options).items() if name in names and value is not None}
    if "temperature" not in chosen or options.greedy:
        chosen["temperature"] = 0.0
    return SamplingConfig(**chosen)


def sample(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    if options.condition:
        return _conditional(pipeline, options)
    num = None if options.unique else options.num
    drawn = pipeline.sentences(num, options.seed, sampling_of(options), options.source, scored=options.with_score,
                               batch_size=options.batch_size, rejection=options.rejection,
                               workers=1 if options.drafts > 1 else sampling_workers(pipeline.device))
    return _lines(islice(unique(drawn), options.num) if options.unique else drawn)


def unique(sentences: Iterable[Sentence]) -> Iterator[Sentence]:
    """Yield every distinct sentence once. Raises OutlinesError after MAX_REPEATS consecutive duplicates."""
    seen, repeats = set[bytes](), 0
    for sentence in sentences:
        digest = hashlib.blake2b(sentence.text.encode(), digest_size=16).digest()
        repeats = repeats + 1 if digest in seen else 0
        if repeats == MAX_REPEATS:
            raise OutlinesError(f"--unique found {len(seen)} different sentences, then {MAX_REPEATS:,} consecutive "
                                "duplicates. Lower --num or raise --temperature.")
        if not repeats:
            seen.add(digest)
            yield sentence


def _lines(sentences: Iterable[Sentence]) -> Iterator[Line]:
    for sentence in sentences:
        text, *scores = sentence
        yield "\t".join([*(f"{score:.3f}" for score in scores if score is not None), text]), sentence.data()


def _conditional(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    """Yield one or more sentences for each line of --condition."""
    is_json = extension(options.condition) == ".jsonl"
    conditions = _usable(_read(options.condition), lambda line: _condition(pipeline, line, is_json))
    for condition, sentence in pipeline.given(conditions, options.num, options.seed,
                                              sampling_of(options), options.source, options.with_score, options.batch_size):
        label = {} if condition.label is None else {"label": condition.label}
        for text, data in _lines([sentence]):
            yield text, {"condition": condition.text, **label, **data}


def _condition(pipeline: Pipeline, line: str, is_json: bool) -> Condition:
    """Return the condition in a line: the whole line or, in .jsonl files, the fields `condition` and `label`."""
    try:
        fields = json.loads(line) if is_json else {"condition": line}
        condition = Condition(fields["condition"], fields.get("label"))
        if not condition.text.strip() or not isinstance(condition.label, str | None):
            raise ValueError(line)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise OutlinesError('The condition is not valid. Write {"condition": "a sentence"}, and add a "label" if the run '
                            "has labels.") from error
    pipeline.rows([condition.text], limited=False)
    if number_of := getattr(pipeline.model, "number_of", None):
        number_of(condition.label)
    return condition


def reconstruct(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    sampling, pairs, nll, num_targets = sampling_of(options), [], 0.0, 0
    for chunk in _chunks(pipeline, options):
        for done in pipeline.reconstruct(chunk, sampling):
            pairs.append((done.rebuilt, done.text))
            nll, num_targets = nll + done.nll, num_targets + done.num_targets
            yield f"{done.bleu:.1f}\t{done.nll:.2f}\t{done.rebuilt}", {
                "text": done.text, "reconstruction": done.rebuilt, "bleu": done.bleu, "nll": done.nll}
    if pairs:
        rebuilt, given = map(list, zip(*pairs, strict=True))
        bleu, unit = reconstruction_bleu(rebuilt, given), " of characters" if unspaced(given) else ""
        print(f"{len(pairs)} sentences: BLEU{unit} {bleu:.2f}, nll {nll / len(pairs):.2f} nats per sentence, "
              f"{nll / num_targets:.3f} per token", file=sys.stderr)


def interpolate(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    judge = outlines.load(options.lm, pipeline.device.type) if options.lm else None
    # If the run supports no walk, the first walk raises the error.
    for kind in (pipeline.walks or ("spherical",)) if options.walk == "all" else (options.walk,):
        walk = pipeline.interpolate(options.a, options.b, kind, options.num, sampling_of(options))
        for point in walk.points:
            steps = _span([point.step, point.step + len(point.nll_start) - 1], "d")
            nll_a, nll_b = _span(point.nll_start, ".1f"), _span(point.nll_end, ".1f")
            yield f"{kind}\t{steps}\t{nll_a}\t{nll_b}\t{point.text}", {
                "walk": kind, "step": point.step, "nll_a": point.nll_start, "nll_b": point.nll_end, "text": point.text}
        if walk.ended != "reached":
            print(f"The {kind} walk stopped before the second sentence, after {len(walk.vectors)} steps ({walk.ended}).",
                  file=sys.stderr)
        if options.smoothness:
            measured = pipeline.smoothness(walk, judge)
            data = {name: None if math.isnan(value) else value for name, value in measured._asdict().items()}
            nll = data["middle_nll_per_token"]
            middle = "no sentence between the ends" if nll is None else f"nll of the middle {nll:.3f} nats per token"
            yield (f"{kind}: {measured.num_sentences} sentences, mean step {measured.mean_step:.3f}, largest step "
                   f"{measured.largest_step:.3f}, {middle}",
                   {"walk": kind, **data})


def _span(values: Sequence[float], form: str) -> str:
    """Return the first and the last value as text, or only one of them if their texts are equal."""
    first, last = format(values[0], form), format(values[-1], form)
    return first if first == last else f"{first}…{last}"


def vary(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    source = pipeline.around(pipeline.encode([options.sentence])[0], options.radius)
    return _lines(pipeline.sentences(options.num, options.seed, sampling_of(options), source, scored=options.with_score))


def analogy(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    vector = pipeline.analogy(options.a, options.b, options.c)
    return _lines(map(Sentence, pipeline.decode(vector[None], sampling_of(options))))


def mean(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    vector = pipeline.mean(list(_usable(_read(Path(options.lines)), pipeline.checked)))
    return _lines(map(Sentence, pipeline.decode(vector[None], sampling_of(options))))


def nearest(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    for chunk in _chunks(pipeline, options, limited=False):
        for text, neighbours in zip(chunk, pipeline.nearest(chunk, options.num), strict=True):
            plain = "\n".join(f"{near.cosine:.3f}\t{near.row}\t{near.text}" for near in neighbours)
            yield f"{text}\n{plain}", {"text": text, "neighbours": [near._asdict() for near in neighbours]}


def complete(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    if not options.beginning.strip():
        raise OutlinesError("The beginning is empty. To sample without a beginning, use `python -m generate RUN`.")
    source = options.source if options.like is None else pipeline.around(pipeline.encode([options.like])[0], 0.0)
    return _lines(pipeline.sentences(options.num, options.seed, sampling_of(options), source, prefix=options.beginning,
                                     scored=options.with_score, rejection=options.rejection))


def serve(pipeline: Pipeline, options: argparse.Namespace) -> Iterator[Line]:
    from generate.server import Server

    with Server(pipeline, options.host, options.port) as server:
        try:
            yield f"{server.url} (press Ctrl-C to stop)", {}
            server.serve_forever()
        except KeyboardInterrupt:
            # A normal exit would stop the threads of requests inside torch, and then C++ aborts the process.
            os._exit(128 + signal.SIGINT)


def _usable(lines: Iterable[tuple[str, str]], parse: Callable[[str], Item]) -> Iterator[Item]:
    """Yield parse(line) for (name, line) pairs. If parse raises OutlinesError, skip the line; raise if all lines fail."""
    bad, good = list[str](), 0
    for name, line in lines:
        try:
            item = parse(line)
        except OutlinesError as error:
            bad.append(f"{name}: {error}")
        else:
            good += 1
            yield item
        while good and bad:
            print("skipped", bad.pop(0), file=sys.stderr)
    if bad:
        others = "The other line" if len(bad) == 2 else f"The other {len(bad) - 1:,} lines"
        raise OutlinesError(bad[0] + (f" {others} cannot be used either." if len(bad) > 1 else ""))


def _chunks(pipeline: Pipeline, options: argparse.Namespace, limited: bool = True) -> Iterator[list[str]]:
    """Yield the input sentences in lists of 256 or, with --drafts, of 256 / drafts sentences."""
    named = ((f"sentence {number}", text) for number, text in enumerate(options.sentences, start=1))
    stream = _usable(named if options.sentences else _read(options.file), lambda text: pipeline.checked(text, limited))
    while chunk := list(islice(stream, max(1, 256 // getattr(options, "drafts", 1)))):
        yield chunk


def _read(path: Path | None) -> Iterator[tuple[str, str]]:
    """Yield (name, line) pairs of a file or, for None and `-`, of standard input. Empty lines are skipped."""
    source: Path | int = 0 if path is None or str(path) == "-" else path
    with opened(source) as file:
        # surrogateescape marks bytes that are not UTF-8, and the tokenizer refuses these marks.
        for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape"), start=1):
            if sentence := line.strip():
                yield f"{source or 'standard input'}: line {number}", sentence
