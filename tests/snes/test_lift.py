"""Nested iteration hands up what quasi-Newton methods have learnt: secant pairs, a dense inverse; restarts."""

from __future__ import annotations

import pytest
import torch

from ml2hpc.problem.energies import Bratu
from ml2hpc.problem.grid import GridProblem
from ml2hpc.snes.limited import CompactLBFGS
from ml2hpc.snes.qn import QuasiNewton
from tests.problem.small import random
from tests.snes.problems import Analytic, matrix, tree, world
from tests.snes.test_fas import MANY, assert_straight_is_resumed, network, parameters

DENSE = "-snes_type fas -snes_fas_type nested -fas_coarse_snes_qn_type ssbroyden"


@pytest.mark.parametrize("metric", ["function", "euclidean"])
def test_lifted_pairs_spare_the_finer_levels_what_the_coarsest_has_learnt(comm, metric):
    """L after the same steps on all levels is at most 0.7 times that without them."""
    problem = network(comm, 16)
    common = f"-snes_type fas -snes_fas_type nested -dm_levels 3 -dm_metric {metric} -snes_max_it 1 {MANY}"
    steps = "-fas_coarse_snes_max_it 30 -fas_levels_snes_max_it 8 -fas_levels_snes_qn_m 30 -fas_coarse_snes_qn_m 30"
    with_pairs, without = (
        tree(f"{common} {steps} -snes_fas_lift {yes}", problem).solve(parameters(problem)) for yes in ("true", "false")
    )
    assert with_pairs.f < 0.7 * without.f


@pytest.mark.parametrize(("metric", "most"), [("function", 0.65), ("euclidean", 0.95)])
def test_a_lifted_inverse_spares_the_finer_levels_what_the_coarsest_has_learnt(comm, metric, most):
    """L after the same steps on all levels against that without it."""
    problem = network(comm, 16)
    steps = "-fas_coarse_snes_max_it 40 -fas_levels_snes_max_it 8 -fas_levels_snes_qn_m 30"
    common = f"{DENSE} -dm_levels 3 -dm_metric {metric} -snes_max_it 1 {MANY} {steps}"
    inverse, nothing = (
        tree(f"{common} -snes_fas_lift {lift}", problem).solve(parameters(problem)).f for lift in ("true", "false")
    )
    assert inverse < most * nothing


@pytest.mark.parametrize(("lift", "least", "most"), [("true", 0.0, 1e-13), ("false", 1e-2, 1.0)])
def test_a_lifted_inverse_is_newtons(comm, lift, least, most):
    """A quadratic of n unknowns: n exact searches on half of the samples find the inverse Hessian of all.

    The finest level takes the whole step.
    """
    a, centres = matrix(6), random(6 * 16, 4).view(16, 6)
    problem = Analytic(world(comm), lambda x, d: 0.5 * (x - d) @ (a @ (x - d)), 6, centres)
    exact = "-fas_coarse_snes_linesearch_type ncglinear -fas_levels_snes_linesearch_type none"
    options = f"{DENSE.replace('ssbroyden', 'bfgs')} -dm_hierarchy samples -dm_levels 2 -snes_fas_smoothing [1,{{6}}]"
    solver = tree(f"{options} {exact} -snes_fas_type kaskade -snes_fas_lift {lift} {MANY} -snes_max_it 1", problem)
    point = solver.solve(torch.linspace(-1, 2, 6, dtype=torch.float64))
    solved = centres[::2].mean(0)  # the coarse level's minimum
    assert least <= float(point.g.norm() / problem.gradient(solved).norm()) < most
    assert ("start matrix: the inverse of the next coarser level" in solver.view()) == (lift == "true")


def test_a_lifted_inverse_has_the_scale_of_the_coarsest_level_beside_it(comm):
    """Until the finer level has a pair of its own."""
    problem = network(comm, 16)
    solver = tree(f"{DENSE} -dm_levels 2 -snes_fas_smoothing [0,{{7}}] -snes_max_it 1", problem)
    solver.solve(parameters(problem))
    (_, fine), (_, coarse) = solver.method.inner()
    assert isinstance(fine.method, QuasiNewton)
    assert isinstance(coarse.method, QuasiNewton)
    assert isinstance(fine.method.inverse, CompactLBFGS)
    assert fine.method.inverse.start is not None
    assert fine.method.inverse.start.gamma == coarse.method.inverse.scale not in (0.0, 1.0)


