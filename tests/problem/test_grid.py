"""Energies on a grid against independent formulas, their derivatives, their restrictions and any number of ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.errors import UnsupportedError, UserError
from ml2hpc.log import Log
from ml2hpc.problem.boxes import Box, Partition
from ml2hpc.problem.energies import Bratu, Energy, MinimalSurface
from ml2hpc.problem.grid import BoxBlock, GridProblem
from ml2hpc.problem.interface import Block
from ml2hpc.snes import SNES
from tests.snes.problems import tree

SHAPE = (9, 7)  # hx and hy differ
ENERGIES: list[Energy] = [Bratu(6.0), Bratu(2.0, manufactured=True), MinimalSurface()]


def alone(mpi, energy: Energy, shape: tuple[int, int] = SHAPE, dtype: torch.dtype = torch.float64) -> GridProblem:
    return GridProblem(Communicator(mpi, Log()).alone(), energy, shape, dtype)


def some(problem: GridProblem, seed: int) -> Tensor:
    """A whole vector; boundary values are none of the Dirichlet values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(problem.space.n, generator=generator, dtype=torch.float64).to(problem.space.dtype)


def bratu_residual(u: np.ndarray, hx: float, hy: float, lam: float) -> np.ndarray:
    """The 5-point residual of PETSc's example, node by node; u[j, i]."""
    rows, columns = u.shape
    f = np.zeros_like(u)
    inside = {(j, i) for j in range(1, rows - 1) for i in range(1, columns - 1)}
    for j in range(rows):
        for i in range(columns):
            f[j, i] = 2 * (hy / hx + hx / hy) * u[j, i]
            if (j, i) in inside:
                for neighbour, factor in (((j, i - 1), hy / hx), ((j, i + 1), hy / hx)):
                    f[j, i] -= factor * u[neighbour] * (neighbour in inside)
                for neighbour, factor in (((j - 1, i), hx / hy), ((j + 1, i), hx / hy)):
                    f[j, i] -= factor * u[neighbour] * (neighbour in inside)
                f[j, i] -= hx * hy * lam * np.exp(u[j, i])
    return f


def test_the_bratu_gradient_is_the_5_point_residual(comm) -> None:
    problem = alone(comm, Bratu(6.0))
    x = some(problem, 1)
    expected = bratu_residual(x.view(SHAPE[::-1]).numpy(), 1 / 8, 1 / 6, 6.0)
    np.testing.assert_allclose(problem.gradient(x).view(SHAPE[::-1]).numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("nodes", "norm"), [(81, 1.13079), (49, 1.17887)])
def test_the_first_residual_norm_is_the_one_that_petsc_prints(comm, nodes: int, norm: float) -> None:
    """SNES example 5 with its default right-hand side, on 81 x 81 and 49 x 49 nodes, as in PETSc's test outputs."""
    problem = alone(comm, Bratu(6.0, manufactured=True), (nodes, nodes))
    found = problem.space.norm(problem.gradient(problem.guess()))
    assert f"{found:.6g}" == f"{norm:.6g}"


def test_the_bratu_energy_is_the_examples_objective(comm) -> None:
    problem = alone(comm, Bratu(6.0))
    u = some(problem, 2).view(SHAPE[::-1]).numpy()
    hx, hy = 1 / 8, 1 / 6
    edge = np.ones_like(u, dtype=bool)
    edge[1:-1, 1:-1] = False
    linear = bratu_residual(u, hx, hy, 0.0)
    inside = 0.5 * (u * linear)[~edge].sum() - hx * hy * 6.0 * np.exp(u[~edge]).sum()
    expected = inside + (hy / hx + hx / hy) * (u[edge] ** 2).sum()
    assert problem.objective(torch.from_numpy(u).reshape(-1)) == pytest.approx(expected, rel=1e-14)


def test_the_surface_is_the_sum_of_its_triangles(comm) -> None:
    problem = alone(comm, MinimalSurface(), (4, 5))
    u = some(problem, 3)
    v = u.clone()
    v[problem.part._edge] = problem.part._edge_values
    xy = torch.stack(problem.part.coordinates(problem.grid), 1)
    points = torch.cat([xy, v[:, None]], 1).view(5, 4, 3)
    area = 0.0
    for j in range(4):
        for i in range(3):
            for a, b, c in (((j, i), (j, i + 1), (j + 1, i)), ((j + 1, i + 1), (j + 1, i), (j, i + 1))):
                area += 0.5 * float(torch.linalg.cross(points[b] - points[a], points[c] - points[a]).norm())
    gap = (u - v).square().sum()
    penalty = (1 / 4) / (1 / 3) + (1 / 3) / (1 / 4)
    assert problem.objective(u) == pytest.approx(area + penalty * float(gap), rel=1e-14)


