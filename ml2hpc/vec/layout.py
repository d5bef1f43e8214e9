"""Flat layout of a module's parameters: names, shapes, places in one vector, and the layers they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ml2hpc.errors import UnsupportedError


@dataclass(frozen=True)
class Entry:
    """One parameter tensor and its place in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    layer: int


class Layout:
    """The parameters of any `torch.nn.Module` as one flat vector, in the module's own order.

    Parameters
    ----------
    module
        Its parameters' shapes and names are read. Parameters of one submodule form one layer, so layers are
        contiguous: `layers[l]` is the slice of layer l.

    Examples
    --------
    >>> layout = Layout(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)))
    >>> layout.n, layout.layers
    (13, (slice(0, 9, None), slice(9, 13, None)))
    """

    def __init__(self, module: torch.nn.Module) -> None:
        entries: list[Entry] = []
        owner, start, layer = None, 0, -1
        for name, parameter in module.named_parameters():
            path = name.rpartition(".")[0]
            layer += path != owner or owner is None
            owner, stop = path, start + parameter.numel()
            entries.append(Entry(name, tuple(parameter.shape), start, stop, layer))
            start = stop
        self.entries = tuple(entries)
        self.n = start
        self.layers = tuple(
            slice(min(e.start for e in entries if e.layer == k), max(e.stop for e in entries if e.layer == k))
            for k in range(layer + 1)
        )

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """Return the parameters by name as views of the flat vector x, shape (n,). Not collective."""
        return {e.name: x[e.start : e.stop].view(e.shape) for e in self.entries}

    def flatten(self, module: torch.nn.Module) -> Tensor:
        """Return a copy of the module's parameters as one vector, shape (n,). Not collective.

        Raises
        ------
        UnsupportedError
            If there are none, or they differ in type.
        """
        types = sorted({str(p.dtype) for p in module.parameters()})
        if len(types) != 1:
            found = f"parameters of several types: {', '.join(types)}" if types else "no parameters"
            raise UnsupportedError(f"{type(module).__name__} has {found}; all must have one type, see Module.to")
        return torch.cat([p.detach().reshape(-1) for p in module.parameters()])
