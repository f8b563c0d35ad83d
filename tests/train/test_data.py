"""Corpora of any size: enough rows in every split, or one line that says what is missing."""

import json
from pathlib import Path

import pytest
import torch

from outlines.corpus import grammar
from outlines.corpus.formats import CorpusError
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
                            (CorpusConfig((some,), test=(one,)), r"\(test 1\); each split needs 6. Add some to --test"),
                            (CorpusConfig((some,), valid=(one,)), r"\(valid 1\).*Add some to --valid"),
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
        data.report_losses(QUIET)
        notes = data.corpus.notes()
        assert capsys.readouterr().err.splitlines() == [notes[0], notes[2]]
        assert "2 NUL character" in notes[0] and "--max-len 5" in notes[1] and "test sentences are also" in notes[2]


def test_a_run_records_its_losses(tiny_run: Path) -> None:
    losses = json.loads((tiny_run / "run.json").read_text())["losses"]
    assert losses["rejected"] == {} and losses["in_train"] == {"valid": 0, "test": 0}
    assert (f"{losses['cut']} of" in (tiny_run / "report.md").read_text()) == (losses["cut"] > 0)
