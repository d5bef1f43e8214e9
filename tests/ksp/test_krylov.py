"""Krylov methods: dense solves, optimality, negative curvature, tolerances, restarts, the same on sharded vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.ksp import Reason
from ml2hpc.ksp.cholesky import LARGEST
from ml2hpc.vec import Replicated, Sharded
from tests.ksp.systems import linear_solver, normal, symmetric
from tests.problem.small import everyone, relative

N = 20
DEFINITE = symmetric(torch.logspace(0, 2, N, dtype=torch.float64))
INDEFINITE = symmetric(torch.cat([torch.linspace(-3, -1, 5), torch.linspace(1, 30, 15)]).double())
MILD = symmetric(torch.linspace(1, 10, N, dtype=torch.float64))
UNSYMMETRIC = MILD + 0.5 * normal(N, N, seed=5)
B = normal(N, seed=7)


@pytest.mark.parametrize(
    ("options", "a"),
    [
        ("cg", DEFINITE),
        ("minres", DEFINITE),
        ("minres", INDEFINITE),
        ("gmres", INDEFINITE),
        ("gmres", UNSYMMETRIC),
        ("gmres -ksp_gmres_restart 15", UNSYMMETRIC),
        ("cg -pc_type nystrom -pc_nystrom_rank 5", DEFINITE),
        ("minres -pc_type nystrom -pc_nystrom_rank 5", INDEFINITE),
        ("gmres -pc_type nystrom -pc_nystrom_rank 5", INDEFINITE),
    ],
)
def test_a_solve_is_the_dense_one(options, a):
    solver = linear_solver(f"-ksp_type {options} -ksp_rtol 1e-12 -ksp_max_it 400", a)
    solution = solver.solve(B, definite=False)
    assert solution.reason == Reason.CONVERGED_RTOL
    assert relative(solution.x, torch.linalg.solve(a, B)) < 1e-10


def krylov(a: Tensor, k: int) -> Tensor:
    """An orthonormal basis of the Krylov space, shape (n, k)."""
    columns = [B / B.norm()]
    for _ in range(k - 1):
        v = a @ columns[-1]
        for _ in range(2):
            v = v - sum(((c @ v) * c for c in columns), torch.zeros(N, dtype=torch.float64))
        columns.append(v / v.norm())
    return torch.stack(columns, 1)


@pytest.mark.parametrize(("kind", "a"), [("minres", INDEFINITE), ("gmres", INDEFINITE), ("gmres", UNSYMMETRIC)])
def test_the_residual_is_the_least_of_the_krylov_space(kind, a):
    solution = linear_solver(f"-ksp_type {kind} -ksp_rtol 0 -ksp_max_it 6", a).solve(B, definite=False)
    space = krylov(a, 6)
    least = B - a @ space @ torch.linalg.lstsq(a @ space, B[:, None]).solution[:, 0]
    assert solution.norm == pytest.approx(float(least.norm()), rel=1e-10)
    assert float((B - a @ solution.x).norm()) == pytest.approx(solution.norm, rel=1e-10)


def test_conjugate_gradients_minimise_the_energy():
    """x = V (V' A V)^-1 V' b over the Krylov space."""
    solution = linear_solver("-ksp_rtol 0 -ksp_max_it 6", DEFINITE).solve(B)
    v = krylov(DEFINITE, 6)
    assert relative(solution.x, v @ torch.linalg.solve(v.T @ DEFINITE @ v, v.T @ B)) < 1e-11
    assert solution.reason == Reason.DIVERGED_ITS


@pytest.mark.parametrize("preconditioner", ["none", "nystrom -pc_nystrom_rank 4"])
@pytest.mark.parametrize("kind", ["cg", "minres", "gmres"])
def test_negative_curvature_is_reported_and_the_iterate_before_descends(kind, preconditioner):
    solution = linear_solver(f"-ksp_type {kind} -ksp_rtol 1e-12 -pc_type {preconditioner}", INDEFINITE).solve(B)
    d = solution.curvature
    assert solution.reason == Reason.CONVERGED_NEG_CURVE
    assert d is not None
    assert d @ INDEFINITE @ d <= 0
    assert d @ B > 0
    assert solution.x @ B > 0
    assert solution.x @ INDEFINITE @ solution.x > 0


@pytest.mark.parametrize("kind", ["cg", "minres", "gmres"])
def test_a_negative_definite_matrix_is_seen_at_once(kind):
    solution = linear_solver(f"-ksp_type {kind}", -DEFINITE).solve(B)
    assert solution.iterations <= 1
    assert not solution.x.any()
    assert solution.curvature is not None
    assert relative(solution.curvature * (B.norm() / solution.curvature.norm()), B) < 1e-14


@pytest.mark.parametrize("kind", ["cg", "minres", "gmres"])
def test_a_singular_consistent_system_has_its_shortest_solution(kind):
    a = symmetric(torch.cat([torch.zeros(4), torch.linspace(1, 5, N - 4)]).double())
    b = a @ B
    solution = linear_solver(f"-ksp_type {kind} -ksp_rtol 1e-10", a).solve(b)
    assert relative(solution.x, torch.linalg.pinv(a, rtol=1e-8) @ b) < 1e-8


@pytest.mark.parametrize("kind", ["cg", "minres", "gmres"])
def test_tolerances(kind):
    solver = linear_solver(f"-ksp_type {kind} -ksp_rtol 1e-3", DEFINITE)
    loose, tight = solver.solve(B), solver.solve(B, 1e-8)
    assert 1e-5 < float((B - DEFINITE @ loose.x).norm() / B.norm()) <= 1.001e-3
    assert float((B - DEFINITE @ tight.x).norm() / B.norm()) <= 1.001e-8
    absolute = linear_solver(f"-ksp_type {kind} -ksp_rtol 0 -ksp_atol 1e-2", DEFINITE).solve(B)
    assert absolute.reason == Reason.CONVERGED_ATOL
    assert 1e-4 < float((B - DEFINITE @ absolute.x).norm()) <= 1.001e-2


@pytest.mark.parametrize("options", ["cg", "minres", "gmres", "preonly -pc_type cholesky", "cg -pc_type nystrom"])
def test_numbers_that_are_none_end_a_solve(options):
    solution = linear_solver(f"-ksp_type {options}", DEFINITE * float("nan")).solve(B)
    assert solution.reason == Reason.DIVERGED_NANORINF
    assert not linear_solver(f"-ksp_type {options}", DEFINITE).solve(0 * B).x.any()


def test_fewer_vectors_take_more_iterations():
    few, many = (
        linear_solver(f"-ksp_type gmres -ksp_gmres_restart {m} -ksp_rtol 1e-6 -ksp_max_it 2000", DEFINITE).solve(B)
        for m in (5, 30)
    )
    assert few.reason == many.reason == Reason.CONVERGED_RTOL
    assert few.iterations > 2 * many.iterations


def test_a_direct_solver_is_exact_and_takes_the_absolute_value_of_what_is_indefinite():
    exact = linear_solver("-ksp_type preonly -pc_type lu", DEFINITE).solve(B)
    assert relative(exact.x, torch.linalg.solve(DEFINITE, B)) < 1e-13
    values, vectors = torch.linalg.eigh(INDEFINITE)
    modified = linear_solver("-ksp_type preonly -pc_type cholesky", INDEFINITE).solve(B)
    assert relative(modified.x, vectors @ ((vectors.T @ B) / values.abs())) < 1e-12


def test_what_solves_nothing_or_is_too_large_is_refused():
    with pytest.raises(OptionsError, match="-pc_type none solves nothing; use -pc_type cholesky"):
        linear_solver("-ksp_type preonly", DEFINITE)
    with pytest.raises(UnsupportedError, match=r"4097 x 4097 numbers.*use -ksp_type cg"):
        linear_solver("-ksp_type preonly -pc_type lu", torch.zeros(1, 1).expand(LARGEST + 1, LARGEST + 1))


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize(
    "options",
    [
        "cg",
        "minres",
        "gmres -ksp_gmres_restart 8",
        "cg -pc_type nystrom -pc_nystrom_rank 6",
        "minres -pc_type nystrom -pc_nystrom_rank 6",
        "gmres -pc_type nystrom -pc_nystrom_rank 6",
        "preonly -pc_type cholesky",
    ],
)
@pytest.mark.parametrize("a", [MILD, INDEFINITE])
def test_sharded_vectors_are_solved_as_whole_ones(comm, options, a):
    space = Sharded(everyone(comm), N, torch.float64)
    here = linear_solver(f"-ksp_type {options} -ksp_rtol 1e-6", a, space).solve(space.local(B).clone())
    alone = linear_solver(f"-ksp_type {options} -ksp_rtol 1e-6", a, Replicated(N, torch.float64)).solve(B)
    assert here.reason == alone.reason
    assert here.iterations == alone.iterations
    assert relative(space.gather(here.x), alone.x) < 1e-9


def test_monitor_and_reason_lines_are_petscs(capsys):
    linear_solver("-ksp_monitor -ksp_converged_reason -ksp_max_it 1 -ksp_rtol 0", DEFINITE).solve(B)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"    0 KSP Residual norm {float(B.norm()):14.12e}"
    assert lines[1].startswith("    1 KSP Residual norm ")
    assert lines[2] == "    Linear solve did not converge due to DIVERGED_ITS iterations 1"
    assert len(lines) == 3
