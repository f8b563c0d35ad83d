"""Each instrument against a closed form, and the verdict on models whose trouble is known because it was built in."""

import dataclasses
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from outlines.corpus.batching import TokenBatch, collate
from outlines.corpus.tokenizer import SPECIAL
from outlines.errors import OutlinesError
from outlines.metrics.collapse import (
    Gap,
    Steps,
    active_positions,
    active_units,
    drift,
    edit_distance,
    kl_by_dim,
    kl_by_position,
    latent_gap,
    latent_gap_by_dim,
    mutual_information,
    other_rows,
    output_change,
    signal_noise,
)
from outlines.metrics.collapse_verdict import (
    MIN_GAP,
    Diagnosis,
    Verdict,
    decide,
    diagnose,
    diagnose_steps,
    judge,
    judge_model,
)
from outlines.networks.decoder import Decoder, DecoderConfig
from outlines.networks.gru import GRUConfig, GRUDecoder
from tests.networks.test_losses import sequence_nll

EOS = SPECIAL.eos_id

YES, NO = 4, 5
NUM = 400


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """A sample of N(0, 1) whose every column has mean 0 and variance 1 exactly."""
    # Far from the seeds given to `diagnose`: its noise would repeat these numbers, and z would know x by its noise.
    values = torch.randn(*shape, generator=rng(1000 + seed), dtype=torch.float64)
    return (values - values.mean(dim=0)) / values.std(dim=0)


def quantiles(num: int, num_dims: int) -> Tensor:
    """Columns that are N(0, 1) as nearly as `num` rows can be, in orders of their own: [num, num_dims]."""
    column = torch.special.ndtri((torch.arange(num, dtype=torch.float64) + 0.5) / num)
    return torch.stack([column[torch.randperm(num, generator=rng(dim))] for dim in range(num_dims)], dim=1)


def sign_decoder(*weights: float) -> GRUDecoder:
    """A decoder without memory: at every step the logits of YES, NO and eos are w · z, -w · z and 0."""
    decoder = GRUDecoder(GRUConfig(6, len(weights), embed_dim=1, hidden_dim=1)).eval()
    with torch.no_grad():
        for parameter in (decoder.readout.weight, decoder.readout.bias):
            parameter.zero_()
        decoder.embedding.weight[:, 0] = torch.tensor([0.0, 0, 0, 0, 1, -1])
        decoder.output_bias[:] = -30
        decoder.output_bias[[EOS, YES, NO]] = 0
        decoder.every_readout.weight[0] = torch.tensor(weights)
    return decoder


def sentences(mu: Tensor) -> list[np.ndarray]:
    """YES YES where the first dimension's mu is positive, NO NO elsewhere: three targets, with eos."""
    return [np.array([YES if value > 0 else NO] * 2) for value in mu[:, 0]]


def log_sigma(sigma: float, mu: Tensor) -> Tensor:
    return torch.full_like(mu, 2 * math.log(sigma))


def verdict(diagnosis: Diagnosis) -> Verdict:
    """The verdict of a model that is the same in every dimension."""
    assert {dim.verdict for dim in diagnosis.dims} == {diagnosis.verdict}, diagnosis.in_words()
    return diagnosis.verdict


def test_a_linear_gaussian_model_has_its_closed_form() -> None:
    scale, sigma = torch.tensor([1.0, 0.5, 0.1]), torch.tensor([0.5, 0.5, 1.0])
    mu = quantiles(1500, 3) * scale + 1
    logvar = (2 * sigma.log()).expand(1500, 3)
    snr = (scale / sigma) ** 2
    kl = (1 + scale ** 2 + sigma ** 2 - 1 - 2 * sigma.log()) / 2
    strength = signal_noise(mu, logvar)
    for found, expected in [(strength.signal, scale ** 2), (strength.noise, sigma ** 2), (strength.snr, snr),
                            (strength.information, (1 + snr).log() / 2), (kl_by_dim(mu, logvar), kl)]:
        assert found.tolist() == pytest.approx(expected.tolist(), rel=0.02)
    information = float((1 + snr).log().sum() / 2)
    found = mutual_information(mu, logvar, rng(), num_draws=16)
    assert found.nats == pytest.approx(information, rel=0.02)
    assert found.marginal_kl == pytest.approx(float(kl.sum()) - information, rel=0.02)
    assert found.error < 0.02 * information and found.ceiling == math.log(1500)
    alone = mutual_information(mu[:, 1:2], logvar[:, 1:2], rng(), num_draws=16)
    assert alone.nats == pytest.approx(math.log(2) / 2, rel=0.02)


