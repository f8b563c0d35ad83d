"""The VAE: its bounds against known answers, and each remedy doing what its paper says and nothing else."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import train.methods.vae as vae_method
from outlines.corpus.batching import TokenBatch, collate
from outlines.corpus.tokenizer import SPECIAL
from outlines.decoding.scoring import nll_of_rows
from outlines.encoders.recurrent import RecurrentEncoderConfig
from outlines.errors import OutlinesError
from outlines.metrics.collapse import MutualInformation, drift
from outlines.models.vae import VAE, drop_words
from outlines.networks.gru import GRUConfig, GRUDecoder
from outlines.networks.losses import kl_to_standard_normal
from tests.conftest import Command
from tests.networks.test_losses import sequence_nll
from train.config import RunConfig, resolve
from train.data import Batch, Dataset, open_dataset
from train.evaluation.figures import read_probes
from train.loop import Loop
from train.method import Update
from train.methods.vae import VAEMethod
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks
from train.runtime.signals import StopSignals

BOS, PAD, UNK = SPECIAL.bos_id, SPECIAL.pad_id, SPECIAL.unk_id

REMEDIES = ["vae-annealed", "vae-cyclical", "vae-freebits", "vae-worddrop", "vae-lagging", "vae-bow"]
DECODER = GRUConfig(vocab_size=11, vector_dim=3, embed_dim=6, hidden_dim=7, dropout=0.0)
ROWS = [torch.randint(4, 11, (length,), generator=torch.Generator().manual_seed(length)).numpy() for length in (3, 1, 5, 2)]


def model(**changes: Any) -> VAE:
    torch.manual_seed(0)
    encoder = RecurrentEncoderConfig(11, 6, 5, 2 * DECODER.vector_dim, dropout=0.0)
    return VAE(encoder, GRUConfig(**{**vars(DECODER), **changes})).eval()


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config(corpus: Path, preset: str = "tiny", **flags: object) -> RunConfig:
    flags = {"corpus": (str(corpus),), "dropout": 0.0, **flags}
    return resolve("vae", VAEMethod.config_class, VAEMethod.presets, preset, None, flags)


@pytest.fixture(scope="module")
def data(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(config(tiny_corpus).corpus, None, tmp_path_factory.mktemp("cache"), torch.device("cpu"), Ranks(),
                        Reporter(quiet=True))


def method(data: Dataset, corpus: Path, preset: str = "tiny", **flags: object) -> VAEMethod:
    torch.manual_seed(0)
    return VAEMethod(config(corpus, preset, **flags), data, bfloat16=False)


def batch(data: Dataset, step: int = 0, ranks: Ranks | None = None) -> Batch:
    return data.batch(data.order(16, True, 1).batch(step), ranks or Ranks())


def trained(method: VAEMethod, data: Dataset, num_steps: int = 3) -> dict[str, Tensor]:
    """The model's weights after some steps."""
    for step in range(num_steps):
        torch.manual_seed(step)
        method.stages[0].step(step, batch(data, step), Update(Ranks(), 1.0))
    return method.model.state_dict()


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# The model and its bounds


def test_the_posterior_does_not_depend_on_the_batch_and_is_bounded() -> None:
    vae = model()
    mu, logvar = vae.posterior(ROWS)
    alone = [vae.posterior([row]) for row in ROWS]
    assert mu.shape == logvar.shape == (4, 3)
    assert torch.allclose(mu, torch.cat([part for part, _ in alone]), atol=1e-6)
    assert torch.allclose(logvar, torch.cat([part for _, part in alone]), atol=1e-6)
    assert mu.std(dim=0).min() > 1e-3
    nn.init.constant_(vae.encoder.project.bias, -1e6)
    _, logvar = vae.posterior(ROWS)
    assert logvar.min() >= -10 and kl_to_standard_normal(mu, logvar).isfinite().all()


