"""From a configuration to batches: prepare the corpus and encode its outlines, once, into a cache."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlines.corpus import grammar
from outlines.corpus.batching import BatchOrder, TokenBatch, collate
from outlines.corpus.pairs import Pairing, load_pairing
from outlines.corpus.prepared import PreparedCorpus, find_prepared, prepare_corpus
from outlines.corpus.reading import SPLITS, ReadingReport, fingerprint, read_corpus, split_of
from outlines.corpus.tokenizer import SentencePieceTokenizer
from outlines.encoders import load_encoder
from outlines.encoders.store import OutlineStore, encode_shards, finish_store
from outlines.models.outlines import OutlineDecoding
from outlines.networks.scaling import Scaling
from train.config import CorpusConfig
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks
from train.runtime.run_directory import locked

EMBEDDED = "embedded grammar"
EMBEDDED_SEED = 20181203  # seed of the embedded corpus, the same for every run
EMBEDDED_VOCAB_SIZE = 3000  # SentencePiece pieces for the embedded corpus, in which nearly every word is one piece


@dataclass(frozen=True)
class Batch:
    """This rank's rows of a global batch."""

    read_tokens: Callable[[], TokenBatch]
    outlines: Tensor | None  # [B, D] in scaled units
    num_rows: int  # sentences of the *global* batch, by which a loss must be divided
    num_targets: int
    ranks: Ranks

    @cached_property
    def tokens(self) -> TokenBatch:
        """Return the sentences; they are collated only if a step asks for them, which a GAN's step does not."""
        return self.read_tokens()

    def own(self, values: Any) -> Any:
        """Return this rank's rows of values that were made for the global batch, so that they do not depend on ranks."""
        return self.ranks.own(values)

    def share(self, constant: float) -> Tensor:
        """Return a constant as this rank's part of a global mean, for the log."""
        return torch.tensor(constant / self.ranks.world)


MAX_FITTED_ROWS = 200_000  # maximum outlines for fits (whitening, the generator's start), which bounds memory


class Dataset:
    """A prepared corpus and, for families that need them, the outlines of its splits."""

    def __init__(self, corpus: PreparedCorpus, stores: dict[str, OutlineStore], normalized: bool, device: torch.device,
                 whiten: bool = False, pairing: Pairing | None = None):
        self.corpus, self.tokenizer, self.pairing = corpus, corpus.tokenizer, pairing
        self.embedded = corpus.meta["source"].startswith(EMBEDDED)
        self.stores, self.normalized, self.device = stores, normalized, device
        self.scaling = None
        if stores:
            train = stores["train"]
            self.scaling = Scaling(torch.tensor(train.mean, dtype=torch.float32), train.scale)
            if whiten:
                rows = self.sample_rows("train", MAX_FITTED_ROWS)
                self.scaling = Scaling.fit(torch.from_numpy(train.rows(rows)), whiten=True)
            self.scaling.to(device)

    def hashes(self, encoder: bool = True) -> dict[str, str]:
        """Return the hashes of corpus, tokenizer and, with outlines, encoder, by name."""
        of_encoder = {"encoder": self.stores["train"].encoder_fingerprint} if self.stores and encoder else {}
        return {"corpus": self.corpus.fingerprint, "tokenizer": self.tokenizer.fingerprint, **of_encoder}

    def set_scaling(self, model: OutlineDecoding) -> None:
        """Copy the scaling into a model and move the model to the device."""
        assert self.scaling is not None
        model.scaling.load_state_dict(self.scaling.state_dict())
        model.to(self.device)

    def num_rows(self, split: str) -> int:
        return len(self.corpus.tokens[split])

    def outlines(self, split: str, rows: np.ndarray) -> Tensor:
        """Return outlines [B, D] in scaled units."""
        assert self.scaling is not None, "this dataset has no outlines"
        return self.scaling.scale(torch.from_numpy(self.stores[split].rows(rows)).to(self.device))

    def sample_rows(self, split: str, num: int, seed: int = 0) -> np.ndarray:
        """Return at most `num` rows of a split, drawn without replacement and sorted."""
        total = self.num_rows(split)
        return np.sort(np.random.default_rng(seed).permutation(total)[:num])

    def text(self, split: str, rows: np.ndarray) -> list[str]:
        return [self.corpus.sentences[split][int(row)] for row in rows]

    def order(self, batch_size: int, like_length: bool, seed: int) -> BatchOrder:
        tokens = self.corpus.tokens["train"]
        return BatchOrder(len(tokens), batch_size, seed, tokens.lengths if like_length else None)

    def batch(self, rows: np.ndarray, ranks: Ranks) -> Batch:
        """Return this rank's part of the training batch with these rows."""
        tokens = self.corpus.tokens["train"]
        own = ranks.own(rows)
        outlines = self.outlines("train", own) if self.stores else None
        return Batch(lambda: collate(tokens.rows(own), self.tokenizer.special).to(self.device), outlines, len(rows),
                     int(tokens.lengths[rows].sum()) + len(rows), ranks)


