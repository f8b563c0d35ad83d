"""`python -m train evaluate` and `--seeds`, as a user runs them, on tiny runs."""

import dataclasses
import json
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from outlines.corpus import grammar
from outlines.corpus.reading import split_of
from tests.conftest import Command, environment
from tests.tiny_causal_lm import tiny_causal_lm
from train.__main__ import main
from train.evaluation.pretrained import PretrainedLM
from train.runtime.run_directory import locked

COMMAND = ("--temperatures", "0,1", "--num-samples", "80", "--reverse-steps", "3")
OUTLINE_SOURCES = ("outlines: real outlines", "outlines")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the commands that run in processes of their own: sums of floats depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Two runs on one corpus, evaluated by a command that was stopped halfway and started again."""

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
def lm_run(tiny_run: Path, tiny_corpus: Path) -> Path:
    """A finished language model on the corpus of `tiny_run`, with the same cache."""
    run = tiny_run.parent / "evaluated-lm"
    assert main(["lm", "--preset", "tiny", "--corpus", str(tiny_corpus), "--runs", str(tiny_run.parent), "--out", str(run),
                 "--quiet"]) == 0
    return run


@pytest.fixture(scope="module")
def evaluated(tiny_run: Path, lm_run: Path, recurrent_encoder: Path, run_module: Command,
              tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    root = tmp_path_factory.mktemp("evaluated")
    for run in (tiny_run, lm_run):
        shutil.copytree(run, root / run.name)
    runs = [str(root / lm_run.name), str(root / tiny_run.name)]  # The run that holds the outlines does not come first.
    command = ["evaluate", *runs, *COMMAND, "--encoder", f"recurrent:{recurrent_encoder}", "--sources",
               "real outlines,generator,lm"]
    errors = stop_when(lambda: num_measured(root / tiny_run.name) >= 3, start(*command))
    assert "stopped by SIGTERM: repeat the command to continue" in errors
    assert not (root / "evaluation").exists()
    done = run_module("train", *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"`{shlex.join(['python', '-m', 'train', *command])}`")
    figures, samples = (root / "evaluation" / "report.md").read_text().split("\n\n## Samples\n\n")
    assert figures in done.stdout and "Samples" not in done.stdout
    assert samples.count("|  | real text | outlines: real outlines | outlines | lm |") == 2
    return Evaluated(runs, command, json.loads((root / "evaluation" / "report.json").read_text()), done.stderr)


def test_the_report_contains_all_sources(evaluated: Evaluated) -> None:
    rows = [(row["source"], row["temperature"]) for row in evaluated.report["rows"]]
    assert rows == [("real text", None), *((source, temperature) for source in (*OUTLINE_SOURCES, "lm")
                                           for temperature in (0.0, 1.0))]
    for row in evaluated.report["rows"]:
        figures = row["figures"]
        assert {"forward_nll_per_token", "forward_ngram_nll_per_token", "reverse_nll_per_token",
                "reverse_ngram_nll_per_token", "bleu_4", "self_bleu_4", "copied", "near_copies", "memorised_4grams",
                "diversity", "length_distance", "text_mauve", "text_recall", "text_frechet", "text_two_sample_low",
                "num_samples", "num_reverse", "num_compared"} <= set(figures)
        assert ("outline_recall" in figures) == (row["source"] != "lm")
        assert all(value["deviation"] is None and len(value["values"]) == 1 for value in figures.values())
    figures = {(row["source"], row["temperature"]): row["figures"] for row in evaluated.report["rows"]}
    assert figures["outlines: real outlines", 1.0]["num_samples"]["mean"] == 80
    assert figures["outlines: real outlines", 1.0]["num_held_out"]["mean"] < 80
    assert "num_held_out" not in figures["lm", 1.0]
    # The same outlines, whatever the temperature of the words.
    for key in ("outline_recall", "outline_frechet"):
        assert figures["outlines", 0.0][key] == figures["outlines", 1.0][key]
    assert figures["lm", 0.0]["unique"]["mean"] == pytest.approx(1 / figures["lm", 0.0]["num_compared"]["mean"])
    assert all(len(row["samples"]) == 20 for row in evaluated.report["rows"])
    assert set(evaluated.report["gaps"]) == set(evaluated.report["gaps_ngram"]) == set(OUTLINE_SOURCES)
    assert [row["source"] for row in evaluated.report["reconstruction"]] == ["outlines", "lm"]
    assert evaluated.report["settings"]["against"] == "lm"


def test_a_file_of_sentences_is_one_more_row(evaluated: Evaluated, tiny_corpus: Path, recurrent_encoder: Path,
                                             tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = [line for line in tiny_corpus.read_text().splitlines() if split_of(line, 0.1, 0.1) == "train"][:30]
    (tmp_path / "copies.txt").write_text("".join(f"{sentence}\n" for sentence in training))
    (tmp_path / "few.txt").write_text("A dog runs.\n")
    command = ["evaluate", *evaluated.runs, *COMMAND, "--encoder", f"recurrent:{recurrent_encoder}", "--sources",
               "real outlines,generator,lm", "--out", str(tmp_path / "report"), "--texts"]
    assert main([*command, str(tmp_path / "copies.txt")]) == 0
    *rows, row = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert row["source"] == str(tmp_path / "copies.txt")
    assert row["figures"]["copied"]["mean"] == 1 and row["figures"]["non_words"]["mean"] == 0
    assert row["figures"]["num_samples"]["mean"] == 30 and "reverse_nll_per_token" in row["figures"]
    assert rows == evaluated.report["rows"], "the kept rows"
    assert main([*command, str(tmp_path / "few.txt")]) == 2
    assert "few.txt: only 1 sentences. Use a file with at least 20." in capsys.readouterr().err


def test_a_pretrained_judge_and_features_for_mauve(evaluated: Evaluated, tiny_corpus: Path, tmp_path: Path) -> None:
    lm = f"hf:{tiny_causal_lm('gpt2', tiny_corpus, tmp_path / 'gpt2')}"
    text = [line for line in tiny_corpus.read_text().splitlines()[:40]]
    (tmp_path / "text.txt").write_text("".join(f"{sentence}\n" for sentence in text))
    assert main(["evaluate", *evaluated.runs, *COMMAND, "--temperatures", "1", "--encoder", "none", "--judge", lm,
                 "--mauve-features", lm, "--sources", "lm", "--out", str(tmp_path / "report"),
                 "--texts", str(tmp_path / "text.txt"), "--quiet"]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["source"] for row in report["rows"]] == ["real text", "lm", str(tmp_path / "text.txt")]
    for row in report["rows"]:
        assert {"pretrained_nll_per_word", "pretrained_nll_per_token", "text_mauve"} <= row["figures"].keys()
        assert "text_recall" not in row["figures"]
    expected = PretrainedLM(lm).score(text).figures("pretrained")
    assert {key: report["rows"][-1]["figures"][key]["mean"] for key in expected} == pytest.approx(expected)
    shown = (tmp_path / "report" / "report.md").read_text()
    assert f"The pretrained judge is {lm}." in shown and f"The features for MAUVE are from {lm}" in shown
    assert "| NLL/word, pretrained |" in shown and "| text: MAUVE |" in shown


def test_the_same_numbers_in_markdown_json_and_tensorboard(evaluated: Evaluated) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    out = Path(evaluated.runs[0]).parent / "evaluation"
    text = (out / "report.md").read_text()
    assert "Test split; one seed." in text and "±" not in text.split("Is the vector used?")[0]
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    for row in evaluated.report["rows"]:
        shown = {None: "", 0.0: "greedy", 1.0: "1"}[row["temperature"]]
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables]
        found = [line for line in cells if line[:2] == [row["source"], shown]]
        assert len(found) == 3, "one line in each table"
        assert found[0][2:4] == [f"{row['figures'][f'{name}_nll_per_token']['mean']:.3f}" for name in ("forward", "reverse")]
        assert found[1][2] == f"{row['figures']['bleu_2']['mean']:.3f}"
        assert found[2][-2] == f"{row['figures']['text_two_sample']['mean']:.3f}"
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


def test_a_second_evaluation_measures_nothing_anew(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    files = [*(Path(run) / "evaluation.json" for run in evaluated.runs),
             *(Path(evaluated.runs[0]).parent / "evaluation" / name for name in ("report.md", "report.json"))]
    before = [file.read_bytes() for file in files]
    monkeypatch.setattr(sys, "argv", ["train", *evaluated.command])
    assert main(evaluated.command) == 0
    assert capsys.readouterr().err == "", "it announced something"
    assert [file.read_bytes() for file in files] == before
    # The resumed command only announced the remaining rows.
    announced = re.findall(r"\((\d) of (\d)\b", evaluated.second_stderr)
    assert ("1", "7") not in announced and announced[-3:] == [("5", "7"), ("6", "7"), ("7", "7")]


def test_a_continued_evaluation_equals_an_uninterrupted_one(evaluated: Evaluated, tmp_path: Path) -> None:
    """Some of the rows once more from nothing: another directory, another cache."""
    run = tmp_path / "run"
    shutil.copytree(evaluated.runs[1], run, ignore=shutil.ignore_patterns("evaluation.json", "checkpoints"))
    description = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(description | {"cache": str(tmp_path / "cache")}))
    options = [option.replace("0,1", "1").replace("real outlines,generator,lm", "generator")
               for option in evaluated.command[3:]]
    assert main(["evaluate", str(run), *options]) == 0
    again = json.loads((run / "evaluation" / "report.json").read_text())["rows"]
    before = [row for row in evaluated.report["rows"]
              if row["source"] in ("real text", "outlines") and row["temperature"] != 0]
    assert len(again) == 2 and again == before
    kept = list((tmp_path / "cache").glob("reverse-*"))
    assert len(kept) == 2 and all({file.name for file in directory.iterdir()} == {"nll.json", "lock"} for directory in kept)


def test_missing_rows_are_measured_again_with_the_same_figures(evaluated: Evaluated, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(evaluated.runs[1], run)
    whole = json.loads((run / "evaluation.json").read_text())
    lost = [key for key, row in whole.items() if row.get("temperature") == 1.0][:1]
    (run / "evaluation.json").write_text(json.dumps({key: row for key, row in whole.items() if key not in lost}))
    assert main(["evaluate", str(run), *(option.replace(",lm", "") for option in evaluated.command[3:]), "--quiet"]) == 0
    assert json.loads((run / "evaluation.json").read_text()) == whole
    assert (run / "evaluation" / "report.md").exists()


def test_scaled_noise_has_its_own_line_for_sources_with_noise(evaluated: Evaluated, tmp_path: Path) -> None:
    options = [option for option in evaluated.command[3:] if option != "real outlines,generator,lm"]
    options[options.index("--temperatures") + 1] = "1"
    scaled = ["--noise-scales", "0.5,1", "--out", str(tmp_path / "scaled")]
    sources = [*options, *([] if "--sources" in options else ["--sources"]), "real outlines,generator,lm"]
    assert main(["evaluate", *evaluated.runs, *sources, *scaled, "--quiet"]) == 0
    rows = json.loads((tmp_path / "scaled" / "report.json").read_text())["rows"]
    assert [row["source"] for row in rows] == ["real text", "outlines: real outlines", "outlines, noise x 0.5", "outlines",
                                               "lm"]
    whole, half = (row["figures"]["outline_recall"]["mean"] for row in (rows[3], rows[2]))
    assert whole != half


def test_guidance_has_its_own_line_for_runs_with_outline_dropout(
        evaluated: Evaluated, lm_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guided = ["--guidance", "0.5", "--rejection", "2", "--sources", "generator,lm", "--out", str(tmp_path / "guided")]
    assert main(["evaluate", *evaluated.runs, *COMMAND, "--temperatures", "1", "--encoder", "none", *guided, "--quiet"]) == 0
    rows = json.loads((tmp_path / "guided" / "report.json").read_text())["rows"]
    assert [row["source"] for row in rows] == ["real text", "outlines", "outlines, rejection 2", "outlines, guidance 0.5",
                                               "outlines, rejection 2, guidance 0.5", "lm"]
    figures = [row["figures"] for row in rows]
    assert figures[1]["outline_recall"] == figures[3]["outline_recall"]
    assert figures[1]["forward_nll_per_token"] != figures[3]["forward_nll_per_token"]
    assert "no run was trained with --outline-dropout above 0" in refused(
        ["evaluate", str(lm_run), "--guidance", "0.5", *COMMAND, "--encoder", "none"], capsys)


def test_other_strengths_have_their_own_lines(evaluated: Evaluated, lm_run: Path, tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    weak = ["--strengths", "0.2,0.3,1", "--sources", "real outlines,generator,lm", "--out", str(tmp_path / "weak")]
    assert main(["evaluate", *evaluated.runs, *COMMAND, "--temperatures", "1", "--encoder", "none", *weak, "--quiet"]) == 0
    rows = json.loads((tmp_path / "weak" / "report.json").read_text())["rows"]
    assert [row["source"] for row in rows] == [  # 0.3 is the usual strength
        "real text", "outlines: real outlines", "outlines", "outlines: real outlines, strength 0.2",
        "outlines, strength 0.2", "outlines: real outlines, strength 1", "outlines, strength 1", "lm"]
    nll = {row["source"]: row["figures"]["forward_nll_per_token"] for row in rows}
    assert nll["outlines"] != nll["outlines, strength 0.2"] != nll["outlines, strength 1"]
    assert "no run was trained with --min-strength below 1" in refused(
        ["evaluate", str(lm_run), "--strengths", "0.5", *COMMAND, "--encoder", "none"], capsys)


def test_best_of_has_its_own_lines_for_every_family(evaluated: Evaluated, tmp_path: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    best = ["--best-of", "4", "--sources", "generator,lm", "--out", str(tmp_path / "best")]
    assert main(["evaluate", *evaluated.runs, *COMMAND, "--temperatures", "1", "--encoder", "none", *best, "--quiet"]) == 0
    rows = json.loads((tmp_path / "best" / "report.json").read_text())["rows"]
    assert [row["source"] for row in rows] == ["real text", "outlines", "outlines, best of 4", "lm", "lm, best of 4"]
    nll = [row["figures"]["forward_nll_per_token"]["mean"] for row in rows]
    assert nll[1] != nll[2] and nll[3] != nll[4]
    assert "outline_recall" in rows[1]["figures"] and "outline_recall" not in rows[2]["figures"]
    assert main(["evaluate", *evaluated.runs, *COMMAND, "--best-of", "2.5", "--quiet"]) == 2
    assert "--best-of 2.5 is not a whole number" in capsys.readouterr().err


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    return errors


@pytest.mark.parametrize(("arguments", "message"), [
    (["--sources", "lm,gaussian"], "'gaussian' is not a source of these runs. Choose from lm"),
    (["--temperatures", "0,warm"], "Write numbers with commas"),
    (["--temperatures", ""], "Write numbers with commas"),
    (["--temperatures", "-1"], "is out of range. Use 0 to 100"),
    (["--temperatures", "nan"], "is out of range. Use 0 to 100"),
    (["--noise-scales", "1,half"], "--noise-scales '1,half' is not valid. Write numbers with commas"),
    (["--noise-scales", "0.5,1"], "--noise-scales has no effect: no run has a decoder that reads a vector. Leave it out"),
    (["--rejection", "2"], "--rejection has no effect: no run has a critic. Leave it out"),
    (["--num-samples", "5"], "--num-samples must be from 20 to 10,000,000, not 5"),
    (["--num-samples", "many"], "invalid int value"),
    (["--encoder", "recurrent:nowhere"], "nowhere"),
    (["--encoder", "nothing"], "Unknown encoder 'nothing'"),
    (["--mauve-features", "nothing"], "Unknown encoder 'nothing'"),
    (["--judge", "gpt2"], "Unknown language model 'gpt2'. Use smollm2, or hf:NAME_OR_DIRECTORY"),
    (["--judge", "hf:/nowhere"], "/nowhere: no such directory"),
])
def test_bad_options_are_refused_in_one_line(arguments: list[str], message: str, lm_run: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(["evaluate", str(lm_run), "--quiet", *arguments], capsys)


def test_a_source_must_be_one_of_the_runs(lm_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = refused(["evaluate", str(lm_run), "--quiet", "--sources", "real outlines"], capsys)
    assert "'real outlines' is not a source of these runs. Choose from lm" in errors


def test_a_report_goes_to_no_runs_directory(lm_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (lm_run / "report.json").read_bytes()
    assert "contains a run or is a file" in refused(["evaluate", str(lm_run), "--quiet", "--out", str(lm_run)], capsys)
    assert "contains a run or is a file" in refused(["evaluate", str(lm_run), "--out", str(lm_run / "run.json")], capsys)
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
    errors = refused(["evaluate", str(unfinished), "--quiet"], capsys)
    assert f"Run `python -m train --resume {unfinished}`." in errors
    corpus = tmp_path / "other.txt"
    corpus.write_text("\n".join(grammar.sentences(600, seed=6)) + "\n")
    other = moved(lm_run, tmp_path / "other", corpus, keep_hashes=False)
    errors = refused(["evaluate", str(lm_run), str(other), "--quiet"], capsys)
    assert "have different corpora or tokenizers" in errors and "Evaluate only runs on the same corpus together." in errors
    changed = moved(lm_run, tmp_path / "changed", corpus, keep_hashes=True)
    assert "the corpus has changed since this run began" in refused(["evaluate", str(changed), "--quiet"], capsys)
    shutil.copytree(lm_run, tmp_path / "twin")
    assert "has the same configuration and seed as" in refused(
        ["evaluate", str(lm_run), str(tmp_path / "twin"), "--quiet"], capsys)


@pytest.fixture(scope="module")
def seeds(tiny_corpus: Path, tiny_run: Path) -> Path:
    """Language models of the seeds 1 and 2, stopped on the way and resumed."""
    directory = tiny_run.parent / "seeds"
    process = start("lm", "--preset", "tiny", "--corpus", tiny_corpus, "--runs", tiny_run.parent, "--out", directory,
                    "--seeds", "1,2", "--quiet")
    errors = stop_when(lambda: (directory / "seed-2" / "checkpoints").exists(), process)
    assert f"continue with --resume {directory}" in errors
    assert not (directory / "report.json").exists()
    assert main(["--resume", str(directory), "--quiet"]) == 0
    return directory


def test_seeds_are_runs_of_their_own_reported_together(seeds: Path, lm_run: Path) -> None:
    assert json.loads((seeds / "runs.json").read_text())["runs"] == ["seed-1", "seed-2"]
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


def test_without_reverse_steps_no_language_model_learns_from_samples(
        lm_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.commands.judges.reverse_nll", lambda *arguments, **named: pytest.fail("a reverse judge"))
    (tmp_path / "curve.png").write_bytes(b"of an earlier evaluation with reverse NLL")
    options = ["--encoder", "none", "--temperatures", "1", "--num-samples", "40", "--reverse-steps", "0", "--quiet"]
    assert main(["evaluate", str(lm_run), *options, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Forward NLL uses 40 samples" in shown and "everse NLL" not in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md", "tensorboard"]
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert all("forward_ngram_nll_per_token" in row["figures"] for row in rows)
    assert not any("reverse" in key and key != "num_reverse" for row in rows for key in row["figures"])


def test_one_of_several_seeds_is_locked_while_it_is_trained(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(seeds / "seed-2"):
        assert main(["--resume", str(seeds), "--quiet"]) == 2
    errors = capsys.readouterr().err
    assert "seed-2: process" in errors and "is training here" in errors


@pytest.mark.parametrize(("arguments", "message"), [
    (["lm", "--seeds", "1,2", "--seed", "3"], "--seed has no effect with --seeds"),
    (["lm", "--seeds", "1,1"], "Write different numbers"),
    (["lm", "--seeds", "1,two"], "Write different numbers"),
    (["lm", "--seeds", ""], "Write different numbers"),
    (["--resume", "nowhere", "--seeds", "1,2"], "--seeds has no effect with --resume"),
])
def test_bad_seeds_are_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(arguments, capsys)
    assert not list(tmp_path.iterdir())
