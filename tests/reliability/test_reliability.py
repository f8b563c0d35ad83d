"""The promises of docs/reliability.md: a sample of each count on every commit, the full counts with `-m full`.

Families are found, not listed, so a new one is held to the same. Processes are forked from one that has imported
everything, so that a kill costs only the time of the training.
"""

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from outlines import checkpoint, load
from outlines.checkpoint import (
    ASIDE_PREFIX,
    STAGING_PREFIX,
    atomic_directory,
    flatten_optimizer,
    module_tensors,
    read_state,
    sweep,
    write_state,
)
from outlines.corpus import grammar
from outlines.corpus.prepared import PreparedCorpus
from outlines.encoders.store import OutlineStore
from outlines.errors import CheckpointError, OutlinesError
from tests.conftest import environment
from tests.encoders.test_store import HashEncoder, encode
from tests.train.test_training import weights
from train.__main__ import main
from train.config import SIZES, RunConfig, resolve
from train.data import Dataset, open_dataset
from train.loop import Loop
from train.method import Method, NotFinite, Snapshot, Stage, Update, all_methods
from train.runtime.progress import Progress, Reporter
from train.runtime.ranks import VERSIONS, Ranks
from train.runtime.run_directory import checkpoint_path, checkpoints, locked, newest_checkpoint, prune, read_lines, read_run
from train.runtime.signals import Stopped, StopSignals
from train.session import Session, begin_run, run_config, train_run

FAMILIES = sorted(all_methods())
REMEDIES = [(family, f"tiny {preset}") for family, method in sorted(all_methods().items())
            for preset in sorted(method.presets) if preset not in (*SIZES, family)]
VARIANTS = [(family, "tiny") for family in FAMILIES] + [
    pytest.param(*variant, marks=pytest.mark.full) for variant in REMEDIES]
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # Otherwise two threads on busy cores waste time spinning.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train.__main__", "tests.reliability.test_reliability"])
full = pytest.mark.full


def counts(few: int, many: int) -> pytest.MarkDecorator:
    """Parametrise with the count of every commit and the full count."""
    return pytest.mark.parametrize("num", [few, pytest.param(many, marks=full)])


# Runs, in this process and in others


class Bench:
    """Tiny runs of every family on one small corpus. An epoch has 15 batches, so stages end inside an epoch."""

    def __init__(self, folder: Path, encoder: Path):
        self.folder, self.cache, self.encoder = folder, folder / "runs-cache", f"recurrent:{encoder}"
        self.corpus = folder / "scenes.txt"
        self.corpus.write_text("\n".join(grammar.sentences(300, seed=5)) + "\n")
        self._data: dict[str, Dataset] = {}

    def flags(self, family: str) -> dict[str, Any]:
        own = {"encoder": self.encoder} if hasattr(all_methods()[family].config_class, "encoder") else {}
        if all_methods()[family].config_class.learns_pairs:
            own |= {"group_lines": 5}
        return {"corpus": (str(self.corpus),), "num_evaluation": 20, **own}

    def arguments(self, family: str, run: Path, *more: object) -> list[str]:
        flags = [str(part) for name, value in self.flags(family).items() for part in (
            f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else (value,)))]
        return [family, "--preset", "tiny", *flags, "--runs", str(self.folder / "runs"), "--out", str(run), "--quiet",
                *map(str, more)]

    def config(self, family: str, preset: str = "tiny", **more: Any) -> RunConfig:
        method = all_methods()[family]
        return resolve(family, method.config_class, method.presets, preset, None, {**self.flags(family), **more})

    def data(self, config: RunConfig) -> Dataset:
        if config.family not in self._data:
            self._data[config.family] = open_dataset(config.corpus, config.model.encoder_name(), self.cache,
                                                     torch.device("cpu"), Ranks(), Reporter(quiet=True))
        return self._data[config.family]

    def method(self, config: RunConfig) -> Method:
        data = self.data(config)  # before the seed is set: loading an encoder draws its weights
        torch.manual_seed(config.training.seed)
        return all_methods()[config.family](config, data, False)

    def loop(self, directory: Path, config: RunConfig, signals: StopSignals | None = None) -> Loop:
        """Return the loop that train_run would create."""
        directory.mkdir(parents=True, exist_ok=True)
        return Loop(self.method(config), self.data(config), config.training, directory, Ranks(), Reporter(quiet=True),
                    signals or StopSignals())


@pytest.fixture(scope="module")
def bench(recurrent_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(tmp_path_factory.mktemp("reliability"), recurrent_encoder)
    torch.set_num_threads(threads)


def state(method: Method) -> str:
    """Return the SHA-256 of all weights, buffers and optimisers."""
    tensors = module_tensors(method.modules, "module")
    for name, optimizer in method.optimizers.items():
        tensors |= flatten_optimizer(optimizer.state_dict(), name)[0]
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().numpy().tobytes())
    return digest.hexdigest()


