"""One run, from its configuration to the finished model."""

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from outlines.corpus.prepared import cache_of
from outlines.devices import choose_device, choose_precision
from outlines.errors import OutlinesError, memory_advice, quoted
from outlines.models.base import TextModel
from outlines.models.registry import load_model
from train.config import RunConfig, from_json
from train.data import Dataset, open_dataset
from train.loop import Loop
from train.method import find_method
from train.runtime.progress import Reporter
from train.runtime.ranks import VERSIONS, Ranks, machine
from train.runtime.run_directory import FORMAT, GROUP, locked, read_run, write_json
from train.runtime.signals import StopSignals

LEAST_SENTENCES = 20_000  # a second process starts only if the decoder's training reads at least this number of sentences


@dataclasses.dataclass(frozen=True)
class Session:
    """Settings and objects that all runs of this process share."""

    cache: Path
    ranks: Ranks
    reporter: Reporter
    signals: StopSignals
    device: str = "auto"
    all_threads: bool = False  # whether a run may use all threads; otherwise a second process may use half of them

    @classmethod
    def of_run(cls, directory: Path, quiet: bool, signals: StopSignals, device: str | None) -> "Session":
        """Return a session of one process for an existing run, with the run's cache. device: see `device_of`."""
        return cls(cache_of(directory, read_run(directory)), Ranks(), Reporter(quiet), signals, device_of(directory, device))


def begin_run(config: RunConfig, directory: Path, session: Session, description: dict[str, Any]) -> None:
    """Write run.json with the resolved configuration, before step 0. Hashes are added after the corpus is prepared.

    description: further entries of run.json, such as the command.
    """
    device = choose_device(session.device, session.ranks.local_rank)
    training = dataclasses.replace(config.training, precision=choose_precision(config.training.precision, device))
    if session.ranks.first:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "run.json", {
            "format": FORMAT, **description, "cache": str(session.cache.resolve()),
            **dataclasses.replace(config, training=training).to_json(),
            "versions": VERSIONS, "machine": machine(device, session.ranks)})
    session.ranks.barrier()


def run_config(directory: Path) -> RunConfig:
    """Return the configuration of an existing run. Raises OutlinesError."""
    data = read_run(directory)
    return from_json(data, find_method(str(data.get("family"))).config_class)


def device_of(directory: Path, given: str | None) -> str:
    """Return the device for a run: `given`, or the run's own. If the run's own is not available, warn and return auto."""
    stored = run_config(directory).training.device
    try:
        choose_device(given or stored)
    except OutlinesError:
        if given:
            raise
        Reporter().warning(f"{directory}: its device {stored} is not available here. Using --device auto.")
        return "auto"
    return given or stored


def half_of_threads(config: RunConfig, session: Session) -> int:
    """Return half of the number of threads if a second process uses the other half (beside.py); otherwise 0.

    The result depends only on the run and the machine, so it is the same for a resumed run.
    """
    device, model = choose_device(session.device, session.ranks.local_rank), config.model
    small = model.decoder_steps * model.decoder_batch_size < LEAST_SENTENCES
    if small or session.all_threads or device.type != "cpu" or session.ranks.world > 1:
        return 0
    return torch.get_num_threads() // 2


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Limit torch to this number of threads during the block; 0: no limit."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_run(directory: Path, session: Session) -> tuple[TextModel, Dataset]:
    """Train the run in this directory to its end, or only load it if it has finished; return the model and the dataset."""
    config, device = run_config(directory), choose_device(session.device, session.ranks.local_rank)
    with session.reporter.timed("corpus and outlines"):
        data = open_dataset(config.corpus, config.model.encoder_name(), session.cache, device, session.ranks,
                            session.reporter, directory)
    if session.ranks.first:
        _check_hashes(directory, data)
        data.tokenizer.save(directory / "tokenizer.model")
    if (directory / "model").exists():
        model = load_model(directory / "model").to(device)
        data.use_scaling(model)
        return model, data
    data.report_losses(session.reporter)
    torch.manual_seed(config.training.seed)
    with memory_advice("Free memory, or start a new run with a smaller model: lower the options whose names end in -dim."):
        method = find_method(config.family)(config, data, config.training.precision == "bfloat16")
    with _threads(half_of_threads(config, session)):
        Loop(method, data, config.training, directory, session.ranks, session.reporter, session.signals).run()
    if session.ranks.first:
        method.finish(directory)
    session.ranks.barrier()
    return method.model.eval(), data


def finished_run(directory: Path, session: Session) -> tuple[TextModel, Dataset]:
    """Return the model and the dataset of a finished run. Raises OutlinesError if training has not finished."""
    if not (directory / "model").is_dir():
        raise OutlinesError(f"{directory}: training has not finished. Run `python -m train --resume {quoted(directory)}`.")
    return train_run(directory, dataclasses.replace(session, cache=cache_of(directory, read_run(directory))))


def check_out(out: Path) -> None:
    """Raise OutlinesError if this path is a file or contains a run or a group of runs, which has its own report."""
    if (out / "run.json").exists() or (out / GROUP).exists() or (out.exists() and not out.is_dir()):
        raise OutlinesError(f"--out {out} contains a run or is a file. Choose another directory.")


def locked_run(directory: Path, session: Session,
               waiting: Callable[[str], None] | None = None) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the first rank locks a run's directory. Other ranks write nothing in it.

    waiting: see `locked`.
    """
    return locked(directory, waiting) if session.ranks.first else contextlib.nullcontext()


def _check_hashes(directory: Path, data: Dataset) -> None:
    """Write the hashes of the data and its lost text, such as rejected lines, into run.json.

    Raises OutlinesError if a hash has changed.
    """
    hashes, losses, run = data.hashes(), data.losses, read_run(directory)
    for name, value in run.get("hashes", {}).items():
        if hashes.get(name) != value:
            raise OutlinesError(f"{directory}: the {name} has changed since this run began. Restore it, or start a new run.")
    if (run.get("hashes"), run.get("losses")) != (hashes, losses):
        write_json(directory / "run.json", {**run, "hashes": hashes, "losses": losses})


def command_line() -> str:
    """Return this command as typed."""
    return shlex.join(["python", "-m", "train", *sys.argv[1:]])
