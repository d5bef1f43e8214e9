"""The full approximation scheme: multigrid rates, exact work, consistent levels, descent, nested iteration, bits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.io.tree import from_image, to_image
from ml2hpc.problem.control import Architecture
from ml2hpc.problem.energies import Bratu
from ml2hpc.problem.grid import GridProblem
from ml2hpc.problem.interface import Problem, ShardedProblem
from ml2hpc.problem.resnet import ResNetModel, ResNetProblem, Samples
from ml2hpc.problem.transfer import Coarsening
from ml2hpc.snes import SNES, Point, Reason
from ml2hpc.snes.fas import FullApproximation
from ml2hpc.snes.qn import QuasiNewton
from tests.problem.small import random
from tests.snes.poisson import Interpolation, Poisson
from tests.snes.problems import Analytic, least_squares, matrix, rosenbrock, tree, world

FAS = "-snes_type fas -dm_hierarchy grid"
ON_COARSE = "-fas_coarse_snes_type nrichardson -fas_coarse_snes_linesearch_type none"
DESCENT = f"{ON_COARSE} {ON_COARSE.replace('coarse', 'levels')}"
EXACT = "-fas_coarse_snes_type newtonls -fas_coarse_snes_max_it 2"
MANY = "-snes_rtol 0 -snes_atol 0 -snes_stol 0"


def start(problem: Problem) -> torch.Tensor:
    return problem.space.local(random(problem.space.n, 1)).clone()


def jacobi(levels: int, k: int, first: int = 1) -> str:
    """Damped Jacobi by 2/3 on each level: the diagonal is 2 / h."""
    names = ["coarse", *(f"levels_{j}" for j in range(1, levels))][first:]
    h = [0.5 ** (k - levels + 1 + j) for j in range(first, levels)]
    return " ".join(f"-fas_{name}_snes_linesearch_damping {h / 3}" for name, h in zip(names, h, strict=True))


def history(solver: SNES, values: list[float] | None = None) -> list[float]:
    """Gradient norms, filled while it solves, as `values` by the objective's."""
    norms: list[float] = []

    def observe(solver: SNES, point: Any, norm: float, update: float) -> Reason:
        norms.append(norm)
        if values is not None:
            values.append(point.f)
        return solver.reason

    solver.observe = observe
    return norms


def assert_straight_is_resumed(comm: Any, options: str, problem: Problem, x: torch.Tensor, iterations: int) -> None:
    """So many iterations give the same bits as half of them, the state through a file, and the rest."""
    expected = tree(f"{options} -snes_max_it {iterations}", problem).solve(x)
    first = tree(f"{options} -snes_max_it {iterations // 2}", problem)
    half = first.solve(x)
    state = first.state()
    image = to_image(state, "state") if comm.rank == 0 else None
    second = tree(f"{options} -snes_max_it {iterations}", problem)
    second.load(from_image(comm.bcast(image), "state"))
    g = half.g.clone()
    point = second.resume(Point(half.x.clone(), half.f, g, g))
    assert torch.equal(point.x, expected.x) and point.f == expected.f


# ---- rates and work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quartic", [0.0, 10.0])
@pytest.mark.parametrize(("cycle", "most"), [("v", 0.2), ("w", 0.12), ("f", 0.12)])
@pytest.mark.parametrize("levels", range(3, 9))
def test_multigrid_converges_as_fast_with_any_number_of_levels(comm, levels, cycle, most, quartic):
    """Poisson's equation with damped Jacobi: two grids have the factor 1/9, V-cycles over many somewhat more."""
    problem = Poisson(world(comm), 8, quartic)
    options = f"{FAS} -dm_levels {levels} -snes_fas_cycles {cycle} {DESCENT} {jacobi(levels, 8)} {EXACT}"
    options += " -fas_coarse_snes_linesearch_damping 1 -fas_coarse_ksp_rtol 1e-3"
    solver = tree(f"{options} {MANY} -snes_max_it 7", problem)
    norms = history(solver)
    solver.solve(start(problem))
    assert solver.iteration == 7, solver.failure
    assert (norms[-1] / norms[2]) ** (1 / 5) < most


