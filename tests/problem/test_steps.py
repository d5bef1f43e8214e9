"""Residual networks with a step length: engines, levels of depth, points that are thinned out."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem import samplers
from ml2hpc.problem.interface import Block
from ml2hpc.problem.network import DenseNetwork
from ml2hpc.problem.pinn import PinnProblem
from ml2hpc.problem.thinning import thinned
from ml2hpc.problem.transfer import Coarsening
from tests.problem.small import assert_taylor, everyone, pinn, random, relative

ENGINES = ["jets", *(["compiled", "device"] if kernels.built() else [])]


def stack(engine: str = "jets", step: float = 0.3, **options: Any) -> tuple[PinnProblem, Tensor]:
    return pinn(engine=engine, type="resnet", adaptive=True, **{"depth": 4, "step": step} | options)


def everything(problem: Any, x: Tensor) -> list[Tensor]:
    value, gradient = problem.value_and_gradient(x)
    v = random(len(x), 4)
    linear = problem.linearize(x)
    second = [problem.hessian_action(x, v), linear.action(v), linear.matrix()]
    return [torch.tensor([value, problem.objective(x)]), gradient, *second]


@cache
def found_by(engine: str, first: int, last: int) -> list[Tensor]:
    problem, x = stack(engine, n=6, chunk=4, depth=3, width=3)
    block = problem.restrict(Block(slice(problem.layers[first].start, problem.layers[last].stop), "layers"))
    return everything(block, block.rebase(x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("first", "last"), [(0, 3), (1, 2), (2, 3)])
def test_engines_agree_on_a_step_length(engine: str, first: int, last: int) -> None:
    """Value, gradient, Hessian action, Gauss-Newton action and matrix, for all layers and for a window of them."""
    for mine, expected in zip(found_by(engine, first, last), found_by("autograd", first, last), strict=True):
        assert relative(mine, expected) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_derivatives_with_a_step_length(engine: str) -> None:
    assert_taylor(*stack(engine), make=lambda v: 0.05 * v)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("factor", [2, 4])
def test_blocks_that_see_no_state_are_the_same_function_on_both_levels(engine: str, factor: int) -> None:
    """W = 0 in all blocks: `factor` steps of length h are one of length factor h, with the gradients of both."""
    fine, x = stack(engine, depth=9)
    coarse, transfer = fine.coarsen(Coarsening("depth", factor))
    assert isinstance(coarse, PinnProblem)
    assert isinstance(coarse.model.network, DenseNetwork)
    assert (coarse.model.network.options.depth, coarse.model.network.options.step) == (1 + 8 // factor, 0.3 * factor)
    low = transfer.project(x)
    for k in range(1, len(coarse.layers) - 1):
        low[coarse.layers[k].start :][:25] = 0.0
    (f, g), (f_fine, g_fine) = coarse.value_and_gradient(low), fine.value_and_gradient(transfer.lift(low))
    assert f == pytest.approx(f_fine, rel=1e-14)
    restricted = transfer.restrict(g_fine)
    # The weights of a block see the state that enters it, which is not the same in the middle of a step.
    same = torch.ones_like(g, dtype=torch.bool)
    for k in range(1, len(coarse.layers) - 1):
        same[coarse.layers[k].start :][:25] = False
    assert relative(g[same], restricted[same]) < 1e-13
    assert same.sum() < len(g)


def test_levels_of_depth_approach_each_other() -> None:
    """The same function of time in ever more blocks on [0, 1]: levels differ by O(h), gradients too."""
    gaps: list[list[float]] = []
    for blocks in (16, 32, 64):
        coarse = stack(step=2.0 / blocks, depth=1 + blocks // 2)[0]
        fine = stack(step=1.0 / blocks, depth=1 + blocks)[0]
        _, transfer = fine.coarsen(Coarsening("depth"))
        x = torch.cat([random(21, 1), random(31, 2).repeat(blocks // 2), random(12, 3)]) / 30
        (f, g), (f_fine, g_fine) = coarse.value_and_gradient(x), fine.value_and_gradient(transfer.lift(x))
        gaps.append([abs(f - f_fine), float((g - transfer.restrict(g_fine)).norm())])
    for wide, narrow in pairwise(gaps):
        assert 1.9 < wide[0] / narrow[0] < 2.2
        assert 1.9 < wide[1] / narrow[1] < 3.0
    assert gaps[-1][0] < 1e-8


@pytest.mark.parallel(2, 3)
def test_levels_of_depth_have_the_same_bits_on_any_number_of_ranks(comm) -> None:
    runs = []
    for ranks in (everyone(comm), None):
        fine, x = stack(depth=5, comm=ranks)
        coarse, transfer = fine.coarsen(Coarsening("depth"))
        runs.append(coarse.value_and_gradient(transfer.project(x)))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_what_has_no_coarser_depth_is_refused() -> None:
    for made, message in (
        (pinn()[0], "no step length"),
        (stack(depth=4)[0], "-net_depth 4: 3 residual blocks"),
        (stack(depth=1)[0], "-net_depth 1: 0 residual blocks"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            made.coarsen(Coarsening("depth"))


# ---- points ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["sobol", "hammersley", "halton", "latin_hypercube", "uniform"])
@pytest.mark.parametrize("factor", [2, 3, 4, 16])
def test_thinned_points_cover_what_all_cover(sampler: str, factor: int) -> None:
    """Every cell of a 5 x 5 grid keeps its share within 25 %: no sequence has a period that the factor can hit."""
    points = torch.from_numpy(samplers.sample(sampler, 10_000, [(-1.0, 1.0), (0.0, 1.0)], 0)).T
    kept = points[:, thinned(points, factor)]
    cells = (2.5 * (kept[0] + 1)).long() * 5 + (5 * kept[1]).long()
    counts = (
        torch.bincount(cells, minlength=25)
        * factor
        / torch.bincount((2.5 * (points[0] + 1)).long() * 5 + (5 * points[1]).long(), minlength=25)
    )
    assert abs(counts - 1).max() < 0.25
    assert kept.shape[1] == pytest.approx(10_000 / factor, abs=1)


def test_every_term_keeps_points_and_weight() -> None:
    """Constants are integrated alike on all levels: the terms keep their weights, factor times points."""
    problem, _ = pinn()
    coarse, _ = problem.coarsen(Coarsening("samples", 16))
    assert isinstance(coarse, PinnProblem)
    assert [t.n for t in coarse.loss_terms] == [2, 1, 1][: len(problem.loss_terms)]
    for fine, few in zip(problem.loss_terms, coarse.loss_terms, strict=True):
        assert few.n * few.factor == pytest.approx(fine.n * fine.factor, rel=1e-15)


def test_levels_end_where_every_term_has_one_point() -> None:
    problem, _ = pinn()
    coarse, _ = problem.coarsen(Coarsening("samples", 16))
    assert isinstance(coarse, PinnProblem)
    last, _ = coarse.coarsen(Coarsening("samples", 2))
    with pytest.raises(UnsupportedError, match=f"{last.samples} points, one a term, cannot be coarsened"):
        last.coarsen(Coarsening("samples", 2))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_shares_of_sobol_points_cover_what_all_cover(parts: int) -> None:
    """Every k-th Sobol point lies in the same part of the box; a share of one has points in every quarter."""
    problem, _ = pinn(n=512)
    points = problem.loss_terms[0].points
    a, b = (points > points.median(1, keepdim=True).values).long()
    whole = torch.bincount(2 * a + b, minlength=4)
    for rows in problem.shares(parts):
        inside = rows[rows < points.shape[1]]
        counts = torch.bincount(2 * a[inside] + b[inside], minlength=4)
        assert abs(counts * parts / whole - 1).max() < 0.25


def test_one_coordinate_and_points_on_a_face() -> None:
    line = torch.linspace(0, 1, 9, dtype=torch.float64)[None]
    assert thinned(line, 3).tolist() == [1, 4, 7]
    assert thinned(torch.cat([line, torch.ones_like(line)]), 3).tolist() == [1, 4, 7]
    assert thinned(line, 20).tolist() == [4]
