"""Data-parallel training over processes: started by torchrun, or alone.

Every rank walks the same global batches and takes every world-th row of each. Gradients are summed over ranks after
the backward pass, not by DistributedDataParallel's hooks: a gradient penalty differentiates twice, which those hooks
do not support. The losses are sums divided by the *global* number of rows, so the sum over ranks is the whole batch's.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outlines.errors import OutlinesError


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Turn what a collective raises when another process has died into an error for people."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:150]
        raise OutlinesError(f"another process of this job has died, so that it cannot go on ({reason}): "
                            "start it again with --resume") from error


@dataclass(frozen=True)
class Ranks:
    """This process among its like."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """The one rank that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        if self.world > 1:
            with _together():
                dist.barrier()

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank; JSON data, for torch's own broadcast of objects would pickle it."""
        if self.world == 1:
            return value
        data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=_device())
        size = torch.tensor([len(data)], device=_device())
        with _together():
            dist.broadcast(size, src=0)
            data = data if self.first else torch.empty(int(size), dtype=torch.uint8, device=_device())
            dist.broadcast(data, src=0)
        return json.loads(bytes(data.tolist()))

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over ranks, in place, as one message."""
        if self.world == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _together():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.world == 1:
            return number
        box = torch.tensor([number], device=_device())
        with _together():
            dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return int(box)


def _device() -> str:
    """Where the group's messages live."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def join(device: str) -> Ranks:
    """Join the group that torchrun describes in the environment, or stand alone."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return Ranks()
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise OutlinesError(f"rank {local_rank} of this machine has no GPU: start at most "
                                f"{torch.cuda.device_count()} processes here, or use --device cpu")
        torch.cuda.set_device(local_rank)
    # Rank 0 evaluates alone while the others wait.
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=6))
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank)


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
