"""A pretrained causal language model as decoder: equal to transformers' own model, restricted, and trained in parts."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from outlines.causal_lm import find_causal_lm
from outlines.corpus.batching import TokenBatch, collate
from outlines.corpus.lm_tokenizer import LMTokenizer
from outlines.decoding.decode import Sampler
from outlines.decoding.sample import SamplingConfig
from outlines.errors import CheckpointError, OutlinesError
from outlines.models.lm import LanguageModel
from outlines.models.registry import load_model, save_model
from outlines.networks.decoder import DECODERS, build_decoder, decoder_class
from outlines.networks.pretrained import TUNINGS, PretrainedConfig, PretrainedDecoder

SENTENCES = ["A dog runs.", "Two men play chess in the park.", "A girl is playing a drum."]
LMS = ["tiny_gpt2", "tiny_llama"]


@pytest.fixture(params=LMS)
def name(request: pytest.FixtureRequest) -> str:
    return f"hf:{request.getfixturevalue(request.param)}"


@pytest.fixture
def tokenizer(name: str, tiny_corpus: Path) -> LMTokenizer:
    return LMTokenizer.of_language_model(find_causal_lm(name)).fitted(tiny_corpus.read_text().splitlines())


def config_of(name: str, tokenizer: LMTokenizer, vector_dim: int = 5, **settings: Any) -> PretrainedConfig:
    given = decoder_class(name).settings(name, tokenizer)
    return PretrainedConfig(tokenizer.vocab_size, vector_dim, **given, **settings, prefix_len=3, lora_rank=2)


@pytest.fixture(params=[0, 5])
def decoder(request: pytest.FixtureRequest, name: str, tokenizer: LMTokenizer) -> PretrainedDecoder:
    """Return a decoder without and with a vector, in which every trained weight has an effect."""
    torch.manual_seed(0)
    model = PretrainedDecoder(config_of(name, tokenizer, request.param)).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad and not weights.any():
                weights.normal_(std=0.3)
    return model


def vectors(decoder: PretrainedDecoder, num: int) -> Tensor | None:
    width = decoder.config.vector_dim
    return torch.randn(num, width, generator=torch.Generator().manual_seed(1)) if width else None


def batch_of(tokenizer: LMTokenizer, sentences: list[str] = SENTENCES) -> TokenBatch:
    return collate([np.array(row) for row in tokenizer.encode(sentences)], tokenizer.special)


@torch.no_grad()
def test_without_a_vector_it_is_the_language_model_over_the_kept_pieces(name: str, tokenizer: LMTokenizer) -> None:
    """One sentence and one position at a time, by transformers' own model with its own ids."""
    lm, decoder = find_causal_lm(name).model(), PretrainedDecoder(config_of(name, tokenizer, 0)).eval()
    eos, bos = tokenizer.rows[2], tokenizer.rows[1]
    assert (bos, eos) == ((0, 0) if "gpt2" in name else (0, 1))
    kept = torch.tensor([eos, *tokenizer.rows[4:]])
    expected = []
    for row in tokenizer.encode(SENTENCES):
        nll, read = 0.0, [bos]
        for target in [*(tokenizer.rows[token] for token in row), eos]:
            log_p = lm(torch.tensor([read])).logits[0, -1, kept].log_softmax(dim=0)
            nll -= float(log_p[(kept == target).nonzero()[0, 0]])
            read.append(target)
        expected.append(nll)
    assert decoder.nll(batch_of(tokenizer), None).tolist() == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_the_vector_enters_as_prefix_and_at_every_step(decoder: PretrainedDecoder, tokenizer: LMTokenizer) -> None:
    vector, inputs = vectors(decoder, 1), batch_of(tokenizer, SENTENCES[1:2]).inputs
    if vector is None:
        pytest.skip("no vector")
    embedded = decoder.lm.get_input_embeddings().weight[inputs] + decoder.scale * vector @ decoder.every_step.weight.T
    whole = torch.cat([decoder.scale * decoder.prefix(vector).view(1, 3, -1), embedded], dim=1)
    expected = decoder.lm(inputs_embeds=whole).logits[:, 3:] + decoder.output_bias
    logits, allowed = decoder.read(inputs, vector), [2, *range(4, tokenizer.vocab_size)]
    assert torch.allclose(logits[..., allowed], expected[..., allowed], atol=1e-5)
    assert logits[..., decoder.config.never_written].isneginf().all()


