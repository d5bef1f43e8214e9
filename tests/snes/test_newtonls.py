"""Newton's method: rates, exact steps, saddles, forcing terms, what is refused, PINNs on several ranks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.problem.interface import ShardedProblem
from ml2hpc.snes import SNES, Reason
from ml2hpc.snes.interface import Point
from ml2hpc.snes.newton import Newton
from tests.problem.small import everyone, pinn, relative
from tests.snes.problems import Analytic, double_well, least_squares, matrix, quadratic, rosenbrock, tree, world

NEWTON = "-snes_type newtonls -snes_rtol 0 -snes_stol 0"
DIRECT = "-ksp_type preonly -pc_type lu"
SOLVERS = [DIRECT, "-ksp_type cg", "-ksp_type minres", "-ksp_type gmres"]


def start(n: int) -> Tensor:
    return torch.linspace(-0.5, 0.8, n, dtype=torch.float64)


def smooth(comm, n: int = 6) -> Analytic:
    """sum_i (exp x_i - x_i) + x' A x / 40: convex, its minimum n not far from 0, third derivatives everywhere."""
    a = matrix(n)
    return Analytic(comm, lambda x, d: (x.exp() - x).sum() + 0.025 * x @ (a @ x), n)


def errors_of(options: str, problem: Analytic, x: Tensor, minimum: Tensor) -> list[float]:
    found: list[float] = []

    def observe(solver: SNES, point: Point, norm: float, update: float) -> Reason:
        found.append(float((point.x - minimum).norm()))
        return Reason.CONVERGED_ITERATING

    solver = tree(f"{NEWTON} -snes_atol 1e-12 -snes_max_it 60 {options}", problem)
    solver.observe = observe
    solver.solve(x)
    assert solver.reason == Reason.CONVERGED_FNORM_ABS
    return found


def orders(errors: list[float]) -> list[float]:
    """Orders of convergence from three consecutive errors, above rounding."""
    triples = zip(errors, errors[1:], errors[2:], strict=False)
    return [math.log(c / b) / math.log(b / a) for a, b, c in triples if a < 0.5 and c > 1e-14]


@pytest.mark.parametrize("options", [DIRECT, *(f"{s} -snes_ksp_ew 0 -ksp_rtol 1e-12" for s in SOLVERS[1:])])
def test_convergence_is_quadratic(comm, options):
    errors = errors_of(options, smooth(world(comm)), start(6), torch.zeros(6, dtype=torch.float64))
    assert orders(errors)[-1] >= 1.9
    assert len(errors) <= 7


def test_gauss_newton_is_quadratic_where_residuals_vanish(comm):
    options = f"-snes_newtonls_model gn {DIRECT}"
    errors = errors_of(options, rosenbrock(world(comm)), torch.full((6,), 0.6).double(), torch.ones(6).double())
    small = [e for e in errors if 1e-13 < e < 3e-2]
    assert all(b < 10 * a**2 for a, b in pairwise(small))
    assert len(errors) <= 8


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_forcing_terms_converge_superlinearly(comm, version):
    options = f"-snes_ksp_ew_version {version}"
    errors = errors_of(options, smooth(world(comm)), start(6), torch.zeros(6, dtype=torch.float64))
    rates = [b / a for a, b in pairwise(errors) if b > 1e-12]
    assert rates[-1] < 0.1 * max(rates)
    assert rates[-1] < 0.02
    fixed = errors_of("-snes_ksp_ew 0 -ksp_rtol 0.3", smooth(world(comm)), start(6), torch.zeros(6).double())
    assert len(errors) < len(fixed)


@pytest.mark.parametrize(
    "options",
    [
        f"newtonls {DIRECT}",
        "newtonls -snes_ksp_ew 0 -ksp_rtol 1e-13",
        f"ksponly {DIRECT}",
        f"ksponly {DIRECT} -snes_ksponly_model gn",
        "ksponly -ksp_rtol 1e-13",
        "ksponly -ksp_rtol 1e-13 -ksp_type gmres",
    ],
)
def test_one_step_solves_linear_least_squares(comm, options):
    problem = least_squares(world(comm))
    point = tree(f"-snes_type {options} -snes_max_it 1", problem).solve(start(6))
    a, g = problem.linearize(start(6)).matrix(), problem.gradient(start(6))
    h = torch.stack([problem.hessian_action(start(6), e) for e in torch.eye(6, dtype=torch.float64)])
    assert relative(a, h) < 1e-14
    assert relative(point.x, start(6) - torch.linalg.solve(h, g)) < 1e-11


