"""Schwarz on partitioned vectors: PETSc's figures, dense overlapping Schwarz, any number of ranks, no whole vector."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.errors import OptionsError
from ml2hpc.log import Log
from ml2hpc.problem.boxes import Partition
from ml2hpc.problem.energies import Bratu, MinimalSurface
from ml2hpc.problem.grid import GridProblem
from ml2hpc.snes import SNES, Point, Reason
from ml2hpc.vec import Partitioned
from tests.snes.problems import quadratic, tree, world

BOXES = "-snes_type nasm -dm_decomposition boxes"
EXACT = "-sub_snes_type qn -sub_snes_qn_m 30 -sub_snes_max_it 400 -sub_snes_rtol 1e-12 -sub_snes_stol 0"
STEP = "-snes_max_it 1 -snes_rtol 0 -snes_linesearch_type none"


def bratu(mpi, nodes: tuple[int, int], parameter: float = 6.0, *, alone: bool = False) -> GridProblem:
    c = Communicator(mpi, Log())
    return GridProblem(c.alone() if alone else c, Bratu(parameter), nodes)


def whole(problem: GridProblem, options: str) -> tuple[Tensor, Point]:
    point = tree(options, problem).solve(problem.guess())
    return problem.space.gather(point.x), point


def test_restricted_schwarz_follows_petsc(comm) -> None:
    """SNES example 5, `-snes_type nasm -snes_nasm_type restrict -da_refine 4 -da_overlap 3` on 4 ranks, 4 of its norms.

    PETSc solves the subdomains by Newton's method, here quasi-Newton does, both nearly exactly.
    """
    problem = GridProblem(Communicator(comm, Log()).alone(), Bratu(6.0, manufactured=True), (49, 49))
    options = f"{BOXES} -dm_subdomains 4 -dm_overlap 3 -snes_nasm_type restrict -snes_linesearch_type none"
    solver = tree(f"{options} -snes_max_it 3 -sub_snes_max_it 400 -sub_snes_stol 0 -sub_snes_rtol 1e-7", problem)
    norms: list[float] = []

    def record(solver: SNES, point: Point, norm: float, update: float) -> Reason:
        norms.append(norm)
        return Reason.CONVERGED_ITERATING

    solver.observe = record
    solver.solve(problem.guess())
    assert [f"{norm:.5g}" for norm in norms] == ["1.1789", "0.16293", "0.11615", "0.093573"]


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("kind", ["additive", "restrict", "basic", "multiplicative"])
def test_a_linear_step_is_dense_overlapping_schwarz(comm, kind: str) -> None:
    """-laplace u = 0: the Hessian A is constant, and a local solve is exact. 6 boxes on 9 x 10 nodes, overlap 1."""
    dense = bratu(comm, (9, 10), 0.0, alone=True)
    n = dense.space.n
    a = torch.stack([dense.hessian_action(torch.zeros(n).double(), e) for e in torch.eye(n, dtype=torch.float64)])
    x = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    owned = Partition(dense.grid, 6).boxes
    rows = [box.grown(1, dense.grid).natural(dense.grid) for box in owned]
    multiplicity = torch.zeros(n, dtype=torch.float64)
    for r in rows:
        multiplicity[r] += 1
    expected = x.clone()
    for box, r in zip(owned, rows, strict=True):
        at = expected if kind == "multiplicative" else x
        correction = torch.zeros_like(x)
        correction[r] = -torch.linalg.solve(a[r][:, r], (a @ at)[r])
        if kind == "restrict":
            own = box.natural(dense.grid)
            correction = torch.zeros_like(x).index_copy_(0, own, correction[own])
        expected = expected + (correction / multiplicity if kind == "additive" else correction)
    problem = bratu(comm, (9, 10), 0.0)
    options = f"{BOXES} -dm_subdomains 6 -dm_overlap 1 -snes_nasm_type {kind} {EXACT} {STEP}"
    point = tree(options, problem).solve(problem.space.local(x).clone())
    found = problem.space.gather(point.x)
    if kind == "multiplicative":  # the step is taken as the energy falls
        assert point.f < dense.objective(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parallel(2, 3, 4)
@pytest.mark.parametrize("count", [2, 4, 5])
@pytest.mark.parametrize(
    "how",
    [
        "-snes_nasm_combine subspace",
        "-snes_nasm_combine layerwise",
        "-snes_nasm_combine average",
        "-snes_nasm_type restrict",
    ],
)
def test_any_number_of_ranks_gives_the_same_iterates(comm, count: int, how: str) -> None:
    """More subdomains than ranks, as many, and fewer: then several ranks share one."""
    options = f"{BOXES} -dm_subdomains {count} -dm_overlap 1 {how} -snes_max_it 3 -sub_snes_max_it 4 -snes_rtol 0"
    here, point = whole(bratu(comm, (13, 11)), options)
    alone, expected = whole(bratu(comm, (13, 11), alone=True), options)
    torch.testing.assert_close(here, alone, rtol=0, atol=1e-10)
    assert point.f == pytest.approx(expected.f, rel=1e-12)


@pytest.mark.parallel(2, 4)
@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_a_preconditioner_is_the_same_on_any_number_of_ranks(comm, kind: str) -> None:
    options = (
        f"-snes_type qn -snes_max_it 2 -snes_rtol 0 -npc_snes_type nasm -npc_snes_nasm_type {kind} "
        "-npc_dm_decomposition boxes -npc_dm_subdomains 4 -npc_dm_overlap 2 -npc_sub_snes_max_it 4"
    )
    shape, energy = (9, 10), MinimalSurface()
    c = Communicator(comm, Log())
    here, _ = whole(GridProblem(c, energy, shape), options)
    alone, _ = whole(GridProblem(c.alone(), energy, shape), options)
    torch.testing.assert_close(here, alone, rtol=0, atol=1e-10)


@pytest.mark.parallel(1, 2, 4)
@pytest.mark.parametrize("kind", ["additive", "multiplicative", "restrict"])
def test_no_step_assembles_a_whole_vector(comm, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = bratu(comm, (17, 17))
    options = (
        f"-snes_type qn -snes_max_it 2 -snes_rtol 0 -npc_snes_type nasm -npc_snes_nasm_type {kind} "
        "-npc_dm_decomposition boxes -npc_dm_subdomains 4 -npc_dm_overlap 1 -npc_sub_snes_max_it 3"
    )
    solver = tree(options, problem)
    c = problem.comm
    received: list[int] = []
    gather = c.allgather

    def watched(send, receive=None):
        received.append(send.size * c.size)
        return gather(send, receive)

    monkeypatch.setattr(c, "allgather", watched)
    monkeypatch.setattr(Partitioned, "gather", None)
    monkeypatch.setattr(Communicator, "allgather_parts", None)
    point = solver.solve(problem.guess())
    assert point.f < problem.objective(problem.guess())
    # Products of vectors and counts of work, not values: 289 unknowns, at most 20 products or 9 counts by 4.
    assert max(received) <= 40 * c.size
    assert (c.log.total.messages > 0) == (c.size > 1)


@pytest.mark.parallel(4)
def test_messages_go_to_neighbours_only(comm) -> None:
    """Four boxes in a row: an end has one neighbour, and a halo's message each way per evaluation."""
    problem = bratu(comm, (40, 3))
    assert problem.part.partition.across == 4
    problem.gradient(problem.guess())
    before = problem.comm.log.total.messages, problem.comm.log.total.bytes
    problem.gradient(problem.guess())
    total = problem.comm.log.total
    neighbours = 1 if comm.rank in (0, 3) else 2
    assert total.messages - before[0] == neighbours
    assert total.bytes - before[1] <= 8 * (3 * neighbours + 4)  # a column from each, and everyone's energy


