"""Sampling speed, and the time to the first sentence: `python -m benchmarks.sampling_speed RUN [cpu|cuda]`.

RUN: a finished run, because the speed depends on the lengths of its sentences. Measures sampling at temperature 0.5, from
noise to text, for several batch sizes; the largest batches in both precisions (on a CPU without bfloat16: only float32).
A cold start is the time of a new process, `python -m generate RUN --num 1`, from its start to its end.
"""

import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch

import outlines
from benchmarks.rounds import has_bfloat16, shortest
from outlines.decoding.sample import SamplingConfig
from outlines.devices import sampling_workers
from outlines.inference.pipeline import Pipeline
from outlines.pretrained import TEMPERATURE

BATCH_SIZES, NUM = (64, 256, 1024, 4096), 1 << 13
GPU_BATCH_SIZES, GPU_NUM = (4096, 16_384, 65_536), 1 << 18
ROUNDS, STARTS = 5, 3
HEAVY = ("tensorboard", "sentence_transformers", "transformers", "sacrebleu")


def main(run: Path, device: str = "auto") -> None:
    pipeline, sampling = outlines.load(run, device), SamplingConfig(temperature=TEMPERATURE, best_of=1)
    on_cpu = pipeline.device.type == "cpu"
    sizes, num = (BATCH_SIZES, NUM) if on_cpu else (GPU_BATCH_SIZES, GPU_NUM)
    tokens = [row for rows, _ in pipeline.model.generate(NUM, 1, sampling) for row in rows]
    num_parameters = sum(parameter.numel() for parameter in pipeline.model.decoder.parameters())
    print(f"decoder of {num_parameters / 1e6:.2f} M parameters, {sum(map(len, tokens)) / NUM:.1f} tokens per sentence, "
          f"{pipeline.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    workers = sampling_workers(pipeline.device)

    def arm(loaded: Pipeline, size: int) -> Callable[[], object]:
        return lambda: deque(loaded.sentences(num, 1, sampling, batch_size=size, workers=workers), maxlen=0)

    arms = {(pipeline.precision, size): arm(pipeline, size) for size in sizes}
    if not on_cpu or has_bfloat16():
        other = outlines.load(run, pipeline.device.type, "float32" if pipeline.precision == "bfloat16" else "bfloat16")
        arms[other.precision, sizes[-1]] = arm(other, sizes[-1])
    for (precision, size), seconds in shortest(arms, ROUNDS, num_warmup=0).items():
        print(f"{precision:8}, batches of {size:6,} {num / seconds:9,.0f} sentences/s")
    spelling = shortest({"spelling": lambda: pipeline.tokenizer.lines(tokens)}, ROUNDS)["spelling"]
    print(f"of this, text from tokens needs {spelling / NUM * 1e6:.1f} microseconds per sentence, by one thread at a time")
    command = [sys.executable, "-m", "generate", str(run), "--num", "1", "--device", pipeline.device.type]
    start = shortest({"start": lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)}, STARTS, 0)["start"]
    imports = subprocess.run([sys.executable, "-X", "importtime", *command[1:]], check=True, capture_output=True, text=True)
    heavy = [name for name in HEAVY if f" {name}\n" in imports.stderr]
    print(f"cold start to the first sentence {start:.2f} s; imports {', '.join(heavy) or 'none'} of {', '.join(HEAVY)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
