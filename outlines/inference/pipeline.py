"""A finished run as those who use it see it: noise → outline → tokens → text, and text → outline.

    run = outlines.load("runs/001-outlines-small")
    run.sample(3, temperature=0.5)                                    three sentences
    vectors = run.encode(["A dog runs.", "Two men play chess."])      [2, D]
    run.decode(vectors)                                               the sentences rebuilt
    run.interpolate("A dog runs.", "Two men play chess.", "gradient").sentences

All that `python -m generate` does stands here once, whatever family the run is of; what a family lacks is said in one line.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from outlines.checkpoint import sha256_file
from outlines.corpus.tokenizer import Tokenizer
from outlines.decoding.sample import Layout, SamplingConfig, sample
from outlines.decoding.scoring import nll_of_rows
from outlines.devices import choose_precision
from outlines.encoders import SentenceEncoder, load_encoder
from outlines.errors import OutlinesError
from outlines.inference.interpolation import (
    WALKS,
    Smoothness,
    folded,
    gradient,
    linear,
    nll_along,
    noise,
    smoothness,
    spherical,
)
from outlines.inference.neighbours import Neighbour, TrainingSet
from outlines.inference.rejection import rejecting
from outlines.metrics.bleu import reconstruction_bleu
from outlines.models.base import BATCH, BLOCK, Draw, TextModel
from outlines.models.conditional import ConditionalModel
from outlines.models.outlines import OutlineModel
from outlines.models.registry import load_model

TEMPERATURE = 0.7
GREEDY = SamplingConfig(temperature=0)


class Sentence(NamedTuple):
    """A sentence written and, where they were asked for, its scores.

    nll: -log p(sentence | its vector) by the decoder at T = 1, nats. critic_score: of its vector, without a unit, to be
    compared within a run alone; None where the family has no critic.
    """

    text: str
    nll: float | None = None
    critic_score: float | None = None


class Condition(NamedTuple):
    """What a sentence is to be written for: another sentence and, if the run has labels, one of them."""

    text: str
    label: str | None = None


class Reconstruction(NamedTuple):
    """A sentence and what the decoder makes of its vector.

    nll: -log p(sentence | vector), nats per sentence; num_targets: its tokens, eos included. bleu: 0 to 100.
    """

    text: str
    rebuilt: str
    bleu: float
    nll: float
    num_targets: int


class Point(NamedTuple):
    """A stretch of a walk that decodes to one sentence.

    step: number of its first vector. nll_start, nll_end: -log p of the two sentences under each of its vectors, nats per
    sentence.
    """

    step: int
    text: str
    nll_start: list[float]
    nll_end: list[float]


@dataclass(frozen=True)
class Walk:
    """The way from one sentence to another. vectors: [S, D]. ended: why it stopped there."""

    kind: str
    vectors: Tensor
    points: list[Point]
    ended: str

    @property
    def sentences(self) -> list[str]:
        """What is met on the way, equal neighbours once."""
        return [point.text for point in self.points]


class Pipeline:
    """A run's model and tokenizer; its encoder and its training sentences, once they are asked for."""

    def __init__(self, run: Path, description: dict[str, Any], model: TextModel, tokenizer: Tokenizer,
                 precision: str = "auto"):
        """precision: of the products by which tokens are drawn, see `choose_precision`; all else is computed in float32."""
        self.run = run
        self.description = description
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.precision = choose_precision(precision, self.device)
        self.max_len: int = description["corpus"]["max_len"]

    @cached_property
    def encoder(self) -> SentenceEncoder | None:
        """The frozen encoder that the run was trained with; None for a family that needs none."""
        wanted = self.model.frozen_encoder()
        if wanted is None:
            return None
        try:
            encoder = load_encoder(wanted["name"], self.device.type)
        except OutlinesError as error:
            raise OutlinesError(f"{self.run}: its encoder {wanted['name']} cannot be loaded: {error}") from error
        if encoder.fingerprint != wanted["fingerprint"]:
            raise OutlinesError(f"{self.run}: the encoder {wanted['name']} is no longer the one it was trained with")
        return encoder

    @cached_property
    def training_set(self) -> TrainingSet:
        return TrainingSet.of_run(self.run, self.description)

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.model.decoder, bfloat16=self.precision == "bfloat16")

    # Text → vectors

    def rows(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each sentence; raises OutlinesError where one is empty or longer than the run's limit."""
        rows = as_rows(self.tokenizer.encode(sentences))
        for sentence, row in zip(sentences, rows, strict=True):
            shown = repr(sentence[:40] + "…" if len(sentence) > 40 else sentence)
            if not len(row):
                raise OutlinesError(f"{shown} holds no words")
            if len(row) > self.max_len:
                raise OutlinesError(f"{shown} has {len(row)} tokens: this run knows sentences of up to {self.max_len}")
        return rows

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """The vectors [N, D] from which the decoder rebuilds sentences: scaled outlines, or a VAE's posterior means."""
        self._need_one_vector()
        return self._vectors(sentences, self.rows(sentences))

    @torch.no_grad()
    def _vectors(self, sentences: Sequence[str], rows: list[np.ndarray]) -> Tensor:
        outlines = None
        if self.encoder is not None:
            raw = torch.from_numpy(self.encoder.encode(list(sentences))).to(self.device)
            outlines = self.model.from_encoder(raw)
        posterior = self.model.posterior(rows, outlines)
        if posterior is None:
            raise OutlinesError(f"a run of the family {self.model.family} has no vector of a sentence: it cannot do this")
        return posterior[0]

    def _need_one_vector(self) -> None:
        if self.model.latent_per_step:
            raise OutlinesError(f"a run of the family {self.model.family} has a latent for every step, and no one vector of "
                                "a sentence: it cannot do this")

    def mean(self, sentences: Iterable[str]) -> Tensor:
        """The mean vector [D] of sentences, taken in the encoder's units and brought back to their norm."""
        total, num, stream = torch.zeros((), dtype=torch.float64), 0, iter(sentences)
        while chunk := list(islice(stream, BLOCK)):
            total = total + self.model.to_encoder(self.encode(chunk)).cpu().double().sum(dim=0)
            num += len(chunk)
        if not num:
            raise OutlinesError("a mean needs at least one sentence")
        return self.model.from_encoder((total / num).float().to(self.device)[None])[0]

    def analogy(self, a: str, b: str, c: str) -> Tensor:
        """c + b - a, the vector [D] that is to c as b's is to a's, taken as `mean` does.

        Source: Mikolov, Yih and Zweig, Linguistic Regularities in Continuous Space Word Representations (2013).
        """
        of_a, of_b, of_c = self.model.to_encoder(self.encode([a, b, c]))
        return self.model.from_encoder((of_c + of_b - of_a)[None])[0]

    # Vectors → text

    def decode(self, vectors: Tensor, sampling: SamplingConfig = GREEDY, seed: int = 1) -> list[str]:
        """One sentence for each of the vectors [N, D]; the likeliest tokens unless `sampling` says otherwise."""
        rng = torch.Generator().manual_seed(seed)
        uniforms = torch.rand(len(vectors), sampling.max_len, generator=rng).to(self.device)
        vectors = vectors.to(self.device)
        return [text for start in range(0, len(vectors), BLOCK) for text in self.tokenizer.lines(
            sample(self.layout, vectors[start:start + BLOCK], uniforms[start:start + BLOCK], sampling))]

    def sample(self, num: int = 10, seed: int = 1, source: str | None = None, **choice: float) -> list[str]:
        """`num` new sentences. choice: fields of SamplingConfig, such as temperature (0.7 where it is not given)."""
        sampling = SamplingConfig(**{"temperature": TEMPERATURE, **choice})  # type: ignore[arg-type]
        return [sentence.text for sentence in self.sentences(num, seed, sampling, source)]

    def sentences(self, num: int | None, seed: int, sampling: SamplingConfig, source: str | None = None, *,
                  prefix: str = "", scored: bool = False, batch_size: int | None = None,
                  rejection: float = 1.0, workers: int = 1) -> Iterator[Sentence]:
        """`num` new sentences as they come (None: for ever); sentence i depends on (seed, i) alone.

        prefix: how every one begins. scored: with their scores. batch_size: sentences decoded together, None for what
        suits the device. rejection: vectors drawn, on average, for each that the critic keeps (see
        outlines/inference/rejection.py); 1 keeps all.
        workers: threads that each decode a batch; with more than one, let torch itself use one.
        """
        tokens, name = self.prefix_tokens(prefix), self.model.check_source(source)
        draw: Draw = lambda count, rng: self.model.vectors(count, rng, name, sampling.noise_scale)  # noqa: E731
        if rejection != 1:
            if name != self.model.sources[0]:
                raise OutlinesError(f"rejection is of the {self.model.sources[0]} alone, which the critic knows, not of the "
                                    f"{name}")
            draw = rejecting(self.model, draw, rejection)
        return self._written(self.model.decode_draws(draw, num, seed, sampling, batch_size, tokens, workers, self.layout),
                             scored)

    def around(self, vector: Tensor, radius: float, num: int | None, seed: int, sampling: SamplingConfig, *,
               prefix: str = "", scored: bool = False) -> Iterator[Sentence]:
        """As `sentences`, from vectors at distance `radius` of one [D], in directions drawn evenly.

        radius: in the encoder's units, before the vector is brought back to its norm; 0 takes the vector itself.
        """
        if not 0 <= radius < float("inf"):
            raise OutlinesError(f"the radius must be 0 or above and finite, not {radius}")
        centre = self.model.to_encoder(vector)

        def draw(count: int, rng: torch.Generator) -> Tensor:
            directions = functional.normalize(torch.randn(count, len(centre), generator=rng)).to(centre)
            return self.model.from_encoder(centre + radius * directions) if radius else vector.expand(count, -1)

        return self._written(self.model.decode_draws(draw, num, seed, sampling, prefix=self.prefix_tokens(prefix),
                                                     layout=self.layout), scored)

    def given(self, conditions: Iterable[Condition], num: int = 1, seed: int = 1,
              sampling: SamplingConfig | None = None, source: str | None = None, scored: bool = False,
              batch_size: int | None = None) -> Iterator[tuple[Condition, Sentence]]:
        """`num` new sentences for each condition, in order; raises OutlinesError by a run that takes none."""
        model, sampling = self.model, sampling or SamplingConfig(TEMPERATURE)
        if not isinstance(model, ConditionalModel):
            raise OutlinesError(f"{self.run}: a run of the family {model.family} takes no condition")
        assert self.encoder is not None
        name = model.check_source(source)

        def draw(count: int, rng: torch.Generator) -> Tensor:
            return model.generator.draw(count, rng, sampling.noise_scale)

        asked = (condition for condition in conditions for _ in range(num))
        start = 0
        while chunk := list(islice(asked, batch_size or BATCH)):
            distinct = list(dict.fromkeys(chunk))
            raw = torch.from_numpy(self.encoder.encode([text for text, _ in distinct])).to(self.device)
            labels = torch.tensor([model.number_of(label) for _, label in distinct], device=self.device)
            place = {condition: row for row, condition in enumerate(distinct)}
            condition = model.condition(model.from_encoder(raw), labels)[[place[condition] for condition in chunk]]
            noise, uniforms = model.draw_rows(draw, start, start + len(chunk), seed, sampling.max_len)
            assert noise is not None
            vectors = model.given(condition, noise, name)
            written = self._written(iter([(sample(self.layout, vectors, uniforms, sampling), vectors)]), scored)
            yield from zip(chunk, written, strict=True)
            start += len(chunk)

    def prefix_tokens(self, prefix: str) -> list[int]:
        """The tokens of a sentence's beginning; none for an empty one."""
        return self.tokenizer.encode([prefix])[0] if prefix else []

    def _written(self, batches: Iterator[tuple[list[list[int]], Tensor | None]], scored: bool) -> Iterator[Sentence]:
        for ids, vectors in batches:
            texts = self.tokenizer.lines(ids)
            if not scored:
                yield from map(Sentence, texts)
                continue
            nll = nll_of_rows(self.model.decoder, as_rows(ids), vectors)[0].tolist()
            scores = None if vectors is None else self.model.critic_scores(vectors)
            yield from map(Sentence, texts, nll, [None] * len(ids) if scores is None else scores.tolist())

    # Text → text

    def reconstruct(self, sentences: Sequence[str], sampling: SamplingConfig = GREEDY,
                    seed: int = 1) -> list[Reconstruction]:
        """Each sentence → its vector → a sentence, with how far the two are apart."""
        if not sentences:
            return []
        rows = self.rows(sentences)
        vectors = self._vectors(sentences, rows)
        nll, num_targets = nll_of_rows(self.model.decoder, rows, vectors)
        rebuilt = self.decode(vectors, sampling, seed)
        bleu = [reconstruction_bleu([made], [sentence]) for made, sentence in zip(rebuilt, sentences, strict=True)]
        return list(map(Reconstruction, sentences, rebuilt, bleu, nll.tolist(), num_targets.tolist()))

    @property
    def walks(self) -> tuple[str, ...]:
        """The walks that this run's family can make; only a generator of outlines has noise to walk in."""
        return tuple(kind for kind in WALKS if kind != "noise" or isinstance(self.model, OutlineModel))

    def interpolate(self, start: str, end: str, walk: str = "spherical", num: int = 21,
                    sampling: SamplingConfig = GREEDY) -> Walk:
        """From one sentence to another (see outlines/inference/interpolation.py).

        num: vectors on the way, both ends included; of a gradient walk, whose end is where the second sentence is as
        likely as under its own vector, the first step is 1 / (num - 1) of the distance between the two.
        """
        self._need_one_vector()
        if walk not in self.walks:
            raise OutlinesError(f"{self.model.family}: no walk {walk!r}: choose from {', '.join(self.walks)}")
        if num < 2:
            raise OutlinesError(f"a walk needs 2 vectors or more, not {num}")
        rows = self.rows([start, end])
        first, last = self._vectors([start, end], rows)
        ended = "reached"
        if walk == "linear":
            vectors = linear(first, last, num)
        elif walk == "spherical":
            vectors = self.model.from_encoder(spherical(self.model.to_encoder(first), self.model.to_encoder(last), num))
        elif walk == "noise":
            assert isinstance(self.model, OutlineModel)
            vectors = noise(self.model, first, last, num)
        else:
            own = float(nll_of_rows(self.model.decoder, [rows[1]], last[None])[0][0])
            step = float((last - first).norm()) / (num - 1)
            vectors, ended = gradient(self.model.decoder, first, rows[1], own, step, self._normalise)
        texts = self.decode(vectors, sampling)
        of_start, of_end = (nll_along(self.model.decoder, row, vectors) for row in rows)
        points = [Point(step, texts[step], of_start[step:step + count].tolist(), of_end[step:step + count].tolist())
                  for step, count in folded(texts)]
        return Walk(walk, vectors, points, ended)

    def _normalise(self, vectors: Tensor) -> Tensor:
        return self.model.from_encoder(self.model.to_encoder(vectors))

    def smoothness(self, walk: Walk, judge: "Pipeline | None" = None) -> Smoothness:
        """How smooth a walk's sentences are (empty ones left out), the middle ones' likelihood by `judge`, a run of lm.

        Without one it is the decoder's, each sentence under its own vector, which is only as good a judge as the decoder.
        """
        sentences = [text for text in walk.sentences if text]
        rows = [row[:self.max_len] for row in as_rows(self.tokenizer.encode(sentences))]
        vectors = self._vectors(sentences, rows)
        if judge is None:
            nll, num_targets = nll_of_rows(self.model.decoder, rows, vectors)
        else:
            nll, num_targets = judge.language_nll(sentences)
        return smoothness(self.model.to_encoder(vectors), nll, num_targets)

    def language_nll(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """-log p(sentence), nats [N], by a run of the family lm, and real targets [N]; raises OutlinesError by another."""
        if self.model.decoder.config.vector_dim:
            raise OutlinesError(f"{self.run}: a run of the family {self.model.family}, where one of lm is needed")
        return nll_of_rows(self.model.decoder, as_rows(self.tokenizer.encode(sentences)))

    def nearest(self, sentences: Sequence[str], num: int = 5) -> list[list[Neighbour]]:
        """The `num` training sentences nearest to each sentence, by the cosine of their raw outlines."""
        self.rows(sentences)
        training_set = self.training_set  # first, for its errors say more than a missing encoder's
        assert self.encoder is not None
        return training_set.nearest(self.encoder.encode(list(sentences)), num)


def as_rows(ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Lists of token ids as the arrays that scoring takes; an empty one stays a row of integers."""
    return [np.array(row, dtype=np.int64) for row in ids]


def load_pipeline(run: Path, device: torch.device, precision: str = "auto") -> Pipeline:
    """Load a finished run; raises OutlinesError that says what is missing or damaged. precision: as of the Pipeline."""
    if not (run / "run.json").is_file():
        raise OutlinesError(f"{run}: no run here (no run.json)")
    if not (run / "model").is_dir():
        raise OutlinesError(f"{run}: training has not finished (no model/): go on with `python -m train --resume {run}`")
    try:
        description = json.loads((run / "run.json").read_text())
        expected = description["hashes"]["tokenizer"]
        max_len = description["corpus"]["max_len"]
        if type(max_len) is not int or max_len < 1:
            raise ValueError(f"max_len {max_len!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutlinesError(f"{run / 'run.json'}: damaged: {error}") from error
    model_file = run / "tokenizer.model"
    again = f"`python -m train --resume {run}` writes it anew"
    if not model_file.is_file():
        raise OutlinesError(f"{model_file}: missing: {again}")
    if sha256_file(model_file) != expected:  # Before anything parses it.
        raise OutlinesError(f"{model_file}: damaged, or of another run (its SHA-256 is not that of run.json): {again}")
    with ThreadPoolExecutor(1) as beside:  # which waits for the process that tries the tokenizer
        reading = beside.submit(Tokenizer.load, model_file)
        model = load_model(run / "model")
        tokenizer = reading.result()
    if model.decoder.config.vocab_size != tokenizer.vocab_size:
        raise OutlinesError(f"{run}: model and tokenizer do not belong together")
    return Pipeline(run, description, model.to(device), tokenizer, precision)
