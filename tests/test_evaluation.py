"""The yardstick held against sentences whose faults are known, and `python -m train evaluate` as a user runs it."""

import dataclasses
import hashlib
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from outlines.corpus import grammar
from outlines.metrics.text import words
from tests.conftest import Command, environment
from train.__main__ import main
from train.config import resolve
from train.data import Dataset, open_dataset
from train.distributed import Ranks
from train.evaluation import Full, Row, Sentences, Yardstick
from train.evaluators import baseline, score, scorer
from train.method import find_method
from train.progress import Reporter
from train.runs import Session
from train.signals import StopSignals

NUM = 500


class SceneEncoder:
    """A stand-in for a sentence encoder that tells scenes apart: what each word says of the scene's type, summed.

    A sentence encoder of random weights would not do: it hardly moves where half of the scenes are missing.
    """

    name, dim, normalized = "scenes", len(grammar.SCENE_TYPES), True
    fingerprint = hashlib.sha256(b"scenes").hexdigest()

    def __init__(self) -> None:
        counts: dict[str, np.ndarray] = {}
        for column, name in enumerate(grammar.SCENE_TYPES):
            for sentence in grammar.sentences(150, seed=3, grammar=grammar.scenes((name,))):
                for word in words(sentence, lowercase=True):
                    counts.setdefault(word, np.zeros(self.dim))[column] += 1
        self.vectors = {word: count / count.sum() - 1 / self.dim for word, count in counts.items()}

    def encode(self, sentences: list[str]) -> np.ndarray:
        none = np.zeros(self.dim)
        sums = np.array([sum((self.vectors.get(word, none) for word in words(sentence, lowercase=True)), none)
                         for sentence in sentences])
        return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)).astype(np.float32)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with StopSignals() as signals:
        yield Session(tmp_path_factory.mktemp("cache"), Ranks(), Reporter(quiet=True), signals)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def yardstick(session: Session) -> Yardstick:
    """The full form on 4,000 sentences of the embedded grammar in a file, with small evaluators."""
    path = session.cache / "scenes.txt"
    path.write_text("\n".join(grammar.sentences(4000, seed=51)) + "\n")
    method = find_method("lm")
    config = resolve("lm", method.config_class, method.presets, "tiny", None, {
        "corpus": (str(path),), "valid_fraction": 0.15, "test_fraction": 0.15, "vocab_size": 500, "embed_dim": 32,
        "hidden_dim": 64, "dropout": 0.0, "decoder_learning_rate": 0.01, "decoder_batch_size": 32, "evaluator_steps": 300,
        "num_evaluation": NUM})
    data = open_dataset(config.corpus, None, session.cache, torch.device("cpu"), Ranks(), session.reporter)
    return Yardstick(config, data, session, Full(num_samples=NUM, reverse_steps=100, encoder=SceneEncoder()))


def training_text(data: Dataset) -> list[str]:
    return list(data.corpus.sentences["train"])


@pytest.fixture(scope="module")
def real(yardstick: Yardstick) -> Row:
    """Real text as if a family had written it: new sentences of the grammar that none of the splits holds."""
    return yardstick.measure(Sentences(list(grammar.sentences(NUM, seed=901))))


@pytest.fixture(scope="module")
def repeats(yardstick: Yardstick) -> Row:
    """A generator that repeats 100 training sentences."""
    return yardstick.measure(Sentences((training_text(yardstick.data)[:100] * 6)[:NUM]))


@pytest.fixture(scope="module")
def half(yardstick: Yardstick) -> Row:
    """A generator that has dropped every other type of scene."""
    return yardstick.measure(Sentences(list(grammar.sentences(NUM, seed=902, grammar=grammar.scenes(
        grammar.SCENE_TYPES[::2])))))


def test_real_text_comes_out_at_the_floor(yardstick: Yardstick, real: Row) -> None:
    assert real["text_two_sample_low"] <= 0.5 <= real["text_two_sample_high"]
    assert min(real["text_precision"], real["text_recall"]) > 0.8
    # A language model that learnt as many real training sentences; the two differ by the sentences they happened to see.
    learnt = yardstick.data.text("train", yardstick.data.sample_rows("train", NUM, seed=2))
    floor = yardstick.reverse(learnt)
    assert floor["num_reverse"] == real["num_reverse"] == NUM
    assert real["reverse_nll_per_token"] == pytest.approx(floor["reverse_nll_per_token"], abs=0.06)
    assert real["reverse_ngram_nll_per_token"] == pytest.approx(floor["reverse_ngram_nll_per_token"], abs=0.08)
    held_out = yardstick.measure(yardstick.real_text(), learnt)
    for key in ("forward_nll_per_token", "forward_ngram_nll_per_token"):
        assert real[key] == pytest.approx(held_out[key], abs=0.06)
    assert held_out["reverse_nll_per_token"] == floor["reverse_nll_per_token"]
    assert real["in_language"] == 1.0 if yardstick.data.embedded else "in_language" not in real