def test_a_linear_solve_that_raises_the_objective_is_not_taken(comm):
    problem = rosenbrock(world(comm))
    x = torch.linspace(0.6, 1.0, 6, dtype=torch.float64)
    solver = tree(f"-snes_type ksponly {DIRECT}", problem)
    point = solver.solve(x)
    assert torch.equal(point.x, x)
    assert "does not lower the objective" in solver.failure


@pytest.mark.parametrize("options", SOLVERS)
@pytest.mark.parametrize("first", [0.0376, 0.0386, -0.3, 0.2])
def test_neither_saddles_nor_maxima_attract(comm, options, first):
    """Beside the maximum 0.0377 in one unknown, near minima in the others: B^-1 g would go to the saddle."""
    problem = double_well(world(comm))
    x = torch.tensor([first, 1.2, -1.3, first], dtype=torch.float64)
    solver = tree(f"-snes_type newtonls {options}", problem)
    point = solver.solve(x)
    h = torch.stack([problem.hessian_action(point.x, e) for e in torch.eye(4, dtype=torch.float64)])
    assert float(torch.linalg.eigvalsh(h)[0]) > 1.0
    assert solver.reason == Reason.CONVERGED_FNORM_RELATIVE


@pytest.mark.parametrize("options", [DIRECT, "-snes_ksp_ew 0 -ksp_rtol 1e-13"])
def test_a_damped_step_solves_the_damped_system(comm, options):
    problem = quadratic(world(comm))
    options = f"{NEWTON} -snes_max_it 1 -snes_newtonls_damping 3 {options}"
    point = tree(options, problem).solve(start(8))
    a = matrix(8)
    step = torch.linalg.solve(a + 3 * torch.eye(8, dtype=torch.float64), a @ start(8))
    assert relative(point.x, start(8) - step) < 1e-11


@pytest.mark.parametrize(
    "option",
    [
        "snes_ksp_ew 0",
        "snes_ksp_ew_version 1 -snes_ksp_ew_gamma 0.5",
        "snes_ksp_ew_rtol0 0.01",
        "snes_ksp_ew_rtolmax 0.4 -snes_ksp_ew_rtol0 0.9 -snes_ksp_ew_version 2",
        "snes_ksp_ew_gamma 0.5",
        "snes_ksp_ew_alpha 2",
        "snes_ksp_ew_threshold 0.9 -snes_ksp_ew_rtol0 0.6 -snes_ksp_ew_version 2",
        "ksp_max_it 2",
        "ksp_atol 0.5",
        "ksp_rtol 0.2 -snes_ksp_ew 0",
    ],
)
def test_an_option_of_the_linear_solver_changes_the_result(comm, option):
    base = "".join(f" -{rest}" for rest in option.split(" -")[1:])
    ends = [tree(f"{NEWTON} -snes_max_it 3 {o}", smooth(world(comm))).solve(start(6)).x for o in (base, f"-{option}")]
    assert not torch.equal(*ends)


def test_actions_are_counted_with_their_share(comm):
    problem = least_squares(world(comm))
    counts = {}
    for model in ("hessian", "gn"):
        options = f"{NEWTON} -snes_max_it 1 -snes_newtonls_model {model} -ksp_max_it 3 -ksp_rtol 0 -snes_ksp_ew 0"
        solver = tree(options, problem)
        solver.solve(start(6))
        counts[model] = solver.work["hessians", "total"], solver.work["hessians", "work"]
    share = problem.linearize(start(6)).cost.action / problem.cost.hessian
    assert counts["hessian"] == (3.0, 3.0)
    assert counts["gn"][0] == 3.0
    assert counts["gn"][1] == pytest.approx(3.0 * share)
    direct = tree(f"{NEWTON} -snes_max_it 1 {DIRECT}", problem)
    direct.solve(start(6))
    assert direct.work["hessians", "path"] == 6.0


