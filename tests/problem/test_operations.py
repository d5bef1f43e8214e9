"""The algebra of problems: Hessian actions, Taylor rates, restriction, samples, shifts, spans, sharding, nesting."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.ansatz import Trial, residuals
from ml2hpc.problem.autograd import AutogradEngine
from ml2hpc.problem.gram import add_square, panels
from ml2hpc.problem.interface import Block, Problem, Restriction, ShardedProblem, Span, slices
from ml2hpc.problem.jet import Points
from ml2hpc.problem.pinn import PinnProblem, PinnRestriction
from ml2hpc.problem.transfer import Coarsening
from tests.problem.small import alone, assert_taylor, everyone, pinn, random, relative

INDICES: dict[str, Any] = {
    "layer": lambda p: p.layers[1],
    "output layer": lambda p: p.layers[-1],
    "two layers": lambda p: slice(p.layers[1].start, p.layers[2].stop),
    "part of a layer": lambda p: slice(p.layers[1].start + 3, p.layers[2].start + 2),
    "all": lambda p: slice(0, p.space.n),
    "scattered": lambda p: torch.tensor([1, p.layers[1].start, p.layers[1].start + 5, p.layers[2].stop - 1]),
    "scattered above": lambda p: torch.arange(p.layers[2].start, p.space.n, 3),
}
blocks = pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES.keys())
engines = pytest.mark.parametrize("engine", ["jets", "autograd"])


def restricted(problem: Problem, indices: slice | Tensor, x: Tensor) -> tuple[Restriction, Tensor]:
    restriction = problem.restrict(Block(indices, "block"))
    return restriction, restriction.rebase(x)


def check_consistent(problem: Problem, x: Tensor) -> None:
    """Value and gradient come from one function, in every way of asking."""
    f, g = problem.value_and_gradient(x)
    assert g.shape == x.shape
    assert abs(problem.objective(x) - f) <= 1e-14 * abs(f)
    assert torch.equal(problem.gradient(x), g)
    assert abs(sum(problem.terms(x).values()) - f) <= 1e-13 * abs(f)
    assert_taylor(problem, x)


@engines
def test_pinn_problem(engine: str) -> None:
    problem, x = pinn(engine=engine)
    assert problem.samples == 40 + 9
    check_consistent(problem, x)


@engines
@blocks
def test_restriction(engine: str, indices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, x = pinn(engine=engine, adaptive=True)
    f, g = problem.value_and_gradient(x)
    where = indices(problem)
    restriction, t = restricted(problem, where, x)
    plain = Restriction(problem, restriction.block)
    plain.rebase(x)
    v = random(restriction.space.n, 4)
    action = plain.hessian_action(t, v)
    for name in ("objective", "value_and_gradient", "hessian_action", "terms"):
        monkeypatch.setattr(PinnProblem, name, None)  # a restriction has less to do than its parent
    assert isinstance(restriction, PinnRestriction)
    assert torch.equal(t, x[where])
    value, gradient = restriction.value_and_gradient(t)
    assert abs(value - f) <= 1e-14 * f
    assert relative(gradient, g[where]) < 1e-13
    assert relative(restriction.hessian_action(t, v), action) < 1e-12
    check_consistent(restriction, t)


def test_restriction_that_the_problem_does_not_know() -> None:
    problem, x = pinn()
    block = Block(INDICES["scattered"](problem), "block")
    plain, mine = Restriction(problem, block), problem.restrict(block)
    t = plain.rebase(x)
    mine.rebase(x)
    check_consistent(plain, t)
    t = t + 0.1
    assert relative(mine.gradient(t), plain.gradient(t)) < 1e-13
    assert plain.cost == problem.cost


def test_restriction_follows_its_base() -> None:
    problem, x = pinn()
    restriction, t = restricted(problem, problem.layers[2], x)
    moved = x + 0.1
    t = restriction.rebase(moved)
    assert restriction.objective(t) == pytest.approx(problem.objective(moved), rel=1e-14)
    assert abs(problem.objective(moved) - problem.objective(x)) > 1e-3
    whole = restriction.embed(t + 1)
    assert torch.equal(whole[problem.layers[2]], t + 1)
    assert torch.equal(whole[: problem.layers[2].start], moved[: problem.layers[2].start])


def test_restriction_costs_less_by_its_prefix() -> None:
    problem, _ = pinn(depth=8)
    costs = [problem.restrict(Block(s, "")).cost for s in problem.layers]
    assert costs[0].objective == problem.cost.objective
    assert all(a.objective > b.objective for a, b in pairwise(costs))
    assert all(c.gradient < problem.cost.gradient for c in costs)
    assert problem.restrict(Block(slice(0, problem.space.n), "")).cost == problem.cost


@engines
def test_sample_over_all_rows_is_the_problem(engine: str) -> None:
    problem, x = pinn(engine=engine)
    every = problem.sample(torch.arange(problem.samples))
    assert every.objective(x) == problem.objective(x)
    assert torch.equal(every.gradient(x), problem.gradient(x))
    assert every.cost == problem.cost


@pytest.mark.parametrize("cuts", [[20], [40], [44], [3, 12, 41]])  # rows 40..48 are on the faces
def test_sample_over_a_union_is_the_weighted_mean(cuts: list[int]) -> None:
    problem, x = pinn()
    order = torch.randperm(problem.samples, generator=torch.Generator().manual_seed(0))
    for rows in (torch.arange(problem.samples), order):
        parts = [part.sort().values for part in rows.tensor_split(cuts)]
        sampled = [problem.sample(part) for part in parts]
        assert [s.samples for s in sampled] == [len(p) for p in parts]
        f, g = zip(*(s.value_and_gradient(x) for s in sampled), strict=True)
        shares = [len(part) / problem.samples for part in parts]
        assert sum(w * v for w, v in zip(shares, f, strict=True)) == pytest.approx(problem.objective(x), rel=1e-14)
        assert relative(sum(w * v for w, v in zip(shares, g, strict=True)), problem.gradient(x)) < 1e-13


def test_sample_of_a_sample_and_its_rates() -> None:
    problem, x = pinn()
    rows = torch.tensor([0, 3, 7, 20, 39, 42, 45])
    sampled = problem.sample(rows)
    check_consistent(sampled, x)
    assert set(sampled.terms(x)) == {"residual", "x_periodic"}
    assert set(problem.sample(rows[:4]).terms(x)) == {"residual"}
    inner = sampled.sample(torch.tensor([1, 4, 6]))
    assert inner.objective(x) == pytest.approx(problem.sample(rows[[1, 4, 6]]).objective(x), rel=1e-14)
    assert sampled.cost.gradient < problem.cost.gradient / 4


def test_shift_in_value_gradient_and_hessian() -> None:
    problem, x = pinn()
    slope, v = random(problem.space.n, 2), random(problem.space.n, 3)
    shifted = problem.shift(slope)
    assert shifted.objective(x) == pytest.approx(problem.objective(x) + float(slope @ x), rel=1e-14)
    assert torch.equal(shifted.gradient(x), problem.gradient(x) + slope)
    assert torch.equal(shifted.hessian_action(x, v), problem.hessian_action(x, v))
    assert shifted.terms(x)["shift"] == float(slope @ x)
    check_consistent(shifted, x)


def test_span() -> None:
    problem, x = pinn()
    directions = [random(problem.space.n, k) for k in (2, 3, 4)]
    span = Span(problem, x, directions)
    a = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64)
    y = x + 0.1 * directions[0] - 0.2 * directions[1] + 0.05 * directions[2]
    assert relative(span.at(a), y) < 1e-15
    assert span.objective(a) == pytest.approx(problem.objective(y), rel=1e-13)
    expected = torch.stack([d @ problem.gradient(y) for d in directions])
    assert relative(span.gradient(a), expected) < 1e-12
    assert_taylor(Span(problem, x, [0.2 * d for d in directions]), a)
    assert span.sample(torch.arange(49)).objective(a) == span.objective(a)
    with pytest.raises(UnsupportedError, match="where its directions are"):
        span.on(alone())


def test_engines_agree_in_hessian_actions() -> None:
    (jets, x), (oracle, _) = (pinn(engine=e, adaptive=True, type="resnet") for e in ("jets", "autograd"))
    v = random(len(x), 6)
    assert relative(jets.gradient(x), oracle.gradient(x)) < 1e-12
    assert relative(jets.hessian_action(x, v), oracle.hessian_action(x, v)) < 1e-10
    w = random(len(x), 7)
    assert float(w @ jets.hessian_action(x, v)) == pytest.approx(float(v @ jets.hessian_action(x, w)), rel=1e-11)


def gauss_newton(problem: PinnProblem, x: Tensor) -> Tensor:
    """2 J' D J by differentiating the residuals as a whole; 2 J' D r is the gradient."""
    model = problem.model

    def scaled(parameters: Tensor) -> Tensor:
        parts = []
        for term in problem.loss_terms:
            points = term.all_points()
            engine = AutogradEngine(model.network, model.layout, model.pde.features, term.indices)
            trial = Trial(model.pde, points, engine.indices)
            u = trial.jets(engine.differentiable(parameters, engine.batch(points)))
            found = term.residual(
                Points(model.pde.coordinates, term.points), *trial.fields(u, pairs=term.partner is not None)
            )
            parts += [term.factor**0.5 * r for r in residuals(found)]
        return torch.cat(parts)

    jacobian = torch.autograd.functional.jacobian(scaled, x)
    assert relative(2 * jacobian.T @ scaled(x), problem.gradient(x)) < 1e-12
    return 2 * jacobian.T @ jacobian


def check_linearization(problem: Problem, x: Tensor, expected: Tensor) -> None:
    """Action and matrix are those of `expected`, shape (n, n)."""
    linear = problem.linearize(x)
    matrix = linear.matrix()
    assert relative(matrix, expected) < 1e-12
    assert torch.equal(matrix, matrix.T)
    v = random(len(expected), 5)
    action = problem.space.gather(linear.action(problem.space.local(v)))
    assert relative(action, expected @ v) < 1e-12
    assert linear.cost.matrix > linear.cost.action > 0


@engines
def test_linearization(engine: str) -> None:
    """Several fields, several residuals a point, periodic pairs, a hard factor; and all operations of the algebra."""
    problem, x = pinn(engine=engine, adaptive=True, n=7, chunk=4)
    expected = gauss_newton(problem, x)
    check_linearization(problem, x, expected)
    slope = random(len(x), 2)
    check_linearization(problem.shift(slope), x, expected)
    rows = torch.arange(0, 16, 2)
    check_linearization(problem.sample(rows), x, gauss_newton(problem.sample(rows), x))
    d = torch.stack([random(len(x), k) for k in (2, 3, 4)])
    span = Span(problem, x, list(d))
    linear = span.linearize(torch.zeros(3, dtype=torch.float64))
    assert relative(linear.matrix(), d @ expected @ d.T) < 1e-12
    assert relative(linear.action(torch.ones(3, dtype=torch.float64)), d @ expected @ d.sum(0)) < 1e-12


@engines
@blocks
def test_linearization_over_a_block(engine: str, indices: Any) -> None:
    problem, x = pinn(engine=engine, adaptive=True, n=7, chunk=4)
    where = indices(problem)
    expected = gauss_newton(problem, x)[where][:, where]
    restriction, t = restricted(problem, where, x)
    linear = restriction.linearize(t)
    restriction.objective(t + 1)  # another evaluation leaves the linearization where it is
    assert relative(linear.matrix(), expected) < 1e-12
    if engine == "autograd":  # whose matrix takes a while; the algebra is the same
        return
    check_linearization(restriction, t, expected)
    plain = Restriction(problem, restriction.block)
    check_linearization(plain, plain.rebase(x), expected)
    inner = Block(slice(1, 3), "inner")
    nested = restriction.restrict(inner)
    check_linearization(nested, nested.rebase(t), expected[1:3, 1:3])


def test_a_large_matrix_by_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, x = pinn(width=10)
    whole = problem.linearize(x).matrix()
    monkeypatch.setattr("ml2hpc.problem.gram._ENTRIES", 10_000)
    monkeypatch.setattr("ml2hpc.problem.gram._ALIGNED", 8)
    assert len(list(panels(len(x)))) > 3
    assert relative(problem.linearize(x).matrix(), whole) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_symmetric_product_adds_to_one_triangle(dtype: torch.dtype) -> None:
    out, j = torch.ones(5, 5, dtype=dtype), random(35, 1, dtype).view(5, 7)
    add_square(out, j, 0.5)
    assert relative(out.tril(), (1 + 0.5 * j @ j.T).tril()) < 1e-5
    assert torch.equal(out.triu(1), torch.ones(5, 5, dtype=dtype).triu(1))


def test_what_is_no_sum_of_squares_says_so() -> None:
    problem, x = pinn()

    class Other(PinnProblem):
        linearize = Problem.linearize

    with pytest.raises(UnsupportedError, match="Other is not a sum of squares"):
        Other(problem.comm, problem.model, problem.loss_terms).shift(x).linearize(x)


def test_the_cost_of_a_block_is_known_before_it_is_built() -> None:
    problem, x = pinn(depth=6)
    for where in (*problem.layers, slice(0, problem.space.n), INDICES["scattered"](problem)):
        block = Block(where, "block")
        assert problem.block_cost(block) == problem.restrict(block).cost
    outer = Block(slice(problem.layers[1].start, problem.space.n), "outer")
    for first in (slice(0, 5), torch.tensor([2, 7])):
        inner = Block(first, "inner")
        assert inner.within(outer).bounds()[0] == outer.bounds()[0] + inner.bounds()[0]
        assert problem.restrict(outer).block_cost(inner) == problem.restrict(inner.within(outer)).cost
    scattered = Block(torch.tensor([3, 8, 11]), "scattered")
    assert Block(slice(1, 3), "").within(scattered).bounds() == (8, 12)
    assert problem.shift(x).block_cost(outer) == problem.restrict(outer).cost


def test_view_names_engine_and_points() -> None:
    problem, x = pinn()
    lines = ["engine jets, chunks of 16 points", "points: 40 residual, 9 x_periodic"]
    for other in (problem, problem.shift(x), problem.restrict(Block(problem.layers[1], ""))):
        assert other.view() == lines
    residual, pairs = problem.loss_terms
    heavier = PinnProblem(problem.comm, problem.model, [residual, replace(pairs, factor=2.5 / pairs.n)])
    assert heavier.view()[1] == "points: 40 residual, 9 x_periodic (weight 2.5)"
    assert Span(problem, x, [x]).view() == []


def test_operations_nest() -> None:
    problem, x = pinn()
    rows, slope = torch.arange(0, 49, 2), random(problem.space.n, 2)
    layer = problem.layers[1]
    inner = slice(4, 17)
    v = random(13, 3)

    # The same function in several orders of the operations.
    whole = problem.sample(rows).shift(slope)
    first, t = restricted(whole, layer, x)
    second, s = restricted(first, inner, t)
    fast, _ = restricted(problem.sample(rows), slice(layer.start + 4, layer.start + 17), x)
    third = fast.shift(slope[layer][inner])
    fourth, _ = restricted(problem, layer, x)
    fifth, _ = restricted(fourth.sample(rows), inner, t)
    assert torch.equal(s, x[layer][inner])
    for other in (third, fifth.shift(slope[layer][inner])):
        assert relative(other.gradient(s + 0.1), second.gradient(s + 0.1)) < 1e-12
        assert relative(other.hessian_action(s, v), second.hessian_action(s, v)) < 1e-11
        constant = second.objective(s) - other.objective(s)  # of the frozen part of <slope, x>
        assert second.objective(s + 0.1) - other.objective(s + 0.1) == pytest.approx(constant, rel=1e-12)
    check_consistent(second, s)
    assert_taylor(Span(third, s, [0.3 * v, random(13, 5)]), torch.zeros(2, dtype=torch.float64))
    shifted_sample = whole.sample(torch.arange(5))
    assert relative(shifted_sample.gradient(x), problem.sample(rows[:5]).gradient(x) + slope) < 1e-14


@pytest.mark.parametrize("kind", ["problem", "restriction", "sample", "shifted"])
def test_on_keeps_the_function(kind: str) -> None:
    problem, x = pinn()
    restriction, t = restricted(problem, problem.layers[2], x)
    cases: dict[str, tuple[Problem, Tensor]] = {
        "problem": (problem, x),
        "restriction": (restriction, t),
        "sample": (problem.sample(torch.arange(3, 44)), x),
        "shifted": (problem.shift(x), x),
    }
    before, at = cases[kind]
    after = before.on(alone())
    assert after.comm is not before.comm
    assert after.objective(at + 0.1) == before.objective(at + 0.1)
    assert torch.equal(after.gradient(at), before.gradient(at))


@pytest.mark.parametrize("kind", ["problem", "restriction", "shifted", "sharded", "span"])
def test_what_is_on_no_grid_has_no_coarser_grid(kind: str) -> None:
    problem, x = pinn()
    cases: dict[str, Problem] = {
        "problem": problem,
        "restriction": problem.restrict(Block(slice(0, 4), "")),
        "shifted": problem.shift(x),
        "sharded": ShardedProblem(problem),
        "span": Span(problem, x, [x]),
    }
    with pytest.raises(UnsupportedError, match="cannot be coarsened in grid"):
        cases[kind].coarsen(Coarsening("grid"))


@pytest.mark.parallel(1, 2, 3, 4)
def test_sharded_problem(comm) -> None:
    problem, x = pinn(comm=everyone(comm))
    sharded = ShardedProblem(problem)
    space = sharded.space
    mine = space.local(x).clone()
    f, g = problem.value_and_gradient(x)
    value, gradient = sharded.value_and_gradient(mine)
    assert value == f == sharded.objective(mine)
    assert gradient.shape == (space.n_local,)
    assert torch.equal(space.gather(gradient), g)
    v = random(space.n, 8)
    assert torch.equal(space.gather(sharded.hessian_action(mine, space.local(v))), problem.hessian_action(x, v))
    check_linearization(sharded, mine, problem.linearize(x).matrix())
    check_consistent(sharded, mine)

    slope = random(space.n, 2)
    shifted = sharded.shift(space.local(slope))
    check_consistent(shifted, mine)
    rows = torch.arange(0, 49, 3)
    assert torch.equal(space.gather(sharded.sample(rows).gradient(mine)), problem.sample(rows).gradient(x))
    assert torch.equal(sharded.on(problem.comm.alone()).gradient(x), g)
    for parent, whole in ((sharded, problem), (shifted, problem.shift(slope))):
        mine_of_block, t = restricted(parent, problem.layers[1], x)
        theirs, _ = restricted(whole, problem.layers[1], x)
        assert relative(mine_of_block.gradient(t), theirs.gradient(t)) < 1e-14
        check_consistent(mine_of_block, t)
    directions = [random(space.n, k) for k in (2, 3)]
    a = torch.tensor([0.1, -0.1], dtype=torch.float64)
    span = Span(sharded, mine, [space.local(d) for d in directions])
    assert relative(span.gradient(a), Span(problem, x, directions).gradient(a)) < 1e-12
    assert_taylor(Span(sharded, mine, [space.local(0.2 * d) for d in directions]), a)


@pytest.mark.parallel(1, 2, 3, 4)
@engines
def test_the_same_bits_on_any_number_of_ranks(comm, engine: str) -> None:
    world: Communicator = everyone(comm)
    problem, x = pinn(comm=world, engine=engine)
    single = problem.on(world.alone())
    v = random(len(x), 3)
    restriction, t = restricted(problem, problem.layers[1], x)
    restriction_alone, _ = restricted(single, problem.layers[1], x)
    rows = torch.arange(0, 49, 2)
    pairs: list[tuple[Problem, Problem, Tensor, Tensor]] = [
        (problem, single, x, v),
        (restriction, restriction_alone, t, v[problem.layers[1]]),
        (problem.sample(rows), single.sample(rows), x, v),
        (restriction.on(world.alone()), restriction, t, v[problem.layers[1]]),
    ]
    for ours, theirs, at, direction in pairs:
        f, g = ours.value_and_gradient(at)
        f_alone, g_alone = theirs.value_and_gradient(at)
        assert f == f_alone
        assert torch.equal(g, g_alone)
        assert ours.objective(at) == theirs.objective(at)
        assert torch.equal(ours.hessian_action(at, direction), theirs.hessian_action(at, direction))
        linear, linear_alone = ours.linearize(at), theirs.linearize(at)
        assert torch.equal(linear.action(direction), linear_alone.action(direction))
        assert torch.equal(linear.matrix(), linear_alone.matrix())
    mine = torch.cat([g, torch.tensor([f])]).numpy()
    assert (world.allgather(mine) == mine).all()
    assert problem.cost == single.cost


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
def test_chunks_change_rounding_only(chunk: int) -> None:
    (problem, x), (other, _) = pinn(chunk=16), pinn(chunk=chunk)
    assert other.objective(x) == pytest.approx(problem.objective(x), rel=1e-13)
    assert relative(other.gradient(x), problem.gradient(x)) < 1e-13
    assert other.cost == problem.cost


def test_single_precision_stays_single() -> None:
    (problem, x), (double, y) = pinn(dtype=torch.float32), pinn()
    f, g = problem.value_and_gradient(x)
    assert x.dtype == g.dtype == problem.space.dtype == torch.float32
    assert problem.hessian_action(x, x).dtype == torch.float32
    linear = problem.linearize(x)
    assert linear.matrix().dtype == linear.action(x).dtype == torch.float32
    assert relative(linear.matrix().to(torch.float64), double.linearize(y).matrix()) < 1e-4
    assert f == pytest.approx(double.objective(y), rel=1e-4)
    assert relative(g.to(torch.float64), double.gradient(y)) < 1e-4


def test_layers_and_tensors_follow_the_network() -> None:
    problem, _ = pinn(depth=2, width=3, adaptive=True)  # inputs 2, outputs 2
    assert problem.layers == slices([6 + 3 + 1, 9 + 3 + 1, 6 + 2])
    assert problem.tensors == slices([6, 3, 1, 9, 3, 1, 6, 2])
    assert problem.space.n == 31


def test_shares_are_a_partition_of_the_samples_also_of_what_wraps_a_problem() -> None:
    problem, _ = pinn()
    problems = (problem, problem.shift(problem.space.zeros()), problem.restrict(Block(slice(0, 4), "a")))
    for each in problems:
        shares = each.shares(3)
        assert [len(s) for s in shares] == [17, 16, 16]
        assert torch.equal(torch.cat(shares).sort().values, torch.arange(49))
        assert all(torch.equal(s, t) for s, t in zip(shares, problem.shares(3), strict=True))


def test_slices() -> None:
    assert slices([2, 0, 3]) == (slice(0, 2), slice(2, 2), slice(2, 5))
    assert slices([]) == ()


def test_block_numbers() -> None:
    scattered, consecutive = Block(torch.tensor([2, 5, 9]), "a"), Block(slice(3, 7), "b")
    assert (scattered.n, scattered.bounds()) == (3, (2, 10))
    assert (consecutive.n, consecutive.bounds()) == (4, (3, 7))
