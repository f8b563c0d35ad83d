import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import outlines
from outlines.decoding.sample import SamplingConfig
from outlines.errors import OutlinesError
from outlines.inference.pipeline import Pipeline
from outlines.inference.rejection import fit_slope, rejecting, threshold
from outlines.models.base import CannotReject, TextModel
from outlines.models.registry import save_model
from train.__main__ import main
from train.evaluation.sampling import SAMPLING_SEED, Variant, draw


def normal(num: int, mean: float, seed: int) -> torch.Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(seed)) + mean


def test_slope_of_a_log_ratio_in_other_units() -> None:
    # N(1, 1) against N(0, 1): log p(x)/q(x) = x - 1/2, and 1/10 of that a unit of 10 x.
    real, fake = normal(20000, 1, 0), normal(20000, 0, 1)
    assert fit_slope(real, fake) == pytest.approx(1, abs=0.03)
    assert fit_slope(10 * real + 7, 10 * fake + 7) == pytest.approx(fit_slope(real, fake) / 10, rel=1e-4)
    assert fit_slope(fake, real) == pytest.approx(-fit_slope(real, fake), rel=1e-4)


def test_slope_of_equal_or_separated_scores() -> None:
    assert fit_slope(torch.zeros(5), torch.zeros(5)) == 0
    assert 0 < fit_slope(torch.tensor([2.0, 3]), torch.tensor([0.0, 1])) < 100  # separated perfectly


@pytest.mark.parametrize("mean_draws", [1, 1.5, 4, 50])
def test_threshold_accepts_the_given_share(mean_draws: float) -> None:
    ratios = 3 * normal(1000, 0, 2)
    chance = (ratios.double() - threshold(ratios, mean_draws)).clamp(max=0).exp()
    assert float(chance.mean()) == pytest.approx(1 / mean_draws, rel=1e-6)


class OneDimension(TextModel):
    """Draws from N(0, 1); the real distribution is N(1, 1). Needs no decoder."""

    sources = ("own",)

    def vectors(self, num: int, rng: torch.Generator, source: str, noise_scale: float = 1.0) -> torch.Tensor:
        return torch.randn(num, 1, generator=rng)

    def log_density_ratio(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors[:, 0] + 100  # up to a constant

    def shape(self) -> dict[str, object]:
        return {}

    @classmethod
    def from_shape(cls, shape: dict[str, object]) -> "OneDimension":
        return cls()


@pytest.fixture
def one_dimension() -> Iterator[OneDimension]:
    yield OneDimension()


@pytest.mark.parametrize(("mean_draws", "mean"), [(1, 0.0), (20, 1.0)])
def test_accepted_vectors_have_the_real_distribution(one_dimension: OneDimension, mean_draws: float, mean: float) -> None:
    keep = rejecting(one_dimension, lambda num, rng: one_dimension.vectors(num, rng, "own"), mean_draws)
    kept = keep(20000, torch.Generator().manual_seed(5))
    assert kept is not None and len(kept) == 20000
    assert float(kept.mean()) == pytest.approx(mean, abs=0.05) and float(kept.std()) == pytest.approx(1, abs=0.05)


def test_scores_that_are_not_finite_are_an_error(one_dimension: OneDimension) -> None:
    with pytest.raises(CannotReject, match="not finite"):
        rejecting(one_dimension, lambda num, rng: torch.full((num, 1), torch.nan), 2)
    with pytest.raises(OutlinesError, match="from 1 "):
        rejecting(one_dimension, lambda num, rng: torch.zeros(num, 1), 0.5)


@pytest.fixture
def sure(tiny_run: Path) -> Pipeline:
    """A run whose critic separates the outlines, although it was trained for a few steps only."""
    pipeline = outlines.load(tiny_run, "cpu", "float32")  # as an evaluation draws
    pipeline.model.score_slope.fill_(20 / float(pipeline.model.critic_scores(torch.randn(100, 16)).std()))  # type: ignore[operator]
    return pipeline


def test_a_sentence_depends_only_on_seed_and_number(sure: Pipeline) -> None:
    def written(num: int, **choice: object) -> list[str]:
        sampling = SamplingConfig(temperature=0.7, max_len=5)
        return [line.text for line in sure.sentences(num, 3, sampling, **choice)]  # type: ignore[arg-type]

    kept = written(300, rejection=3.0)
    assert kept == written(300, rejection=3.0, batch_size=37) and kept[:20] == written(20, rejection=3.0)
    assert kept != written(300) and written(20, rejection=1.0) == written(20)


def test_accepted_vectors_score_higher(sure: Pipeline) -> None:
    sampling = SamplingConfig(max_len=3)
    every, kept = ([line.critic_score for line in sure.sentences(256, 1, sampling, scored=True, rejection=rejection)]
                   for rejection in (1.0, 4.0))
    assert sum(kept) > sum(every)  # type: ignore[arg-type]


def test_an_evaluation_samples_with_rejection(sure: Pipeline) -> None:
    """The sentences equal the pipeline's at the same seed; the outlines are raw."""
    data = SimpleNamespace(corpus=SimpleNamespace(meta={"max_len": 4}), tokenizer=sure.tokenizer, scaling=sure.model.scaling,
                           stores={"train": None})
    drawn = draw(sure.model, data, Variant("generator", rejection=3.0), 1.0, 30)  # type: ignore[arg-type]
    expected = sure.sentences(30, SAMPLING_SEED, SamplingConfig(max_len=4), rejection=3.0)
    assert drawn.text == [line.text for line in expected] and drawn.outlines is not None
    assert drawn.text != draw(sure.model, data, Variant("generator"), 1.0, 30).text  # type: ignore[arg-type]
    assert torch.allclose(drawn.outlines.norm(dim=1), torch.ones(30), atol=1e-4)


@pytest.mark.full
def test_evaluation_has_rows_of_its_own_for_rejection(sure: Pipeline, tiny_run: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    save_model(run / "model", sure.model)
    assert main(["evaluate", str(run), "--sources", "generator", "--temperatures", "1", "--num-samples", "40", "--encoder",
                 "none", "--reverse-steps", "2", "--rejection", "4", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| outlines")]
    whole = next(line for line in rows if line.startswith("| outlines  "))
    rejected = next(line for line in rows if line.startswith("| outlines, rejection 4"))
    assert whole.split("|")[3:] != rejected.split("|")[3:]


def test_rejection_without_a_useful_critic_is_an_error(sure: Pipeline) -> None:
    with pytest.raises(OutlinesError, match="rejection does not work with the source mixture"):
        next(sure.sentences(1, 1, SamplingConfig(), "mixture", rejection=2.0))
    sure.model.score_slope.fill_(-1)  # type: ignore[operator]
    with pytest.raises(CannotReject, match="does not separate real from generated"):
        next(sure.sentences(1, 1, SamplingConfig(), rejection=2.0))
