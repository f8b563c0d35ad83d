"""The families' training steps, from inside."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from outlines import load
from outlines.decoding.sample import SamplingConfig
from outlines.metrics.outlines import frechet_distance, knn_precision_recall
from outlines.models.outlines import OutlineModel
from outlines.models.registry import families, load_model, save_model
from outlines.networks.losses import one_centred_penalty, score_gradients, zero_centred_penalty
from outlines.networks.transformer import TransformerDecoder
from train.__main__ import main as train
from train.config import RunConfig, resolve
from train.data import Dataset, open_dataset
from train.evaluation.figures import decoded_nll, held_out
from train.method import Update, all_methods, find_method
from train.methods.gan_stage import GanStage
from train.methods.outlines import NOISE_SEED, OutlinesMethod
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks


@pytest.fixture(scope="module")
def data(tiny_corpus: Path, recurrent_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    cache, encoder = tmp_path_factory.mktemp("cache"), f"recurrent:{recurrent_encoder}"
    return open_dataset(config(tiny_corpus, {}).corpus, encoder, cache,
                        torch.device("cpu"), Ranks(), Reporter(quiet=True))


def config(corpus: Path, flags: dict[str, object], family: str = "outlines") -> RunConfig:
    method = find_method(family)
    return resolve(family, method.config_class, method.presets, "tiny", None, {"corpus": (str(corpus),), **flags})


def method_of(data: Dataset, corpus: Path, **flags: object) -> OutlinesMethod:
    torch.manual_seed(0)
    method = OutlinesMethod(config(corpus, flags), data, bfloat16=False)
    method.stages[1].begin(lambda *_: None)
    return method


def gan(method: OutlinesMethod) -> GanStage:
    assert isinstance(method.stages[1], GanStage)
    return method.stages[1]


def values(module: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def same(before: list[torch.Tensor], module: nn.Module) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, module.state_dict().values(), strict=True))


def batch(data: Dataset, step: int = 0):  # type: ignore[no-untyped-def]
    return data.batch(data.order(32, False, 1).batch(step), Ranks())


def test_each_phase_moves_its_own_network_alone(data: Dataset, tiny_corpus: Path) -> None:
    method = gan(method_of(data, tiny_corpus))
    update = Update(Ranks(), 1.0)
    generator, critic = values(method.generator), values(method.critic)
    method.critic_step(batch(data), update)
    assert same(generator, method.generator) and not same(critic, method.critic)
    assert all(parameter.grad is None for parameter in method.generator.parameters())
    critic = values(method.critic)
    for parameter in method.critic.parameters():
        parameter.grad = None
    method.generator_step(batch(data), update)
    assert same(critic, method.critic) and not same(generator, method.generator)
    assert all(parameter.grad is None for parameter in method.critic.parameters())
    assert all(parameter.requires_grad for parameter in method.critic.parameters())


@pytest.mark.parametrize("start", ["mixture", "gaussian", "noise"])
@pytest.mark.parametrize("objective", ["r3", "wgan-gp"])
def test_every_objective_from_every_start(data: Dataset, tiny_corpus: Path, start: str, objective: str) -> None:
    method = method_of(data, tiny_corpus, start=start, objective=objective, critic_steps=2)
    controls = [values(method.model.mixture), values(method.model.gaussian), values(method.model.decoder)]
    for step in range(3):
        terms = method.stages[1].step(step, batch(data, step), Update(Ranks(), 1.0))
        assert all(bool(term.isfinite()) for term in terms.values())
    for before, module in zip(controls, (method.model.mixture, method.model.gaussian, method.model.decoder), strict=True):
        assert same(before, module), "the GAN's stage changed a frozen module"
    method.model.eval()
    found = method.stages[1].validate()
    figures = found.figures
    precision, recall = figures["valid/precision"], figures["valid/recall"]
    harmonic = 2 / (1 / precision + 1 / recall) if precision and recall else 0.0
    assert found.criterion == figures["valid/outline_shortfall"] == pytest.approx(1 - harmonic)


@pytest.mark.parametrize("objective", ["r3", "wgan-gp"])
def test_the_penalty_of_a_share_is_that_of_the_first_rows(data: Dataset, tiny_corpus: Path, objective: str) -> None:
    penalties = {}
    for share in (1.0, 0.3):
        method = gan(method_of(data, tiny_corpus, objective=objective, penalty_share=share))
        real = batch(data)
        torch.manual_seed(5)
        penalties[share] = method.critic_step(real, Update(Ranks(), 1.0))["train/gradient_penalty"]
    method = gan(method_of(data, tiny_corpus, objective=objective))
    first = math.ceil(0.3 * len(real.outlines))
    torch.manual_seed(5)
    fake = method.fake(real)
    if objective == "r3":
        parts = [zero_centred_penalty(score_gradients(method.critic, points[:first])[1]) for points in (real.outlines, fake)]
        expected = parts[0] + parts[1]
    else:
        between = torch.lerp(fake, real.outlines, torch.rand(len(fake), 1))
        expected = one_centred_penalty(score_gradients(method.critic, between[:first])[1])
    assert torch.allclose(penalties[0.3], expected.mean(), rtol=1e-4)
    assert not torch.allclose(penalties[1.0], penalties[0.3], rtol=1e-4)


def test_the_generator_starts_as_the_control_it_was_started_at(data: Dataset, tiny_corpus: Path) -> None:
    for start in ("mixture", "gaussian"):
        model = method_of(data, tiny_corpus, start=start, num_offsets=6).model
        assert model.gaussian.config.num_offsets == 0 and model.mixture.config.num_offsets == 6
        outlines = [model.vectors(50, torch.Generator().manual_seed(1), source) for source in ("generator", start)]
        assert torch.allclose(outlines[0], outlines[1], atol=1e-5)


def test_scaled_noise_draws_outlines_towards_their_centres(data: Dataset, tiny_corpus: Path) -> None:
    model = method_of(data, tiny_corpus).model
    noise = model.mixture.draw(50, torch.Generator().manual_seed(1))
    centres = model.mixture.centres[noise.centre]
    whole = centres + noise.normal @ model.mixture.factor.T
    half = model.vectors(50, torch.Generator().manual_seed(1), "mixture", noise_scale=0.5)
    assert torch.allclose(half, model.normalise((centres + whole) / 2), atol=1e-5)


def test_generated_outlines_have_the_encoders_norm(data: Dataset, tiny_corpus: Path) -> None:
    model = method_of(data, tiny_corpus).model
    for source in model.sources:
        raw = model.scaling.unscale(model.vectors(20, torch.Generator().manual_seed(0), source))
        assert torch.allclose(raw.norm(dim=1), torch.ones(20), atol=1e-5)


def test_the_embedded_grammar_and_files_share_no_marking(data: Dataset) -> None:
    assert data.embedded is False


def test_a_finished_generator_has_the_moments_of_training_outlines(data: Dataset, tiny_corpus: Path, tmp_path: Path) -> None:
    distances = {}
    for free in (False, True):
        method = method_of(data, tiny_corpus, free_moments=free)
        width = method.model.decoder.config.vector_dim
        method.model.generator.compose_affine(torch.diag(torch.linspace(0.7, 1.3, width)), torch.full((width,), 0.1))
        method.finish(tmp_path / str(free))
        fake = load_model(tmp_path / str(free) / "model").vectors(2000, torch.Generator().manual_seed(1), "generator")
        distances[free] = frechet_distance(data.outlines("train", data.sample_rows("train", 20_000)), fake.detach())
    assert distances[False] < 0.2 * distances[True]


@pytest.mark.parametrize("family", sorted(all_methods()))
def test_a_saved_model_is_the_same_model(family: str, data: Dataset, tiny_corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = find_method(family)(config(tiny_corpus, {}, family), data, False)
    save_model(tmp_path / "model", method.model)
    loaded = load_model(tmp_path / "model")
    assert type(loaded) is families()[family]
    assert same(values(method.model), loaded)
    if loaded.sources:
        sampling = SamplingConfig(max_len=8)
        first, second = (next(model.eval().generate(5, 1, sampling))[0] for model in (method.model, loaded))
        assert first == second


def test_the_kept_generator_is_a_moving_average(data: Dataset, tiny_corpus: Path) -> None:
    method = method_of(data, tiny_corpus, ema_decay=0.5)
    before = copy.deepcopy(method.model.generator)
    method.stages[1].step(0, batch(data), Update(Ranks(), 1.0))
    expected = (before.centres + gan(method).generator.centres) / 2
    assert torch.allclose(method.model.generator.centres, expected, atol=1e-6)
    assert isinstance(method.model, OutlineModel)


def test_levels_are_the_controls_own(data: Dataset, tiny_corpus: Path) -> None:
    method = method_of(data, tiny_corpus)
    method.model.eval()
    levels, real = method.stages[1].validate().levels, held_out(data, "valid", 20)[1]
    assert real is not None and not method.stages[0].validate().levels
    near = knn_precision_recall(real, method.model.vectors(len(real), torch.Generator().manual_seed(NOISE_SEED), "mixture"))
    assert (levels["valid/precision_mixture"], levels["valid/recall_mixture"]) == near
    assert levels["valid/decoded_nll_per_token_real"] == decoded_nll(method.model, real)


def test_a_decoder_that_knows_nothing_is_as_unsure_as_can_be(data: Dataset, tiny_corpus: Path) -> None:
    model = method_of(data, tiny_corpus).model.eval()
    for parameter in model.decoder.parameters():
        nn.init.zeros_(parameter)
    unsure = decoded_nll(model, torch.zeros(50, model.generator.config.outline_dim))
    assert unsure == pytest.approx(math.log(model.decoder.config.vocab_size), rel=1e-5)


def test_every_rank_drops_and_weakens_the_same_outlines(data: Dataset, tiny_corpus: Path) -> None:
    rows = data.order(64, False, 1).batch(0)
    real = data.outlines("train", rows)

    def seen(ranks: Ranks, **options: float) -> torch.Tensor:
        torch.manual_seed(5)
        return method_of(data, tiny_corpus, **options).stages[0].vector(data.batch(rows, ranks))

    whole = seen(Ranks(), outline_dropout=0.3, min_strength=1.0)
    gone = (whole == 0).all(dim=1)
    assert 8 < int(gone.sum()) < 32 and torch.equal(whole[~gone], real[~gone])
    weak = seen(Ranks(), outline_dropout=0.3, min_strength=0.2, exact_outlines=0.0)
    assert torch.equal((weak == 0).all(dim=1), gone)
    strengths = (weak * real).sum(dim=1)[~gone] / real.square().sum(dim=1)[~gone]
    assert 0.5 < float(strengths.mean()) < 0.7 and float(strengths.std()) > 0.2  # of U(0.2, 1): 0.6 and 0.23
    for rank in (0, 1):
        assert torch.equal(seen(Ranks(rank, 2), outline_dropout=0.3, min_strength=0.2, exact_outlines=0.0), weak[rank::2])
    half = seen(Ranks(), outline_dropout=0.0, min_strength=0.2)
    assert 20 < int((half == real).all(dim=1).sum()) < 44  # of 64
    assert torch.equal(seen(Ranks(), outline_dropout=0.0, min_strength=1.0), real)


@pytest.mark.parametrize("family", ["outlines", "lm", "vae", "arae"])
def test_every_family_can_have_a_transformer(family: str, tiny_arguments: list[str], tmp_path: Path) -> None:
    _, *given = tiny_arguments
    given = given if family == "outlines" else given[:given.index("--encoder")]
    assert train([family, *given, "--decoder", "transformer", "--decoder-steps", "10", "--evaluator-steps", "5",
                  "--runs", str(tmp_path), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    run = load(tmp_path / "run")
    assert isinstance(run.model.decoder, TransformerDecoder) and len(run.model.decoder.blocks) == 4
    assert len(run.sample(3)) == 3


def test_a_transformer_cannot_read_z_only_at_the_start(tiny_arguments: list[str],
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    _, *given = tiny_arguments
    assert train(["vae", *given[:given.index("--encoder")], "--decoder", "transformer", "--z-into", "first_state"]) == 2
    assert "--z-into has no effect here (decoder 'transformer' does not use it)." in capsys.readouterr().err
