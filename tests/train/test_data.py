"""Corpora of any size: enough rows in every split, or one line that names the missing rows."""

import json
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
import torch

from outlines.corpus import grammar
from outlines.corpus.formats import CorpusError
from train.__main__ import main
from train.config import CorpusConfig
from train.data import LEAST_ROWS, SPLITS, fit_splits, open_dataset
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks

QUIET = Reporter(quiet=True)


def written(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("num", [60, 100, 200, 800])
def test_small_splits_are_filled(tmp_path: Path, num: int) -> None:
    for seed in range(3):
        files = (written(tmp_path / f"{num}-{seed}.txt", list(grammar.sentences(num, seed))),)
        config = CorpusConfig(files, max_len=200, vocab_size=450)
        fitted = fit_splits(config, QUIET)
        data = open_dataset(config, None, tmp_path / "cache", torch.device("cpu"), Ranks(), QUIET)
        assert min(map(data.num_rows, SPLITS)) >= LEAST_ROWS
        assert fitted == fit_splits(config, QUIET) == fit_splits(fitted, QUIET)


def test_large_corpora_and_the_embedded_one_keep_their_fractions(tmp_path: Path) -> None:
    large = CorpusConfig((written(tmp_path / "a.txt", list(grammar.sentences(3000, 1))),))
    assert fit_splits(large, QUIET) == large
    assert fit_splits(CorpusConfig(), QUIET) == CorpusConfig()
    assert fit_splits(CorpusConfig(num_sentences=100), QUIET).test_fraction > 0.02


def test_too_few_sentences_are_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    lines = list(grammar.sentences(300, 1))
    some, one = written(tmp_path / "some.txt", lines), written(tmp_path / "one.txt", lines[:1])
    same = written(tmp_path / "same.txt", ["A dog runs."] * 300)
    for config, message in ((CorpusConfig((one,)), r"Too few sentences \(.*\); each split needs 6. Use at least 60"),
                            (CorpusConfig((same,)), "Too few sentences"),
                            (CorpusConfig((some,), test=(one,)), r"\(test 1\); each split needs 6. Add sentences to --test"),
                            (CorpusConfig((some,), valid=(one,)), r"\(valid 1\).*Add sentences to --valid"),
                            (CorpusConfig((some,), valid=(one,), test=(one,)), r"\(valid 1, test 1\)"),
                            (CorpusConfig((some,), group_lines=100), "Too few groups of two or more sentences")):
        with pytest.raises(CorpusError, match=message):
            open_dataset(config, None, tmp_path / "cache", torch.device("cpu"), Ranks(), QUIET)
    assert not (tmp_path / "cache").exists()


def test_losses_are_reported_also_from_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(grammar.sentences(300, 1))
    files = (written(tmp_path / "a.txt", [*lines, "nul\0"]),)
    for _ in range(2):
        config = CorpusConfig(files, test=files, max_len=5)
        data = open_dataset(config, None, tmp_path / "cache", torch.device("cpu"), Ranks(), QUIET)
        reporter = Reporter(quiet=True)
        data.report_losses(reporter)
        data.report_losses(reporter)
        notes = data.notes
        assert capsys.readouterr().err.splitlines() == [notes[0], notes[2]]
        assert "2 NUL character" in notes[0] and "--max-len 5" in notes[1] and "test sentences are also" in notes[2]


class LetterEncoder:
    """Counts the letters of the English alphabet. Reads 60 characters."""

    name, dim, fingerprint, normalized = "letters", 26, "f" * 64, False

    def encode(self, sentences: list[str]) -> np.ndarray:
        return np.array([[text[:60].count(letter) for letter in ascii_lowercase] for text in sentences], dtype=np.float32)

    def unread(self, sentences: list[str]) -> tuple[float, float]:
        return np.mean([not char.isascii() for char in "".join(sentences)]), np.mean([len(text) > 60 for text in sentences])


def test_what_the_encoder_does_not_read_is_reported_also_from_the_cache(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("train.data.load_encoder", lambda *_: LetterEncoder())
    lines = sorted({line for line in grammar.sentences(600, 1) if len(line) <= 60})[:150]
    strange = [f"{line[:40]} и только {ending}" for line in lines for ending in ("это", "так")]
    for kind, corpus, expected in (("strange", strange, ["of the text cannot be read by letters", "have the same outline"]),
                                   ("long", [*lines, "x" * 61], ["are cut by letters"]), ("plain", lines, [])):
        files = (written(tmp_path / f"{kind}.txt", corpus),)
        for _ in range(2):
            config = CorpusConfig(files, max_len=200, vocab_size=500)
            data = open_dataset(config, "letters", tmp_path / kind, torch.device("cpu"), Ranks(), QUIET)
            data.report_losses(Reporter())
            said = [line for line in capsys.readouterr().err.splitlines() if "letters" in line or "outline" in line]
            data.report_losses(Reporter(quiet=True))
            quiet = capsys.readouterr().err
            assert all(note in quiet for note in said), "warnings, even with --quiet"
            assert said == data.notes == data.losses["encoder"] and len(said) == len(expected)
            assert all(part in note for part, note in zip(expected, said, strict=True))


def test_equal_outlines_are_refused_after_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentence_transformers")
    khmer = {ord(str(digit)): chr(0x1780 + digit) for digit in range(10)}
    corpus = written(tmp_path / "khmer.txt", [str(number).translate(khmer) for number in range(400)])
    assert main(["--preset", "tiny", "--corpus", corpus, "--runs", str(tmp_path / "runs"), "--quiet"]) == 2
    unknown, equal, error = capsys.readouterr().err.splitlines()
    assert unknown.startswith("100.0% of the text cannot be read by minilm (unknown tokens). Use --encoder multilingual-min")
    assert equal.startswith("100.0% of the sentences have the same outline")
    assert error.startswith("error: All outlines are equal")


def test_a_run_records_its_losses(tiny_run: Path) -> None:
    losses = json.loads((tiny_run / "run.json").read_text())["losses"]
    assert losses["rejected"] == {} and losses["in_train"] == {"valid": 0, "test": 0}
    assert (f"{losses['cut']} of" in (tiny_run / "report.md").read_text()) == (losses["cut"] > 0)
