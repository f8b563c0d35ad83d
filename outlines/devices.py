"""Choice of device, precision and threads."""

from pathlib import Path

import torch
from torch import Tensor

from outlines.errors import OutlinesError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device with this name, or for `auto` the first available of cuda, mps, cpu. Raises OutlinesError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in available if available[device])
    if not available[name]:
        raise OutlinesError(f"--device {name} is not available on this machine or in this build of torch. Use --device cpu.")
    return torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision of a decoder's matrix products: float32 or bfloat16; for `auto`, the faster one on the device.

    bfloat16 is faster on CPUs with AMX, and on AMD's CPUs with AVX-512 BF16 (measured with benchmarks/decoder_speed.py).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        info = Path("/proc/cpuinfo")
        processor = info.read_text() if device.type == "cpu" and info.exists() else ""
        faster = "amx_bf16" in processor or ("AuthenticAMD" in processor and "avx512_bf16" in processor)
    return "bfloat16" if faster else "float32"


def float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64: on the tensor's device, or on the CPU if the device is mps, which has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def sampling_workers(device: torch.device) -> int:
    """Return the number of threads that should decode batches. On a CPU, also set torch to one thread per operation."""
    if device.type != "cpu":
        return 4  # one thread samples noise while another thread waits for the GPU
    workers = torch.get_num_threads()
    torch.set_num_threads(1)
    return workers
