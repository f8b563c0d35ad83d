import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from outlines.corpus.batching import TokenBatch, collate
from outlines.decoding.decode import Sampler
from outlines.decoding.sample import SamplingConfig
from outlines.decoding.scoring import nll_of_rows
from outlines.errors import OutlinesError
from outlines.models.lm import LanguageModel
from outlines.models.registry import load_model, save_model
from outlines.networks.decoder import DECODERS, Decoder, DecoderConfig, build_decoder, weakened
from outlines.networks.embedding_init import start_words
from outlines.networks.gru import GRUConfig, GRUDecoder
from outlines.networks.losses import bag_of_words_nll
from outlines.networks.tied import LockedDropout

CONFIG = GRUConfig(vocab_size=11, vector_dim=5, embed_dim=6, hidden_dim=7, num_layers=2, dropout=0.2)


def decoder(vector_dim: int = 5) -> GRUDecoder:
    torch.manual_seed(0)
    return GRUDecoder(GRUConfig(**{**vars(CONFIG), "vector_dim": vector_dim})).eval()


@pytest.mark.parametrize("vector_dim", [0, 5])
def test_a_future_token_cannot_change_a_past_output(vector_dim: int) -> None:
    model = decoder(vector_dim)
    vector = torch.randn(1, vector_dim) if vector_dim else None
    tokens = torch.randint(4, 11, (1, 6))
    changed = tokens.clone()
    changed[0, 4] = 4 + (tokens[0, 4] - 3) % 7
    before, after = model.read(tokens, vector), model.read(changed, vector)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_the_vector_moves_every_logit() -> None:
    model, tokens = decoder(), torch.randint(4, 11, (1, 6))
    one, other = (model.logits(model.read(tokens, torch.randn(1, 5))) for _ in range(2))
    difference = (one - other).abs().amax(dim=2)
    assert (difference > 1e-4).all()


def test_step_by_step_equals_teacher_forcing() -> None:
    tokens, vector = torch.randint(4, 11, (3, 5)), torch.randn(3, 5)
    for shape in ({}, {"num_layers": 1}, {"vector_into": "first_state"}, {"vector_dim": 0}, {"mix_dim": 4}):
        model = GRUDecoder(dataclasses.replace(decoder().config, **shape)).eval()
        given = vector if model.config.vector_dim else None
        cache = model.start(given, 3)
        logits = torch.stack([model.step(token, cache) for token in tokens.T], dim=1)
        assert torch.allclose(logits, model.logits(model.read(tokens, given)), atol=1e-6), shape


def test_mix_dim_adds_a_hidden_layer_to_the_readout() -> None:
    model = GRUDecoder(dataclasses.replace(CONFIG, mix_dim=4))
    readouts = torch.randn(3, CONFIG.embed_dim + 4)
    linear, inner = readouts[:, :CONFIG.embed_dim], readouts[:, CONFIG.embed_dim:]
    gelu = inner * (1 + torch.erf(inner / 2 ** 0.5)) / 2
    assert torch.allclose(model.mixed(readouts), linear + gelu @ model.mix.weight.T, atol=1e-6)


def test_embeddings_are_tied_and_shapes_hold() -> None:
    model = decoder()
    tokens = torch.zeros(2, 3, dtype=torch.long)
    assert model.logits(model.read(tokens, torch.zeros(2, 5))).shape == (2, 3, 11)
    assert sum(parameter.shape == (11, 6) for parameter in model.parameters()) == 1


def test_scores_do_not_depend_on_the_batch() -> None:
    model = decoder()
    rows = [torch.randint(4, 11, (length,)).numpy() for length in (3, 1, 5, 2)]
    vectors = torch.randn(4, 5)
    together, counts = nll_of_rows(model, rows, vectors, batch_size=4)
    alone = [nll_of_rows(model, [row], vectors[index:index + 1])[0][0] for index, row in enumerate(rows)]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    assert counts.tolist() == [4, 2, 6, 3]  # eos counts


def test_scoring_refuses_dropout() -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        nll_of_rows(decoder().train(), [torch.tensor([5]).numpy()], torch.zeros(1, 5))


def test_locked_dropout_keeps_one_mask_a_sentence_and_the_mean() -> None:
    torch.manual_seed(0)
    dropped = LockedDropout(0.25)(torch.ones(200, 9, 50))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(LockedDropout(0.25).eval()(dropped), dropped)


