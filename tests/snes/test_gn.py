"""Gauss-Newton: exact steps on linear residuals, rates, damping, singular matrices, counts, PINNs on several ranks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.ksp import Forcing
from ml2hpc.problem.interface import ShardedProblem
from ml2hpc.snes import SNES, Reason
from ml2hpc.snes.gn import GaussNewton
from ml2hpc.snes.interface import Point
from tests.problem.small import everyone, pinn, relative
from tests.snes.problems import Analytic, least_squares, rosenbrock, tree, world

GN = "-snes_type gn -snes_rtol 0 -snes_stol 0"
ONE = f"{GN} -snes_max_it 1"


def start(n: int = 6) -> Tensor:
    return torch.linspace(-1.0, 2.0, n, dtype=torch.float64)


def normal(rows: int, n: int, seed: int) -> Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(comm, b: Tensor, c: Tensor) -> Analytic:
    """|B x - c|^2."""

    def residual(x: Tensor, d: Tensor) -> Tensor:
        return b @ x - c

    return Analytic(comm, lambda x, d: residual(x, d).square().sum(), b.shape[1], residual=residual)


def damping_of(solver: SNES) -> float:
    assert isinstance(solver.method, GaussNewton)
    assert solver.method._damping is not None
    return solver.method._damping


@pytest.mark.parametrize("rank", [6, 3])
def test_an_undamped_step_solves_a_linear_problem(comm, rank):
    """Where the matrix is singular, the shortest of all steps: the pseudo-inverse of B."""
    b, c = normal(9, rank, 1) @ normal(rank, 6, 2), normal(9, 1, 3)[:, 0]
    point = tree(f"{ONE} -snes_gn_regularization none", linear(world(comm), b, c)).solve(start())
    expected = start() - torch.linalg.pinv(b, rtol=1e-6) @ (b @ start() - c)
    torch.testing.assert_close(point.x, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "scaling"),
    [("", "identity"), ("-snes_gn_linear cg -snes_gn_cg_rtol 1e-13", "identity"), ("", "diagonal")],
)
def test_a_damped_step_solves_the_damped_system(comm, options, scaling):
    b, c = normal(9, 6, 1), normal(9, 1, 3)[:, 0]
    problem = linear(world(comm), b, c)
    point = tree(f"{ONE} -snes_gn_scaling {scaling} -snes_gn_damping 0.1 {options}", problem).solve(start())
    a, g = 2 * b.T @ b, problem.gradient(start())
    d = a.diagonal() if scaling == "diagonal" else torch.ones(6, dtype=torch.float64)
    mu = 0.1 * (g / d) @ a @ (g / d) / (g @ (g / d))
    expected = start() - torch.linalg.solve(a + mu * torch.diag(d), g)
    torch.testing.assert_close(point.x, expected, rtol=0, atol=1e-10)


def test_diagonal_scaling_does_not_mind_the_units(comm):
    b, c, units = normal(9, 6, 1), normal(9, 1, 3)[:, 0], torch.logspace(-1, 1, 6, dtype=torch.float64)
    options = f"{GN} -snes_gn_scaling diagonal -snes_max_it 3"
    here = tree(options, linear(world(comm), b, c)).solve(start())
    there = tree(options, linear(world(comm), b * units, c)).solve(start() / units)
    assert relative(there.x * units, here.x) < 1e-9


def errors_of(comm, options: str) -> list[float]:
    """Distances to the minimum of the chained Rosenbrock function, where all residuals vanish."""
    found: list[float] = []

    def observe(solver: SNES, point: Point, norm: float, update: float) -> Reason:
        found.append(float((point.x - 1).norm()))
        return Reason.CONVERGED_ITERATING

    solver = tree(f"{GN} -snes_max_it 40 -snes_atol 1e-11 {options}", rosenbrock(world(comm)))
    solver.observe = observe
    solver.solve(torch.full((6,), 0.6, dtype=torch.float64))
    assert solver.reason == Reason.CONVERGED_FNORM_ABS
    return [e for e in found if 1e-13 < e < 3e-2]


def test_undamped_convergence_is_quadratic(comm):
    """Newton's rate, for residuals that vanish at the minimum."""
    errors = errors_of(comm, "-snes_gn_regularization none")
    assert all(b < 10 * a**2 for a, b in pairwise(errors))
    assert len(errors) <= 5


def test_the_damping_sets_the_rate(comm):
    """The error falls in proportion to mu, and mu to a third with each good step."""
    rates = [b / a for a, b in pairwise(errors_of(comm, ""))]
    assert all(0.28 < b / a < 0.40 for a, b in pairwise(rates[1:]))


def test_a_failed_step_raises_the_damping_and_keeps_the_linearization(comm):
    problem = rosenbrock(world(comm))
    solver = tree(f"{ONE} -snes_gn_damping 1e-14", problem)
    x = torch.tensor([-1.2, 1.0, -1.2, 1.0, -1.2, 1.0], dtype=torch.float64)
    point = solver.solve(x)
    trials = solver.work["gradients", "path"] - 1 + solver.work["objectives", "path"]
    assert problem.linearized == 2  # at set-up, where nothing is evaluated, and once for all trials
    assert trials > 3
    assert point.f < problem.objective(x)
    assert solver.work["hessians", "path"] == 2.0  # the matrix costs two actions


