"""Sentences/s of sampling, and the time to the first sentence: `python -m benchmarks.sampling_speed RUN [cpu|cuda]`.

A trained run and no random weights: how fast sentences come depends on how soon they end. New sentences as text at
T = 0.7, by batch size; rounds of the sizes alternate, and the best round of each counts, for other processes only ever slow
one down. A cold start is a new process, `python -m generate RUN --num 1`, from its start to its end.
"""

import subprocess
import sys
import time
from pathlib import Path

import torch

import outlines
from outlines.pipeline import TEMPERATURE
from outlines.sampling import SamplingConfig

BATCH_SIZES, ROUNDS, STARTS = (64, 256, 1024, 4096), 5, 5
NUM = 8192
HEAVY = ("tensorboard", "sentence_transformers", "transformers")


def main(run: Path, device: str = "auto") -> None:
    pipeline = outlines.load(run, device)
    sampling = SamplingConfig(temperature=TEMPERATURE)
    tokens = [row for rows, _ in pipeline.model.generate(NUM, 1, sampling) for row in rows]  # and a first time, uncounted
    parameters = sum(parameter.numel() for parameter in pipeline.model.decoder.parameters())
    print(f"decoder of {parameters / 1e6:.2f} M parameters, {sum(map(len, tokens)) / NUM:.1f} tokens a sentence, "
          f"{pipeline.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    workers = 1
    if pipeline.device.type == "cpu":  # as `python -m generate` does
        workers = torch.get_num_threads()
        torch.set_num_threads(1)
    best = dict.fromkeys(BATCH_SIZES, 0.0)
    for _ in range(ROUNDS):
        for size in BATCH_SIZES:
            started = time.perf_counter()
            for _ in pipeline.sentences(NUM, 1, sampling, batch_size=size, workers=workers):
                pass
            best[size] = max(best[size], NUM / (time.perf_counter() - started))
    for size, speed in best.items():
        print(f"batches of {size:5,} {speed:9,.0f} sentences/s")
    command = [sys.executable, "-m", "generate", str(run), "--num", "1", "--device", pipeline.device.type]
    times = []
    for _ in range(STARTS):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    imports = subprocess.run([sys.executable, "-X", "importtime", *command[1:]], check=True, capture_output=True, text=True)
    heavy = [name for name in HEAVY if f" {name}\n" in imports.stderr]
    print(f"cold start to the first sentence {min(times):.2f} s; imports {', '.join(heavy) or 'none'} of {', '.join(HEAVY)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