def test_the_view_has_the_steps_that_are_made(comm):
    """Nested iteration goes upwards only."""
    options = f"{DENSE} -dm_levels 3 -snes_fas_smoothing [2,3,{{7}}]"
    assert "steps down/up, the finest first: 0/2, 0/3; 7 on the coarsest level" in tree(options, network(comm)).view()


def test_what_is_lifted_is_for_the_next_solve_even_without_recycling(comm):
    problem = network(comm, 16)
    common = f"{DENSE} -dm_levels 2 -snes_fas_smoothing [3,{{7}}] -fas_levels_snes_qn_recycle false -snes_max_it 1"
    ends = []
    for lift in ("true", "false"):
        solver = tree(f"{common} -snes_fas_lift {lift}", problem)
        ends.append(solver.solve(parameters(problem)).f)
        (_, fine), _ = solver.method.inner()
        assert isinstance(fine.method, QuasiNewton)
        assert isinstance(fine.method.inverse, CompactLBFGS)
        assert (fine.method.inverse.start is not None) == (lift == "true")
    assert ends[0] != ends[1]


def test_without_scaling_the_rest_has_the_factor_1(comm):
    problem = network(comm, 16)
    options = "-fas_levels_snes_qn_scale_type none -dm_levels 2 -snes_fas_smoothing [3,{7}] -snes_max_it 1"
    solver = tree(f"{DENSE} {options}", problem)
    solver.solve(parameters(problem))
    (_, fine), _ = solver.method.inner()
    assert isinstance(fine.method, QuasiNewton)
    assert isinstance(fine.method.inverse, CompactLBFGS)
    assert fine.method.inverse.pairs > 0
    assert fine.method.inverse.start is not None
    assert fine.method.inverse.start.gamma == 1.0


@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize("more", ["", "-snes_fas_type full -dm_levels 4", "-dm_hierarchy samples,depth"])
def test_a_restart_with_a_lifted_inverse_is_the_straight_run(comm, more):
    """Three levels: the middle one starts from a dense matrix, the finest from the middle one's pairs above it."""
    problem = network(comm, 16)
    options = f"{DENSE} -dm_metric function -snes_fas_smoothing {'[2,2,3,{8}]' if 'full' in more else '[2,3,{8}]'}"
    assert_straight_is_resumed(comm, f"{options} {more} {MANY}", problem, parameters(problem), 2)


@pytest.mark.parametrize("coarse", ["", "-fas_coarse_snes_qn_type ssbroyden"])
def test_the_edge_of_a_grid_spoils_nothing_that_is_lifted(comm, coarse):
    """Linear interpolation leaves the edge out. No level gives its memory up, and lifting saves iterations."""
    problem = GridProblem(world(comm), Bratu(6.0), (33, 33))
    steps = "-snes_fas_smoothing [5,20,{30}] -snes_rtol 1e-6"
    taken = {}
    for lift in ("true", "false"):
        options = f"-snes_type fas -dm_hierarchy grid -snes_fas_type nested -snes_fas_lift {lift} {steps} {coarse}"
        solver = tree(options, problem)
        solver.solve(problem.guess())
        assert [child.resets for _, child in solver.method.inner()] == [0, 0, 0]
        taken[lift] = solver.work["gradients", "work"]
    assert taken["true"] < taken["false"]


@pytest.mark.parametrize("level", ["coarse", "levels"])
def test_nothing_is_lifted_beside_a_left_preconditioner(comm, level):
    """There y is a change of x - M(x), on one of the levels only."""
    problem = network(comm, 16)
    npc = f"-fas_{level}_npc_snes_type nrichardson -fas_{level}_snes_npc_side left"
    options = f"-snes_type fas -snes_fas_type nested -dm_levels 2 -snes_fas_smoothing [0,{{7}}] -snes_max_it 1 {npc}"
    solver = tree(options, problem)
    solver.solve(parameters(problem))
    (_, fine), (_, coarse) = solver.method.inner()
    assert isinstance(fine.method, QuasiNewton)
    assert isinstance(coarse.method, QuasiNewton)
    assert coarse.method.inverse.pairs > 0
    assert fine.method.inverse.pairs == 0
