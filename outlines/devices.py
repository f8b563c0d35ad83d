"""Where tensors live."""

from pathlib import Path

import torch

from outlines.errors import OutlinesError

GPU_WORKERS = 4
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of that name; `auto` takes cuda, then mps, then cpu. local_rank: which of a machine's GPUs.

    Raises OutlinesError where there is none of the name.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise OutlinesError(f"--device {name}: none on this machine, or this torch does not support it: use --device cpu")
    return torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """float32 or bfloat16, what a decoder's matrix products are computed in; `auto` takes what is faster on the device.

    Of CPUs with AVX-512 BF16 those by AMD train a decoder nearly twice as fast with bfloat16, and those by Intel slower
    unless they have AMX too (measured: benchmarks/decoder_speed.py).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        try:
            processor = Path("/proc/cpuinfo").read_text() if device.type == "cpu" else ""
        except OSError:
            processor = ""
        faster = "amx_bf16" in processor or ("AuthenticAMD" in processor and "avx512_bf16" in processor)
    return "bfloat16" if faster else "float32"


def sampling_workers(device: torch.device) -> int:
    """How many threads are to decode a batch each; on a CPU, torch itself is left one from now on.

    There, threads that share a batch would meet at every small operation. On a GPU, one draws its noise while it waits for
    another's steps.
    """
    if device.type != "cpu":
        return GPU_WORKERS
    workers = torch.get_num_threads()
    torch.set_num_threads(1)
    return workers