def test_mutual_information_against_its_definition() -> None:
    mu, logvar = normal(30, 2) + 5, normal(30, 2, seed=1) / 2
    z = mu + (logvar / 2).exp() * torch.randn(30, 2, generator=rng(7), dtype=torch.float64)
    posteriors = torch.distributions.Normal(mu, (logvar / 2).exp())
    log_q = posteriors.log_prob(z[:, None]).sum(dim=2)
    terms = log_q.diagonal() - (log_q.exp().mean(dim=1)).log()
    found = mutual_information(mu, logvar, rng(7), chunk=7)
    assert found.nats == pytest.approx(float(terms.mean()))
    assert found.error == pytest.approx(float(terms.std()) / 30 ** 0.5)


def test_the_error_of_the_mutual_information_covers_its_scatter() -> None:
    mu = quantiles(300, 1)
    found = [mutual_information(mu, log_sigma(1, mu), rng(seed)) for seed in range(60)]
    scatter = np.std([one.nats for one in found])
    assert 0.7 * scatter < found[0].error < 1.5 * scatter
    several = mutual_information(mu, log_sigma(1, mu), rng(), num_draws=50)
    assert several.nats == pytest.approx(np.mean([one.nats for one in found]), abs=4 * scatter / 50 ** 0.5)


@pytest.mark.parametrize("sigma", [1.0, 1e-3])
def test_posteriors_that_do_not_overlap_reach_the_ceiling_and_no_more(sigma: float) -> None:
    mu = 100 * torch.arange(50.0)[:, None]
    found = mutual_information(mu, log_sigma(sigma, mu), rng())
    assert found.nats == pytest.approx(math.log(50)) and found.nats <= found.ceiling + 1e-12


def test_a_constant_posterior_off_the_prior_has_a_large_kl_and_says_nothing() -> None:
    mu = torch.full((NUM, 3), 2.0)
    logvar = log_sigma(0.1, mu)
    diagnosis = diagnose(sign_decoder(1, 1, 1), sentences(normal(NUM, 1)), mu, logvar)
    assert verdict(diagnosis) == Verdict.TOO_WEAK
    assert diagnosis.kl == pytest.approx(3 * (4 + 0.01 - 1 - math.log(0.01)) / 2)
    information = diagnosis.mutual_information
    assert information is not None
    assert information.nats == pytest.approx(0, abs=1e-9) and information.marginal_kl == pytest.approx(diagnosis.kl)


def test_kl_against_torch() -> None:
    mu, logvar = normal(20, 4), normal(20, 4, seed=1)
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mu, (logvar / 2).exp()), prior).mean(dim=0)
    assert kl_by_dim(mu, logvar).tolist() == pytest.approx(expected.tolist())
    assert kl_by_dim(torch.zeros(5, 2), torch.zeros(5, 2)).tolist() == [0, 0]


def test_active_units_by_hand() -> None:
    mu = normal(50, 3) * torch.tensor([0.011, 0.009, 0]).sqrt()
    assert active_units(mu) == 1 and active_units(mu, threshold=0.008) == 2


def test_sigma_that_follows_the_sentence_is_seen() -> None:
    mu = normal(50, 2)
    strength = signal_noise(mu, 2 * normal(50, 2, seed=1) * torch.tensor([0.3, 0]))
    assert strength.sigma_variation.tolist() == pytest.approx([0.3, 0])


