"""A symmetric matrix dealt to the ranks, whose pending low-rank update rides along with the next product.

A dense matrix is bound by memory: what counts is how often it is read and written. So only the lower triangle is kept,
and an update waits until the next product, where one pass makes both. The triangle is cut into segments of consecutive
rows of about equal work; each gives a partial product, and `TreeSum` adds them. The number of segments depends on the
size of the matrix alone, so the product has the same bits on any number of ranks, and needs one Allgather.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.kernels import Library
from ml2hpc.vec.space import CPU
from ml2hpc.vec.treesum import TreeSum

_ALIGNMENT = 64  # bytes: of rows and vectors, for the longest vector register
_ROWS = 128  # a segment of this many rows, if all were as long, takes some 0.1 ms: long against a call
_CACHE = 2**21  # bytes of rows that torch works on at a time
_WIDE = 2048  # rows of a segment on a GPU, which one as short would not fill
_MEMORY = 2**30  # bytes of rows that a GPU works on at a time
_MOST = 64  # segments, and so ranks that can share a block

Update = tuple[float, float, float, float]
"""scale, m11, m12, m22 of H <- scale H + [u w] M [u w]'."""


@dataclass
class _Segment:
    """Rows first..last-1 of the lower triangle of a diagonal block, in the block's own numbering."""

    block: int
    first: int
    last: int
    rows: Tensor | None = None  # (last - first, stride), on the rank that keeps it, once the block has entries


