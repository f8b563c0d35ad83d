"""Search for the training sentences nearest to an outline. The run's cache contains the corpus and its outlines."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from outlines.corpus.prepared import PreparedCorpus, Sentences, cache_of, find_prepared
from outlines.encoders.store import META, OutlineStore, read_sealed
from outlines.errors import OutlinesError
from outlines.pretrained import is_shipped


class Neighbour(NamedTuple):
    """A training sentence. row: index, from 0. cosine: between the raw outlines of this sentence and the query, -1 to 1."""

    row: int
    cosine: float
    text: str


class TrainingSet(NamedTuple):
    """A run's training sentences and their raw outlines, both memory-mapped."""

    sentences: Sentences
    store: OutlineStore


def training_set(run: Path, description: dict[str, Any]) -> TrainingSet:
    """Return the training set of a run. description: the data in run.json. Raises OutlinesError if it is not available."""
    if is_shipped(run):
        raise OutlinesError(f"{run.name}: its training sentences do not ship with the package, so this command is not "
                            "available. Use a run of your own.")
    hashes = description.get("hashes", {})
    cache = cache_of(run, description)
    if "encoder" not in hashes:
        raise OutlinesError(f"{run}: '{description.get('family')}' runs store no outlines of their corpus, so this "
                            "command is not available.")
    if (corpus := find_prepared(cache, hashes.get("corpus"))) is None:
        raise OutlinesError(f"{cache}: the corpus of {run} is missing. Start a run on the same files to prepare it again.")
    sentences = PreparedCorpus(corpus).sentences["train"]
    wanted = {"encoder_fingerprint": hashes["encoder"], "corpus_fingerprint": sentences.fingerprint}
    for meta in sorted(cache.glob(f"outlines-*/{META}")):
        if wanted.items() <= read_sealed(meta).items():
            return TrainingSet(sentences, OutlineStore(meta.parent))
    raise OutlinesError(f"{cache}: the outlines of {run} are missing. Train a run with its corpus and encoder to encode "
                        "them again.")


def nearest_rows(queries: Tensor, store: OutlineStore, num: int, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """Return cosines and indices of the rows nearest to queries [N, D]: [N, min(num, rows)] each, nearest first."""
    queries = functional.normalize(queries.float())
    cosines, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(store), chunk):
        indices = np.arange(start, min(start + chunk, len(store)))
        others = functional.normalize(torch.from_numpy(store.rows(indices)))
        cosines = torch.cat([cosines, queries @ others.T], dim=1)
        rows = torch.cat([rows, torch.from_numpy(indices).expand(len(queries), -1)], dim=1)
        cosines, kept = cosines.topk(min(num, cosines.shape[1]), dim=1)
        rows = rows.gather(1, kept)
    return cosines.clamp(-1, 1), rows
