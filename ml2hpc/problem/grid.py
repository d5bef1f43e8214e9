"""Problems on a rectangular grid, with unknowns that are partitioned over the ranks.

    L(u) = energy of u with its Dirichlet values g - hx hy <source, u> + (hy/hx + hx/hy) sum_boundary (u - g)^2

Nodes on the boundary are unknowns with an equation of their own, and what lies inside sees g and not them, so that the
Hessian is symmetric and has no coupling to the boundary: grad L is the residual of PETSc's example. Every rank holds
one box of nodes; the line of neighbours around it comes by a scatter at every evaluation. The restriction to a box is
the same problem on fewer nodes, with frozen values around.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.errors import UnsupportedError
from ml2hpc.options import option
from ml2hpc.problem.boxes import Box, Partition
from ml2hpc.problem.energies import Energy
from ml2hpc.problem.interface import Block, Cost, Linearization, Problem, Restriction
from ml2hpc.problem.interpolation import Bilinear
from ml2hpc.problem.transfer import Coarsening, Transfer
from ml2hpc.vec import CPU, Partitioned, Scatter


@dataclass(frozen=True)
class GridOptions:
    """Options `-da_*`."""

    grid_x: int = option(33, "grid points in the first direction, boundary included", at_least=3)
    grid_y: int = option(33, "grid points in the second direction, boundary included", at_least=3)
    # Without overlap nonlinear Schwarz still converges, only slowly; what is best depends on the grid.
    overlap: int = option(0, "default of -dm_overlap: grid lines shared with each neighbouring subdomain", at_least=0)


class BoxBlock(Block):
    """The unknowns of a box; their places in the whole vector are made when they are asked for."""

    def __init__(self, box: Box, grid: Box) -> None:
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "name", f"box x {box.x0}-{box.x1 - 1}, y {box.y0}-{box.y1 - 1}")

    box: Box
    grid: Box

    @property
    def indices(self) -> Tensor:
        """The numbers of its nodes in the natural order, shape (n,)."""
        return self.box.natural(self.grid)

    @property
    def n(self) -> int:
        return self.box.n


class Part:
    """What a rank evaluates: its nodes of a box, with one line of neighbours around those that vary.

    Attributes
    ----------
    own
        The nodes of this rank.
    reach
        With the neighbours of all of them, boundary included: what a restriction is based on.
    """

    def __init__(
        self, comm: Communicator, energy: Energy, grid: Box, box: Box, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.comm, self.energy, self.grid, self.box = comm, energy, grid, box
        rows, columns = grid.shape
        self.h = 1.0 / (columns - 1), 1.0 / (rows - 1)
        self.partition = Partition(box, comm.size)
        self.own = own = self.partition.boxes[comm.rank]
        sizes = [b.n for b in self.partition.boxes]
        self.space = Partitioned(comm, sizes, own.natural(box), dtype, device)
        self.reach = own.grown(1, grid)
        inside = Box(1, columns - 1, 1, rows - 1)
        inner = box.cut(inside)
        self.active = own.cut(inside)
        self.last = self.active.y1 == inner.y1, self.active.x1 == inner.x1
        self._seen = self.active.grown(1, grid) if self.active.n else self.active
        self._kept = self._seen.cut(own)
        i, j = own.nodes()
        on_edge = ((i == 0) | (i == columns - 1) | (j == 0) | (j == rows - 1)).reshape(-1)
        self._edge = on_edge.nonzero()[:, 0].to(device)
        self._edge_values = self._boundary(own)[self._edge]
        self._penalty = self.h[1] / self.h[0] + self.h[0] / self.h[1]
        self._frame = torch.zeros(self._seen.shape, dtype=dtype, device=device)
        source = energy.source(*self.coordinates(self.active))
        self._source = None if source is None else self.h[0] * self.h[1] * source.view(self.active.shape)

    def coordinates(self, box: Box) -> tuple[Tensor, Tensor]:
        """Return x and y of the nodes of a box, each of shape (n,). Not collective."""
        i, j = box.nodes()
        dtype, device = self.space.dtype, self.space.device
        # Whole numbers times a spacing would be rounded to torch's default type.
        return i.reshape(-1).to(device, dtype) * self.h[0], j.reshape(-1).to(device, dtype) * self.h[1]

    def _boundary(self, box: Box) -> Tensor:
        return self.energy.boundary(*self.coordinates(box))

    @cached_property
    def _dirichlet(self) -> tuple[Tensor, Tensor]:
        """Places in the array of what is seen, and Dirichlet values, of the boundary's nodes there."""
        rows, columns = self.grid.shape
        i, j = (n.reshape(-1) for n in self._seen.nodes())
        places = ((i == 0) | (i == columns - 1) | (j == 0) | (j == rows - 1)).nonzero()[:, 0].to(self.space.device)
        return places, self._boundary(self._seen)[places]

    @cached_property
    def _halo(self) -> tuple[Scatter, Tensor]:
        """The scatter that brings the neighbours' nodes of the box, and their places. Collective."""
        i, j = (n.reshape(-1) for n in self._seen.nodes())
        own, box = self.own, self.box
        mine = (i >= own.x0) & (i < own.x1) & (j >= own.y0) & (j < own.y1)
        within = (i >= box.x0) & (i < box.x1) & (j >= box.y0) & (j < box.y1)
        places = (within & ~mine).nonzero()[:, 0]
        seen = self._seen.cut(box)
        numbers = torch.full(self._seen.shape, -1)
        if seen.n:
            numbers[seen.part(self._seen)] = self.partition.numbers(seen).view(seen.shape)
        return Scatter(self.space, numbers.view(-1)[places]), places.to(self.space.device)

    def freeze(self, around: Tensor) -> Tensor:
        """Take the values of `reach`, shape (reach.n,), as the state; return those of `own`. Not collective."""
        values = around.view(self.reach.shape)
        if self._seen.n:
            self._frame.copy_(values[self._seen.part(self.reach)])
        return values[self.own.part(self.reach)].reshape(-1).clone()

    def state(self, x: Tensor) -> Tensor:
        """Return the array of what is seen, shape (rows + 2, columns + 2). Collective."""
        return self._filled(self._frame.clone(), x, self._dirichlet[1])

    def direction(self, d: Tensor) -> Tensor:
        """Return the same of a direction, along which frozen and Dirichlet values stay. Collective."""
        return self._filled(torch.zeros_like(self._frame), d, torch.zeros_like(self._dirichlet[1]))

    def along(self, around: Tensor) -> tuple[Tensor, Tensor]:
        """Return a direction given in `reach`, shape (reach.n,), as what is seen and as stored, (n_local,).

        Dirichlet values stay along it. Not collective.
        """
        values, v = around.view(self.reach.shape), torch.zeros_like(self._frame)
        if self._seen.n:
            v.copy_(values[self._seen.part(self.reach)])
            v.view(-1)[self._dirichlet[0]] = 0.0
        return v, values[self.own.part(self.reach)].reshape(-1)

    def _filled(self, v: Tensor, x: Tensor, boundary: Tensor) -> Tensor:
        if self.comm.size > 1:
            scatter, places = self._halo
            v.view(-1)[places] = scatter.forward(x)
        if self._kept.n:
            v[self._kept.part(self._seen)] = x.view(self.own.shape)[self._kept.part(self.own)]
        v.view(-1)[self._dirichlet[0]] = boundary
        return v

    def value(self, v: Tensor, x: Tensor) -> float:
        """Return the energy. Collective."""
        gap = x[self._edge] - self._edge_values
        mine = self._penalty * (gap * gap).sum()
        if self.active.n:
            mine = mine + self.energy.value(v, self.h, self.last)
            if self._source is not None:
                mine = mine - (self._source * v[1:-1, 1:-1]).sum()
        return float(self.comm.allgather(mine.cpu().numpy()).sum())

    def gradient(self, v: Tensor, x: Tensor) -> Tensor:
        """Return its gradient. Not collective."""
        g = torch.zeros_like(x)
        g[self._edge] = 2 * self._penalty * (x[self._edge] - self._edge_values)
        if self.active.n:
            slope = self.energy.slope(v, self.h)
            self._place(g, slope if self._source is None else slope - self._source)
        return g

    def action(self, v: Tensor, d: Tensor, x: Tensor) -> Tensor:
        """Return the Hessian at the state v times the direction d, seen as d and stored as x. Not collective."""
        g = torch.zeros_like(x)
        g[self._edge] = 2 * self._penalty * x[self._edge]
        if self.active.n:
            self._place(g, self.energy.action(v, d, self.h))
        return g

    def _place(self, g: Tensor, inside: Tensor) -> None:
        g.view(self.own.shape)[self.active.part(self.own)] = inside

    @property
    def cost(self) -> Cost:
        """Operations over all ranks."""
        objective, gradient = self.energy.flops
        return Cost(objective * self.box.n, gradient * self.box.n)