def next_batches(data: Dataset, stages: tuple[Stage, ...], seed: int, stage: int, step: int, num: int = 100) -> str:
    """Return the SHA-256 of the ids in the next batches from a position."""
    own = stages[min(stage, len(stages) - 1)]
    order = data.order(own.batch_size, own.like_length, seed)
    digest = hashlib.sha256()
    for number in range(step, step + num):
        batch = data.batch(order.batch(number), Ranks())
        digest.update(batch.tokens.inputs.numpy().tobytes() + batch.tokens.lengths.numpy().tobytes())
    return digest.hexdigest()


def outcome(loop: Loop) -> tuple[str, str]:
    return state(loop.method), next_batches(loop.data, loop.method.stages, loop.config.seed, loop.stage_index, loop.step)


def leftovers(directory: Path) -> list[str]:
    return [path.name for prefix in (STAGING_PREFIX, ASIDE_PREFIX) for path in directory.rglob(prefix + "*")]


def _train(arguments: list[str], threads: int, said: Path, largest_file: int = 0) -> None:
    """Train in a forked process, with stderr in the file `said` and the position at the first signal beside it."""
    with open(said, "ab") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(threads)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    running: list[Loop] = []
    check, handle = Loop._check_signals, StopSignals._handle

    def note_loop(self: Loop) -> None:
        running[:] = [self]
        check(self)

    def note_position(self: StopSignals, number: int, frame: Any) -> None:
        # Only in this run's loop, not in the loop of the judge.
        if self.deferred and running and str(running[0].directory) in arguments and not self.received:
            said.with_suffix(".position").write_text(f"{running[0].stage_index} {running[0].step}")
        handle(self, number, frame)

    Loop._check_signals, StopSignals._handle = note_loop, note_position  # type: ignore[method-assign]
    sys.exit(main(arguments))


def start(arguments: list[str], said: Path, threads: int = 1, largest_file: int = 0) -> Any:
    process = PROCESSES.Process(target=_train, args=(arguments, threads, said, largest_file))
    process.start()
    return process


def wait_for(condition: Callable[[], Any], process: Any, said: Path, pause: float = 0.002) -> None:
    end = time.monotonic() + 1200
    while not condition():
        if not process.is_alive() and not condition():
            raise AssertionError(f"it ended with {process.exitcode}: {said.read_text()}")
        assert time.monotonic() < end, "the run did not get there"
        time.sleep(pause)


def next_batches_of(run: Path, stages: tuple[Stage, ...], stage: int, step: int) -> str:
    """Return the same for a run, from its files."""
    config, cache = run_config(run), Path(read_run(run)["cache"])
    data = open_dataset(config.corpus, None, cache, torch.device("cpu"), Ranks(), Reporter(quiet=True))
    return next_batches(data, stages, config.training.seed, stage, step)


# 1. kill -9, then --resume


def train_to_the_end(arguments: list[str], run: Path, threads: int) -> float:
    """Train until the model exists, without the report; return the seconds since the first checkpoint."""
    said = run.with_suffix(".txt")
    process = start(arguments, said, threads)
    wait_for(lambda: checkpoints(run), process, said)
    since = time.monotonic()
    wait_for((run / "model").exists, process, said)
    seconds = time.monotonic() - since
    process.kill()
    process.join()
    return seconds


def kill(arguments: list[str], run: Path, threads: int, delay: float, in_save: bool) -> bool:
    """Kill -9 a run `delay` s after its first checkpoint, or during the next save; return whether it was in a save."""
    said = run.with_suffix(".txt")
    process = start(arguments, said, threads)
    wait_for(lambda: checkpoints(run), process, said)
    time.sleep(delay)
    folder, end = run / "checkpoints", time.monotonic() + 60
    while in_save and process.is_alive() and time.monotonic() < end and not (run / "model").exists():
        if any(name.startswith(STAGING_PREFIX) for name in os.listdir(folder)):
            break
        time.sleep(0.0005)
    process.kill()
    process.join()
    return bool(leftovers(folder))


@pytest.mark.parametrize(("family", "num"), [
    *((family, 1) for family in ("outlines", "vae")), *(pytest.param(family, 30, marks=full) for family in FAMILIES)])
