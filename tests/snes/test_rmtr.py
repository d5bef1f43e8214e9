"""Recursive trust regions: descent, containment in the finer regions, the ratio test, one level, bits over ranks."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from ml2hpc.errors import OptionsError
from ml2hpc.problem.interface import Problem
from ml2hpc.problem.resnet import ResNetProblem
from ml2hpc.problem.transfer import Coarsening
from ml2hpc.snes import SNES, Reason
from ml2hpc.snes.interface import Point
from ml2hpc.snes.rmtr import RecursiveTrustRegion
from tests.problem.small import random
from tests.snes.poisson import Interpolation, Poisson
from tests.snes.problems import Analytic, least_squares, rosenbrock, tree, world
from tests.snes.test_fas import Misleading, history, network, parameters, start

RMTR = "-snes_type rmtr"
GRID = f"{RMTR} -dm_hierarchy grid"
BOX = "-rmtr_coarse_snes_tr_norm_type infinity -rmtr_levels_snes_tr_norm_type infinity"


class Spy:
    """Every coarse correction of a solver: the region when it was asked for, where it started and how far it went."""

    def __init__(self, solver: SNES) -> None:
        assert isinstance(solver.method, RecursiveTrustRegion)
        self.method = solver.method
        self.levels = solver.method._levels
        self.found: list[dict[str, Any]] = []
        self._correct = solver.method._correct
        solver.method._correct = self.correct  # type: ignore[method-assign]

    def correct(self, level: int, point: Point, room: float, kind: Any) -> Point:
        region = self.levels.children[level].method.region
        assert region is not None
        entry: dict[str, Any] = {"level": level, "radius": min(region.radius, room), "f": point.f}
        judged = self.levels.children[level].method.judge

        def judge(solver: SNES, s: torch.Tensor, rho: float, *, bound: bool) -> None:
            entry.update(rho=rho, length=region.length(solver.problem.space, s), s=s)
            judged(solver, s, rho, bound=bound)

        self.levels.children[level].method.judge = judge  # type: ignore[method-assign]
        end = self._correct(level, point, room, kind)
        self.levels.children[level].method.judge = judged  # type: ignore[method-assign]
        after = self.levels.children[level].method.region
        assert after is not None
        entry |= {"taken": end is not point, "after": after.radius, "delta": region.radius, "end": end}
        self.found.append(entry)
        return end


@pytest.mark.parametrize("metric", ["euclidean", "function"])
@pytest.mark.parametrize("cycle", ["v", "w", "f"])
@pytest.mark.parametrize("norm", ["", BOX])
def test_coarse_steps_stay_in_the_region_and_pass_the_ratio_test(comm, norm, cycle, metric):
    problem = network(comm, blocks=8)
    solver = tree(f"{RMTR} {norm} -dm_metric {metric} -snes_rmtr_cycles {cycle} -snes_max_it 6", problem)
    values: list[float] = []
    history(solver, values)
    spy = Spy(solver)
    solver.solve(parameters(problem))
    assert all(b <= a for a, b in pairwise(values)) and values[-1] < 0.8 * values[0]
    judged = [e for e in spy.found if "rho" in e]
    assert {e["level"] for e in judged} == {1, 2}
    for e in judged:
        assert e["length"] <= e["radius"] * (1 + 1e-12)
        assert e["taken"] == (e["rho"] > 0.25)
        if not e["rho"] >= 0.25:
            assert e["after"] <= 0.5 * e["length"] * (1 + 1e-15)
        elif e["rho"] <= 0.75:
            assert e["after"] == e["delta"]
        assert e["after"] <= 2 * e["delta"]
    assert max(e["length"] / e["radius"] for e in judged) > 0.7, "some step uses its region"


def test_the_ratio_is_of_the_fine_decrease_to_the_coarse_one(comm):
    """On a quadratic with Galerkin's levels the coarse level predicts exactly."""
    problem = Poisson(world(comm), 6)
    solver = tree(f"{GRID} -snes_max_it 4", problem)
    spy = Spy(solver)
    solver.solve(start(problem))
    judged = [e for e in spy.found if "rho" in e]
    assert len(judged) >= 5
    assert all(abs(e["rho"] - 1.0) < 1e-6 for e in judged)