def test_drift_by_hand() -> None:
    mu = normal(500, 2) * torch.tensor([1.0, 5.0]) + 3
    sigma = log_sigma(0.5, mu)
    frozen = drift([(mu, sigma), (mu, sigma), (mu, sigma)])
    assert frozen.mu.tolist() == frozen.sigma.tolist() == [0, 0]
    redrawn = [(normal(500, 2, seed=seed) * torch.tensor([1.0, 5.0]), sigma) for seed in range(20)]
    assert drift(redrawn).mu.tolist() == pytest.approx([2 ** 0.5] * 2, rel=0.05)
    shifted = drift([(mu, sigma), (mu + 2, log_sigma(1.5, mu))])
    assert shifted.mu.tolist() == pytest.approx([2, 0.4]) and shifted.sigma.tolist() == pytest.approx([1, 0.2])
    assert drift([(mu, None), (mu, None)]).mu.tolist() == [0, 0]


def test_other_rows_are_others_and_not_neighbours_only() -> None:
    others = other_rows(200, 3, rng())
    for line in others:
        assert sorted(line.tolist()) == list(range(200)) and not bool((line == torch.arange(200)).any())
    assert len(set(map(tuple, others.T.tolist()))) == 200 and bool((others[0] != others[1]).all())
    assert ((others[0] - torch.arange(200)).abs() == 1).float().mean() < 0.1
    assert other_rows(2, 1, rng()).tolist() == [[1, 0]]
    with pytest.raises(OutlinesError, match="too few for 3 swaps"):
        other_rows(3, 3, rng())


def test_latent_gap_by_hand() -> None:
    # A wrong sign costs 2 w for each YES or NO, and nothing for eos: 4 w over three targets.
    mu = torch.tensor([[1.0, 7], [-1, 7], [1, 7], [-1, 7]])
    decoder, rows, turned = sign_decoder(0.7, 0), sentences(mu), mu * torch.tensor([-1, 1])
    assert latent_gap(decoder, rows, mu, turned).per_token == pytest.approx(4 * 0.7 / 3, rel=1e-5)
    assert latent_gap(decoder, rows, turned, mu).per_token == pytest.approx(-4 * 0.7 / 3, rel=1e-5)
    assert latent_gap(decoder, rows, mu, turned, mu).per_token == pytest.approx(2 * 0.7 / 3, rel=1e-5)
    assert latent_gap(decoder, rows, mu, turned).error == pytest.approx(0, abs=1e-6)
    assert latent_gap(sign_decoder(0, 0), rows, mu, turned) == Gap(0, 0)
    first, second = latent_gap_by_dim(decoder, rows, mu, turned + 1)
    assert first == latent_gap(decoder, rows, mu, torch.tensor([[0.0, 7], [2, 7], [0, 7], [2, 7]])) and second == Gap(0, 0)


@pytest.mark.parametrize("always_wrong", [False, True])
def test_the_error_of_a_gap_covers_its_scatter(always_wrong: bool) -> None:
    """Also where a sentence's rise is almost its length times a constant, and the ratio of both is nearly certain."""
    mu = torch.randn(6000, 1, generator=rng()).sign()
    others = -mu if always_wrong else mu[other_rows(6000, 1, rng(1))[0]]
    lengths = torch.randint(1, 12, (6000,), generator=rng(2)).tolist()
    rows = [np.array([YES if value > 0 else NO] * length) for value, length in zip(mu, lengths, strict=True)]
    gaps = [latent_gap(sign_decoder(1.0), rows[part], mu[part], others[part])
            for part in (slice(start, start + 100) for start in range(0, 6000, 100))]
    assert np.mean([gap.error for gap in gaps]) == pytest.approx(np.std([gap.per_token for gap in gaps]), rel=0.25)


def test_a_gap_must_be_large_and_not_chance() -> None:
    assert Gap(0.02, 0.006).reaches(0.01)
    assert not Gap(0.02, 0.007).reaches(0.01) and not Gap(0.009, 0.001).reaches(0.01) and not Gap(0, 0).reaches(0)