@pytest.mark.parametrize(
    ("steps", "work"),
    [
        ("[{1}]", 1.0),
        ("[(1),{2}]", 3.0),
        ("[(1),1,2,{2}]", 5.0),
        ("[(1),1,1,2,2,{2}]", 5.25),
        ("[(1),1,1,1,2,2,2,{2}]", 5.1875),
        ("[2,3,{4}]", 9.5),
    ],
)
def test_the_work_of_a_cycle_is_the_published_formula(comm, steps, work):
    """U = 2^(1-L) mu_0 + sum_l (mu_1 + mu_2 + 1) 2^(l-L): exactly, and it is what is evaluated."""
    levels = steps.count(",") + 1
    problem = Poisson(world(comm), 8)
    options = f"{FAS} -dm_levels {levels} -snes_fas_smoothing {steps} {jacobi(levels, 8, 0)}"
    solver = tree(f"{options} {DESCENT if levels > 1 else ON_COARSE} {MANY} -snes_max_it 3", problem)
    solver.solve(start(problem))
    assert solver.iteration == 3, solver.failure
    # The gradient at the start is no part of a cycle.
    assert solver.work["gradients", "work"] == 1.0 + 3 * work
    assert solver.work["objectives", "total"] == 0.0  # a full correction is tried with the gradient that follows it
    assert isinstance(solver.method, FullApproximation)
    of_levels = [level.problem for level in solver.method._levels.levels.levels]
    assert (
        sum(p.gradients * p.cost.gradient for p in of_levels if isinstance(p, Poisson)) / problem.cost.gradient
        == 1.0 + 3 * work
    )


def test_a_cycle_of_the_published_network_costs_what_its_blocks_cost(comm):
    problem = network(comm, blocks=16)
    solver = tree(
        f"-snes_type fas -dm_levels 2 -snes_fas_smoothing [(1),{{2}}] {DESCENT} {MANY} -snes_max_it 2", problem
    )
    solver.solve(parameters(problem))
    half = problem.coarsen(Coarsening("depth"))[0].cost.gradient / problem.cost.gradient
    assert solver.work["gradients", "work"] == pytest.approx(1.0 + 2 * (2 * half + 2.0), rel=1e-14)


@pytest.mark.parallel(1, 2, 4)
@pytest.mark.parametrize(("nodes", "levels"), [(17, 3), (33, 4), (65, 5)])
def test_cycles_do_not_depend_on_the_grid_nor_on_the_ranks(comm, nodes, levels):
    """The Bratu problem with L-BFGS as smoother."""
    problem = GridProblem(world(comm), Bratu(6.0), (nodes, nodes))
    solver = tree(f"{FAS} -dm_levels {levels} -snes_rtol 1e-6", problem)
    point = solver.solve(problem.guess())
    assert solver.reason == Reason.CONVERGED_FNORM_RELATIVE
    assert solver.iteration <= 8
    assert solver.work["gradients", "work"] < 60
    assert problem.space.norm(problem.gradient(point.x)) == pytest.approx(problem.space.norm(point.g), rel=1e-6)


# ---- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoother", ["qn", "nrichardson", "newtonls", "newtontr", "ngs", "ncg"])
def test_one_level_is_its_solver(comm, smoother):
    many = "-snes_max_it 8 -snes_rtol 0"
    options = f"-snes_type fas -dm_levels 1 -fas_coarse_snes_type {smoother} -snes_fas_smoothcoarse 3 -snes_max_it 2"
    found = tree(options, rosenbrock(world(comm)))
    expected = tree(
        f"-snes_type composite -snes_composite_type multiplicative -snes_composite_sneses {smoother} "
        "-sub_0_snes_max_it 3 -snes_max_it 2",
        rosenbrock(world(comm)),
    )
    x = torch.linspace(0.3, 1.2, 6, dtype=torch.float64)
    a, b = found.solve(x), expected.solve(x)
    assert torch.equal(a.x, b.x) and a.f == b.f, many
    assert (found.work.counts == expected.work.counts).all()


