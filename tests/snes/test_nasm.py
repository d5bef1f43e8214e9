"""Schwarz: exact identities against dense linear algebra and against its own local solver; parallel equals serial."""

from __future__ import annotations

import pytest
import torch

from ml2hpc.errors import OptionsError
from tests.snes.problems import Analytic, least_squares, matrix, quadratic, rosenbrock, tree, world

EXACT = "-sub_snes_type qn -sub_snes_qn_type bfgs -sub_snes_max_it 200 -sub_snes_rtol 1e-13"
STEP = "-snes_max_it 1 -snes_rtol 0 -snes_linesearch_type none"


def start(n: int) -> torch.Tensor:
    return torch.linspace(-1.0, 1.5, n, dtype=torch.float64)


def jacobi(a: torch.Tensor, x: torch.Tensor, blocks: list[slice]) -> torch.Tensor:
    """The sum of exact block corrections."""
    c = torch.zeros_like(x)
    for b in blocks:
        c[b] -= torch.linalg.solve(a[b, b], (a @ x)[b])
    return c


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_one_subdomain_is_the_local_solver(comm, kind):
    options = f"-snes_type nasm -snes_nasm_type {kind} -dm_subdomains 1 -sub_snes_max_it 5 {STEP}"
    point = tree(options, rosenbrock(world(comm))).solve(start(6))
    alone = tree("-snes_type qn -snes_max_it 5 -snes_rtol 1e-8", rosenbrock(world(comm))).solve(start(6))
    # x + 1 (M(x) - x) rounds once more than M(x).
    torch.testing.assert_close(point.x, alone.x, rtol=0, atol=1e-15)


def test_an_additive_step_is_block_jacobi(comm):
    options = f"-snes_type nasm -dm_decomposition blocks -dm_subdomains 2 {EXACT} {STEP}"
    point = tree(options, quadratic(world(comm))).solve(start(8))
    expected = start(8) + jacobi(matrix(8), start(8), [slice(0, 4), slice(4, 8)])
    torch.testing.assert_close(point.x, expected, rtol=0, atol=1e-9)


def test_damping_is_applied_once(comm):
    """PETSc applies it twice: 0.25 instead of 0.5."""
    options = f"-snes_type nasm -dm_decomposition blocks -dm_subdomains 2 {EXACT} {STEP} -snes_nasm_damping 0.5"
    point = tree(options, quadratic(world(comm))).solve(start(8))
    expected = start(8) + 0.5 * jacobi(matrix(8), start(8), [slice(0, 4), slice(4, 8)])
    torch.testing.assert_close(point.x, expected, rtol=0, atol=1e-9)


def test_a_multiplicative_step_is_block_gauss_seidel(comm):
    options = f"-snes_type nasm -snes_nasm_type multiplicative -dm_decomposition blocks -dm_subdomains 2 {EXACT} {STEP}"
    point = tree(options, quadratic(world(comm))).solve(start(8))
    a, x = matrix(8), start(8)
    for block in (slice(0, 4), slice(4, 8)):
        x = x + jacobi(a, x, [block])
    torch.testing.assert_close(point.x, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["basic", "restrict", "additive"])
def test_overlap_is_weighted_as_the_type_says(comm, kind):
    """Two blocks of 4 with overlap 1: unknowns 3 and 4 are in both."""
    options = f"-snes_type nasm -snes_nasm_type {kind} -dm_decomposition blocks -dm_subdomains 2 -dm_overlap 1"
    point = tree(f"{options} {EXACT} {STEP}", quadratic(world(comm))).solve(start(8))
    left = jacobi(matrix(8), start(8), [slice(0, 5)])
    right = jacobi(matrix(8), start(8), [slice(3, 8)])
    if kind == "restrict":
        left[4:], right[:4] = 0, 0
    if kind == "additive":
        left[3:5], right[3:5] = 0.5 * left[3:5], 0.5 * right[3:5]
    torch.testing.assert_close(point.x, start(8) + left + right, rtol=0, atol=1e-9)


def test_the_average_takes_one_share_of_each_correction(comm):
    options = f"-snes_type nasm -snes_nasm_combine average -dm_decomposition blocks -dm_subdomains 4 {EXACT} {STEP}"
    point = tree(options, quadratic(world(comm))).solve(start(8))
    expected = start(8) + 0.25 * jacobi(matrix(8), start(8), [slice(2 * k, 2 * k + 2) for k in range(4)])
    torch.testing.assert_close(point.x, expected, rtol=0, atol=1e-9)


def test_the_subspace_minimises_over_the_corrections(comm):
    """On a quadratic: coefficients solve the projected system."""
    problem = quadratic(world(comm))
    options = "-snes_type nasm -snes_nasm_combine subspace -dm_decomposition blocks -dm_subdomains 2"
    point = tree(f"{options} {EXACT} -subspace_snes_max_it 60 -snes_max_it 1", problem).solve(start(8))
    a, x = matrix(8), start(8)
    d = torch.stack([jacobi(a, x, [slice(0, 4)]), jacobi(a, x, [slice(4, 8)])])
    best = torch.linalg.solve(d @ a @ d.T, -d @ (a @ x))
    torch.testing.assert_close(point.x, x + d.T @ best, rtol=0, atol=1e-7)


def test_layerwise_searches_lower_the_objective_at_least_as_far_as_none(comm):
    base = "-snes_type nasm -dm_decomposition blocks -dm_subdomains 4 -sub_snes_max_it 3 -snes_max_it 3"
    ends = {
        how: tree(f"{base} -snes_nasm_combine {how}", rosenbrock(world(comm), 8)).solve(start(8)).f
        for how in ("layerwise", "linesearch", "average")
    }
    assert ends["layerwise"] < ends["average"]
    assert ends["linesearch"] < ends["average"]