def test_edit_distance_by_hand() -> None:
    assert edit_distance([], []) == 0 and edit_distance([1, 2], [1, 2]) == 0 and edit_distance([1], []) == 1
    assert edit_distance([1, 2, 3, 4], [2, 3, 9, 4]) == 2 / 4 and edit_distance([1, 2], [3, 4, 5, 6]) == 1
    assert edit_distance([1, 2, 3], [1, 3]) == edit_distance([1, 3], [1, 2, 3]) == 1 / 3


def test_output_change_by_hand() -> None:
    mu = torch.tensor([[1.0]] * 5 + [[-1.0]] * 5)
    blind, sighted = (output_change(sign_decoder(weight), mu, rng(), max_len=3) for weight in (0.0, 1.0))
    assert (blind.distinct, blind.edit_distance, blind.num) == (0.1, 0, 10)
    others = other_rows(10, 1, rng())[0]
    assert sighted.distinct == 0.2 and sighted.edit_distance == float((mu != mu[others]).double().mean()) > 0


def test_an_encoder_held_constant_is_too_weak() -> None:
    mu = 0.01 * normal(NUM, 3) + 0.5
    diagnosis = diagnose(sign_decoder(1, 1, 1), sentences(normal(NUM, 1)), mu, log_sigma(0.9, mu), max_len=2)
    assert verdict(diagnosis) == Verdict.TOO_WEAK and diagnosis.active_units == 0
    assert diagnosis.output_change.distinct == 0.02, "vectors are drawn, not means: the decoder writes YES and NO at random"


@pytest.mark.parametrize("weight", [0.0, 0.01, 1.0])
def test_a_mu_drowned_by_sigma_is_too_noisy(weight: float) -> None:
    """Whether the decoder has learned that z is noise (weights near 0) or trusts it, to its harm."""
    mu = normal(3000, 1)
    diagnosis = diagnose(sign_decoder(weight), sentences(mu), mu, log_sigma(5, mu), max_len=2)
    assert verdict(diagnosis) == Verdict.TOO_NOISY_SAMPLING and diagnosis.active_units == 1
    assert diagnosis.gap.reaches(MIN_GAP) == (weight == 1), "a decoder that trusts noise has a gap"
    assert diagnosis.dims[0].snr == pytest.approx(0.04)


def test_a_sigma_that_follows_the_sentence_is_noise_not_weakness() -> None:
    mu = torch.zeros(NUM, 1)
    diagnosis = diagnose(sign_decoder(0), sentences(mu), mu, normal(NUM, 1))
    assert verdict(diagnosis) == Verdict.TOO_NOISY_SAMPLING


def test_a_mu_redrawn_between_updates_is_too_noisy_by_drift() -> None:
    mu, old = normal(NUM, 2), normal(NUM, 2, seed=1)
    logvar = log_sigma(0.1, mu)
    rows = sentences(mu)
    drifting = diagnose(sign_decoder(0, 0), rows, mu, logvar, probes=[(old, logvar), (mu, logvar)])
    assert verdict(drifting) == Verdict.TOO_NOISY_DRIFT
    assert drifting.dims[0].drift_mu == pytest.approx(2 ** 0.5, rel=0.1)
    assert verdict(diagnose(sign_decoder(0, 0), rows, mu, logvar, probes=[(mu, logvar)] * 2)) == Verdict.IGNORED


def test_a_decoder_that_followed_the_drift_uses_z() -> None:
    mu = normal(NUM, 1)
    logvar = log_sigma(0.1, mu)
    diagnosis = diagnose(sign_decoder(1), sentences(mu), mu, logvar, probes=[(-mu, logvar), (mu, logvar)], max_len=2)
    assert verdict(diagnosis) == Verdict.USED
    assert diagnosis.dims[0].drift_mu == pytest.approx(2, rel=0.01)


