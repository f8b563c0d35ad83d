"""The project's own sentence encoder: a bidirectional GRU over the corpus's tokens, frozen after training.

Sources: Hill, Cho and Korhonen, Learning Distributed Representations of Sentences from Unlabelled Data (2016);
the network: Conneau et al., Supervised Learning of Universal Sentence Representations (2017).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from outlines.checkpoint import MANIFEST, atomic_write, read_state, sha256_file, write_state
from outlines.corpus.batching import collate, in_like_length
from outlines.corpus.lm_tokenizer import load_tokenizer
from outlines.corpus.tokenizer import SpecialIds
from outlines.errors import OutlinesError
from outlines.hardening import build_module

KIND = "recurrent-encoder"


@dataclass(frozen=True)
class RecurrentEncoderConfig(SpecialIds):
    """The sizes of a `RecurrentEncoder`. hidden_dim: width per direction. dropout: of embeddings and of pooled states."""

    vocab_size: int
    embed_dim: int = 256
    hidden_dim: int = 384
    outline_dim: int = 384
    dropout: float = 0.1


class RecurrentEncoder(nn.Module):
    """A bidirectional GRU with mean and maximum pooling and a projection to outlines of unit norm."""

    def __init__(self, config: RecurrentEncoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim, padding_idx=config.pad_id)
        self.forward_gru = nn.GRU(config.embed_dim, config.hidden_dim, batch_first=True)
        self.backward_gru = nn.GRU(config.embed_dim, config.hidden_dim, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(4 * config.hidden_dim, config.outline_dim)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return outlines [B, D] of unit norm. Arguments: see `project_sentences`."""
        return nn.functional.normalize(self.project_sentences(inputs, lengths), dim=1)

    def project_sentences(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return outlines [B, D] before normalisation. inputs: [B, T], bos, tokens and padding. lengths: [B]."""
        embedded = self.dropout(self.embedding(inputs))
        lengths, position = lengths.to(inputs.device)[:, None], torch.arange(inputs.shape[1], device=inputs.device)
        padding = (position >= lengths)[..., None]
        # Each row is reversed up to its length. Packed rows would be slow: on a CPU, their backward pass is O(T²).
        from_the_end = torch.where(padding, position[:, None], (lengths - 1 - position)[..., None])
        forward = self.forward_gru(embedded)[0]
        backward = self.backward_gru(embedded.take_along_dim(from_the_end, dim=1))[0].take_along_dim(from_the_end, dim=1)
        states = torch.cat([forward, backward], dim=2)  # [B, T, 2 H]
        mean = states.masked_fill(padding, 0.0).sum(dim=1) / lengths
        largest = states.masked_fill(padding, float("-inf")).amax(dim=1)
        return self.project(self.dropout(torch.cat([mean, largest], dim=1)))

    @torch.no_grad()
    def project_rows(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Return outlines [N, D] before normalisation for N rows of token ids, without gradients."""
        weight = self.project.weight
        projected = weight.new_empty(len(rows), self.config.outline_dim)
        for chosen in in_like_length(rows, batch_size=64):
            batch = collate([rows[row] for row in chosen], self.config)
            projected[torch.from_numpy(chosen)] = self.project_sentences(batch.inputs.to(weight.device), batch.lengths)
        return projected


def corrupt(inputs: Tensor, lengths: Tensor, drop: float, shuffle_distance: int, generator: torch.Generator,
            special: SpecialIds) -> tuple[Tensor, Tensor]:
    """Return a noisy copy of each sentence, with tokens dropped and shuffled: ids [B, T'] and lengths [B].

    bos stays first, eos last, and a row keeps at least one other token. inputs: ids [B, T]. lengths: [B], without padding.
    drop: probability of dropping a token. shuffle_distance: maximum number of places that a remaining token moves.
    Source: Lample et al., Unsupervised Machine Translation Using Monolingual Corpora Only (2018), section 2.3.
    """
    device = inputs.device
    draws, shifts = torch.rand((2, *inputs.shape), generator=generator, device=generator.device).to(device)
    position = torch.arange(inputs.shape[1], device=device)
    real = position < lengths.to(device)[:, None]
    words = real & (inputs != special.bos_id) & (inputs != special.eos_id)
    # The token with the largest random number is always kept, because all others may be dropped.
    most = draws.masked_fill(~words, -1.0).amax(dim=1, keepdim=True)
    kept = (words & ((draws >= drop) | (draws == most))) | (real & ~words)
    order = position + torch.where(words, shifts * (shuffle_distance + 1), 0.0)
    order = order.masked_fill(inputs == special.eos_id, inputs.shape[1] + shuffle_distance + 1)
    order = order.masked_fill(~kept, float("inf")).argsort(dim=1, stable=True)
    new_lengths = kept.sum(dim=1)
    noisy = inputs.gather(1, order).masked_fill(position >= new_lengths[:, None], special.pad_id)
    return noisy[:, :int(new_lengths.max())], new_lengths.to(lengths)


class FrozenRecurrentEncoder:
    """A `SentenceEncoder`, loaded from files that `save_recurrent_encoder` wrote. Raises OutlinesError."""

    normalized = True

    def __init__(self, directory: Path, device: str = "cpu"):
        tensors, meta = read_state(directory / "state")
        if meta.get("kind") != KIND:
            raise OutlinesError(f"{directory}: contains {str(meta.get('kind'))[:40]!r}, not a {KIND}. "
                                "Train one with `python -m train encoder`.")
        self._tokenizer = load_tokenizer(directory / "tokenizer.model", str(meta.get("tokenizer_sha256")))
        config: dict[str, Any] = meta.get("config", {})
        self._module = build_module(lambda: RecurrentEncoder(RecurrentEncoderConfig(**config)), config, tensors, directory)
        self._module.to(device).eval().requires_grad_(False)
        self.name, self.dim = f"recurrent:{directory}", self._module.config.outline_dim
        # The manifest contains the hashes of weights and metadata, and the metadata contains the hash of the tokenizer.
        self.fingerprint = hashlib.sha256((directory / "state" / MANIFEST).read_bytes()).hexdigest()

    @torch.inference_mode()
    def encode(self, sentences: list[str]) -> np.ndarray:
        rows = [np.array(ids, dtype=np.int64) for ids in self._tokenizer.encode(sentences)]
        return nn.functional.normalize(self._module.project_rows(rows), dim=1).cpu().numpy()

    def unread(self, sentences: list[str]) -> tuple[float, float]:
        return 0.0, 0.0  # The tokenizer writes unknown characters as bytes, and a GRU has no maximum length.


def save_recurrent_encoder(directory: Path, module: RecurrentEncoder, tokenizer_path: Path) -> None:
    """Write the files of a `FrozenRecurrentEncoder`: the tokenizer, then the weights and the tokenizer's SHA-256."""
    meta = {"kind": KIND, "config": asdict(module.config), "tokenizer_sha256": sha256_file(tokenizer_path)}
    atomic_write(directory / "tokenizer.model", tokenizer_path.read_bytes())
    write_state(directory / "state", module.state_dict(), meta)