def test_sample_subdomains_start_from_the_whole_gradient(comm):
    """First-order consistency: at a minimum of the whole loss no local solve moves."""
    problem = least_squares(world(comm))
    best = tree("-snes_type qn -snes_qn_type bfgs -snes_rtol 1e-14 -snes_max_it 100", problem).solve(
        torch.zeros(6, dtype=torch.float64)
    )
    options = "-snes_type nasm -dm_decomposition samples -dm_subdomains 3 -sub_snes_max_it 10 -snes_max_it 1"
    point = tree(f"{options} -snes_linesearch_type none -snes_atol 0 -snes_rtol 0", problem).solve(best.x)
    assert (point.x - best.x).norm() < 1e-10


def test_the_critical_path_counts_parallel_solves_once(comm):
    solver = tree(
        "-snes_type nasm -dm_subdomains 4 -sub_snes_max_it 3 -sub_snes_linesearch_type none "
        "-sub_snes_linesearch_damping 1e-3 -snes_linesearch_type none -snes_max_it 1 -snes_rtol 0",
        quadratic(world(comm)),
    )
    solver.solve(start(8))
    # One gradient at the start and one after the step; each of 4 local solves made 3, the first of them known.
    assert solver.work["gradients", "path"] == 2 + 3
    assert solver.work["gradients", "total"] == 2 + 4 * 3


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("multiplicative", "linesearch"),
        *((k, h) for k in ("additive", "restrict") for h in ("linesearch", "layerwise", "subspace", "average")),
    ],
)
def test_any_number_of_ranks_gives_the_same_bits(comm, kind, how):
    options = (
        f"-snes_type qn -snes_max_it 5 -snes_rtol 0 -npc_snes_type nasm -npc_snes_nasm_type {kind} "
        f"-npc_snes_nasm_combine {how} -npc_dm_subdomains 3 -npc_sub_snes_max_it 4"
    )
    here = tree(options, rosenbrock(world(comm))).solve(start(6))
    alone = tree(options, rosenbrock(world(comm).alone())).solve(start(6))
    assert torch.equal(here.x, alone.x)
    assert here.f == alone.f


@pytest.mark.parallel(2, 3, 4)
def test_groups_of_ranks_share_a_subdomain(comm):
    """More ranks than subdomains: two groups, each on its own communicator."""
    sizes = []

    class Watched(Analytic):
        def on(self, other):
            sizes.append(other.size)
            return super().on(other)

    problem = quadratic(world(comm))
    watched = Watched(problem.comm, problem.f, 8)
    options = "-snes_type nasm -dm_subdomains 2 -sub_snes_max_it 3 -snes_max_it 3"
    point = tree(options, watched).solve(start(8))
    assert sum(comm.allgather(sizes[0])) == sum(s * s for s in {2: [1, 1], 3: [2, 1], 4: [2, 2]}[comm.size])
    assert torch.equal(point.x, tree(options, quadratic(world(comm).alone())).solve(start(8)).x)


@pytest.mark.parallel(1, 2, 3, 4)
def test_sharded_vectors_give_the_same_iterates(comm):
    from ml2hpc.problem.interface import ShardedProblem

    for kind in ("lbfgs", "ssbroyden"):
        options = f"-snes_type qn -snes_qn_type {kind} -snes_max_it 8 -snes_rtol 0"
        sharded = ShardedProblem(rosenbrock(world(comm)))
        point = tree(options, sharded).solve(sharded.space.local(start(6)).clone())
        whole = tree(options, rosenbrock(world(comm))).solve(start(6))
        torch.testing.assert_close(sharded.space.gather(point.x), whole.x, rtol=1e-10, atol=1e-10)


def test_a_step_that_raises_the_objective_is_not_taken(comm):
    """Block Jacobi with 8 blocks overshoots on strongly coupled unknowns; without a search its sum may rise."""
    options = "-snes_type nasm -snes_nasm_type multiplicative -dm_subdomains 2 -snes_nasm_damping 3 -sub_snes_max_it 50"
    solver = tree(f"{options} -snes_max_it 3", quadratic(world(comm)))
    point = solver.solve(start(8))
    assert solver.failure == "after the sweep: the objective rises"
    assert torch.equal(point.x, start(8))


def test_combining_what_comes_one_after_the_other_is_refused(comm):
    options = "-snes_type nasm -snes_nasm_type multiplicative -snes_nasm_combine average -dm_subdomains 2"
    with pytest.raises(OptionsError, match="combines additive corrections"):
        tree(options, rosenbrock(world(comm)))


@pytest.mark.parametrize("sub", ["ngs", "composite -sub_snes_composite_sneses qn,qn", "qn -sub_npc_snes_type qn"])
def test_every_local_solver_sees_the_shift_of_the_step(comm, sub):
    """Sampled problems carry another shift in every step; with that of the first the corrections go astray."""
    options = f"-snes_type nasm -dm_decomposition samples -dm_subdomains 2 -sub_snes_type {sub} -snes_max_it 40"
    solver = tree(f"{options} -sub_snes_max_it 3 -snes_rtol 1e-3", least_squares(world(comm)))
    point = solver.solve(torch.linspace(-1, 2, 6, dtype=torch.float64))
    reference = tree("-snes_type qn", least_squares(world(comm))).solve(torch.linspace(-1, 2, 6, dtype=torch.float64))
    assert point.f == pytest.approx(reference.f, rel=1e-3)
