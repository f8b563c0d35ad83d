import json
from pathlib import Path

import pytest

from outlines.errors import OutlinesError
from train.__main__ import main
from train.config import RunConfig, from_json, resolve
from train.method import all_methods, find_method


def resolved(flags: dict[str, object] | None = None, preset: str = "tiny", file: str | None = None) -> RunConfig:
    method = find_method("outlines")
    return resolve("outlines", method.config_class, method.presets, preset, file, flags or {})


def test_precedence_is_defaults_preset_file_flags(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("embed_dim = 20\nhidden_dim = 30\n")
    assert resolved().model.embed_dim == 16
    config = resolved({"hidden_dim": 40}, file=str(file))
    assert (config.model.embed_dim, config.model.hidden_dim, config.model.num_layers) == (20, 40, 0)


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("hiden_dim = 3\n")
    with pytest.raises(OutlinesError, match=r"'hiden_dim'.*Did you mean 'hidden_dim'"):
        resolved(file=str(file))
    with pytest.raises(OutlinesError, match="Did you mean 'small'"):
        resolved(preset="smal")
    with pytest.raises(OutlinesError, match="Did you mean 'outlines'"):
        find_method("outline")


@pytest.mark.parametrize("text", ["embed_dim = 'wide'", "embed_dim = true", "objective = 'gan'", "corpus = 'one.txt'",
                                  "strict = 1", "= broken", "dropout = 1.5", "max_chars = 0",
                                  "max_chars = 50_001", "valid_fraction = -0.1", "valid_fraction = nan",
                                  "decoder_steps = 0", "gan_learning_rate = nan", "num_centres = -1"])
def test_a_value_that_does_not_fit_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(OutlinesError):
        resolved(file=str(file))


@pytest.mark.parametrize("flags", [{"corpus": ("a.txt",), "num_sentences": 500}, {"valid": ("a.txt",)},
                                   {"corpus": ("a.txt",), "text_column": "t"}, {"strict": True},
                                   {"corpus": ("a.txt",), "valid": ("b.txt",), "valid_fraction": 0.1},
                                   {"tokenizer": "t.model", "lowercase": True}])
def test_an_option_without_effect_is_an_error(flags: dict[str, object]) -> None:
    with pytest.raises(OutlinesError, match="no effect"):
        resolved(flags)


@pytest.mark.parametrize("family", sorted(all_methods()))
def test_every_preset_of_every_family_resolves_and_round_trips(family: str) -> None:
    method = find_method(family)
    assert {"tiny", "default", "small", "full"} <= set(method.presets)
    for preset in method.presets:
        needed = {"corpus": ("pairs.jsonl",)} if method.config_class.learns_pairs else {}
        config = resolve(family, method.config_class, method.presets, preset, None, needed)
        assert from_json(json.loads(json.dumps(config.to_json())), method.config_class) == config


def test_every_option_has_a_line_of_help() -> None:
    from train.config import known_fields
    for method in all_methods().values():
        for field in known_fields(method.config_class).values():
            assert len(field.metadata["help"]) > 10, field.name


@pytest.mark.parametrize("family", [*sorted(all_methods()), "compare"])
def test_the_help_has_at_most_50_flags(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([family, "--help"])
    text = capsys.readouterr().out
    assert 20 < sum(line.strip().startswith("--") for line in text.splitlines()) <= 50
    assert ("--group-lines" in text) == (family == "conditional")
