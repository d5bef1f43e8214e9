"""Boxes of a rectangular grid, and a box dealt to ranks in a grid of processors, as PETSc's DMDA deals it.

Nodes are numbered twice: in the natural order of a box (x fastest), the same for any number of ranks, and in the
order of its owners, where the nodes of each rank's own box are consecutive.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ml2hpc.errors import UserError


@dataclass(frozen=True)
class Box:
    """The nodes (i, j) with x0 <= i < x1 and y0 <= j < y1."""

    x0: int
    x1: int
    y0: int
    y1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, the shape of an array of its nodes."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def n(self) -> int:
        """Number of nodes."""
        rows, columns = self.shape
        return rows * columns

    def grown(self, lines: int, within: Box) -> Box:
        """Return the box with some more grid lines on every side, as far as another one reaches. Not collective."""
        return Box(self.x0 - lines, self.x1 + lines, self.y0 - lines, self.y1 + lines).cut(within)

    def cut(self, other: Box) -> Box:
        """Return the nodes in both; the empty box has the shape (0, 0). Not collective."""
        box = Box(max(self.x0, other.x0), min(self.x1, other.x1), max(self.y0, other.y0), min(self.y1, other.y1))
        return box if box.x0 < box.x1 and box.y0 < box.y1 else Box(self.x0, self.x0, self.y0, self.y0)

    def part(self, outer: Box) -> tuple[slice, slice]:
        """Return where it lies in an array of the nodes of an outer box. Not collective."""
        return slice(self.y0 - outer.y0, self.y1 - outer.y0), slice(self.x0 - outer.x0, self.x1 - outer.x0)

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Return the columns i and the rows j of its nodes, each of its shape. Not collective."""
        j, i = torch.meshgrid(torch.arange(self.y0, self.y1), torch.arange(self.x0, self.x1), indexing="ij")
        return i, j

    def natural(self, within: Box) -> Tensor:
        """Return the numbers of its nodes in the natural order of an outer box, shape (n,). Not collective."""
        i, j = self.nodes()
        return ((j - within.y0) * within.shape[1] + i - within.x0).reshape(-1)


class Partition:
    """A box cut into `count` boxes in a grid of processors, row after row.

    Parameters
    ----------
    box, count
        The processors' grid has about the proportions of the box; the first boxes of a direction are the longer ones.

    Raises
    ------
    UserError
        If the box has fewer grid lines in a direction than there are processors.
    """

    def __init__(self, box: Box, count: int) -> None:
        rows, columns = box.shape
        self.box = box
        self.across = processors(count, columns, rows)
        self.up = count // self.across
        if self.across > columns or self.up > rows:
            raise UserError(
                f"a grid of {columns} x {rows} nodes cannot be cut into {self.across} x {self.up} boxes: "
                f"use fewer ranks or subdomains, or a finer grid"
            )
        self.xs, self.ys = _cuts(box.x0, columns, self.across), _cuts(box.y0, rows, self.up)
        self.boxes = [
            Box(self.xs[p], self.xs[p + 1], self.ys[q], self.ys[q + 1])
            for q in range(self.up)
            for p in range(self.across)
        ]

    def numbers(self, wanted: Box) -> Tensor:
        """Return the numbers, in the owners' order, of the nodes of any box inside, shape (n,). Not collective."""
        xs, ys = torch.tensor(self.xs), torch.tensor(self.ys)
        i, j = torch.arange(wanted.x0, wanted.x1), torch.arange(wanted.y0, wanted.y1)
        p, q = torch.searchsorted(xs, i, right=True) - 1, torch.searchsorted(ys, j, right=True) - 1
        starts = torch.tensor([0, *accumulate(b.n for b in self.boxes)])
        first = starts[q[:, None] * self.across + p]
        return (first + (j - ys[q])[:, None] * (xs[p + 1] - xs[p]) + i - xs[p]).reshape(-1)


def processors(count: int, columns: int, rows: int) -> int:
    """Return how many of `count` boxes lie side by side: about sqrt(count columns / rows), and a divisor.

    >>> [processors(count, 33, 33) for count in (1, 2, 3, 4, 6, 8, 12)]
    [1, 1, 1, 2, 2, 2, 3]
    """
    across = max(int(0.5 + (columns * count / rows) ** 0.5), 1)
    while count % across:
        across -= 1
    if columns > rows and across < count // across:
        across = count // across
    return across


def _cuts(start: int, lines: int, count: int) -> list[int]:
    """Where each of `count` parts begins, and the end; the first ones are the longer.

    >>> _cuts(0, 7, 3)
    [0, 3, 5, 7]
    """
    return [start, *(start + k * (lines // count) + min(k, lines % count) for k in range(1, count + 1))]
