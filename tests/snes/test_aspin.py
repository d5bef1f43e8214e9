"""ASPIN: its operator against differences and dense algebra, its iterations against Newton's, the recipe, ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.snes import SNES, Point, Reason
from ml2hpc.snes.newtonls import NewtonLS
from tests.problem.small import everyone, pinn, random, relative
from tests.snes.problems import Analytic, matrix, quadratic, rosenbrock, tree, world

BLOCKS = "-npc_dm_decomposition blocks -npc_dm_subdomains 2"
EXACT = "-npc_sub_snes_rtol 1e-13 -npc_sub_ksp_rtol 1e-13"


def start(n: int = 6) -> Tensor:
    return torch.linspace(0.4, 1.2, n, dtype=torch.float64)


def coupled(comm) -> Analytic:
    """Two Rosenbrock functions of three unknowns, weakly coupled: all that is nonlinear is local."""

    def f(x: Tensor, d: Tensor) -> Tensor:
        left = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)[[0, 1, 3, 4]].sum()
        return left + (x[2] - x[3]) ** 2

    return Analytic(comm, f, 6)


def point_of(solver: SNES, x: Tensor) -> Point:
    return solver.point(x, *solver.gradient(x))


@pytest.mark.parametrize(
    "options",
    [
        "",
        "-npc_dm_overlap 1",
        "-npc_dm_overlap 1 -npc_snes_nasm_type restrict",
        "-npc_dm_overlap 1 -npc_snes_nasm_type basic -npc_snes_nasm_damping 0.7",
        "-npc_snes_nasm_combine average -npc_snes_linesearch_type wolfe",
    ],
)
def test_the_operator_is_the_derivative_of_the_residual(comm, options):
    solver = tree(f"-snes_type aspin {BLOCKS} {EXACT} {options}", coupled(world(comm)))
    x, v, h = start(), random(6, 1), 1e-5
    ahead, behind = point_of(solver, x + h * v).r, point_of(solver, x - h * v).r
    action = solver.residual_action(point_of(solver, x))
    assert action is not None
    assert relative(action(v), (ahead - behind) / (2 * h)) < 1e-7


def test_the_operator_of_a_quadratic_is_block_jacobi(comm):
    """sum_s E_s A_ss^-1 R_s A."""
    solver = tree(f"-snes_type aspin {BLOCKS} {EXACT}", quadratic(world(comm)))
    action, a = solver.residual_action(point_of(solver, start(8))), matrix(8)
    assert action is not None
    inverse = torch.block_diag(*(torch.linalg.inv(a[s, s]) for s in (slice(0, 4), slice(4, 8))))
    v = random(8, 2)
    assert relative(action(v), inverse @ (a @ v)) < 1e-9


@pytest.mark.parametrize(
    "options", ["-npc_snes_nasm_type multiplicative", "-npc_snes_linesearch_type bt", "-npc_sub_snes_type qn"]
)
def test_what_has_no_derivative_is_differenced(comm, options):
    """Still Newton's method: few iterations."""
    options = f"-snes_type aspin {BLOCKS} {options.replace('_type qn', '_type qn -npc_sub_snes_rtol 1e-12')}"
    options = options if "qn" in options else f"{options} {EXACT}"
    solver = tree(f"{options} -snes_rtol 1e-6", quadratic(world(comm)))
    assert solver.residual_action(point_of(solver, start(8))) is None
    point = solver.solve(start(8))
    assert solver.reason == Reason.CONVERGED_FNORM_RELATIVE
    assert solver.iteration <= 8
    assert point.f < 1e-10


def test_fewer_outer_iterations_than_newton(comm):
    """What is nonlinear within a block is solved there: a third of Newton's iterations."""
    counts = {}
    for kind in (f"aspin {BLOCKS}", "newtonls -ksp_type preonly -pc_type lu"):
        solver = tree(f"-snes_type {kind}", coupled(world(comm)))
        point = solver.solve(torch.full((6,), -0.5, dtype=torch.float64))
        assert solver.reason == Reason.CONVERGED_FNORM_RELATIVE
        assert point.f < 1e-12
        counts[kind.split()[0]] = solver.iteration
    assert 3 * counts["aspin"] <= counts["newtonls"]


def test_local_work_is_counted(comm):
    solver = tree(f"-snes_type aspin {BLOCKS} -npc_sub_ksp_max_it 1 -ksp_max_it 2 -ksp_rtol 0", quadratic(world(comm)))
    point = point_of(solver, start(8))
    action = solver.residual_action(point)
    assert action is not None
    before = solver.work["hessians", "path"], solver.work["hessians", "total"]
    action(start(8))
    # On each of two subdomains: an action of the whole Hessian, and one local action.
    assert solver.work["hessians", "path"] - before[0] == 2
    assert solver.work["hessians", "total"] - before[1] == 4


def test_the_recipe_is_a_set_of_defaults(comm):
    solver = tree("-snes_type aspin -npc_dm_subdomains 2", quadratic(world(comm)))
    assert solver.brief() == "aspin(gmres) + left npc nasm(additive, 2 layers) of newtonls(minres)"
    preferred = tree("-snes_type aspin -npc_dm_subdomains 2", quadratic(world(comm)), npc_sub_ksp_type="cg")
    assert preferred.brief().endswith("of newtonls(cg)")  # the caller's defaults are stronger
    chosen = tree("-snes_type aspin -npc_dm_subdomains 2 -npc_sub_1_ksp_type gmres", quadratic(world(comm)))
    assert chosen.npc is not None
    methods = [sub.method for sub in chosen.npc.method._subs]  # type: ignore[attr-defined]
    assert [m.ksp.options.type for m in methods if isinstance(m, NewtonLS)] == ["minres", "gmres"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ("-npc_snes_type none", OptionsError, "use -snes_type newtonls"),
        ("-snes_npc_side right", UnsupportedError, "aspin supports left only"),
        ("-ksp_type minres", OptionsError, "use -ksp_type gmres"),
    ],
)
def test_what_is_no_aspin_is_refused(comm, options, error, message):
    with pytest.raises(error, match=message):
        tree(f"-snes_type aspin {options}", quadratic(world(comm)))


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("kind", ["additive", "restrict"])
def test_any_number_of_ranks_gives_the_same_bits(comm, kind):
    options = f"-snes_type aspin {BLOCKS} -npc_dm_overlap 1 -npc_snes_nasm_type {kind} -snes_max_it 3 -snes_rtol 0"
    here, alone = (tree(options, rosenbrock(c)) for c in (world(comm), world(comm).alone()))
    assert torch.equal(here.solve(start()).x, alone.solve(start()).x)
    assert (here.work.counts == alone.work.counts).all()


@pytest.mark.parallel(1, 2, 3)
def test_a_pinn_has_the_same_iterates_on_any_number_of_ranks(comm):
    problem, x = pinn(comm=everyone(comm), n=16, depth=2)
    options = "-snes_type aspin -npc_dm_subdomains 2 -npc_sub_snes_max_it 1 -npc_sub_ksp_max_it 3 -ksp_max_it 2"
    options += " -snes_max_it 2 -snes_rtol 0 -snes_stol 0"
    here = tree(options, problem).solve(x)
    alone = tree(options, problem.on(problem.comm.alone())).solve(x)
    assert torch.equal(here.x, alone.x)
    assert here.f < problem.objective(x)