@pytest.mark.parallel(1, 2, 4)
def test_the_derivative_of_schwarz_is_that_of_its_step(comm) -> None:
    """ASPIN's operator against central differences of x - M(x), with exact local solves, on 4 overlapping boxes."""
    problem = bratu(comm, (11, 10))
    npc = "-npc_dm_decomposition boxes -npc_dm_subdomains 4 -npc_dm_overlap 2 -npc_sub_snes_rtol 1e-13"
    solver = tree(
        f"-snes_type aspin {npc} -npc_sub_ksp_rtol 1e-13 -npc_sub_snes_max_it 20 -npc_sub_snes_stol 0", problem
    )
    generator = torch.Generator().manual_seed(2)
    local = problem.space.local
    n = problem.space.n
    x = problem.guess() + 0.1 * local(torch.randn(n, generator=generator, dtype=torch.float64))
    v = local(torch.randn(n, generator=generator, dtype=torch.float64))

    def residual(at: Tensor) -> Tensor:
        return solver.point(at, *problem.value_and_gradient(at)).r

    h = 1e-4
    difference = (residual(x + h * v) - residual(x - h * v)) / (2 * h)
    point = solver.point(x, *problem.value_and_gradient(x))
    action = solver.residual_action(point)
    assert action is not None
    error = problem.space.norm(action(v) - difference)
    assert error <= 1e-6 * problem.space.norm(difference)


