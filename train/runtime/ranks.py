"""Data-parallel training with several processes (ranks), started by torchrun.

Each of the `world` ranks uses every `world`-th row of the same global batches. Each rank divides its loss by the number of
rows of the global batch, so the sum over ranks is the loss of this batch. Gradients are summed after the backward pass,
because the hooks of DistributedDataParallel do not support the second derivatives of a gradient penalty.
"""

import json
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import sentencepiece
import torch
import torch.distributed as dist
from torch import Tensor

from outlines.errors import OutlinesError, one_line

# Results are equal bit for bit only with the same versions and hardware. A run records both; --resume compares them.
VERSIONS: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
                            "sentencepiece": sentencepiece.__version__}


def _together(operation: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Run an operation in which all ranks take part. Raises OutlinesError if another process has died."""
    try:
        operation(*arguments, **options)
    except RuntimeError as error:
        raise OutlinesError(f"another process of this job has died ({one_line(error)}). Continue with --resume.") from error


@dataclass(frozen=True)
class Ranks:
    """The position of this process among all processes of the job."""

    rank: int = 0  # index of this process
    world: int = 1  # number of processes
    local_rank: int = 0  # index of this process on its machine
    device: str = "cpu"  # device of the messages between processes

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the files of the run."""
        return self.rank == 0

    def own(self, values: Any) -> Any:
        """Return this rank's rows of a global batch (a tensor, array, range or noise): every `world`-th row."""
        return values[self.rank::self.world]

    def barrier(self) -> None:
        if self.world > 1:
            _together(dist.barrier)

    def agree(self, value: Any) -> Any:
        """Return rank 0's value on every rank. It must be JSON data, because torch would send other objects as pickles."""
        if self.world == 1:
            return value
        data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        size = torch.tensor([len(data)], device=self.device)
        _together(dist.broadcast, size, src=0)
        data = data if self.first else torch.empty(int(size), dtype=torch.uint8, device=self.device)
        _together(dist.broadcast, data, src=0)
        return json.loads(bytes(data.tolist()))

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over ranks, in place and in one message."""
        if self.world == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        _together(dist.all_reduce, flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def largest(self, number: int) -> int:
        """Return the largest `number` of all ranks."""
        if self.world == 1:
            return number
        box = torch.tensor([number], device=self.device)
        _together(dist.all_reduce, box, op=dist.ReduceOp.MAX)
        return int(box)


def join(device: str) -> Ranks:
    """Return the Ranks of this process, after it has joined the process group of torchrun, if there is one.

    Raises OutlinesError if this process has no GPU of its own.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return Ranks()
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise OutlinesError(f"rank {local_rank} of this machine has no GPU. Start at most "
                                f"{torch.cuda.device_count()} processes here, or use --device cpu.")
        torch.cuda.set_device(local_rank)
    # A long timeout, because the other ranks wait while rank 0 evaluates.
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=6))
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, "cuda" if on_gpu else "cpu")


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def machine(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Return device (a CPU: its instruction set, which selects torch's kernels) and numbers of threads and processes."""
    name = (torch.cuda.get_device_name(device) if device.type == "cuda"
            else torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else platform.machine())
    return {"device": f"{device.type} ({name})", "threads": torch.get_num_threads(), "processes": ranks.world}