@pytest.mark.parametrize("metric", ["euclidean", "function"])
@pytest.mark.parametrize("prolongation", ["constant", "linear"])
def test_levels_are_consistent(comm, prolongation, metric):
    """H has at its start the restricted gradient that it is given, to round-off, by itself and by differences."""
    problem = network(comm, blocks=8)
    solver = tree(f"-snes_type fas -dm_prolongation {prolongation} -dm_metric {metric}", problem)
    assert isinstance(solver.method, FullApproximation)
    levels = solver.method._levels
    x = parameters(problem)
    point = levels.open(solver, solver.point(x, *problem.value_and_gradient(x)))
    for level in (2, 1):
        fine, below = point, levels.below(level, point)
        assert below is not None
        point = below
        restricted = levels.levels.transfer(level - 1).restrict(fine.g)
        f, g = levels.children[level - 1].problem.value_and_gradient(point.x)
        assert torch.equal(point.g, restricted)
        assert (g - restricted).abs().max() < 1e-14 * max(1.0, float(restricted.abs().max()))
        assert f == pytest.approx(point.f, rel=1e-14)
        e = 1e-4 * random(len(point.x), 9)
        ahead, behind = (levels.children[level - 1].problem.objective(point.x + s * e) for s in (1, -1))
        assert 0.5 * (ahead - behind) == pytest.approx(float(restricted @ e), rel=1e-6)


class Misleading(Poisson):
    """Coarse levels that have nothing to do with the fine one."""

    def coarsen(self, how: Coarsening) -> tuple[Problem, Interpolation]:
        c = Analytic(self.comm, lambda x, d: torch.cos(40 * x).sum() - 30 * (x**3).sum(), 2 ** (self.k - 1) - 1)
        return c, Interpolation()


@pytest.mark.parametrize(
    "search", ["-snes_linesearch_type none", "", "-snes_fas_use_coarse_correction_linesearch false"]
)
@pytest.mark.parametrize("kind", ["multiplicative", "additive", "full", "kaskade"])
def test_misleading_levels_never_raise_the_objective(comm, kind, search):
    problem = Misleading(world(comm), 5)
    values: list[float] = []
    options = (
        f"{FAS} -dm_levels 2 -snes_fas_type {kind} {search} -fas_levels_snes_type nrichardson -snes_fas_smoothcoarse 4"
    )
    solver = tree(f"{options} -snes_max_it 20", problem)
    norms = history(solver, values)
    point = solver.solve(start(problem))
    assert len(norms) == 21
    assert all(b <= a for a, b in pairwise(values))
    assert point.f == problem.objective(point.x)
    assert solver.iteration == 20 and values[-1] < values[0]
    assert isinstance(solver.method, FullApproximation)
    assert solver.method._levels.rejected > 0 or kind == "additive"


def test_kaskade_without_smoothing_prolongs_the_coarse_solution(comm):
    problem = Poisson(world(comm), 6)
    options = f"{FAS} -snes_fas_type kaskade -snes_fas_smoothdown 0 -snes_fas_smoothup 0 {EXACT}0 -snes_max_it 1"
    found = tree(options, problem).solve(start(problem))
    coarse = Poisson(world(comm), 4)
    nodes = torch.arange(1, 16, dtype=torch.float64) / 16
    expected = Interpolation().lift(Interpolation().lift(0.5 * nodes * (1 - nodes)))
    assert coarse.space.n == 15
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-10)


def test_nested_iteration_reaches_the_error_of_the_grid_in_one_cycle(comm):
    """Full multigrid: after a cycle on each level the error is of the order h^2 of the discretisation's own."""
    problem = Poisson(world(comm), 8, 10.0)
    levels = 6
    common = f"-dm_levels {levels} {DESCENT} {jacobi(levels, 8)} {EXACT}0"
    best = tree("-snes_type newtonls -snes_rtol 1e-12", problem).solve(start(problem)).x
    ends = {}
    for kind in ("full", "multiplicative"):
        point = tree(f"{FAS} {common} -snes_fas_type {kind} -snes_max_it 1", problem).solve(start(problem))
        ends[kind] = float((point.x - best).abs().max())
    assert ends["full"] < 0.5 * 0.5**16
    assert ends["full"] < 1e-3 * ends["multiplicative"]