def test_killed_and_resumed_equals_uninterrupted(num: int, family: str, bench: Bench, tmp_path: Path) -> None:
    """Every third run is killed inside a save, proved by its leftovers; every third trains with two threads."""
    rng = random.Random(f"{family} {num}")
    stages = bench.method(bench.config(family)).stages
    whole: dict[int, tuple[str, float]] = {}
    for index in range(num):
        threads, in_save = 1 + (index % 3 == 2), index % 3 == 0
        if threads not in whole:
            reference = tmp_path / f"whole-{threads}"
            seconds = train_to_the_end(bench.arguments(family, reference), reference, threads)
            whole[threads] = weights(reference), seconds
        for attempt in range(20):
            run = tmp_path / f"killed-{index}-{attempt}"
            delay = rng.random() * whole[threads][1] * (0.7 if in_save else 1)
            if kill(bench.arguments(family, run), run, threads, delay, in_save) or not in_save:
                break
        else:
            raise AssertionError("no save was hit")
        found = newest_checkpoint(run)
        assert found is not None
        position = found[1]["stage"], found[1]["step"]
        batches = next_batches_of(run, stages, *position)
        train_to_the_end(["--resume", str(run), "--quiet"], run, threads)
        assert weights(run) == whole[threads][0], f"{family}: kill {index} changed the outcome"
        assert batches == next_batches_of(tmp_path / f"whole-{threads}", stages, *position)
        assert not leftovers(run)
        shutil.rmtree(run)
        print(f"{family}: kill {index + 1}, {threads} threads, stage and step {position}"
              f"{', inside a save' if in_save else ''}")


# 2. Position of the save


class StopsAt(StopSignals):
    """A SIGTERM that arrives at the loop's `look`-th check, counted from 0.

    The loop checks before a stage begins, before each step, and after the last one.
    """

    def __init__(self, look: int):
        super().__init__()
        self.left = look

    def __getattribute__(self, name: str) -> Any:
        if name == "received":
            self.left -= 1
            return signal.SIGTERM if self.left < 0 else 0
        return super().__getattribute__(name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=full)])
def test_a_save_at_any_position_gives_the_same_run(thorough: bool, family: str, bench: Bench, tmp_path: Path) -> None:
    config = bench.config(family, checkpoint_every=7)
    whole = bench.loop(tmp_path / "whole", config)
    whole.run()
    expected = outcome(whole)
    stages = whole.method.stages
    data = bench.data(config)
    positions: dict[str, int] = {}
    before = 0
    for stage in stages:
        epoch = data.order(stage.batch_size, stage.like_length, 1).batches_per_epoch
        first = before + 1
        positions |= {f"{stage.name}: not begun": before, f"{stage.name}: start": first,
                      f"{stage.name}: epoch start": first + epoch,
                      f"{stage.name}: last batch of the epoch": first + epoch - 1,
                      f"{stage.name}: middle": first + stage.num_steps // 2,
                      f"{stage.name}: last batch": first + stage.num_steps - 1}
        before = first + stage.num_steps
    positions["end"] = before
    if not thorough:
        positions = {name: positions[name] for name in [f"{stages[0].name}: epoch start"]}
    for name, look in positions.items():
        assert look <= before, f"{name}: the stage is shorter than an epoch"
        directory = tmp_path / f"look-{look}"
        with pytest.raises(Stopped):
            bench.loop(directory, config, StopsAt(look)).run()
        resumed = bench.loop(directory, config)
        resumed.run()
        assert outcome(resumed) == expected, name
    finished = bench.loop(tmp_path / "whole", config)
    finished.run()
    assert outcome(finished) == expected, "after the finish"


def test_a_stage_begins_only_once(bench: Bench, tmp_path: Path) -> None:
    """A resumed run must not repeat the work of `begin`."""
    config = bench.config("lm")
    begun = []
    for look in (1, 0, 5, 1000):
        loop = bench.loop(tmp_path, config, StopsAt(look))
        loop.method.stages[0].begin = begun.append  # type: ignore[method-assign]
        with contextlib.suppress(Stopped):
            loop.run()
    assert len(begun) == 1


# 3. A fault at every write


