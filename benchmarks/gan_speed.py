"""Seconds of a generator's and a critic's step, by the share of the outlines that the penalty is taken at:
`python -m benchmarks.gan_speed RUN`.

RUN: a finished run of outlines, whose corpus, encoder and options it takes. The shares take turns, and the best step of each
counts, for other processes only ever slow one down.
"""

import dataclasses
import sys
import time
from pathlib import Path

import torch

from train.data import Dataset
from train.method import Update
from train.methods.outlines import OutlinesMethod
from train.runtime.progress import Reporter
from train.runtime.ranks import Ranks
from train.runtime.run_directory import read_run
from train.runtime.signals import StopSignals
from train.session import Session, run_config, train_run

SHARES, ROUNDS = (1.0, 0.25), 30


def main(run: Path) -> None:
    session = Session(Path(read_run(run)["cache"]), Ranks(), Reporter(quiet=True), StopSignals())
    config, data = run_config(run), train_run(run, session)[1]
    assert isinstance(data, Dataset)
    methods = {share: OutlinesMethod(dataclasses.replace(config, model=dataclasses.replace(
        config.model, penalty_share=share)), data, bfloat16=False) for share in SHARES}
    order = data.order(config.model.gan_batch_size, False, 1)
    best = dict.fromkeys(SHARES, float("inf"))
    for number in range(ROUNDS):
        batch = data.batch(order.batch(number), Ranks())
        for share, method in methods.items():
            started = time.perf_counter()
            method.stages[1].step(number, batch, Update(Ranks(), 1.0))
            best[share] = min(best[share], time.perf_counter() - started)
    print(f"{config.model.gan_batch_size} outlines a step, {data.device}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}")
    for share, seconds in best.items():
        print(f"penalty at {share:4.0%} {seconds * 1e3:7.1f} ms a step ({best[1.0] / seconds:.2f} x)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