def test_nested_iteration_is_done_once(comm):
    """Without memories the second solve makes the cycle that a solver without nested iteration makes."""
    problem = Poisson(world(comm), 6)
    options = f"{FAS} {DESCENT} {jacobi(3, 6, 0)} -snes_max_it 1"
    solver = tree(f"{options} -snes_fas_type full", problem)
    first = solver.solve(start(problem))
    second = solver.solve(first.x)
    assert torch.equal(second.x, tree(options, problem).solve(first.x).x)
    assert not torch.equal(first.x, tree(options, problem).solve(start(problem)).x)


def test_the_finest_level_is_alone_after_nested_iteration(comm):
    problem = network(comm, 16)
    solver = tree("-snes_type fas -snes_fas_type nested -snes_max_it 1", problem)
    first = solver.solve(parameters(problem))
    coarsest = solver.method.inner()[-1][1]
    spent = coarsest.work["gradients", "path"]
    second = solver.solve(first.x)
    assert coarsest.work["gradients", "path"] == spent
    assert second.f < first.f


def test_steps_in_the_metric_of_functions_do_not_vanish_with_the_step_in_time(comm):
    """x - a D^-2 g, with D^2 = dt for the blocks."""
    problem = network(comm, blocks=8)
    options = f"-snes_type fas -dm_levels 1 -dm_metric function {ON_COARSE} -fas_coarse_snes_linesearch_damping 0.01"
    x = parameters(problem)
    point = tree(f"{options} -snes_fas_smoothcoarse 1 -snes_max_it 1", problem).solve(x)
    expected = x - 0.01 * problem.gradient(x) / problem.metric()
    torch.testing.assert_close(point.x, expected, rtol=0, atol=1e-15)
    assert set(problem.metric().tolist()) == {0.125, 1.0}


def test_a_smoother_may_decompose(comm):
    problem = network(comm, blocks=8)
    options = "-snes_type fas -fas_levels_snes_type nasm -fas_levels_dm_subdomains 2 -fas_levels_sub_snes_max_it 3"
    x = parameters(problem)
    point = tree(f"{options} -snes_max_it 5", problem).solve(x)
    assert point.f < 0.5 * problem.objective(x)


@pytest.mark.parametrize("outer", ["qn", "ngmres", "anderson"])
def test_cycles_precondition(comm, outer):
    """A cycle in front saves iterations."""
    problem = Poisson(world(comm), 7, 10.0)
    npc = f"-npc_snes_type fas -npc_dm_hierarchy grid -npc_dm_levels 5 {EXACT.replace('-fas', '-npc_fas')}"
    alone, helped = (tree(f"-snes_type {outer} {o} -snes_rtol 1e-6", problem) for o in ("", npc))
    alone.solve(start(problem))
    helped.solve(start(problem))
    assert helped.reason == Reason.CONVERGED_FNORM_RELATIVE
    assert helped.iteration < alone.iteration / 4


# ---- networks, ranks, batches ----------------------------------------------------------------------------------------


def network(comm, blocks: int = 8, n: int = 37) -> ResNetProblem:
    architecture = Architecture((2,), 2, blocks=blocks, width=3)
    x = random(2 * n, 7).view(n, 2)
    data = Samples(x, (x.norm(dim=1) > 1.2).long())
    return ResNetProblem(world(comm), ResNetModel(architecture, "torch", torch.float64, beta=1e-4, chunk=8), data)


def parameters(problem: Problem) -> torch.Tensor:
    return 0.4 * random(problem.space.n, 2)


RUNS = {
    "V-cycles": "-snes_fas_cycles 1",
    "metric": "-dm_metric function -dm_prolongation linear -dm_projection average",
    "few ranks": "-dm_coarse_ranks 1,1",
    "batches": "-snes_fas_batch 20 -snes_fas_seed 3",
    "nested": "-snes_fas_type nested -dm_metric function",
    "dense below": "-snes_fas_type nested -dm_metric function -fas_coarse_snes_qn_type ssbroyden -dm_coarse_ranks 1",
    "batches ahead": "-snes_fas_batch 20 -snes_fas_batch_ahead true",
    "samples too": "-dm_hierarchy depth,samples -snes_fas_type full",
}