@pytest.mark.parametrize("eta", [0.5, 0.9, 0.98])
def test_a_coarse_step_is_taken_where_the_ratio_is_above_eta(comm, eta):
    problem = network(comm, blocks=8)
    solver = tree(f"{RMTR} -snes_rmtr_eta {eta} -snes_max_it 8", problem)
    spy = Spy(solver)
    solver.solve(parameters(problem))
    judged = [e for e in spy.found if "rho" in e]
    assert [e["taken"] for e in judged] == [e["rho"] > eta for e in judged]
    assert any(0.0 < e["rho"] <= eta for e in judged) or eta < 0.98


@pytest.mark.parametrize("cycle", ["v", "w", "f"])
@pytest.mark.parametrize("levels", range(3, 9))
def test_regions_do_not_slow_multigrid_down(comm, levels, cycle):
    problem = Poisson(world(comm), 8, 10.0)
    options = f"{GRID} -dm_levels {levels} -snes_rmtr_cycles {cycle} -snes_rmtr_smoothcoarse 50 -snes_rtol 1e-8"
    options += " -rmtr_levels_snes_tr_qn none -rmtr_levels_snes_tr_cg_max_it 2 -rmtr_coarse_snes_tr_qn none"
    solver = tree(f"{options} -snes_max_it 30", problem)
    solver.solve(start(problem))
    assert solver.reason == Reason.CONVERGED_FNORM_RELATIVE, solver.failure
    assert solver.iteration <= 8


def test_misleading_levels_are_refused_and_shrink_the_region(comm):
    problem = Misleading(world(comm), 5)
    solver = tree(f"{GRID} -dm_levels 2 -snes_max_it 12", problem)
    values: list[float] = []
    history(solver, values)
    spy = Spy(solver)
    solver.solve(start(problem))
    assert all(b <= a for a, b in pairwise(values))
    refused = [e for e in spy.found if "rho" in e and not e["taken"]]
    assert refused
    assert all(e["after"] <= 0.5 * e["delta"] for e in refused)
    assert spy.levels.rejected == len(refused)
    assert "coarse corrections refused: " + str(len(refused)) in solver.view()


def test_one_level_is_newtontr(comm):
    region = "-snes_tr_qn lsr1 -snes_tr_delta0 10 -snes_tr_t1 0.5"
    found = tree(f"{RMTR} -dm_levels 1 -snes_rmtr_smoothcoarse 1 -snes_max_it 9", rosenbrock(world(comm)))
    expected = tree(f"-snes_type newtontr {region} -snes_max_it 9", rosenbrock(world(comm)))
    x = torch.linspace(0.3, 1.2, 6, dtype=torch.float64)
    a, b = found.solve(x), expected.solve(x)
    assert torch.equal(a.x, b.x) and a.f == b.f
    assert (found.work.counts == expected.work.counts).all()


@pytest.mark.parametrize("batch", [0, 10])
@pytest.mark.parametrize("kind", ["newtontr -npc_snes_tr_delta0 0.05", "qn"])
def test_the_region_of_a_parent_holds(comm, kind, batch):
    """As a preconditioner of a trust region, all cycles of a solve stay in it, on mini-batches too."""
    problem = network(comm, blocks=8)
    outer = kind.replace("npc_", "") + " -npc_snes_type rmtr -npc_snes_max_it 4 -npc_rmtr_levels_snes_tr_delta0 10"
    outer += f" -npc_snes_rmtr_batch {batch}"
    solver = tree(f"-snes_type {outer} -snes_max_it 1", problem)
    x = parameters(problem)
    assert solver.npc is not None
    npc, ends = solver.npc, []
    solve = npc.solve
    npc.solve = lambda *a, **k: ends.append(solve(*a, **k)) or ends[-1]  # type: ignore[method-assign,func-returns-value]
    solver.solve(x)
    moved = float((ends[0].x - x).norm())
    assert npc.iteration == 4 or npc.reason == Reason.DIVERGED_LINE_SEARCH
    assert (moved <= 0.05 * (1 + 1e-12)) == ("newtontr" in kind)


GROWING = "-snes_rmtr_batch 5 -snes_rmtr_batch_threshold 2"


