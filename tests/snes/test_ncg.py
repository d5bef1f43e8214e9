"""Conjugate gradients against the linear method, with preconditioners on both sides, and their memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml2hpc.problem.interface import ShardedProblem
from ml2hpc.snes import SNES
from ml2hpc.snes.ncg import ConjugateGradients
from tests.problem.small import alone, everyone, pinn
from tests.snes.problems import double_well, matrix, quadratic, rosenbrock, tree, world

KINDS = ("fr", "prp", "hs", "dy", "cd")
FOREVER = "-snes_rtol 0 -snes_stol 0"


def start(n: int) -> Tensor:
    return torch.linspace(-1, 1.5, n, dtype=torch.float64)


def iterates(solver: SNES, x: Tensor) -> list[Tensor]:
    """Solve, and return all iterates."""
    seen: list[Tensor] = []

    def note(solver, point, norm, update):
        seen.append(point.x)
        return solver.reason

    solver.observe = note
    solver.solve(x)
    return seen


def linear_cg(a: Tensor, x: Tensor, steps: int) -> list[Tensor]:
    """The method of Hestenes and Stiefel for A x = 0."""
    r = -a @ x
    p, seen = r, [x]
    for _ in range(steps):
        alpha = (r @ r) / (p @ a @ p)
        x, old = x + alpha * p, r
        r = r - alpha * (a @ p)
        p = r + (r @ r) / (old @ old) * p
        seen.append(x)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("search", ["ncglinear", "cp -snes_linesearch_maxlambda 10"])
def test_on_a_quadratic_it_is_linear_cg(comm, kind, search):
    """Every beta is the same there, and cp finds the minimiser along a line in one step."""
    options = f"-snes_type ncg -snes_ncg_type {kind} -snes_linesearch_type {search} {FOREVER} -snes_max_it 7"
    found = iterates(tree(options, quadratic(world(comm))), start(8))
    for x, expected in zip(found, linear_cg(matrix(8), start(8), 7), strict=True):
        assert (x - expected).norm() < 1e-8 * start(8).norm()


def test_a_left_npc_stands_in_for_the_gradient(comm):
    """M(x) = x - d g makes r = d g; steps along d g with exact lengths are those along g."""
    base = f"-snes_type ncg -snes_linesearch_type ncglinear {FOREVER} -snes_max_it 6"
    npc = "-npc_snes_type nrichardson -npc_snes_linesearch_type none -npc_snes_linesearch_damping 0.003"
    plain, left = (iterates(tree(options, rosenbrock(world(comm))), start(6)) for options in (base, f"{base} {npc}"))
    for x, expected in zip(left, plain, strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10)


def ascend(problem, x, g):
    """A preconditioner that goes uphill."""
    return x + 1e-3 * g


def test_what_is_remembered_is_the_direction_that_was_taken(comm):
    """Where x - M(x) ascends, the loop takes the gradient."""
    npc = f"-npc_snes_type shell -npc_snes_shell_step {__file__}:ascend"
    problem = quadratic(world(comm))
    solver = tree(f"-snes_type ncg {FOREVER} -snes_max_it 1 {npc}", problem)
    solver.solve(start(8))
    assert isinstance(solver.method, ConjugateGradients)
    assert solver.method._old is not None
    assert torch.equal(solver.method._old[0], problem.gradient(start(8)))


def test_a_right_npc_gives_the_point_that_a_step_starts_from(comm):
    """One step behind three of another method: four steps of descent."""
    search = "-snes_linesearch_memory 0 -npc_snes_linesearch_memory 0 -snes_linesearch_curvature 0.9"
    options = (
        f"-snes_type ncg -snes_npc_side right -npc_snes_type nrichardson -npc_snes_max_it 3 -snes_max_it 1 {search}"
    )
    composed = tree(options, quadratic(world(comm))).solve(start(8))
    alone = tree("-snes_type nrichardson -snes_linesearch_memory 0 -snes_max_it 4", quadratic(world(comm))).solve(
        start(8)
    )
    assert torch.equal(composed.x, alone.x)


@pytest.mark.parametrize(("side", "factor"), [("left", 0.7), ("right", 0.95)])
def test_a_preconditioner_saves_iterations(comm, side, factor):
    """Nasm with accurate subdomain solves against the plain method."""
    npc = f"-snes_npc_side {side} -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 30"
    counts = []
    for options in ("", npc):
        solver = tree(f"-snes_type ncg -snes_stol 0 {options}", rosenbrock(world(comm)))
        solver.solve(start(6))
        assert solver.reason.name == "CONVERGED_FNORM_RELATIVE"
        counts.append(solver.iteration)
    assert counts[1] < factor * counts[0]


def test_prp_restarts_where_a_step_makes_no_progress(comm):
    """With r = r_old the numerator <r, r - r_old> is 0, and below 0 it is cut: y = r."""
    solver = tree("-snes_type ncg", quadratic(world(comm)))
    method = solver.method
    assert isinstance(method, ConjugateGradients)
    point = solver.point(start(8), *solver.gradient(start(8)))
    for old, beta in ((point.r, 0.0), (2 * point.r, 0.0), (0.5 * point.r, 2.0)):
        method._old = (point.r, old)
        y = method.direction(solver, point)
        torch.testing.assert_close(y, (1 + beta) * point.r, rtol=1e-14, atol=0)


def test_steps_go_down_from_beside_a_maximum(comm):
    problem = double_well(world(comm))
    top = torch.full((4,), 0.03757, dtype=torch.float64)
    for _ in range(20):  # Newton's method for 4 (x^2 - 2) x + 0.3 = 0
        top = top - problem.value_and_gradient(top)[1] / (12 * top**2 - 8)
    point = tree("-snes_type ncg", problem).solve(top + 1e-7)
    assert point.f < problem.objective(top) - 1.0


@pytest.mark.parallel(1, 2, 3)
def test_sharded_vectors_give_the_same_iterates(comm):
    options = f"-snes_type ncg {FOREVER} -snes_max_it 6"
    whole = tree(options, rosenbrock(world(comm))).solve(start(6))
    problem = ShardedProblem(rosenbrock(world(comm)))
    sharded = tree(options, problem).solve(problem.space.local(start(6)).clone())
    torch.testing.assert_close(problem.space.gather(sharded.x), whole.x, rtol=1e-10, atol=1e-10)


@pytest.mark.parallel(1, 2, 3)
def test_bits_do_not_depend_on_ranks(comm):
    ends = []
    for on in (everyone(comm), alone()):
        problem, x = pinn(comm=on, n=150, chunk=29)
        ends.append(tree(f"-snes_type ncg {FOREVER} -snes_max_it 12", problem).solve(x))
    assert torch.equal(ends[0].x, ends[1].x)
    assert ends[0].f == ends[1].f