class SymmetricMatrix:
    """A block-diagonal symmetric matrix H; one block is the ordinary dense matrix.

        H_b <- scale_b H_b + [u w]_b M_b [u w]_b',   then H g,   in one pass over the lower triangle.

    Parameters
    ----------
    comm
        The ranks that share it: each keeps some segments. Vectors are whole on every rank.
    blocks
        Consecutive slices that cover 0..n-1.
    library
        The compiled kernels; None for the same mathematics in torch.
    """

    def __init__(
        self,
        comm: Communicator,
        blocks: Sequence[slice],
        dtype: torch.dtype,
        library: Library | None,
        device: torch.device = CPU,
    ) -> None:
        self.comm = comm
        self.blocks = tuple(blocks)
        self.dtype = dtype
        self.device = device
        on_host = device.type == "cpu"
        self._sweep: Any = library.function("sweep", dtype) if library is not None and on_host else None
        self._together = _CACHE if on_host else _MEMORY
        lengths = [_padded(b.stop - b.start, dtype) for b in blocks]
        self._starts = [sum(lengths[:k]) for k in range(len(lengths) + 1)]  # each block begins at a whole vector
        self._segments = [
            _Segment(k, first, last)
            for k, b in enumerate(blocks)
            for first, last in _segments(b.stop - b.start, _ROWS if on_host else _WIDE)
        ]
        self._sum = TreeSum(comm, [(s.last - s.first) * (s.last + s.first + 1.0) for s in self._segments])
        self._u, self._w, self._g = (torch.zeros(self._starts[-1], dtype=dtype, device=device) for _ in range(3))
        self._coefficients = torch.zeros(len(blocks), 4, dtype=dtype, device=CPU)
        self._pending = [False] * len(blocks)
        self._calls: dict[int, list[Any]] = {}  # arguments of the kernel by segment

    def set_identity(self, block: int, factor: float) -> None:
        """Set a block to factor I. Not collective."""
        for i in self._sum.parts:
            segment = self._segments[i]
            if segment.block == block:
                rows = self._rows(i).zero_()
                rows[:, segment.first : segment.last].fill_diagonal_(factor)
        self._pending[block] = False

    def update(self, u: Tensor, w: Tensor, coefficients: Sequence[Update | None]) -> None:
        """Note an update, made in the pass of the next product; the one before must have been. Not collective.

        Parameters
        ----------
        u, w
            Shape (n,).
        coefficients
            For each block, None to leave it alone.
        """
        assert not any(self._pending), "an update waits for its product"
        self._spread(u, self._u)
        self._spread(w, self._w)
        for k, update in enumerate(coefficients):
            if update is not None:
                self._coefficients[k] = torch.tensor(update, dtype=self.dtype, device=CPU)
                self._pending[k] = True

    def product(self, g: Tensor) -> Tensor:
        """Return H g, shape (n,), with the noted update made. Collective."""
        self._spread(g, self._g)
        part = self._compiled if self._sweep is not None else self._plain
        total = self._sum(part, self._starts[-1], self.dtype, self.device)
        self._pending = [False] * len(self.blocks)
        if len(self.blocks) == 1:
            return total[: self.blocks[0].stop]
        return torch.cat([total[a : a + b.stop - b.start] for a, b in zip(self._starts, self.blocks, strict=False)])

    def _spread(self, x: Tensor, out: Tensor) -> None:
        for start, b in zip(self._starts, self.blocks, strict=False):
            out[start : start + b.stop - b.start] = x[b]

    def _rows(self, i: int) -> Tensor:
        """The memory of a segment of this rank."""
        segment = self._segments[i]
        if segment.rows is None:
            lane = _ALIGNMENT // self.dtype.itemsize
            # An odd number of cache lines from row to row: else neighbouring rows compete for the same places.
            stride = (_padded(segment.last, self.dtype) // lane | 1) * lane
            segment.rows = torch.zeros(segment.last - segment.first, stride, dtype=self.dtype, device=self.device)
            start = self._starts[segment.block]
            vectors = (v[start:].data_ptr() for v in (self._u, self._w, self._g))
            numbers = (segment.rows.stride(0), segment.first, segment.last)
            self._calls[i] = [
                ctypes.c_void_p(segment.rows.data_ptr()),
                *map(ctypes.c_long, numbers),
                ctypes.c_void_p(self._coefficients[segment.block].data_ptr()),
                *map(ctypes.c_void_p, vectors),
                ctypes.c_long(start),
                ctypes.c_long(self._starts[-1]),
            ]
        return segment.rows

    def _compiled(self, i: int, out: Tensor) -> None:
        matrix, stride, first, last, coefficients, u, w, g, start, n = self._calls[i]
        noted = coefficients if self._pending[self._segments[i].block] else None
        self._sweep(matrix, stride, first, last, noted, u, w, g, ctypes.c_void_p(out.data_ptr()), start, n)

    def _plain(self, i: int, out: Tensor) -> None:
        """As many rows at a time as stay in the cache from the update to both products."""
        segment = self._segments[i]
        out.zero_()
        step = max(self._together // self._rows(i)[0].nbytes, 1)
        for low in range(segment.first, segment.last, step):
            self._plain_rows(segment, low, min(low + step, segment.last), out)

    def _plain_rows(self, segment: _Segment, low: int, high: int, out: Tensor) -> None:
        assert segment.rows is not None
        rows = segment.rows[low - segment.first : high - segment.first]
        start = self._starts[segment.block]
        g, result = self._g[start:], out[start:]
        if self._pending[segment.block]:
            scale, m11, m12, m22 = self._coefficients[segment.block].tolist()
            columns = torch.stack([self._u[start : start + high], self._w[start : start + high]])
            u, w = columns[:, low:]
            mixed = torch.stack([m11 * u + m12 * w, m12 * u + m22 * w], 1)  # by numbers: no matrix to copy to a device
            rows[:, :high].addmm_(mixed, columns, beta=scale)
        left, corner = rows[:, :low], rows[:, low:high].tril()
        mine = g[low:high]
        result[:low] += left.T @ mine
        result[low:high] += left @ g[:low] + corner @ mine + corner.tril(-1).T @ mine

    def state(self) -> dict[str, Any]:
        """Return the triangle by segments and the noted update; complete on rank 0. Collective."""
        mine = {str(i): self._rows(i)[:, : self._segments[i].last].contiguous().cpu().numpy() for i in self._sum.parts}
        segments: dict[str, Any] = {}
        for part in self.comm.gather(mine) or []:
            segments |= part
        return {
            "segments": segments,
            "u": self._u.cpu().numpy().copy(),
            "w": self._w.cpu().numpy().copy(),
            "coefficients": self._coefficients.numpy().copy(),
            "pending": np.array(self._pending),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take this rank's segments and the noted update out of a state that every rank has. Not collective."""
        for i in self._sum.parts:
            self._rows(i)[:, : self._segments[i].last].copy_(torch.from_numpy(state["segments"][str(i)]))
        for own, name in ((self._u, "u"), (self._w, "w"), (self._coefficients, "coefficients")):
            own.copy_(torch.from_numpy(state[name]))
        self._pending = [bool(p) for p in state["pending"]]


def _padded(n: int, dtype: torch.dtype) -> int:
    """The length that n numbers take in whole vectors."""
    lane = _ALIGNMENT // dtype.itemsize
    return -(-n // lane) * lane


def _segments(n: int, rows: int = _ROWS) -> list[tuple[int, int]]:
    """Cut the rows of a triangle where s/S of its area lies above, s = 1..S-1, at multiples of 8 rows.

    S is the power of two closest to n / rows in ratio: neighbouring sizes are cut alike.

    >>> _segments(300)
    [(0, 216), (216, 300)]
    """
    count = 1 << min(max(round(math.log2(n / rows)), 0), _MOST.bit_length() - 1)
    bounds = [8 * round(n * math.sqrt(s / count) / 8) for s in range(count)] + [n]
    return list(pairwise(bounds))