@pytest.mark.parallel(2, 3, 4)
@pytest.mark.parametrize("options", ["", "-dm_metric function -snes_rmtr_cycles f", GROWING])
def test_bits_do_not_depend_on_the_ranks(comm, options):
    from mpi4py import MPI

    ends = []
    for ranks in (comm, MPI.COMM_SELF):
        problem = network(ranks)
        solver = tree(f"{RMTR} {options} -snes_max_it 4", problem)
        ends.append((solver.solve(parameters(problem)), solver.work.counts))
    assert torch.equal(ends[0][0].x, ends[1][0].x)
    assert ends[0][0].f == ends[1][0].f
    assert (ends[0][1] == ends[1][1]).all()


class Broken(Poisson):
    """A fine level that is no number away from its start, which coarse levels do not know."""

    def value_and_gradient(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        f, g = super().value_and_gradient(x)
        return (f, g) if self.k < 5 or float(x.abs().max()) <= 1.0 else (math.nan, g)

    def coarsen(self, how: Coarsening) -> tuple[Problem, Interpolation]:
        target = Analytic(self.comm, lambda x, d: (x - 5).square().sum(), 2 ** (self.k - 1) - 1)
        return target, Interpolation()


def test_coarse_steps_to_where_nothing_is_a_number_are_refused(comm):
    problem = Broken(world(comm), 5)
    options = "-rmtr_levels_snes_tr_delta0 8 -rmtr_coarse_snes_tr_delta0 8 -snes_max_it 15"
    solver = tree(f"{GRID} -dm_levels 2 -snes_rmtr_smoothing [(0),{{1}}] {options}", problem)
    spy = Spy(solver)
    x = 0.9 * torch.sin(torch.arange(31, dtype=torch.float64))
    point = solver.solve(x)
    assert point.finite and point.f < problem.objective(x)
    assert any(e.get("rho") == -math.inf for e in spy.found)


def test_smoothers_without_a_region_are_refused(comm):
    with pytest.raises(OptionsError, match="-rmtr_levels_1_snes_type qn: has no trust region; use newtontr"):
        tree(f"{GRID} -rmtr_levels_snes_type qn", Poisson(world(comm), 5))
    with pytest.raises(OptionsError, match="choose the same on all levels"):
        tree(f"{GRID} -rmtr_coarse_snes_tr_norm_type infinity", Poisson(world(comm), 5))


def test_random_starts_of_a_network_all_descend(comm):
    problem = network(comm)
    for seed in range(3):
        x = random(problem.space.n, seed)
        point = tree(f"{RMTR} -snes_max_it 10", problem).solve(x)
        assert point.f < 0.7 * problem.objective(x)


# ---- mini-batches ----------------------------------------------------------------------------------------------------


def parts(solver: SNES) -> int:
    """Mini-batches in the next epoch."""
    assert isinstance(solver.method, RecursiveTrustRegion)
    return solver.method._count(solver)


def epochs(solver: SNES) -> list[tuple[int, float, float, list[float]]]:
    """Of every epoch: its mini-batches, L at its ends, and the decreases of L over each; filled while it solves."""
    method, found = solver.method, []
    assert isinstance(method, RecursiveTrustRegion)
    cycle, epoch = method._from, method._epoch
    decreases: list[float] = []

    def spied(solver: SNES, point: Point, rows: torch.Tensor | None) -> tuple[Point, Point]:
        start, end = cycle(solver, point, rows)
        decreases.append(start.f - end.f)
        return start, end

    def whole(solver: SNES, point: Point) -> Any:
        decreases.clear()
        count, step = parts(solver), epoch(solver, point)
        found.append((count, point.f, step.point.f, list(decreases)))
        return step

    method._from, method._epoch = spied, whole  # type: ignore[method-assign]
    return found


def test_a_batch_of_all_samples_is_no_batch(comm):
    problem = network(comm)
    a, b = (tree(f"{RMTR} {o} -snes_max_it 5", problem) for o in ("", "-snes_rmtr_batch 37"))
    x = parameters(problem)
    assert torch.equal(a.solve(x).x, b.solve(x).x)
    assert (a.work.counts == b.work.counts).all()


def test_an_epoch_sees_every_sample_once_in_a_new_order(comm, monkeypatch):
    drawn: list[torch.Tensor] = []
    sample = ResNetProblem.sample

    def noted(self: ResNetProblem, rows: torch.Tensor) -> ResNetProblem:
        drawn.append(rows)
        return sample(self, rows)

    monkeypatch.setattr(ResNetProblem, "sample", noted)
    problem = network(comm, n=203)
    solver = tree(f"{RMTR} -snes_rmtr_batch 60 -snes_rmtr_batch_threshold 1e-9 -snes_max_it 3", problem)
    solver.solve(parameters(problem))
    assert len(drawn) == 12 and all(50 <= len(rows) <= 51 for rows in drawn)
    for k in range(0, 12, 4):
        assert torch.equal(torch.cat(drawn[k : k + 4]).sort().values, torch.arange(203))
    assert not torch.equal(drawn[0], drawn[4])


@pytest.mark.parametrize("growth", [1.3, 2.0])
def test_batches_grow_where_the_ratio_is_at_most_the_threshold(comm, growth):
    problem = network(comm, n=101)
    options = f"-dm_metric function -snes_rmtr_batch 16 -snes_rmtr_batch_growth {growth} -snes_rmtr_batch_threshold 0.5"
    solver = tree(f"{RMTR} {options} -snes_max_it 12", problem)
    values: list[float] = []
    history(solver, values)
    found = epochs(solver)
    solver.solve(parameters(problem))
    counts = [count for count, *_ in found] + [1]
    assert counts[0] == 7
    grown = []
    for (count, before, after, decreases), following in zip(found, counts[1:], strict=True):
        assert len(decreases) == count
        rho = count * (before - after) / sum(decreases)
        grown.append(rho <= 0.5)
        assert following == (max(1, min(count - 1, math.floor(count / growth))) if grown[-1] else count)
    assert any(grown) and not all(grown)
    assert all(b <= a for a, b in pairwise(values)) and len(values) == 13
    assert f"mini-batches: 1 an epoch, growth={growth:g}, threshold=0.5" in solver.view()


@pytest.mark.parametrize(("threshold", "expected"), [(4 * (1 - 1e-9), 4), (4 * (1 + 1e-9), 2)])
def test_batches_of_equal_samples_predict_the_whole(comm, threshold, expected):
    """Each of k batches is L, so that an epoch lowers it by the sum of the decreases: the ratio to their mean is k."""
    one = network(comm, n=1)
    problem = one.sample(torch.zeros(40, dtype=torch.int64))
    solver = tree(f"{RMTR} -snes_rmtr_batch 10 -snes_rmtr_batch_threshold {threshold!r} -snes_max_it 1", problem)
    solver.solve(parameters(problem))
    assert parts(solver) == expected


def test_grown_batches_are_the_plain_method(comm):
    """From the state where one batch is left, a solver that knows of no batches makes the same steps."""
    problem, x = network(comm), parameters(network(comm))
    options = f"{RMTR} -dm_metric function -snes_max_it"
    growing = "-snes_rmtr_batch 8 -snes_rmtr_batch_threshold 1e9 -snes_rmtr_batch_growth 3"
    straight = tree(f"{options} 8 {growing}", problem)
    expected = straight.solve(x)
    first = tree(f"{options} 2 {growing}", problem)
    half = first.solve(x)
    assert parts(first) == 1
    plain = tree(f"{options} 8", problem)
    plain.load(first.state())
    point = plain.resume(half)
    assert torch.equal(point.x, expected.x) and point.f == expected.f
    assert (plain.work.counts == straight.work.counts).all()


@pytest.mark.parametrize("iterations", [1, 3, 6])
def test_a_restart_goes_on_with_the_batches(comm, iterations):
    problem, x = network(comm), parameters(network(comm))
    options = f"{RMTR} -snes_rmtr_batch 3 -snes_rmtr_batch_threshold 2 -snes_max_it"
    straight, first, second = (tree(f"{options} {n}", problem) for n in (9, iterations, 9))
    expected, half = straight.solve(x), first.solve(x)
    second.load(first.state())
    assert 1 <= parts(first) == parts(second) <= 13
    point = second.resume(half)
    assert torch.equal(point.x, expected.x) and parts(second) == parts(straight) < 13


def test_a_restart_with_another_batch_starts_with_that(comm):
    problem, x = network(comm), parameters(network(comm))
    options = f"{RMTR} -snes_rmtr_batch_threshold 2 -snes_max_it 1 -snes_rmtr_batch"
    first, same, other, whole = (tree(f"{options} {batch}", problem) for batch in (3, 3, 12, 0))
    first.solve(x)
    for solver in (same, other, whole):
        solver.load(first.state())
    assert 1 < parts(first) == parts(same) < math.ceil(problem.samples / 3)
    assert (parts(other), parts(whole)) == (math.ceil(problem.samples / 12), 1)


def test_evaluations_on_a_batch_count_as_their_share(comm, monkeypatch):
    evaluated: list[float] = []
    evaluate = ResNetProblem.value_and_gradient

    def counted(self: ResNetProblem, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        evaluated.append(self.cost.gradient)
        return evaluate(self, x)

    monkeypatch.setattr(ResNetProblem, "value_and_gradient", counted)
    problem = network(comm)
    solver = tree(f"{RMTR} -snes_rmtr_batch 5 -snes_max_it 3", problem)
    solver.solve(parameters(problem))
    whole = problem.cost.gradient
    assert solver.work["gradients", "work"] == pytest.approx(sum(evaluated) / whole, rel=1e-12)
    assert evaluated.count(whole) == 4  # at the start and after each epoch


def test_an_epoch_that_raises_the_objective_is_taken_back(comm):
    """Each sample pulls to itself, far from the mean where L is least and the solve starts."""
    data = torch.linspace(-100, 100, 8, dtype=torch.float64)
    problem = Analytic(world(comm), lambda x, d: (x - d).square().sum(), 4, data)
    x = torch.full((4,), 0.1, dtype=torch.float64)
    options = "-snes_rmtr_batch 1 -snes_atol 1e-6 -snes_max_it 20 -rmtr_coarse_snes_tr_delta0 100"
    solver = tree(f"{RMTR} -dm_hierarchy width -dm_levels 2 {options} -rmtr_levels_snes_tr_delta0 100", problem)
    values: list[float] = []
    history(solver, values)
    point = solver.solve(x)
    assert values[0] == values[1] and all(b <= a for a, b in pairwise(values))
    assert parts(solver) == 1
    assert point.x.abs().max() < 1e-6


def test_an_epoch_that_ends_where_nothing_is_a_number_is_taken_back(comm):
    """Of eight samples one is no number left of 0.4, where the others pull to."""
    data = torch.arange(8, dtype=torch.float64)
    problem = Analytic(
        world(comm), lambda x, d: (x * x - (0.001 * torch.log(x - 0.4) if d == 7 else 0.0)).sum(), 4, data
    )
    x = torch.ones(4, dtype=torch.float64)
    solver = tree(f"{RMTR} -dm_hierarchy width -snes_rmtr_batch 1 -snes_max_it 60 -snes_rtol 1e-6", problem)
    values: list[float] = []
    history(solver, values)
    point = solver.solve(x)
    assert all(b <= a for a, b in pairwise(values)) and values[1] == values[0]
    assert point.finite and float(point.x.min()) > 0.4 and parts(solver) < 8
    assert point.f < 0.3 * values[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-snes_rmtr_batch 13", "-snes_rmtr_batch 13: there are 12 samples"),
        ("-snes_rmtr_batch -1", "-snes_rmtr_batch"),
        ("-snes_rmtr_batch 3 -snes_rmtr_batch_growth 1", "-snes_rmtr_batch_growth"),
        ("-snes_rmtr_batch 3 -snes_rmtr_batch_threshold 0", "-snes_rmtr_batch_threshold"),
    ],
)
def test_wrong_batches_are_refused(comm, options, message):
    with pytest.raises(OptionsError, match=message):
        tree(f"{RMTR} -dm_hierarchy width {options}", least_squares(world(comm)))


@pytest.mark.parametrize("name", ["rmtr", "fas"])
def test_trees_whose_levels_have_other_unknowns_or_units_have_other_names(comm, name):
    """A restart compares the names before it takes over states, of another length or in other units otherwise."""
    options = ("", "-dm_coarsening 4", "-dm_metric function", "-dm_levels 2", "-dm_hierarchy width -dm_levels 1")
    names = [tree(f"-snes_type {name} {more}", network(comm, 16)).method.brief() for more in options]
    assert len(set(names)) == len(options)