def test_a_decoder_blind_to_z_ignores_it() -> None:
    mu = normal(NUM, 2)
    diagnosis = diagnose(sign_decoder(0, 0), sentences(mu), mu, log_sigma(0.1, mu))
    assert verdict(diagnosis) == Verdict.IGNORED
    assert diagnosis.gap == Gap(0, 0) and diagnosis.output_change.distinct == 0.01
    assert diagnosis.mutual_information is not None and diagnosis.mutual_information.nats > 3


def test_no_dimension_is_used_in_a_model_that_is_not() -> None:
    mu = normal(NUM, 2)
    diagnosis = diagnose(sign_decoder(0.013, 0), sentences(mu), mu, log_sigma(0.1, mu), max_len=2)
    assert diagnosis.dims[0].gap.reaches(MIN_GAP / 2) and not diagnosis.gap.reaches(MIN_GAP)
    assert verdict(diagnosis) == Verdict.IGNORED


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_decoder_that_reads_z_uses_it(scale: float) -> None:
    """Whatever the scale of z: a spread of 0.001 is no weakness beside a sigma of 0.0001."""
    mu = scale * normal(NUM, 1)
    diagnosis = diagnose(sign_decoder(2 / scale), sentences(mu), mu, log_sigma(0.1 * scale, mu), max_len=2)
    assert verdict(diagnosis) == Verdict.USED
    assert diagnosis.gap.per_token > 0.5 and diagnosis.output_change.edit_distance > 0.3
    assert diagnosis.gap_prior is not None and diagnosis.gap_prior.per_token > 0.3


