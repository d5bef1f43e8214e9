"""Train a network from a PETSc program: PETSc's solver outside, a tree of ml2hpc as its preconditioner inside.

The problem is that of `ml2hpc.apps.pinn`, L(theta) over the network's parameters. Here the program is PETSc's: it
creates a SNES, gives it L, the gradient and the Hessian's action, and PETSc solves grad L = 0. With no options that is

    NGMRES (PETSc)  preconditioned on the right by  ASPQN (ml2hpc): quasi-Newton steps, preconditioned in their turn by
                                                    nonlinear additive Schwarz, one subdomain per two layers

PETSc has slices of the vectors, and its inner products are its own; the tree has whole ones, and its iterates have the
same bits on any number of ranks. All options but -pinn_... and -net_... are PETSc's; among them those of the tree, with
`ml2hpc_` behind the prefix of the PETSc solver that runs it.

Needs PETSc: bash jobscripts/petsc.sh.

Things to try
-------------
Another solver outside, or none inside:

    mpirun -n 4 python -m ml2hpc.apps.petsc -snes_monitor -snes_view
    mpirun -n 4 python -m ml2hpc.apps.petsc -snes_type anderson -snes_monitor
    mpirun -n 4 python -m ml2hpc.apps.petsc -npc_snes_type ncg -snes_max_it 100

The tree alone, run by PETSc:

    python -m ml2hpc.apps.petsc -snes_type python -snes_python_type ml2hpc.petsc.SNES -ml2hpc_snes_type qn

The other way round, PETSc's solvers in the trees of ml2hpc, needs no program of its own:

    mpirun -n 4 python -m ml2hpc.apps.pinn -snes_type petsc -petsc_tao_type lmvm -snes_max_it 200 -snes_monitor
    python -m ml2hpc.apps.pinn -snes_type petsc -snes_petsc_solver snes -petsc_snes_type ngmres -petsc_npc_snes_type ncg
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor

from ml2hpc import petsc
from ml2hpc.apps.pinn import build
from ml2hpc.comm import Communicator, end_all_on_error
from ml2hpc.errors import OptionsError
from ml2hpc.options import Database
from ml2hpc.problem.ansatz import collocate
from ml2hpc.problem.pinn import PinnProblem

PROGRAM = {"snes_type": "ngmres", "snes_max_it": "10"}
INNER = {
    "npc_snes_type": "python",
    "npc_snes_python_type": "ml2hpc.petsc.SNES",
    "npc_snes_max_it": "2",
    "npc_ml2hpc_snes_type": "qn",
    "npc_ml2hpc_npc_snes_type": "nasm",
    "npc_ml2hpc_npc_dm_subdomains": "2",
    "npc_ml2hpc_npc_sub_snes_qn_type": "ssbroyden",
    "npc_ml2hpc_npc_sub_snes_max_it": "10",
}
SMALL = {"net_depth": "4", "net_width": "10", "pinn_points": "1000"}


def divide(argv: list[str]) -> tuple[Database, dict[str, str]]:
    """Return the network's and the problem's options, over small ones, and PETSc's. Not collective."""
    given = Database.from_sources(argv=argv, environment=os.environ).foreign("")
    ours = {name: value for name, value in given.items() if name.startswith(("pinn_", "net_"))}
    return Database.from_dict(SMALL | ours), {name: given[name] for name in given if name not in ours}


def hand_over(given: dict[str, str], names: Any) -> None:
    """Put PETSc's options in its database; the default tree stands as a whole. Not collective."""
    alone = not {"npc_snes_type", "snes_python_type"} & set(given)
    for name, value in (PROGRAM | (INNER if alone else {}) | given).items():
        names.setValue(name, value or None)


def main(argv: list[str]) -> None:
    """Run the app on all ranks."""
    end_all_on_error()
    library = petsc.load()
    comm = Communicator.world()
    database, given = divide(argv)
    pde, chosen, model, start = build(database, torch.float64, seed=0)
    terms = collocate(
        pde,
        n=chosen.points,
        n_face=chosen.face_points,
        sampler=chosen.sampler,
        seed=0,
        dtype=torch.float64,
        weight=chosen.condition_weight,
    )
    problem = PinnProblem(comm, model, terms)
    database.check_unused()
    hand_over(given, library.Options())

    snes = library.SNES().create(comm.mpi)
    x = petsc.attach(snes, problem)
    snes.setFromOptions()
    with petsc.writing(x) as mine:
        mine.copy_(sliced(start, x))
    before = snes.computeObjective(x)
    snes.solve(None, x)
    left = [name for name in given if not library.Options().used(name)]
    if left:
        raise OptionsError(f"unknown option -{', -'.join(left)}: neither PETSc nor the tree reads it")
    after, norm = snes.computeObjective(x), snes.getFunctionNorm()
    if comm.rank == 0:
        how = f"{snes.getType()} on {comm.size} rank(s), {snes.getIterationNumber()} iterations"
        print(f"PETSc's {how}: loss {before:.6e} -> {after:.6e}, gradient norm {norm:.3e}")


def sliced(whole: Tensor, x: Any) -> Tensor:
    """Return the slice of a whole vector (n,) that a Vec has here. Not collective."""
    low, high = x.getOwnershipRange()
    return whole[low:high]


# test: mpirun -n 1 python -m ml2hpc.apps.petsc -snes_max_it 2
# test: mpirun -n 4 python -m ml2hpc.apps.petsc -snes_max_it 2 -snes_monitor -snes_view
# test: mpirun -n 4 python -m ml2hpc.apps.petsc -npc_snes_type ncg -snes_max_it 5
# test: echo "-pinn_points 1000 -net_depth 3 -snes_max_it 5" > small.opts
# test: mpirun -n 4 python -m ml2hpc.apps.pinn -options_file small.opts -snes_type petsc -petsc_tao_type lmvm
# test: echo "-snes_type petsc -snes_petsc_solver snes -petsc_snes_type ngmres -petsc_npc_snes_type ncg" >> small.opts
# test: mpirun -n 1 python -m ml2hpc.apps.pinn -options_file small.opts -petsc_snes_monitor
# test: mpirun -n 4 python -m ml2hpc.apps.pinn -options_file small.opts
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -restart run.h5 -snes_max_it 7
if __name__ == "__main__":
    main(sys.argv[1:])
