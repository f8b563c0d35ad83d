import dataclasses
from collections.abc import Callable

import pytest
import torch

from outlines.corpus.tokenizer import SPECIAL
from outlines.decoding import sample as sampling
from outlines.decoding.fast_gru import FastGRU
from outlines.decoding.sample import SamplingConfig, draw, pad
from outlines.errors import OutlinesError
from outlines.networks.gru import GRUConfig, GRUDecoder

BOS, EOS, PAD, UNK = SPECIAL.bos_id, SPECIAL.eos_id, SPECIAL.pad_id, SPECIAL.unk_id
LOGITS = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()


def shares(config: SamplingConfig) -> list[float]:
    """How often each token is chosen when the uniform number sweeps [0, 1)."""
    uniforms = (torch.arange(1000) + 0.5) / 1000
    chosen = draw(pad(LOGITS.repeat(1000, 1)), uniforms, config)
    return (torch.bincount(chosen, minlength=4) / 1000).tolist()


def test_ancestral_sampling_follows_the_probabilities() -> None:
    assert shares(SamplingConfig()) == pytest.approx([0.1, 0.4, 0.3, 0.2], abs=0.002)


def test_temperature_by_hand() -> None:
    squared = torch.tensor([0.01, 0.16, 0.09, 0.04])
    assert shares(SamplingConfig(temperature=0.5)) == pytest.approx((squared / squared.sum()).tolist(), abs=0.002)


def test_greedy_ignores_the_numbers() -> None:
    assert shares(SamplingConfig(temperature=0)) == [0, 1, 0, 0]


def test_top_k_renormalises() -> None:
    assert shares(SamplingConfig(top_k=2)) == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=0.002)


def test_nucleus_is_the_smallest_set_that_holds_the_mass() -> None:
    assert shares(SamplingConfig(top_p=0.65)) == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=0.002)
    assert shares(SamplingConfig(top_p=0.75)) == pytest.approx([0, 4 / 9, 3 / 9, 2 / 9], abs=0.002)
    assert shares(SamplingConfig(top_p=1e-6)) == [0, 1, 0, 0]


def test_an_impossible_token_is_never_chosen() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    edges = torch.tensor([0.0, 0.4999, 0.5001, 0.9999999])
    assert draw(pad(logits.repeat(4, 1)), edges, SamplingConfig()).tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("width", [sampling.RUN // 2, 2 * sampling.RUN, 5 * sampling.RUN + 3])
def test_inversion_by_runs_is_inversion(width: int) -> None:
    rng = torch.Generator().manual_seed(0)
    probabilities = torch.rand(400, width, generator=rng).masked_fill(torch.rand(400, width, generator=rng) < 0.7, 0)
    uniforms = torch.rand(400, generator=rng)
    uniforms[:2] = torch.tensor([0, 1 - 2**-24])
    chosen = draw(pad(probabilities.log()), uniforms, SamplingConfig())
    assert bool((probabilities.gather(1, chosen[:, None]) > 0).all())
    cumulative = (probabilities.double() / probabilities.double().sum(dim=1, keepdim=True)).cumsum(dim=1)
    rounding = 1e-6
    passed = cumulative.gather(1, chosen[:, None])[:, 0]
    before = (cumulative - probabilities / probabilities.sum(dim=1, keepdim=True)).gather(1, chosen[:, None])[:, 0]
    assert bool((uniforms < passed + rounding).all() and (uniforms >= before - rounding).all())


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0},
                                 {"top_p": 1.1}, {"max_len": 0}, {"beam": -1}])
def test_settings_that_cannot_work_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(OutlinesError):
        SamplingConfig(**bad)  # type: ignore[arg-type]


Sample = Callable[..., list[list[int]]]


@pytest.fixture(params=["plain", "fast"])
def sample(request: pytest.FixtureRequest) -> Sample:
    """Both samplers of a GRU decoder."""
    if request.param == "plain":
        return sampling.sample
    return lambda decoder, *arguments: FastGRU(decoder).sample(*arguments)


def test_a_sentence_depends_on_its_own_row_only(sample: Sample) -> None:
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(12, 3, embed_dim=8, hidden_dim=8)).eval()
    vectors, uniforms = torch.randn(20, 3), torch.rand(20, 15)
    config = SamplingConfig(temperature=1.3, max_len=15)
    together = sample(decoder, vectors, uniforms, config)
    alone = [sample(decoder, vectors[row:row + 1], uniforms[row:row + 1], config)[0] for row in range(20)]
    assert together == alone
    assert len({len(sentence) for sentence in together}) > 1, "no row left the batch early: the test shows nothing"
    assert all(token not in (UNK, BOS, EOS, PAD) for sentence in together for token in sentence)


def test_sentences_are_cut_at_max_len(sample: Sample) -> None:
    decoder = GRUDecoder(GRUConfig(6, 0, embed_dim=4, hidden_dim=4)).eval()
    torch.nn.init.zeros_(decoder.embedding.weight)
    decoder.output_bias.data[EOS] = -1e9
    sentences = sample(decoder, None, torch.rand(3, 5), SamplingConfig(max_len=5))
    assert [len(sentence) for sentence in sentences] == [5, 5, 5]