def test_a_trained_decoder_uses_what_helps_and_ignores_the_rest() -> None:
    """Dimension 0 chooses the words, dimension 1 is as clear and has nothing to do with them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = GRUDecoder(GRUConfig(6, 2, embed_dim=8, hidden_dim=8))
        optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
        for _ in range(200):
            z = torch.randn(128, 2)
            batch = collate(sentences(z), SPECIAL)
            optimizer.zero_grad()
            decoder.nll(batch, z).mean().backward()
            optimizer.step()
    mu = normal(NUM, 2)
    diagnosis = diagnose(decoder.eval(), sentences(mu), mu, log_sigma(0.1, mu))
    assert [dim.verdict for dim in diagnosis.dims] == [Verdict.USED, Verdict.IGNORED], diagnosis.in_words()
    assert diagnosis.verdict == Verdict.USED and diagnosis.output_change.distinct == 0.02


def test_a_vector_below_log_2_nats_is_not_used_despite_its_gap() -> None:
    mu = 0.5 * normal(NUM, 1)
    diagnosis = diagnose(sign_decoder(1), sentences(mu), mu, log_sigma(1, mu), max_len=2)
    assert diagnosis.mutual_information is not None
    assert diagnosis.gap.reaches(MIN_GAP) and 0.05 < diagnosis.mutual_information.nats < math.log(2)
    assert diagnosis.verdict != Verdict.USED and Verdict.USED not in {dim.verdict for dim in diagnosis.dims}


def test_every_dimension_has_a_verdict_of_its_own() -> None:
    mu = normal(NUM, 5) * torch.tensor([1, 0.01, 1, 1, 1])
    sigma = torch.tensor([0.1, 1, 10, 0.1, 0.1]).expand(NUM, 5)
    old = torch.cat([mu[:, :4], normal(NUM, 1, seed=1)], dim=1)
    logvar = 2 * sigma.log()
    diagnosis = diagnose(sign_decoder(1, 0, 0, 0, 0), sentences(mu), mu, logvar, probes=[(old, logvar), (mu, logvar)],
                         max_len=2)
    assert diagnosis.verdict == Verdict.USED
    assert [dim.verdict for dim in diagnosis.dims] == [Verdict.USED, Verdict.TOO_WEAK, Verdict.TOO_NOISY_SAMPLING,
                                                       Verdict.IGNORED, Verdict.TOO_NOISY_DRIFT]


def test_a_vector_spread_thin_is_used_though_no_dimension_is() -> None:
    mu = (0.25 * normal(NUM, 1)).repeat(1, 64)
    diagnosis = diagnose(sign_decoder(*[0.06] * 64), sentences(mu), mu, log_sigma(1, mu), max_len=2)
    assert diagnosis.verdict == Verdict.USED
    assert {dim.verdict for dim in diagnosis.dims} == {Verdict.TOO_NOISY_SAMPLING}
    assert any("64 too noisy (sampling)" in detail for detail in diagnosis.details())


def test_the_same_instruments_read_an_outline() -> None:
    outlines = normal(NUM, 2).float()
    rows = sentences(outlines.sum(dim=1, keepdim=True))
    seen, ignored = (diagnose(sign_decoder(weight, weight), rows, outlines, max_len=2) for weight in (1.0, 0.0))
    assert verdict(seen) == Verdict.USED and verdict(ignored) == Verdict.IGNORED
    assert seen.kl is seen.mutual_information is seen.gap_prior is seen.dims[0].kl is seen.dims[0].drift_mu is None
    assert seen.dims[0].noise == 0 and 14 < seen.dims[0].information < 17
    constant = diagnose(sign_decoder(1, 1), rows, torch.full((NUM, 2), 0.1), max_len=2)
    assert verdict(constant) == Verdict.TOO_WEAK
    turned = diagnose(sign_decoder(1, 1), rows, outlines, prior=-outlines, max_len=2)
    assert turned.gap_prior == latent_gap(sign_decoder(1, 1), rows, outlines, -outlines)


@pytest.mark.parametrize("figures, expected", [
    ((0.0099, 0.099, 0.049, None, True), Verdict.TOO_WEAK),  # a gap cannot come from what says nothing
    ((0.0101, 0.0, 0.049, None, True), Verdict.TOO_NOISY_SAMPLING),
    ((0.0, 0.101, 0.049, None, True), Verdict.TOO_NOISY_SAMPLING),
    ((0.0, 0.0, 0.051, 9.0, True), Verdict.USED),
    ((1.0, 0.0, 1.0, 1.0, False), Verdict.TOO_NOISY_DRIFT),
    ((1.0, 0.0, 1.0, 0.99, False), Verdict.IGNORED),
    ((1.0, 0.0, 1.0, None, False), Verdict.IGNORED)])
def test_the_thresholds_of_a_dimension(figures: tuple, expected: Verdict) -> None:
    assert judge(*figures) == expected


def test_the_model_is_judged_by_the_dimensions_that_speak() -> None:
    weak, noisy, drifting, ignored = list(Verdict)[1:]
    assert judge_model([weak, weak, noisy], used=False) == weak
    assert judge_model([weak, noisy, noisy], used=False) == noisy
    assert judge_model([weak, weak, ignored], used=False) == ignored
    assert judge_model([weak, drifting, drifting, ignored], used=False) == drifting
    assert judge_model([weak, weak], used=True) == Verdict.USED


def test_the_reason_names_the_figure_that_decided() -> None:
    name = "Its mutual information"
    assert decide(Gap(0.5, 0.01), 0.4, 0.69, name) == (
        False, "Its mutual information is 0.400 nats, below the threshold of 0.69.")
    used, reason = decide(Gap(0.053, 0.02), 1.0, 0.69, name)
    assert not used and reason.endswith("rises by 0.053 ± 0.020 nats per token, less than 3 standard errors above 0.")
    used, reason = decide(Gap(0.002, 0.0001), 1.0, 0.69, name)
    assert not used and reason.endswith("below the threshold of 0.01.")
    assert decide(Gap(0.05, 0.01), 1.0, 0.69, name)[0]


def test_a_diagnosis_is_deterministic_and_plain_json() -> None:
    mu = normal(NUM, 2)
    arguments = sign_decoder(1, 0), sentences(mu), mu, log_sigma(0.5, mu)
    state = torch.get_rng_state()
    first, second, other = (diagnose(*arguments, seed=seed, max_len=2) for seed in (3, 3, 4))
    assert first == second != other and torch.equal(torch.get_rng_state(), state)
    figures = json.loads(json.dumps(dataclasses.asdict(first), allow_nan=False))
    assert figures["verdict"] == figures["dims"][0]["verdict"] == "used" and figures["dims"][1]["verdict"] != "used"
    assert figures["gap"]["per_token"] == first.gap.per_token
    assert figures["mutual_information"]["ceiling"] == math.log(NUM)
    assert figures["dims"][0]["gap"]["error"] == first.dims[0].gap.error
    assert first.in_words().startswith("The vector is used. With another sentence's vector, the NLL rises by ")
    assert first.in_words().endswith("above the threshold of 0.01.") and first.reason in first.in_words()
    assert "2 dimensions, each swapped on its own in 256 sentences: 1 used, 1 ignored by the decoder." in first.details()


def test_input_that_cannot_be_judged_is_refused() -> None:
    mu = normal(4, 2)
    rows = sentences(mu)
    for bad_mu, logvar in [(mu * torch.inf, None), (mu, mu * torch.nan)]:
        with pytest.raises(OutlinesError, match="NaN"):
            diagnose(sign_decoder(1, 1), rows, bad_mu, logvar)
    with pytest.raises(ValueError, match="evaluation mode"):
        diagnose(sign_decoder(1, 1).train(), rows, mu)


# A latent per step


@dataclass
class Signs:
    """The cache of StepSigns: the signs [B, steps] and the number of steps taken."""

    signs: Tensor
    step: int = 0

    def select(self, rows: Tensor) -> "Signs":
        return Signs(self.signs[rows], self.step)


class StepSigns(Decoder):
    """A decoder without memory: at step t the logits of YES, NO and eos are w · z_t, -w · z_t and 0."""

    def __init__(self, weight: float, num_steps: int):
        super().__init__(DecoderConfig(6, 2 * num_steps))
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = nn.Parameter(torch.full((6,), -30.0).index_fill(0, torch.tensor([EOS, YES, NO]), 0.0))

    def logits(self, signs: Tensor) -> Tensor:
        return self.weight * signs[..., None] * torch.tensor([0.0, 0, 0, 0, 1, -1]) + self.bias

    def nll(self, tokens: TokenBatch, vector: Tensor | None) -> Tensor:
        assert vector is not None
        signs = vector.unflatten(1, (-1, 2))[:, :tokens.inputs.shape[1], 0]  # the second dimension is for nothing
        return sequence_nll(self.logits(signs), tokens.targets, tokens.mask)

    def start(self, vector: Tensor | None, num: int) -> Signs:
        assert vector is not None
        return Signs(vector.unflatten(1, (-1, 2))[:, :, 0])

    def step(self, tokens: Tensor, cache: Signs) -> Tensor:
        cache.step += 1
        return self.logits(cache.signs[:, min(cache.step, cache.signs.shape[1]) - 1])


LENGTH = 4


def step_posterior(signal: float, noise: float, num: int = NUM) -> tuple[list[np.ndarray], Steps]:
    """Sentences of LENGTH words, and a posterior whose first dimension is, at each, signal · its sign with that noise."""
    signs = torch.where(torch.rand(num, LENGTH, generator=rng(5)) < 0.5, -1.0, 1.0)
    rows = [np.where(row > 0, YES, NO) for row in signs.numpy()]
    mu, logvar = torch.zeros(num, LENGTH + 1, 2), torch.zeros(num, LENGTH + 1, 2)
    mu[:, :LENGTH, 0], logvar[:, :LENGTH, 0] = signal * signs, 2 * math.log(noise)
    drawn = mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=rng(6))
    return rows, Steps(mu, logvar, drawn, torch.full((num,), LENGTH + 1))


def test_kl_by_position_is_the_closed_form() -> None:
    steps = Steps(torch.tensor([[[1.0, 0], [2, 0], [9, 9]], [[3.0, 0], [7, 7], [9, 9]]]), torch.zeros(2, 3, 2),
                  torch.zeros(2, 3, 2), torch.tensor([2, 1]))
    assert kl_by_position(steps).tolist() == pytest.approx([(1 + 9) / 4, 2.0]), "what has ended is not counted"
    assert steps.real(steps.mu).tolist() == [[1, 0], [2, 0], [3, 0]]
    narrow = steps._replace(mu=torch.zeros(2, 3, 2), logvar=torch.full((2, 3, 2), math.log(0.25)))
    assert kl_by_position(narrow).tolist() == pytest.approx([0.25 - 1 + math.log(4)] * 2)


def test_active_positions_are_those_where_mu_differs_between_sentences() -> None:
    _, steps = step_posterior(1.0, 0.5)
    assert active_positions(steps) == LENGTH
    steps.mu[:, 1] = 0.7  # off the prior, and the same for all
    steps.mu[:, 2] *= 0.09
    assert active_positions(steps) == LENGTH - 2
    assert active_positions(steps._replace(lengths=torch.tensor([LENGTH] + [1] * (NUM - 1)))) == 1, "one has no variance"


def test_a_dimension_of_a_step_is_changed_at_every_step() -> None:
    rows, steps = step_posterior(2.0, 0.1)
    vectors = steps.drawn.flatten(1)
    others = vectors[other_rows(NUM, 1, rng())[0]]
    decoder = StepSigns(1.5, LENGTH + 1).eval()
    whole = latent_gap(decoder, rows, vectors, others)
    first, second = latent_gap_by_dim(decoder, rows, vectors, others, num_dims=2)
    assert first.per_token == pytest.approx(whole.per_token) and whole.per_token > 1 and second.per_token == 0


def diagnosis_of_steps(signal: float, noise: float, weight: float) -> Diagnosis:
    rows, steps = step_posterior(signal, noise)
    prior = torch.randn(NUM, 2 * (LENGTH + 1), generator=rng(9))
    return diagnose_steps(StepSigns(weight, LENGTH + 1).eval(), rows, steps, prior, max_len=8)


@pytest.mark.parametrize(("signal", "noise", "weight", "verdict"), [
    (2.0, 0.2, 1.5, Verdict.USED), (2.0, 0.2, 0.0, Verdict.IGNORED), (0.0, 1.0, 1.5, Verdict.TOO_WEAK),
    (0.12, 1.0, 1.5, Verdict.TOO_NOISY_SAMPLING)])
def test_the_verdict_on_a_latent_per_step(signal: float, noise: float, weight: float, verdict: Verdict) -> None:
    found = diagnosis_of_steps(signal, noise, weight)
    assert found.dims[0].verdict == verdict and found.dims[1].verdict == Verdict.TOO_WEAK
    assert found.verdict in (verdict, Verdict.TOO_WEAK)
    assert (found.gap.per_token > 0.5) == (verdict == Verdict.USED)
    each = (signal**2 + noise**2 - 1) / 2 - math.log(noise)
    assert found.kl == pytest.approx(LENGTH * each, abs=1e-5)
    assert found.kl_by_position == pytest.approx([each] * LENGTH + [0.0], abs=1e-5)
    assert found.active_positions == (LENGTH if signal**2 > 0.01 else 0)
    assert found.active_units == (signal**2 * LENGTH / (LENGTH + 1) > 0.01)


def test_a_posterior_that_is_the_prior_leaves_no_gap_however_strongly_the_decoder_reads_it() -> None:
    found = diagnosis_of_steps(0.0, 1.0, 3.0)
    assert abs(found.gap.per_token) < 4 * found.gap.error and found.kl == 0
    assert "a latent at every step" in " ".join(found.details())
    assert found.in_words() == "The vector is too weak. Its KL to the prior is 0.000 nats, below the threshold of 0.69."
    data = json.loads(json.dumps(dataclasses.asdict(found)))
    assert len(data["kl_by_position"]) == LENGTH + 1 and len(data["dims"]) == 2 and data["mutual_information"] is None
