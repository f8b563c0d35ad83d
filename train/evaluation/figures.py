"""Metrics of a model: nll, use of the vector, critic. Names are the same for all families and reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlines.checkpoint import read_state
from outlines.decoding.decode import Sampler
from outlines.decoding.sample import SamplingConfig
from outlines.decoding.scoring import nll_of_rows
from outlines.metrics.collapse import Posterior, other_rows
from outlines.metrics.collapse_verdict import Diagnosis, diagnose, diagnose_steps
from outlines.metrics.gan_verdict import GanDiagnosis, Quality, judge_generator, memorised_share
from outlines.models.base import TextModel
from train.data import Dataset

DRAW_SEED = 13
SOURCES = ("generator", "mixture", "gaussian", "real outlines")  # the sources that the verdict on a generator compares
VALIDATION_DRAWS = 2  # draws of a sentence's latents; with 2, the importance-weighted nll is a tighter bound than the ELBO
NUM_SWAPPED = 500  # validation sentences to score with a swapped vector; the error of the gap is about 0.01 nats per token
MAX_DIM_ROWS = 256
NUM_DECODED, DECODED_LEN = 256, 64  # number of sentences, and their maximum length in tokens, for `decoded_nll`
QUICK_DIM_SCORINGS = 8192  # scored sentences for the gaps of all dimensions in the quick report; seconds on a CPU
FULL_DIM_SCORINGS = 32768  # the same for `evaluate`; a minute or two on a CPU


def nll_figures(split: str, model: TextModel, rows: Sequence[np.ndarray], outlines: Tensor | None,
                num_draws: int) -> dict[str, float]:
    """Return the means of all terms of `TextModel.nll_terms`, with the keys of `term_figures`."""
    return term_figures(split, model.nll_terms(rows, outlines, num_draws, torch.Generator().manual_seed(DRAW_SEED)), rows)


def term_figures(split: str, terms: Mapping[str, Tensor], rows: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the mean of each term [N] as SPLIT/TERM (nats per sentence) and SPLIT/TERM_per_token."""
    num_targets = sum(len(row) + 1 for row in rows)
    return {f"{split}/{name}": float(values.mean()) for name, values in terms.items()} | {
        f"{split}/{name}_per_token": float(values.sum()) / num_targets for name, values in terms.items()}


def swapped_gap(model: TextModel, rows: Sequence[np.ndarray], vectors: Tensor, own_nll: Tensor) -> float:
    """Return the rise of the nll, in nats per token, if NUM_SWAPPED sentences are scored with vectors of other sentences.

    own_nll: nll [N] of the sentences with their own vectors.
    """
    rows, vectors, own_nll = rows[:NUM_SWAPPED], vectors[:NUM_SWAPPED], own_nll[:NUM_SWAPPED]
    others = other_rows(len(rows), 1, torch.Generator().manual_seed(DRAW_SEED))[0]
    nll, num_targets = nll_of_rows(model.decoder, rows, vectors[others])
    return float((nll - own_nll.numpy()).sum() / num_targets.sum())


def held_out(data: Dataset, split: str, num: int, seed: int = 0) -> tuple[list[np.ndarray], Tensor | None, list[str]]:
    """Return token ids, scaled outlines (None if the run has none) and text of at most `num` sentences of a split."""
    rows = data.sample_rows(split, num, seed)
    return data.corpus.tokens[split].rows(rows), data.outlines(split, rows) if data.stores else None, data.text(split, rows)


def diagnose_vector(model: TextModel, data: Dataset, num: int, directory: Path, quick: bool) -> Diagnosis | None:
    """Return the diagnosis of the vector on at most `num` test sentences; None if the decoder reads no vector.

    directory: of the run. quick: use fewer sentences for the gaps of single dimensions.
    """
    tokens, outlines, _ = held_out(data, "test", num, seed=1)
    rng, max_len = torch.Generator().manual_seed(DRAW_SEED), data.corpus.meta["max_len"]
    if model.latent_per_step:
        steps, prior = next(model.draws(tokens, 1, rng)).latent, model.vectors(len(tokens), rng, model.sources[0])
        assert prior is not None
        return diagnose_steps(model.decoder, tokens, steps, prior, max_len=max_len,
                              num_dim_rows=_num_dim_rows(steps.mu.shape[2], quick))
    posterior = model.posterior(tokens, outlines)
    if posterior is None:
        return None
    mu, logvar = posterior
    prior = model.vectors(len(mu), rng, model.sources[0]) if model.sources else None
    return diagnose(model.decoder, tokens, mu, logvar, read_probes(directory), prior, max_len=max_len,
                    num_dim_rows=_num_dim_rows(mu.shape[1], quick))