@pytest.mark.parallel(2, 3)
@pytest.mark.parametrize("options", RUNS.values(), ids=list(RUNS))
def test_bits_do_not_depend_on_the_ranks(comm, options):
    from mpi4py import MPI

    ends = []
    for ranks in (comm, MPI.COMM_SELF):
        problem = network(ranks)
        solver = tree(f"-snes_type fas {options} -snes_max_it 4", problem)
        ends.append((solver.solve(parameters(problem)), solver.work.counts))
    assert torch.equal(ends[0][0].x, ends[1][0].x)
    assert ends[0][0].f == ends[1][0].f
    assert (ends[0][1] == ends[1][1]).all()


def test_coarse_ranks_change_nothing_but_the_time(comm):
    a, b = (
        tree(f"-snes_type fas {o} -snes_max_it 3", network(comm)).solve(parameters(network(comm)))
        for o in ("", "-dm_coarse_ranks 1")
    )
    assert torch.equal(a.x, b.x)


@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize(
    "options",
    [
        "",
        "-snes_fas_type nested -dm_metric function",
        "-snes_fas_type nested -dm_metric function -fas_coarse_snes_qn_type ssbroyden",
    ],
)
def test_sharded_vectors(comm, options):
    whole = network(comm)
    sharded = ShardedProblem(whole)
    x = parameters(whole)
    a = tree(f"-snes_type fas -snes_max_it 3 {options}", whole).solve(x)
    b = tree(f"-snes_type fas -snes_max_it 3 {options}", sharded).solve(sharded.space.local(x).clone())
    torch.testing.assert_close(sharded.space.gather(b.x), a.x, rtol=0, atol=1e-10)


