"""The problem of a running solve is replaced: solvers keep what they learnt, unless it points nowhere."""

from __future__ import annotations

import pytest
import torch

from ml2hpc.snes import SNES, Reason
from ml2hpc.snes.dense import DenseInverse
from ml2hpc.snes.nasm import Nasm
from ml2hpc.snes.qn import QuasiNewton
from tests.snes.contracts import TREES, needs
from tests.snes.problems import Analytic, least_squares, matrix, quadratic, rosenbrock, tree, world


def start(n: int = 8) -> torch.Tensor:
    return torch.linspace(-1.0, 1.5, n, dtype=torch.float64)


def scaled(comm, factor: float) -> Analytic:
    a = factor * matrix(8)
    return Analytic(comm, lambda x, d: 0.5 * x @ (a @ x), 8)


def replace_at(solver: SNES, iteration: int, problem: Analytic) -> None:
    """Let a solver go on with another problem from an iteration on."""

    def refresh(s, point):
        return s.replace(problem, point) if s.iteration == iteration else None

    solver.refresh = refresh


def quasi_newton(solver: SNES) -> list[QuasiNewton]:
    assert isinstance(solver.method, Nasm)
    return [sub.method for sub in solver.method._subs if isinstance(sub.method, QuasiNewton)]


def pairs_and_matrix(method: QuasiNewton) -> tuple[int, torch.Tensor]:
    """The number of pairs, and this rank's part of the matrix as one vector."""
    assert isinstance(method.inverse, DenseInverse)
    matrix = method.inverse._matrix
    mine = [matrix._rows(i).flatten() for i in matrix._sum.parts]
    return method.inverse.pairs, torch.cat([torch.zeros(0, dtype=matrix.dtype), *mine])


def set_matrix(inverse: DenseInverse, h: torch.Tensor) -> None:
    """Put a symmetric matrix in the place of H."""
    matrix = inverse._matrix
    for i in matrix._sum.parts:
        segment = matrix._segments[i]
        matrix._rows(i)[:, : segment.last] = h[segment.first : segment.last, : segment.last]
    matrix._pending = [False] * len(matrix.blocks)
    inverse.retarget()


# A left NPC is applied once more to the same iterate, and learns from it.
@pytest.mark.parametrize("name", [pytest.param(n, marks=needs(n)) for n in TREES if "left" not in n])
def test_replacing_a_problem_by_itself_changes_nothing(comm, name):
    options = f"{TREES[name][0]} -snes_rtol 0 -snes_stol 0 -snes_max_it 8"
    if name.startswith("petsc"):
        options += " -snes_petsc_its 1"  # inside a step of PETSc nothing is replaced
    plain = tree(options, quadratic(world(comm)))
    replaced = tree(options, quadratic(world(comm)))
    replace_at(replaced, 1, quadratic(world(comm)))
    ends = [solver.solve(start()) for solver in (plain, replaced)]
    torch.testing.assert_close(ends[1].x, ends[0].x, rtol=0, atol=1e-7)
    assert replaced.work["gradients", "total"] >= plain.work["gradients", "total"] + 1


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_subdomain_solvers_keep_their_matrices(comm, kind):
    """What a rebound tree holds, and its next iterates, have the same bits on any number of ranks."""
    options = (
        f"-snes_type nasm -snes_nasm_type {kind} -dm_subdomains 2 -sub_snes_qn_type ssbroyden -sub_snes_max_it 4"
        " -snes_rtol 0 -snes_max_it 3"
    )
    ends = []
    for where in (world(comm), world(comm).alone()):
        solver = tree(options, rosenbrock(where))
        point = solver.solve(start(6))
        methods = [m for m in quasi_newton(solver) if hasattr(m, "inverse")]  # this rank's
        before = [pairs_and_matrix(m) for m in methods]
        assert all(pairs > 3 for pairs, _ in before)
        solver.rebind(scaled_rosenbrock(where, 1.5))
        for method, (pairs, h) in zip(methods, before, strict=True):
            now = pairs_and_matrix(method)
            assert now[0] == pairs
            assert torch.equal(now[1], h)
        ends.append(solver.solve(point.x))
    assert torch.equal(ends[0].x, ends[1].x)
    assert ends[0].f == ends[1].f


def scaled_rosenbrock(comm, factor: float) -> Analytic:
    inner = rosenbrock(comm).f
    return Analytic(comm, lambda x, d: factor * inner(x, d), 6)


