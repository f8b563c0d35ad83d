"""Training speed beside a busy process, for several ways in which threads wait: `python -m benchmarks.busy_machine`.

OpenMP threads spin at the end of each parallel region. If another process uses a core, the spinning threads wait for the
thread that has no core. Each value comes from a new process, which trains the decoder of `benchmarks.decoder_speed` for
SECONDS. The last row is the sum of two such processes, each with half of the threads.
"""

import os
import subprocess
import sys
import time

import torch
from tqdm import tqdm

from benchmarks.decoder_speed import training_step

SECONDS = 2.0
BUSY = "while True: pass"
SETTINGS = {
    "default": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def worker() -> None:
    """Train for SECONDS and print the tokens per second."""
    num_tokens, step = training_step(bfloat16=False)
    step()
    started, num_steps = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        step()
        num_steps += 1
    print(num_tokens * num_steps / (time.perf_counter() - started))


def measured(setting: dict[str, str], num_busy: int, num_workers: int = 1) -> float:
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(num_busy)]
    try:
        workers = [subprocess.Popen([sys.executable, "-m", "benchmarks.busy_machine", "worker"], stdout=subprocess.PIPE,
                                    text=True, env={**os.environ, **setting}) for _ in range(num_workers)]
        return sum(float(worker.communicate()[0]) for worker in workers)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; tokens/s idle, and beside one busy process")
    for name, setting in tqdm(SETTINGS.items(), leave=False):
        idle, busy = (measured(setting, num_busy) for num_busy in (0, 1))
        tqdm.write(f"{name:24} {idle:8,.0f} {busy:8,.0f} ({busy / idle:.2f} x)")
    if (half := torch.get_num_threads() // 2):
        both = measured({"OMP_NUM_THREADS": str(half)}, num_busy=0, num_workers=2)
        print(f"two processes, {half} threads each: {both:,.0f}")


if __name__ == "__main__":
    worker() if sys.argv[1:] == ["worker"] else main()