class Faults:
    """Makes the `at`-th write, flush or rename of checkpoint files fail; counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, number: int):
        self.at, self.number, self.calls = at, number, 0
        for owner, name in ((os, "fsync"), (os, "replace"), (checkpoint.tempfile, "mkdtemp"), (Path, "write_text")):
            monkeypatch.setattr(owner, name, partial(self._call, getattr(owner, name))
                                if owner is not Path else self._method(getattr(owner, name)))
        save_file = checkpoint.save_file

        def half(tensors: Any, path: Path) -> None:
            """Fail like the library: half of the file is written, and the error is its own class."""
            if self._due():
                path.write_bytes(b"half")
                raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
            save_file(tensors, path)
        monkeypatch.setattr(checkpoint, "save_file", half)

    def _due(self) -> bool:
        self.calls += 1
        return self.calls == self.at

    def _call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self._due():
            raise OSError(self.number, os.strerror(self.number))
        return function(*arguments, **named)

    def _method(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **named: self._call(function, *arguments, **named)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_fault_at_any_write_of_a_save_loses_nothing(number: int, family: str, bench: Bench, tmp_path: Path) -> None:
    config = bench.config(family)
    loop = bench.loop(tmp_path, config, StopsAt(12))
    with pytest.raises(Stopped):
        loop.run()
    for at in range(1, 100):
        whole = newest_checkpoint(tmp_path)
        assert whole is not None and not whole[2]
        loop = bench.loop(tmp_path, config)
        loop.step += 1  # a new position to save
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, at, number)
            try:
                loop._save()
                done = True
            except OutlinesError as error:
                done = False
                assert os.strerror(number) in str(error) and "--resume" in str(error) and "\n" not in str(error)
        found = newest_checkpoint(tmp_path)
        assert found is not None and not found[2], "a damaged checkpoint was left"
        assert found[1]["step"] in (whole[1]["step"], loop.step)
        assert not leftovers(tmp_path)
        if done:
            assert faults.calls < at and at > 9, "the fault was swallowed"
            return
    raise AssertionError("no save went through")


def test_a_full_disk_is_one_line_and_status_2(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if len(checkpoints(run)) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert main(bench.arguments("lm", run)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "No space left on device" in said
    assert newest_checkpoint(run) is not None and not leftovers(run)


@counts(1, 8)
def test_a_limit_of_the_file_size_is_survived(num: int, bench: Bench, tmp_path: Path) -> None:
    """The kernel refuses to grow a file beyond a limit, also for the library that writes tensors."""
    rng = random.Random(num)
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        begin_run(bench.config("lm"), run, session(bench), {})
        train_run(run, session(bench, StopsAt(1 + 12)))
    largest = (checkpoints(run)[-1] / "tensors.safetensors").stat().st_size
    for index in range(num):
        said = tmp_path / f"{index}.txt"
        process = start(["--resume", str(run), "--quiet"], said, largest_file=rng.randrange(largest // 3, largest))
        process.join()
        assert process.exitcode == 2, said.read_text()
        assert said.read_text().startswith("error: ") and said.read_text().count("\n") == 1
        assert "File too large" in said.read_text()
        found = newest_checkpoint(run)
        assert found is not None and found[1]["step"] == 12 and not found[2] and not leftovers(run)


def session(bench: Bench, signals: StopSignals | None = None) -> Session:
    return Session(bench.cache, Ranks(), Reporter(quiet=True), signals or StopSignals())


def test_a_directory_that_was_moved_aside_is_restored(tmp_path: Path) -> None:
    """The process dies between the two renames."""
    write_state(tmp_path / "state", {"a": torch.zeros(2)}, {"step": 1})

    class Died(BaseException):
        pass

    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "state":
            raise Died
        real(source, target)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        patch.setattr(os, "replace", replace)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        write_state(tmp_path / "state", {"a": torch.ones(2)}, {"step": 2})
    assert not (tmp_path / "state").exists()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["state"] and read_state(tmp_path / "state")[1] == {"step": 1}


# 4. Corruption


def spoil(file: Path, rng: random.Random, kind: str) -> None:
    data = bytearray(file.read_bytes())
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        data = data[:rng.randrange(len(data))]
    file.unlink()
    if kind != "remove":
        file.write_bytes(data)


@pytest.fixture(scope="module")
def finished(bench: Bench) -> Path:
    """Return a finished run of the language model without a report."""
    run = bench.folder / "finished"
    begin_run(bench.config("lm"), run, session(bench), {})
    train_run(run, session(bench))
    return run


@counts(20, 400)
@pytest.mark.parametrize("what", ["checkpoints", "outlines", "tokenizer"])
def test_damage_is_detected_and_the_newest_valid_checkpoint_is_used(what: str, num: int, finished: Path, bench: Bench,
                                                            tmp_path: Path) -> None:
    """Full count: 400 cases for each of three kinds of files (1,080 flipped bits, 108 truncations, 12 missing files)."""
    rng = random.Random(f"{what} {num}")
    if what == "checkpoints":
        shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
        newest, second = reversed(checkpoints(tmp_path)[-2:])
        victims = sorted(newest.iterdir())
    elif what == "outlines":
        encode(tmp_path, HashEncoder())
        victims = sorted(tmp_path.glob("*.f16")) + [tmp_path / "meta.json"] * 5
    else:
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
        corpus = tmp_path / "corpus"
        shutil.copytree(bench.data(bench.config("lm")).corpus.directory, corpus)
        victims = [tmp_path / "tokenizer.model", corpus / "tokenizer.model"]
    for index in range(num):
        kind = "remove" if index % 100 == 0 else "truncate" if index % 11 == 1 else "flip"
        file = rng.choice(victims)
        good = file.read_bytes()
        spoil(file, rng, kind)
        if what == "checkpoints":
            found = newest_checkpoint(tmp_path)
            assert found is not None and len(found[2]) == 1, f"{kind} in {file.name}"
            assert checkpoint_path(tmp_path, found[1]["stage"], found[1]["step"]) == second
        elif what == "outlines":
            with pytest.raises(OutlinesError, match=r"missing|damaged"):
                OutlineStore(tmp_path)
        elif file.parent == tmp_path:
            with pytest.raises(OutlinesError):
                load(tmp_path, "cpu")
        else:
            with pytest.raises(CheckpointError):
                PreparedCorpus(file.parent)
        file.write_bytes(good)


def test_a_file_of_another_step_is_detected(finished: Path, tmp_path: Path) -> None:
    for name in ("tensors.safetensors", "meta.json", "manifest.json", None):
        run = tmp_path / str(name)
        shutil.copytree(finished / "checkpoints", run / "checkpoints")
        oldest, second, newest = checkpoints(run)
        if name is None:  # the whole checkpoint with its manifest
            shutil.rmtree(newest)
            shutil.copytree(oldest, newest)
        else:
            shutil.copy(oldest / name, newest / name)
        found = newest_checkpoint(run)
        assert found is not None and len(found[2]) == 1
        assert checkpoint_path(run, found[1]["stage"], found[1]["step"]) == second


def test_a_shard_of_another_corpus_is_detected(tmp_path: Path) -> None:
    encode(tmp_path, HashEncoder())
    shutil.copy(tmp_path / "shard-00001.f16", tmp_path / "shard-00002.f16")
    with pytest.raises(OutlinesError, match=r"shard-00002\.f16: missing or damaged"):
        OutlineStore(tmp_path)


def test_a_label_is_sealed(tmp_path: Path) -> None:
    encode(tmp_path, HashEncoder())
    meta = tmp_path / "meta.json"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps({**content, "scale": content["scale"] * 2}))
    with pytest.raises(OutlinesError, match=r"meta\.json: missing or damaged"):
        OutlineStore(tmp_path)
    del content["seal"]
    meta.write_text(json.dumps(content))
    with pytest.raises(OutlinesError, match=r"meta\.json: missing or damaged"):
        OutlineStore(tmp_path)


def test_a_run_continues_from_the_newest_valid_checkpoint(bench: Bench, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    config = bench.config("lm")
    whole = bench.loop(tmp_path / "whole", config)
    whole.run()
    with pytest.raises(Stopped):
        bench.loop(tmp_path / "run", config, StopsAt(1 + 25)).run()
    newest = checkpoints(tmp_path / "run")[-1]
    spoil(newest / "tensors.safetensors", random.Random(0), "flip")
    resumed = bench.loop(tmp_path / "run", config)
    assert resumed.step == 20 and f"skipped: {newest}" in capsys.readouterr().err
    resumed.run()
    assert outcome(resumed) == outcome(whole)


def test_a_valid_checkpoint_is_not_deleted_for_damaged_later_ones(bench: Bench, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that resumed from a checkpoint before damaged ones keeps its new checkpoints."""
    monkeypatch.setattr("train.loop.NUM_KEPT", 1)
    config = bench.config("lm", checkpoint_every=5)
    with pytest.raises(Stopped):
        bench.loop(tmp_path, config, StopsAt(1 + 5)).run()
    for step in (20, 30):
        shutil.copytree(checkpoints(tmp_path)[0], checkpoint_path(tmp_path, 0, step))
    with pytest.raises(Stopped):
        bench.loop(tmp_path, config, StopsAt(3)).run()
    found = newest_checkpoint(tmp_path)
    assert found is not None and (found[1]["step"], found[2]) == (8, [])
    assert len(checkpoints(tmp_path)) == 1