def test_the_copied_rate_is_as_counted_by_hand(session: Session, yardstick: Yardstick) -> None:
    """140 training sentences, one of them twice and ten in capitals, among 420 new ones."""
    training = training_text(yardstick.data)
    copied = [*training[:129], training[0], *(sentence.upper() for sentence in training[200:210])]
    text = [*copied, *grammar.sentences(NUM - len(copied), seed=903)]
    known = {sentence.lower() for sentence in training}
    by_hand = sum(sentence.lower() in known for sentence in text) / NUM
    assert by_hand == 140 / NUM
    row = Yardstick(yardstick.config, yardstick.data, session).measure(Sentences(text))
    assert row["num_compared"] == NUM and row["copied"] == pytest.approx(by_hand)


def test_repeats_are_seen_by_copied_rate_reverse_nll_and_recall(real: Row, repeats: Row) -> None:
    assert repeats["copied"] == repeats["near_copies"] == 1.0 and real["copied"] == real["near_copies"] == 0.0
    assert repeats["unique"] == pytest.approx(100 / NUM) and real["unique"] == 1.0
    assert repeats["self_bleu_4"] > 0.99 > 0.5 > real["self_bleu_4"]
    assert repeats["reverse_nll_per_token"] > real["reverse_nll_per_token"] + 0.3
    assert repeats["reverse_ngram_nll_per_token"] > real["reverse_ngram_nll_per_token"] + 0.7
    assert repeats["text_recall"] < real["text_recall"] - 0.3
    # Forward nll and precision are pleased with them: neither can be read alone.
    assert repeats["forward_nll_per_token"] < real["forward_nll_per_token"] + 0.05
    assert repeats["forward_ngram_nll_per_token"] < real["forward_ngram_nll_per_token"]
    assert repeats["text_precision"] > real["text_precision"] - 0.1


def test_unigrams_are_seen_by_forward_nll(yardstick: Yardstick, session: Session, real: Row) -> None:
    rng = random.Random(1)
    training = [words(sentence) for sentence in training_text(yardstick.data)]
    pool = [word for sentence in training for word in sentence]
    text = [" ".join(rng.choices(pool, k=len(rng.choice(training)))) for _ in range(NUM)]
    row = Yardstick(yardstick.config, yardstick.data, session).measure(Sentences(text))
    assert row["forward_nll_per_token"] > real["forward_nll_per_token"] + 1.5
    assert row["forward_ppl_per_word"] > 10 * real["forward_ppl_per_word"]
    # Diversity is all it has.
    assert row["distinct_2"] > real["distinct_2"] and row["unique"] == 1.0


def test_dropped_scenes_are_seen_by_recall_and_reverse_nll(real: Row, half: Row) -> None:
    assert half["text_recall"] < real["text_recall"] - 0.15
    assert half["text_two_sample_low"] > 0.55
    assert half["reverse_ngram_nll_per_token"] > real["reverse_ngram_nll_per_token"] + 0.2
    assert half["reverse_nll_per_token"] > real["reverse_nll_per_token"] + 0.06
    # Every sentence that is there is a good one, and none is copied.
    assert half["text_precision"] > real["text_precision"] - 0.1
    assert half["forward_nll_per_token"] < real["forward_nll_per_token"] + 0.1
    assert half["copied"] == 0.0 and half["unique"] == 1.0


def test_no_evaluator_finds_the_grammars_sentences_likelier_than_the_grammar_does(yardstick: Yardstick) -> None:
    text = list(grammar.sentences(NUM, seed=904))
    exact = -statistics.fmean(map(grammar.scenes().log_prob, text))
    assert exact == pytest.approx(grammar.scenes().entropy(), abs=1.0)
    tokens = [np.array(ids, dtype=np.int64) for ids in yardstick.data.tokenizer.encode(text)]
    nll, _ = yardstick.ngram.nll_of_rows(tokens)
    assert nll.mean() > exact
    assert score(yardstick.scorer, text, yardstick.data).per_token * (sum(map(len, tokens)) + NUM) / NUM > exact


