"""A pretrained causal language model: a judge that was trained on other text, and features for MAUVE.

The other judges are trained on the same corpus as the models that they score.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from outlines.causal_lm import begin_token, find_causal_lm
from outlines.corpus.batching import in_like_length
from outlines.metrics.text import words

NUM_JUDGED = 1000  # number of sentences that are scored: the first ones
BATCH_SIZE = 32
MAX_LEN = 100  # tokens; longer sentences are not scored, and are cut for features


class PretrainedNll(NamedTuple):
    """Total NLL of sentences in nats, and the numbers of tokens and words. The end of a sentence is not scored."""

    nll: float
    num_tokens: int
    num_words: int

    def figures(self, name: str) -> dict[str, float]:
        """Return the values with the keys NAME_nll_per_word and NAME_nll_per_token; nothing if there are no words."""
        if not self.num_tokens or not self.num_words:
            return {}
        return {f"{name}_nll_per_word": self.nll / self.num_words, f"{name}_nll_per_token": self.nll / self.num_tokens}


class PretrainedLM:
    """A language model from outlines/causal_lm.py. Its weights are loaded when it first reads a sentence."""

    def __init__(self, name: str, device: torch.device | str = "cpu"):
        self._found, self._device = find_causal_lm(name), device
        self.name, self.fingerprint = name, self._found.fingerprint

    @cached_property
    def _model(self) -> Any:
        return self._found.model().requires_grad_(False).to(self._device)

    @cached_property
    def _tokenizer(self) -> Any:
        return self._found.tokenizer()

    @cached_property
    def _begin(self) -> int:
        return begin_token(self._tokenizer)

    @torch.no_grad()
    def score(self, sentences: Sequence[str]) -> PretrainedNll:
        """Return the NLL of the first NUM_JUDGED sentences. Skips sentences of more than MAX_LEN tokens.

        Each sentence is scored on its own, after the token that begins a text.

        The end of a sentence is not predicted, because training texts of such a model are longer than one sentence.
        """
        pairs = zip(sentences[:NUM_JUDGED], self._tokens(sentences[:NUM_JUDGED]), strict=True)
        judged = [(sentence, [self._begin, *row]) for sentence, row in pairs if len(row) <= MAX_LEN]
        nll, num_tokens = 0.0, 0
        for _, ids, mask in self._batches([row for _, row in judged]):
            logits = self._model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].float()
            each = functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
            nll, num_tokens = nll + float(each[mask[:, 1:]].double().sum()), num_tokens + int(mask[:, 1:].sum())
        return PretrainedNll(nll, num_tokens, sum(len(words(sentence)) for sentence, _ in judged))

    @torch.no_grad()
    def encode(self, sentences: list[str]) -> np.ndarray:
        """Return the last layer's state at the last token of each sentence, cut to MAX_LEN tokens: [N, D] float32.

        Source: Pillutla et al., MAUVE (2021), with GPT-2 large.
        """
        features = np.zeros((len(sentences), self._model.config.hidden_size), dtype=np.float32)
        for rows, ids, mask in self._batches([row[:MAX_LEN] or [self._begin] for row in self._tokens(sentences)]):
            states = self._model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[-1]
            last = torch.arange(len(ids), device=ids.device), mask.sum(dim=1) - 1
            features[rows] = states[last].float().cpu().numpy()
        return features

    def _tokens(self, sentences: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(sentences), add_special_tokens=False)["input_ids"] if sentences else []

    def _batches(self, ids: Sequence[list[int]]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Yield batches of rows with similar lengths: indices of the rows [B], token ids [B, T], mask [B, T]."""
        for chosen in in_like_length([np.array(row) for row in ids], BATCH_SIZE):
            lengths = torch.tensor([len(ids[row]) for row in chosen])
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
            padded = torch.zeros(mask.shape, dtype=torch.long)  # padding comes last, so its id has no effect
            padded[mask] = torch.tensor([token for row in chosen for token in ids[row]])
            yield chosen, padded.to(self._device), mask.to(self._device)
