"""The recurrent encoder: its outlines, the noise of its training, and its directory on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from outlines.corpus.tokenizer import SPECIAL, train_tokenizer
from outlines.encoders import load_encoder
from outlines.encoders.recurrent import (
    FrozenRecurrentEncoder,
    RecurrentEncoder,
    RecurrentEncoderConfig,
    corrupt,
    save_recurrent_encoder,
)
from outlines.errors import OutlinesError

BOS, EOS, PAD = SPECIAL.bos_id, SPECIAL.eos_id, SPECIAL.pad_id

CONFIG = RecurrentEncoderConfig(vocab_size=50, embed_dim=8, hidden_dim=12, outline_dim=6)
SENTENCES = ["a dog runs", "two men stand on a red bridge", "a cat", "", "the child paints a green boat"]


def test_outlines_have_unit_norm_and_padding_cannot_change_them() -> None:
    torch.manual_seed(0)
    module = RecurrentEncoder(CONFIG).double().eval()
    row = torch.tensor([[BOS, 10, 20, 30]])
    alone = module(row, torch.tensor([4]))
    # Outlines must not depend on the padding's ids or length, or on the other rows.
    padded = torch.tensor([[BOS, 10, 20, 30, 47, PAD, 48, PAD, PAD], [BOS, *range(4, 12)]])
    together = module(padded, torch.tensor([4, 9]))
    assert together.shape == (2, 6)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2, dtype=torch.float64))
    assert not torch.allclose(together[0], together[1])


def test_both_directions_equal_a_packed_bidirectional_gru() -> None:
    torch.manual_seed(0)
    encoder = RecurrentEncoder(RecurrentEncoderConfig(vocab_size=30, embed_dim=6, hidden_dim=7, outline_dim=28)).eval()
    encoder.project = torch.nn.Identity()
    together = torch.nn.GRU(6, 7, batch_first=True, bidirectional=True)
    for suffix, single in (("", encoder.forward_gru), ("_reverse", encoder.backward_gru)):
        for name, weight in single.named_parameters():
            getattr(together, name + suffix).data.copy_(weight)
    inputs, lengths = torch.randint(4, 30, (5, 9)), torch.tensor([9, 1, 4, 7, 2])
    packed = pack_padded_sequence(encoder.embedding(inputs), lengths, batch_first=True, enforce_sorted=False)
    states, _ = pad_packed_sequence(together(packed)[0], batch_first=True)
    for row, (length, pooled) in enumerate(zip(lengths.tolist(), encoder.project_sentences(inputs, lengths), strict=True)):
        real = states[row, :length]
        assert torch.allclose(pooled, torch.cat([real.mean(dim=0), real.amax(dim=0)]), atol=1e-6)


def test_every_token_counts_and_so_does_order() -> None:
    torch.manual_seed(0)
    module = RecurrentEncoder(CONFIG).eval()
    rows = torch.tensor([[BOS, 10, 20, 30], [BOS, 10, 20, 31], [BOS, 11, 20, 30], [BOS, 30, 20, 10]])
    outlines = module(rows, torch.full((4,), 4))
    assert (torch.pdist(outlines) > 1e-3).all()


@settings(deadline=None, max_examples=60)
@given(st.data(), st.floats(0, 1), st.integers(0, 4), st.integers(0, 2**32), st.booleans())
def test_corrupt_keeps_its_promises(data: st.DataObject, drop: float, distance: int, seed: int,
                                    ends: bool) -> None:
    words = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    rows = [[BOS, *range(10, 10 + count)] + ([EOS] if ends else []) for count in words]
    lengths = torch.tensor([len(row) for row in rows])
    inputs = torch.tensor([row + [PAD] * (int(lengths.max()) + 2 - len(row)) for row in rows])
    before = inputs.clone()
    noisy, new_lengths = corrupt(inputs, lengths, drop, distance, torch.Generator().manual_seed(seed), SPECIAL)
    assert torch.equal(inputs, before)
    assert noisy.shape == (len(rows), int(new_lengths.max())) and new_lengths.dtype == lengths.dtype
    for row, source, length in zip(noisy.tolist(), rows, new_lengths.tolist(), strict=True):
        assert row[length:] == [PAD] * (noisy.shape[1] - length)
        assert row[0] == BOS and row[:length].count(BOS) == 1
        assert (row[length - 1] == EOS and row[:length].count(EOS) == 1) if ends else EOS not in row
        kept = [token for token in row[:length] if token not in (BOS, EOS)]
        assert len(set(kept)) == len(kept) and set(kept) <= set(source)
        assert kept or len(source) == 1 + ends
        ranked = sorted(kept)
        assert all(abs(place - ranked.index(token)) <= distance for place, token in enumerate(kept))


def test_corrupt_without_noise_is_the_identity_and_with_full_noise_leaves_one_token() -> None:
    inputs = torch.tensor([[BOS, 7, 8, 9], [BOS, 5, PAD, PAD], [BOS, PAD, PAD, PAD]])
    lengths = torch.tensor([4, 2, 1])
    same, same_lengths = corrupt(inputs, lengths, 0.0, 0, torch.Generator(), SPECIAL)
    assert torch.equal(same, inputs) and torch.equal(same_lengths, lengths)
    least, least_lengths = corrupt(inputs, lengths, 1.0, 3, torch.Generator(), SPECIAL)
    assert least_lengths.tolist() == [2, 2, 1] and least[1].tolist() == [BOS, 5]


def test_corrupt_drops_at_the_given_rate_and_shuffles_within_the_distance() -> None:
    inputs = torch.arange(10, 110).repeat(200, 1)
    lengths = torch.full((200,), 100)
    _, new_lengths = corrupt(inputs, lengths, 0.3, 0, torch.Generator().manual_seed(1), SPECIAL)
    # 20,000 draws: the standard deviation of their mean is 0.0032.
    assert abs(new_lengths.double().mean().item() / 100 - 0.7) < 0.015
    shuffled, _ = corrupt(inputs, lengths, 0.0, 3, torch.Generator().manual_seed(1), SPECIAL)
    assert (shuffled - inputs).abs().max() == 3
    again, _ = corrupt(inputs, lengths, 0.0, 3, torch.Generator().manual_seed(1), SPECIAL)
    assert torch.equal(shuffled, again)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer(SENTENCES * 20, directory / "corpus.model", vocab_size=300)
    torch.manual_seed(3)
    module = RecurrentEncoder(RecurrentEncoderConfig(tokenizer.vocab_size, 8, 12, 6))
    save_recurrent_encoder(directory / "saved", module, directory / "corpus.model")
    return directory / "saved"


def test_frozen_encoder_returns_rows_in_order_for_every_batch_size(saved: Path) -> None:
    encoder = load_encoder(f"recurrent:{saved}")
    assert (encoder.name, encoder.dim, encoder.normalized) == (f"recurrent:{saved}", 6, True)
    many = encoder.encode(SENTENCES * 30)  # three batches
    assert many.shape == (150, 6) and many.dtype == np.float32
    one_by_one = np.concatenate([encoder.encode([sentence]) for sentence in SENTENCES])
    np.testing.assert_allclose(many, np.tile(one_by_one, (30, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1.0, atol=1e-6)
    assert encoder.encode([]).shape == (0, 6)


def test_fingerprint_follows_the_weights_and_survives_a_copy(saved: Path, tmp_path: Path) -> None:
    module = RecurrentEncoder(FrozenRecurrentEncoder(saved)._module.config)
    module.load_state_dict(FrozenRecurrentEncoder(saved)._module.state_dict())
    save_recurrent_encoder(tmp_path / "copy", module, saved / "tokenizer.model")
    assert FrozenRecurrentEncoder(tmp_path / "copy").fingerprint == FrozenRecurrentEncoder(saved).fingerprint
    torch.nn.init.ones_(module.project.bias)
    save_recurrent_encoder(tmp_path / "other", module, saved / "tokenizer.model")
    assert FrozenRecurrentEncoder(tmp_path / "other").fingerprint != FrozenRecurrentEncoder(saved).fingerprint


def test_another_tokenizer_or_a_damaged_file_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(OutlinesError, match="nowhere"):
        load_encoder(f"recurrent:{tmp_path / 'nowhere'}")
    module = RecurrentEncoder(FrozenRecurrentEncoder(saved)._module.config)
    directory = tmp_path / "encoder"
    save_recurrent_encoder(directory, module, saved / "tokenizer.model")
    weights = directory / "state" / "tensors.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(OutlinesError, match=r"tensors\.safetensors: damaged"):
        FrozenRecurrentEncoder(directory)
    save_recurrent_encoder(directory, module, saved / "tokenizer.model")
    train_tokenizer(["other words entirely"] * 20, directory / "tokenizer.model", vocab_size=290)
    with pytest.raises(OutlinesError, match="not the recorded one"):
        FrozenRecurrentEncoder(directory)
