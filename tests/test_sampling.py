import pytest
import torch

from outlines.corpus.tokenizer import BOS, EOS, PAD, UNK
from outlines.decoder import Decoder, DecoderConfig
from outlines.errors import OutlinesError
from outlines.sampling import SamplingConfig, choose, sample

LOGITS = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()


def shares(config: SamplingConfig) -> list[float]:
    """How often each token is chosen when the uniform number sweeps [0, 1)."""
    uniforms = (torch.arange(1000) + 0.5) / 1000
    chosen = choose(LOGITS.expand(1000, -1), uniforms, config)
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
    assert choose(logits.expand(4, -1), edges, SamplingConfig()).tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0},
                                 {"top_p": 1.1}, {"max_len": 0}])
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


def test_sentences_are_cut_at_max_len() -> None:
    decoder = Decoder(DecoderConfig(6, 0, embed_dim=4, hidden_dim=4)).eval()
    torch.nn.init.zeros_(decoder.embedding.weight)
    decoder.output_bias.data[EOS] = -1e9
    sentences = sample(decoder, None, torch.rand(3, 5), SamplingConfig(max_len=5))
    assert [len(sentence) for sentence in sentences] == [5, 5, 5]
