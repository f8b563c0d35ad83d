"""Z-Forcing: its bound against known answers, what may see what, and each weight doing its own work and nothing else."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from generate.__main__ import main as generate
from outlines.corpus.batching import TokenBatch, collate
from outlines.corpus.tokenizer import SPECIAL
from outlines.decoding.beam import beam_search
from outlines.decoding.sample import SamplingConfig, sample
from outlines.decoding.scoring import nll_of_rows
from outlines.errors import OutlinesError
from outlines.metrics.collapse import kl_by_position
from outlines.models.zforcing import Forcing, ZForcing
from outlines.networks.losses import gaussian_nll, importance_weighted_nll, moving_weight
from outlines.networks.stochastic import StochasticDecoderConfig
from tests.networks.test_losses import sequence_nll
from tests.train.methods.test_vae import KillAt, Killed
from train.__main__ import main as train
from train.config import RunConfig, resolve
from train.data import Batch, Dataset, open_dataset
from train.evaluation.figures import held_out
from train.loop import Loop
from train.method import Update
from train.methods.zforcing import VALIDATION_SEED, ZForcingMethod
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks

PAD = SPECIAL.pad_id

STEPS, Z = 7, 3
ROWS = [torch.randint(4, 11, (length,), generator=torch.Generator().manual_seed(length)).numpy() for length in (3, 1, 5, 2)]


def model(num_layers: int = 2) -> ZForcing:
    """A small model whose weights are large enough for everything to matter."""
    torch.manual_seed(0)
    made = ZForcing(5, StochasticDecoderConfig(11, STEPS * Z, embed_dim=6, hidden_dim=7, num_layers=num_layers, dropout=0.0,
                                               latent_dim=Z, mlp_dim=8)).eval()
    for parameter in made.parameters():
        parameter.data.mul_(2)
    return made


def tied(made: ZForcing) -> ZForcing:
    """The same with a posterior that is the prior."""
    made.inference.load_state_dict(made.decoder.prior.state_dict())
    nn.init.zeros_(made.inference_sees.weight)
    return made


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(num: int = len(ROWS), seed: int = 1) -> Tensor:
    return torch.randn(num, STEPS, Z, generator=rng(seed))


def padded(batch: TokenBatch, num: int) -> TokenBatch:
    """The same batch with `num` more columns of padding."""
    inputs, targets = (functional.pad(part, (0, num), value=PAD) for part in (batch.inputs, batch.targets))
    return TokenBatch(inputs, targets, functional.pad(batch.mask, (0, num), value=False), batch.lengths)


# The model and its bound


def test_a_posterior_tied_to_the_prior_gives_the_nll_of_prior_draws() -> None:
    made = tied(model())
    steps, nll = made.follow_rows(ROWS, noise())
    assert steps.mu.abs().max() < 1e-5 and steps.logvar.abs().max() < 1e-5
    assert torch.allclose(steps.drawn, noise(), atol=1e-5)
    assert nll.tolist() == pytest.approx(nll_of_rows(made.decoder, ROWS, noise().flatten(1))[0], abs=1e-4)
    generator = rng()
    draws = np.array([nll_of_rows(made.decoder, ROWS, made._noise(4, generator).flatten(1))[0] for _ in range(5)])
    terms = made.nll_terms(ROWS, None, 5, rng())
    assert terms["kl"].abs().max() < 1e-9
    assert terms["negative_elbo"].tolist() == pytest.approx(draws.mean(axis=0), abs=1e-4), "the bound is E of nll"
    expected = importance_weighted_nll(-torch.from_numpy(draws))
    assert terms["nll"].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_without_weights_on_z_it_is_an_lstm_language_model(num_layers: int) -> None:
    made = tied(model(num_layers))
    decoder, lstm = made.decoder, nn.LSTM(6, 7, num_layers, batch_first=True)
    decoder.cells[0].weight_ih.data[:, 6:] = 0  # type: ignore[union-attr, operator]
    for layer, cell in enumerate(decoder.cells):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            weight = getattr(cell, name).data
            getattr(lstm, f"{name}_l{layer}").data.copy_(weight[:, :6] if (layer, name) == (0, "weight_ih") else weight)
    batch = collate(ROWS, SPECIAL)
    hidden = decoder.readout(lstm(decoder.embedding(batch.inputs) * 6 ** 0.5)[0])
    plain = sequence_nll(functional.linear(hidden, decoder.embedding.weight, decoder.output_bias), batch.targets, batch.mask)
    terms = made.nll_terms(ROWS, None, 3, rng())
    for name in ("nll", "negative_elbo", "reconstruction_nll"):
        assert terms[name].tolist() == pytest.approx(plain.tolist(), abs=1e-5), name
    assert terms["kl"].abs().max() < 1e-9
    apart = model(num_layers)
    apart.decoder.load_state_dict(decoder.state_dict())
    terms = apart.nll_terms(ROWS, None, 3, rng())
    assert terms["kl"].min() > 0.1, "z costs, and says nothing"
    assert terms["reconstruction_nll"].tolist() == pytest.approx(plain.tolist(), abs=1e-5)


def test_bounds_are_a_hand_computation() -> None:
    """Densities of z itself, where the model uses the densities of its innovations."""
    made, generator, log_weights, kl = model(), rng(), [], []
    terms, batch = made.nll_terms(ROWS, None, 6, rng()), collate(ROWS, SPECIAL)
    for _ in range(6):
        eps = made._noise(4, generator)[:, :batch.inputs.shape[1]]
        with torch.no_grad():
            path = made.follow(batch, made.backward_states(batch), eps)
        prior, posterior = Normal(path.mu_p, (path.logvar_p / 2).exp()), Normal(path.mu, (path.logvar / 2).exp())
        z, mask = path.mu + posterior.scale * eps, batch.mask[:, :, None]
        logits = functional.linear(path.hidden, made.decoder.embedding.weight, made.decoder.output_bias)
        nll = sequence_nll(logits, batch.targets, batch.mask)
        log_weights.append(((prior.log_prob(z) - posterior.log_prob(z)) * mask).sum((1, 2)) - nll)
        kl.append((kl_divergence(posterior, prior) * mask).sum((1, 2)))
    assert terms["nll"].tolist() == pytest.approx(importance_weighted_nll(torch.stack(log_weights)).tolist(), abs=1e-3)
    assert terms["kl"].tolist() == pytest.approx(torch.stack(kl).mean(0).tolist(), abs=1e-3)
    assert torch.allclose(terms["negative_elbo"], terms["reconstruction_nll"] + terms["kl"])
    assert (terms["nll"] <= -torch.stack(log_weights).mean(0) + 1e-3).all(), "Jensen, on the same draws"
    many = made.nll_terms(ROWS, None, 100, rng())
    assert (many["nll"] < many["negative_elbo"]).all(), "and in expectation"


def test_a_posteriors_draw_given_as_a_vector_is_the_same_path() -> None:
    made = model()
    steps, nll = made.follow_rows(ROWS, noise())
    assert nll_of_rows(made.decoder, ROWS, steps.drawn.flatten(1))[0] == pytest.approx(nll.tolist(), abs=1e-3)
    mu, logvar = made.posterior(ROWS)
    assert mu.shape == logvar.shape == (4, STEPS * Z)
    assert torch.equal(mu.view(4, STEPS, Z)[1, 2:], torch.zeros(STEPS - 2, Z)), "past a sentence's end the prior's own"


# What may see what


def test_no_future_token_or_latent_moves_a_past_logit() -> None:
    made = model()
    tokens, vector = torch.randint(4, 11, (2, 6), generator=rng()), noise(2)
    before = made.decoder.read(tokens, vector.flatten(1))
    other = tokens.clone()
    other[:, 3:] = (other[:, 3:] - 3) % 7 + 4
    after = made.decoder.read(other, vector.flatten(1))
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.allclose(before[:, 3:], after[:, 3:])
    changed = vector.clone()
    changed[:, 3] += 1
    after = made.decoder.read(tokens, changed.flatten(1))
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.allclose(before[:, 3], after[:, 3])


def test_the_posterior_sees_what_is_to_come_and_not_what_is_past_the_end() -> None:
    made, batch = model(), collate(ROWS, SPECIAL)
    states = made.backward_states(batch)
    other = dataclasses.replace(batch, targets=batch.targets.clone())
    other.targets[2, 4] = 4 if batch.targets[2, 4] != 4 else 5
    changed = made.backward_states(other)
    assert ((states - changed).abs().amax(dim=2)[2] > 0).tolist() == [True] * 5 + [False], "b_t depends on y_t and later"
    assert torch.equal(states[[0, 1, 3]], changed[[0, 1, 3]])


@pytest.mark.parametrize("sees_state", [False, True])
def test_the_auxiliary_gradient_never_reaches_the_backward_lstm(sees_state: bool) -> None:
    made = model()
    forcing, batch = Forcing(made, sees_state), collate(ROWS, SPECIAL)
    eps = noise()[:, :batch.inputs.shape[1]]
    backward = made.backward_states(batch)
    path = made.follow(batch, backward, eps)
    mean, logvar = forcing.predict(made, path.before, backward, eps)
    assert mean.abs().max() <= 1
    gaussian_nll(backward.detach(), mean, logvar).sum().backward()
    reached = {name for name, parameter in made.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert reached == {f"inference.{layer}.{kind}" for layer in ("hidden", "output") for kind in ("weight", "bias")} | {
        "inference_sees.weight"}
    assert all(parameter.grad is not None for parameter in forcing.auxiliary.parameters())
    path.hidden.sum().backward()
    assert made.backward_lstm.weight_ih_l0.grad is not None, "the words do teach it, through z"


def test_what_is_forced_is_the_z_that_was_drawn() -> None:
    made, batch = model(), collate(ROWS, SPECIAL)
    forcing, eps = Forcing(made, False), noise()[:, :batch.inputs.shape[1]]
    backward = made.backward_states(batch)
    path = made.follow(batch, backward, eps)
    mean, _ = forcing.auxiliary(path.mu + (path.logvar / 2).exp() * eps)
    assert torch.allclose(forcing.predict(made, path.before, backward, eps)[0], torch.tanh(mean), atol=1e-5)


def test_padding_adds_nothing() -> None:
    made, batch = model(), collate(ROWS, SPECIAL)
    steps, nll = made.follow_rows(ROWS, noise())
    for row in range(4):
        alone, alone_nll = made.follow_rows(ROWS[row:row + 1], noise()[row:row + 1])
        for together, apart in zip(steps, alone, strict=True):
            assert torch.allclose(together[row:row + 1], apart, atol=1e-4)
        assert nll[row].item() == pytest.approx(alone_nll.item(), abs=1e-4)
    more, mask = padded(batch, 1), batch.mask[:, :, None]
    states = made.backward_states(batch)
    assert torch.equal(states * mask, made.backward_states(more)[:, :-1] * mask)


# Sampling


def test_token_by_token_is_the_same_as_all_at_once() -> None:
    made = model()
    tokens, vector = torch.randint(4, 11, (2, 6), generator=rng()), noise(2).flatten(1)
    cache = made.decoder.start(vector, 2)
    logits = torch.stack([made.decoder.step(token, cache) for token in tokens.T], dim=1)
    batch = TokenBatch(tokens[:, :-1], tokens[:, 1:], torch.ones(2, 5, dtype=torch.bool), torch.tensor([5, 5]))
    expected = sequence_nll(logits[:, :-1], batch.targets, batch.mask)
    assert torch.allclose(made.decoder.nll(batch, vector), expected, atol=1e-5)


def test_a_sentence_depends_on_its_own_row_only_whatever_its_length() -> None:
    made, config = model(), SamplingConfig(temperature=1.3, max_len=2 * STEPS)
    vectors, uniforms = made.vectors(12, rng(), "prior"), torch.rand(12, 2 * STEPS, generator=rng())
    together = sample(made.decoder, vectors, uniforms, config)
    assert together == [sample(made.decoder, vectors[row:row + 1], uniforms[row:row + 1], config)[0] for row in range(12)]
    assert min(map(len, together)) < STEPS < max(map(len, together)), "some are longer than the vector has steps"
    beamed = beam_search(made.decoder, vectors, 12, SamplingConfig(beam=3, max_len=6))
    assert beamed[3] == beam_search(made.decoder, vectors[3:4], 1, SamplingConfig(beam=3, max_len=6))[0]


def test_samples_are_a_function_of_seed_and_number_alone() -> None:
    made, config = model(), SamplingConfig(max_len=6)
    wanted = [row for ids, _ in made.generate(9, 3, config) for row in ids]
    for batch_size in (1, 4):
        assert wanted == [row for ids, _ in made.generate(9, 3, config, batch_size=batch_size) for row in ids]
    assert wanted[:2] == next(made.generate(2, 3, config))[0]
    assert len(set(map(tuple, wanted))) > 3


# Training


def config(corpus: Path, preset: str = "tiny", **flags: object) -> RunConfig:
    flags = {"corpus": (str(corpus),), "dropout": 0.0, **flags}
    return resolve("zforcing", ZForcingMethod.config_class, ZForcingMethod.presets, preset, None, flags)


@pytest.fixture(scope="module")
def data(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(config(tiny_corpus).corpus, None, tmp_path_factory.mktemp("cache"), torch.device("cpu"), Ranks(),
                        Reporter(quiet=True))


def method(data: Dataset, corpus: Path, preset: str = "tiny", **flags: object) -> ZForcingMethod:
    torch.manual_seed(0)
    return ZForcingMethod(config(corpus, preset, **flags), data, bfloat16=False)


def batch(data: Dataset, step: int = 0, ranks: Ranks | None = None) -> Batch:
    return data.batch(data.order(16, True, 1).batch(step), ranks or Ranks())


def weights(made: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_off_starts_as_on_and_leaves_the_forcing_at_rest(data: Dataset, tiny_corpus: Path) -> None:
    on, off = method(data, tiny_corpus), method(data, tiny_corpus, "tiny zforcing-off")
    assert equal(weights(on.model), weights(off.model))
    forcing = weights(off.stages[0].forcing)
    logged = []
    for made in (on, off):
        torch.manual_seed(1)
        logged.append(made.stages[0].step(0, batch(data), Update(Ranks(), 1.0)))
    assert equal(forcing, weights(off.stages[0].forcing)) and not equal(forcing, weights(on.stages[0].forcing))
    assert not equal(weights(on.model), weights(off.model))
    assert "train/auxiliary_per_token" in logged[0] and set(logged[0]) > set(logged[1])
    assert not any("auxiliary" in key or "backward" in key for key in logged[1])
    for key in ("train/reconstruction_nll", "train/kl"):
        assert torch.equal(logged[0][key], logged[1][key]), key


@pytest.mark.parametrize("changed", [{"aux_form": "squared"}, {"aux_sees": "z_and_state"}, {"backward_weight": 0.0},
                                     {"aux_start": 1.0}])
def test_every_option_changes_the_first_step(changed: dict[str, object], data: Dataset, tiny_corpus: Path) -> None:
    losses = [method(data, tiny_corpus, **flags).stages[0].terms(0, batch(data), seed=1)[0] for flags in ({}, changed)]
    assert losses[0].item() != pytest.approx(losses[1].item(), rel=1e-6)


def test_the_loss_is_the_sum_of_its_terms_at_their_weights(data: Dataset, tiny_corpus: Path) -> None:
    made = method(data, tiny_corpus, kl_step=0.3, aux_start=0.0, aux_weight=0.04, aux_step=0.01,
                  backward_weight=0.5)
    one = batch(data)
    for step, beta, alpha in ((0, 0.2, 0.0), (2, 0.8, 0.02), (9, 1.0, 0.04)):
        loss, terms = made.stages[0].terms(step, one, seed=1)
        expected = (terms["train/reconstruction_nll_per_token"] + beta * terms["train/kl"] * one.num_rows / one.num_targets
                    + alpha * terms["train/auxiliary_per_token"] + 0.5 * terms["train/backward_nll_per_token"])
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_weights_move_in_a_straight_line_and_stay() -> None:
    assert [moving_weight(0.2, 1.0, 5e-5, step) for step in (0, 8000, 16000, 99999)] == pytest.approx([0.2, 0.6, 1, 1])
    assert [moving_weight(1.0, 0.4, 0.25, step) for step in (0, 1, 2, 3)] == pytest.approx([1, 0.75, 0.5, 0.4])


def test_two_ranks_shares_are_one_batch(data: Dataset, tiny_corpus: Path) -> None:
    made, results = method(data, tiny_corpus), []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        loss, terms = made.stages[0].terms(0, batch(data, ranks=Ranks(rank, world)), seed=1)
        gradients = torch.autograd.grad(loss, [*made.model.parameters(), *made.stages[0].forcing.parameters()])
        assert {"train/auxiliary_per_token", "train/backward_nll_per_token"} < terms.keys()
        results.append([*gradients, *terms.values()])
    for whole, first, second in zip(*results, strict=True):
        assert torch.allclose(whole, first + second, atol=1e-5)


def test_validation_is_deterministic_and_names_what_it_measures(data: Dataset, tiny_corpus: Path) -> None:
    made = method(data, tiny_corpus)
    made.model.eval()
    before, state = weights(made.model), torch.get_rng_state()
    found = made.stages[0].validate()
    figures = found.figures
    assert figures == made.stages[0].validate().figures
    assert equal(before, weights(made.model)) and torch.equal(state, torch.get_rng_state())
    assert found.criterion == figures["valid/negative_elbo_per_token"]
    parts = figures["valid/reconstruction_nll"] + figures["valid/kl"]
    assert figures["valid/negative_elbo"] == pytest.approx(parts)
    assert figures["valid/nll"] < figures["valid/negative_elbo"]
    assert figures["valid/active_units"] == 0 and abs(figures["valid/latent_gap_per_token"]) < 0.05
    made.model.inference_sees.weight.data.mul_(30)
    made.model.decoder.cells[0].weight_ih.data[:, 16:].mul_(100)  # type: ignore[union-attr, operator]
    views = made.stages[0].validate()
    told = views.figures
    assert told["valid/active_units"] > 0 and told["valid/active_positions"] > 0
    steps = next(made.model.draws(held_out(data, "valid", 20)[0], 1, rng(VALIDATION_SEED))).latent
    bars = views.pictures["posterior/kl_by_position"].axes[0].patches
    assert len(bars) == len(kl_by_position(steps))
    assert views.histograms["posterior/mu"].shape == (int(steps.lengths.sum()), 8)


def test_it_learns_eight_sentences_by_heart(data: Dataset, tiny_corpus: Path) -> None:
    made = method(data, tiny_corpus, decoder_learning_rate=2e-2)
    rows = data.sample_rows("train", 8)
    terms = [made.stages[0].step(0, data.batch(rows, Ranks()), Update(Ranks(), 1.0))["train/negative_elbo_per_token"]
             for _ in range(25)]
    assert terms[-1] < 0.6 * terms[0]


def test_killed_and_resumed_equals_uninterrupted(data: Dataset, tiny_corpus: Path, tmp_path: Path) -> None:
    flags: dict[str, object] = {"dropout": 0.1, "decoder_steps": 12, "checkpoint_every": 5, "num_validation": 10,
                                "aux_step": 1e-4, "aux_weight": 0.0}

    def run(directory: Path, kill_at: int = 1000) -> ZForcingMethod:
        directory.mkdir(exist_ok=True)
        made = method(data, tiny_corpus, **flags)
        Loop(made, data, config(tiny_corpus, **flags).training, directory, Ranks(), Reporter(quiet=True),
             KillAt(kill_at)).run()
        return made

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=8)
    resumed = run(tmp_path / "killed")
    for name, module in whole.modules.items():
        assert equal(weights(module), weights(resumed.modules[name])), name
    states: list[Any] = [made.optimizers["decoder"].state_dict()["state"] for made in (whole, resumed)]
    for index, state in states[0].items():
        assert equal(state, states[1][index])


# The command line


@pytest.mark.parametrize("flags", [{"kl_step": 0.1, "kl_weight": 0.2}, {"aux_step": 0.1},
                                   {"aux_form": "squared", "aux_start": 0.0, "aux_weight": 0.0}])
def test_an_option_without_effect_is_an_error(flags: dict[str, object], tiny_corpus: Path) -> None:
    with pytest.raises(OutlinesError, match=r"has no effect here \(--"):
        config(tiny_corpus, **flags)


@pytest.fixture(scope="module")
def comparison(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forcing beside its ablation, hardly trained."""
    directory = tmp_path_factory.mktemp("runs")
    (directory / "c.toml").write_text("num_validation = 10\n")
    assert train(["compare", "--families", "zforcing,zforcing-off", "--preset", "tiny", "--corpus", str(tiny_corpus),
                  "--decoder-steps", "3", "--config", str(directory / "c.toml"), "--num-evaluation", "20",
                  "--evaluator-steps", "3", "--out", str(directory / "both"), "--runs", str(directory), "--quiet"]) == 0
    return directory / "both"