# 5. Signals


@counts(2, 20)
def test_a_signal_saves_within_a_step(num: int, bench: Bench, tmp_path: Path) -> None:
    rng = random.Random(num)
    reference = tmp_path / "whole"
    seconds = train_to_the_end(bench.arguments("outlines", reference), reference, 1)
    in_training = 0
    for index in range(num):
        number, status = [(signal.SIGTERM, 143), (signal.SIGINT, 130)][index % 2]
        run, said = tmp_path / f"run-{index}", tmp_path / f"run-{index}.txt"
        process = start(bench.arguments("outlines", run), said)
        wait_for(lambda: checkpoints(run), process, said)  # noqa: B023 - called at once
        # One signal in each part of the run, so that not all come after training.
        time.sleep((index + rng.random()) / num * seconds * 0.8)
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == status, said.read_text()
        assert f"continue with --resume {run}" in said.read_text() and said.read_text().count("\n") == 1
        found = newest_checkpoint(run)
        assert found is not None and not leftovers(run)
        if (position := said.with_suffix(".position")).exists():
            in_training += 1
            stage, step = map(int, position.read_text().split())
            assert (found[1]["stage"], found[1]["step"]) in ((stage, step), (stage, step + 1), (stage + 1, 0))
        if index < 2:
            train_to_the_end(["--resume", str(run), "--quiet"], run, 1)
            assert weights(run) == weights(reference)
    print(f"{in_training} of {num} signals came in training")
    assert in_training