class _OnGrid(Problem):
    """What the whole problem and its restrictions have in common."""

    part: Part

    def _begin(self, part: Part) -> None:
        self.part, self.comm, self.space = part, part.comm, part.space
        self.samples = 1
        self.layers = self.tensors = (slice(0, part.space.n),)

    def objective(self, x: Tensor) -> float:
        return self.part.value(self.part.state(x), x)

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        v = self.part.state(x)
        return self.part.value(v, x), self.part.gradient(v, x)

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        part = self.part
        return part.action(part.state(x), part.direction(v), v)

    def linearize(self, x: Tensor) -> Linearization:
        raise UnsupportedError("an energy on a grid is not a sum of squares: Gauss-Newton needs residuals; use qn")

    def metric(self) -> Tensor:
        """Return hx hy for every node: the inner product of L2. Not collective."""
        return torch.full_like(self.space.zeros(), self.part.h[0] * self.part.h[1])

    @property
    def cost(self) -> Cost:
        return self.part.cost

    def terms(self, x: Tensor) -> dict[str, float]:
        return {"energy": self.objective(x)}

    def view(self) -> list[str]:
        rows, columns = self.part.box.shape
        across, up = self.part.partition.across, self.part.partition.up
        return [f"{self.part.energy.title} on {columns} x {rows} nodes, {across} x {up} boxes of ranks"]


