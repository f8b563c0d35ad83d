import pytest
import torch

from outlines.corpus.tokenizer import SPECIAL, Tokenizer
from outlines.decoding.completion import complete
from outlines.decoding.decode import Sampler
from outlines.decoding.sample import SamplingConfig, sample
from outlines.errors import OutlinesError
from outlines.networks.gru import GRUConfig, GRUDecoder

PIECES = ["", "", "", "", " A", " w", "om", "oman", " woman", " wombat", "an", "\n"]


class Pieces:
    """Stands for a tokenizer: knows two texts."""

    special, vocab_size, fingerprint, pieces = SPECIAL, len(PIECES), "", PIECES

    def encode(self, sentences: list[str]) -> list[list[int]]:
        return [{"A wom": [4, 5, 6], "A ": [4], "A \ufeff": [4, 3]}[sentence.rstrip("\n")] for sentence in sentences]


def completed(beginning: str, decoder: GRUDecoder, num: int, config: SamplingConfig) -> list[list[int]]:
    tokenizer: Tokenizer = Pieces()  # type: ignore[assignment]
    uniforms = torch.rand(num, config.max_len, generator=torch.Generator().manual_seed(1))
    return complete(Sampler(decoder), tokenizer, torch.ones(num, 3), uniforms, config, beginning)


@pytest.fixture(scope="module")
def decoder() -> GRUDecoder:
    torch.manual_seed(0)
    decoder = GRUDecoder(GRUConfig(len(PIECES), 3, embed_dim=8, hidden_dim=8)).eval()
    torch.nn.init.normal_(decoder.embedding.weight)
    return decoder


@pytest.mark.parametrize("beginning", ["A wom", "A wom\n"])
def test_half_a_word_is_continued_by_the_probability_of_every_way_to_write_it(decoder: GRUDecoder, beginning: str) -> None:
    ways = [[4, 8], [4, 9], [4, 5, 6], [4, 5, 7]]
    drawn = completed(beginning, decoder, 4000, SamplingConfig(max_len=4))
    shares = torch.tensor([sum(row[:len(way)] == way for row in drawn) for way in ways]) / len(drawn)
    with torch.no_grad():
        logits = decoder.logits(decoder.read(torch.tensor([[SPECIAL.bos_id, 4, 5]]), torch.ones(1, 3)))[0]
    logits[:, [0, 1, 3]] = -torch.inf
    log_p = logits.log_softmax(dim=1)
    joint = torch.stack([log_p[1, 8], log_p[1, 9], log_p[1, 5] + log_p[2, 6], log_p[1, 5] + log_p[2, 7]])
    assert torch.allclose(shares, joint.softmax(dim=0), atol=0.04) and shares.sum() == 1 and shares.min() > 0
    best = ways[int(joint.argmax())]
    for config in (SamplingConfig(temperature=0, max_len=4), SamplingConfig(beam=2, max_len=4)):
        assert completed("A wom", decoder, 2, config)[1][:len(best)] == best


def test_a_space_at_the_end_begins_a_word(decoder: GRUDecoder) -> None:
    drawn = completed("A ", decoder, 50, SamplingConfig(max_len=4))
    assert {row[1] for row in drawn} <= {4, 5, 8, 9} and len({row[1] for row in drawn}) > 1


def test_bytes_at_the_end_are_kept(decoder: GRUDecoder) -> None:
    assert all(row[:2] == [4, 3] for row in completed("A \ufeff", decoder, 9, SamplingConfig(max_len=4)))


def test_a_beginning_that_is_too_long_is_an_error(decoder: GRUDecoder) -> None:
    with pytest.raises(OutlinesError, match="has 3 tokens, but a sentence has at most"):
        completed("A wom", decoder, 1, SamplingConfig(max_len=3))


@pytest.mark.parametrize("beam", [0, 2])
def test_every_row_can_have_its_own_prefix(decoder: GRUDecoder, beam: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outlines.decoding.fast_gru.PLACES", 16)
    prefixes, uniforms = torch.randint(4, 12, (40, 2)), torch.rand(40, 9)
    vectors, config = torch.randn(40, 3), SamplingConfig(max_len=9, beam=beam)
    sampler = Sampler(decoder)
    alone = [sampler(vectors[row, None], uniforms[row, None], config, prefixes[row].tolist())[0] for row in range(40)]
    assert sampler(vectors, uniforms, config, prefixes) == alone
    assert beam or sample(decoder, vectors, uniforms, config, prefixes) == alone
