r"""Solve a nonlinear equation on a grid: Bratu's, or that of a minimal surface.

The Bratu problem -laplace u - lambda e^u = 0 on the unit square, u = 0 on its boundary, discretised by the 5-point
stencil and multiplied by hx hy, is PETSc's SNES example 5: the residual

    F_ij = 2 (hy/hx + hx/hy) u_ij - hy/hx (u_W + u_E) - hx/hy (u_S + u_N) - hx hy lambda e^u_ij

is the gradient of a discrete energy L, which is what solvers here minimise. Vectors are partitioned as PETSc's DMDA
partitions them: each rank holds a box of nodes and receives one line of neighbours for an evaluation; no step of a
solver assembles a whole vector.

    mpirun -n 4 python -m ml2hpc.apps.bratu -da_grid_x 65 -da_grid_y 65

Below the fold, lambda = 6.808, L has a local minimum but no lower bound: for lambda above, or from a start too high,
the energy falls for ever and the solve ends with a DIVERGED reason.

Things to try
-------------
Nonlinear Schwarz on overlapping boxes, alone or as a preconditioner; the second line is PETSc's own example:

    mpirun -n 4 python -m ml2hpc.apps.bratu -npc_snes_type nasm -da_overlap 2 -npc_sub_snes_max_it 10
    mpirun -n 4 python -m ml2hpc.apps.bratu -bratu_mms 1 -da_grid_x 49 -da_grid_y 49 -da_overlap 3 -snes_monitor \
        -snes_type nasm -snes_nasm_type restrict -snes_linesearch_type none -sub_snes_max_it 500 -snes_max_it 10

Nonlinear multigrid, whose number of cycles does not depend on the grid:

    mpirun -n 4 python -m ml2hpc.apps.bratu -options_file apps/options/bratu_fas.opts

Everything else:

    python -m ml2hpc.apps.bratu -help
    mpirun -n 4 python -m ml2hpc.apps.bratu -snes_monitor -snes_view -log_view
    python -m ml2hpc.apps.bratu -bratu_par 6.8 -da_grid_x 65 -da_grid_y 65
    python -m ml2hpc.apps.bratu -bratu_mms 1 -da_grid_x 81 -da_grid_y 81 -snes_monitor      # the example's default
    mpirun -n 2 python -m ml2hpc.apps.bratu -bratu_problem minimal_surface
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc.errors import OptionsError
from ml2hpc.io import xdmf
from ml2hpc.options import option
from ml2hpc.problem.energies import Bratu, Energy, MinimalSurface
from ml2hpc.problem.grid import GridOptions, GridProblem
from ml2hpc.run import Run
from ml2hpc.snes import SNES, Point
from ml2hpc.vec import Layout

Tree = dict[str, Any]

TREE: dict[str, Any] = {"snes_type": "qn"}  # one method for any size; its memory is partitioned as the vectors are
# Where a tree may decompose: the solver itself, its preconditioner, and their parts.
DECOMPOSES = ("", "npc_", "sub_", "npc_sub_", "sub_npc_")


@dataclass(frozen=True)
class BratuOptions:
    """Options `-bratu_*`."""

    problem: Literal["bratu", "minimal_surface"] = option(
        "bratu", "the Bratu problem, or the minimal surface with Scherk's boundary values"
    )
    # As in the example that residual norms are compared with; the fold is at 6.808.
    par: float = option(6.0, "lambda of the Bratu problem", at_least=0.0)
    # The equation as it is usually meant; the example's own default is 1.
    mms: Literal["0", "1"] = option(
        "0", "right-hand side of the Bratu problem: 0, or 1 for the one whose solution is x (1 - x) y (1 - y)"
    )


def build(run: Run) -> tuple[GridProblem, Tree]:
    """Return the problem and the defaults of any tree as the options say. Collective.

    There is one subdomain per rank, or as many as there were in the run that goes on.
    """
    options = run.read(BratuOptions, stem="bratu_", title="Problem on a grid")
    grid = run.read(GridOptions, stem="da_", title="Grid (DA)")
    if run.options.vec_type != "replicated":
        raise OptionsError(f"-vec_type {run.options.vec_type}: vectors on a grid are partitioned already; leave it out")
    energy: Energy = (
        Bratu(options.par, manufactured=options.mms == "1") if options.problem == "bratu" else MinimalSurface()
    )
    restored = run.restored["configuration"] if run.restored is not None else {}
    default = {
        "dm_decomposition": "boxes",
        "dm_subdomains": int(restored.get("subdomains", run.comm.size)),
        "dm_overlap": grid.overlap,
        "dm_hierarchy": ("grid",),
    }
    problem = GridProblem(run.comm, energy, (grid.grid_x, grid.grid_y), run.dtype, run.device)
    return problem, {prefix + name: value for prefix in DECOMPOSES for name, value in default.items()}


class Solution:
    """What is known of u: its maximum, and its error where there is an exact solution."""

    def __init__(self, problem: GridProblem) -> None:
        self.problem = problem
        self.exact = problem.exact()

    def maximum(self, x: Tensor) -> float:
        """Return max u. Collective."""
        return float(self.problem.comm.largest(x.max().cpu().numpy()))

    def error(self, x: Tensor) -> float:
        """Return the relative L2 error, not-a-number where no exact solution is known. Collective."""
        if self.exact is None:
            return float("nan")
        space = self.problem.space
        return space.norm(x - self.exact) / space.norm(self.exact)

    def fields(self, x: Tensor) -> Tree:
        """Return axes, u and, if known, exact solution and error, on the whole grid. Collective."""
        axes = self.axes()
        tree: Tree = {**axes, "u": self._whole(x), "points": xdmf.points(axes)}
        if self.exact is not None:
            tree |= {"reference": self._whole(self.exact), "error": self._whole(x - self.exact)}
        return tree

    def axes(self) -> dict[str, NDArray[np.float64]]:
        """Return the coordinates of the grid lines. Not collective."""
        rows, columns = self.problem.grid.shape
        return {"x": np.linspace(0.0, 1.0, columns), "y": np.linspace(0.0, 1.0, rows)}

    def _whole(self, x: Tensor) -> NDArray[np.float64]:
        whole = self.problem.space.gather(x).view(self.problem.grid.shape)
        return np.ascontiguousarray(whole.T.to(torch.float64).cpu().numpy())


def main(argv: list[str]) -> None:
    """Run the app on all ranks."""
    run = Run("bratu", argv)
    problem, defaults = build(run)
    solver = run.solver(TREE, defaults)
    run.ready(solver)
    energy, (rows, columns) = problem.energy, problem.grid.shape
    solution = Solution(problem)
    run.print(f"{energy.title}: {columns} x {rows} nodes; {run.comm.size} rank(s)")
    if isinstance(energy, Bratu) and energy.parameter > Bratu.fold and not energy.manufactured:
        run.print(f"warning: there is no solution above the fold, lambda = {Bratu.fold:.4g}")

    def measure(solver: SNES, point: Point) -> dict[str, float]:
        return {"error": solution.error(point.x)}

    def describe(point: Point, last: bool) -> Tree:
        names: Tree = {"title": energy.title, "coordinates": "x y", "fields": "u", "problem": energy.name}
        names["subdomains"] = defaults["dm_subdomains"]
        return {"configuration": names, "solution": solution.fields(point.x)}

    nodes = torch.nn.ParameterDict({"u": torch.nn.Parameter(torch.empty(rows, columns, device="meta"))})
    point = run.solve(
        solver,
        problem,
        problem.space.gather(problem.guess()),
        layout=Layout(nodes),
        identity={"problem": energy.title, "network": f"{columns} x {rows} nodes", "dtype": run.options.dtype},
        describe=describe,
        measure=measure,
    )
    report(run, solver, solution, point)


def report(run: Run, solver: SNES, solution: Solution, point: Point) -> None:
    """Print how the run ended; write the XDMF file. Collective."""
    if run.comm.rank == 0:
        fields = ["u"] if solution.exact is None else ["u", "reference", "error"]
        xdmf.write(run.options.output, solution.axes(), fields, points="points")
    norm, maximum, error = solver.problem.space.norm(point.g), solution.maximum(point.x), solution.error(point.x)
    run.print(f"{solver.ending()}, {run.seconds:.1f} s")
    run.print(f"energy {point.f:.12e}, residual norm {norm:.6e}, maximum of u {maximum:.9f}")
    if solution.exact is not None:
        run.print(f"relative L2 error {error:.6e}")
    run.print(f"results in {run.options.output}")


# test: python -m ml2hpc.apps.bratu -snes_max_it 30
# test: mpirun -n 4 python -m ml2hpc.apps.bratu -restart run.h5 -snes_max_it 200 -snes_view -log_view -snes_monitor
# test: mpirun -n 4 python -m ml2hpc.apps.bratu -bratu_problem minimal_surface -da_grid_x 17 -da_grid_y 25
# test: mpirun -n 4 python -m ml2hpc.apps.bratu -npc_snes_type nasm -da_overlap 2 -snes_max_it 2 -npc_sub_snes_max_it 9
# test: mpirun -n 2 python -m ml2hpc.apps.bratu -restart run.h5 -snes_max_it 4
# test: python -m ml2hpc.apps.bratu -restart run.h5 -snes_max_it 5
# test: mpirun -n 2 python -m ml2hpc.apps.bratu -snes_type nasm -snes_nasm_type multiplicative -snes_max_it 1
# test: mpirun -n 4 python -m ml2hpc.apps.bratu -options_file $CHECKOUT/apps/options/bratu_fas.opts -snes_max_it 2
# test: mpirun -n 2 python -m ml2hpc.apps.bratu -restart run.h5 -snes_max_it 4
# test: python -m ml2hpc.apps.bratu -snes_type qn -snes_qn_type ssbroyden -da_grid_x 9 -da_grid_y 9
# test: python -m ml2hpc.apps.plot run.h5
# test: test -s run_solution.png -a -s run_convergence.png
if __name__ == "__main__":
    main(sys.argv[1:])