@torch.no_grad()
def test_a_future_token_cannot_change_a_past_output(decoder: PretrainedDecoder, tokenizer: LMTokenizer) -> None:
    inputs, vector = batch_of(tokenizer, SENTENCES[1:2]).inputs, vectors(decoder, 1)
    changed = inputs.clone()
    changed[0, 4] += 1
    before, after = (decoder.read(tokens, vector)[..., 4:] for tokens in (inputs, changed))
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@torch.no_grad()
def test_step_by_step_equals_teacher_forcing_after_rows_are_selected(decoder: PretrainedDecoder,
                                                                     tokenizer: LMTokenizer) -> None:
    inputs, vector = batch_of(tokenizer).inputs[:, :6], vectors(decoder, 3)
    whole, cache = decoder.read(inputs, vector), decoder.start(vector, 3)
    for position in range(2):
        assert torch.allclose(decoder.step(inputs[:, position], cache), whole[:, position], atol=1e-5)
    rows = torch.tensor([2, 0, 2])
    kept, cache = cache, cache.select(rows)
    for position in range(2, 6):
        assert torch.allclose(decoder.step(inputs[rows, position], cache), whole[rows, position], atol=1e-5)
    assert torch.allclose(decoder.step(inputs[:, 2], kept), whole[:, 2], atol=1e-5)  # the first cache is unchanged


