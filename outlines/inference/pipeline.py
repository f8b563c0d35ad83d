"""Use of a finished run: noise → outline → tokens → text, and text → outline. docs/generate.md has examples."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from outlines.checkpoint import verify
from outlines.corpus.lm_tokenizer import load_tokenizer
from outlines.corpus.tokenizer import Tokenizer
from outlines.decoding.completion import complete
from outlines.decoding.decode import Sampler
from outlines.decoding.sample import SamplingConfig
from outlines.decoding.scoring import nll_of_rows
from outlines.devices import choose_precision
from outlines.encoders import MOST_UNREAD, SentenceEncoder, load_encoder
from outlines.errors import OutlinesError, TokenizerError, no_run, quoted
from outlines.hardening import read_json
from outlines.inference import interpolation
from outlines.inference.copies import FILTER, BloomFilter, with_spare
from outlines.inference.correction import correct
from outlines.inference.interpolation import Smoothness, Walk
from outlines.inference.inversion import can_invert
from outlines.inference.neighbours import Neighbour, TrainingSet, nearest_rows, training_set
from outlines.inference.rejection import rejecting
from outlines.metrics.bleu import reconstruction_bleu
from outlines.models.base import BATCH, Draw, TextModel
from outlines.models.registry import load_model
from outlines.pretrained import ENGLISH_BEST_OF, TEMPERATURE, is_shipped, temperature_of


class Sentence(NamedTuple):
    """A generated sentence and, if requested, its scores."""

    text: str
    nll: float | None = None  # -log p(sentence | its vector) under the decoder at temperature 1, nats
    critic_score: float | None = None  # score of the vector; has no unit; compare only scores of the same run

    def data(self) -> dict[str, Any]:
        """Return the fields that are not None as JSON data."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Condition(NamedTuple):
    """The condition of a sentence: another sentence and, if the run has labels, a label."""

    text: str
    label: str | None = None


class Reconstruction(NamedTuple):
    """A sentence and its reconstruction. bleu: 0 to 100. nll: nats, given the sentence's vector. num_targets: with eos."""

    text: str
    rebuilt: str
    bleu: float
    nll: float
    num_targets: int


