"""The Nystrom preconditioner: what it captures, how far it helps, that it is definite, how long it is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml2hpc.ksp import Operator, Reason
from ml2hpc.ksp.nystrom import Nystrom
from ml2hpc.log import Log
from ml2hpc.vec import Replicated
from tests.ksp.systems import linear_solver, normal, operator, symmetric

N = 20
DEFINITE = symmetric(torch.logspace(0, 2, N, dtype=torch.float64))
INDEFINITE = symmetric(torch.cat([torch.linspace(-3, -1, 5), torch.linspace(1, 30, 15)]).double())


def test_a_sketch_cuts_the_iterations_of_conjugate_gradients_to_a_third():
    """Ten eigenvalues from 1e6 to 1e3, the rest near 1: a condition number of 2 is left of 1e6."""
    a, b = symmetric(torch.cat([torch.logspace(6, 3, 10), torch.linspace(1, 2, 190)]).double()), normal(200, seed=3)
    plain = linear_solver("-ksp_rtol 1e-8 -ksp_max_it 1000", a).solve(b)
    sketched = linear_solver("-ksp_rtol 1e-8 -pc_type nystrom -pc_nystrom_rank 20", a).solve(b)
    assert sketched.reason == Reason.CONVERGED_RTOL
    assert sketched.iterations * 3 <= plain.iterations
    assert sketched.iterations <= 20


def test_a_sketch_captures_a_matrix_of_its_rank():
    """P^-1 B is l I on the range of B: one iteration from a right-hand side there."""
    a = symmetric(torch.cat([torch.zeros(N - 4), torch.logspace(0, 4, 4)]).double())
    solution = linear_solver("-ksp_rtol 1e-6 -pc_type nystrom -pc_nystrom_rank 8", a).solve(a @ normal(N, seed=7))
    assert solution.reason == Reason.CONVERGED_RTOL
    assert solution.iterations <= 2


@pytest.mark.parametrize("a", [DEFINITE, INDEFINITE, -DEFINITE, torch.zeros(N, N, dtype=torch.float64)])
def test_a_sketch_of_any_symmetric_matrix_is_positive_definite(a):
    pc = Nystrom(10, 0, 1)
    pc.set_up(operator(a))
    p = torch.stack([pc.apply(e) for e in torch.eye(N, dtype=torch.float64)], 1)
    assert float((p - p.T).abs().max()) < 1e-14
    assert float(torch.linalg.eigvalsh(p)[0]) > 0


@pytest.mark.parametrize(("lag", "sketches"), [(1, 4), (2, 2), (10, 1)])
def test_operators_share_a_sketch(lag, sketches):
    actions = []

    def action(v: Tensor) -> Tensor:
        actions.append(v)
        return DEFINITE @ v

    solver = linear_solver(f"-pc_type nystrom -pc_nystrom_rank 5 -pc_nystrom_lag {lag}", DEFINITE)
    for _ in range(3):
        solver.set_up(Operator(Replicated(N, torch.float64), action), Log(), talks=False)
    assert len(actions) == 5 * (sketches - 1)


@pytest.mark.parametrize("option", ["seed 3", "rank 4"])
def test_rank_and_seed_choose_the_test_matrix(option):
    b = normal(N, seed=7)
    first, other = (
        linear_solver(f"-ksp_max_it 3 -pc_type nystrom -pc_nystrom_{o}", DEFINITE).solve(b).x
        for o in ("rank 5", option)
    )
    assert not torch.equal(first, other)