def test_a_forced_beginning_is_kept_and_conditions_what_follows(sample: Sample) -> None:
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(12, 3, embed_dim=8, hidden_dim=8)).eval()
    vectors, uniforms = torch.randn(6, 3), torch.rand(6, 9)
    free = sample(decoder, vectors, uniforms, SamplingConfig(max_len=9))
    # A beginning that sampling had chosen itself changes nothing.
    for row, sentence in enumerate(free):
        for cut in range(min(len(sentence), 8) + 1):
            again = sample(decoder, vectors[row:row + 1], uniforms[row:row + 1], SamplingConfig(max_len=9), sentence[:cut])
            assert again == [sentence]
    assert all(row[:2] == [11, 7] for row in sample(decoder, vectors, uniforms, SamplingConfig(max_len=9), [11, 7]))
    with pytest.raises(OutlinesError, match="has at most"):
        sample(decoder, vectors, uniforms, SamplingConfig(max_len=2), [11, 7])


def test_guidance_weighs_the_logits_with_and_without_a_vector(sample: Sample) -> None:
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(vocab_size=30, vector_dim=5, embed_dim=6, hidden_dim=7, vector_dropout=0.1)).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter)
    vectors, weight = 2 * torch.randn(16, 5), 1.7
    greedy = SamplingConfig(temperature=0, max_len=6, guidance=weight)
    for row, (tokens, vector) in enumerate(zip(sample(decoder, vectors, torch.zeros(16, 6), greedy), vectors, strict=True)):
        inputs = torch.tensor([[BOS, *tokens]])[:, :6]
        given, blind = (decoder.logits(decoder.read(inputs, each))[0] for each in (vector[None], torch.zeros(1, 5)))
        logits = blind + weight * (given - blind)
        logits[:, [UNK, BOS, PAD]] = -torch.inf
        assert [*tokens, EOS][:6] == logits.argmax(dim=1).tolist(), row
    unguided = SamplingConfig(temperature=0, max_len=6)
    assert sample(decoder, vectors, torch.zeros(16, 6), unguided) != sample(decoder, vectors, torch.zeros(16, 6), greedy)
    uniforms = torch.rand(16, 6)
    ignored = sample(decoder, vectors, uniforms, SamplingConfig(max_len=6, guidance=0))
    assert ignored == sample(decoder, torch.zeros(16, 5), uniforms, SamplingConfig(max_len=6))


def test_only_a_decoder_that_has_learnt_without_its_vector_can_be_guided(sample: Sample) -> None:
    config = GRUConfig(vocab_size=30, vector_dim=5, embed_dim=6, hidden_dim=7)
    for decoder, vector in ((GRUDecoder(config), torch.zeros(1, 5)),
                            (GRUDecoder(dataclasses.replace(config, vector_dim=0, vector_dropout=0.1)), None)):
        with pytest.raises(OutlinesError, match="--outline-dropout"):
            sample(decoder, vector, torch.zeros(1, 3), SamplingConfig(max_len=3, guidance=0.5))
    with pytest.raises(OutlinesError, match="guidance must be from 0 to 1000"):
        SamplingConfig(guidance=-1)


def test_a_weaker_vector_is_a_smaller_one(sample: Sample) -> None:
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(vocab_size=30, vector_dim=5, embed_dim=6, hidden_dim=7, min_strength=0.2)).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter)
    vectors, uniforms = 2 * torch.randn(16, 5), torch.rand(16, 6)
    full = sample(decoder, vectors, uniforms, SamplingConfig(max_len=6))
    weak = sample(decoder, vectors, uniforms, SamplingConfig(max_len=6, strength=0.4))
    assert weak == sample(decoder, 0.4 * vectors, uniforms, SamplingConfig(max_len=6)) != full
    assert full == sample(decoder, vectors, uniforms, SamplingConfig(max_len=6, strength=1))


def test_a_decoder_only_reads_vectors_of_a_strength_that_it_was_trained_with(sample: Sample) -> None:
    config = GRUConfig(vocab_size=30, vector_dim=5, embed_dim=6, hidden_dim=7, min_strength=0.5)
    assert sample(GRUDecoder(config), torch.zeros(1, 5), torch.zeros(1, 3), SamplingConfig(max_len=3, strength=0.5))
    for decoder, vector in ((GRUDecoder(config), torch.zeros(1, 5)),
                            (GRUDecoder(dataclasses.replace(config, vector_dim=0)), None)):
        with pytest.raises(OutlinesError, match="--min-strength"):
            sample(decoder, vector, torch.zeros(1, 3), SamplingConfig(max_len=3, strength=0.4))
    with pytest.raises(OutlinesError, match="strength must be from 0 to 1"):
        SamplingConfig(strength=1.1)
