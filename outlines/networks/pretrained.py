"""A pretrained causal language model as decoder. It reads the vector as prefix embeddings, and at every step.

    inputs    = [prefix(vector), embedding(token) + every_step(vector)]
    p(token)  = softmax(language model(inputs) + output bias), over the pieces that the corpus uses

The prefix is an MLP from the vector to a few embeddings, as in ClipCap (Mokady et al. 2021). Training changes low-rank
adapters of the language model (LoRA, Hu et al. 2022), all its weights, or none. A run stores only the trained weights, and
the name and the fingerprint of the language model.
"""

import importlib
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from outlines.causal_lm import find_causal_lm
from outlines.corpus.batching import TokenBatch
from outlines.corpus.lm_tokenizer import LMTokenizer, from_ranges, to_ranges
from outlines.corpus.tokenizer import Tokenizer
from outlines.errors import OutlinesError
from outlines.networks.decoder import DECODERS, Decoder, DecoderConfig

TUNINGS = ("lora", "full", "frozen")


@dataclass(frozen=True)
class PretrainedConfig(DecoderConfig):
    """The language model, and the sizes of the layers around it."""

    kind: str = "hf:"
    base: str = ""  # name of the language model
    fingerprint: str = ""  # hash of its files
    rows: str = ""  # the language model's id of each token, as ranges
    lm_tuning: str = "lora"  # trained weights of the language model: low-rank adapters, all (full) or none (frozen)
    prefix_len: int = 4
    lora_rank: int = 16


@dataclass
class PretrainedCache:
    """past: transformers' cache of keys and values. terms: added to every embedding, [B, E]."""

    past: Any
    terms: Tensor | None = None

    def select(self, rows: Tensor) -> "PretrainedCache":
        past = type(self.past)()
        for number, layer in enumerate(self.past.layers):
            past.update(layer.keys[rows], layer.values[rows], number)
        return PretrainedCache(past, None if self.terms is None else self.terms[rows])