class BlindDecoder(nn.Module):
    """log p(x | z) in closed form: every target has the logit z · direction at id 4 and 0 elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.config = DECODER
        self.direction = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def nll(self, tokens: TokenBatch, vector: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.inputs.shape, 11)
        logits[..., 4] = (vector @ self.direction)[:, None]
        return sequence_nll(logits, tokens.targets, tokens.mask)


def test_bounds_are_a_hand_computation() -> None:
    vae = model()
    vae.decoder = BlindDecoder().eval()  # type: ignore[assignment]
    terms = vae.nll_terms(ROWS, None, 6, rng())
    mu, logvar = (part.double() for part in vae.posterior(ROWS))
    prior, posterior = Normal(torch.zeros_like(mu), torch.ones_like(mu)), Normal(mu, (logvar / 2).exp())
    direction = torch.tensor([0.5, -1.0, 2.0]).double()
    noise, log_weights, nll = rng(), [], []
    for _ in range(6):
        z = mu + (logvar / 2).exp() * torch.randn(4, 3, generator=noise)
        logit = z @ direction
        fours = torch.tensor([(row == 4).sum() for row in ROWS])
        lengths = torch.tensor([len(row) + 1 for row in ROWS])
        nll.append(lengths * torch.log(10 + logit.exp()) - fours * logit)
        log_weights.append(-nll[-1] + prior.log_prob(z).sum(1) - posterior.log_prob(z).sum(1))
    assert torch.allclose(terms["nll"], math.log(6) - torch.stack(log_weights).logsumexp(0), atol=1e-5)
    assert torch.allclose(terms["reconstruction_nll"], torch.stack(nll).mean(0), atol=1e-5)
    expected_kl = torch.distributions.kl_divergence(posterior, prior).sum(1)
    assert torch.allclose(terms["kl"], expected_kl, atol=1e-6)
    assert torch.allclose(terms["negative_elbo"], terms["reconstruction_nll"] + expected_kl, atol=1e-5)
    assert nll_of_rows(vae.decoder, ROWS, mu.float())[1].tolist() == [4, 2, 6, 3]
    assert (terms["nll"] <= -torch.stack(log_weights).mean(0) + 1e-5).all(), "Jensen, on the same draws"


def test_the_estimate_reaches_the_nll_of_a_decoder_that_ignores_z() -> None:
    vae = model()
    for layer in (vae.decoder.first_state, vae.decoder.every_step, vae.decoder.every_readout):
        nn.init.zeros_(layer.weight)
    exact, _ = nll_of_rows(vae.decoder, ROWS, torch.zeros(4, 3))
    apart = vae.nll_terms(ROWS, None, 400, rng())
    assert apart["negative_elbo"].tolist() == pytest.approx(exact + apart["kl"].numpy(), abs=1e-6)
    assert apart["kl"].min() > 0.02
    assert apart["nll"].tolist() == pytest.approx(exact, abs=0.2 * apart["kl"].min().item())
    nn.init.zeros_(vae.encoder.project.weight)
    nn.init.zeros_(vae.encoder.project.bias)
    assert vae.nll_terms(ROWS, None, 2, rng())["nll"].tolist() == pytest.approx(exact, abs=1e-5)


def test_vectors_come_from_the_prior() -> None:
    z = model().vectors(4000, rng(), "prior")
    assert z.mean(0).tolist() == pytest.approx([0] * 3, abs=0.06) and z.std(0).tolist() == pytest.approx([1] * 3, abs=0.05)


# Where z enters


def test_z_at_the_first_state_alone_is_unseen_later() -> None:
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(**{**vars(DECODER), "vector_into": "first_state"})).eval()
    one, other, tokens = torch.randn(2, 3), torch.randn(2, 3), torch.randint(4, 11, (2, 4))
    caches = decoder.start(one, 2), decoder.start(other, 2)
    assert not torch.allclose(caches[0].state, caches[1].state)
    assert not torch.allclose(decoder.read(tokens, one), decoder.read(tokens, other))
    caches[1].state = caches[0].state
    assert all(torch.equal(*(decoder.step(token, cache) for cache in caches)) for token in tokens.T)
    assert not any(name.startswith("every_") for name in decoder.state_dict())


def test_the_shape_holds_where_z_enters() -> None:
    vae = model(vector_into="first_state")
    again = VAE.from_shape(vae.shape())
    again.load_state_dict(vae.state_dict())
    assert not again.decoder.sees_every_step and again.latent_dim == 3


# Word dropout


def test_dropped_words_are_inputs_and_never_bos_or_padding() -> None:
    inputs, lengths = collate(ROWS, SPECIAL).inputs, collate(ROWS, SPECIAL).lengths
    dropped = drop_words(inputs, lengths, 1.0, torch.rand(inputs.shape, generator=rng()), UNK)
    real = torch.arange(inputs.shape[1]) < lengths[:, None]
    assert (dropped[:, 0] == BOS).all() and (dropped[~real] == PAD).all() and (dropped[:, 1:][real[:, 1:]] == UNK).all()
    assert torch.equal(drop_words(inputs, lengths, 0.0, torch.zeros(inputs.shape), UNK), inputs)
    wide = torch.full((200, 50), 7)
    share = (drop_words(wide, torch.full((200,), 50), 0.3, torch.rand(200, 50, generator=rng()), UNK) == UNK).float().mean()
    assert share.item() == pytest.approx(0.3 * 49 / 50, abs=0.02)


def test_word_dropout_reaches_the_decoder_alone(data: Dataset, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, seen = method(data, tiny_corpus, word_dropout=1.0), {}
    encode, read = vae.model.encode, vae.model.decoder.read

    def encoding(inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        seen["encoder"] = inputs
        return encode(inputs, lengths)

    def decoding(tokens: Tensor, vector: Tensor | None) -> Tensor:
        seen["decoder"] = tokens
        return read(tokens, vector)

    monkeypatch.setattr(vae.model, "encode", encoding)
    monkeypatch.setattr(vae.model.decoder, "read", decoding)
    one = batch(data)
    vae.stages[0].step(0, one, Update(Ranks(), 1.0))
    assert torch.equal(seen["encoder"], one.tokens.inputs)
    assert set(seen["decoder"].unique().tolist()) <= {UNK, BOS, PAD}
    vae.model.eval()
    vae.stages[0].validate()
    assert len(seen["decoder"].unique()) > 10, "validation reads whole sentences"


# Training


def test_without_remedies_a_step_is_the_plain_elbos(data: Dataset, tiny_corpus: Path) -> None:
    vae, plain = method(data, tiny_corpus), method(data, tiny_corpus)
    after = trained(vae, data, 1)
    torch.manual_seed(0)
    one, noise = batch(data), torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    mu, logvar = plain.model.encode(one.tokens.inputs, one.tokens.lengths)
    z = mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=noise)
    per_token = plain.model.decoder.nll(one.tokens, z).sum() / one.num_targets
    loss = per_token + kl_to_standard_normal(mu, logvar).sum() / one.num_targets
    optimizer = torch.optim.AdamW(plain.model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.01)
    loss.backward()
    nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
    optimizer.step()
    for name, tensor in plain.model.state_dict().items():
        assert torch.allclose(after[name], tensor, atol=1e-6), name


@pytest.mark.parametrize("preset", [*REMEDIES, "tiny"])
def test_a_remedy_starts_as_the_plain_vae_and_changes_its_training(preset: str, data: Dataset, tiny_corpus: Path) -> None:
    fewer: dict[str, object] = {"aggressive_steps": 2} if preset == "vae-lagging" else {}
    plain, remedied = method(data, tiny_corpus), method(data, tiny_corpus, f"tiny {preset}", **fewer)
    assert equal(plain.model.state_dict(), remedied.model.state_dict())
    assert equal(trained(plain, data), trained(remedied, data)) == (preset == "tiny")


def test_free_bits_let_the_kl_be_below_the_floor(data: Dataset, tiny_corpus: Path) -> None:
    """With a floor that no group reaches, the step equals a step with KL weight 0."""
    free, unpaid = (method(data, tiny_corpus, **flags) for flags in ({"free_bits": 1e3, "free_bits_groups": 3},
                                                                     {"kl_weight": 0.0}))
    assert equal(trained(free, data), trained(unpaid, data))


@pytest.mark.parametrize("flags", [{"word_dropout": 0.5, "bow_weight": 1.0}, {"free_bits": 0.002}])
def test_two_ranks_shares_are_one_batch(flags: dict[str, object], data: Dataset, tiny_corpus: Path) -> None:
    vae = method(data, tiny_corpus, **flags)
    results: list[list[Tensor]] = []
    totals: list[Tensor] = []

    class Recorded(Ranks):
        def sum_(self, tensors: Any) -> None:
            totals.extend(tensors) if self.world == 1 else tensors[0].copy_(totals[0])

    for rank, world in ((0, 1), (0, 2), (1, 2)):
        loss, terms = vae.stages[0].terms(0, batch(data, ranks=Recorded(rank, world)), seed=1)
        gradients = torch.autograd.grad(loss, list(vae.model.parameters()))
        results.append([*gradients, *terms.values()])
    for whole, first, second in zip(*results, strict=True):
        assert torch.allclose(whole, first + second, atol=1e-6)
    if totals:
        assert 0 < (totals[0] > 0.002).sum() < 8, "some dimensions are above the floor and some below"


def test_aggressive_training_moves_one_half_at_a_time(data: Dataset, tiny_corpus: Path) -> None:
    vae, update = method(data, tiny_corpus, aggressive_steps=5, aggressive_checks=1), Update(Ranks(), 1.0)
    encoder, decoder = copied(vae.model.encoder), copied(vae.model.decoder)
    assert vae.stages[0].train_encoder(0, Ranks(), update) == 5
    assert equal(decoder, vae.model.decoder.state_dict()) and not equal(encoder, vae.model.encoder.state_dict())
    encoder = copied(vae.model.encoder)
    vae.stages[0].train_encoder = lambda step, ranks, update: 0  # type: ignore[method-assign]
    vae.stages[0].step(0, batch(data), update)
    assert equal(encoder, vae.model.encoder.state_dict()) and not equal(decoder, vae.model.decoder.state_dict())
    assert all(parameter.requires_grad for parameter in vae.model.parameters())
    vae.stages[0].progress.aggressive.fill_(False)
    vae.stages[0].step(0, batch(data), update)
    assert not equal(encoder, vae.model.encoder.state_dict())


def test_the_inner_loop_ends_where_its_loss_no_longer_falls(data: Dataset, tiny_corpus: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    vae, terms = method(data, tiny_corpus, aggressive_steps=100), []
    original = vae.stages[0].terms

    def rising_after_30(step: int, one: Batch, seed: int) -> Any:
        loss, logged = original(step, one, seed)
        terms.append(logged)
        return loss * 0 + abs(30 - len(terms)), logged

    monkeypatch.setattr(vae.stages[0], "terms", rising_after_30)
    assert vae.stages[0].train_encoder(0, Ranks(), Update(Ranks(), 1.0)) == 40  # sums of ten: 245, 145, 45, 55
    assert len(terms) == 40


def test_aggressive_training_ends_where_mutual_information_no_longer_climbs(
        data: Dataset, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, seen = method(data, tiny_corpus, aggressive_steps=1, aggressive_checks=10), []
    values = iter([0.5, 0.7, 0.6])
    monkeypatch.setattr(vae_method, "mutual_information", lambda *arguments: MutualInformation(next(values), 0, 9, 0))
    for step in range(12):
        terms = vae.stages[0].step(step, batch(data, step), Update(Ranks(), 1.0))
        seen.append(bool(vae.stages[0].progress.aggressive))
        assert terms["train/encoder_steps"] == 1
    assert seen == [True] * 8 + [False] * 4  # 30 steps, 10 looks: after steps 3, 6 and 9; the third has fallen


def test_validation_is_deterministic_and_names_what_it_measures(data: Dataset, tiny_corpus: Path) -> None:
    vae = method(data, tiny_corpus)
    vae.model.eval()
    before, state = copied(vae.model), torch.get_rng_state()
    found = vae.stages[0].validate()
    figures = dict(found.figures)
    assert figures | {"valid/drift": 0.0} == vae.stages[0].validate().figures, "only the second can be compared with a first"
    assert equal(before, vae.model.state_dict()) and torch.equal(state, torch.get_rng_state())
    assert found.criterion == figures["valid/negative_elbo_per_token"]
    assert figures["valid/nll_per_token"] < figures["valid/negative_elbo_per_token"]
    parts = figures["valid/reconstruction_nll"] + figures["valid/kl"]
    assert figures["valid/negative_elbo"] == pytest.approx(parts)
    assert abs(figures["valid/mutual_information"]) < 0.2  # only 20 sentences
    assert figures["valid/active_units"] == 0 and abs(figures["valid/latent_gap_per_token"]) < 0.05
    nn.init.normal_(vae.model.encoder.project.weight, std=3.0)
    nn.init.normal_(vae.model.decoder.every_readout.weight, std=3.0)
    told = vae.stages[0].validate().figures
    assert told["valid/active_units"] == 8 and told["valid/latent_gap_per_token"] > 0.1 and told["valid/drift"] > 0
    assert told["valid/mutual_information"] > 1


def test_the_drift_is_that_of_the_last_two_validations(data: Dataset, tiny_corpus: Path, tmp_path: Path) -> None:
    vae = method(data, tiny_corpus)
    vae.model.eval()
    rows, posteriors = vae.stages[0].validation_rows(), []
    for _ in range(3):
        nn.init.normal_(vae.model.encoder.project.weight, generator=rng(len(posteriors)))
        posteriors.append(vae.model.posterior(rows))
        figures = vae.stages[0].validate().figures
    assert len(rows) == vae.stages[0].progress.probe_mu.shape[1] == 20
    assert figures["valid/drift"] == pytest.approx(float(drift(posteriors[1:]).mu.median()))
    vae.finish(tmp_path)
    for (mu, logvar), (kept_mu, kept_logvar) in zip(posteriors[1:], read_probes(tmp_path), strict=True):
        assert torch.equal(mu, kept_mu) and kept_logvar is not None and torch.equal(logvar, kept_logvar)


def test_a_validation_shows_mu_sigma_and_every_dimension(data: Dataset, tiny_corpus: Path) -> None:
    vae = method(data, tiny_corpus)
    vae.model.eval()
    views = vae.stages[0].validate()
    assert views.histograms["posterior/mu"].shape == views.histograms["posterior/sigma"].shape == (20, 8)
    lines = views.pictures["posterior/signal_noise"].axes[0].lines
    assert [len(line.get_ydata()) for line in lines] == [8, 8]  # type: ignore[arg-type]


class Killed(BaseException):
    pass


class KillAt(StopSignals):
    """The loop asks for signals before each step: there it dies, with nothing saved."""

    def __init__(self, step: int):
        super().__init__()
        self.left = step

    def __getattribute__(self, name: str) -> Any:
        if name == "received":
            self.left -= 1
            if self.left < 0:
                raise Killed
        return super().__getattribute__(name)


@pytest.mark.parametrize("preset", REMEDIES)
def test_every_remedy_killed_and_resumed_equals_uninterrupted(preset: str, data: Dataset, tiny_corpus: Path,
                                                              tmp_path: Path) -> None:
    flags: dict[str, object] = {"dropout": 0.1, "decoder_steps": 12, "checkpoint_every": 5, "num_validation": 10}
    if preset == "vae-lagging":
        flags |= {"aggressive_steps": 2, "aggressive_checks": 6}

    def run(directory: Path, kill_at: int = 1000) -> VAEMethod:
        directory.mkdir(exist_ok=True)
        vae = method(data, tiny_corpus, f"tiny {preset}", **flags)
        training = config(tiny_corpus, f"tiny {preset}", **flags).training
        Loop(vae, data, training, directory, Ranks(), Reporter(quiet=True), KillAt(kill_at)).run()
        return vae

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=8)
    resumed = run(tmp_path / "killed")
    for name, module in whole.modules.items():
        assert equal(module.state_dict(), resumed.modules[name].state_dict()), name
    optimizers = [vae.optimizers["decoder"].state_dict()["state"] for vae in (whole, resumed)]
    for index, state in optimizers[0].items():
        assert equal(state, optimizers[1][index])


# The command line


def test_presets_compose() -> None:
    def resolved(preset: str, **flags: object) -> RunConfig:
        return resolve("vae", VAEMethod.config_class, VAEMethod.presets, preset, None, flags)

    assert resolved("vae-cyclical").corpus == resolved("default").corpus, "a remedy without a size is applied after default"
    both = resolved("small vae-cyclical").model
    assert (both.decoder_steps, both.kl_anneal) == (VAEMethod.presets["small"]["decoder_steps"], "cyclical")
    assert resolved("vae-cyclical small").model == both
    assert resolved("tiny vae-annealed vae-bow").model.bow_weight == 1
    assert resolved("vae-annealed vae-cyclical").model.kl_anneal == "cyclical"
    with pytest.raises(OutlinesError, match="Did you mean 'vae-cyclical'"):
        resolved("tiny vae-cylical")


@pytest.mark.parametrize("flags", [{"kl_cycles": 3, "kl_anneal": "linear"}, {"kl_rise": 0.1}, {"free_bits_groups": 4},
                                   {"aggressive_checks": 4}])
def test_an_option_without_effect_is_an_error(flags: dict[str, object], tiny_corpus: Path) -> None:
    with pytest.raises(OutlinesError, match=r"has no effect here \(without --"):
        config(tiny_corpus, **flags)


def test_more_groups_than_dimensions_is_an_error(tiny_corpus: Path) -> None:
    with pytest.raises(OutlinesError, match="--free-bits-groups 9 is more than"):
        config(tiny_corpus, free_bits=1.0, free_bits_groups=9)


def test_a_run_from_the_command_line_names_its_presets_and_generates(run_module: Command, tiny_corpus: Path,
                                                                     tmp_path: Path) -> None:
    arguments = ["vae", "--preset", "tiny", "vae-lagging", "--corpus", str(tiny_corpus), "--aggressive-steps", "2",
                 "--decoder-steps", "10", "--num-evaluation", "20"]
    done = run_module("train", *arguments, "--runs", tmp_path / "runs", "--quiet")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "001-vae-tiny-vae-lagging"
    assert '"preset": "tiny vae-lagging"' in (run / "run.json").read_text()
    assert len(run_module("generate", run, "--num", 3).stdout.splitlines()) == 3
