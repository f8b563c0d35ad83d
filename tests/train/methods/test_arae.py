"""ARAE: each phase only updates its own modules, and a run from the command line."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import outlines
from generate.__main__ import main as generate
from outlines.encoders.recurrent import RecurrentEncoderConfig
from outlines.errors import OutlinesError
from outlines.inference.pipeline import Pipeline
from outlines.models.arae import ARAE
from outlines.networks.gru import GRUConfig
from outlines.networks.losses import one_centred_penalty, score_gradients
from tests.train.commands.test_compare import train
from train.config import RunConfig, resolve
from train.data import Batch, Dataset, open_dataset
from train.method import Update
from train.methods.arae import ARAEMethod
from train.methods.encoder import EncoderMethod
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks
from train.runtime.run_directory import read_lines

ROWS = [torch.randint(4, 11, (length,), generator=torch.Generator().manual_seed(length)).numpy() for length in (3, 1, 5, 2)]


def model() -> ARAE:
    torch.manual_seed(0)
    decoder = GRUConfig(vocab_size=11, vector_dim=6, embed_dim=6, hidden_dim=7, dropout=0.0)
    encoder = RecurrentEncoderConfig(11, 6, 5, 6, dropout=0.0)
    return ARAE(encoder, {"noise_dim": 3, "hidden_dim": 8, "num_layers": 2}, decoder).eval()


def config(corpus: Path, preset: str = "tiny", **flags: object) -> RunConfig:
    flags = {"corpus": (str(corpus),), "dropout": 0.0, **flags}
    return resolve("arae", ARAEMethod.config_class, ARAEMethod.presets, preset, None, flags)


@pytest.fixture(scope="module")
def data(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(config(tiny_corpus).corpus, None, tmp_path_factory.mktemp("cache"), torch.device("cpu"), Ranks(),
                        Reporter(quiet=True))


def method(data: Dataset, corpus: Path, **flags: object) -> ARAEMethod:
    torch.manual_seed(0)
    return ARAEMethod(config(corpus, **flags), data, bfloat16=False)


def batch(data: Dataset, step: int = 0, ranks: Ranks | None = None) -> Batch:
    return data.batch(data.order(16, True, 1).batch(step), ranks or Ranks())


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, Tensor], module: nn.Module) -> bool:
    return not all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, materialize_grads=True))


# The model


def test_codes_have_unit_norm_and_do_not_depend_on_the_batch() -> None:
    arae = model()
    codes = arae.codes(ROWS)
    assert codes.norm(dim=1).tolist() == pytest.approx([1] * 4)
    assert torch.allclose(codes, torch.cat([arae.codes([row]) for row in ROWS]), atol=1e-6)
    vectors, logvar = arae.posterior(ROWS)
    assert logvar is None and torch.allclose(arae.to_encoder(vectors), codes)
    for source in arae.sources:
        drawn = arae.to_encoder(arae.vectors(50, rng(), source))
        assert drawn.norm(dim=1).tolist() == pytest.approx([1] * 50)
        assert torch.allclose(arae.from_encoder(3 * drawn), arae.scaled(drawn), atol=1e-6)


def test_the_decoder_reads_vectors_of_unit_variance_a_dimension() -> None:
    arae = model()
    codes = functional.normalize(torch.randn(2000, 6, generator=rng()))
    assert arae.scaled(codes).std(dim=0).tolist() == pytest.approx([1] * 6, abs=0.05)


# The phases


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_with_the_adversary_off_it_is_a_plain_autoencoder(optimizer: str, data: Dataset, tiny_corpus: Path) -> None:
    """Against the family that is one: the same weights, the same sentences, nothing dropped or shuffled."""
    arae = method(data, tiny_corpus, encoder_share=0.0, noise_radius=0.0, autoencoder_optimizer=optimizer)
    options: dict[str, object] = {"corpus": (str(tiny_corpus),), "dropout": 0.0, "drop": 0.0, "shuffle_distance": 0}
    plain = EncoderMethod(resolve("encoder", EncoderMethod.config_class, EncoderMethod.presets, "tiny", None, options),
                          data, bfloat16=False)
    plain.model.load_state_dict({f"{part}.{name}": tensor for part in ("encoder", "decoder")
                                 for name, tensor in getattr(arae.model, part).state_dict().items()})
    if optimizer == "sgd":
        plain.stages[0].optimizers["decoder"] = torch.optim.SGD(plain.model.parameters(), lr=3e-3)
    losses = []
    for step in range(2):
        terms = [own.stages[0].step(step, batch(data, step), Update(Ranks(), 1.0)) for own in (arae, plain)]
        losses.append([float(one["train/reconstruction_nll_per_token"]) for one in terms])
    assert all(first == pytest.approx(second) for first, second in losses)
    for name, tensor in plain.model.state_dict().items():
        assert torch.allclose(tensor, arae.model.state_dict()[name], atol=1e-7), name


def test_a_tenth_of_the_critics_gradient_reaches_the_encoder_and_none_the_decoder(data: Dataset, tiny_corpus: Path) -> None:
    arae, off = method(data, tiny_corpus), method(data, tiny_corpus, encoder_share=0.0)
    off.stages[0].critic.load_state_dict(arae.stages[0].critic.state_dict())
    assert arae.stages[0].options.encoder_share == 0.1
    one = batch(data)
    losses = [own.stages[0].autoencoder_loss(one, 0.05, rng())[0] for own in (arae, off)]
    scores = arae.stages[0].critic(arae.model.encoder(one.tokens.inputs, one.tokens.lengths)).mean()
    own, without, of_scores = (gradients(loss, module.model.encoder) for loss, module in
                               zip([*losses, scores], [arae, off, arae], strict=True))
    assert max(float(gradient.abs().max()) for gradient in of_scores) > 1e-4
    for whole, plain, adversarial in zip(own, without, of_scores, strict=True):
        assert torch.allclose(whole - plain, 0.1 * adversarial, atol=1e-7)
    for first, second in zip(*(gradients(loss, module.model.decoder) for loss, module in
                               zip(losses, [arae, off], strict=True)), strict=True):
        assert torch.equal(first, second)


def test_encoder_and_generator_move_the_scores_towards_each_other(data: Dataset, tiny_corpus: Path) -> None:
    """The critic widens the gap between real and generated scores; the two others narrow it."""
    arae = method(data, tiny_corpus, encoder_share=1e3, gan_learning_rate=1e-2)
    update, one = Update(Ranks(), 1.0), batch(data)
    fixed = arae.stages[0]._noise(200, 16, one, rng(5))

    def scores() -> tuple[float, float]:
        with torch.no_grad():
            codes = arae.model.encoder(one.tokens.inputs, one.tokens.lengths)
            generated = arae.model.generate_codes(fixed)
            return float(arae.stages[0].critic(codes).mean()), float(arae.stages[0].critic(generated).mean())

    real, fake = scores()
    for step in range(10):
        codes, num_rows = arae.stages[0].real_codes(step, batch(data))[0]
        arae.stages[0].critic_step(codes, num_rows, batch(data), rng(step), update)
    widened = scores()
    assert widened[0] - widened[1] > real - fake
    arae.stages[0].generator_step(one, rng(), update)
    assert scores()[1] > widened[1] and scores()[0] == widened[0]
    arae.stages[0].autoencoder_step(one, 0.0, rng(), update)
    assert scores()[0] < widened[0]


def test_each_phase_moves_its_own_networks_alone(data: Dataset, tiny_corpus: Path) -> None:
    arae, update, one = method(data, tiny_corpus), Update(Ranks(), 1.0), batch(data)
    parts = {"encoder": arae.model.encoder, "decoder": arae.model.decoder, "generator": arae.model.generator,
             "critic": arae.stages[0].critic}

    def moves(phase: Any) -> set[str]:
        before = {name: copied(part) for name, part in parts.items()}
        for part in parts.values():
            part.zero_grad(set_to_none=True)
        phase()
        return {name for name, part in parts.items() if moved(before[name], part)}

    codes, num_rows = arae.stages[0].real_codes(0, batch(data))[0]
    assert not codes.requires_grad
    assert moves(lambda: arae.stages[0].critic_step(codes, num_rows, batch(data), rng(), update)) == {"critic"}
    assert all(parameter.grad is None for parameter in arae.model.parameters())
    assert moves(lambda: arae.stages[0].generator_step(one, rng(), update)) == {"generator"}
    assert moves(lambda: arae.stages[0].autoencoder_step(one, 0.05, rng(), update)) == {"encoder", "decoder"}
    arae.stages[0].critic.zero_grad(set_to_none=True)
    assert moves(lambda: arae.stages[0].step(0, one, update)) == set(parts)
    assert all(parameter.requires_grad for part in parts.values() for parameter in part.parameters())


def test_the_critic_sees_new_sentences_of_every_length_in_every_round(data: Dataset, tiny_corpus: Path) -> None:
    arae = method(data, tiny_corpus)
    assert arae.stages[0].options.critic_steps == 5
    tokens = data.corpus.tokens["train"]
    seen = [arae.stages[0].order.batch(index) for index in range(10)]
    assert len(np.unique(np.concatenate(seen))) == sum(map(len, seen)) > 150
    for step in range(2):
        for (codes, num_rows), rows in zip(arae.stages[0].real_codes(step, batch(data)), seen[5 * step:], strict=False):
            assert num_rows == len(rows) and torch.allclose(codes, arae.model.codes(tokens.rows(rows)), atol=1e-6)
            assert len(np.unique(tokens.lengths[rows])) > 3


def test_the_penalty_is_wgan_gps(data: Dataset, tiny_corpus: Path) -> None:
    arae = method(data, tiny_corpus, penalty_weight=3.0)
    codes, num_rows = arae.stages[0].real_codes(0, batch(data))[0]
    critic, noise = copy.deepcopy(arae.stages[0].critic), rng()
    losses: list[Tensor] = []

    class Kept(Update):
        def __call__(self, name: str, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
            losses.append(loss)
            return loss

    terms = arae.stages[0].critic_step(codes, num_rows, batch(data), noise, Kept(Ranks(), 1.0))
    again = rng()
    fake = arae.model.generate_codes(torch.randn(num_rows, 16, generator=again)).detach()
    share = torch.rand(num_rows, 1, generator=again)
    _, slopes = score_gradients(critic, share * codes + (1 - share) * fake)
    expected = critic(fake).mean() - critic(codes).mean() + 3 * one_centred_penalty(slopes).mean()
    assert losses[0].item() == pytest.approx(expected.item(), abs=1e-6)
    assert float(terms["train/gradient_penalty"]) == pytest.approx(one_centred_penalty(slopes).mean().item(), abs=1e-6)


# The noise


def test_the_noise_anneals_every_hundred_steps(data: Dataset, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = config(tiny_corpus).model
    assert [options.noise_radius_at(step) for step in (0, 99, 100, 250)] == [
        0.05, 0.05, 0.05 * 0.9995, pytest.approx(0.05 * 0.9995**2)]
    arae, seen = method(data, tiny_corpus, noise_anneal=0.5, noise_radius=2.0), []
    read = arae.model.decoder.read
    monkeypatch.setattr(arae.model.decoder, "read", lambda tokens, vector: (seen.append(vector), read(tokens, vector))[1])
    for step in range(2):
        one = batch(data, step)
        codes = arae.model.encoder(one.tokens.inputs, one.tokens.lengths).detach()
        terms = arae.stages[0].step(199 + step, one, Update(Ranks(), 1.0))
        noise = (arae.model.to_encoder(seen[-1].detach()) - codes)
        assert float(terms["train/noise_radius"]) == (1.0, 0.5)[step]
        assert float(noise.std()) == pytest.approx((1.0, 0.5)[step], rel=0.15), "on a code of unit norm, a dimension"
    vectors, _ = arae.model.posterior(ROWS)
    assert torch.equal(vectors, arae.model.posterior(ROWS)[0]), "codes that are measured have none"


def test_two_ranks_shares_are_one_batch(data: Dataset, tiny_corpus: Path) -> None:
    arae, results = method(data, tiny_corpus), []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        one = batch(data, ranks=Ranks(rank, world))
        loss, *_ = arae.stages[0].autoencoder_loss(one, 0.05, rng())
        codes, num_rows = arae.stages[0].real_codes(0, one)[1]
        no_update: Any = lambda *given: torch.zeros(())  # noqa: E731
        terms = arae.stages[0].critic_step(codes, num_rows, one, rng(), no_update)
        results.append([*gradients(loss, arae.model.encoder), terms["train/critic_loss"], terms["train/gradient_penalty"]])
    for whole, first, second in zip(*results, strict=True):
        assert torch.allclose(whole, first + second, atol=1e-6)


def test_validation_is_deterministic_and_selects_by_validation_text(data: Dataset, tiny_corpus: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    arae = method(data, tiny_corpus)
    arae.model.eval()
    before, state = copied(arae.model), torch.get_rng_state()
    found = arae.stages[0].validate()
    figures = found.figures
    assert figures == arae.stages[0].validate().figures
    assert not moved(before, arae.model) and torch.equal(state, torch.get_rng_state())
    assert found.criterion == figures["valid/reverse_ngram_nll_per_token"]
    assert {"valid/reconstruction_nll_per_token", "valid/latent_gap_per_token", "valid/precision", "valid/recall",
            "scores/held_out", "scores/generated"} <= set(figures)
    tokens = data.corpus.tokens
    rows = list(tokens["valid"].rows(range(len(tokens["valid"]))))
    real = [row.tolist() for row in tokens["train"].rows(range(len(rows)))]
    criteria = []
    for samples in (real, [real[0]] * len(real)):
        written = [(samples, arae.model.posterior(rows[:20])[0])]
        monkeypatch.setattr(arae.model, "generate", lambda *_, written=written: iter(written))
        criteria.append(arae.stages[0].validate().criterion)
    assert criteria[0] < criteria[1]


# The command line


@pytest.mark.parametrize(("flags", "message"), [({"noise_radius": 0.0, "noise_anneal": 0.9}, "no effect"),
                                                ({"encoder_share": -1.0}, "Use a value of at least 0")])
def test_options_that_cannot_be_are_errors(flags: dict[str, object], message: str, tiny_corpus: Path) -> None:
    with pytest.raises(OutlinesError, match=message):
        config(tiny_corpus, **flags)


def test_the_published_preset_keeps_its_rates(tiny_corpus: Path) -> None:
    published = config(tiny_corpus, "tiny arae-snli")
    assert (published.corpus.vocab_size, published.corpus.max_len, published.model.noise_dim) == (11000, 15, 100)
    assert (published.training.warmup_steps, published.training.min_learning_rate) == (0, 1.0)


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    runs = tmp_path_factory.mktemp("runs")
    train("arae", "--preset", "tiny", "--corpus", tiny_corpus, "--num-evaluation", 30, "--runs", runs, "--out", runs / "run")
    return runs / "run"


@pytest.fixture(scope="module")
def pipeline(run: Path) -> Pipeline:
    return outlines.load(run, "cpu")


def test_figures_stand_under_the_keys_of_every_family(run: Path) -> None:
    keys = set(itertools.chain.from_iterable(read_lines(run / "metrics.jsonl")))
    assert {"train/reconstruction_nll_per_token", "train/critic_loss", "train/gradient_penalty", "train/generator_loss",
            "train/noise_radius", "scores/real", "scores/fake", "norm/decoder", "norm/critic", "norm/generator",
            "learning_rate/decoder", "learning_rate/critic", "valid/reconstruction_nll_per_token",
            "valid/latent_gap_per_token", "valid/active_units", "valid/reverse_ngram_nll_per_token", "valid/precision",
            "test/active_units", "test/prior_gap_per_token", "test/reconstruction_bleu",
            "evaluation/forward_nll_per_token"} <= keys
    assert not {"valid/nll_per_token", "valid/kl", "test/nll"} & keys, "nothing that it cannot know"
    assert len(json.loads((run / "collapse.json").read_text())["dims"]) == 16


def test_every_verb_works_or_says_what_is_missing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "two.txt").write_text("A dog runs.\nTwo men play.\n")
    one, other = "A man walks.", "Two dogs run."
    working: list[tuple[list[object], int]] = [
        ([run, "--num", 3], 3), ([run, "--source", "gaussian", "--num", 2], 2), (["reconstruct", run, one, other], 2),
        (["vary", run, one, "--num", 2], 2), (["analogy", run, one, other, one], 1),
        (["mean", run, tmp_path / "two.txt"], 1), (["complete", run, "A man", "--num", 2], 2)]
    for arguments, num in working:
        assert generate([*map(str, arguments), "--device", "cpu"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == num, arguments
    lacking: list[tuple[list[object], str]] = [
        (["nearest", run, one], "outlines"),
        (["interpolate", run, one, other, "--walk", "noise"], "Choose from linear, spherical, gradient")]
    for arguments, lack in lacking:
        assert generate([*map(str, arguments), "--device", "cpu"]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and lack in errors


def test_walks_go_from_one_code_to_the_other(pipeline: Pipeline) -> None:
    assert pipeline.walks == ("linear", "spherical", "gradient")
    ends = pipeline.encode(["A man walks.", "Two dogs run."])
    for kind in ("linear", "spherical"):
        walk = pipeline.interpolate("A man walks.", "Two dogs run.", kind, 5)
        assert torch.allclose(walk.vectors[[0, -1]], ends, atol=1e-4)
    assert walk.vectors.norm(dim=1).tolist() == pytest.approx([4] * 5, rel=1e-4), "codes of unit norm, times √16"


def test_the_control_is_fitted_to_the_codes_of_the_training_split(pipeline: Pipeline, data: Dataset) -> None:
    arae, tokens = pipeline.model, data.corpus.tokens["train"]
    assert isinstance(arae, ARAE)
    codes = arae.codes(tokens.rows(range(len(tokens))))
    assert torch.allclose(arae.gaussian.centres[0], codes.mean(dim=0), atol=1e-5)
    drawn = arae.vectors(20, rng(), "gaussian")
    assert not torch.allclose(drawn, arae.vectors(20, rng(), "generator"))


def test_an_evaluation_has_its_rows(run: Path, tmp_path: Path) -> None:
    train("evaluate", run, "--encoder", "none", "--temperatures", 1, "--num-samples", 30, "--reverse-steps", 2, "--out",
          tmp_path / "evaluation")
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    rows = {row["source"]: row["figures"] for row in report["rows"]}
    assert set(rows) == {"real text", "arae", "arae: gaussian"}
    assert {"forward_nll_per_token", "reverse_nll_per_token"} <= set(rows["arae"])
    [rebuilt] = report["reconstruction"]
    assert {"test/latent_gap_per_token", "test/reconstruction_bleu"} <= set(rebuilt["figures"])


def test_a_comparison_has_its_rows(run: Path, tiny_corpus: Path) -> None:
    directory = run.parent / "comparison"
    train("compare", "--families", "lm,arae,gaussian", "--preset", "tiny", "--corpus", tiny_corpus, "--num-evaluation", 30,
          "--decoder-steps", 4, "--runs", run.parent, "--out", directory)
    report = json.loads((directory / "report.json").read_text())
    assert {row["source"] for row in report["rows"]} == {"real text", "lm", "arae", "arae: gaussian"}
    assert [row["source"] for row in report["reconstruction"]] == ["lm", "arae"]
