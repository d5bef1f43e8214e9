"""Hierarchies: transposed transfers, equal functions on both levels, consistent gradients, metrics, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ml2hpc.comm import Communicator
from ml2hpc.dm import HierarchyOptions, Levels, coarsen
from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.problem.control import Architecture
from ml2hpc.problem.energies import Bratu
from ml2hpc.problem.grid import GridProblem
from ml2hpc.problem.interface import Block, Problem, ShardedProblem
from ml2hpc.problem.rescaled import Rescaled
from ml2hpc.problem.resnet import ResNetModel, ResNetProblem, Samples
from ml2hpc.problem.transfer import Coarsening, Transfer
from tests.problem.small import alone, assert_taylor, everyone, pinn, random, relative

DEEP = Architecture((2,), 3, blocks=12, width=5, final_time=2.0)
CONV = Architecture((2, 5, 4), 3, blocks=12, width=4, layers="conv")


def resnet(architecture: Architecture = DEEP, comm: Communicator | None = None, **model: Any) -> ResNetProblem:
    inputs = architecture.inputs
    x = random(41 * torch.Size(inputs).numel(), 7).view(41, *inputs)
    made = ResNetModel(architecture, "torch", torch.float64, **{"beta": 0.0, "chunk": 16} | model)
    return ResNetProblem(comm or alone(), made, Samples(x, torch.arange(41) % 3))


def grid(comm: Communicator | None = None) -> GridProblem:
    return GridProblem(comm or alone(), Bratu(3.0), (25, 13))


def stack(comm: Communicator | None = None) -> Problem:
    return pinn(comm=comm, type="resnet", adaptive=True, depth=5, step=0.5)[0]


def outer(comm: Communicator | None = None) -> Problem:
    problem = resnet(comm=comm)
    first, last = problem.layers[0], problem.layers[-1]
    parts = torch.cat([torch.arange(s.start, s.stop) for s in (first, last)])
    restriction = problem.restrict(Block(parts, "outer layers"))
    restriction.rebase(0.3 * random(problem.space.n, 11))
    return restriction


def everything(comm: Communicator | None = None) -> dict[str, tuple[Problem, Coarsening]]:
    conv = replace(CONV, blocks=4)
    return {
        "depth": (resnet(comm=comm), Coarsening("depth", 3)),
        "depth, linear": (resnet(comm=comm), Coarsening("depth", 3, linear=True)),
        "depth, average": (resnet(comm=comm), Coarsening("depth", 2, average=True)),
        "depth of images": (resnet(conv, comm), Coarsening("depth", 4)),
        "depth of the outer layers": (outer(comm), Coarsening("depth")),
        "depth, sharded": (ShardedProblem(resnet(comm=comm)), Coarsening("depth", linear=True)),
        "depth, shifted": (resnet(comm=comm).shift(random(DEEP.n, 12)), Coarsening("depth")),
        "width": (resnet(comm=comm), Coarsening("width", 2)),
        "width, average": (resnet(comm=comm), Coarsening("width", 3, average=True)),
        "width of images": (resnet(conv, comm), Coarsening("width")),
        "width of a PINN": (pinn(comm=comm)[0], Coarsening("width")),
        "width of a residual PINN": (pinn(comm=comm, type="resnet", adaptive=True)[0], Coarsening("width", 3)),
        "depth of a residual PINN": (stack(comm), Coarsening("depth", 2)),
        "depth of a residual PINN, linear": (stack(comm), Coarsening("depth", 2, linear=True)),
        "samples": (resnet(comm=comm), Coarsening("samples", 3)),
        "samples of a PINN": (pinn(comm=comm)[0], Coarsening("samples", 2)),
        "grid": (grid(comm), Coarsening("grid", 2, linear=True)),
        "grid, by 3": (grid(comm), Coarsening("grid", 3, linear=True)),
    }


EVERY = pytest.mark.parametrize("kind", everything())
IMAGES_TOO = pytest.mark.parametrize("architecture", [DEEP, CONV], ids=["dense", "conv"])


def both(kind: str, comm: Communicator | None = None) -> tuple[Problem, Problem, Transfer]:
    problem, how = everything(comm)[kind]
    coarse, transfer = problem.coarsen(how)
    return problem, coarse, transfer


def vector(problem: Problem, seed: int) -> torch.Tensor:
    """The same whole vector on any number of ranks."""
    return problem.space.local(random(problem.space.n, seed)).clone()


@pytest.mark.parallel(1, 2, 3)
@EVERY
def test_restriction_is_the_transpose_of_prolongation(comm, kind) -> None:
    fine, coarse, transfer = both(kind, everyone(comm))
    for seed in range(3):
        g, e = vector(fine, seed), vector(coarse, seed + 10)
        right = fine.space.dot(g, transfer.prolong(e))
        size = fine.space.norm(g) * fine.space.norm(transfer.prolong(e))
        assert abs(coarse.space.dot(transfer.restrict(g), e) - right) < 1e-15 * size


@EVERY
def test_projection_undoes_lifting(kind) -> None:
    _, coarse, transfer = both(kind)
    x = vector(coarse, 3)
    torch.testing.assert_close(transfer.project(transfer.lift(x)), x, rtol=0, atol=1e-14)


@pytest.mark.parallel(2, 3)
@EVERY
def test_transfers_do_not_depend_on_the_ranks(comm, kind) -> None:
    runs = []
    for fine, coarse, transfer in (both(kind), both(kind, everyone(comm))):
        e, g = vector(coarse, 5), vector(fine, 6)
        down = [coarse.space.gather(v) for v in (transfer.restrict(g), transfer.project(g))]
        runs.append([fine.space.gather(v) for v in (transfer.prolong(e), transfer.lift(e))] + down)
    for found, expected in zip(*runs, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0 if kind[:4] != "grid" else 1e-15)


@EVERY
def test_the_coarse_objective_has_its_gradient(kind) -> None:
    _, coarse, _ = both(kind)
    assert_taylor(coarse, 0.3 * vector(coarse, 4))


@pytest.mark.parametrize("linear", [False, True])
def test_the_unknowns_of_a_block_are_lifted_with_what_is_frozen_around_them(linear: bool) -> None:
    """Where all steps have the same parameters, a block of them comes back as it was, up to its borders."""
    problem = resnet()
    x = random(problem.space.n, 13)
    first = problem.layers[1]
    for layer in problem.layers[2:-1]:
        x[layer] = x[first]
    block = slice(problem.layers[3].start, problem.layers[-4].stop)
    restriction = problem.restrict(Block(block, "inner layers"))
    t = restriction.rebase(x)
    _, transfer = restriction.coarsen(Coarsening("depth", 3, linear=linear))
    torch.testing.assert_close(transfer.lift(transfer.project(t)), t, rtol=0, atol=1e-14)


WIDTHS = [kind for kind in everything() if kind.startswith("width")]


@pytest.mark.parametrize("kind", WIDTHS)
def test_a_split_network_is_the_same_function(kind) -> None:
    """L and, by the chain rule, R grad L of the fine network are those of the coarse one."""
    fine, coarse, transfer = both(kind)
    y = 0.5 * vector(coarse, 6)
    assert fine.objective(transfer.lift(y)) == pytest.approx(coarse.objective(y), rel=1e-13)
    assert relative(transfer.restrict(fine.gradient(transfer.lift(y))), coarse.gradient(y)) < 1e-13


def test_parts_of_a_neuron_learn_differently() -> None:
    """Nested iteration goes on from a split network: equal parts would stay equal."""
    fine, coarse, transfer = both("width")
    g = fine.gradient(transfer.lift(vector(coarse, 6)))
    weights = g[fine.tensors[0]].view(5, 2)
    assert (weights[0] - weights[1]).abs().max() > 0.1 * weights.abs().max()


def test_fewer_blocks_are_the_same_differential_equation() -> None:
    """Of parameters that are smooth in time, coarse and fine loss differ by the order of the step."""
    gaps = []
    for blocks in (32, 64, 128):
        fine = resnet(replace(DEEP, blocks=blocks))
        coarse, transfer = fine.coarsen(Coarsening("depth", linear=True))
        groups = fine.model.architecture.groups
        t = torch.arange(blocks, dtype=torch.float64)[:, None] / blocks
        x = random(DEEP.n, 2)
        x = torch.cat([x[groups["opening"]], torch.zeros(30 * blocks, dtype=x.dtype), x[-18:]])
        x[groups["blocks"]] = torch.sin(3 * t + torch.arange(30) / 7).flatten()
        gaps.append(abs(coarse.objective(transfer.project(x)) - fine.objective(x)))
    assert 1.8 < gaps[0] / gaps[1] < 2.2
    assert 1.8 < gaps[1] / gaps[2] < 2.2


def test_linear_interpolation_of_a_line_in_time_is_the_line() -> None:
    problem, coarse, transfer = both("depth, linear")
    rows = torch.arange(4, dtype=torch.float64)[:, None] * torch.ones(30, dtype=torch.float64)
    start, stop = coarse.layers[1].start, coarse.layers[-2].stop
    e = torch.zeros(coarse.space.n, dtype=torch.float64)
    e[start:stop] = rows.flatten()
    fine = transfer.prolong(e)[problem.layers[1].start : problem.layers[-2].stop].view(12, 30)
    expected = (torch.arange(12, dtype=torch.float64) / 3).clamp(max=3.0)
    torch.testing.assert_close(fine, expected[:, None].expand(12, 30), rtol=0, atol=1e-15)


def test_bilinear_interpolation_of_a_bilinear_function_is_the_function() -> None:
    fine, coarse, transfer = both("grid, by 3")
    assert isinstance(fine, GridProblem) and isinstance(coarse, GridProblem)
    x, y = (p.part.coordinates(p.grid) for p in (coarse, fine))
    f: Callable[..., torch.Tensor] = lambda a, b: 1 + a - 2 * b + 3 * a * b  # noqa: E731
    torch.testing.assert_close(transfer.lift(f(*x)), f(*y), rtol=0, atol=1e-14)
    edge = fine.grid.natural(fine.grid).view(13, 25)[:, [0, -1]]
    assert not transfer.prolong(f(*x))[edge].any(), "the unknowns on the boundary are their own"


def levels_of(problem: Problem, **options: Any) -> Levels:
    return coarsen(problem, HierarchyOptions(**options), "npc_")


def test_kinds_go_together() -> None:
    levels = levels_of(resnet(beta=1e-3), hierarchy=("depth", "width", "samples"), levels=3)
    sizes = [(level.problem.samples, len(level.problem.layers)) for level in levels.levels]
    assert sizes == [(11, 5), (21, 8), (41, 14)]
    g, e = vector(levels[2].problem, 0), vector(levels[1].problem, 1)
    transfer = levels.transfer(1)
    assert torch.dot(g, transfer.prolong(e)) == pytest.approx(float(torch.dot(transfer.restrict(g), e)), rel=1e-13)
    coarse = levels[0].problem
    assert isinstance(coarse, ResNetProblem)
    assert coarse.model.architecture.width == 2 and coarse.model.scaling == 4.0


def test_samples_are_nested() -> None:
    data = Samples(torch.arange(41.0, dtype=torch.float64)[:, None].repeat(1, 2), torch.zeros(41, dtype=torch.int64))
    problem = ResNetProblem(alone(), ResNetModel(DEEP, "torch", torch.float64), data)
    kept = []
    for level in levels_of(problem, hierarchy=("samples",), levels=3, coarsening=3).levels:
        assert isinstance(level.problem, ResNetProblem)
        kept.append(level.problem.data.x[:, 0].tolist())
    assert kept == [list(range(0, 41, 9)), list(range(0, 41, 3)), list(range(41))]


@IMAGES_TOO
def test_gradients_of_blocks_do_not_vanish_in_the_metric_of_functions(architecture: Architecture) -> None:
    """With more and more blocks their gradient falls like dt; in the metric it goes like the root, as do distances."""
    norms: dict[str, list[float]] = {"euclidean": [], "function": []}
    for blocks in (16, 64):
        problem = resnet(replace(architecture, blocks=blocks))
        x = 0.3 * random(problem.space.n, 3)
        x[problem.layers[-1]] = 0.3 * random(problem.space.n, 5)[: len(x[problem.layers[-1]])]
        for layer in problem.layers[1:-1]:
            x[layer] = x[problem.layers[1]]
        for metric, found in norms.items():
            level = levels_of(problem, levels=1, metric=metric)[0]
            g = level.problem.gradient(x if level.scale is None else level.scale * x)
            part = g[problem.model.architecture.groups["blocks"]].view(blocks, -1)
            found.append(float(part.norm()))
    # The 2-norm sums over blocks: dt sqrt(1/dt) and sqrt(dt) sqrt(1/dt).
    assert norms["euclidean"][0] / norms["euclidean"][1] == pytest.approx(2.0, rel=0.1)
    assert norms["function"][0] / norms["function"][1] == pytest.approx(1.0, rel=0.1)


def test_a_problem_in_a_metric_has_its_derivatives() -> None:
    level = levels_of(resnet(), metric="function")[1]
    assert isinstance(level.problem, Rescaled) and level.scale is not None
    scale = level.scale
    x = 0.3 * scale * vector(level.problem, 2)
    assert_taylor(level.problem, x, make=lambda v: scale * v)
    assert level.problem.objective(x) == level.problem.inner.objective(x / level.scale)
    v = vector(level.problem, 3)
    linear = level.problem.linearize(x)
    torch.testing.assert_close(linear.matrix() @ v, linear.action(v), rtol=1e-10, atol=1e-12)


def test_shares_are_interleaved_where_samples_have_no_order() -> None:
    problem = resnet()
    whole = list(range(problem.samples))
    for each in (problem, levels_of(problem, metric="function")[2].problem):
        assert [rows.tolist() for rows in each.shares(3)] == [whole[k::3] for k in range(3)]


def test_a_problem_in_a_metric_has_levels_in_theirs() -> None:
    """The levels below one in the metric are those of the whole hierarchy, and its own metric is 1."""
    levels = levels_of(resnet(), metric="function", levels=3)
    coarse, transfer = levels[2].problem.coarsen(Coarsening("depth"))
    assert torch.equal(coarse.metric(), torch.ones_like(coarse.metric()))
    x = vector(levels[2].problem, 2)
    assert torch.equal(transfer.project(x), levels.transfer(1).project(x))
    assert torch.equal(transfer.restrict(x), levels.transfer(1).restrict(x))
    below = transfer.project(x)
    assert torch.equal(coarse.gradient(below), levels[1].problem.gradient(below))


@pytest.mark.parametrize(("metric", "norm"), [("euclidean", 2**0.5), ("function", 1.0)])
@IMAGES_TOO
def test_interpolation_by_constants_keeps_lengths(architecture, metric, norm) -> None:
    """The bound is attained by e in the blocks; in the metric of functions the 2-norm is kept."""
    levels = levels_of(resnet(architecture), metric=metric)
    coarse, fine = levels[1].problem, levels[2].problem
    two, most = levels.transfer(1).norms(coarse.space, fine.space)
    assert two == pytest.approx(norm, rel=1e-14)
    e = torch.zeros(coarse.space.n, dtype=torch.float64)
    e[coarse.layers[1].start : coarse.layers[-2].stop] = 1.0
    s = levels.transfer(1).prolong(e)
    assert fine.space.norm(s) == pytest.approx(two * coarse.space.norm(e), rel=1e-14)
    assert float(s.abs().max()) <= most * (1 + 1e-15)


@pytest.mark.parallel(1, 4)
def test_coarse_levels_on_fewer_ranks_have_the_same_bits(comm) -> None:
    world = everyone(comm)
    size = world.size
    few = levels_of(resnet(comm=world), coarse_ranks=(1, max(1, size // 2)))
    assert [level.problem.comm.size for level in few.levels] == [1, max(1, size // 2), size]
    assert [level.spokes for level in few.levels] == [world.rank < 1, world.rank < max(1, size // 2), True]
    many = levels_of(resnet(comm=world))
    for a, b in zip(few.levels, many.levels, strict=True):
        x = vector(a.problem, 1)
        assert a.problem.objective(x) == b.problem.objective(x)
        assert torch.equal(a.problem.gradient(x), b.problem.gradient(x))


def test_the_table_shows_sizes_and_costs() -> None:
    problem = resnet(replace(DEEP, blocks=8, width=4, inputs=(1,), classes=1), beta=1e-3)
    lines = levels_of(problem, levels=2).view(problem.cost)
    assert lines[0].startswith("2 levels by depth, coarsening 2")
    share = levels_of(problem, levels=2)[0].problem.cost.gradient / problem.cost.gradient
    assert [line.split() for line in lines[1:]] == [
        ["level", "layers", "unknowns", "samples", "gradient", "ranks"],
        ["1", "10", "173", "41", "1.0000", "1"],
        ["0", "6", "93", "41", f"{share:.4f}", "1"],
    ]


WRONG: dict[str, tuple[Callable[[], Problem], dict[str, Any], type[Exception], str]] = {
    "odd blocks": (resnet, {"levels": 4}, UnsupportedError, "3 residual blocks cannot be coarsened by 2"),
    "depth of a PINN": (lambda: pinn()[0], {}, UnsupportedError, "no step length"),
    "one neuron": (
        lambda: resnet(replace(DEEP, width=1)),
        {"hierarchy": ("width",)},
        UnsupportedError,
        "blocks of one neuron",
    ),
    "width of Verlet's scheme": (
        lambda: resnet(replace(DEEP, scheme="verlet")),
        {"hierarchy": ("width",)},
        UnsupportedError,
        "-resnet_scheme verlet",
    ),
    "samples": (
        lambda: resnet().sample(torch.arange(3)),
        {"hierarchy": ("samples",), "levels": 4},
        UnsupportedError,
        "1 samples cannot be coarsened by 2",
    ),
    "no grid": (resnet, {"hierarchy": ("grid",)}, UnsupportedError, "cannot be coarsened in grid"),
    "depth of a grid": (grid, {}, UnsupportedError, "use -dm_hierarchy grid"),
    "grid lines": (grid, {"hierarchy": ("grid",), "levels": 5}, UnsupportedError, "nodes cannot be coarsened by 2"),
    "grid by averages": (
        grid,
        {"hierarchy": ("grid",), "projection": "average"},
        UnsupportedError,
        "bilinear interpolation",
    ),
    "twice": (resnet, {"hierarchy": ("depth", "depth")}, OptionsError, "-npc_dm_hierarchy depth,depth"),
    "nothing to interpolate": (
        resnet,
        {"hierarchy": ("samples",), "prolongation": "linear"},
        OptionsError,
        "-npc_dm_prolongation linear",
    ),
    "ranks of the finest": (resnet, {"coarse_ranks": (1, 1, 1)}, OptionsError, "-npc_dm_coarse_ranks: 3 numbers"),
    "too many ranks": (resnet, {"coarse_ranks": (9,)}, OptionsError, "-npc_dm_coarse_ranks 9"),
    "ranks of a grid": (grid, {"hierarchy": ("grid",), "coarse_ranks": (1,)}, OptionsError, "whole vectors"),
    "metric of points": (
        lambda: pinn()[0],
        {"hierarchy": ("samples",), "metric": "function"},
        UnsupportedError,
        "-dm_metric euclidean",
    ),
    "a block inside": (
        lambda: resnet().restrict(Block(slice(20, 30), "part of a block")),
        {"coarsening": 3, "levels": 2},
        UnsupportedError,
        "no unknown of the block",
    ),
}


@pytest.mark.parametrize(("make", "options", "error", "message"), WRONG.values(), ids=list(WRONG))
def test_what_cannot_be_coarsened_is_refused(make, options, error, message) -> None:
    with pytest.raises(error, match=message):
        levels_of(make(), **options)
