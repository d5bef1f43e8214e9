"""Minimisation over the span of corrections: its cost does not depend on the scale of L, and no evaluation is lost."""

from __future__ import annotations

import pytest
import torch

from tests.snes.problems import Analytic, matrix, rosenbrock, tree, world

NASM = "-snes_type nasm -snes_nasm_combine subspace -dm_decomposition blocks -dm_subdomains 2 -snes_max_it 1"


def start(n: int) -> torch.Tensor:
    return torch.linspace(-1.0, 1.5, n, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e4])
def test_the_scale_of_the_objective_costs_no_evaluations(comm, scale):
    """The corrections of a converging solve have slopes as small as L: a step must not start with that length."""
    a = scale * matrix(8)
    problem = Analytic(world(comm), lambda x, d: 0.5 * x @ (a @ x), 8)
    local = "-sub_snes_type qn -sub_snes_qn_type bfgs -sub_snes_max_it 200 -sub_snes_rtol 1e-13"
    solver = tree(f"{NASM} {local} -snes_rtol 0", problem)
    point = solver.solve(start(8))
    ((_, inner),) = solver.method.inner()[1:]
    assert inner.work["gradients", "path"] <= 9
    x, blocks = start(8), (slice(0, 4), slice(4, 8))
    d = torch.zeros(2, 8, dtype=torch.float64)
    for row, b in zip(d, blocks, strict=True):
        row[b] = -torch.linalg.solve(a[b, b], (a @ x)[b])
    best = x + d.T @ torch.linalg.solve(d @ a @ d.T, -d @ (a @ x))
    assert point.f == pytest.approx(0.5 * float(best @ a @ best), rel=1e-4)


def test_the_gradient_at_the_end_is_that_of_the_last_trial(comm):
    problem = rosenbrock(world(comm))
    solver = tree(f"{NASM} -sub_snes_max_it 3", problem)
    solver.solve(start(6))
    ((_, local), (_, inner)) = solver.method.inner()
    counted = 1 + local.work["gradients", "total"] + inner.work["gradients", "total"]
    assert solver.work["gradients", "total"] == counted
