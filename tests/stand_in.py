"""A stand-in for an Apple GPU: float32 tensors on the CPU which say that they are on `mps`.

Like the real device, it refuses float64, NumPy, and operations on tensors of two devices.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MPS, CPU = torch.device("mps"), torch.device("cpu")
MAY_MIX = ("copy_", "_foreach_copy_", "__setitem__", "__getitem__", "__set__", "_has_compatible_shallow_copy_type")
"""functions that accept tensors of two devices; the result is on the device of the first argument"""


def is_on_mps(value: Any) -> bool:
    return hasattr(value, "_on_mps")


class StandIn(TorchFunctionMode):
    """Inside this context, the device `mps` exists. It does not reach other threads, or the inside of vmap."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.device, torch._C._nn._parse_to):  # they only name devices
            return func(*args, **kwargs)
        name, attribute = func.__name__, getattr(getattr(func, "__self__", None), "__name__", "")
        given = [*_leaves(args), *_leaves(kwargs)]
        tensors = [value for value in given if isinstance(value, Tensor)]
        here = [tensor for tensor in tensors if is_on_mps(tensor)]
        if name == "__get__" and attribute in ("device", "is_mps", "is_cpu") and here:
            return {"device": MPS, "is_mps": True, "is_cpu": False}[attribute]
        if name in ("numpy", "__array__") and here:
            raise TypeError("can't convert mps:0 device type tensor to numpy.")
        target = CPU if name == "cpu" else next(filter(None, map(_named, given)), None)
        if name == "to" and len(tensors) > 1:
            target = MPS if is_on_mps(tensors[1]) else CPU
        if here and target is None and name not in MAY_MIX:
            elsewhere = [list(tensor.shape) for tensor in tensors if tensor.dim() and not is_on_mps(tensor)]
            assert not elsewhere, f"{name}: {[list(tensor.shape) for tensor in here]} on mps, {elsewhere} on cpu"
        if target:
            args, kwargs = (_changed(part, lambda value: CPU if _named(value) else value) for part in (args, kwargs))
        result = func(*args, **kwargs)
        if name == "__set__" and attribute == "data":
            _put(args[0], is_on_mps(args[1]))
        on_mps = target == MPS if target else is_on_mps(args[0]) if name in MAY_MIX else bool(here)

        def placed(value: Any) -> Any:
            if not isinstance(value, Tensor) or is_on_mps(value) == on_mps:
                return value
            # To move a tensor copies it. Other results are new, or views of an argument, which share its memory.
            return _put(value.clone() if any(value is tensor for tensor in tensors) else value, on_mps)

        return _changed(result, placed)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to the leaves."""
    if isinstance(value, (tuple, list)):
        parts = [_changed(part, change) for part in value]
        return type(value)(parts) if type(value) in (tuple, list) else value  # the result of topk has new tensors
    return {key: _changed(part, change) for key, part in value.items()} if type(value) is dict else change(value)


def _named(value: Any) -> torch.device | None:
    """Return the device that an argument names, if any."""
    kind = str(value).partition(":")[0] if isinstance(value, (str, torch.device)) else ""
    return MPS if kind == "mps" else CPU if kind == "cpu" else None


def _put(tensor: Tensor, on_mps: bool) -> Tensor:
    if on_mps and tensor.dtype == torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    if on_mps:
        tensor._on_mps = True  # type: ignore[attr-defined]
    elif is_on_mps(tensor):
        del tensor._on_mps  # type: ignore[attr-defined]
    return tensor


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a test with the stand-in as the only accelerator."""
    make: Any = torch.nn.Parameter.__new__

    def parameter(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        return _put(make(cls, data, requires_grad), is_on_mps(data))

    monkeypatch.setattr(torch.nn.Parameter, "__new__", staticmethod(parameter))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with StandIn():
        yield