def test_a_comparison_lays_forcing_beside_its_ablation(comparison: Path) -> None:
    text = (comparison / "report.md").read_text()
    for name in ("zforcing", "zforcing-off"):
        assert re.search(rf"\| {name} +\| 0\.5 ", text)
        assert re.search(rf"\n{name}: The vector is .*\n\n(- .*\n)+- The model has a latent at every step", text)
    assert "active positions" in text and (comparison / "collapse.png").exists()


def test_a_run_generates_and_says_in_one_line_what_it_cannot(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(comparison / "zforcing")

    def written(*arguments: str) -> list[str]:
        assert generate([*arguments]) == 0
        return capsys.readouterr().out.splitlines()

    scored = written(run, "--num", "3", "--with-score", "--max-len", "80")
    assert len(scored) == 3 and all(float(line.split("\t")[0]) > 0 for line in scored)
    assert len(written("reconstruct", run, "A dog runs.")) == 1
    assert [line[:5] for line in written("complete", run, "A dog", "--num", "2")] == ["A dog"] * 2
    for arguments in (["interpolate", run, "A dog runs.", "A man sits.", "--walk", "all"], ["vary", run, "A dog runs."]):
        assert generate(arguments) == 2
        assert re.fullmatch("error: .* a latent per step, not one vector .*\n", capsys.readouterr().err)
