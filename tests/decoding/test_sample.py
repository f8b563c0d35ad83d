import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from outlines.corpus.batching import collate
from outlines.corpus.tokenizer import BOS, EOS, PAD, UNK
from outlines.decoding import sample as sampling
from outlines.decoding.sample import Layout, SamplingConfig, beam_search, choose, sample, weigh
from outlines.errors import OutlinesError
from outlines.networks.decoder import Decoder, DecoderConfig

LOGITS = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()


def shares(config: SamplingConfig) -> list[float]:
    """How often each token is chosen when the uniform number sweeps [0, 1)."""
    uniforms = (torch.arange(1000) + 0.5) / 1000
    chosen = choose(LOGITS.repeat(1000, 1), uniforms, config)
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
    assert choose(logits.repeat(4, 1), edges, SamplingConfig()).tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("width", [sampling.RUN // 2, 2 * sampling.RUN, 5 * sampling.RUN + 3])
def test_inversion_by_runs_is_inversion(width: int) -> None:
    rng = torch.Generator().manual_seed(0)
    probabilities = torch.rand(400, width, generator=rng).masked_fill(torch.rand(400, width, generator=rng) < 0.7, 0)
    uniforms = torch.rand(400, generator=rng)
    uniforms[:2] = torch.tensor([0, 1 - 2**-24])
    chosen = choose(probabilities.log(), uniforms, SamplingConfig())
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


def test_a_sentence_depends_on_its_own_row_only() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(12, 3, embed_dim=8, hidden_dim=8)).eval()
    vectors, uniforms = torch.randn(20, 3), torch.rand(20, 15)
    config = SamplingConfig(temperature=1.3, max_len=15)
    together = sample(decoder, vectors, uniforms, config)
    alone = [sample(decoder, vectors[row:row + 1], uniforms[row:row + 1], config)[0] for row in range(20)]
    assert together == alone
    assert len({len(sentence) for sentence in together}) > 1, "no row left the batch early: the test shows nothing"
    assert all(token not in (UNK, BOS, EOS, PAD) for sentence in together for token in sentence)


@pytest.mark.parametrize("config", [SamplingConfig(max_len=15), SamplingConfig(temperature=0, max_len=4),
                                    SamplingConfig(temperature=0.8, top_p=0.9, max_len=15, guidance=1.5)])
@pytest.mark.parametrize("prefix", [[], [5, 7]])
def test_those_that_wait_take_the_places_of_those_that_end(config: SamplingConfig, prefix: list[int],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(12, 3, embed_dim=8, hidden_dim=8, vector_dropout=0.1)).eval()
    vectors, uniforms = 3 * torch.randn(100, 3), torch.rand(100, 15)
    alone = [sample(decoder, vectors[row:row + 1], uniforms[row:row + 1], config, prefix)[0] for row in range(100)]
    assert sample(decoder, vectors, uniforms, config, prefix) == alone
    standing: list[int] = []
    advance = decoder.advance

    def noting(words: torch.Tensor, state: torch.Tensor, condition: torch.Tensor | None
               ) -> tuple[torch.Tensor, torch.Tensor]:
        standing.append(len(words))
        return advance(words, state, condition)

    monkeypatch.setattr(decoder, "advance", noting)
    monkeypatch.setattr(sampling, "PLACES", 32)
    assert sample(decoder, vectors, uniforms, config, prefix) == alone
    readings = 2 if config.guidance != 1 else 1
    after_the_beginning = standing[readings * len(prefix):]
    assert max(after_the_beginning) == 32 and min(after_the_beginning) == sampling.LEAST_ROWS


@pytest.mark.parametrize("num", [1, 7])
def test_a_rows_logits_are_the_same_to_the_last_bit_in_any_company(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(300, 48, embed_dim=96, hidden_dim=128)).eval()
    vectors, uniforms = torch.randn(200, 48), torch.rand(200, 3)
    seen: list[torch.Tensor] = []

    def noting(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
        seen.append(logits[:num].clone())
        return weigh(logits, config)

    monkeypatch.setattr(sampling, "weigh", noting)
    for rows in (slice(num), slice(sampling.SLICE)):
        sample(decoder, vectors[rows], uniforms[rows], SamplingConfig(max_len=3))
    few, many = seen[:3], seen[3:]
    assert all(torch.equal(one, other) for one, other in zip(few, many, strict=True))


def test_so_are_those_of_a_row_that_begins_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(300, 48, embed_dim=96, hidden_dim=128)).eval()
    vectors, uniforms = torch.randn(sampling.SLICE + 1, 48), torch.rand(sampling.SLICE + 1, 1)
    seen: list[torch.Tensor] = []

    def noting(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
        seen.append(logits[0].clone())
        return weigh(logits, config)

    monkeypatch.setattr(sampling, "weigh", noting)
    sample(decoder, vectors, uniforms, SamplingConfig(max_len=1))
    sample(decoder, vectors[sampling.SLICE:], uniforms[sampling.SLICE:], SamplingConfig(max_len=1))
    _, of_the_second, alone = seen
    assert torch.equal(of_the_second, alone)


@pytest.mark.parametrize("vector_dim, num_layers, config", [
    (0, 1, SamplingConfig(max_len=7)), (48, 1, SamplingConfig(max_len=7)), (48, 3, SamplingConfig(max_len=7)),
    (48, 1, SamplingConfig(temperature=0.5, max_len=7, guidance=1.5))])
def test_bfloat16_hardly_changes_what_tokens_are_drawn_from(vector_dim: int, num_layers: int, config: SamplingConfig,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(300, vector_dim, embed_dim=96, hidden_dim=128, num_layers=num_layers,
                                    vector_dropout=0.1)).eval()
    torch.nn.init.normal_(decoder.output_bias, mean=-8.0)
    vectors = torch.randn(64, vector_dim) if vector_dim else None
    # A beginning, so that both read the same tokens; one step after it.
    begun = [5, 7, 9, 11, 13, 15]
    seen: list[torch.Tensor] = []

    def noting(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
        seen.append(logits[:, :300].log_softmax(dim=1).double())
        return weigh(logits, config)

    monkeypatch.setattr(sampling, "weigh", noting)
    for bfloat16 in (False, True):
        sample(Layout(decoder, bfloat16), vectors, torch.rand(64, 7), config, begun)
    exact, coarse = (logits[:, [EOS, *range(4, 300)]] for logits in seen)
    assert not torch.equal(exact, coarse)
    assert float((exact.exp() * (exact - coarse)).sum(dim=1).mean()) < 3e-4, "nats: the divergence between the two"
    assert bool(seen[1][:, [UNK, BOS, PAD]].isneginf().all())


def test_in_bfloat16_no_token_is_favoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounding does to a token's logit differs from sentence to sentence, and is nothing on average."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(300, 48, embed_dim=96, hidden_dim=128)).eval()
    torch.nn.init.normal_(decoder.output_bias, mean=-8.0)
    torch.nn.init.normal_(decoder.readout.weight, std=0.3)
    vectors, seen = torch.randn(2048, 48), list[torch.Tensor]()

    def noting(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
        seen.append(logits[:, PAD + 1:300].clone())
        return weigh(logits, config)

    monkeypatch.setattr(sampling, "weigh", noting)
    for bfloat16 in (False, True):
        sample(Layout(decoder, bfloat16), vectors, torch.rand(2048, 1), SamplingConfig(max_len=1))
    exact, coarse = torch.cat(seen).chunk(2)
    error = coarse - exact
    assert float(error.square().mean().sqrt()) > 0.01, "nothing was rounded: the test shows nothing"
    assert float(error.mean(dim=0).square().mean().sqrt()) < 0.004


def test_in_bfloat16_a_beginning_that_was_drawn_changes_nothing() -> None:
    torch.manual_seed(0)
    layout = Layout(Decoder(DecoderConfig(12, 3, embed_dim=8, hidden_dim=8)).eval(), bfloat16=True)
    vectors, uniforms = torch.randn(6, 3), torch.rand(6, 9)
    for row, sentence in enumerate(sample(layout, vectors, uniforms, SamplingConfig(max_len=9))):
        for cut in range(min(len(sentence), 8) + 1):
            again = sample(layout, vectors[row:row + 1], uniforms[row:row + 1], SamplingConfig(max_len=9), sentence[:cut])
            assert again == [sentence]


def test_sentences_are_cut_at_max_len() -> None:
    decoder = Decoder(DecoderConfig(6, 0, embed_dim=4, hidden_dim=4)).eval()
    torch.nn.init.zeros_(decoder.embedding.weight)
    decoder.output_bias.data[EOS] = -1e9
    sentences = sample(decoder, None, torch.rand(3, 5), SamplingConfig(max_len=5))
    assert [len(sentence) for sentence in sentences] == [5, 5, 5]


def strong_minded(config: DecoderConfig) -> Decoder:
    """A decoder whose distributions are far from uniform, so that sentences end at different lengths."""
    decoder = Decoder(config).eval()
    torch.nn.init.normal_(decoder.embedding.weight, std=3.0)
    return decoder


def all_sentences(vocab_size: int, max_len: int) -> list[list[int]]:
    """Every sentence of at most max_len speakable tokens."""
    speakable = [token for token in range(vocab_size) if token not in (UNK, BOS, EOS, PAD)]
    return [list(row) for length in range(max_len + 1) for row in itertools.product(speakable, repeat=length)]


def likeliest(decoder: Decoder, vector: torch.Tensor | None, max_len: int, prefix: list[int]) -> list[int]:
    """The mode by exhaustive search, scored by teacher forcing over the speakable tokens alone."""
    sentences = [row for row in all_sentences(decoder.config.vocab_size, max_len) if row[:len(prefix)] == prefix]
    batch = collate([np.array(row) for row in sentences])
    with torch.no_grad():
        logits = decoder(batch.inputs, None if vector is None else vector.expand(len(sentences), -1))
    logits[:, :, [UNK, BOS, PAD]] = -torch.inf
    log_p = logits.log_softmax(dim=2).gather(2, batch.targets.masked_fill(~batch.mask, EOS)[:, :, None])[:, :, 0]
    return sentences[int((log_p * batch.mask).sum(dim=1).argmax())]


@pytest.mark.parametrize("prefix", [[], [5, 4]])
def test_a_wide_beam_finds_what_exhaustive_search_finds(prefix: list[int]) -> None:
    modes = []
    for seed in range(12):
        torch.manual_seed(seed)
        decoder = strong_minded(DecoderConfig(8, 3, embed_dim=8, hidden_dim=8))
        vectors = 3 * torch.randn(3, 3)
        found = beam_search(decoder, vectors, 3, SamplingConfig(beam=4**4, max_len=4), prefix)
        assert found == [likeliest(decoder, vector, 4, prefix) for vector in vectors]
        modes += found
    assert len({len(sentence) for sentence in modes}) > 2, "the modes are all alike: the test shows little"


class Table(Decoder):
    """A language model that is a table: p(next | last token); eos is token 2, words are 4 and 5."""

    def __init__(self, rows: dict[int, dict[int, float]]):
        super().__init__(DecoderConfig(6, 0, embed_dim=6, hidden_dim=2))
        self.table = torch.full((6, 6), -1e9)
        for last, following in rows.items():
            for token, probability in following.items():
                self.table[last, token] = math.log(probability)
        torch.nn.init.eye_(self.embedding.weight)
        self.output_bias.data[self.table.amax(dim=0) == -1e9] = -torch.inf  # never possible

    def words(self) -> torch.Tensor:
        return self.table

    def advance(self, words: torch.Tensor, state: torch.Tensor,
                condition: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return words, state


def test_beam_search_by_hand() -> None:
    # Greedy takes 4 (0.6) and then can do no better than 0.6 · 0.4 = 0.24; 5 first gives 0.4 · 0.9 = 0.36.
    decoder = Table({BOS: {4: 0.6, 5: 0.4}, 4: {EOS: 0.4, 4: 0.3, 5: 0.3}, 5: {EOS: 0.9, 4: 0.1}}).eval()
    assert sample(decoder, None, torch.zeros(1, 8), SamplingConfig(temperature=0, max_len=8)) == [[4]]
    assert beam_search(decoder, None, 2, SamplingConfig(beam=1, max_len=8)) == [[4], [4]]
    assert beam_search(decoder, None, 2, SamplingConfig(beam=2, max_len=8)) == [[5], [5]]
    assert sample(decoder, None, torch.zeros(2, 8), SamplingConfig(beam=2, max_len=8)) == [[5], [5]]


def test_a_beam_in_which_nothing_ends_gives_its_likeliest_prefix() -> None:
    decoder = Table({BOS: {4: 0.6, 5: 0.4}, 4: {4: 0.5, 5: 0.5}, 5: {5: 1.0}}).eval()
    assert beam_search(decoder, None, 1, SamplingConfig(beam=2, max_len=3)) == [[5, 5, 5]]


def test_rows_of_a_beam_search_do_not_touch_one_another() -> None:
    torch.manual_seed(1)
    decoder = strong_minded(DecoderConfig(20, 3, embed_dim=8, hidden_dim=8))
    vectors, config = 3 * torch.randn(9, 3), SamplingConfig(beam=3, max_len=10)
    together = beam_search(decoder, vectors, 9, config)
    assert together == [beam_search(decoder, vector[None], 1, config)[0] for vector in vectors]
    assert len({len(sentence) for sentence in together}) > 1


def test_a_forced_beginning_is_kept_and_conditions_what_follows() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(12, 3, embed_dim=8, hidden_dim=8)).eval()
    vectors, uniforms = torch.randn(6, 3), torch.rand(6, 9)
    free = sample(decoder, vectors, uniforms, SamplingConfig(max_len=9))
    # A beginning that sampling had chosen itself changes nothing.
    for row, sentence in enumerate(free):
        for cut in range(min(len(sentence), 8) + 1):
            again = sample(decoder, vectors[row:row + 1], uniforms[row:row + 1], SamplingConfig(max_len=9), sentence[:cut])
            assert again == [sentence]
    assert all(row[:2] == [11, 7] for row in sample(decoder, vectors, uniforms, SamplingConfig(max_len=9), [11, 7]))
    with pytest.raises(OutlinesError, match="leaves none"):
        sample(decoder, vectors, uniforms, SamplingConfig(max_len=2), [11, 7])


def test_guidance_weighs_the_logits_with_and_without_a_vector() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(vocab_size=30, vector_dim=5, embed_dim=6, hidden_dim=7, vector_dropout=0.1)).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter)
    vectors, weight = 2 * torch.randn(16, 5), 1.7
    greedy = SamplingConfig(temperature=0, max_len=6, guidance=weight)
    for row, (tokens, vector) in enumerate(zip(sample(decoder, vectors, torch.zeros(16, 6), greedy), vectors, strict=True)):
        inputs = torch.tensor([[BOS, *tokens]])[:, :6]
        given, blind = decoder(inputs, vector[None])[0], decoder(inputs, torch.zeros(1, 5))[0]
        logits = blind + weight * (given - blind)
        logits[:, [UNK, BOS, PAD]] = -torch.inf
        assert [*tokens, EOS][:6] == logits.argmax(dim=1).tolist(), row
    unguided = SamplingConfig(temperature=0, max_len=6)
    assert sample(decoder, vectors, torch.zeros(16, 6), unguided) != sample(decoder, vectors, torch.zeros(16, 6), greedy)
    uniforms = torch.rand(16, 6)
    ignored = sample(decoder, vectors, uniforms, SamplingConfig(max_len=6, guidance=0))
    assert ignored == sample(decoder, torch.zeros(16, 5), uniforms, SamplingConfig(max_len=6))


def test_only_a_decoder_that_has_learnt_without_its_vector_can_be_guided() -> None:
    config = DecoderConfig(vocab_size=30, vector_dim=5, embed_dim=6, hidden_dim=7)
    for decoder, vector in ((Decoder(config), torch.zeros(1, 5)),
                            (Decoder(dataclasses.replace(config, vector_dim=0, vector_dropout=0.1)), None)):
        with pytest.raises(OutlinesError, match="--outline-dropout"):
            sample(decoder, vector, torch.zeros(1, 3), SamplingConfig(max_len=3, guidance=0.5))
    with pytest.raises(OutlinesError, match="guidance must be 0"):
        SamplingConfig(guidance=-1)