def test_every_step_lowers_the_objective(comm):
    values = []

    def observe(solver: SNES, point: Point, norm: float, update: float) -> Reason:
        values.append(point.f)
        return Reason.CONVERGED_ITERATING

    solver = tree(f"{GN} -snes_max_it 30", rosenbrock(world(comm)))
    solver.observe = observe
    solver.solve(torch.tensor([-1.2, 1.0, -1.2, 1.0, -1.2, 1.0], dtype=torch.float64))
    assert all(b < a for a, b in pairwise(values))
    assert values[-1] < 1e-3 * values[0]


@pytest.mark.parametrize("options", ["", "-snes_gn_scaling diagonal", "-snes_gn_linear cg"])
def test_a_parameter_without_influence_stays(comm, options):
    """A zero row and column, and two equal ones: the matrix is singular twice over."""
    b = normal(9, 6, 1)
    b[:, 2] = 0.0
    b[:, 4] = b[:, 5]
    c = b @ normal(6, 1, 4)[:, 0]
    problem = linear(world(comm), b, c)
    point = tree(f"{GN} -snes_max_it 30 {options}", problem).solve(start())
    assert point.x[2] == start()[2]
    assert point.f < 1e-15 * problem.objective(start())


def test_the_damping_is_carried_to_the_next_solve(comm):
    kept, fresh = (
        tree(f"{GN} -snes_max_it 4 -snes_gn_recycle {recycle}", rosenbrock(world(comm))) for recycle in (True, False)
    )
    for solver in (kept, fresh):
        solver.solve(start())
    assert damping_of(kept) == damping_of(fresh)
    carried = damping_of(kept)
    for solver in (kept, fresh):
        solver.options = tree(f"{GN} -snes_max_it 0", rosenbrock(world(comm))).options
        solver.solve(start())
    assert damping_of(kept) == carried
    assert isinstance(fresh.method, GaussNewton)
    assert fresh.method._damping is None


def test_forcing_terms_follow_the_gradient():
    forcing, found = Forcing.quadratic(0.5), []
    for norm in (1.0, 0.1, 0.05, 0.05):
        forcing.follow(norm)
        found.append(forcing.value)
    assert found == pytest.approx([0.5, 0.225, 0.225, 0.5])  # 0.9 * 0.5^2 guards the second from 0.009


def test_actions_are_counted_with_their_share(comm):
    solver = tree(f"{ONE} -snes_gn_linear cg -snes_gn_cg_max_it 3 -snes_gn_cg_rtol 1e-14", least_squares(world(comm)))
    solver.solve(start())
    actions = 1 + 3  # one sets the damping
    share = solver.problem.linearize(start()).cost.action / solver.problem.cost.hessian
    assert solver.work["hessians", "total"] == actions
    assert solver.work["hessians", "work"] == pytest.approx(actions * share)


def test_what_is_no_sum_of_squares_is_refused(comm):
    problem = Analytic(world(comm), lambda x, d: x.exp().sum(), 4)
    with pytest.raises(UnsupportedError, match=r"Analytic is not a sum of squares.*use qn"):
        tree("-snes_type gn", problem)


def test_the_view_tells_what_the_matrix_takes(comm):
    assert "linear solver is DENSE, a matrix of 6 x 6 on every rank" in tree(GN, rosenbrock(world(comm))).view()
    matrix_free = tree(f"{GN} -snes_gn_linear cg", rosenbrock(world(comm))).view()
    assert "linear solver is CG, at most 50 actions, relative residual 0.1" in matrix_free


def test_a_damping_is_finite(comm):
    with pytest.raises(OptionsError, match="must be above 0 and below inf"):
        tree(f"{GN} -snes_gn_damping inf", rosenbrock(world(comm)))


def test_a_diagonal_needs_the_matrix(comm):
    with pytest.raises(OptionsError, match="-snes_gn_linear dense"):
        tree("-snes_type gn -snes_gn_scaling diagonal -snes_gn_linear cg", least_squares(world(comm)))


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize(
    "options",
    [
        "",
        "-snes_gn_linear cg",
        "-snes_gn_regularization none -snes_gn_linear cg",
        "-npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_type gn -npc_sub_snes_max_it 2",
    ],
)
def test_a_pinn_has_the_same_iterates_on_any_number_of_ranks(comm, options):
    problem, x = pinn(comm=everyone(comm))
    options = f"{GN} -snes_max_it 3 {options}"
    here = tree(options, problem).solve(x)
    alone = tree(options, problem.on(problem.comm.alone())).solve(x)
    assert torch.equal(here.x, alone.x)
    assert here.f < 0.1 * problem.objective(x)


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize(
    "options", ["", "-snes_gn_regularization none", "-snes_gn_scaling diagonal", "-snes_gn_linear cg"]
)
def test_sharded_vectors(comm, options):
    problem, x = pinn(comm=everyone(comm))
    sharded = ShardedProblem(problem)
    options = f"{ONE} {options} -snes_gn_cg_max_it 5"  # many steps of CG amplify the rounding of inner products
    here = tree(options, problem).solve(x)
    point = tree(options, sharded).solve(sharded.space.local(x).clone())
    assert relative(sharded.space.gather(point.x), here.x) < 1e-6


def test_as_the_solver_of_subdomains(comm):
    """One step on the only subdomain is one step of its own."""
    problem, x = pinn(comm=everyone(comm))
    composed = "-snes_type nasm -snes_nasm_type multiplicative -dm_subdomains 1 -sub_snes_type gn -sub_snes_max_it 1"
    within = tree(f"{composed} -snes_max_it 1", problem).solve(x)
    alone = tree(ONE, problem).solve(x)
    torch.testing.assert_close(within.x, alone.x, rtol=0, atol=1e-13)