def _num_dim_rows(num_dims: int, quick: bool) -> int:
    return min(MAX_DIM_ROWS, max(16, (QUICK_DIM_SCORINGS if quick else FULL_DIM_SCORINGS) // num_dims))


def collapse_figures(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the verdict of a diagnosis, its explanation in words, and the metrics of the whole model."""
    information, change = diagnosis.mutual_information, diagnosis.output_change
    figures = {"verdict": str(diagnosis.verdict), "words": diagnosis.in_words(), "details": diagnosis.details(),
               "test/active_units": diagnosis.active_units, "test/active_positions": diagnosis.active_positions,
               "test/latent_gap_per_token": diagnosis.gap.per_token,
               "test/prior_gap_per_token": diagnosis.gap_prior and diagnosis.gap_prior.per_token,
               "test/distinct_outputs": change.distinct, "test/output_change": change.edit_distance,
               "test/kl": information and diagnosis.kl, "test/mutual_information": information and information.nats,
               "test/mutual_information_ceiling": information and information.ceiling}
    return {name: value for name, value in figures.items() if value is not None}


@torch.no_grad()
def decoded_nll(model: TextModel, vectors: Tensor) -> float:
    """Return the nll per token that a decoder gives its own samples (T = 1) from vectors [N, D]. Low for real outlines."""
    uniforms = torch.rand(len(vectors), DECODED_LEN, generator=torch.Generator().manual_seed(DRAW_SEED)).to(vectors.device)
    rows = [np.array(ids, dtype=np.int64) for ids in Sampler(model.decoder)(vectors, uniforms, SamplingConfig())]
    nll, num_targets = nll_of_rows(model.decoder, rows, vectors)
    return float(nll.sum() / num_targets.sum())


def memorised(model: Any, data: Dataset, num: int) -> float:
    """Return the critic memorisation (`memorised_share`) on at most `num` outlines of each set; 0 without a critic."""
    if not model.has_critic:
        return 0.0
    training, real = (data.outlines(split, data.sample_rows(split, num)) for split in ("train", "test"))
    fake = model.vectors(len(real), torch.Generator().manual_seed(DRAW_SEED), model.sources[0])
    return memorised_share(*map(model.critic_scores, (training, real, fake)))


@torch.no_grad()
def diagnose_gan(model: TextModel, data: Dataset, num: int, start: str,
                 rows: Sequence[dict[str, Any]]) -> GanDiagnosis | None:
    """Return the verdict on a generator; None if one of SOURCES has no row with outline metrics. rows: of the report.

    num: number of outlines for the critic memorisation. start: the run's option --start.
    """
    if not {row["source"] for row in rows if "outline_recall" in row}.issuperset(SOURCES):
        return None

    shared = set.intersection(*({row.get("temperature") for row in rows if row["source"] == source} for source in SOURCES))

    def quality(source: str) -> Quality:
        own = [row for row in rows if row["source"] == source and row.get("temperature") in shared]
        return Quality(own[0]["outline_precision"], own[0]["outline_recall"],
                       sum(row["forward_nll_per_token"] for row in own) / len(own))

    generator, mixture, gaussian, real = map(quality, SOURCES)
    return judge_generator(generator, mixture, gaussian, real, {"mixture": mixture, "gaussian": gaussian}.get(start),
                           memorised(model, data, num))


def read_probes(directory: Path) -> list[Posterior]:
    """Return the posteriors of the probe sentences at a run's last two validations; empty if there are none."""
    if not (directory / "probes").exists():
        return []
    tensors, _ = read_state(directory / "probes")
    return list(zip(tensors["mu"], tensors["logvar"], strict=True))