def test_padding_does_not_change_the_nll_and_the_vector_has_gradients(decoder: PretrainedDecoder,
                                                                      tokenizer: LMTokenizer) -> None:
    vector = vectors(decoder, 3)
    if vector is not None:
        vector.requires_grad_()
    together = decoder.nll(batch_of(tokenizer), vector)
    alone = [decoder.nll(batch_of(tokenizer, [text]), None if vector is None else vector[row:row + 1])
             for row, text in enumerate(SENTENCES)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    if vector is not None:
        together.sum().backward()
        assert vector.grad is not None and vector.grad.abs().min() > 0


def test_one_update_changes_the_inputs_by_less_than_their_size(name: str, tokenizer: LMTokenizer) -> None:
    """The embeddings of a language model can be much smaller than 1, and AdamW moves every weight by the learning rate."""
    torch.manual_seed(0)
    decoder, vector = PretrainedDecoder(config_of(name, tokenizer, 384)).eval(), torch.randn(3, 384)
    with torch.no_grad():
        before, size = decoder._prefix(vector), decoder.lm.get_input_embeddings().weight.std()
    optimizer = torch.optim.AdamW([weights for weights in decoder.parameters() if weights.requires_grad], 1e-3)
    decoder.nll(batch_of(tokenizer), vector).sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert 0 < decoder._terms(vector).abs().max() < size
        assert 0 < (decoder._prefix(vector) - before).abs().max() < size


@pytest.mark.parametrize("tuning", TUNINGS)
def test_only_the_chosen_weights_are_trained_and_stored(tuning: str, name: str, tokenizer: LMTokenizer,
                                                        tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(config_of(name, tokenizer, lm_tuning=tuning))
    decoder: Any = model.decoder
    base = find_causal_lm(name).model().state_dict()
    decoder.nll(batch_of(tokenizer), torch.randn(3, 5)).sum().backward()
    trained = {name for name, weights in decoder.named_parameters() if weights.grad is not None}
    ours = {"output_bias", "every_step.weight", "prefix.0.weight", "prefix.0.bias", "prefix.2.weight", "prefix.2.bias"}
    assert ours <= trained
    if tuning == "lora":
        assert {part for part in trained - ours if "lora_" not in part} == set() and len(trained - ours) > 8
    else:
        assert trained - ours == ({part for part, _ in decoder.named_parameters()} - ours if tuning == "full" else set())
    assert decoder.state_dict().keys() == trained
    for weights in decoder.parameters():
        if weights.requires_grad:
            torch.nn.init.normal_(weights, std=0.1)
    save_model(tmp_path / "model", model)
    loaded: Any = load_model(tmp_path / "model").decoder
    assert loaded.config == decoder.config
    batch, vector = batch_of(tokenizer), torch.randn(3, 5)
    assert torch.equal(loaded.nll(batch, vector), decoder.eval().nll(batch, vector))
    fresh: Any = build_decoder(decoder.config)
    fresh.load_state_dict(decoder.state_dict())
    assert torch.equal(fresh.eval().nll(batch, vector), decoder.nll(batch, vector))
    if tuning != "full":  # nothing else has changed
        own = {part.replace(".base_layer", ""): weights for part, weights in loaded.lm.state_dict().items()}
        same = [part for part, weights in base.items() if torch.equal(own[part], weights)]
        assert len(same) >= len(base) - 2  # the embeddings and the output layer have fewer rows


def test_it_learns_sentences_by_heart_and_writes_them(name: str, tokenizer: LMTokenizer) -> None:
    torch.manual_seed(0)
    decoder = PretrainedDecoder(config_of(name, tokenizer, lm_tuning="full")).eval()
    vector, batch = torch.randn(3, 5), batch_of(tokenizer)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        decoder.nll(batch, vector).mean().backward()
        optimizer.step()
    for config in (SamplingConfig(temperature=0), SamplingConfig(beam=3)):
        written = Sampler(decoder)(vector, torch.zeros(3, 64), config)
        assert tokenizer.lines(written) == SENTENCES
    begun = Sampler(decoder)(vector, torch.zeros(3, 64), SamplingConfig(temperature=0), tokenizer.encode(["A dog"])[0])
    assert [text[:5] for text in tokenizer.lines(begun)] == ["A dog"] * 3


@torch.no_grad()
def test_samples_do_not_depend_on_the_batch(decoder: PretrainedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    vector, uniforms = vectors(decoder, 7), torch.rand(7, 12)
    together = Sampler(decoder)(vector, uniforms, SamplingConfig(max_len=12))
    monkeypatch.setattr(PretrainedDecoder, "rows_at_once", 2)
    assert Sampler(decoder)(vector, uniforms, SamplingConfig(max_len=12)) == together
    assert all(token == 2 or token > 3 for row in together for token in row)


def test_another_language_model_and_another_tokenizer_are_refused(name: str, tokenizer: LMTokenizer, tmp_path: Path,
                                                                  recurrent_encoder: Path) -> None:
    from outlines.corpus.lm_tokenizer import load_tokenizer

    config = config_of(name, tokenizer)
    with pytest.raises(OutlinesError, match="not the language model that this run was trained with"):
        build_decoder(dataclasses.replace(config, fingerprint="0" * 64))
    with pytest.raises(OutlinesError, match="needs its own tokenizer"):
        decoder_class(name).settings(name, load_tokenizer(recurrent_encoder / "tokenizer.model"))
    model = LanguageModel(config)
    beyond = config.rows.replace(config.rows.split(",")[-1], "100000")
    for damage in ({"rows": "0-5"}, {"rows": beyond}, {"prefix_len": 10**9}, {"lora_rank": 3}):
        model.arguments["decoder"] = dataclasses.replace(config, **damage)  # type: ignore[arg-type]
        save_model(tmp_path / "model", model)
        with pytest.raises(CheckpointError, match="does not match this version"):
            load_model(tmp_path / "model")


def test_names_of_decoders() -> None:
    assert decoder_class("hf:x/y:z") is decoder_class("smollm2") is PretrainedDecoder is DECODERS["hf:"]
    for unknown in ("hf", "gru:x", "smollm2:x"):
        with pytest.raises(OutlinesError, match=f"unknown decoder '{unknown.partition(':')[0]}"):
            decoder_class(unknown)
