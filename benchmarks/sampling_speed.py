"""Sentences/s of sampling, and the time to the first sentence: `python -m benchmarks.sampling_speed RUN [cpu|cuda]`.

A trained run and no random weights: how fast sentences come depends on how soon they end. New sentences as text at
T = 0.7, by batch size, and the largest batches in float32 and in bfloat16; rounds of all these alternate, and the best round
of each counts, for other processes only ever slow one down. A cold start is a new process, `python -m generate RUN --num 1`,
from its start to its end.
"""

import subprocess
import sys
import time
from pathlib import Path

import torch

import outlines
from outlines.decoding.sample import SamplingConfig
from outlines.devices import sampling_workers
from outlines.inference.pipeline import TEMPERATURE

BATCH_SIZES, NUM = (64, 256, 1024, 4096), 1 << 14
GPU_BATCH_SIZES, GPU_NUM = (4096, 16_384, 65_536), 1 << 18
ROUNDS, STARTS = 5, 5
HEAVY = ("tensorboard", "sentence_transformers", "transformers")


def main(run: Path, device: str = "auto") -> None:
    pipeline = outlines.load(run, device)
    sampling = SamplingConfig(temperature=TEMPERATURE)
    sizes, num = (BATCH_SIZES, NUM) if pipeline.device.type == "cpu" else (GPU_BATCH_SIZES, GPU_NUM)
    tokens = [row for rows, _ in pipeline.model.generate(NUM, 1, sampling) for row in rows]  # and a first time, uncounted
    parameters = sum(parameter.numel() for parameter in pipeline.model.decoder.parameters())
    print(f"decoder of {parameters / 1e6:.2f} M parameters, {sum(map(len, tokens)) / NUM:.1f} tokens a sentence, "
          f"{pipeline.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    workers = sampling_workers(pipeline.device)
    other = outlines.load(run, pipeline.device.type, "float32" if pipeline.precision == "bfloat16" else "bfloat16")
    best = dict.fromkeys([*((pipeline, size) for size in sizes), (other, sizes[-1])], 0.0)
    for _ in range(ROUNDS):
        for loaded, size in best:
            started = time.perf_counter()
            for _ in loaded.sentences(num, 1, sampling, batch_size=size, workers=workers):
                pass
            best[loaded, size] = max(best[loaded, size], num / (time.perf_counter() - started))
    for (loaded, size), speed in best.items():
        print(f"{loaded.precision:8}, batches of {size:6,} {speed:9,.0f} sentences/s")
    spelt = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        pipeline.tokenizer.lines(tokens)
        spelt.append((time.perf_counter() - started) / NUM)
    print(f"of which text from tokens, by one thread at a time: {min(spelt) * 1e6:.1f} microseconds a sentence")
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
