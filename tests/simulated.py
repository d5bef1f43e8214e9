"""A device that is none: numbers on the host that only meet numbers of the same device, as on a GPU.

Tensors on `DEVICE` (torch's `meta`, which has no numbers of its own) carry a hidden tensor of the host. An operation on
them runs on the hidden ones, after the rules of a device were checked: no operand on the host except single numbers, no
numpy array and no address of it, and what a factory makes without `device=` is on the host. So code that forgets a
device fails here as it would on a GPU, and code that does not gives the same bits as on the host.

    with Simulation():
        x = torch.zeros(3, device=DEVICE)
        float(x.sum())              numbers come back by float, item, tolist, cpu
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_TO = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_READ = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.is_nonzero.default)


class Simulated(Tensor):
    """A tensor on the simulated device, with its numbers in `host`."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> Simulated:
        made: Simulated = Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(function, args, kwargs or {})

    def tolist(self) -> Any:  # torch has none for subclasses
        return self.host.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class Simulation(TorchDispatchMode):
    """While it is active, factories with `device=DEVICE` make simulated tensors.

    Attributes
    ----------
    moved
        Numbers copied from or to the host, apart from single ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0
        self._constants = _Constants()

    def __enter__(self) -> Simulation:
        self._constants.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._constants.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        if function in _TO:
            here = [isinstance(t, Simulated) for t in tensors] + [kwargs.get("device") == DEVICE] * ("device" in kwargs)
            if any(here) and not all(here) and tensors[0].numel() > 1:
                self.moved += tensors[0].numel()
        if any(isinstance(t, Simulated) for t in tensors) or kwargs.get("device") == DEVICE:
            return _run(function, args, kwargs)
        return function(*args, **kwargs)


class _Constants(TorchFunctionMode):
    """Makes `torch.tensor(..., device=DEVICE)` a copy from the host, as it is on a GPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            del kwargs["device"]
            return function(*args, **kwargs).to(DEVICE)
        return function(*args, **kwargs)


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the hidden tensors; the result is simulated unless it was asked for on the host."""
    target = kwargs.get("device")
    flat, _ = tree_flatten((args, kwargs))
    if function not in (*_TO, torch.ops.aten.index.Tensor):  # torch takes places in a tensor from the host, too
        strangers = [t for t in flat if isinstance(t, Tensor) and not isinstance(t, Simulated) and t.dim() > 0]
        if strangers and any(isinstance(t, Simulated) for t in flat):
            raise RuntimeError(f"{function}: an operand of shape {tuple(strangers[0].shape)} is on the host")
    names = {id(t.host): t for t in flat if isinstance(t, Simulated)}  # results that are operands stay the same objects

    def hidden(value: Any) -> Any:
        return value.host if isinstance(value, Simulated) else value

    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = function(*tree_map(hidden, args), **tree_map(hidden, kwargs))
    to_host = target is not None and target != DEVICE
    if to_host or function in _READ:
        return result
    if function is torch.ops.aten.copy_.default and not isinstance(args[0], Simulated):
        return args[0]

    def shown(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return names[id(value)] if id(value) in names else Simulated(value)

    return tree_map(shown, result)