def test_sentences_of_nothing_are_measured_too(yardstick: Yardstick, session: Session) -> None:
    """What a model that was hardly trained gives at T = 0: no word at all, NUM times."""
    row = yardstick.measure(Sentences([""] * 40))
    assert row["num_reverse"] == 0 and "reverse_nll_per_token" not in row
    assert row["distinct_2"] == 0.0 and row["copied"] == 0.0 and row["unique"] == 1 / 40
    same = Yardstick(yardstick.config, yardstick.data, session).measure(Sentences(["A dog."] * 40))
    assert same["self_bleu_2"] == 1.0 and same["unique"] == 1 / 40


def test_evaluators_are_trained_once_wherever_the_corpus_lies(yardstick: Yardstick, session: Session) -> None:
    config, data = yardstick.config, yardstick.data
    scorer(config, data, session)
    before = sorted(path.name for path in session.cache.iterdir())
    elsewhere = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, corpus=("no/such/file.txt",)))
    other_seed = dataclasses.replace(elsewhere, training=dataclasses.replace(config.training, seed=5))
    for same in (elsewhere, other_seed):
        scorer(same, data, session)
    assert sorted(path.name for path in session.cache.iterdir()) == before
    baseline(dataclasses.replace(config, model=dataclasses.replace(config.model, decoder_steps=2)), data, session)
    assert len(list(session.cache.iterdir())) == len(before) + 1
    reverse = list(session.cache.glob("reverse-*"))
    assert all([path.name for path in directory.iterdir()] == ["nll.json"] for directory in reverse)


# From here on: the command, on tiny runs.

