"""Time of a GAN training step, for several shares of outlines in the gradient penalty: `python -m benchmarks.gan_speed RUN`.

RUN: a finished run of the family outlines; the benchmark uses its corpus, encoder and options.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.rounds import shortest
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
    batch = data.batch(data.order(config.model.gan_batch_size, False, 1).batch(0), Ranks())

    def arm(share: float) -> Callable[[], object]:
        options = dataclasses.replace(config.model, penalty_share=share)
        stage = OutlinesMethod(dataclasses.replace(config, model=options), data, bfloat16=False).stages[-1]
        return lambda: stage.step(0, batch, Update(Ranks(), 1.0))

    best = shortest({share: arm(share) for share in SHARES}, ROUNDS)
    print(f"{config.model.gan_batch_size} outlines per step, {data.device}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}")
    for share, seconds in best.items():
        print(f"penalty on {share:4.0%} {seconds * 1e3:7.1f} ms per step ({best[1.0] / seconds:.2f} x)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