@pytest.mark.parametrize(
    "options",
    [
        "-snes_type nasm -dm_subdomains 2",
        "-snes_type nasm -dm_subdomains 2 -snes_nasm_combine subspace",
        "-snes_type qn -npc_snes_type nasm -npc_dm_subdomains 2",
        "-snes_type nrichardson -npc_snes_type nasm -npc_dm_subdomains 2",
        "-snes_type nasm -dm_decomposition samples -dm_subdomains 3",
        "-snes_type nasm -dm_subdomains 1 -sub_snes_type nasm -sub_snes_max_it 4 -sub_dm_decomposition blocks",
    ],
)
def test_a_rebound_tree_without_memory_is_a_tree_of_the_new_problem(comm, options):
    options += " -snes_max_it 3 -snes_rtol 0"
    other = least_squares(world(comm))
    other.data = other.data.flip(1)
    fresh = tree(options, other).solve(start(6))
    solver = tree(options, least_squares(world(comm)))
    solver.rebind(other)
    assert torch.equal(solver.solve(start(6)).x, fresh.x)


@pytest.mark.parametrize("along", [-1.0, 1e-13])
def test_a_matrix_that_points_nowhere_is_given_up(comm, along):
    """H g against the gradient, or perpendicular to it up to noise: the memory goes, and the solve goes on."""
    solver = tree("-snes_type qn -snes_qn_type bfgs -snes_max_it 20 -snes_rtol 0 -snes_stol 0", quadratic(world(comm)))
    falls = []

    def spoil(s, point):
        if s.iteration == 6:
            g = point.g / point.g.norm()
            e = torch.zeros(8, dtype=torch.float64)
            e[0] = 1.0
            across = e - (e @ g) * g
            assert isinstance(s.method.inverse, DenseInverse)
            spoilt = along * torch.outer(g, g) + torch.outer(across, g) + torch.outer(g, across)
            set_matrix(s.method.inverse, spoilt)
            falls.append(point.f)
            return s.replace(s.problem, point)
        return None

    solver.refresh = spoil
    lengths = []

    def note(s, point, norm, update):
        lengths.append(update)
        return Reason.CONVERGED_ITERATING

    solver.observe = note
    point = solver.solve(start())
    assert min(lengths[1:]) > 0  # no search was lost on it
    assert solver.resets == 1
    assert solver.iteration == 20
    assert point.f < 0.05 * falls[0]
    assert "memory given up 1 time for want of descent" in solver.view()


def test_a_search_that_fails_on_the_new_problem_resets_and_goes_on(comm):
    """The carried matrix takes steps 1e9 times too long, and the search may not shorten them that far."""
    options = (
        "-snes_type qn -snes_qn_type bfgs -snes_max_it 30 -snes_rtol 0 -snes_stol 0 "
        "-snes_linesearch_type bt -snes_linesearch_max_it 3"
    )
    solver = tree(options, quadratic(world(comm)))
    replace_at(solver, 10, scaled(world(comm), 1e9))
    seen = []

    def note(s, point, norm, update):
        seen.append((point.f, update))
        return Reason.CONVERGED_ITERATING

    solver.observe = note
    point = solver.solve(start())
    assert seen[11][1] == 0.0  # the failed search
    assert solver.resets >= 1
    assert solver.iteration == 30
    assert point.f < 1e-2 * seen[11][0]


@pytest.mark.parametrize("factor", [1e-7, 1e7])
def test_a_jump_of_the_loss_is_neither_convergence_nor_divergence(comm, factor):
    """Tests against the start are made against the start on the new problem."""
    solver = tree("-snes_type qn -snes_rtol 1e-6 -snes_stol 0 -snes_max_it 60", quadratic(world(comm)))
    replace_at(solver, 3, scaled(world(comm), factor))
    norms = {}

    def note(s, point, norm, update):
        norms[s.iteration] = norm
        return Reason.CONVERGED_ITERATING

    solver.observe = note
    solver.solve(start())
    assert solver.reason == Reason.CONVERGED_FNORM_RELATIVE
    assert norms[solver.iteration] <= 1e-6 * factor * norms[3] < norms[solver.iteration - 1]


def test_a_problem_without_a_number_is_not_taken(comm):
    solver = tree("-snes_type qn -snes_max_it 10 -snes_rtol 0", quadratic(world(comm)))
    replace_at(solver, 3, Analytic(world(comm), lambda x, d: torch.log(x[0] - 1e3), 8))
    point = solver.solve(start())
    assert solver.reason == Reason.DIVERGED_OBJECTIVE_NANORINF
    assert "the problem that replaces this one" in solver.failure
    assert solver.problem.objective(point.x) == point.f
    assert solver.iteration == 3
