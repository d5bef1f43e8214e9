"""Nonlinear Gauss-Seidel: the linear sweep on a quadratic, its rate, shared prefixes, parallel equals serial."""

from __future__ import annotations

import pytest
import torch

from ml2hpc.errors import OptionsError
from tests.problem.small import pinn
from tests.snes.problems import matrix, quadratic, rosenbrock, tree, world

EXACT = "-snes_ngs_rtol 1e-13 -snes_ngs_stol 0 -snes_rtol 0"


def start(n: int) -> torch.Tensor:
    return torch.linspace(-1.0, 1.5, n, dtype=torch.float64)


def gauss_seidel(x: torch.Tensor, width: int) -> torch.Tensor:
    """One sweep over blocks of `width` unknowns."""
    a, x = matrix(len(x)), x.clone()
    for low in range(0, len(x), width):
        block = slice(low, low + width)
        x[block] -= torch.linalg.solve(a[block, block], (a @ x)[block])
    return x


@pytest.mark.parametrize("secant", ["true", "false"])
@pytest.mark.parametrize(
    ("blocks", "width"), [("unknowns", 1), ("tensors", 1), ("layers", 2), ("dm -dm_decomposition blocks", 4)]
)
def test_a_sweep_on_a_quadratic_is_gauss_seidel(comm, blocks, width, secant):
    options = f"-snes_type ngs -snes_ngs_blocks {blocks} {EXACT} -snes_ngs_max_it 400 -snes_ngs_secant {secant}"
    point = tree(f"{options} -snes_max_it 1", quadratic(world(comm))).solve(start(8))
    torch.testing.assert_close(point.x, gauss_seidel(start(8), width), rtol=0, atol=1e-10)
    two = tree(f"{options} -snes_ngs_sweeps 2 -snes_max_it 1", quadratic(world(comm))).solve(start(8))
    torch.testing.assert_close(two.x, gauss_seidel(gauss_seidel(start(8), width), width), rtol=0, atol=1e-10)


def test_the_rate_is_that_of_the_iteration_matrix(comm):
    """In the energy norm, to within the last digits: rho(I - (D + L)^-1 A)^2 for L itself."""
    a = matrix(8)
    lower = torch.tril(a)
    radius = torch.linalg.eigvals(torch.eye(8, dtype=torch.float64) - torch.linalg.solve(lower, a)).abs().max()
    options = f"-snes_type ngs -snes_ngs_blocks unknowns {EXACT} -snes_stol 0"
    ends = [tree(f"{options} -snes_max_it {k}", quadratic(world(comm))).solve(start(8)).f for k in (30, 40)]
    assert (ends[1] / ends[0]) ** 0.1 == pytest.approx(float(radius) ** 2, rel=1e-3)


def test_newton_takes_one_step_and_two_gradients_for_an_unknown_of_a_quadratic(comm):
    solver = tree(
        "-snes_type ngs -snes_ngs_blocks unknowns -snes_ngs_secant false -snes_max_it 1", quadratic(world(comm))
    )
    solver.solve(start(8))
    # The first block's gradient is known; one gradient at the start and one after the sweep.
    assert solver.work["gradients", "path"] == 2 + 7 + 8
    assert solver.work["hessians", "path"] == 8


def test_the_curvature_that_a_block_learnt_is_used_in_the_next_sweep(comm):
    """The secant method: from the second sweep on a quadratic's unknown takes one step, as Newton's."""
    base = "-snes_type ngs -snes_ngs_blocks unknowns -snes_rtol 0"
    work = [tree(f"{base} -snes_max_it {k}", quadratic(world(comm))) for k in (1, 2, 3)]
    first, second, third = (s.solve(start(8)) is not None and s.work["gradients", "path"] for s in work)
    assert third - second == second - first == 7 + 8 + 1


@pytest.mark.parametrize("blocks", ["layers", "tensors", "unknowns"])
def test_a_network_is_swept_with_its_prefix_frozen(blocks):
    """Any blocks lower the loss; the work is below the count, since the layers below a block are not run again."""
    problem, x = pinn(depth=4)
    solver = tree(f"-snes_type ngs -snes_ngs_blocks {blocks} -snes_max_it 1 -snes_ngs_max_it 3", problem)
    point = solver.solve(x)
    assert point.f < 0.9 * problem.objective(x)
    assert point.f == problem.objective(point.x)
    assert solver.work["gradients", "work"] < 0.75 * solver.work["gradients", "path"]


@pytest.mark.parallel(1, 2, 3, 4)
def test_any_number_of_ranks_gives_the_same_bits(comm):
    options = "-snes_type qn -snes_max_it 5 -snes_rtol 0 -npc_snes_type ngs -npc_snes_ngs_blocks unknowns"
    here = tree(options, rosenbrock(world(comm))).solve(start(6))
    serial = tree(options, rosenbrock(world(comm).alone())).solve(start(6))
    assert torch.equal(here.x, serial.x)
    assert here.f == serial.f


def test_samples_are_refused(comm):
    with pytest.raises(OptionsError, match="use layers, tensors, blocks or coarse"):
        tree("-snes_type ngs -snes_ngs_blocks dm -dm_decomposition samples", quadratic(world(comm)))


def test_the_view_counts_the_blocks(comm):
    view = tree("-snes_type ngs -snes_ngs_blocks tensors", quadratic(world(comm))).view()
    assert "8 blocks (tensors), sweeps=1, secant steps, at most 50 on a block" in view