class Pipeline:
    """A finished run: its model and tokenizer. The encoder and the training sentences are loaded on first use."""

    def __init__(self, run: Path, description: dict[str, Any], model: TextModel, tokenizer: Tokenizer,
                 precision: str = "auto"):
        self.run = run
        self.description = description
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.precision = choose_precision(precision, self.device)
        self.max_len: int = description["corpus"]["max_len"]
        self.greedy = SamplingConfig(temperature=0, max_len=self.max_len)
        self.num_cut = 0  # number of written sentences so far that reached the maximum length
        self.num_unread = 0  # sentences so far of which the encoder cannot read the end, or too many letters (MOST_UNREAD)

    @classmethod
    def load(cls, run: Path, device: torch.device, precision: str = "auto") -> "Pipeline":
        """Return the Pipeline of a finished run (a directory). precision: see `choose_precision`. Raises OutlinesError."""
        if not (run / "run.json").is_file():
            raise no_run(run)
        if not (run / "model").is_dir():
            raise OutlinesError(f"{run}: training has not finished. Continue: `python -m train --resume {quoted(run)}`.")
        if is_shipped(run):
            verify(run, ("run.json", "tokenizer.model", FILTER))
        remedy = "Restore it from a backup, or train again."
        description = read_json(run / "run.json", remedy)
        try:
            expected, max_len = description["hashes"]["tokenizer"], description["corpus"]["max_len"]
            if type(max_len) is not int or max_len < 1:
                raise ValueError(f"max_len is {max_len!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise OutlinesError(f"{run / 'run.json'}: damaged ({error}). {remedy}") from error
        try:
            tokenizer = load_tokenizer(run / "tokenizer.model", str(expected))
        except TokenizerError as error:
            raise OutlinesError(f"{error} `python -m train --resume {quoted(run)}` writes it again.") from error
        model = load_model(run / "model")
        config = model.decoder.config
        if config.vocab_size != tokenizer.vocab_size or config.never_written != tokenizer.special.never_written:
            raise OutlinesError(f"{run}: the model and the tokenizer have different vocabularies. Train again.")
        return cls(run, description, model.to(device), tokenizer, precision)

    @cached_property
    def encoder(self) -> SentenceEncoder | None:
        """The frozen encoder of the run; None for families without one."""
        if (wanted := self.model.frozen_encoder()) is None:
            return None
        encoder = load_encoder(wanted["name"], self.device.type, self.run)
        if encoder.fingerprint != wanted["fingerprint"]:
            raise OutlinesError(f"{self.run}: the encoder {wanted['name']} has changed since training. Install the version "
                                "that run.json names.")
        return encoder

    @cached_property
    def training_set(self) -> TrainingSet:
        return training_set(self.run, self.description)

    @cached_property
    def known_text(self) -> BloomFilter | None:
        """The training sentences of a run that ships with the package; None for other runs."""
        return BloomFilter.read(self.run / FILTER) if is_shipped(self.run) else None

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler(self.model.decoder, bfloat16=self.precision == "bfloat16")

    def rows(self, sentences: Sequence[str], limited: bool = True) -> list[np.ndarray]:
        """Return the token ids of each sentence. Raises OutlinesError if one is empty or, with `limited`, too long."""
        rows = _as_rows(self.tokenizer.encode(sentences))
        for sentence, row in zip(sentences, rows, strict=True):
            shown = repr(sentence[:40] + "…" if len(sentence) > 40 else sentence)
            if not len(row):
                raise OutlinesError(f"{shown} contains no words. Write a sentence.")
            if limited and len(row) > self.max_len:
                raise OutlinesError(f"{shown} has {len(row)} tokens, more than this run's limit of {self.max_len}. "
                                    "Shorten it.")
        return rows

    def checked(self, sentence: str, limited: bool = True) -> str:
        self.rows([sentence], limited)
        return sentence

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Return the sentences' vectors [N, D] for the decoder: scaled outlines, codes, or a VAE's posterior means."""
        if self.model.latent_per_step:
            raise OutlinesError(f"'{self.model.family}' models have a latent per step, not one vector per sentence, so this "
                                "command is not available.")
        return self._vectors(sentences, self.rows(sentences))

    @torch.no_grad()
    def _vectors(self, sentences: Sequence[str], rows: list[np.ndarray]) -> Tensor:
        outlines = None if self.encoder is None else self.model.from_encoder(self._raw_outlines(sentences))
        posterior = self.model.posterior(rows, outlines)
        if posterior is None:
            raise OutlinesError(f"'{self.model.family}' models do not encode sentences, so this command is not available.")
        return posterior[0]

    def _raw_outlines(self, sentences: Sequence[str]) -> Tensor:
        assert self.encoder is not None
        normalized = self.tokenizer.lines(self.tokenizer.encode(sentences))  # normalised like the training sentences
        self.num_unread += sum(max(self.encoder.unread([text])) > MOST_UNREAD for text in normalized)
        return torch.from_numpy(self.encoder.encode(normalized)).to(self.device)

    def mean(self, sentences: Sequence[str]) -> Tensor:
        """Return the mean vector [D] of sentences. The mean is computed in the encoder's units and then normalised."""
        if not sentences:
            raise OutlinesError("There are no sentences to average. Provide at least one sentence.")
        average = self.model.to_encoder(self.encode(sentences)).cpu().double().mean(dim=0)
        return self.model.from_encoder(average.float().to(self.device)[None])[0]

    def analogy(self, a: str, b: str, c: str) -> Tensor:
        """Return the vector [D] of c + b - a, normalised like the encoder's outlines (Mikolov, Yih and Zweig 2013)."""
        of_a, of_b, of_c = self.model.to_encoder(self.encode([a, b, c]))
        return self.model.from_encoder((of_c + of_b - of_a)[None])[0]

    def written(self, ids: list[list[int]], vectors: Tensor | None, scored: bool = False) -> list[Sentence]:
        """Return sentences for token ids. scored: add the NLL (given vectors [B, D] at strength 1) and the critic score."""
        texts = self.tokenizer.lines(ids)
        if not scored:
            return list(map(Sentence, texts))
        nll = nll_of_rows(self.model.decoder, _as_rows(ids), vectors)[0].tolist()
        scores = None if vectors is None else self.model.critic_scores(vectors)
        return list(map(Sentence, texts, nll, [None] * len(ids) if scores is None else scores.tolist()))

    def decode(self, vectors: Tensor, sampling: SamplingConfig | None = None, seed: int = 1, **choice: float) -> list[str]:
        """Return one sentence per vector [N, D]; greedy by default. choice: fields of SamplingConfig, such as drafts."""
        sampling = _single(replace(sampling or self.greedy, **choice))  # type: ignore[arg-type]
        return self.tokenizer.lines(self._counted(self.model.decode(vectors, seed, sampling, self.write), sampling))

    def _counted(self, ids: list[list[int]], sampling: SamplingConfig) -> list[list[int]]:
        self.num_cut += sum(len(row) >= sampling.max_len for row in ids)
        return ids

    def write(self, vectors: Tensor | None, uniforms: Tensor, sampling: SamplingConfig, prefix: str = "") -> list[list[int]]:
        """Return the token ids of one sentence per row of uniforms [N, max_len]. Every sentence starts with `prefix`."""
        write = partial(complete, self.sampler, self.tokenizer, beginning=prefix)
        if sampling.drafts == 1 and not sampling.rounds:
            return write(vectors, uniforms, sampling)
        if vectors is None or self.encoder is None:
            raise OutlinesError(f"{self.model.family!r} models have no frozen encoder, so drafts cannot be compared with an "
                                "outline. Remove --drafts.")
        return correct(self.model, write, self._outlines_of, vectors, uniforms, sampling)

    def _outlines_of(self, ids: list[list[int]]) -> Tensor:
        """Return the outlines [N, D] of written sentences, in the encoder's units. Equal sentences are encoded once."""
        assert self.encoder is not None
        texts = self.tokenizer.lines(ids)
        places = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        encoded = torch.from_numpy(self.encoder.encode(list(places)))
        return encoded[[places[text] for text in texts]].to(self.device)

    def sample(self, num: int = 10, seed: int = 1, source: str | None = None, **choice: float) -> list[str]:
        """Return `num` new sentences. choice: fields of SamplingConfig; the default temperature is `temperature_of`."""
        sampling = SamplingConfig(**{"temperature": temperature_of(self.run), "max_len": self.max_len, **choice})  # type: ignore[arg-type]
        return [sentence.text for sentence in self.sentences(num, seed, sampling, source)]

    def chosen(self, sampling: SamplingConfig) -> SamplingConfig:
        """Return `sampling`. A strength or best_of of None becomes this run's default for new sentences."""
        usual = ENGLISH_BEST_OF if is_shipped(self.run) and sampling.drafts == 1 and not sampling.beam else 1
        best_of = sampling.best_of or usual
        return self.model.chosen(replace(sampling, best_of=best_of))

    def source(self, name: str | None, sampling: SamplingConfig, rejection: float = 1.0) -> Draw:
        """Return a function that samples vectors from a source (None: the family's own). rejection: see `sentences`."""
        draw = self.model.source(name, sampling.noise_scale)
        if rejection != 1 and name and name != (own := self.model.sources[0]):
            raise OutlinesError(f"The critic was trained against the {own}, so rejection does not work with the source "
                                f"{name}. Use only one of the two options.")
        return rejecting(self.model, draw, rejection)

    def around(self, vector: Tensor, radius: float) -> Draw:
        """Return a function that samples vectors near `vector` [D].

        In the encoder's units, a step of length `radius` in a random direction is added to `vector`. The sum is normalised
        like the encoder's outlines.
        """
        if not 0 <= radius <= 1e3:
            raise OutlinesError(f"radius must be from 0 to 1000, not {radius}.")
        centre = self.model.to_encoder(vector)

        def draw(count: int, rng: torch.Generator) -> Tensor:
            directions = functional.normalize(torch.randn(count, len(centre), generator=rng)).to(centre)
            return self.model.from_encoder(centre + radius * directions) if radius else vector.expand(count, -1)

        return draw

    def sentences(self, num: int | None, seed: int, sampling: SamplingConfig, source: str | Draw | None = None, *,
                  prefix: str = "", scored: bool = False, batch_size: int | None = None,
                  rejection: float = 1.0, workers: int = 1) -> Iterator[Sentence]:
        """Yield `num` new sentences (None: without end). With the same options, sentence i depends only on (seed, i).

        source: a name, or a function like the result of `around`. prefix: the beginning of every sentence. batch_size:
        sentences decoded together (None: a suitable number). rejection: average number of sampled vectors per accepted
        vector. workers: number of threads, each of which decodes its own batches. Before you use more than one on a CPU, set
        torch to one thread per operation. Use drafts only with one worker. If a run that ships with the package samples the
        vectors itself, it skips sentences of its training text; then i counts the remaining sentences. For such sentences,
        `SamplingConfig.best_of` is ENGLISH_BEST_OF by default.
        """
        draw = source if callable(source) else self.source(source, sampling, rejection)
        sampling = sampling if callable(source) else self.chosen(sampling)
        if sampling.drafts > 1:
            batch_size = batch_size or max(1, BATCH // sampling.drafts)

        def drawn(num: int | None) -> Iterator[tuple[list[int], Sentence]]:
            """Yield the token ids and the text of the first `num` sentences."""
            batches = self.model.generate(num, seed, sampling, draw, batch_size, workers, partial(self.write, prefix=prefix))
            return ((row, sentence) for ids, vectors in batches
                    for row, sentence in zip(ids, self.written(ids, vectors, scored), strict=True))

        known = None if callable(source) else self.known_text
        if known is None:
            return self._one_by_one(drawn(num), sampling)
        first = None if num is None else with_spare(num)
        # If there are many copies, the first sentences are sampled once more, to reach the ones after them.
        more = () if first is None else islice(drawn(None), first, None)
        return self._one_by_one(islice(known.new(chain(drawn(first), more)), num), sampling)

    def _one_by_one(self, written: Iterable[tuple[list[int], Sentence]], sampling: SamplingConfig) -> Iterator[Sentence]:
        """Yield the sentences of pairs of token ids and sentence. Counts them only when they are used."""
        for row, sentence in written:
            self._counted([row], sampling)
            yield sentence

    def given(self, conditions: Iterable[Condition], num: int = 1, seed: int = 1,
              sampling: SamplingConfig | None = None, source: str | None = None, scored: bool = False,
              batch_size: int | None = None) -> Iterator[tuple[Condition, Sentence]]:
        """Yield (condition, sentence): `num` new sentences per condition, in order. The model must accept conditions."""
        model: Any = self.model
        sampling = _single(sampling or SamplingConfig(TEMPERATURE, max_len=self.max_len))
        if not hasattr(model, "given"):
            raise OutlinesError(f"'{model.family}' models do not accept conditions. Use a run of the family 'conditional'.")
        start = 0
        repeated = (condition for condition in conditions for _ in range(num))
        while chunk := list(islice(repeated, batch_size or BATCH)):
            places = {condition: row for row, condition in enumerate(dict.fromkeys(chunk))}
            outlines = model.from_encoder(self._raw_outlines([text for text, _ in places]))
            labels = torch.tensor([model.number_of(label) for _, label in places], device=self.device)
            rows = model.condition(outlines, labels)[[places[condition] for condition in chunk]]
            noise, uniforms = model.draw_rows(model.generator.draw, start, start + len(chunk), seed, sampling.max_len)
            vectors = model.given(rows, noise * sampling.noise_scale, source)
            ids = self._counted(self.write(vectors, uniforms, model.chosen(sampling)), sampling)
            yield from zip(chunk, self.written(ids, vectors, scored), strict=True)
            start += len(chunk)

    def reconstruct(self, sentences: Sequence[str], sampling: SamplingConfig | None = None) -> list[Reconstruction]:
        """Return the reconstruction of each sentence: encode it and decode its vector; greedy by default."""
        rows = self.rows(sentences)
        vectors = self._vectors(sentences, rows)
        nll, num_targets = nll_of_rows(self.model.decoder, rows, vectors)
        rebuilt = self.decode(vectors, sampling)
        bleu = [reconstruction_bleu([made], [sentence]) for made, sentence in zip(rebuilt, sentences, strict=True)]
        return list(map(Reconstruction, sentences, rebuilt, bleu, nll.tolist(), num_targets.tolist()))

    @property
    def walks(self) -> tuple[str, ...]:
        """Return the names of the walks that this run supports."""
        if self.model.latent_per_step or not self.model.decoder.config.vector_dim:
            return ()
        return tuple(kind for kind in interpolation.WALKS if kind != "noise" or can_invert(self.model))

    def interpolate(self, start: str, end: str, walk: str = "spherical", num: int = 21,
                    sampling: SamplingConfig | None = None) -> Walk:
        """Return a walk between two sentences. num: number of vectors, both ends included.

        For a gradient walk, only the first step depends on `num`: it is 1 / (num - 1) of the distance between the sentences.
        """
        if self.walks and walk not in self.walks:
            raise OutlinesError(f"'{self.model.family}' models have no walk {walk!r}. Choose from {', '.join(self.walks)}.")
        if num < 2:
            raise OutlinesError(f"A walk needs at least 2 vectors, not {num}. Raise num.")
        model, (first, last), rows = self.model, self.encode([start, end]), self.rows([start, end])
        ended = "reached"
        if walk == "linear":
            vectors = interpolation.linear(first, last, num)
        elif walk == "spherical":
            vectors = model.from_encoder(interpolation.spherical(model.to_encoder(first), model.to_encoder(last), num))
        elif walk == "noise" and can_invert(model):
            vectors = interpolation.noise(model, first, last, num)
        else:
            own_nll = float(nll_of_rows(model.decoder, [rows[1]], last[None])[0][0])
            step = float((last - first).norm()) / (num - 1)
            vectors, ended = interpolation.gradient(model.decoder, first, rows[1], own_nll, step,
                                                    lambda vectors: model.from_encoder(model.to_encoder(vectors)))
        nll = [nll_of_rows(model.decoder, [row] * len(vectors), vectors)[0].tolist() for row in rows]
        return Walk(vectors, interpolation.folded(self.decode(vectors, sampling), *nll), ended)

    def smoothness(self, walk: Walk, judge: "Pipeline | None" = None) -> Smoothness:
        """Return the smoothness of a walk. judge: a run of the family lm that computes the NLL (default: the decoder)."""
        sentences = [text for text in walk.sentences if text]
        rows = [row[:self.max_len] for row in _as_rows(self.tokenizer.encode(sentences))]
        vectors = self._vectors(sentences, rows)
        nll, num_targets = judge.language_nll(sentences) if judge else nll_of_rows(self.model.decoder, rows, vectors)
        return interpolation.smoothness(self.model.to_encoder(vectors), nll, num_targets)

    def language_nll(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return -log p(sentence) in nats [N] and the number of targets [N] per sentence; only for runs of the family lm."""
        if self.model.decoder.config.vector_dim:
            raise OutlinesError(f"{self.run}: this is a run of {self.model.family!r}. Use a run of 'lm'.")
        return nll_of_rows(self.model.decoder, _as_rows(self.tokenizer.encode(sentences)))

    def nearest(self, sentences: Sequence[str], num: int = 5) -> list[list[Neighbour]]:
        """Return the `num` training sentences nearest to each sentence, by the cosine of their raw outlines."""
        self.rows(sentences, limited=False)
        training = self.training_set  # loaded first: its errors are more helpful than the error of a missing encoder
        cosines, rows = nearest_rows(self._raw_outlines(sentences).cpu(), training.store, num)
        return [[Neighbour(row, cosine, training.sentences[row]) for cosine, row in zip(*pair, strict=True)]
                for pair in zip(cosines.tolist(), rows.tolist(), strict=True)]


def _single(sampling: SamplingConfig) -> SamplingConfig:
    """Return `sampling`. Raises OutlinesError if it asks for the best of several vectors."""
    if (sampling.best_of or 1) > 1:
        raise OutlinesError("best_of needs several vectors for each sentence, but here the vectors are given. Remove it.")
    return sampling


def _as_rows(ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in ids]
