"""The loop, from outside: a run as a user starts it, interrupted in every way a user's run is."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from outlines import load
from outlines.checkpoint import read_state
from outlines.errors import OutlinesError
from tests.conftest import Command, environment
from train.__main__ import main
from train.commands.train import parse, plan_of
from train.loop import learning_rate_factor
from train.method import NotFinite, Update
from train.runtime.log import EVENTS, RunLog
from train.runtime.ranks import Ranks
from train.runtime.run_directory import locked, read_run, write_json
from train.runtime.signals import StopSignals
from train.session import Session


def start(arguments: list[str], threads: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "train", *map(str, arguments)], env=environment(threads),
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def weights(run: Path) -> str:
    """One hash of the final model and of the last checkpoint: weights, optimisers and position."""
    digest = hashlib.sha256((run / "model" / "tensors.safetensors").read_bytes())
    last = sorted((run / "checkpoints").iterdir())[-1]
    tensors, meta = read_state(last)
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    digest.update(json.dumps([meta["stage"], meta["step"], meta["optimizers"]], sort_keys=True).encode())
    return digest.hexdigest()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end, "the run did not get there"
        time.sleep(0.002)


def test_a_run_directory_tells_everything(tiny_run: Path) -> None:
    run = json.loads((tiny_run / "run.json").read_text())
    assert set(run["hashes"]) == {"corpus", "tokenizer", "encoder"}
    assert run["training"]["precision"] in ("float32", "bfloat16")
    assert run["versions"]["torch"] == torch.__version__
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert {"train/reconstruction_nll_per_token", "train/critic_loss", "valid/precision"} <= {
        key for line in lines for key in line}
    examples = [line["examples"] for line in lines if line["stage"] != "report"]
    assert examples == sorted(examples)
    report = json.loads((tiny_run / "report.json").read_text())
    assert all({"forward_nll_per_token", "self_bleu_4", "copied"} <= set(row) for row in report["rows"])
    assert [row["source"] for row in report["rows"]] == [
        "real text", "real outlines", "real outlines", "generator", "generator", "mixture", "gaussian", "lm", "lm"]


def test_tensorboard_has_the_same_figures(tiny_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(tiny_run))
    events.Reload()
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    for key in ("train/reconstruction_nll_per_token", "valid/precision", "norm/critic", "scores/real",
                "learning_rate/generator"):
        written = [(line["examples"], pytest.approx(line[key], rel=1e-5)) for line in lines if key in line]
        assert written
        assert [(event.step, event.value) for event in events.Scalars(key)] == written
    assert any("samples" in tag for tag in events.Tags()["tensors"])


@pytest.mark.parametrize("saved", [True, False])
def test_a_resumed_log_keeps_what_its_checkpoint_had_seen_and_no_more(saved: bool, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    log = RunLog(tmp_path)
    log.scalars({"valid/nll": 3.0}, "decoder", 1, 10)
    offset = log.flush() if saved else 0
    log.scalars({"valid/nll": 9.0}, "decoder", 2, 20)  # The process dies before the next checkpoint.
    log.close()
    # Within the same second, and by a process of a number that another cannot come after.
    name = f"{int(time.time())}.{socket.gethostname()}.99999999.0"
    next(tmp_path.glob(EVENTS)).rename(tmp_path / EVENTS.replace("*", name))
    resumed = RunLog(tmp_path, offset, examples=10 if saved else 0)
    resumed.scalars({"valid/nll": 2.0}, "decoder", 2, 20)
    resumed.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    kept = [(10, 3.0), (20, 2.0)] if saved else [(20, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("valid/nll")] == kept
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["examples"], line["valid/nll"]) for line in lines] == kept


def test_a_second_trainer_is_refused_with_the_firsts_pid(tiny_run: Path, run_module: Command) -> None:
    with locked(tiny_run):
        second = run_module("train", "--resume", tiny_run)
    assert second.returncode == 2
    assert second.stderr.startswith("error: ") and f"process {os.getpid()} is training here" in second.stderr
    assert run_module("train", "--resume", tiny_run, "--quiet").returncode == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["--preset", "smal"], "unknown preset 'smal'. Did you mean 'small'?"),
    (["--epochs", "3"], "unknown option '--epochs'"),
    (["outlinez"], "Did you mean 'outlines'"),
    (["--corpus", "missing.txt"], "missing.txt"),
    (["--resume", "nowhere"], "no run here"),
    (["--resume", "nowhere", "--seed", "3"], "no effect with --resume"),
    (["--encoder", "recurrent:nowhere", "--preset", "tiny"], "nowhere"),
    (["--seed", "one"], "invalid int value"),
    (["--gan-patience", "3"], "--gan-patience does not work on the command line. Set gan_patience in a TOML file"),
    (["lm", "--group-lines", "5"], "--group-lines has no effect here. Only the family conditional has it. Leave it out."),
    (["lm", "--gan-steps=4"], "--gan-steps has no effect here. Only the families conditional and outlines have it. Leave"),
    (["lm", "--gan-patience", "4"], "Only the families conditional and outlines have it."),
    (["--valid", "v.txt"], "--valid has no effect here (without --corpus)"),
    (["--tokenizer", "spm.model", "--vocab-size", "500"], "--vocab-size has no effect here (with --tokenizer)"),
    (["--corpus", "a.txt", "--text-column", "line"], "--text-column has no effect here (no file has columns)"),
    (["--corpus", "a.json/b.txt", "--text-column", "line"], "--text-column has no effect here (no file has columns)"),
    (["--corpus", "A.CSV", "--text-column", "line"], "A.CSV: no such file"),
    (["evaluate", "run", "--num-evaluation", "20"], "--num-evaluation has no effect here. Only the families arae,"),
    (["evaluate", "run", "--num-sample", "20"], "unknown option '--num-sample'. Did you mean '--num-samples'?"),
])
def test_bad_input_is_one_line_and_status_2(arguments: list[str], message: str, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--quiet"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1
    assert not list(tmp_path.glob("runs/*")), "a run that never began left a directory"


def test_two_processes_train_as_one(tiny_arguments: list[str], tiny_run: Path) -> None:
    """Data-parallel over gloo: the same losses as one process, up to the order of float32 sums; one rank writes."""
    (tiny_run.parent / "log.toml").write_text("log_every = 1\n")
    settings = [*tiny_arguments, "--config", str(tiny_run.parent / "log.toml"), "--precision", "float32", "--dropout", "0",
                "--runs", tiny_run.parent, "--quiet",
                "--decoder-steps", "10", "--gan-steps", "10"]
    losses = {}
    for name, launcher in (("one", ["-m"]), ("two", ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"])):
        run = tiny_run.parent / f"world-{name}"
        done = subprocess.run([sys.executable, *launcher, "train", *settings, "--out", str(run)], env=environment(),
                              capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("next:") == 1
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        keys = ("train/reconstruction_nll_per_token", "train/reconstruction_nll", "train/critic_loss",
                "train/generator_loss")
        losses[name] = [line[key] for line in lines for key in keys if key in line]
    assert len(losses["one"]) == 40
    assert losses["two"] == pytest.approx(losses["one"], abs=1e-6, rel=1e-6)


def parameter_and_update() -> tuple[torch.nn.Parameter, torch.optim.Optimizer, Update]:
    parameter = torch.nn.Parameter(torch.ones(3))
    return parameter, torch.optim.SGD([parameter], lr=1.0), Update(Ranks(), clip_norm=1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(bad: float) -> None:
    parameter, optimizer, update = parameter_and_update()
    with pytest.raises(NotFinite, match="the nll: the loss"):
        update("the nll", optimizer, parameter.sum() * bad)
    assert torch.equal(parameter.detach(), torch.ones(3))


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    parameter, optimizer, update = parameter_and_update()
    with pytest.raises(NotFinite, match="the nll: the gradient"):
        update("the nll", optimizer, (parameter - 1).abs().sqrt().sum())  # The root has no slope at 0.
    assert torch.equal(parameter.detach(), torch.ones(3))


def test_clipping_by_hand() -> None:
    parameter, optimizer, update = parameter_and_update()
    norm = update("sum", optimizer, 2 * parameter.sum())
    assert norm.item() == pytest.approx(2 * 3 ** 0.5)
    assert parameter.detach().tolist() == pytest.approx([1 - 1 / 3 ** 0.5] * 3, abs=1e-5)


def test_a_divergence_names_stage_step_and_term(tiny_arguments: list[str], tmp_path: Path,
                                                run_module: Command) -> None:
    done = run_module("train", *tiny_arguments, "--runs", tmp_path / "runs", "--out", tmp_path / "run", "--quiet",
                      "--gan-learning-rate", "1e30")
    assert done.returncode == 2
    assert "stage gan, step" in done.stderr and "loss" in done.stderr and done.stderr.count("\n") == 1
    tensors, _ = read_state(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_learning_rate_by_hand() -> None:
    assert learning_rate_factor(0, 100, 10, 0.1) == pytest.approx(0.1)  # one tenth of the warm-up
    assert learning_rate_factor(50, 100, 10, 0.1) == pytest.approx(0.55)
    assert learning_rate_factor(100, 100, 10, 0.1) == pytest.approx(0.1)


def test_a_run_cannot_go_on_with_another_corpus(tiny_arguments: list[str], tiny_corpus: Path, tmp_path: Path,
                                                run_module: Command) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(tiny_corpus.read_bytes())
    arguments = [str(corpus) if argument == str(tiny_corpus) else argument for argument in tiny_arguments]
    process = start([*arguments, "--runs", tmp_path / "runs", "--out", tmp_path / "run", "--quiet"])
    wait_for((tmp_path / "run" / "checkpoints").exists, process)
    process.kill()
    process.wait()
    corpus.write_bytes(tiny_corpus.read_bytes() + b"One more sentence.\n")
    done = run_module("train", "--resume", tmp_path / "run", "--quiet")
    assert done.returncode == 2
    assert "the corpus has changed since this run began" in done.stderr


def test_early_stopping(tiny_arguments: list[str], tmp_path: Path, run_module: Command) -> None:
    run = tmp_path / "run"
    # With a rate of 0 no validation can be better than the first, so patience 2 ends the stage after the third.
    (tmp_path / "options.toml").write_text("gan_patience = 2\ngan_validate_every = 2\nlog_every = 1\n")
    done = run_module("train", *tiny_arguments, "--runs", tmp_path, "--out", run, "--quiet", "--config",
                      tmp_path / "options.toml", "--gan-learning-rate", 0)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines if line["stage"] == "gan") == 6
    assert run_module("generate", run, "--num", 2).returncode == 0


def test_one_who_waits_gets_the_directory_when_the_first_is_done(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path, lambda text: order.append(f"waiting {text.rsplit('process ', 1)[1]}")):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path):
        thread.start()
        while not order:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == [f"waiting {os.getpid()} is training here: waiting for it", "first", "second"]


def test_a_reader_who_leaves_gets_no_traceback(tiny_run: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "train", "--resume", str(tiny_run), "--quiet"], stdout=writer,
                          stderr=subprocess.PIPE, text=True, env=environment(), timeout=120)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE and not done.stderr, done.stderr


def stored_with(run: Path, copy: Path, device: str) -> Path:
    """Return a copy of a run that was stored with another device."""
    shutil.copytree(run, copy)
    described = read_run(copy)
    write_json(copy / "run.json", {**described, "training": {**described["training"], "device": device}})
    return copy


def test_a_run_of_a_missing_device_continues_on_another(tiny_run: Path, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    missing = "mps" if torch.cuda.is_available() else "cuda"
    run = stored_with(tiny_run, tmp_path / "run", missing)
    assert main(["--resume", str(run), "--quiet"]) == 0
    assert f"its device {missing} is not available here" in capsys.readouterr().err
    assert main(["--resume", str(run), "--quiet", "--device", "cpu"]) == 0
    assert capsys.readouterr().err == ""
    for verb in ("--resume", "evaluate", "ablate"):
        assert main([verb, str(run), "--quiet", "--device", missing]) == 2
        assert capsys.readouterr().err.startswith(f"error: --device {missing} is not available")
    assert read_run(run)["training"]["device"] == missing
    assert Session.of_run(run, True, StopSignals(), None).device == "auto"
    assert Session.of_run(run, True, StopSignals(), "cpu").device == "cpu"


def test_a_run_needs_neither_its_corpus_nor_its_places(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    """Runs and cache are moved together, the corpus is gone, and even the judges must be trained again."""
    home = tmp_path / "two words é"
    home.mkdir()
    shutil.copytree(Path(read_run(tiny_run)["cache"]), home / "runs-cache")
    run = shutil.copytree(tiny_run, home / "runs" / "run")
    for judge in (home / "runs-cache").glob("lm-*"):
        shutil.rmtree(judge)
    (run / "report.json").unlink()
    described = read_run(run)
    described["corpus"]["corpus"] = ["nowhere.txt"]
    write_json(run / "run.json", {**described, "cache": str(tmp_path / "gone")})
    monkeypatch.chdir(tmp_path)
    assert main(["--resume", str(run.relative_to(tmp_path)), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "gone").exists()
    # A judge is a run, too: --resume reads the same keys.
    assert {read_run(judge)["preset"] for judge in (home / "runs-cache").glob("lm-*")} == {""}
    shutil.rmtree(home / "runs-cache")
    assert main(["--resume", str(run), "--quiet"]) == 2
    assert "nowhere.txt: no such file" in capsys.readouterr().err


def test_an_encoder_that_moved_with_its_run_is_found(tiny_run: Path, recurrent_encoder: Path, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    old, home = tmp_path / "old" / "runs" / "001 encoder", tmp_path / "new home" / "runs"
    run = shutil.copytree(tiny_run, home / "run")
    described = read_run(run)
    described["model"]["encoder"] = f"recurrent:{old / 'encoder'}"
    write_json(run / "run.json", described)
    pipeline = load(run, "cpu")
    vars(pipeline.model)["encoder"]["name"] = f"recurrent:{old / 'encoder'}"
    gone = f"error: {old / 'encoder'}: missing, but the run {run} needs it. Restore it, or copy it next to the run.\n"
    for arguments in (["--resume", str(run)], ["evaluate", str(run), "--encoder", "none"]):
        assert main([*arguments, "--quiet"]) == 2
        assert capsys.readouterr().err == gone
    with pytest.raises(OutlinesError, match="missing, but the run"):
        pipeline.encode(["A dog runs."])
    shutil.copytree(recurrent_encoder, home / old.name / "encoder")
    assert main(["--resume", str(run), "--quiet"]) == 0
    assert pipeline.encode(["A dog runs."]).shape == (1, 16)
    # A new run never guesses where its encoder is.
    wrong = ["--preset", "tiny", "--encoder", f"recurrent:{tmp_path / 'nowhere' / '001 encoder' / 'encoder'}"]
    assert main([*wrong, "--runs", str(home), "--out", str(home / "new"), "--quiet"]) == 2
    assert "nowhere" in capsys.readouterr().err and not (home / "new").exists()


def test_a_directory_that_tensorboard_cannot_name_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(tmp_path / os.fsdecode(b"run\xff"))
    for arguments in (["lm", "--out", name], ["lm", "--runs", name], ["evaluate", name], ["evaluate", "--out", name, "run"]):
        assert main(arguments) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("error: ") and "is not UTF-8" in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_missing_files_are_reported_before_a_directory_is_made(tiny_corpus: Path, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ids.json").write_text("[1, 2]")
    corpus = ["--corpus", str(tiny_corpus)]
    for arguments, message in ((["--corpus", "gone.txt"], "gone.txt: no such file."),
                               (["--corpus", "."], "a directory"),
                               (["--corpus", "ids.json"], "ids.json: no sentence found"),
                               ([*corpus, "--valid", "gone.txt"], "gone.txt: no such file."),
                               ([*corpus, "--test", "gone.txt"], "gone.txt: no such file."),
                               ([*corpus, "--tokenizer", "gone.model"], "gone.model: no such file."),
                               ([*corpus, "--config", "gone.toml"], "gone.toml: not a readable TOML file")):
        for command in (["lm"], ["lm", "--out", "run"], ["compare", "--seeds", "1,2"]):
            assert main([*command, *arguments]) == 2
            errors = capsys.readouterr().err
            assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ids.json"]


def test_losses_of_text_are_noted_once(tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tiny_corpus.read_text()
    (tmp_path / "corpus.txt").write_text(lines + "nul\0\n")
    (tmp_path / "test.txt").write_text("\n".join(lines.splitlines()[:30]))
    assert main(["lm", "--preset", "tiny", "--corpus", str(tmp_path / "corpus.txt"), "--test", str(tmp_path / "test.txt"),
                 "--decoder-steps", "1", "--evaluator-steps", "1", "--max-len", "5", "--num-evaluation", "20",
                 "--seeds", "1,2", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "run")]) == 0
    errors = capsys.readouterr().err
    for note in ("rejected lines: 1 (1 NUL character)\n", "sentences are cut to --max-len", "also in the training split"):
        assert errors.count(note) == 1
    assert main(["evaluate", str(tmp_path / "run" / "seed-1"), "--encoder", "none", "--temperatures", "0", "--num-samples",
                 "20", "--reverse-steps", "1"]) == 0
    assert not re.search("rejected|sentences are cut|in the training split", capsys.readouterr().err)


def test_paths_are_stored_absolute(tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.commands.train.with_source", lambda config, _: config)  # there is no such run
    shutil.copyfile(tiny_corpus, "a.txt")
    plan = plan_of(parse(["--corpus", "a.txt", "--encoder", "recurrent:encoder", "--decoder-from", "run", "--runs", "."]))
    config: Any = plan.runs["."][1]
    assert config.corpus.corpus == (str(tmp_path / "a.txt"),) and not config.corpus.tokenizer
    assert plan.cache == tmp_path.with_name(f"{tmp_path.name}-cache")
    monkeypatch.setenv("OUTLINES_CACHE", "")
    assert plan_of(parse(["lm", "--runs", "."])).cache == plan.cache, "an empty variable is as good as none"
    monkeypatch.setenv("OUTLINES_CACHE", "elsewhere")
    assert plan_of(parse(["lm"])).cache == Path("elsewhere")
    home = plan_of(parse(["--encoder", "recurrent:~/encoder"])).runs["."][1].model.encoder
    assert home == f"recurrent:{Path.home() / 'encoder'}", "a shell does not expand ~ after a colon"
    assert config.model.encoder == f"recurrent:{tmp_path / 'encoder'}" and config.model.decoder_from == str(tmp_path / "run")


WITHOUT_POSIX = """
import os, signal, sys, types
import sacrebleu  # it asks for the system, not for the module
sys.modules["fcntl"] = None  # an import of it fails
del signal.SIGPIPE
from generate.__main__ import main as generate
from outlines import checkpoint
from train.__main__ import main as train
checkpoint.os = types.SimpleNamespace(**{**vars(os), "name": "nt", "open": None})
sys.exit(train(sys.argv[2:]) or generate([sys.argv[1], "--num", "2"]))
"""


def test_a_system_without_posix_trains_and_generates(tiny_corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", WITHOUT_POSIX, run, "lm", "--preset", "tiny", "--corpus", tiny_corpus,
                           "--decoder-steps", "2", "--evaluator-steps", "2", "--max-len", "5", "--runs", tmp_path / "runs",
                           "--out", run, "--quiet"], env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (run / "report.json").exists() and "next:" in done.stdout
