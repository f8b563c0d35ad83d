"""A model's nll and the use of its vector, under the same keys in every family: on validation, in a report, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlines.checkpoint import read_state
from outlines.decoding.sample import SamplingConfig
from outlines.decoding.sampler import Sampler
from outlines.decoding.scoring import nll_of_rows
from outlines.metrics.collapse import Posterior, other_rows
from outlines.metrics.diagnosis import Diagnosis, StepDiagnosis, diagnose, diagnose_steps
from outlines.metrics.verdicts import GanDiagnosis, Quality, judge_generator, memorised_share
from outlines.models.base import TextModel
from train.data import Dataset

DRAW_SEED = 13
SOURCES = ("generator", "mixture", "gaussian", "real outlines")
"""Of which the adversary's verdict needs figures: the generator, its controls, and what can be reached."""
VALIDATION_DRAWS = 2
"""Draws of a sentence's latents in a validation. One makes a steady ELBO over many sentences; with a second the
importance-weighted nll is a tighter bound than the ELBO, one to watch and not to report."""
NUM_SWAPPED = 500
"""Validation sentences, at most, that are scored with another's vector: the gap's error is hundredths of a nat a token."""
MAX_DIM_ROWS = 256
NUM_DECODED, DECODED_LEN = 256, 64
"""Sentences of a validation that are decoded to see how sure the decoder is of its words, and their longest."""
QUICK_DIM_SCORINGS = 8192
"""Scorings of one sentence, at most, for the gaps of single dimensions at the end of a training: seconds on a CPU."""


def nll_figures(split: str, model: TextModel, rows: Sequence[np.ndarray], outlines: Tensor | None,
                num_draws: int) -> dict[str, float]:
    """The figures of every term of `TextModel.nll_terms`."""
    return term_figures(split, model.nll_terms(rows, outlines, num_draws, torch.Generator().manual_seed(DRAW_SEED)), rows)


def term_figures(split: str, terms: Mapping[str, Tensor], rows: Sequence[np.ndarray]) -> dict[str, float]:
    """Every term [N], by name, as SPLIT/TERM, nats per sentence, and SPLIT/TERM_per_token."""
    num_targets = sum(len(row) + 1 for row in rows)
    figures = {}
    for name, values in terms.items():
        figures[f"{split}/{name}_per_token"] = float(values.sum()) / num_targets
        figures[f"{split}/{name}"] = float(values.mean())
    return figures


def swapped_gap(model: TextModel, rows: Sequence[np.ndarray], vectors: Tensor, own_nll: Tensor) -> float:
    """The latent gap per token (`latent_gap`) of the first sentences, whose nll given these very vectors [N] is known."""
    rows, vectors, own_nll = rows[:NUM_SWAPPED], vectors[:NUM_SWAPPED], own_nll[:NUM_SWAPPED]
    others = other_rows(len(rows), 1, torch.Generator().manual_seed(DRAW_SEED))[0]
    nll, num_targets = nll_of_rows(model.decoder, rows, vectors[others])
    return float((nll - own_nll.numpy()).sum() / num_targets.sum())


def held_out(data: Dataset, split: str, num: int, seed: int = 0) -> tuple[list[np.ndarray], Tensor | None, list[str]]:
    """Token ids, scaled outlines (None where the run has none) and text of at most `num` sentences of a split."""
    rows = data.sample_rows(split, num, seed)
    return data.corpus.tokens[split].rows(rows), data.outlines(split, rows) if data.stores else None, data.text(split, rows)


