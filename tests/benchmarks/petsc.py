"""Time an evaluation that PETSc asks for against the same evaluation alone: Burgers, 8 x 20, 10,000 points.

    OMP_NUM_THREADS=1 python tests/benchmarks/petsc.py
    OMP_NUM_THREADS=1 mpirun -n 2 python tests/benchmarks/petsc.py

The contenders take turns, each at a point of its own; medians of process time are printed, and their ratio. The last
line is a whole iteration of TAO's lmvm against its evaluations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from ml2hpc.apps.pinn import build
from ml2hpc.comm import Communicator
from ml2hpc.options import Database
from ml2hpc.petsc import attach, load, reading, writing
from ml2hpc.problem.ansatz import collocate
from ml2hpc.problem.pinn import PinnProblem
from ml2hpc.snes import create

TURNS = 200  # one turn differs from the next by a tenth on a busy machine


def burgers(comm: Communicator) -> tuple[PinnProblem, torch.Tensor]:
    pde, options, model, x = build(Database.from_string(""), torch.float64, 0)
    terms = collocate(pde, n=options.points, n_face=1, sampler="sobol", seed=0, dtype=torch.float64, weight=1.0)
    return PinnProblem(comm, model, terms), x


def medians(contenders: list[Callable[[], object]], turns: int) -> list[float]:
    """Milliseconds of each, taking turns; the first three turns warm up."""
    times: list[list[float]] = [[] for _ in contenders]
    for turn in range(turns + 3):
        for contender, measured in zip(contenders, times, strict=True):
            start = time.process_time()
            contender()
            if turn >= 3:
                measured.append(1e3 * (time.process_time() - start))
    return [statistics.median(measured) for measured in times]


def main() -> None:
    comm = Communicator.world()
    problem, x0 = burgers(comm)
    petsc = load()
    generator = torch.Generator().manual_seed(0)

    def moved() -> torch.Tensor:
        return x0 + 1e-3 * torch.randn(len(x0), generator=generator, dtype=x0.dtype)

    names = ["alone"]
    contenders: list[Callable[[], object]] = [lambda: problem.value_and_gradient(moved())]
    for name, where in (("whole vectors", petsc.COMM_SELF), ("slices", comm.mpi)):
        snes = petsc.SNES().create(where)
        x = attach(snes, problem)
        f = x.duplicate()
        low, high = x.getOwnershipRange()

        def evaluate(snes=snes, x=x, f=f, low=low, high=high) -> None:
            with writing(x) as values:
                values.copy_(moved()[low:high])
            snes.computeFunction(x, f)
            reading(f)

        names.append(name)
        contenders.append(evaluate)
    found = medians(contenders, TURNS)

    def iterations() -> None:
        solver.solve(x0)

    database = Database.from_string("-snes_type petsc -snes_max_it 10 -snes_stol 0")
    solver = create(database)
    solver.set_up(problem)
    solve = medians([iterations], 5)[0]
    per_solve = solver.work["gradients", "path"] / 8
    if comm.rank == 0:
        for name, milliseconds in zip(names, found, strict=True):
            print(f"{name:15s} {milliseconds:8.2f} ms, {milliseconds / found[0]:.4f} of an evaluation")
        print(
            f"lmvm, 10 its    {solve:8.2f} ms, {solve / per_solve / found[0]:.4f} for each of {per_solve:.0f} gradients"
        )


if __name__ == "__main__":
    main()
