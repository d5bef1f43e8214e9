"""Gram matrices J J' summed over points, by panels of rows: what a dense Gauss-Newton matrix is made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scipy.linalg import blas
from torch import Tensor

_ENTRIES = 1 << 21  # of a panel: 16 MB, of which a sum over ranks holds about ten
_ALIGNED = 64  # rows, so that each part of a panel starts at a multiple of 64 bytes


def panels(n: int) -> Iterator[tuple[int, int]]:
    """Yield row ranges low, high of an (n, n) lower triangle, each range with few enough entries. Not collective.

    >>> list(panels(420)), list(panels(3021))
    ([(0, 420)], [(0, 1408), (1408, 2304), (2304, 2944), (2944, 3021)])
    """
    low = 0
    while low < n:
        # The largest panel within _ENTRIES is a root of a quadratic in its last row.
        high = int((low + (low * low + 4 * _ENTRIES) ** 0.5) / 2) // _ALIGNED * _ALIGNED
        high = min(n, max(high, low + _ALIGNED))
        yield low, high
        low = high


def add_square(out: Tensor, j: Tensor, factor: float) -> None:
    """Add factor * j j' to the lower triangle of `out`, shapes (n, points) and (n, n), contiguous. Not collective.

    The symmetric product of BLAS takes half the operations of a matrix product; torch has none, so on a device
    both triangles are formed.
    """
    if out.device.type != "cpu":
        out.addmm_(j, j.T, alpha=factor)
        return
    product = blas.dsyrk if out.dtype == torch.float64 else blas.ssyrk
    # BLAS counts by columns: the transposes of both, and the other triangle.
    result = product(factor, j.numpy().T, 1.0, out.numpy().T, trans=1, lower=0, overwrite_c=1)
    assert result.ctypes.data == out.data_ptr(), "the product was written elsewhere"
