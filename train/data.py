"""From a configuration to batches. The prepared corpus and its outlines are computed once and stored in a cache."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlines.causal_lm import find_causal_lm, is_causal_lm
from outlines.checkpoint import short_hash, verify
from outlines.corpus import grammar
from outlines.corpus.batching import BatchOrder, TokenBatch, collate
from outlines.corpus.formats import CorpusError, require_file
from outlines.corpus.lm_tokenizer import LMTokenizer, load_tokenizer
from outlines.corpus.pairs import Pairing, Pairs, load_pairing
from outlines.corpus.prepared import PreparedCorpus, find_prepared, prepare_corpus
from outlines.corpus.reading import SPLITS, Member, ReadingReport, fingerprint, read_corpus, split_of
from outlines.corpus.tokenizer import Tokenizer
from outlines.encoders import SentenceEncoder, load_encoder, unread_notes
from outlines.encoders.store import OutlineStore, encode_shards, finish_store
from outlines.models.base import TextModel
from outlines.models.outlines import OutlineDecoding
from outlines.networks.scaling import Scaling
from outlines.pretrained import SCENES_MODEL
from train.config import CorpusConfig
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks
from train.runtime.run_directory import locked, read_run

EMBEDDED = "embedded grammar"
EMBEDDED_SEED = 20181203  # seed of the built-in corpus, the same for every run


@dataclass(frozen=True)
class Batch:
    """The rows of a global batch that this rank trains on. A rank is one of the training processes (runtime/ranks.py)."""

    rows: np.ndarray  # indices [B] of the rows in the training split
    read_tokens: Callable[[], TokenBatch]
    outlines: Tensor | None  # [B, D] in scaled units (networks/scaling.py)
    num_rows: int  # number of sentences in the *global* batch; losses are divided by this number
    num_targets: int  # number of predicted tokens in the global batch, including eos
    ranks: Ranks

    @cached_property
    def tokens(self) -> TokenBatch:
        """The sentences as padded token ids. They are read on first use, because steps of a GAN do not need them."""
        return self.read_tokens()

    def own(self, values: Any) -> Any:
        """Return this rank's rows of `values`, which has one row per row of the global batch.

        Random values are drawn for the whole global batch, so they do not depend on the number of ranks.
        """
        return self.ranks.own(values)

    def share(self, constant: float) -> Tensor:
        """Return `constant` divided by the number of ranks, because the log sums each term over the ranks."""
        return torch.tensor(constant / self.ranks.world)


LEAST_ROWS, LEAST_GROUPS = 6, 4  # smallest size of a split: in sentences (k-NN with k = 5 needs 6); with pairs, in groups
MOST_HELD_OUT = 0.25  # largest fraction of a small corpus that is held out for each of validation and test
NUM_READ = 2_000  # number of training sentences that are checked for text that the encoder cannot read
MAX_FITTED_ROWS = 200_000  # maximum number of outlines to fit the generator's start to; limits the memory


class Dataset:
    """A prepared corpus and, for families that need them, the outlines of its splits."""

    def __init__(self, corpus: PreparedCorpus, stores: dict[str, OutlineStore], encoder: SentenceEncoder | None,
                 device: torch.device, pairing: Pairing | None = None):
        self.corpus, self.tokenizer, self.pairing = corpus, corpus.tokenizer, pairing
        self.embedded = corpus.meta["source"].startswith(EMBEDDED)
        self.stores, self.normalized, self.device = stores, encoder is not None and encoder.normalized, device
        rows = self.sample_rows("train", NUM_READ)
        unread = unread_notes(encoder, self.text("train", rows), stores["train"].rows(rows)) if encoder else []
        self.notes, self.losses = [*corpus.notes(), *unread], {**corpus.meta["losses"], "encoder": unread}

    @cached_property
    def scaling(self) -> Scaling:
        train = self.stores["train"]
        return Scaling(torch.tensor(train.mean, dtype=torch.float32), train.scale).to(self.device)

    def hashes(self, encoder: bool = True) -> dict[str, str]:
        """Return the hashes of corpus and tokenizer by name. encoder: add the encoder's hash if there are outlines."""
        of_encoder = {"encoder": self.stores["train"].encoder_fingerprint} if self.stores and encoder else {}
        return {"corpus": self.corpus.fingerprint, "tokenizer": self.tokenizer.fingerprint, **of_encoder}

    def report_losses(self, reporter: Reporter) -> None:
        for note in [] if reporter.noted else self.notes:  # cut sentences are normal: no warning
            (reporter.line if " are cut to --max-len " in note else reporter.warning)(note)
        reporter.noted = True

    def set_scaling(self, model: OutlineDecoding) -> None:
        """Copy the dataset's scaling into a model, move the model to the device, and then use the scaling of the model."""
        model.scaling.load_state_dict(self.scaling.state_dict())
        self.use_scaling(model.to(self.device))

    def use_scaling(self, model: TextModel) -> None:
        """Scale outlines as this model does. A decoder from a run on another corpus needs the scaling of that corpus."""
        if isinstance(model, OutlineDecoding):
            self.scaling = model.scaling

    def pairs(self, split: str) -> Pairs:
        """Return the pairs of a split, for families that learn from pairs."""
        assert self.pairing is not None, "this dataset has no pairs"
        return self.pairing.splits[split]

    def num_rows(self, split: str) -> int:
        return len(self.corpus.tokens[split])

    def outlines(self, split: str, rows: np.ndarray) -> Tensor:
        """Return the outlines [B, D] of these rows in scaled units."""
        return self.scaling.scale(torch.from_numpy(self.stores[split].rows(rows)).to(self.device))

    def sample_rows(self, split: str, num: int, seed: int = 0) -> np.ndarray:
        """Return the sorted indices of at most `num` rows of a split, chosen at random without replacement."""
        total = self.num_rows(split)
        return np.sort(np.random.default_rng(seed).permutation(total)[:num])

    def text(self, split: str, rows: np.ndarray) -> list[str]:
        return [self.corpus.sentences[split][int(row)] for row in rows]

    def order(self, batch_size: int, like_length: bool, seed: int) -> BatchOrder:
        tokens = self.corpus.tokens["train"]
        return BatchOrder(len(tokens), batch_size, seed, tokens.lengths if like_length else None)

    def batch(self, rows: np.ndarray, ranks: Ranks) -> Batch:
        """Return this rank's part of a training batch. rows: indices of the rows of the global batch."""
        tokens = self.corpus.tokens["train"]
        own = ranks.own(rows)
        outlines = self.outlines("train", own) if self.stores else None
        return Batch(own, lambda: collate(tokens.rows(own), self.tokenizer.special).to(self.device), outlines, len(rows),
                     int(tokens.lengths[rows].sum()) + len(rows), ranks)