def test_restricted_corrections_need_no_damping(comm) -> None:
    """Unweighted ones count the overlap twice, or four times: damped by 1/4 they converge, in more steps."""
    steps = {}
    for kind, damping in (("restrict", 1.0), ("basic", 0.25)):
        options = f"{BOXES} -dm_subdomains 4 -dm_overlap 3 -snes_nasm_type {kind} -snes_nasm_damping {damping}"
        problem = bratu(comm, (13, 13), 1.0)
        solver = tree(f"{options} -snes_linesearch_type none -snes_rtol 1e-2 -sub_snes_rtol 1e-2", problem)
        solver.solve(problem.guess())
        assert solver.reason.name == "CONVERGED_FNORM_RELATIVE"
        steps[kind] = solver.iteration
    assert 2 * steps["restrict"] < steps["basic"]


def test_the_partition_of_unity_adds_up_to_one(comm) -> None:
    problem = bratu(comm, (14, 11))
    solver = tree(f"{BOXES} -dm_subdomains 6 -dm_overlap 4", problem)
    unity, own = torch.zeros(2, 154, dtype=torch.float64)
    for s in solver.method._decomposition.subdomains:  # type: ignore[attr-defined]
        unity[s.block.indices] += s.weights
        own[s.block.indices] += s.own
    torch.testing.assert_close(unity, torch.ones_like(unity), rtol=0, atol=1e-15)
    assert torch.equal(own, torch.ones_like(own))


def test_the_cost_of_a_local_solve_is_its_boxs(comm) -> None:
    problem = bratu(comm, (16, 16))
    solver = tree(
        f"{BOXES} -dm_subdomains 4 -dm_overlap 2 -sub_snes_max_it 3 -sub_snes_linesearch_type none {STEP}", problem
    )
    solver.solve(problem.guess())
    boxes = solver.work["gradients", "work"] - 2
    assert solver.work["gradients", "total"] - 2 == 4 * 4  # one at the start and three steps in each box
    assert boxes == pytest.approx(4 * 4 * 100 / 256)
    assert "25%" not in solver.view()
    assert "box x 0-9, y 0-9, 100 unknowns, 39% of a gradient" in solver.view()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("-dm_subdomains 4 -dm_overlap 6", "-dm_overlap 6: the narrowest subdomain has 5 grid lines; choose at most 5"),
        ("-dm_subdomains 13", "-dm_subdomains 13: a grid of 11 x 11 nodes cannot be cut into 1 x 13 boxes"),
        (
            "-dm_decomposition layers -dm_subdomains 1",
            "-dm_decomposition layers: vectors on a grid are partitioned; use boxes",
        ),
        ("-dm_cut cost", "-dm_cut cost: boxes are cut by count"),
    ],
)
def test_what_cannot_be_cut_is_refused(comm, options: str, told: str) -> None:
    with pytest.raises(OptionsError, match=told):
        tree(f"-snes_type nasm -dm_decomposition boxes {options}", bratu(comm, (11, 11)))


def test_boxes_need_a_grid(comm) -> None:
    with pytest.raises(OptionsError, match="-dm_decomposition boxes: Analytic is not a problem on a whole grid"):
        tree(BOXES, quadratic(world(comm)))