@pytest.mark.parametrize("energy", ENERGIES, ids=lambda e: e.title)
def test_taylor_remainders_fall_with_orders_two_and_three(comm, energy: Energy) -> None:
    problem = alone(comm, energy)
    x, d = 0.3 * some(problem, 4), some(problem, 5)
    f, g = problem.value_and_gradient(x)
    slope, curvature = float(g @ d), float(d @ problem.hessian_action(x, d))
    steps = [2.0**-k for k in range(5, 9)]
    changes = [problem.objective(x + t * d) - f - t * slope for t in steps]
    second = [abs(c) for c in changes]
    third = [abs(c - 0.5 * t * t * curvature) for c, t in zip(changes, steps, strict=True)]
    assert math.log2(second[0] / second[-1]) / 3 == pytest.approx(2, abs=0.1)
    assert math.log2(third[0] / third[-1]) / 3 == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("energy", ENERGIES, ids=lambda e: e.title)
def test_hessian_actions_are_symmetric_derivatives_of_the_gradient(comm, energy: Energy) -> None:
    problem = alone(comm, energy)
    x, d, e = some(problem, 6), some(problem, 7), some(problem, 8)
    action = problem.hessian_action(x, d)
    difference = (problem.gradient(x + 1e-5 * d) - problem.gradient(x - 1e-5 * d)) / 2e-5
    torch.testing.assert_close(action, difference, rtol=0, atol=1e-8)
    assert float(e @ action) == pytest.approx(float(d @ problem.hessian_action(x, e)), rel=1e-12)


@pytest.mark.parallel(2, 3, 4)
@pytest.mark.parametrize("energy", ENERGIES, ids=lambda e: e.title)
@pytest.mark.parametrize("shape", [SHAPE, (3, 4), (20, 5)])
def test_any_number_of_ranks_gives_the_same_problem(comm, energy: Energy, shape: tuple[int, int]) -> None:
    """On 3 x 4 nodes some ranks hold nothing but boundary."""
    here, whole = GridProblem(Communicator(comm, Log()), energy, shape), alone(comm, energy, shape)
    x, d = some(whole, 9), some(whole, 10)
    f, g = here.value_and_gradient(here.space.local(x))
    f_whole, g_whole = whole.value_and_gradient(x)
    assert f == pytest.approx(f_whole, rel=1e-14)
    assert len(set(comm.allgather(f))) == 1
    assert torch.equal(here.space.gather(g), g_whole)
    action = here.hessian_action(here.space.local(x), here.space.local(d))
    assert torch.equal(here.space.gather(action), whole.hessian_action(x, d))
    assert torch.equal(here.space.gather(here.guess()), whole.guess())


BOXES = [Box(0, 9, 0, 7), Box(0, 5, 2, 6), Box(2, 7, 1, 5), Box(4, 9, 3, 7), Box(1, 8, 1, 6)]


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("energy", ENERGIES, ids=lambda e: e.title)
@pytest.mark.parametrize("box", BOXES, ids=str)
def test_a_restriction_has_slices_of_the_whole_derivatives(comm, energy: Energy, box: Box) -> None:
    whole = alone(comm, energy)
    local = GridProblem(Communicator(comm, Log()), energy, SHAPE).restrict(BoxBlock(box, whole.grid))
    x, d = some(whole, 11), torch.zeros(63, dtype=torch.float64)
    rows = box.natural(whole.grid)
    d[rows] = some(whole, 12)[rows]
    start, step = local.rebase(x), local.space.local(d[rows])
    f, g = local.value_and_gradient(start)
    f_whole, g_whole = whole.value_and_gradient(x)
    torch.testing.assert_close(local.space.gather(g), g_whole[rows], rtol=0, atol=1e-14)
    action = local.space.gather(local.hessian_action(start, step))
    torch.testing.assert_close(action, whole.hessian_action(x, d)[rows], rtol=0, atol=1e-14)
    # Up to a constant: the difference of two states of the box is that of the whole.
    assert local.objective(start + step) - f == pytest.approx(whole.objective(x + d) - f_whole, rel=1e-12)
    assert local.cost.gradient == pytest.approx(whole.cost.gradient * box.n / 63)