def test_a_batch_sees_its_samples_only(comm):
    """With a descent step on one level, x - a grad L_batch; each iteration draws anew, the same from the same seed."""
    problem = least_squares(world(comm))
    options = (
        f"-snes_type fas -dm_levels 1 {ON_COARSE} -fas_coarse_snes_linesearch_damping 0.05 -snes_fas_smoothcoarse 1"
    )
    x = start(problem)
    ends = [
        tree(f"{options} -snes_fas_batch 5 -snes_fas_seed {seed} -snes_max_it 2", problem).solve(x).x
        for seed in (0, 0, 1)
    ]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])
    generator, expected = torch.Generator().manual_seed(0), x
    for _ in range(2):
        rows = torch.randperm(12, generator=generator)[:5].sort().values
        expected = expected - 0.05 * problem.sample(rows).gradient(expected)
    torch.testing.assert_close(ends[0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("metric", ["euclidean", "function"])
def test_a_batch_ahead_costs_cycles_only(comm, metric):
    """The iterates are the same, with L over the next batch; a cycle of gradient descent costs its formula."""
    steps, n = "-snes_fas_smoothing [(1),{2}] -dm_levels 2", 20 / 37
    options = f"-snes_type fas {steps} {DESCENT} -dm_metric {metric} -snes_fas_batch 20 {MANY}"
    problem, x = network(comm), parameters(network(comm))
    whole, ahead, plain = (
        tree(f"{options} -snes_fas_batch_ahead {o} -snes_max_it 3", problem)
        for o in ("false", "true", "true -snes_linesearch_type none")
    )
    ends = [solver.solve(x) for solver in (whole, ahead, plain)]
    assert torch.equal(ends[1].x, ends[0].x) and torch.equal(ends[2].x, ends[0].x)
    assert ahead.work["objectives", "total"] == 3 and plain.work["objectives", "total"] == 0
    assert plain.work["gradients", "work"] == ahead.work["gradients", "work"]
    half = problem.coarsen(Coarsening("depth"))[0].cost.gradient / problem.cost.gradient
    cycle = n * (2 * half + 2)
    assert ahead.work["gradients", "work"] == pytest.approx(1 + n + 3 * cycle, rel=1e-14)
    assert whole.work["gradients", "work"] == pytest.approx(1 + 3 * (cycle + 1), rel=1e-14)
    assert isinstance(ahead.method, FullApproximation)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        rows = torch.randperm(37, generator=generator)[:20].sort().values
    assert problem.sample(rows).objective(ends[1].x) == pytest.approx(ends[1].f, rel=1e-13)


def test_a_batch_ahead_is_for_the_outermost_solver(comm):
    for options in ("-snes_fas_batch_ahead true", "-snes_type qn -npc_snes_type fas -npc_snes_fas_batch_ahead true"):
        given = f"-snes_type fas {options} -npc_snes_fas_batch 20" if "npc" in options else f"-snes_type fas {options}"
        with pytest.raises(OptionsError, match="snes_fas_batch_ahead: needs"):
            tree(given, network(comm))
    below = "-sub_snes_type fas -sub_dm_hierarchy samples -sub_snes_fas_batch 20 -sub_snes_fas_batch_ahead true"
    with pytest.raises(OptionsError, match="sub_0_snes_fas_batch_ahead: needs"):
        tree(f"-snes_type nasm -dm_subdomains 2 {below}", curved(comm)).solve(torch.zeros(6, dtype=torch.float64))


def test_a_cycle_on_a_batch_of_all_samples_raises_no_loss(comm):
    """Steps of gradient descent that are far too long, after everything else."""
    levels = "-fas_{0}_snes_type nrichardson -fas_{0}_snes_linesearch_type none -fas_{0}_snes_linesearch_damping 5"
    smoothing = f"{levels.format('levels')} {levels.format('coarse')} -snes_fas_smoothdown 0 -snes_fas_smoothup 1"
    options = f"-snes_type fas -dm_hierarchy samples -dm_levels 2 -snes_fas_batch 12 {smoothing} -snes_max_it 4"
    problem = least_squares(world(comm))
    x = torch.linspace(-1, 2, 6, dtype=torch.float64)
    assert tree(options, problem).solve(x).f <= problem.objective(x)


@pytest.mark.parametrize("kind", ["full", "kaskade", "nested"])
def test_nested_iteration_of_one_level_costs_nothing(comm, kind):
    works = []
    for name in (kind, "multiplicative"):
        solver = tree(f"-snes_type fas -snes_fas_type {name} -dm_hierarchy samples -dm_levels 1", curved(comm))
        solver.solve(torch.linspace(-1, 2, 6, dtype=torch.float64))
        works.append(solver.work["gradients", "total"])
    assert works[0] == works[1] > 1


@pytest.mark.parametrize(
    ("kind", "more"), [("fas", ""), ("rmtr", ""), ("fas", "-snes_fas_batch_ahead true -dm_metric function")]
)
def test_restarted_batches_are_those_of_the_straight_run(comm, kind, more):
    problem, x = network(comm), parameters(network(comm))
    options = f"-snes_type {kind} -snes_{kind}_batch 20 {more} -snes_max_it"
    straight = tree(f"{options} 4", problem)
    expected = straight.solve(x)
    first = tree(f"{options} 2", problem)
    half = first.solve(x)
    second = tree(f"{options} 4", problem)
    second.load(first.state())
    point = second.resume(half)
    assert torch.equal(point.x, expected.x)
    counts = [next(line for line in s.view().split("\n") if "corrections refused" in line) for s in (second, straight)]
    assert counts[0] == counts[1]


# ---- options ---------------------------------------------------------------------------------------------------------


def test_a_level_has_options_of_its_own(comm):
    problem = Poisson(world(comm), 6)
    solver = tree(f"{FAS} -fas_levels_snes_max_it 3 -fas_levels_2_snes_type ncg -fas_coarse_snes_max_it 7", problem)
    view = solver.view()
    assert "steps down/up, the finest first: 3/3, 3/3; 7 on the coarsest level" in view
    assert [child.method.name for _, child in solver.method.inner()] == ["ncg", "qn", "qn"]
    assert "  level   layers   unknowns    samples    gradient   ranks" in view
    table = [line.split() for line in view.split("\n") if line.split() and line.split()[0] in "012"]
    assert [row[2] for row in table[:3]] == ["63", "31", "15"]
    assert [row[4] for row in table[:3]] == ["1.0000", "0.5000", "0.2500"]


@pytest.mark.parametrize("text", ["[1,2,{3}", "1,2,3", "[1,{2}]", "[{1},2,{3}]", "[1,2,3]", "[x,1,{2}]", ""])
def test_wrong_schedules_are_refused(comm, text):
    with pytest.raises(OptionsError, match=r"-snes_fas_smoothing .*write one number for each of the 3 levels"):
        tree(f"{FAS} -snes_fas_smoothing '{text}'", Poisson(world(comm), 5))


@pytest.mark.parametrize("options", ["nested_steps 4", "cycles w -snes_fas_type nested", "damping 0.5"])
def test_options_without_an_effect_are_refused(comm, options):
    with pytest.raises(OptionsError, match=f"^-snes_fas_{options.split()[0]}"):
        tree(f"{FAS} -snes_fas_{options}", Poisson(world(comm), 5))


def test_a_batch_larger_than_the_data_is_refused(comm):
    with pytest.raises(OptionsError, match="-snes_fas_batch 99: there are 37 samples"):
        tree("-snes_type fas -snes_fas_batch 99", network(comm))


# ---- one matrix for all levels ---------------------------------------------------------------------------------------

SHARED = (
    "-snes_type fas -dm_hierarchy samples -snes_fas_share -fas_coarse_snes_qn_type ssbroyden "
    "-fas_levels_snes_qn_type ssbroyden -snes_rtol 0"
)


def curved(comm, samples: int = 48) -> Analytic:
    """Least squares of tanh over samples, whose curvature changes with x; on every level nearly the same."""
    data = random(samples * 6, 3).view(samples, 6)

    def f(x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(d @ x) - 0.5 * torch.sin(d[0])) ** 2 + 0.01 * x @ x

    return Analytic(world(comm), f, 6, data)


def test_who_gives_up_a_shared_matrix_says_so(comm):
    """The preconditioner has filled it before the outer solver's own first step."""
    options = "-snes_type qn -snes_qn_share -npc_snes_type qn -npc_snes_max_it 3 -snes_linesearch_type bt"
    solver = tree(f"{options} -snes_max_it 1", curved(comm))
    solver.solve(torch.linspace(-1, 2, 6, dtype=torch.float64))
    outer = solver.method
    assert isinstance(outer, QuasiNewton)
    outer._accepted = 0
    assert outer.inverse.pairs > 0 and outer.reset() and outer.inverse.pairs == 0 and not outer.reset()
    assert "shared" in outer.brief()


def test_levels_with_one_matrix_learn_together(comm):
    """All levels hold the same object, which takes the pairs of all of them."""
    problem = curved(comm)
    solver = tree(f"{SHARED} -snes_max_it 2", problem)
    solver.solve(torch.linspace(-1, 2, 6, dtype=torch.float64))
    assert isinstance(solver.method, FullApproximation)
    methods = [child.method for child in solver.method._levels.children]
    found = [(m.inverse, m._accepted) for m in methods if isinstance(m, QuasiNewton)]
    (one, first), (two, second), (three, third) = found
    assert one is two is three
    assert min(first, second, third) > 0 and one.pairs == first + second + third


def test_one_limited_memory_for_all_levels_is_not_lifted_onto_itself(comm):
    fresh = " ".join(f"-fas_{level}_snes_linesearch_memory 0" for level in ("coarse", "levels"))  # it is lifted too
    options = f"{SHARED.replace('ssbroyden', 'lbfgs')} {fresh} -snes_fas_type full -snes_max_it 1 -snes_fas_lift"
    x = torch.linspace(-1, 2, 6, dtype=torch.float64)
    lifted, kept = (tree(f"{options} {flag}", curved(comm)).solve(x) for flag in ("true", "false"))
    assert torch.equal(lifted.x, kept.x)


@pytest.mark.parametrize(("shared", "least", "most"), [("true", 0.0, 1e-14), ("false", 1e-2, 1.0)])
def test_a_matrix_handed_up_is_newtons(comm, shared, least, most):
    """A quadratic of n unknowns: n exact searches on half of the samples find the inverse Hessian of all."""
    a, centres = matrix(6), random(6 * 16, 4).view(16, 6)
    problem = Analytic(world(comm), lambda x, d: 0.5 * (x - d) @ (a @ (x - d)), 6, centres)
    exact = " ".join(f"-fas_{level}_snes_linesearch_type ncglinear" for level in ("coarse", "levels"))
    nested = f"-snes_fas_type kaskade -snes_fas_nested_steps 6 -snes_fas_share {shared} -dm_levels 2 {exact}"
    solver = tree(f"{SHARED.replace('ssbroyden', 'bfgs')} {nested} -snes_max_it 1", problem)
    point = solver.solve(torch.linspace(-1, 2, 6, dtype=torch.float64))
    solved = centres[::2].mean(0)  # the coarse level's minimum
    assert least <= float(point.g.norm() / problem.gradient(solved).norm()) < most


def test_an_outer_solver_goes_on_with_the_matrix_of_its_preconditioner(comm):
    """The same quadratic: nested iteration in front once, and a single step of the outer solver ends it."""
    a, centres = matrix(6), random(6 * 16, 4).view(16, 6)
    problem = Analytic(world(comm), lambda x, d: 0.5 * (x - d) @ (a @ (x - d)), 6, centres)
    exact = " ".join(f"-{p}snes_linesearch_type ncglinear" for p in ("", "npc_fas_coarse_", "npc_fas_levels_"))
    nested = "-npc_snes_type fas -npc_snes_fas_type kaskade -npc_snes_fas_nested_steps 6 -npc_snes_fas_share"
    bfgs = " ".join(f"-{p}snes_qn_type bfgs" for p in ("", "npc_fas_coarse_", "npc_fas_levels_"))
    levels = "-npc_dm_hierarchy samples -npc_dm_levels 2 -npc_snes_fas_smoothing [(0),{1}]"
    falls = {}
    for shared in ("true", "false"):
        options = f"-snes_type qn -snes_qn_share {shared} {bfgs} {nested} {levels} {exact} -snes_rtol 0 -snes_max_it 1"
        point = tree(options, problem).solve(torch.linspace(-1, 2, 6, dtype=torch.float64))
        falls[shared] = float(point.g.norm() / problem.gradient(centres[::2].mean(0)).norm())
    assert falls["true"] < 1e-14 < 1e-2 < falls["false"]


@pytest.mark.parametrize(
    "npc",
    [
        "",
        "-npc_snes_type ncg",
        "-npc_snes_type qn -npc_snes_qn_m 3",
        "-npc_snes_type qn -snes_npc_side left",  # pairs of another residual
        "-npc_snes_type fas -npc_dm_hierarchy samples -npc_dm_metric function",  # of other unknowns
    ],
)
def test_a_matrix_of_no_preconditioner_is_refused(comm, npc):
    with pytest.raises(OptionsError, match="-snes_qn_share: there is no right NPC that learns the same matrix"):
        tree(f"-snes_type qn -snes_qn_share {npc}", network(comm) if "metric" in npc else curved(comm))


@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize("smoothing", ["[1,2,{4}]", "[(2),(2),{3}]"])
@pytest.mark.parametrize("kind", ["ssbroyden", "lbfgs"])
def test_a_restart_with_one_matrix_is_the_straight_run(comm, kind, smoothing):
    options = f"{SHARED.replace('ssbroyden', kind)} -snes_fas_smoothing {smoothing}"
    assert_straight_is_resumed(comm, options, curved(comm), torch.linspace(-1, 2, 6, dtype=torch.float64), 6)


@pytest.mark.parametrize(
    "options",
    [
        "-fas_coarse_snes_qn_m 5",
        "-fas_levels_snes_type ncg",
        "-fas_coarse_snes_type nrichardson",
        "-dm_hierarchy width",
    ],
)
def test_levels_that_cannot_have_one_matrix_are_refused(comm, options):
    with pytest.raises(
        UnsupportedError, match="-snes_fas_share: fas_levels_1_ and fas_coarse_ cannot learn one matrix"
    ):
        tree(f"-snes_type fas -dm_hierarchy samples -snes_fas_share {options}", curved(comm))