class PretrainedDecoder(Decoder):
    """Prefix and embeddings → language model → its output layer, restricted to the corpus's pieces, plus a bias."""

    config_class = PretrainedConfig
    config: PretrainedConfig
    pretrained = True
    defaults: ClassVar[dict[str, Any]] = {"decoder_learning_rate": 1e-3, "decoder_batch_size": 32}
    rows_at_once = 256
    never: Tensor
    scale: Tensor  # standard deviation of the embeddings

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        found = find_causal_lm(config.base)
        if found.fingerprint != config.fingerprint:
            raise OutlinesError(f"{config.base}: not the language model that this run was trained with. Install or restore "
                                "the original model, or train again.")
        rows = from_ranges(config.rows, config.vocab_size)
        if len(rows) != config.vocab_size:
            raise ValueError(f"{len(rows)} rows for {config.vocab_size} tokens")
        self.lm = found.model(empty=torch.empty(0).is_meta).train()  # because a new module is in training mode
        # PyTorch's fused attention is slow for short sentences on a CPU: in bfloat16, its backward pass took a third
        # of a training step.
        self.lm.set_attn_implementation("eager")
        width = _restrict(self.lm, rows)
        _choose_trained(self.lm, config)
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        never = torch.zeros(config.vocab_size).index_fill(0, torch.tensor(config.never_written), -torch.inf)
        self.register_buffer("never", never, persistent=False)
        if config.vector_dim:
            self.prefix = nn.Sequential(nn.Linear(config.vector_dim, width), nn.Tanh(),
                                        nn.Linear(width, config.prefix_len * width))
            self.every_step = nn.Linear(config.vector_dim, width, bias=False)
            nn.init.zeros_(self.every_step.weight)
            # The embeddings of language models are small (standard deviation of SmolLM2's: 0.14). Without this factor, one
            # step of AdamW would change the inputs by more than their size.
            self.register_buffer("scale", self.lm.get_input_embeddings().weight.detach().std(), persistent=False)
        trained = {name for name, weights in self.named_parameters() if weights.requires_grad}
        self.base = self.state_dict().keys() - trained  # names of the weights that a run does not store
        self.register_state_dict_post_hook(_remove_base)
        self.register_load_state_dict_pre_hook(_add_base)

    @classmethod
    def settings(cls, name: str, tokenizer: Tokenizer) -> dict[str, Any]:
        if not isinstance(tokenizer, LMTokenizer):
            raise OutlinesError(f"Decoder {name!r} needs its own tokenizer. Use --tokenizer {name}.")
        return {"base": name, "fingerprint": find_causal_lm(name).fingerprint, "rows": to_ranges(tokenizer.rows)}

    def start(self, vector: Tensor | None, num: int) -> PretrainedCache:
        cache = PretrainedCache(importlib.import_module("transformers").DynamicCache())
        if vector is not None:
            self.lm(inputs_embeds=self._prefix(vector), past_key_values=cache.past, use_cache=True)
            cache.terms = self._terms(vector)
        return cache

    def step(self, tokens: Tensor, cache: PretrainedCache) -> Tensor:
        inputs = self._embed(tokens[:, None], cache.terms)
        return self._logits(self.lm(inputs_embeds=inputs, past_key_values=cache.past, use_cache=True))[:, 0]

    def nll(self, tokens: TokenBatch, vector: Tensor | None) -> Tensor:
        nll = functional.cross_entropy(self.read(tokens.inputs, vector).flatten(0, 1), tokens.targets.flatten(),
                                       ignore_index=self.config.pad_id, reduction="none")
        return nll.view_as(tokens.targets).sum(dim=1)

    def read(self, inputs: Tensor, vector: Tensor | None) -> Tensor:
        """Return the logits [B, T, V] after each of the inputs [B, T], bos first."""
        embeddings = self._embed(inputs, None if vector is None else self._terms(vector))
        if vector is not None:
            embeddings = torch.cat([self._prefix(vector).to(embeddings), embeddings], dim=1)
        return self._logits(self.lm(inputs_embeds=embeddings, use_cache=False))[:, -inputs.shape[1]:]

    def _prefix(self, vector: Tensor) -> Tensor:
        return (self.scale * self.prefix(vector)).unflatten(1, (self.config.prefix_len, -1))

    def _terms(self, vector: Tensor) -> Tensor:
        return self.scale * self.every_step(vector)

    def _embed(self, tokens: Tensor, terms: Tensor | None) -> Tensor:
        embeddings = self.lm.get_input_embeddings()(tokens)
        return embeddings if terms is None else embeddings + terms[:, None]

    def _logits(self, output: Any) -> Tensor:
        return output.logits.float() + (self.output_bias + self.never)


def _restrict(lm: Any, rows: list[int]) -> int:
    """Keep only these rows of a language model's embeddings and output layer; return the width of its embeddings."""
    read, write = lm.get_input_embeddings(), lm.get_output_embeddings()
    tied = write.weight is read.weight
    kept = torch.tensor(rows)
    with torch.no_grad():
        for name, layer in (("num_embeddings", read), ("out_features", write)):
            setattr(layer, name, len(rows))
            layer.weight = nn.Parameter(layer.weight.index_select(0, kept))
        if getattr(write, "bias", None) is not None:
            write.bias = nn.Parameter(write.bias.index_select(0, kept))
    if tied:
        write.weight = read.weight
    read.padding_idx = None
    lm.config.vocab_size = len(rows)
    return int(read.weight.shape[1])


def _choose_trained(lm: Any, config: PretrainedConfig) -> None:
    """Add low-rank adapters if `lm_tuning` is lora, and choose which weights of a language model are trained."""
    if config.lm_tuning == "lora":
        peft = importlib.import_module("peft")
        adapters = peft.LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GPT-2 stores transposed matrices, which peft handles and reports
            peft.inject_adapter_in_model(adapters, lm)
    for name, weights in lm.named_parameters():
        weights.requires_grad_(config.lm_tuning == "full" or (config.lm_tuning == "lora" and "lora_" in name))


def _remove_base(decoder: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Remove the language model's untrained weights from the state of a decoder."""
    for name in decoder.base:
        del state[prefix + name]


def _add_base(decoder: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Add the language model's untrained weights to a state before a decoder loads it."""
    own = dict([*decoder.named_parameters(remove_duplicate=False), *decoder.named_buffers(remove_duplicate=False)])
    state.update({prefix + name: own[name].detach() for name in decoder.base})


DECODERS["hf:"] = DECODERS["smollm2"] = PretrainedDecoder