def test_a_signal_at_the_start_of_a_stage_stops_at_once(bench: Bench, tmp_path: Path) -> None:
    """Fitting a mixture can last minutes. Earlier stages are saved, and the stage starts again."""
    config = bench.config("outlines")
    whole = bench.loop(tmp_path / "whole", config)
    whole.run()
    with StopSignals() as signals:
        loop = bench.loop(tmp_path / "run", config, signals)

        def begin(progress: Progress) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)  # k-means of many outlines

        loop.method.stages[1].begin = begin  # type: ignore[method-assign]
        with pytest.raises(Stopped) as stopped:
            loop.run()
    assert stopped.value.exit_status == 130
    found = newest_checkpoint(tmp_path / "run")
    assert found is not None and (found[1]["stage"], found[1]["step"], found[1]["begun"]) == (1, 0, False)
    resumed = bench.loop(tmp_path / "run", config)
    resumed.run()
    assert outcome(resumed) == outcome(whole)


def test_a_signal_in_the_last_step_is_not_lost(bench: Bench, tmp_path: Path) -> None:
    config = bench.config("lm")
    with pytest.raises(Stopped) as stopped:
        bench.loop(tmp_path, config, StopsAt(1 + config.model.decoder_steps)).run()
    assert stopped.value.exit_status == 143
    found = newest_checkpoint(tmp_path)
    assert found is not None and (found[1]["stage"], found[1]["step"]) == (1, 0)


def test_a_second_signal_stops_at_once() -> None:
    with StopSignals() as signals:
        signals.deferred = True
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)  # a long step
    assert stopped.value.exit_status == 130


# 6. NaN and Inf


class Spoiled(Update):
    """Makes the loss of one call, or the gradient of one parameter in it, non-finite; records the calls."""

    def __init__(self, call: int = -1, parameter: int | None = None, value: float = float("nan"), times: int = 1):
        super().__init__(Ranks(), 1.0)
        self.call, self.parameter, self.value, self.times = call, parameter, value, times
        self.calls: list[tuple[str, list[int]]] = []

    def __call__(self, name: str, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> torch.Tensor:
        index = len(self.calls)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.calls.append((name, []))
        hook = None
        if self.call <= index < self.call + self.times:
            if self.parameter is None:
                loss = loss * self.value
            else:
                hook = parameters[self.parameter].register_hook(lambda gradient: gradient * self.value)
        try:
            norm = super().__call__(name, optimizer, loss)
        finally:
            if hook:
                hook.remove()
        self.calls[-1][1].extend(number for number, parameter in enumerate(parameters) if parameter.grad is not None)
        return norm


@pytest.mark.parametrize(("family", "preset"), VARIANTS)
@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=full)])
def test_a_bad_step_changes_nothing(thorough: bool, family: str, preset: str, bench: Bench) -> None:
    """NaN and Inf in every loss, and in gradients: of one weight per loss, or of every weight in the full count."""
    config = bench.config(family, preset)
    method, data = bench.method(config), bench.data(config)
    num_injected = 0
    for stage in method.stages:
        stage.begin(lambda *_: None)
        order = data.order(stage.batch_size, stage.like_length, 1)
        before = Snapshot(method, stage)

        def step(number: int, update: Update) -> None:
            torch.manual_seed(number)
            stage.step(number, data.batch(order.batch(number), Ranks()), update)  # noqa: B023 - called at once

        for number in range(2):  # before and after the optimiser has a state
            untouched = state(method)
            before.copy()
            good = Spoiled()
            step(number, good)
            after = state(method)
            before.restore()
            assert state(method) == untouched, "a good step cannot be undone"
            for call, (name, with_gradient) in enumerate(good.calls):
                assert with_gradient, name
                for value in (float("nan"), float("inf"), -float("inf")):
                    for parameter in (None, *(with_gradient if thorough else with_gradient[-1:])):
                        if stage.several_updates:
                            before.copy()
                        with pytest.raises(NotFinite, match=name):
                            step(number, Spoiled(call, parameter, value))
                        if stage.several_updates:
                            before.restore()
                        assert state(method) == untouched, f"{stage.name}, {name}: {value} got through"
                        num_injected += 1
            step(number, Spoiled())
            assert state(method) == after, "a bad step left a trace"
    print(f"{family}, {preset}: {num_injected} injected")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=full)])