def open_dataset(config: CorpusConfig, encoder: str | None, cache: Path, device: torch.device, ranks: Ranks,
                 reporter: Reporter, run: Path | None = None) -> Dataset:
    """Return the dataset. Prepares the corpus and encodes its splits, or loads them from the cache.

    encoder: name of the encoder; None: no outlines. run: directory of the run, if it exists. If a corpus file is missing,
        the hash in run.json identifies the prepared corpus in the cache.
    """
    known = read_run(run).get("hashes", {}).get("corpus") if run else None
    loaded = load_encoder(encoder, device.type, run if known else None) if encoder else None  # first: it can be missing
    paths = [*config.corpus, *config.valid, *config.test, "" if is_causal_lm(config.tokenizer) else config.tokenizer]
    found = find_prepared(cache, known) if known and not all(Path(path).exists() for path in paths) else None
    config = config if found else fit_splits(config, reporter)
    directory = ranks.agree(str(found or _prepare(config, cache, reporter)) if ranks.first else "")
    corpus = PreparedCorpus(Path(directory))
    stores: dict[str, OutlineStore] = {}
    if loaded:
        for split in SPLITS:
            sentences = corpus.sentences[split]
            key = short_hash({"corpus": sentences.fingerprint, "encoder": loaded.fingerprint})
            store = cache / f"outlines-{key}"
            if not ranks.agree((store / "meta.json").exists()):
                store.mkdir(parents=True, exist_ok=True)
                # Another run that needs the same outlines waits here.
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
            stores[split].check_current(sentences, loaded)
            stores[split].encoder["name"] = loaded.name  # the encoder's directory may have moved
    pairing = None
    if config.are_pairs:
        pairs = cache / f"pairs-{corpus.fingerprint[:16]}"
        if ranks.first:  # the first call reads the files and stores the pairs
            load_pairing(config, pairs)
        ranks.barrier()
        pairing = load_pairing(config, pairs)
    return Dataset(corpus, stores, loaded, device, pairing)


