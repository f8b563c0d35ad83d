"""Sharing the processor with other processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.runtime.busy import SlowSteps, num_running

POLICY = "import train, os, sys; assert 'torch' not in sys.modules; print(os.environ.get('OMP_WAIT_POLICY', 'unset'))"


def policy(busy: bool, load: float, tmp_path: Path, **environment: str) -> str:
    """Return the wait policy of a new process that imports `train`. busy: whether others compute now. load: last minute."""
    stat = tmp_path / "stat"
    stat.write_text(f"cpu 1 2 3\nprocs_running {3 if busy else 1}\n")
    code = f"import train.runtime.busy\n{POLICY}"
    given = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP", "KMP"))}
    shim = (f"import os, pathlib; os.getloadavg = lambda: ({load}, 0, 0)\n"
            f"p = pathlib.Path; r = p.read_text\n"
            f"p.read_text = lambda self, *a, **k: r(p({str(stat)!r}) if str(self) == '/proc/stat' else self, *a, **k)\n")
    done = subprocess.run([sys.executable, "-c", shim + code], env=given | environment, text=True, capture_output=True,
                          check=True)
    return done.stdout.strip()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not count running processes")
@pytest.mark.parametrize(("busy", "load", "given", "expected"), [
    (True, 1.0, {}, "passive"), (False, 1.0, {}, "unset"), (True, 0.1, {}, "unset"),
    (True, 1.0, {"OMP_NUM_THREADS": "1"}, "unset"), (True, 1.0, {"OMP_WAIT_POLICY": "active"}, "active")])
def test_threads_wait_without_spinning_beside_busy_processes(busy: bool, load: float, given: dict[str, str],
                                                             expected: str, tmp_path: Path) -> None:
    assert policy(busy, load, tmp_path, **given) == expected


def test_a_system_that_does_not_tell_counts_as_idle(tmp_path: Path) -> None:
    assert num_running(str(tmp_path / "missing")) == 0


def test_slow_steps_are_told_once_and_only_if_they_last() -> None:
    slow = SlowSteps()
    assert slow(1000, 2.0) is None
    assert slow(1000, 5.0) is None  # 2.5 times as slow
    assert slow(100, 0.9) is None  # slow, but for less than a second
    warning = slow(1000, 8.0)
    assert warning is not None and "4 times slower" in warning and "--resume" in warning
    assert slow(1000, 80.0) is None