def test_a_restriction_to_any_unknowns_is_the_general_one(comm) -> None:
    problem = alone(comm, Bratu(6.0))
    x, rows = some(problem, 13), torch.tensor([3, 10, 11, 40])
    local = problem.restrict(Block(rows, "some"))
    torch.testing.assert_close(local.gradient(local.rebase(x)), problem.gradient(x)[rows], rtol=0, atol=0)


@pytest.mark.parametrize("ratio", [1, 2], ids=["square cells", "long cells"])
def test_the_surface_converges_to_scherks_with_order_two(comm, ratio: int) -> None:
    errors = []
    for cells in (8, 16, 32):
        problem = alone(comm, MinimalSurface(), (cells + 1, ratio * cells + 1))
        point = solved(problem).solve(problem.guess())
        exact = problem.exact()
        assert exact is not None
        errors.append(float((point.x - exact).abs().max()))
    assert math.log2(errors[1] / errors[2]) > 1.8


def test_the_manufactured_solution_solves_the_discrete_problem(comm) -> None:
    """It has degree two in each coordinate: the 5-point stencil makes no error."""
    problem = alone(comm, Bratu(6.0, manufactured=True))
    exact = problem.exact()
    assert exact is not None
    assert problem.space.norm(problem.gradient(exact)) < 1e-14


def solved(problem: GridProblem) -> SNES:
    return tree("-snes_type qn -snes_qn_m 20 -snes_rtol 1e-9 -snes_stol 0 -snes_max_it 400", problem)


@pytest.mark.parametrize("energy", ENERGIES, ids=lambda e: e.title)
def test_single_precision_stays_single(comm, energy: Energy) -> None:
    problem, double = alone(comm, energy, dtype=torch.float32), alone(comm, energy)
    x = some(problem, 14)
    f, g = problem.value_and_gradient(x)
    assert g.dtype == problem.hessian_action(x, g).dtype == problem.guess().dtype == torch.float32
    f_double, g_double = double.value_and_gradient(x.double())
    assert f == pytest.approx(f_double, rel=1e-6)
    torch.testing.assert_close(g.double(), g_double, rtol=1e-5, atol=1e-5)


def test_boxes_cut_as_petsc_cuts_them() -> None:
    """33 x 33 nodes on 1 to 4 ranks, as DMDA answers: 1 x 1, 1 x 2, 1 x 3 and 2 x 2, the first ones longer."""
    grid = Box(0, 33, 0, 33)
    assert [(Partition(grid, n).across, Partition(grid, n).up) for n in (1, 2, 3, 4)] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 2),
    ]
    assert Partition(grid, 4).boxes[2] == Box(0, 17, 17, 33)
    assert [Partition(Box(0, 40, 0, 10), n).across for n in (2, 3, 6)] == [2, 3, 3]


def test_numbers_are_consecutive_in_each_box() -> None:
    partition = Partition(Box(2, 11, 1, 9), 6)
    numbers = torch.cat([partition.numbers(box) for box in partition.boxes])
    assert torch.equal(numbers, torch.arange(72))
    found = partition.numbers(Box(3, 9, 2, 7)).view(5, 6)
    places = torch.full((9, 12), -1)
    for box in partition.boxes:
        places[box.y0 : box.y1, box.x0 : box.x1] = partition.numbers(box).view(box.shape)
    assert torch.equal(found, places[2:7, 3:9])


def test_a_grid_with_fewer_lines_than_ranks_is_refused() -> None:
    with pytest.raises(UserError, match="a grid of 3 x 3 nodes cannot be cut into 1 x 5 boxes: use fewer ranks"):
        Partition(Box(0, 3, 0, 3), 5)


def test_gauss_newton_is_refused(comm) -> None:
    problem = alone(comm, Bratu(6.0))
    with pytest.raises(UnsupportedError, match="not a sum of squares: Gauss-Newton needs residuals; use qn"):
        tree("-snes_type gn -snes_max_it 1", problem).solve(problem.guess())
