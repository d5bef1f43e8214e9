"""NGMRES against GMRES and its preconditioner, its selection and its restarts."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ml2hpc.problem.interface import ShardedProblem
from ml2hpc.snes.mixing import Window, above
from ml2hpc.vec import Replicated
from tests.problem.small import alone, everyone, pinn
from tests.snes.mixing import history
from tests.snes.problems import Analytic, double_well, matrix, quadratic, rosenbrock, tree, world

FOREVER = "-snes_rtol 0 -snes_stol 0"


def start(n: int) -> Tensor:
    return torch.linspace(-1, 1.5, n, dtype=torch.float64)


def smallest_residuals(a: Tensor, r: Tensor, steps: int) -> list[float]:
    """Lengths of the residuals of GMRES: the shortest of r + A K_k(A, r)."""
    lengths, columns = [float(r.norm())], [a @ r]
    for _ in range(steps):
        q, _ = torch.linalg.qr(torch.stack([c / c.norm() for c in columns], 1))
        lengths.append(float((r - q @ (q.T @ r)).norm()))
        columns.append(a @ columns[-1])
    return lengths


@pytest.mark.parametrize("search", ["ncglinear", "none -snes_linesearch_damping 0.01", "secant"])
def test_on_a_quadratic_the_residuals_are_those_of_gmres(comm, search):
    """Every candidate along the residual adds the next power of A, whatever its length."""
    options = f"-snes_type ngmres -snes_ngmres_select_type none -snes_ngmres_restart_type none {FOREVER} -snes_max_it 7"
    a = matrix(8)
    solver = tree(f"{options} -snes_linesearch_type {search}", quadratic(world(comm)))
    found = [float((a @ x).norm()) for x, _, _ in history(solver, start(8))]
    expected = smallest_residuals(a, a @ start(8), 7)
    assert expected[7] < 0.01 * expected[0]
    for length, best in zip(found, expected, strict=True):
        assert length == pytest.approx(best, rel=1e-6)


def test_without_memory_it_is_its_preconditioner(comm):
    npc = "-snes_type ngmres -snes_ngmres_m 0 -npc_snes_type nrichardson -npc_snes_linesearch_memory 0"
    composed = tree(f"{npc} -npc_snes_max_it 3 -snes_max_it 4 {FOREVER}", quadratic(world(comm))).solve(start(8))
    plain = tree(f"-snes_type nrichardson -snes_linesearch_memory 0 {FOREVER} -snes_max_it 12", quadratic(world(comm)))
    assert torch.equal(composed.x, plain.solve(start(8)).x)


def test_without_memory_and_preconditioner_it_is_richardson(comm):
    options = f"{FOREVER} -snes_max_it 8 -snes_linesearch_type secant"
    ends = [
        tree(f"{kind} {options}", rosenbrock(world(comm))).solve(start(6)).x
        for kind in ("-snes_type ngmres -snes_ngmres_m 0", "-snes_type nrichardson")
    ]
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", ["none", "difference", "linesearch"])
def test_l_never_rises(comm, kind):
    solver = tree(
        f"-snes_type ngmres -snes_ngmres_select_type {kind} {FOREVER} -snes_max_it 60", rosenbrock(world(comm))
    )
    values = [f for _, f, _ in history(solver, start(6))]
    assert all(new <= old * (1 + 1e-12) for old, new in pairwise(values))
    assert values[-1] < 1e-6 * values[0]


@pytest.mark.parametrize("kind", ["none", "difference", "linesearch"])
@pytest.mark.parametrize("offset", [0.2, 1e-4, 1e-7])
def test_it_does_not_converge_to_a_maximum(comm, kind, offset):
    """From beside it, where the residuals alone lead to it."""
    problem = double_well(world(comm))
    top = torch.full((4,), 0.03757, dtype=torch.float64)
    for _ in range(20):  # Newton's method for 4 (x^2 - 2) x + 0.3 = 0
        top = top - problem.value_and_gradient(top)[1] / (12 * top**2 - 8)
    point = tree(f"-snes_type ngmres -snes_ngmres_select_type {kind}", problem).solve(top + offset)
    assert point.f < problem.objective(top) - 1.0


def test_a_negative_l_does_not_turn_the_selection_round(comm):
    """gammaA L_min would ask x_A for twice the depth of the lowest point, and every candidate would win."""
    a = matrix(8)
    counts = []
    for shift in (10.0, -1000.0):
        problem = Analytic(world(comm), partial(lambda s, x, d: 0.5 * x @ (a @ x) + s, shift), 8)
        solver = tree("-snes_type ngmres -snes_linesearch_type cp -snes_rtol 1e-6", problem)
        solver.solve(start(8))
        assert solver.reason.name == "CONVERGED_FNORM_RELATIVE"
        counts.append(solver.iteration)
    assert counts == [8, 8]
    assert (above(2.0, 2.0), above(-2.0, 2.0), above(-2.0, 0.5)) == (4.0, 0.0, -3.0)


def test_epsilon_b_keeps_combinations_away_from_stored_points(comm):
    """Where all x_A count as too near, and none is low enough to be taken all the same, candidates are taken."""
    options = f"-snes_linesearch_type secant {FOREVER} -snes_max_it 3"
    crowded = "-snes_type ngmres -snes_ngmres_epsilonB 1e9 -snes_ngmres_deltaB 1e-9 -snes_ngmres_restart_type none"
    ends = [
        tree(f"{kind} {options}", quadratic(world(comm))).solve(start(8)).x
        for kind in (crowded, "-snes_type nrichardson")
    ]
    assert torch.equal(*ends)


@pytest.mark.parametrize(("m", "restart"), [(30, 4), (3, 5)])
def test_periodic_restarts_keep_the_candidate(comm, m, restart):
    options = f"-snes_ngmres_m {m} -snes_ngmres_restart_type periodic -snes_ngmres_restart {restart}"
    solver = tree(f"-snes_type ngmres {options} {FOREVER} -snes_max_it {3 * restart}", rosenbrock(world(comm)))
    stored = [count for _, _, count in history(solver, start(6))][1:]
    period = restart + 1
    assert stored == [min(1 + k % period, m) for k in range(1, len(stored) + 1)]


def test_a_search_that_would_ascend_asks_for_a_restart(comm):
    """Around a maximum every combination lies uphill: nothing but the candidate is kept."""
    search = "-snes_ngmres_select_type linesearch -snes_ngmres_restart_it 1 -snes_linesearch_damping 0.05"
    solver = tree(
        f"-snes_type ngmres {search} -snes_linesearch_type none {FOREVER} -snes_max_it 8", double_well(world(comm))
    )
    x = torch.tensor([0.048, 0.031, 0.042, 0.047], dtype=torch.float64)
    assert [count for _, _, count in history(solver, x)][1:] == 8 * [1]


def test_distances_to_the_nearest_point(comm):
    window = Window(Replicated(2, torch.float64), 3)
    for x in ([0.0, 0.0], [3.0, 4.0], [0.0, 2.0]):
        window.push(torch.tensor(x, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    x, y = torch.tensor([[0.0, 5.0], [12.0, 0.0]], dtype=torch.float64)
    assert window.distances(x, y) == (13.0, 3.0)


def test_a_combination_is_the_least_squares_solution(comm):
    """Against the whole problem by a singular value decomposition, with residuals over twelve decades."""
    generator = torch.Generator().manual_seed(5)
    xs, rs = torch.randn(2, 6, 40, generator=generator, dtype=torch.float64)
    rs *= torch.logspace(0, -12, 6, dtype=torch.float64)[:, None]
    window = Window(Replicated(40, torch.float64), 8)
    for x, r in zip(xs[:-1], rs[:-1], strict=True):
        window.push(x, r)
    found = window.combine(xs[-1], rs[-1])
    steps, changes = xs[:-1] - xs[1:], rs[:-1] - rs[1:]
    lengths = changes.norm(dim=1)
    c = torch.linalg.lstsq((changes / lengths[:, None]).T, -rs[-1], driver="gelsd").solution / lengths
    torch.testing.assert_close(found, xs[-1] + steps.T @ c, rtol=1e-9, atol=1e-9)


@pytest.mark.parallel(1, 2, 3)
def test_sharded_vectors_give_the_same_iterates(comm):
    options = f"-snes_type ngmres {FOREVER} -snes_max_it 6"
    whole = tree(options, rosenbrock(world(comm))).solve(start(6))
    problem = ShardedProblem(rosenbrock(world(comm)))
    sharded = tree(options, problem).solve(problem.space.local(start(6)).clone())
    torch.testing.assert_close(problem.space.gather(sharded.x), whole.x, rtol=1e-8, atol=1e-8)


@pytest.mark.parallel(1, 2, 3)
def test_bits_do_not_depend_on_ranks(comm):
    ends = []
    for on in (everyone(comm), alone()):
        problem, x = pinn(comm=on, n=150, chunk=29)
        ends.append(tree(f"-snes_type ngmres {FOREVER} -snes_max_it 12", problem).solve(x))
    assert torch.equal(ends[0].x, ends[1].x)
    assert ends[0].f == ends[1].f
