"""A second process on the other half of the CPU. It trains the judge and LM baseline of a run, or the last runs of a group.

A training step is small, so its threads often wait for each other. Two processes, each with half of the threads, train
faster together than one process with all threads (`python -m benchmarks.busy_machine`; measurements in docs/runs.md).
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from outlines.corpus.prepared import cache_of
from outlines.devices import choose_device
from outlines.errors import OutlinesError
from outlines.models.lm import LanguageModel
from outlines.models.registry import families
from train.commands.judges import baseline, quick_judges
from train.data import open_dataset
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks
from train.runtime.run_directory import locked, read_run, runs_of
from train.runtime.signals import Stopped, StopSignals
from train.session import Session, half_of_threads, run_config, train_run

POLL_SEC = 0.5


@contextlib.contextmanager
def beside(directory: Path, session: Session) -> Iterator[None]:
    """Run the second process during the block. If `half_of_threads` returns 0, run the block without it.

    directory: of a run, or of a group of runs.
    """
    threads = half_of_threads(run_config(runs_of(directory)[0]), session)
    if not threads:
        yield
        return
    session.reporter.beside = True
    nothing = subprocess.DEVNULL
    child = subprocess.Popen([sys.executable, "-m", "train.beside", str(directory), str(os.getpid())],
                             stdin=nothing, stdout=nothing, stderr=nothing,
                             env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    try:
        yield
    finally:
        child.terminate()
        child.wait()


def stop_with(first_process: int) -> None:
    """Start a thread that sends SIGTERM to this process when the first process has ended, even if it was killed.

    first_process: the id of the process that started this process.
    """
    def watch() -> None:
        while os.getppid() == first_process:
            time.sleep(POLL_SEC)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(directory: Path) -> None:
    """Train the models that the first process needs later.

    If this process fails, the first process trains these models and reports the error.
    """
    runs = runs_of(directory)
    first = runs[0]
    while not (first / "tokenizer.model").exists():  # The first process prepares and encodes the corpus.
        time.sleep(POLL_SEC)
    with StopSignals() as signals, contextlib.suppress(OutlinesError, Stopped):
        session = Session(cache_of(first, read_run(first)), Ranks(), Reporter(silent=True), signals, "cpu", all_threads=True)
        if len(runs) == 1:
            config = run_config(first)
            data = open_dataset(config.corpus, None, session.cache, choose_device("cpu"), Ranks(), session.reporter, first)
            if (family := families()[config.family]).sources:
                quick_judges(config, data, session)
                if family is not LanguageModel:
                    baseline(config, data, session, read_run(first)["preset"])
        for run in reversed(runs[1:]):
            with locked(run):  # Raises if the first process has reached this run. Then no run is left for this process.
                train_run(run, session)


if __name__ == "__main__":
    stop_with(int(sys.argv[2]))
    main(Path(sys.argv[1]))
