"""Bilinear interpolation between partitioned grids, and its transpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ml2hpc.problem.boxes import Box
from ml2hpc.problem.transfer import Transfer
from ml2hpc.vec import Scatter

if TYPE_CHECKING:
    from ml2hpc.problem.grid import Part


class _Lines:
    """Linear interpolation in one direction: line i is (1 - w) times coarse line i // c, plus w times the next.

    Parameters
    ----------
    start, stop
        The fine lines.
    first, last
        The coarse lines around them.
    """

    def __init__(self, start: int, stop: int, first: int, last: int, factor: int, like: Tensor) -> None:
        lines = torch.arange(start, stop, device=like.device)
        self._count = last - first
        self._left = lines // factor - first
        self._right = (self._left + 1).clamp(max=last - first - 1)  # with the weight 0 where it is cut
        self._ahead = (lines % factor).to(like.dtype) / factor

    def forward(self, v: Tensor) -> Tensor:
        """Return the fine lines, the rows of an array, from the coarse ones. Not collective."""
        w = self._ahead[:, None]
        return (1 - w) * v[self._left] + w * v[self._right]

    def reverse(self, v: Tensor) -> Tensor:
        """Return the transpose of `forward` times v. Not collective."""
        w = self._ahead[:, None]
        found = v.new_zeros(self._count, v.shape[1]).index_add_(0, self._left, (1 - w) * v)
        return found.index_add_(0, self._right, w * v)


class Bilinear(Transfer):
    """Every c-th grid line of the fine level is one of the coarse level.

    (I e)_ij is the bilinear interpolant of e, with 0 for e on the boundary: what lies inside does not see the unknowns
    there, and they keep their own values. P is injection. Each rank interpolates on its own nodes, from the coarse
    nodes around them, which come by a scatter. Collective.
    """

    def __init__(self, coarse: Part, fine: Part, factor: int) -> None:
        own, c, like = fine.own, factor, fine.space.zeros()
        self._shape = own.shape
        around = Box(own.x0 // c, (own.x1 - 1) // c + 2, own.y0 // c, (own.y1 - 1) // c + 2)
        self._around = around = around.cut(coarse.grid)
        self._from_coarse = Scatter(coarse.space, coarse.partition.numbers(around))
        mine = coarse.own
        kept = Box(c * mine.x0, c * (mine.x1 - 1) + 1, c * mine.y0, c * (mine.y1 - 1) + 1)
        numbers = fine.partition.numbers(kept).view(kept.shape)
        self._from_fine = Scatter(fine.space, numbers[::c, ::c].reshape(-1))
        self._across = _Lines(own.x0, own.x1, around.x0, around.x1, c, like)
        self._up = _Lines(own.y0, own.y1, around.y0, around.y1, c, like)
        self._coarse_inside = _inside(around, coarse.grid).to(like)
        self._fine_inside = _inside(own, fine.grid).to(like)

    def prolong(self, e: Tensor) -> Tensor:
        around = self._from_coarse.forward(e).view(self._around.shape)
        return (self._fine_inside * self._interpolated(self._coarse_inside * around)).reshape(-1)

    def restrict(self, g: Tensor) -> Tensor:
        half = self._up.reverse(self._fine_inside * g.view(self._shape))
        around = self._coarse_inside * self._across.reverse(half.T).T
        return self._from_coarse.reverse(around.reshape(-1))

    def project(self, x: Tensor) -> Tensor:
        return self._from_fine.forward(x)

    def lift(self, x: Tensor) -> Tensor:
        return self._interpolated(self._from_coarse.forward(x).view(self._around.shape)).reshape(-1)

    def _interpolated(self, around: Tensor) -> Tensor:
        return self._across.forward(self._up.forward(around).T).T


def _inside(box: Box, grid: Box) -> Tensor:
    """Which nodes of a box are not on the grid's boundary, of its shape."""
    i, j = box.nodes()
    rows, columns = grid.shape
    return (i > 0) & (i < columns - 1) & (j > 0) & (j < rows - 1)
