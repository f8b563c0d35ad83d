"""Messages that name paths, and a lack of memory as one line."""

import errno
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from outlines.errors import OutlinesError, memory_advice, no_run, quoted


def failing(error: Exception) -> Callable[[], object]:
    def fail() -> None:
        raise error
    return fail


@pytest.mark.parametrize("fail", [
    lambda: torch.empty(2**60), lambda: torch.empty(2**62), lambda: np.ones(2**40) @ np.ones(2**40), lambda: [0] * 2**60,
    failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nGPU 0 has 1 GiB.")),
    failing(torch.OutOfMemoryError()), failing(OSError(errno.ENOMEM, "Cannot allocate memory")),
    failing(RuntimeError("could not create a primitive")),
    failing(RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB).")),
    failing(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    failing(RuntimeError("[enforce fail at alloc_cpu.cpp:115] data. DefaultCPUAllocator: not enough memory: you tried")),
])
def test_every_lack_of_memory_is_one_line(fail: Callable[[], object]) -> None:
    with pytest.raises(OutlinesError) as raised, memory_advice("Lower it."):
        fail()
    assert str(raised.value).startswith("Out of memory (") and str(raised.value).endswith("). Lower it.")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOSPC, "No space"), ValueError("memory")])
def test_other_errors_are_left_alone(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, memory_advice("Lower it."):
        raise error
    assert raised.value is error


def test_a_path_is_one_word_of_a_command() -> None:
    for path in ("runs/001", "two words/é", "it's", "$HOME", "a;b", "ru\nns"):
        assert shlex.split(f"python -m generate {quoted(Path(path))}")[3:] == [path]
    assert quoted(Path("-run")) == "./-run", "no option"


def test_a_directory_of_runs_lists_them(tmp_path: Path) -> None:
    assert str(no_run(tmp_path)) == f"{tmp_path}: no run here (no run.json). Check the path."
    for name in ("002-lm", "001-two words", "003-seeds/seed-1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").touch()
    assert str(no_run(tmp_path)) == (
        f"{tmp_path}: no run here (no run.json). Runs in it: '{tmp_path}/001-two words', {tmp_path}/002-lm, "
        f"{tmp_path}/003-seeds/seed-1. Choose one.")
    for number in range(20):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "run.json").touch()
    assert str(no_run(tmp_path)).endswith(" and others. Choose one.") and str(no_run(tmp_path)).count(str(tmp_path)) == 11
