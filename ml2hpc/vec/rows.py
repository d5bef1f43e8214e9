"""A few long vectors kept as the rows of a matrix, each product with which reads them once."""

from __future__ import annotations

import copy
import ctypes
from typing import Any

import torch
from torch import Tensor

from ml2hpc.kernels import Library
from ml2hpc.vec.space import VectorSpace


class Rows:
    """The matrix A whose rows are vectors of a space; too large for the caches, it is bound by memory.

    Parameters
    ----------
    count
        Rows, zero at first.
    library
        The compiled kernels; None for the same mathematics in torch.

    Attributes
    ----------
    values
        Shape (count, n_local).
    """

    def __init__(self, space: VectorSpace, count: int, library: Library | None) -> None:
        self.space = space
        self.values = torch.zeros(count, space.n_local, dtype=space.dtype, device=space.device)
        self._kernels: tuple[Any, Any] | None = None
        if library is not None and space.device.type == "cpu":
            pointer, long, number, threads = ctypes.c_void_p, ctypes.c_long, ctypes.c_double, ctypes.c_int
            products = library.function("rows_products", space.dtype)
            products.argtypes = [pointer, long, long, pointer, pointer, pointer, threads]
            combination = library.function("rows_combination", space.dtype)
            combination.argtypes = [pointer, long, long, pointer, number, pointer, pointer, threads]
            self._kernels = products, combination

    def part(self, first: int, last: int) -> Rows:
        """Return the rows first..last-1, in the same memory. Not collective."""
        part = copy.copy(self)
        part.values = self.values[first:last]
        return part

    def products(self, x: Tensor, y: Tensor) -> Tensor:
        """Return A x and A y, shape (2, count). Collective if sharded."""
        a = self.values
        if self._kernels is None:
            return self.space.mdot(torch.stack([x, y]), a.T)
        out = a.new_empty(2, len(a))
        x, y = x.contiguous(), y.contiguous()
        self._kernels[0](a.data_ptr(), *a.shape, x.data_ptr(), y.data_ptr(), out.data_ptr(), torch.get_num_threads())
        return self.space.total(out)

    def combination(self, weights: Tensor, scale: float, y: Tensor) -> Tensor:
        """Return scale y + A' weights, shape (n_local,), for weights (count,). Not collective."""
        a = self.values
        if self._kernels is None:
            return torch.addmv(y, a.T, weights, beta=scale)
        out, weights, y = torch.empty_like(a[0]), weights.contiguous(), y.contiguous()
        self._kernels[1](
            a.data_ptr(), *a.shape, weights.data_ptr(), scale, y.data_ptr(), out.data_ptr(), torch.get_num_threads()
        )
        return out
