"""What decides a run's last bits beside its configuration: recorded with it, and compared when it goes on."""

import platform
from typing import Any

import numpy as np
import sentencepiece
import torch

from train.runtime.ranks import Ranks

VERSIONS: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
                            "sentencepiece": sentencepiece.__version__}


def machine(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """The device by its name, a CPU by its instruction set, which torch chooses its kernels by; threads and processes."""
    name = (torch.cuda.get_device_name(device) if device.type == "cuda"
            else torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else platform.machine())
    return {"device": f"{device.type} ({name})", "threads": torch.get_num_threads(), "processes": ranks.world}