class GridProblem(_OnGrid):
    """An energy on the unit square.

    Parameters
    ----------
    shape
        Nodes in either direction, (mx, my), boundary included.

    Raises
    ------
    UserError
        If the grid has fewer lines than the ranks need.
    """

    def __init__(
        self,
        comm: Communicator,
        energy: Energy,
        shape: tuple[int, int],
        dtype: torch.dtype = torch.float64,
        device: torch.device = CPU,
    ) -> None:
        self.energy, self.grid = energy, Box(0, shape[0], 0, shape[1])
        self._begin(Part(comm, energy, self.grid, self.grid, dtype, device))

    def guess(self) -> Tensor:
        """Return the initial guess, shape (n_local,). Not collective."""
        own = self.part.own
        x = self.energy.guess(*self.part.coordinates(own))
        v = x.clone()
        v[self.part._edge] = self.part._edge_values
        return v

    def exact(self) -> Tensor | None:
        """Return the exact solution of the differential equation, shape (n_local,), if one is known. Not collective."""
        return self.energy.exact(*self.part.coordinates(self.part.own))

    def on(self, comm: Communicator) -> GridProblem:
        rows, columns = self.grid.shape
        return GridProblem(comm, self.energy, (columns, rows), self.space.dtype, self.space.device)

    def sample(self, rows: Tensor) -> GridProblem:
        assert rows.tolist() == [0], "an energy is one sample"
        return self

    def block_cost(self, block: Block) -> Cost:
        if isinstance(block, BoxBlock):
            objective, gradient = self.energy.flops
            return Cost(objective * block.n, gradient * block.n)
        return self.cost

    def coarsen(self, how: Coarsening) -> tuple[Problem, Transfer]:
        """Return the energy on every c-th grid line in both directions, and bilinear interpolation. Collective.

        Raises
        ------
        UnsupportedError
            If a grid line does not stay, or something else than bilinear interpolation and injection is asked for.
        """
        rows, columns = self.grid.shape
        c = how.factor
        if how.kind != "grid":
            raise UnsupportedError(f"an energy on a grid cannot be coarsened in {how.kind}; use -dm_hierarchy grid")
        if not how.linear or how.average:
            raise UnsupportedError("a grid is coarsened by bilinear interpolation (linear) and injection")
        if (rows - 1) % c or (columns - 1) % c or min(rows, columns) - 1 < 2 * c:
            raise UnsupportedError(
                f"{columns} x {rows} nodes cannot be coarsened by {c}: choose -da_grid_x and -da_grid_y as 1 plus a "
                f"multiple of {c} for every level, or fewer levels"
            )
        shape = (columns - 1) // c + 1, (rows - 1) // c + 1
        coarse = GridProblem(self.comm, self.energy, shape, self.space.dtype, self.space.device)
        return coarse, Bilinear(coarse.part, self.part, c)

    def restrict(self, block: Block) -> Restriction:
        return GridRestriction(self, block) if isinstance(block, BoxBlock) else Restriction(self, block)


class GridRestriction(_OnGrid, Restriction):
    """The energy of a box, with the values around it frozen: L up to a constant, in the box's share of the time.

    Its unknowns are dealt to the ranks of the problem as the whole ones are.
    """

    def __init__(self, parent: GridProblem, block: BoxBlock) -> None:
        self.parent, self.block = parent, block
        space = parent.space
        self._begin(Part(parent.comm, parent.energy, parent.grid, block.box, space.dtype, space.device))

    def rebase(self, x: Tensor) -> Tensor:
        return self.freeze(x[self.part.reach.natural(self.part.grid).to(x.device)])

    def freeze(self, around: Tensor) -> Tensor:
        """Freeze what is around the block, given in `part.reach`, shape (reach.n,); return the block's own values.

        Not collective.
        """
        return self.part.freeze(around)

    def rows(self, x: Tensor, around: Tensor) -> Tensor:
        """Return R H v of the whole energy, for a direction v given in `part.reach`, frozen values included.

        Collective.
        """
        seen, own = self.part.along(around)
        return self.part.action(self.part.state(x), seen, own)

    def on(self, comm: Communicator) -> GridRestriction:
        raise UnsupportedError("the restriction to a box stays on its ranks; restrict the problem on the others")

    def coarsen(self, how: Coarsening) -> tuple[Problem, Transfer]:
        raise UnsupportedError("the restriction to a box cannot be coarsened; coarsen the problem on the whole grid")

    def sample(self, rows: Tensor) -> GridRestriction:
        assert rows.tolist() == [0], "an energy is one sample"
        return self

    def block_cost(self, block: Block) -> Cost:
        return self.cost