COMMAND = ("--temperatures", "0,1", "--num-samples", "60", "--reverse-steps", "3")
OUTLINE_SOURCES = ("outlines: real outlines", "outlines", "outlines: mixture", "outlines: gaussian")


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Two runs on one corpus, evaluated by a command that was stopped on its way and given again."""

    runs: list[str]
    command: list[str]
    report: dict[str, Any]
    second_stderr: str


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "train", *map(str, arguments)], env=environment(), text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def stop_when(condition: Callable[[], bool], process: subprocess.Popen[str]) -> str:
    """Send SIGTERM once the condition holds; returns stderr."""
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end, "the command did not get there"
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143, errors
    return errors


def num_measured(run: Path) -> int:
    file = run / "evaluation.json"
    return len(json.loads(file.read_text())) if file.exists() else 0


@pytest.fixture(scope="module")
def lm_run(tiny_run: Path, tiny_corpus: Path, run_module: Command) -> Path:
    """A finished language model on the corpus of `tiny_run`, with the same cache."""
    run = tiny_run.parent / "evaluated-lm"
    done = run_module("train", "lm", "--preset", "tiny", "--corpus", tiny_corpus, "--runs", tiny_run.parent, "--out", run,
                      "--quiet")
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def evaluated(tiny_run: Path, lm_run: Path, recurrent_encoder: Path, run_module: Command,
              tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    root = tmp_path_factory.mktemp("evaluated")
    for run in (tiny_run, lm_run):
        shutil.copytree(run, root / run.name)
    runs = [str(root / lm_run.name), str(root / tiny_run.name)]  # The run that holds the outlines does not come first.
    command = ["evaluate", *runs, *COMMAND, "--encoder", f"recurrent:{recurrent_encoder}"]
    errors = stop_when(lambda: num_measured(root / tiny_run.name) >= 3, start(*command))
    assert "stopped by SIGTERM: the same command goes on where this one stopped" in errors
    assert not (root / "evaluation").exists()
    done = run_module("train", *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"`python -m train {' '.join(command)}`")
    assert (root / "evaluation" / "report.md").read_text() in done.stdout + "\n"
    return Evaluated(runs, command, json.loads((root / "evaluation" / "report.json").read_text()), done.stderr)


def test_the_report_lays_all_sources_side_by_side(evaluated: Evaluated) -> None:
    rows = [(row["source"], row["temperature"]) for row in evaluated.report["rows"]]
    assert rows == [("real text", None), *((source, temperature) for source in (*OUTLINE_SOURCES, "lm")
                                           for temperature in (0.0, 1.0))]
    for row in evaluated.report["rows"]:
        figures = row["figures"]
        assert {"forward_nll_per_token", "forward_ngram_nll_per_token", "reverse_nll_per_token", "reverse_ngram_nll_per_token",
                "bleu_4", "self_bleu_4", "copied", "near_copies", "length_distance", "text_recall", "text_frechet",
                "text_two_sample_low", "num_samples", "num_reverse", "num_compared"} <= set(figures)
        assert ("outline_recall" in figures) == (row["source"] != "lm")
        assert all(value["deviation"] is None and len(value["values"]) == 1 for value in figures.values())
    figures = {(row["source"], row["temperature"]): row["figures"] for row in evaluated.report["rows"]}
    assert figures["outlines: real outlines", 1.0]["num_samples"]["mean"] == 60
    assert figures["outlines: real outlines", 1.0]["num_held_out"]["mean"] < 60
    assert "num_held_out" not in figures["lm", 1.0]
    # The same outlines, whatever the temperature of the words.
    for key in ("outline_recall", "outline_frechet"):
        assert figures["outlines", 0.0][key] == figures["outlines", 1.0][key]
    assert figures["lm", 0.0]["unique"]["mean"] == pytest.approx(1 / figures["lm", 0.0]["num_compared"]["mean"])
    assert set(evaluated.report["gaps"]) == set(OUTLINE_SOURCES)
    assert [row["source"] for row in evaluated.report["reconstruction"]] == ["outlines", "lm"]
    assert evaluated.report["settings"]["against"] == "lm"


def test_the_same_numbers_in_markdown_json_and_tensorboard(evaluated: Evaluated) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    out = Path(evaluated.runs[0]).parent / "evaluation"
    text = (out / "report.md").read_text()
    assert "Test split; one seed." in text and "±" not in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    for row in evaluated.report["rows"]:
        shown = {None: "", 0.0: "greedy", 1.0: "1"}[row["temperature"]]
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables]
        found = [line for line in cells if line[:2] == [row["source"], shown]]
        assert len(found) == 3, "one line in each table"
        main_row = found[0][2:4]
        assert main_row == [f"{row['figures'][key]['mean']:.3f}" for key in ("forward_nll_per_token", "reverse_nll_per_token")]
        assert found[1][2] == f"{row['figures']['bleu_2']['mean']:.3f}"
        assert found[2][-1] == f"{row['figures']['text_two_sample']['mean']:.3f}"
        events = EventAccumulator(str(out / "tensorboard" / re.sub("[: ]+", "-", row["source"])))
        events.Reload()
        step = 100 if row["temperature"] is None else round(100 * row["temperature"])
        for key, value in row["figures"].items():
            logged = [event.value for event in events.Scalars(f"evaluation/{key}") if event.step == step]
            assert logged == [pytest.approx(value["mean"], rel=1e-6)]
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert "evaluation/curve" in events.Tags()["images"]
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_hparams_stand_beside_the_figures(evaluated: Evaluated) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    for label in ("outlines", "lm"):
        events = EventAccumulator(str(Path(evaluated.runs[0]).parent / "evaluation" / "tensorboard" / label))
        events.Reload()
        content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        options = HParamsPluginData.FromString(content).session_start_info.hparams
        assert options["family"].string_value == label and options["seed"].string_value == "1"
        at_one = next(row for row in evaluated.report["rows"] if row["source"] == label and row["temperature"] == 1.0)
        shown = events.Scalars("hparam/reverse_nll_per_token")[0].value
        assert shown == pytest.approx(at_one["figures"]["reverse_nll_per_token"]["mean"], rel=1e-6)


def test_a_second_evaluation_measures_nothing_anew(evaluated: Evaluated, run_module: Command) -> None:
    files = [*(Path(run) / "evaluation.json" for run in evaluated.runs),
             *(Path(evaluated.runs[0]).parent / "evaluation" / name for name in ("report.md", "report.json"))]
    before = [file.read_bytes() for file in files]
    again = run_module("train", *evaluated.command)
    assert again.returncode == 0, again.stderr
    assert [file.read_bytes() for file in files] == before
    assert again.stderr == "", "it announced something"
    # The one that was stopped had announced what was left, and no more.
    numbers = re.findall(r"\((\d+) of (\d+)\)", evaluated.second_stderr)
    assert numbers[-1] == ("2", "2") and ("1", "9") not in numbers and ("9", "9") in numbers


def test_stopped_and_gone_on_is_the_same_as_in_one_go(evaluated: Evaluated, run_module: Command, tmp_path: Path) -> None:
    """Once more from nothing: other directories, another cache."""
    runs = []
    for run in map(Path, evaluated.runs):
        shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("evaluation.json", "checkpoints"))
        description = json.loads((tmp_path / run.name / "run.json").read_text())
        (tmp_path / run.name / "run.json").write_text(json.dumps(description | {"cache": str(tmp_path / "cache")}))
        runs.append(tmp_path / run.name)
    command = [*map(str, runs), *evaluated.command[3:]]
    done = run_module("train", "evaluate", *command, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for key in ("rows", "gaps", "reconstruction"):
        assert report[key] == evaluated.report[key]
    kept = list((tmp_path / "cache").glob("reverse-*"))
    assert len(kept) == 11 and all([file.name for file in directory.iterdir()] == ["nll.json"] for directory in kept)


def test_rows_that_are_gone_are_measured_again_to_the_same_figures(evaluated: Evaluated, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(evaluated.runs[1], run)
    whole = json.loads((run / "evaluation.json").read_text())
    lost = [key for key, row in whole.items() if row.get("temperature") == 1.0][:1]
    (run / "evaluation.json").write_text(json.dumps({key: row for key, row in whole.items() if key not in lost}))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["evaluate", str(run), *evaluated.command[3:], "--quiet"]) == 0
    torch.set_num_threads(threads)
    assert json.loads((run / "evaluation.json").read_text()) == whole
    assert (run / "evaluation" / "report.md").exists()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    return errors


@pytest.mark.parametrize(("arguments", "message"), [
    (["--sources", "lm,gaussian"], "'gaussian' is not a source of these runs: choose from lm"),
    (["--temperatures", "0,warm"], "expected numbers with commas between"),
    (["--temperatures", ""], "expected numbers with commas between"),
    (["--temperatures", "-1"], "must be from 0 (greedy) to 100"),
    (["--temperatures", "nan"], "must be from 0 (greedy) to 100"),
    (["--num-samples", "5"], "--num-samples must be at least 20"),
    (["--num-samples", "many"], "invalid int value"),
    (["--encoder", "recurrent:nowhere"], "nowhere"),
    (["--encoder", "nothing"], "unknown encoder 'nothing'"),
])
def test_bad_options_are_refused_in_one_line(arguments: list[str], message: str, lm_run: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(["evaluate", str(lm_run), "--quiet", *arguments], capsys)


def test_a_source_must_be_one_of_the_runs(lm_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = refused(["evaluate", str(lm_run), "--quiet", "--sources", "real outlines"], capsys)
    assert "'real outlines' is not a source of these runs: choose from lm" in errors


def test_a_report_goes_to_no_runs_directory(lm_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (lm_run / "report.json").read_bytes()
    assert "a run or a file is here" in refused(["evaluate", str(lm_run), "--quiet", "--out", str(lm_run)], capsys)
    assert "a run or a file is here" in refused(["evaluate", str(lm_run), "--out", str(lm_run / "run.json")], capsys)
    assert (lm_run / "report.json").read_bytes() == before


def moved(run: Path, to: Path, corpus: Path, keep_hashes: bool) -> Path:
    """A copy of a run that says it was trained on another corpus."""
    shutil.copytree(run, to)
    description = json.loads((to / "run.json").read_text())
    description["corpus"]["corpus"] = [str(corpus)]
    if not keep_hashes:
        del description["hashes"]
    (to / "run.json").write_text(json.dumps(description))
    return to


def test_runs_that_cannot_be_evaluated_are_refused_in_one_line(lm_run: Path, tiny_corpus: Path, tmp_path: Path,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run here" in refused(["evaluate", str(tmp_path / "nowhere"), "--quiet"], capsys)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(lm_run, unfinished, ignore=shutil.ignore_patterns("model"))
    assert f"go on with `python -m train --resume {unfinished}`" in refused(["evaluate", str(unfinished), "--quiet"], capsys)
    corpus = tmp_path / "other.txt"
    corpus.write_text("\n".join(grammar.sentences(600, seed=6)) + "\n")
    other = moved(lm_run, tmp_path / "other", corpus, keep_hashes=False)
    errors = refused(["evaluate", str(lm_run), str(other), "--quiet"], capsys)
    assert "of another corpus or tokenizer" in errors and "only runs on one corpus can be compared" in errors
    changed = moved(lm_run, tmp_path / "changed", corpus, keep_hashes=True)
    assert "the corpus is no longer the one this run began with" in refused(["evaluate", str(changed), "--quiet"], capsys)
    shutil.copytree(lm_run, tmp_path / "twin")
    assert "the same configuration and seed as" in refused(
        ["evaluate", str(lm_run), str(tmp_path / "twin"), "--quiet"], capsys)


@pytest.fixture(scope="module")
def seeds(tiny_corpus: Path, tiny_run: Path) -> Path:
    """Language models of the seeds 1 and 2, stopped on the way and resumed."""
    directory = tiny_run.parent / "seeds"
    process = start("lm", "--preset", "tiny", "--corpus", tiny_corpus, "--runs", tiny_run.parent, "--out", directory,
                    "--seeds", "1,2", "--quiet")
    errors = stop_when(lambda: (directory / "seed-2" / "checkpoints").exists(), process)
    assert f"go on with --resume {directory}" in errors
    assert not (directory / "report.json").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["--resume", str(directory), "--quiet"]) == 0
    torch.set_num_threads(threads)
    return directory


def test_seeds_are_runs_of_their_own_reported_together(seeds: Path, lm_run: Path) -> None:
    assert json.loads((seeds / "seeds.json").read_text())["runs"] == {"1": "seed-1", "2": "seed-2"}
    own = [json.loads((seeds / name / "report.json").read_text())["rows"] for name in ("seed-1", "seed-2")]
    assert [json.loads((seeds / f"seed-{seed}" / "run.json").read_text())["training"]["seed"] for seed in (1, 2)] == [1, 2]
    assert all("one seed" in (seeds / name / "report.md").read_text() for name in ("seed-1", "seed-2"))
    text = (seeds / "report.md").read_text()
    assert "mean ± standard deviation over 2 seeds" in text
    values = [rows[1]["forward_nll_per_token"] for rows in own]
    assert values[0] != values[1]
    assert f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}" in text
    row = json.loads((seeds / "report.json").read_text())["rows"][1]
    assert row["source"] == "lm" and row["figures"]["forward_nll_per_token"]["values"] == values
    weights = [(run / "model" / "tensors.safetensors").read_bytes() for run in (seeds / "seed-1", lm_run, seeds / "seed-2")]
    assert weights[0] == weights[1] != weights[2], "one of several seeds is the run of that seed"


def test_several_seeds_are_evaluated_as_one_line(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--encoder", "none", "--temperatures", "1", "--num-samples", "40", "--reverse-steps", "2", "--quiet"]
    # A seed that is named beside its directory is still one seed.
    assert main(["evaluate", str(seeds), str(seeds / "seed-2"), *options, "--out", str(seeds / "evaluation")]) == 0
    shown = capsys.readouterr().out
    assert "mean ± standard deviation over 2 seeds" in shown and shown.count("| lm ") == 3
    report = json.loads((seeds / "evaluation" / "report.json").read_text())
    rows = {row["source"]: row["figures"] for row in report["rows"]}
    assert len(rows["lm"]["reverse_nll_per_token"]["values"]) == 2
    assert len(rows["real text"]["reverse_nll_per_token"]["values"]) == 1
    assert not any(key.startswith(("text_", "outline_")) for key in rows["lm"])
    kept = [json.loads((seeds / name / "evaluation.json").read_text()).values() for name in ("seed-1", "seed-2")]
    own = [row["reverse_nll_per_token"] for rows in kept for row in rows if row.get("source") == "lm"]
    assert rows["lm"]["reverse_nll_per_token"]["values"] == own
    assert main(["evaluate", str(seeds / "seed-1"), *options]) == 0
    assert "Test split; one seed." in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["lm", "--seeds", "1,2", "--seed", "3"], "--seed has no effect with --seeds"),
    (["lm", "--seeds", "1,1"], "expected different numbers"),
    (["lm", "--seeds", "1,two"], "expected different numbers"),
    (["lm", "--seeds", ""], "expected different numbers"),
    (["--resume", "nowhere", "--seeds", "1,2"], "--seeds has no effect with --resume"),
])
def test_bad_seeds_are_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(arguments, capsys)
    assert not list(tmp_path.iterdir())