@pytest.mark.parametrize("vector_dim", [0, 5])
def test_overfits_eight_sentences(vector_dim: int) -> None:
    torch.manual_seed(1)
    model = GRUDecoder(GRUConfig(11, vector_dim, embed_dim=16, hidden_dim=32, dropout=0.0))
    batch = collate([torch.randint(4, 11, (6,)).numpy() for _ in range(8)], model.config)
    vector = torch.randn(8, vector_dim) if vector_dim else None
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        nll = model.nll(batch, vector).mean()
        optimizer.zero_grad()
        nll.backward()
        optimizer.step()
    # With its vector a sentence is certain; without one, which of the eight it is costs log 8 = 2.08 nats.
    assert nll.item() < (0.2 if vector_dim else 2.6)


# Another kind of decoder, registered by its file


@dataclass(frozen=True)
class BagConfig(DecoderConfig):
    kind: str = "bag"
    temperature: float = 1.0


@dataclass
class BagCache:
    logits: torch.Tensor

    def select(self, rows: torch.Tensor) -> "BagCache":
        return BagCache(self.logits[rows])


class BagDecoder(Decoder):
    """Every token comes from one distribution, which the vector sets."""

    config_class = BagConfig
    config: BagConfig

    def __init__(self, config: BagConfig):
        super().__init__(config)
        self.output = torch.nn.Linear(max(1, config.vector_dim), config.vocab_size)

    def start(self, vector: torch.Tensor | None, num: int) -> BagCache:
        vector = self.output.weight.new_zeros(num, self.output.in_features) if vector is None else vector
        return BagCache(self.output(vector) / self.config.temperature)

    def step(self, tokens: torch.Tensor, cache: BagCache) -> torch.Tensor:
        return cache.logits

    def nll(self, tokens: TokenBatch, vector: torch.Tensor | None) -> torch.Tensor:
        return bag_of_words_nll(self.start(vector, len(tokens.inputs)).logits, tokens.targets, tokens.mask)


DECODERS["bag"] = BagDecoder


@pytest.mark.parametrize("vector_dim", [0, 5])
def test_another_kind_of_decoder_learns_scores_and_writes(vector_dim: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(BagConfig(11, vector_dim, vector_dropout=0.1))
    decoder, vector = model.decoder, torch.randn(8, vector_dim) if vector_dim else None
    rows = [torch.randint(4, 11, (6,)).numpy() for _ in range(8)]
    batch, optimizer, losses = collate(rows, decoder.config), torch.optim.Adam(decoder.parameters(), lr=0.1), []
    for _ in range(30):
        losses.append(decoder.nll(batch, vector).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    save_model(tmp_path / "model", model)
    loaded = load_model(tmp_path / "model").decoder
    assert isinstance(loaded, BagDecoder) and loaded.config == decoder.config
    nll, num_targets = nll_of_rows(loaded, rows, vector)
    assert nll.tolist() == pytest.approx(decoder.nll(batch, vector).tolist(), rel=1e-5) and set(num_targets) == {7}
    uniforms = torch.rand(8, 12)
    for config in (SamplingConfig(max_len=12), SamplingConfig(beam=2, max_len=4), SamplingConfig(temperature=0, max_len=4)):
        written = Sampler(loaded)(vector, uniforms, config, [5])
        alone = [Sampler(loaded)(None if vector is None else vector[row:row + 1], uniforms[row:row + 1], config, [5])[0]
                 for row in range(8)]
        assert written == alone and all(row[0] == 5 and len(row) <= config.max_len for row in written)
    if vector is not None:
        guided = Sampler(loaded)(vector, uniforms, SamplingConfig(guidance=0.0, max_len=12))
        assert guided == Sampler(loaded)(torch.zeros_like(vector), uniforms, SamplingConfig(max_len=12))


def test_an_unknown_kind_is_named_with_the_nearest() -> None:
    with pytest.raises(OutlinesError, match=r"unknown decoder 'gro'\. Did you mean 'gru'"):
        build_decoder(DecoderConfig(11, 0, kind="gro"))


def test_a_decoder_without_word_embeddings_cannot_start_from_counts() -> None:
    with pytest.raises(OutlinesError, match=r"no embeddings to initialise from counts\. Use --word-start random"):
        start_words(build_decoder(BagConfig(11, 0)), [torch.tensor([5]).numpy()], 1)


def test_a_weakened_vector_is_the_mean_of_the_vectors_behind_it() -> None:
    torch.manual_seed(0)
    vectors, noise = torch.randn(2, 200_000, 1)
    for strength in (0.2, 0.5, 0.9):
        weak = weakened(vectors, torch.full_like(vectors, strength), noise)
        # The regression of the vector on the weak one has slope 1: to read the weak vector as it is, is the best guess.
        assert float((vectors * weak).sum() / weak.square().sum()) == pytest.approx(1, abs=0.02)
        assert float(weak.var()) == pytest.approx(strength, abs=0.01)
    assert torch.equal(weakened(vectors, torch.ones_like(vectors), noise), vectors)
    assert not weakened(vectors, torch.zeros_like(vectors), noise).any()