def open_dataset(config: CorpusConfig, encoding: tuple[str, bool] | None, cache: Path, device: torch.device, ranks: Ranks,
                 reporter: Reporter, known: str = "") -> Dataset:
    """Prepare the corpus and encode its splits, or load both from the cache.

    encoding: see ModelOptions. known: fingerprint of the prepared corpus, which replaces files that have moved.
    """
    encoder, whiten = encoding or (None, False)
    directory = ranks.agree(str(_prepare(config, cache, reporter, known)) if ranks.first else "")
    corpus = PreparedCorpus(Path(directory))
    stores: dict[str, OutlineStore] = {}
    normalized = False
    if encoder is not None:
        loaded = load_encoder(encoder, device.type)
        normalized = loaded.normalized
        for split in SPLITS:
            sentences = corpus.sentences[split]
            key = _key({"corpus": sentences.fingerprint, "encoder": loaded.fingerprint})
            store = cache / f"outlines-{key}"
            if not ranks.agree((store / "meta.json").exists()):
                store.mkdir(parents=True, exist_ok=True)
                # Another run that needs the same outlines waits for them.
                with locked(store, reporter.line) if ranks.first else contextlib.nullcontext():
                    ranks.barrier()
                    with reporter.bar(f"encode {split}", "sentences") as progress:
                        encode_shards(sentences, loaded, store, corpus_fingerprint=sentences.fingerprint,
                                      rank=ranks.rank, world=ranks.world, progress=progress)
                    ranks.barrier()
                    if ranks.first:
                        finish_store(store)
                    ranks.barrier()
            stores[split] = OutlineStore(store)
    pairing = load_pairing(config.files()) if config.corpus and config.files().are_pairs else None
    return Dataset(corpus, stores, normalized, device, whiten, pairing)


def _key(data: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _prepare(config: CorpusConfig, cache: Path, reporter: Reporter, known: str) -> Path:
    paths = [*config.corpus, *config.valid, *config.test, config.tokenizer]
    if known and not all(Path(path).exists() for path in paths) and (found := find_prepared(cache, known)):
        return found
    given = SentencePieceTokenizer.load(Path(config.tokenizer)) if config.tokenizer else None
    files = config.files() if config.corpus else None
    source = fingerprint(files) if files else f"{EMBEDDED} {grammar.scenes().entropy():.12f} x {config.num_sentences}"
    vocab_size = config.vocab_size or (0 if files or given else EMBEDDED_VOCAB_SIZE)
    key = _key({"source": source, "vocab_size": vocab_size, "lowercase": config.lowercase,
                "max_len": config.max_len, "tokenizer": given.fingerprint if given else "",
                "fractions": [config.valid_fraction, config.test_fraction], "version": 1})
    directory = cache / f"corpus-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if directory.exists() else locked(cache, reporter.line):
        if directory.exists():  # Another run may have made it in the meantime.
            return directory
        report = ReadingReport()
        if files:
            pairs = ((member.split, member.sentence) for member in read_corpus(files, report))
        else:
            pairs = ((split_of(sentence, config.valid_fraction, config.test_fraction), sentence)
                     for sentence in grammar.sentences(config.num_sentences, EMBEDDED_SEED))
        with reporter.bar("tokenise", "sentences") as progress:
            corpus = prepare_corpus(pairs, directory, source=source, vocab_size=vocab_size or None,
                                    lowercase=config.lowercase, max_len=config.max_len, tokenizer=given,
                                    progress=progress)
    if files:
        reporter.line(report.summary())
    cut = sum(split["cut"] for split in corpus.meta["splits"].values())
    if cut:
        reporter.line(f"{cut} sentences were cut at {config.max_len} tokens (--max-len)")
    return directory
