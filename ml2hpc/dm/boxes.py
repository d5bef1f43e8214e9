"""Overlapping boxes of a grid, cut as the ranks' boxes are, and how their vectors travel.

Subdomain k owns box k and sees `overlap` grid lines more on every side. What is around it stays frozen, as Dirichlet
values. Values come and corrections go by scatters, between the ranks that own the nodes and those that solve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ml2hpc.dm.exchange import Exchange, Solved, Start, Weighting
from ml2hpc.dm.subdomain import Local, Subdomain
from ml2hpc.errors import OptionsError, UserError
from ml2hpc.log import Work
from ml2hpc.problem.boxes import Box, Partition
from ml2hpc.problem.grid import BoxBlock, GridProblem, GridRestriction, Part
from ml2hpc.problem.interface import Cost, Problem
from ml2hpc.vec import Scatter


class BoxSubdomain(Subdomain):
    """A box of a grid with its overlap; weights are made where they are needed, on the ranks that solve.

    Parameters
    ----------
    box
        The nodes that it owns, each node having one owner.
    block
        The unknowns that it varies.
    multiplicity
        By column and by row of the grid, how many subdomains see it.
    """

    def __init__(self, box: Box, block: BoxBlock, multiplicity: tuple[Tensor, Tensor]) -> None:
        for name, value in (("name", block.name), ("box", box), ("block", block), ("rows", None)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "multiplicity", multiplicity)

    box: Box
    block: BoxBlock
    multiplicity: tuple[Tensor, Tensor]

    @property
    def weights(self) -> Tensor:
        """The partition of unity, shape (block.n,)."""
        return self.factors("unity", self.block.box)

    @property
    def own(self) -> Tensor:
        """1 for its own nodes, else 0, shape (block.n,)."""
        return self.factors("own", self.block.box)

    def on(self, problem: Problem) -> BoxLocal:
        """Return the local problem on the ranks of `problem`. Collective there."""
        restriction = problem.restrict(self.block)
        assert isinstance(restriction, GridRestriction)
        return BoxLocal(restriction)

    def factors(self, weighting: Weighting, box: Box) -> Tensor:
        """Return the factors of its correction on some of its nodes, shape (box.n,). Not collective."""
        across, up = self.multiplicity
        if weighting == "unity":
            return 1.0 / torch.outer(up[box.y0 : box.y1], across[box.x0 : box.x1]).reshape(-1)
        factors = torch.full(box.shape, float(weighting == "all"), dtype=up.dtype, device=up.device)
        mine = self.box.cut(box)
        if mine.n:
            factors[mine.part(box)] = 1.0
        return factors.view(-1)


class BoxLocal(Local):
    """The energy of a box; it starts from the values of its nodes and of their neighbours."""

    def __init__(self, restriction: GridRestriction) -> None:
        self.problem = self.restriction = restriction

    def begin(self, x: Tensor, f: float, g: Tensor | None) -> tuple[Tensor, float, Tensor | None]:
        """Take x, the values of `part.reach`, shape (reach.n,), as the state; the local energy is not known yet."""
        return self.restriction.freeze(x), f, None

    def begin_work(self, whole: Problem, unit: Cost) -> Work:
        return Work()

    def hessian_rows(self, end: Tensor, v: Tensor) -> Tensor:
        return self.restriction.rows(end, v)


class Scattered(Exchange):
    """Values come from the ranks that own them, and corrections go there, in messages between those concerned."""

    problem: GridProblem

    def __init__(
        self,
        problem: GridProblem,
        owners: Sequence[int],
        subdomains: Sequence[BoxSubdomain],
        parts: Mapping[int, Part],
    ) -> None:
        super().__init__(problem, owners, list(parts))
        self._subdomains = subdomains
        self._parts = parts

    def _scatter(self, boxes: Sequence[Box]) -> Scatter:
        part = self.problem.part
        numbers = [part.partition.numbers(box) for box in boxes]
        return Scatter(part.space, torch.cat(numbers) if numbers else torch.empty(0, dtype=torch.int64))

    @cached_property
    def _reach(self) -> Scatter:
        return self._scatter([part.reach for part in self._parts.values()])

    @cached_property
    def _own(self) -> Scatter:
        return self._scatter([part.own for part in self._parts.values()])

    @cached_property
    def _each(self) -> list[Scatter]:
        """One scatter for each subdomain, for corrections that stay apart. Collective."""
        return [self._scatter([self._parts[k].own] if k in self._parts else []) for k in range(len(self._subdomains))]

    def open(self, v: Tensor) -> Tensor:
        return v

    def fetch(self, x: Tensor, g: Tensor | None) -> list[Start]:
        values = self._reach.forward(x).split([part.reach.n for part in self._parts.values()])
        return [(value, None) for value in values]

    def add(self, v: Tensor, corrections: Sequence[Tensor]) -> Tensor:
        return v + self._own.reverse(torch.cat(list(corrections)))

    def close(self, v: Tensor) -> Tensor:
        return v.clone()

    def collect(
        self, solved: Sequence[Solved], weighting: Weighting, *, apart: bool
    ) -> tuple[list[Tensor], list[Work]]:
        weighted = {
            k: s.correction * self._subdomains[k].factors(weighting, self._parts[k].own)
            for k, s in zip(self.here, solved, strict=True)
        }
        if not apart:
            corrections = [self._own.reverse(torch.cat(list(weighted.values())))]
        else:
            nothing = self.problem.space.zeros()[:0]
            corrections = [scatter.reverse(weighted.get(k, nothing)) for k, scatter in enumerate(self._each)]
        return corrections, self._works(solved)

    def _works(self, solved: Sequence[Solved]) -> list[Work]:
        """Bring the counts of all subdomains to all ranks. Collective."""
        comm = self.problem.comm
        counts = np.zeros((len(self._subdomains), 9))
        for k, s in zip(self.here, solved, strict=True):
            if self.owners[k] == comm.rank:
                counts[k] = s.work.counts.ravel()
        return [Work(row) for row in comm.allgather(counts).sum(0)]


def cut(problem: Problem, count: int, overlap: int, prefix: str) -> tuple[BoxSubdomain, ...]:
    """Return `count` boxes of the problem's grid. Not collective.

    Raises
    ------
    OptionsError
        If the problem is on no grid, the grid is too coarse for so many boxes, or the overlap reaches beyond a
        neighbour.
    """
    if not isinstance(problem, GridProblem):
        raise OptionsError(
            f"-{prefix}dm_decomposition boxes: {type(problem).__name__} is not a problem on a whole grid; use layers, "
            f"tensors, blocks or samples; on coarser levels of a grid, or in a metric, use another type than nasm"
        )
    grid = problem.grid
    try:
        partition = Partition(grid, count)
    except UserError as error:
        raise OptionsError(f"-{prefix}dm_subdomains {count}: {error}") from error
    widths = [b - a for cuts in (partition.xs, partition.ys) if len(cuts) > 2 for a, b in pairwise(cuts)]
    if widths and overlap > min(widths):
        raise OptionsError(
            f"-{prefix}dm_overlap {overlap}: the narrowest subdomain has {min(widths)} grid lines; "
            f"choose at most {min(widths)}"
        )
    blocks = [BoxBlock(own.grown(overlap, grid), grid) for own in partition.boxes]
    rows, columns = grid.shape
    space = problem.space
    across, up = (torch.zeros(n, dtype=space.dtype, device=space.device) for n in (columns, rows))
    for block in blocks[: partition.across]:
        across[block.box.x0 : block.box.x1] += 1
    for block in blocks[:: partition.across]:
        up[block.box.y0 : block.box.y1] += 1
    return tuple(BoxSubdomain(o, b, (across, up)) for o, b in zip(partition.boxes, blocks, strict=True))
