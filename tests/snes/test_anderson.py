"""Anderson mixing against GMRES, its safeguard, its window and restarts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ml2hpc.problem.interface import ShardedProblem
from tests.problem.small import alone, everyone, pinn
from tests.snes.mixing import history
from tests.snes.problems import double_well, matrix, quadratic, rosenbrock, tree, world

FOREVER = "-snes_rtol 0 -snes_stol 0"


def start(n: int) -> Tensor:
    return torch.linspace(-1, 1.5, n, dtype=torch.float64)


def smallest_residual(a: Tensor, r: Tensor, k: int) -> Tensor:
    """The residual of k steps of GMRES: the shortest of r + A K_k(A, r)."""
    columns = [r]
    for _ in range(k):
        columns.append(a @ columns[-1])
    krylov = torch.stack([c / c.norm() for c in columns[1:]], 1) if k else r.new_zeros(len(r), 1)
    q, _ = torch.linalg.qr(krylov)
    return r - q @ (q.T @ r) if k else r


def test_on_a_quadratic_it_is_a_step_behind_gmres(comm):
    """The residual after step k + 1 is (I - beta A) r_k, with r_k from k steps of GMRES."""
    beta, a = 0.01, matrix(8)
    solver = tree(f"-snes_type anderson -snes_anderson_beta {beta} {FOREVER} -snes_max_it 7", quadratic(world(comm)))
    iterates = [x for x, _, _ in history(solver, start(8))]
    assert solver.work["objectives", "path"] == 0  # no mixed step was damped
    for k, x in enumerate(iterates[1:]):
        r = smallest_residual(a, a @ start(8), k)
        torch.testing.assert_close(a @ x, r - beta * (a @ r), rtol=0, atol=1e-7 * float((a @ start(8)).norm()))


def test_without_memory_it_is_richardson(comm):
    options = f"{FOREVER} -snes_max_it 10"
    mixed = tree(f"-snes_type anderson -snes_anderson_m 0 -snes_anderson_beta 0.01 {options}", quadratic(world(comm)))
    plain = tree(
        f"-snes_type nrichardson -snes_linesearch_type none -snes_linesearch_damping 0.01 {options}",
        quadratic(world(comm)),
    )
    assert torch.equal(mixed.solve(start(8)).x, plain.solve(start(8)).x)


def test_without_memory_a_right_npc_is_left_alone(comm):
    npc = "-snes_type anderson -snes_anderson_m 0 -npc_snes_type nrichardson -npc_snes_linesearch_memory 0"
    composed = tree(f"{npc} -npc_snes_max_it 3 -snes_max_it 4 {FOREVER}", quadratic(world(comm))).solve(start(8))
    plain = tree(f"-snes_type nrichardson -snes_linesearch_memory 0 {FOREVER} -snes_max_it 12", quadratic(world(comm)))
    assert torch.equal(composed.x, plain.solve(start(8)).x)


def test_beta_blends_the_right_npc_with_the_iterate(comm):
    """x + beta (M(x) - x) with M one step of length 0.01 along the gradient is a step of length 0.01 beta."""
    npc = "-npc_snes_type nrichardson -npc_snes_linesearch_type none -npc_snes_linesearch_damping 0.01"
    solver = tree(f"-snes_type anderson -snes_anderson_beta 0.25 {npc} -snes_max_it 1", quadratic(world(comm)))
    expected = start(8) - 0.0025 * (matrix(8) @ start(8))
    torch.testing.assert_close(solver.solve(start(8)).x, expected, rtol=1e-14, atol=1e-14)


def test_a_mixed_step_that_raises_l_is_damped(comm):
    """Steps of the gradient's length are a hundred times too long here; L falls all the same, and fast."""
    solver = tree(f"-snes_type anderson {FOREVER} -snes_max_it 60", rosenbrock(world(comm)))
    values = [f for _, f, _ in history(solver, start(6))]
    assert solver.work["objectives", "path"] > 0
    assert all(new <= old * (1 + 1e-12) for old, new in pairwise(values))
    assert values[-1] < 1e-5 * values[0]


@pytest.mark.parametrize("offset", [0.2, 1e-4, 1e-7])
def test_it_does_not_converge_to_a_maximum(comm, offset):
    """From beside it, where the residuals alone lead to it."""
    problem = double_well(world(comm))
    top = torch.full((4,), 0.03757, dtype=torch.float64)
    for _ in range(20):  # Newton's method for 4 (x^2 - 2) x + 0.3 = 0
        top = top - problem.value_and_gradient(top)[1] / (12 * top**2 - 8)
    point = tree("-snes_type anderson -snes_anderson_beta 0.02", problem).solve(top + offset)
    assert point.f < problem.objective(top) - 1.0


@pytest.mark.parametrize(("m", "restart"), [(30, 4), (2, 6)])
def test_periodic_restarts_empty_the_window(comm, m, restart):
    options = f"-snes_anderson_m {m} -snes_anderson_restart_type periodic -snes_anderson_restart {restart}"
    solver = tree(f"-snes_type anderson {options} {FOREVER} -snes_max_it {3 * restart}", rosenbrock(world(comm)))
    stored = [count for _, _, count in history(solver, start(6))]
    period = restart + 2  # counts 0 to restart are stored, the next is not
    assert stored == [min(k % period, m) for k in range(len(stored))]


@pytest.mark.parallel(1, 2, 3)
def test_sharded_vectors_give_the_same_iterates(comm):
    options = f"-snes_type anderson {FOREVER} -snes_max_it 8"
    whole = tree(options, rosenbrock(world(comm))).solve(start(6))
    problem = ShardedProblem(rosenbrock(world(comm)))
    sharded = tree(options, problem).solve(problem.space.local(start(6)).clone())
    torch.testing.assert_close(problem.space.gather(sharded.x), whole.x, rtol=1e-8, atol=1e-8)


@pytest.mark.parallel(1, 2, 3)
def test_bits_do_not_depend_on_ranks(comm):
    ends = []
    for on in (everyone(comm), alone()):
        problem, x = pinn(comm=on, n=150, chunk=29)
        ends.append(tree(f"-snes_type anderson {FOREVER} -snes_max_it 12", problem).solve(x))
    assert torch.equal(ends[0].x, ends[1].x)
    assert ends[0].f == ends[1].f
