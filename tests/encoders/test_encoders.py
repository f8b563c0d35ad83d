"""Loading encoders by name, refusing unsafe models, and outlines that do not depend on the batch."""

import hashlib
import importlib.util
import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from outlines.encoders import SentenceEncoder, encoder_name, load_encoder, sentence_transformer, unread_notes
from outlines.errors import OutlinesError
from outlines.hardening import check_sentence_transformer

SENTENCES = ["A dog runs over the grass.", "Two men stand on a bridge in the rain, talking.", "a cat", "",
             "A woman in a long green coat buys three apples from an old man at the market.",
             "Children play."]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the files of a model that are checked before it is loaded."""
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    list_modules(tmp_path, [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling")])
    return tmp_path


def list_modules(directory: Path, kinds: list[str], last_path: str = "1_Pooling") -> None:
    modules = [{"idx": index, "path": "" if index == 0 else last_path, "type": kind}
               for index, kind in enumerate(kinds)]
    (directory / "modules.json").write_text(json.dumps(modules))


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    for spec in ("bert", "st:", "recurrent", "recurrent:", "minilm:x", "", "minilm?dim=x&prompt=",
                 "recurrent:x?dim=2&prompt="):
        with pytest.raises(OutlinesError, match="Use minilm, multilingual-minilm, st:NAME_OR_DIRECTORY or recurrent:"):
            load_encoder(spec)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for spec in ("minilm", "st:some-model"):
        with pytest.raises(OutlinesError) as caught:
            load_encoder(spec)
        assert "pip install '.[minilm]'" in str(caught.value) and "python -m train encoder" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_model_with_only_data_is_accepted(model: Path) -> None:
    assert check_sentence_transformer(model) == [model, model / "1_Pooling"]


@pytest.mark.parametrize("kind", [
    "custom_code.Pooling", "os.system", "sentence_transformers_evil.Pooling", "Pooling",
    # In the library's namespace, but not its modules: names that one of them imports.
    "sentence_transformers.base.model.pickle", "sentence_transformers.base.modules.module.torch",
])
def test_a_module_type_that_is_not_the_librarys_own_is_refused(model: Path, kind: str) -> None:
    list_modules(model, ["sentence_transformers.models.Transformer", kind])
    with pytest.raises(OutlinesError, match=r"modules\.json: module type .* is refused"):
        check_sentence_transformer(model)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda directory: list_modules(directory, ["sentence_transformers.models.Pooling"] * 2, "../elsewhere"),
     "outside the model"),
    (lambda directory: list_modules(directory, ["sentence_transformers.models.Pooling"] * 2, "/etc"),
     "outside the model"),
    (lambda directory: (directory / "modules.json").write_text("{"), "damaged"),
    (lambda directory: (directory / "modules.json").write_text("[1]"), "damaged"),
    (lambda directory: (directory / "model.safetensors").rename(directory / "pytorch_model.bin"), "pickled"),
    (lambda directory: (directory / "1_Pooling" / "pytorch_model.bin").write_bytes(b"x"), "pickled"),
    (lambda directory: (directory / "adapter_config.json").write_text("{}"), "adapter"),
    (lambda directory: (directory / "model.safetensors").unlink(), r"no model\.safetensors"),
])
def test_an_unsafe_or_incomplete_model_is_refused(model: Path, damage: Callable[[Path], object],
                                                   message: str) -> None:
    damage(model)
    with pytest.raises(OutlinesError, match=message):
        check_sentence_transformer(model)


def test_pickles_beside_safetensors_are_ignored(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"x")
    check_sentence_transformer(model)


def test_code_beside_a_model_is_not_run(model: Path) -> None:
    pytest.importorskip("sentence_transformers")
    ran = model / "ran"
    (model / "custom_code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Pooling: pass\n")
    list_modules(model, ["sentence_transformers.models.Transformer", "custom_code.Pooling"])
    with pytest.raises(OutlinesError, match="is refused"):
        load_encoder(f"st:{model}")
    assert not ran.exists()


def minilm_directory() -> Path:
    pytest.importorskip("sentence_transformers")
    directory = sentence_transformer._packaged_minilm()
    if directory is None:
        pytest.skip("no installed package carries all-MiniLM-L6-v2")
    return directory


@pytest.fixture(scope="module")
def minilm() -> SentenceEncoder:
    minilm_directory()
    return load_encoder("minilm")


def test_minilm_loads_without_network_output_or_running_its_package(
        monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    minilm_directory()

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_encoder("minilm").encode(SENTENCES)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert not set(sentence_transformer.MINILM_PACKAGES) & set(sys.modules)


def test_minilm_outlines_do_not_depend_on_the_batch(minilm: SentenceEncoder) -> None:
    assert (minilm.name, minilm.dim, minilm.normalized) == ("minilm", 384, True)
    many = minilm.encode(SENTENCES * 15)  # two batches, by length
    assert many.shape == (90, 384) and many.dtype == np.float32
    one_by_one = np.concatenate([minilm.encode([sentence]) for sentence in SENTENCES])
    # Far below the resolution of float16, in which outlines are stored: 6e-5 at 0.1.
    np.testing.assert_allclose(many, np.tile(one_by_one, (15, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1.0, atol=1e-5)
    assert minilm.encode([]).shape == (0, 384)


def test_minilm_gives_similar_sentences_similar_outlines(minilm: SentenceEncoder) -> None:
    outlines = minilm.encode(["A dog runs on a beach.", "A puppy is running by the sea.", "Rates rose."])
    likeness = outlines @ outlines.T
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]


def test_minilm_with_other_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(sentence_transformer, "_packaged_minilm", lambda: tmp_path)
    with pytest.raises(OutlinesError) as caught:
        load_encoder("minilm")
    actual = hashlib.sha256(b"other weights").hexdigest()
    for part in (str(tmp_path / "model.safetensors"), actual, sentence_transformer.MINILM_SHA256):
        assert part in str(caught.value)


def test_a_directory_loads_as_the_same_model_and_its_settings_are_in_the_fingerprint(
        minilm: SentenceEncoder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(minilm_directory(), copy)
    other = load_encoder(f"st:{copy}")
    assert (other.name, other.fingerprint, other.normalized) == (f"st:{copy}", minilm.fingerprint, True)
    np.testing.assert_array_equal(other.encode(SENTENCES), minilm.encode(SENTENCES))
    settings = copy / "sentence_bert_config.json"
    settings.write_text(settings.read_text().replace("256", "8"))
    shorter = load_encoder(f"st:{copy}")
    assert shorter.fingerprint != minilm.fingerprint
    assert np.abs(shorter.encode(SENTENCES) - minilm.encode(SENTENCES)).max() > 0.01
    (copy / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(OutlinesError, match="sentence-transformers cannot load this model") as caught:
        load_encoder(f"st:{copy}")
    assert "\n" not in str(caught.value)


def test_a_missing_directory_is_not_searched_on_the_hub(tmp_path: Path) -> None:
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("needs sentence-transformers")
    for path in (str(tmp_path / "nowhere"), "./nowhere", "some/where/else"):
        with pytest.raises(OutlinesError, match="no such directory"):
            load_encoder(f"st:{path}")


def test_an_unreachable_model_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("sentence_transformers")
    asked = []

    def snapshot_download(name: str, **options: object) -> str:
        asked.append((name, options.get("local_files_only", False)))
        raise OSError("no network\nand more lines")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(OutlinesError, match=r"all-x: neither in the local cache .* \(no network and more lines\)") as caught:
        load_encoder("st:all-x")
    assert "\n" not in str(caught.value)
    assert asked == [("sentence-transformers/all-x", True), ("sentence-transformers/all-x", False)]


def test_the_hubs_cache_is_used_before_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = minilm_directory()
    import huggingface_hub

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert name == sentence_transformer.MINILM_HUB_NAME and local_files_only
        assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in allow_patterns)
        return str(directory)

    monkeypatch.setattr(sentence_transformer, "MINILM_PACKAGES", ())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_encoder("minilm").dim == 384


def test_control_words_reach_minilm_as_text(minilm: SentenceEncoder) -> None:
    words = ["[MASK]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "</s>", "<|endoftext|>", "<s>", "<unk>"]
    apart = [word.replace("[", "[ ").replace("]", " ]") for word in words]  # the tokenizer separates marks anyway
    np.testing.assert_allclose(minilm.encode([f"A dog {word} runs." for word in words]),
                               minilm.encode([f"A dog {word} runs." for word in apart]), atol=1e-5)
    assert minilm.unread([" ".join(words)]) == (0, 0)


@pytest.mark.parametrize(("text", "unknown"), [
    ("A dog runs.", 0), ("Zürich, naïve café", 0), ("Việt Nam 1945 α", 1 / 8), ("A dog 🐶 runs 😀😀!", 0), ("🐶 🏠", 0),
    ("ผู้ชายกินข้าว", 1), ("Собака бежит", 1), ("បុរស", 1), ("ሰው", 1), ("男人吃米饭", 1), ("개가 달린다", 1), ("الرجل", 1),
    ("A dog runs. ሰው", 2 / 10), ("", 0),
])
def test_the_share_of_unknown_letters_is_measured(text: str, unknown: float, minilm: SentenceEncoder) -> None:
    assert minilm.unread([text]) == (pytest.approx(unknown), 0)


def test_the_share_of_sentences_longer_than_minilm_reads_is_measured(minilm: SentenceEncoder) -> None:
    sentences = ["dog " * 254, "cat " * 255, "a dog", "no"]
    assert minilm.unread(sentences) == (0, 1 / 4)
    assert unread_notes(minilm, sentences, minilm.encode(sentences)) == [
        "25.0% of the sentences are cut by minilm, which does not read their end. Split long sentences."]
    assert load_encoder(encoder_name("minilm", "one two three ")).unread(["dog " * 251, "dog " * 252])[1] == 1 / 2


class Blind:
    """An encoder that reads the first word."""

    dim, fingerprint, normalized = 8, "", False

    def __init__(self, name: str):
        self.name = name

    def encode(self, sentences: list[str]) -> np.ndarray:
        digests = [hashlib.sha256(sentence.split()[0].lower().encode()).digest()[:8] for sentence in sentences]
        return np.array([list(digest) for digest in digests], dtype=np.float32)

    def unread(self, sentences: list[str]) -> tuple[float, float]:
        return 0.009, 0.0


@pytest.mark.parametrize(("name", "remedy"), [("minilm", "Use --encoder multilingual-minilm, or an encoder trained on"),
                                              ("multilingual-minilm?dim=8&prompt=", "Use an encoder trained on this")])
def test_different_sentences_with_equal_outlines_are_reported(name: str, remedy: str) -> None:
    encoder, alike = Blind(name), ["same a", "same b", "SAME B", "same a"]
    for others in (0, 96, 196, 198, 996):  # Repeated sentences and other capitals are no fault of the encoder.
        sentences = [*alike, *map(str, range(others))]
        notes = unread_notes(encoder, sentences, encoder.encode(sentences))
        shares = [f"{2 / (2 + others):.1%} of the sentences have the same outline as a different sentence. {remedy}"]
        assert [note[:len(shares[0])] for note in notes] == (shares if others < 198 else [])


def test_a_prompt_and_fewer_dimensions_are_part_of_the_encoder(minilm: SentenceEncoder) -> None:
    other = load_encoder(encoder_name("minilm", "query: é?&", 64))
    expected = minilm.encode([f"query: é?&{sentence}" for sentence in SENTENCES])[:, :64]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(other.encode(SENTENCES), expected, atol=1e-6)
    assert (other.dim, other.normalized, encoder_name("minilm")) == (64, True, "minilm")
    assert load_encoder(other.name).fingerprint == other.fingerprint
    assert len({other.fingerprint, minilm.fingerprint, load_encoder(encoder_name("minilm", dim=64)).fingerprint}) == 3
    with pytest.raises(OutlinesError, match=r"its outlines have 384 dimensions, fewer than 385\. Lower --encoder-dim"):
        load_encoder(encoder_name("minilm", dim=385))


def test_the_short_name_of_the_multilingual_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = minilm_directory()  # stands in for the weights
    asked: list[str] = []
    monkeypatch.setattr(sentence_transformer, "from_hub", lambda name: asked.append(name) or directory)
    assert load_encoder("multilingual-minilm").name == "multilingual-minilm"
    assert asked == ["sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"]