def diagnose_vector(model: TextModel, data: Dataset, num: int, directory: Path, quick: bool) -> Diagnosis | None:
    """What becomes of the vector, on at most `num` sentences of the test split; None where the decoder takes none.

    directory: the run's; the probes that training left there tell of drift.
    """
    tokens, outlines, _ = held_out(data, "test", num, seed=1)
    rng, max_len = torch.Generator().manual_seed(DRAW_SEED), data.corpus.meta["max_len"]
    if model.latent_per_step:
        steps, prior = model.posterior_steps(tokens, rng), model.vectors(len(tokens), rng, model.sources[0])
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
    return min(MAX_DIM_ROWS, max(16, QUICK_DIM_SCORINGS // num_dims)) if quick else MAX_DIM_ROWS


def collapse_figures(diagnosis: Diagnosis) -> dict[str, Any]:
    """The figures of a diagnosis that are about the model as a whole, its verdict, and the verdict in words."""
    figures: dict[str, Any] = {
        "verdict": str(diagnosis.verdict), "words": diagnosis.in_words(), "details": diagnosis.details(),
        "test/active_units": diagnosis.active_units,
        "test/latent_gap_per_token": diagnosis.gap.per_token, "test/distinct_outputs": diagnosis.output_change.distinct,
        "test/output_change": diagnosis.output_change.edit_distance}
    if diagnosis.gap_prior is not None:
        figures["test/prior_gap_per_token"] = diagnosis.gap_prior.per_token
    if diagnosis.mutual_information is not None:
        figures |= {"test/kl": diagnosis.kl, "test/mutual_information": diagnosis.mutual_information.nats,
                    "test/mutual_information_ceiling": diagnosis.mutual_information.ceiling}
    if isinstance(diagnosis, StepDiagnosis):
        figures["test/active_positions"] = diagnosis.active_positions
    return figures


@torch.no_grad()
def decoded_nll(model: TextModel, vectors: Tensor) -> float:
    """Nats per token of what the decoder says of vectors [N, D] at T = 1, by itself, each sentence given its vector.

    How sure the decoder is of its own words: they get less sure, and the figure rises, where a vector is unlike those that
    it has learnt from. Of Multi30k, preset small, 500 vectors each: 1.48 real, 2.10 generator, 2.20 mixture, 2.49 Gaussian.
    """
    uniforms = torch.rand(len(vectors), DECODED_LEN, generator=torch.Generator().manual_seed(DRAW_SEED)).to(vectors.device)
    rows = [np.array(ids, dtype=np.int64) for ids in Sampler(model.decoder)(vectors, uniforms, SamplingConfig())]
    nll, num_targets = nll_of_rows(model.decoder, rows, vectors)
    return float(nll.sum() / num_targets.sum())


def memorised(model: TextModel, data: Dataset, split: str, num: int) -> float:
    """Return `memorised_share` of the model's critic, on at most `num` outlines of each kind; 0 without a critic."""
    training, real = (held_out(data, name, num)[1] for name in ("train", split))
    assert training is not None and real is not None
    fake = model.vectors(len(real), torch.Generator().manual_seed(DRAW_SEED), model.sources[0])
    assert fake is not None
    scores = [model.critic_scores(vectors) for vectors in (training, real, fake)]
    return 0.0 if scores[0] is None else memorised_share(*scores)  # type: ignore[arg-type]


@torch.no_grad()
def diagnose_gan(model: TextModel, data: Dataset, num: int, start: str,
                 rows: Sequence[dict[str, Any]]) -> GanDiagnosis | None:
    """Return the verdict on a generator, on the test split; None without figures of all SOURCES.

    num: maximum number of outlines that the critic scores. start: mixture, gaussian or noise. rows: figures by `source`,
    at one or several temperatures, whose mean NLL counts.
    """
    measured = {row["source"] for row in rows if "outline_recall" in row}
    if not measured.issuperset(SOURCES):
        return None

    def quality(source: str) -> Quality:
        own = [row for row in rows if row["source"] == source]
        return Quality(own[0]["outline_precision"], own[0]["outline_recall"],
                       sum(row["forward_nll_per_token"] for row in own) / len(own))

    generator, mixture, gaussian, real = map(quality, SOURCES)
    return judge_generator(generator, mixture, gaussian, real, {"mixture": mixture, "gaussian": gaussian}.get(start),
                           memorised(model, data, "test", num))


def read_probes(directory: Path) -> list[Posterior]:
    """Posteriors of the probe sentences at a run's last two validations; none where its training left none."""
    if not (directory / "probes").exists():
        return []
    tensors, _ = read_state(directory / "probes")
    return list(zip(tensors["mu"], tensors["logvar"], strict=True))
