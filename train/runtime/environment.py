"""Versions and hardware that decide a run's last bits. They are recorded with a run and compared when it resumes."""

import platform
from typing import Any

import numpy as np
import sentencepiece
import torch

from train.runtime.ranks import Ranks

VERSIONS: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
                            "sentencepiece": sentencepiece.__version__}


def machine(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Return the device's name (a CPU's instruction set, by which torch chooses kernels), threads and processes."""
    name = (torch.cuda.get_device_name(device) if device.type == "cuda"
            else torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else platform.machine())
    return {"device": f"{device.type} ({name})", "threads": torch.get_num_threads(), "processes": ranks.world}
