"""Tiny random causal language models, in the format of transformers, with a byte-level BPE tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch

VOCAB_SIZE = 420


def tiny_causal_lm(kind: str, corpus: Path, directory: Path) -> Path:
    """Write an untrained model of a kind, gpt2 or llama, and a tokenizer of the corpus; return the directory."""
    transformers: Any = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    pytest.importorskip("gguf")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<|endoftext|>"] if kind == "gpt2" else ["<|begin|>", "<|end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    text = [*corpus.read_text().splitlines(), "Unicorns juggle quickly. " * 200]  # also pieces that the corpus does not use
    tokenizer.train_from_iterator(text, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0],
                                         eos_token=special[-1]).save_pretrained(directory)
    shape: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": len(special) - 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            config = transformers.GPT2Config(**shape, n_embd=16, n_layer=2, n_head=2, n_positions=128)
            model = transformers.GPT2LMHeadModel(config)
        else:
            config = transformers.LlamaConfig(
                **shape, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=False)
            model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(directory)
    return directory