def embedded_source() -> str:
    """Return a text that identifies this version of the built-in corpus."""
    return f"{EMBEDDED} {grammar.scenes().entropy():.12f}"


def _members(config: CorpusConfig, report: ReadingReport, sources: Sequence[str] = SPLITS) -> Iterator[Member]:
    if config.corpus:
        yield from read_corpus(config, report, sources)
    elif "train" in sources:
        for number, sentence in enumerate(grammar.sentences(config.num_sentences, EMBEDDED_SEED)):
            yield Member(split_of(sentence, config.valid_fraction, config.test_fraction), sentence, number, "")


def fit_splits(config: CorpusConfig, reporter: Reporter) -> CorpusConfig:
    """Return the configuration, with larger held-out fractions if validation or test split would be too small.

    Raises CorpusError if larger fractions do not suffice.
    """
    config.check()
    if config.tokenizer and not is_causal_lm(config.tokenizer):
        require_file(Path(config.tokenizer))
    pairs = config.are_pairs
    least, unit = (LEAST_GROUPS, "groups of two or more sentences") if pairs else (LEAST_ROWS, "sentences")
    while True:
        counts, group, size = Counter[str](), ("", -1), 0
        for source in SPLITS:
            filled = [split for split in SPLITS if split == source or (source == "train" and not getattr(config, split, ""))]
            for member in _members(config, ReadingReport(), [source]):
                group, size = (source, member.group), size + 1 if (source, member.group) == group else 1
                counts[member.split] += size == (2 if pairs else 1)
                if all(counts[split] >= least for split in filled):
                    break
        short = [split for split in SPLITS if counts[split] < least]
        if not short:
            return config
        fractions = {f"{split}_fraction": getattr(config, f"{split}_fraction") for split in short if split != "train"}
        given = [f"--{split}" for split in short if getattr(config, split, "")]
        if "train" in short or given or max(fractions.values()) >= MOST_HELD_OUT:
            found = ", ".join(f"{split} {counts[split]}" for split in short)
            advice = f"Add {unit} to {given[0]}" if given else f"Use at least {10 * least} different {unit}"
            raise CorpusError(f"Too few {unit} ({found}); each split needs {least}. {advice}.")
        raised = {name: min(MOST_HELD_OUT, 1.5 * max(value, least / counts.total())) for name, value in fractions.items()}
        reporter.line("small corpus: " + ", ".join(f"{name} raised to {value:.2f}" for name, value in raised.items()))
        config = dataclasses.replace(config, **raised)


def _prepare(config: CorpusConfig, cache: Path, reporter: Reporter) -> Path:
    given: Tokenizer | None = None
    # The tokenizer of a language model is loaded below, only if the corpus must be prepared.
    lm = find_causal_lm(config.tokenizer) if is_causal_lm(config.tokenizer) else None
    if config.tokenizer and not lm:
        given = load_tokenizer(Path(config.tokenizer))
    elif not (config.tokenizer or config.corpus or config.vocab_size or config.lowercase):
        given = load_tokenizer(SCENES_MODEL / "tokenizer.model", verify(SCENES_MODEL)["tokenizer.model"])
    source = fingerprint(config) if config.corpus else f"{embedded_source()} x {config.num_sentences}"
    key = short_hash({"source": source, "vocab_size": config.vocab_size, "lowercase": config.lowercase,
                      "max_len": config.max_len, "tokenizer": found.fingerprint if (found := lm or given) else "",
                      "fractions": [config.valid_fraction, config.test_fraction], "version": 4})
    directory = cache / f"corpus-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if directory.exists() else locked(cache, reporter.line):
        if directory.exists():  # Another run may have prepared the corpus in the meantime.
            return directory
        given = LMTokenizer.of_language_model(lm) if lm else given
        report = ReadingReport()
        pairs = ((member.split, member.sentence) for member in _members(config, report))
        with reporter.bar("tokenise", "sentences") as progress:
            prepare_corpus(pairs, directory, source=source, vocab_size=config.vocab_size or None, lowercase=config.lowercase,
                           max_len=config.max_len, tokenizer=given, report=report, progress=progress)
    if config.corpus:
        reporter.line(report.summary())
    return directory