def test_a_replaced_problem_gets_a_sketch_of_its_own(comm):
    problem = rosenbrock(world(comm))
    solver = tree(f"{NEWTON} -snes_max_it 2 -pc_type nystrom -pc_nystrom_rank 2 -snes_ksp_ew 0", problem)
    solver.solve(start(6))
    method = solver.method
    assert isinstance(method, Newton)
    before = solver.work["hessians", "path"] - method.ksp.iterations
    assert before == 2  # one sketch for both systems
    solver.rebind(problem)
    solver.solve(start(6))
    assert solver.work["hessians", "path"] - method.ksp.iterations == 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ("-snes_newtonls_model gn", UnsupportedError, "is not a sum of squares"),
        ("-snes_npc_side left -npc_snes_type qn -ksp_type cg", OptionsError, "-ksp_type cg: .*not symmetric"),
        ("-snes_npc_side left -npc_snes_type qn -pc_type nystrom", OptionsError, "use -pc_type none"),
        ("-snes_npc_side left -npc_snes_type qn -snes_newtonls_damping 1", OptionsError, "derivative of its own"),
        ("-ksp_type preonly", OptionsError, "-pc_type none solves nothing"),
        ("-snes_ksp_ew_alpha 1", OptionsError, "must be above 1"),
    ],
)
def test_impossible_trees_are_refused(comm, options, error, message):
    with pytest.raises(error, match=message):
        tree(f"-snes_type newtonls {options}", smooth(world(comm)))


def test_the_view_shows_the_linear_solver(comm):
    solver = tree(
        f"{NEWTON} -snes_max_it 1 -ksp_type gmres -pc_type nystrom -pc_nystrom_rank 2", quadratic(world(comm))
    )
    solver.solve(start(8))
    view = solver.view()
    assert "model is HESSIAN, damping=0" in view
    assert "forcing terms by Eisenstat and Walker, version 3: rtol_0=0.3, rtolmax=0.9" in view
    assert "KSP type: gmres, maximum iterations=200, tolerances: relative=1e-05, absolute=1e-50, restart=30" in view
    assert "PC type: nystrom, rank=2, seed=0, every 20 operators" in view
    assert solver.brief() == "newtonls(gmres, nystrom)"


PARALLEL = [
    "",
    "-snes_newtonls_model gn",
    "-ksp_type minres",
    "-ksp_type gmres",
    "-pc_type nystrom -pc_nystrom_rank 10",
    f"-snes_newtonls_model gn -snes_newtonls_damping 1e-3 {DIRECT}",
]


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("options", PARALLEL)
def test_a_pinn_has_the_same_iterates_on_any_number_of_ranks(comm, options):
    problem, x = pinn(comm=everyone(comm))
    options = f"{NEWTON} -snes_max_it 3 {options}"
    here = tree(options, problem).solve(x)
    alone = tree(options, problem.on(problem.comm.alone())).solve(x)
    assert torch.equal(here.x, alone.x)
    assert here.f < 0.5 * problem.objective(x)


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("options", PARALLEL)
def test_sharded_vectors(comm, options):
    problem, x = pinn(comm=everyone(comm))
    sharded = ShardedProblem(problem)
    options = f"{NEWTON} -snes_max_it 1 {options} -ksp_max_it 5"  # long solves amplify the rounding of inner products
    here = tree(options, problem).solve(x)
    point = tree(options, sharded).solve(sharded.space.local(x).clone())
    assert relative(sharded.space.gather(point.x), here.x) < 1e-7


def test_ksponly_ends_where_its_linear_solve_does(comm):
    """PETSc's reason after one solve is CONVERGED_ITS; a linear solve that did not converge is no success."""
    good = tree("-snes_type ksponly -snes_rtol 1e-14", quadratic(world(comm)))
    good.solve(start(8))
    assert good.reason == Reason.CONVERGED_ITS
    short = tree("-snes_type ksponly -ksp_max_it 2", quadratic(world(comm)))
    short.solve(start(8))
    assert short.reason == Reason.DIVERGED_MAX_IT


@pytest.mark.parametrize("local", ["-npc_sub_snes_newtonls_damping 1", "-npc_sub_snes_newtonls_model gn"])
def test_aspins_derivative_does_not_depend_on_how_its_subdomains_are_solved(comm, local):
    options = "-snes_type aspin -npc_dm_subdomains 2 -npc_sub_snes_rtol 1e-12 -npc_sub_ksp_rtol 1e-12 -ksp_rtol 1e-12"
    solver = tree(f"{options} -npc_sub_snes_max_it 200 -snes_ksp_ew false {local}", quadratic(world(comm)))
    solver.solve(start(8))
    assert solver.iteration <= 2
    assert solver.reason == Reason.CONVERGED_FNORM_RELATIVE


def test_another_direction_from_the_same_point_keeps_the_forcing_term(comm):
    problem = rosenbrock(world(comm))
    solver = tree("-snes_type newtonls -snes_max_it 3", problem)
    end = solver.solve(start(6))
    assert isinstance(solver.method, Newton)
    point = solver.point(end.x, *problem.value_and_gradient(end.x))
    solver.method.direction(solver, point)
    chosen = solver.method._forcing.value
    solver.method.direction(solver, point)
    assert solver.method._forcing.value == chosen