def test_bad_steps_are_skipped_counted_and_stop_a_run(thorough: bool, family: str, bench: Bench, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.loop.MAX_BAD_STEPS", 3)
    config = bench.config(family, checkpoint_every=1, log_every=1)

    def loop(directory: Path, signals: StopSignals | None = None) -> Loop:
        made = bench.loop(directory, config, signals)
        last = made.method.stages[-1]
        real = last.step

        def step(number: int, batch: Any, update: Update) -> Any:
            """Make steps 2, 3 and 5 of the last stage bad after their last update, and all steps from 9."""
            if number in (2, 3, 5) or number >= 9:
                if last.several_updates:
                    real(number, batch, update)
                optimizer = list(last.optimizers.values())[-1]
                update("spoiled", optimizer, float("nan") * optimizer.param_groups[0]["params"][0].sum())
            return real(number, batch, update)
        last.step = step  # type: ignore[method-assign]
        return made

    with pytest.raises(NotFinite, match=r"step 11: spoiled: the loss is nan, in 3 consecutive steps"):
        loop(tmp_path / "whole").run()
    for path in checkpoints(tmp_path / "whole"):
        tensors, meta = read_state(path)
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert (meta["bad_steps"], meta["bad_in_a_row"]) == (5, 2)
    lines = [line for line in read_lines(tmp_path / "whole" / "metrics.jsonl") if "train/bad_steps" in line]
    assert [line["train/bad_steps"] for line in lines] == [2, 3, 3, 3]
    # Stopped and resumed between bad steps, it fails at the same step with the same weights.
    stages = loop(tmp_path / "look").method.stages
    earlier = sum(stage.num_steps for stage in stages[:-1]) + len(stages)
    for look in (earlier + 3, earlier + 7) if thorough else (earlier + 3,):
        with pytest.raises(Stopped):
            loop(tmp_path / f"again-{look}", StopsAt(look)).run()
        with pytest.raises(NotFinite, match="step 11"):
            loop(tmp_path / f"again-{look}").run()
        again = newest_checkpoint(tmp_path / f"again-{look}")
        assert again is not None and again[1]["bad_steps"] == 5
        assert all(torch.equal(again[0][name], tensor) for name, tensor in tensors.items())


def test_weights_that_are_not_finite_are_never_saved(bench: Bench, tmp_path: Path) -> None:
    loop = bench.loop(tmp_path, bench.config("lm"))
    loop._save()
    next(iter(loop.method.model.parameters())).data[0] = float("inf")
    loop.step += 1
    with pytest.raises(NotFinite, match="no longer finite"):
        loop._save()
    found = newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 0
    assert all(bool(tensor.isfinite().all()) for tensor in found[0].values())


# 10. Two trainers, one directory


def _hold(directory: Path) -> None:
    with locked(directory):
        (directory / "held").touch()
        time.sleep(600)


def test_the_lock_of_a_dead_trainer_is_replaced(tmp_path: Path) -> None:
    holder = PROCESSES.Process(target=_hold, args=(tmp_path,))
    holder.start()
    wait_for((tmp_path / "held").exists, holder, tmp_path / "held")
    with pytest.raises(OutlinesError, match=f"process {holder.pid} is training here"), locked(tmp_path):
        pass
    holder.kill()
    holder.join()
    assert (tmp_path / "lock").read_text() == str(holder.pid)
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def _read(directory: Path, last: int) -> None:
    """Read the newest checkpoint and one that is replaced in place, until the last step exists."""
    step = -1
    while step < last:
        if (found := newest_checkpoint(directory)) is not None:
            tensors, meta, _ = found
            assert meta["step"] >= step and all(bool((tensor == meta["step"]).all()) for tensor in tensors.values())
            step = meta["step"]
        with contextlib.suppress(CheckpointError):
            tensors, meta = read_state(directory / "state")
            assert all(bool((tensor == meta["step"]).all()) for tensor in tensors.values())
        time.sleep(0.001)


@pytest.mark.parametrize(("num_saves", "num_readers"), [(20, 3), pytest.param(200, 50, marks=full)])
def test_no_reader_sees_half_a_save(num_saves: int, num_readers: int, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    readers = [PROCESSES.Process(target=_read, args=(tmp_path, num_saves - 1), daemon=True) for _ in range(num_readers)]
    for reader in readers:
        reader.start()
    for step in range(num_saves):
        tensors = {name: torch.full((2000,), float(step)) for name in "ab"}
        for path in (checkpoint_path(tmp_path, 0, step), tmp_path / "state"):
            write_state(path, tensors, {"stage": 0, "step": step})
        prune(tmp_path, 3, checkpoint_path(tmp_path, 0, step))
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0] * num_readers
    assert [path.name for path in checkpoints(tmp_path)] == [f"0-{step:08d}" for step in range(num_saves - 3, num_saves)]


# 11. Determinism


@pytest.mark.parametrize("family", FAMILIES)
def test_versions_and_hardware_are_recorded_and_changes_are_reported(family: str, bench: Bench, tmp_path: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    config = bench.config(family)
    begin_run(config, run, session(bench), {})
    with pytest.raises(Stopped):
        train_run(run, session(bench, StopsAt(3)))
    recorded = {"versions": VERSIONS, "machine": {"threads": 1, "processes": 1}}
    found = newest_checkpoint(run)
    assert found is not None
    for meta in (found[1], read_run(run)):
        assert meta["versions"] == recorded["versions"]
        assert meta["machine"].items() >= recorded["machine"].items() and meta["machine"]["device"].startswith("cpu (")
    assert capsys.readouterr().err == ""
    torch.set_num_threads(2)
    try:
        with pytest.raises(Stopped):
            train_run(run, session(bench, StopsAt(1)))
    finally:
        torch.set_num_threads(1)
    said = capsys.readouterr().err
    assert said == "versions or hardware have changed, so the last bits may differ: threads 1 → 2\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_twice_is_the_same_run(family: str, bench: Bench, tmp_path: Path) -> None:
    outcomes = []
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        loop = bench.loop(tmp_path / name, bench.config(family, seed=seed), StopsAt(6))
        with pytest.raises(Stopped):
            loop.run()
        outcomes.append(outcome(loop))
    assert outcomes[0] == outcomes[1]
    assert all(one != other for one, other in zip(outcomes[0], outcomes[2], strict=True))


# 12. Two processes


def _train_rank(arguments: list[str], said: Path, rank: int, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    _train(arguments, 1, said)


def test_a_rank_reports_that_another_was_killed(bench: Bench, tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said.txt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = bench.arguments("lm", run, "--decoder-steps", 100000)
    ranks = [PROCESSES.Process(target=_train_rank, args=(arguments, said, rank, port)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    wait_for(lambda: len(checkpoints(run)) > 1, ranks[0], said)
    ranks[1].kill()
    ranks[0].join(60)
    assert ranks[0].exitcode == 2, said.read_text()
    assert said.read_text().startswith("error: another process of this job has died")
    assert newest_checkpoint(run) is not None and not leftovers(run)


@full
def test_a_killed_rank_ends_the_job(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with open(tmp_path / "said", "w") as said:
        launcher = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "train",
                                     *bench.arguments("lm", run, "--decoder-steps", 100000)], env=environment(),
                                    stdout=subprocess.DEVNULL, stderr=said)
    try:
        end = time.monotonic() + 1200
        while len(checkpoints(run)) < 2:
            assert launcher.poll() is None and time.monotonic() < end, (tmp_path / "said").read_text()
            time.sleep(0.05)
        ranks = {}
        for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
            names = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ranks |= {int(name[5:]): int(pid) for name in names if name.startswith(b"RANK=")}
        os.kill(ranks[1], signal.SIGKILL)
        since = time.monotonic()
        status = launcher.wait(60)
        print(f"ended in {time.monotonic() - since:.1f} s with status {status}")
    finally:
        launcher.kill()
        launcher.wait()
    assert status != 0
    text = (tmp_path / "said").read_text()
    assert "error: another process of this job has died" in text or "stopped by SIGTERM: continue with" in text, text
    assert newest_checkpoint(run) is not None


# Directories


def test_leftovers_are_deleted_when_a_run_starts(bench: Bench, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "checkpoints"):
        folder.mkdir(exist_ok=True)
        (folder / f"{STAGING_PREFIX}x").mkdir()
        (folder / f"{STAGING_PREFIX}y").write_text("half")
    with locked(tmp_path):
        assert not leftovers(tmp_path)


def test_the_last_checkpoints_are_kept_and_the_best_weights_in_each(bench: Bench, tmp_path: Path) -> None:
    loop = bench.loop(tmp_path, bench.config("lm"))
    loop.run()
    assert [path.name for path in checkpoints(tmp_path)] == ["0-00000020", "0-00000030", "1-00000000"]
    best = {name: tensor for name, tensor in loop.best.items()}
    assert best
    for path in checkpoints(tmp_path):
        tensors, meta = read_state(path)
        assert best.keys() <= tensors.keys() and meta["best_criterion"] is not None


def test_all_ranks_read_the_checkpoint_before_one_writes(bench: Bench, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a slow rank loads the first rank's new checkpoint, assumes that the stage has begun, and both deadlock."""
    done: list[str] = []
    restore = Loop._restore
    monkeypatch.setattr(Loop, "_restore", lambda loop: done.append("read") or restore(loop))  # type: ignore[func-returns-value]
    monkeypatch.setattr(Ranks, "barrier", lambda _: done.append("met"))
    bench.loop(tmp_path / "run", bench.config("lm"))
    assert done == ["read", "met"]


def test_only_the_first_rank_writes(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("barrier", "sum_"):
        monkeypatch.setattr(Ranks, name, lambda *_: None)
    monkeypatch.setattr(Ranks, "agree", lambda _, value: value)
    monkeypatch.setattr(Ranks, "largest", lambda _, number: number)
    config = bench.config("lm", checkpoint_every=5)
    Loop(bench.method(config), bench.data(config), config.training, tmp_path, Ranks(1, 2), Reporter(silent=True),
         StopSignals()).run()
    assert not list(tmp_path.iterdir())


def test_a_staging_directory_is_beside_its_target_and_everything_is_flushed(tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_directory(tmp_path / "state") as staging:
        assert staging.parent == tmp_path
        (staging / "file").write_text("x")
    assert flushed == [str(path) for path in (staging / "file", staging / "manifest.json", staging, tmp_path)]
