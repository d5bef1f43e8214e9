"""Decompositions: they cover everything, weights sum to one, overlap, errors, views, local problems."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
import torch

from ml2hpc.dm import Decomposition, Options, decompose
from ml2hpc.dm.subdomain import RestrictedLocal, SampledLocal
from ml2hpc.errors import OptionsError
from ml2hpc.problem.interface import Block
from ml2hpc.problem.pinn import PinnProblem
from tests.problem.small import assert_taylor, pinn, random, relative


def decomposed(problem: PinnProblem, kind: Any, n: int, overlap: int = 0) -> Decomposition:
    return decompose(problem, Options(kind, n, overlap), "npc_")


def covered(decomposition: Decomposition, n: int, what: str) -> torch.Tensor:
    """Sum over the subdomains, in order, of the weights extended to the whole vector."""
    total = torch.zeros(n, dtype=torch.float64)
    for s in decomposition.subdomains:
        total[s.block.indices] += torch.ones(s.block.n) if what == "multiplicity" else getattr(s, what)
    return total


@pytest.mark.parametrize("overlap", [0, 1, 2, 4])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["layers", "tensors", "blocks"])
def test_everything_is_covered(kind: str, n: int, overlap: int) -> None:
    problem, _ = pinn(depth=4)
    found = decomposed(problem, kind, n, overlap)
    size = problem.space.n
    assert len(found.subdomains) == n
    assert torch.equal(covered(found, size, "weights"), torch.ones(size, dtype=torch.float64))
    assert torch.equal(covered(found, size, "own"), torch.ones(size, dtype=torch.float64))
    assert covered(found, size, "multiplicity").max() <= min(n, 2 * overlap + 1)
    for s in found.subdomains:
        assert s.rows is None
        assert s.weights.shape == s.own.shape == (s.block.n,)
        assert (s.weights > 0).all()
        assert torch.equal(s.weights == 1.0, covered(found, size, "multiplicity")[s.block.indices] == 1)


@pytest.mark.parametrize(
    ("depth", "n", "overlap", "expected"),
    [
        (8, 8, 0, [(k, k + 1) for k in range(7)] + [(7, 9)]),  # the last holds the last hidden and the output layer
        (8, 9, 0, [(k, k + 1) for k in range(9)]),
        (8, 2, 0, [(0, 4), (4, 9)]),
        (8, 4, 0, [(0, 2), (2, 4), (4, 6), (6, 9)]),
        (8, 5, 0, [(0, 1), (1, 3), (3, 5), (5, 7), (7, 9)]),
        (8, 1, 3, [(0, 9)]),
        (8, 3, 1, [(0, 4), (2, 7), (5, 9)]),
        (4, 2, 9, [(0, 5), (0, 5)]),
    ],
)
def test_layers(depth: int, n: int, overlap: int, expected: list[tuple[int, int]]) -> None:
    problem, _ = pinn(depth=depth)
    found = decomposed(problem, "layers", n, overlap)
    layers = problem.layers
    assert [s.block.indices for s in found.subdomains] == [
        slice(layers[a].start, layers[b - 1].stop) for a, b in expected
    ]
    assert [s.name for s in found.subdomains] == [
        f"layers {a}" if b - a == 1 else f"layers {a}-{b - 1}" for a, b in expected
    ]


def test_blocks_are_equal_to_one() -> None:
    problem, _ = pinn()
    sizes = [s.block.n for s in decomposed(problem, "blocks", 7).subdomains]
    assert sum(sizes) == problem.space.n
    assert max(sizes) - min(sizes) <= 1
    assert decomposed(problem, "blocks", 2, 3).subdomains[0].block.n == problem.space.n // 2 + 3


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 10, 49])
def test_samples_are_dealt(n: int) -> None:
    problem, _ = pinn()
    found = decomposed(problem, "samples", n)
    rows = [s.rows for s in found.subdomains if s.rows is not None]
    assert torch.equal(torch.cat(rows).sort().values, torch.arange(problem.samples))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    assert all(s.block.n == problem.space.n for s in found.subdomains)
    for what in ("weights", "own"):
        assert torch.equal(covered(found, problem.space.n, what), torch.ones(problem.space.n, dtype=torch.float64))
    for s in found.subdomains:
        torch.testing.assert_close(s.weights, torch.full_like(s.weights, 1 / n), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kind", "n", "overlap", "message"),
    [
        ("layers", 5, 0, "-npc_dm_subdomains 5: there are only 4 layers to divide; choose at most 4"),
        ("tensors", 9, 0, "-npc_dm_subdomains 9: there are only 8 tensors to divide; choose at most 8"),
        ("blocks", 1000, 0, "-npc_dm_subdomains 1000: there are only 87 blocks to divide; choose at most 87"),
        ("samples", 50, 0, "-npc_dm_subdomains 50: there are only 49 samples to divide; choose at most 49"),
        ("samples", 2, 1, "-npc_dm_overlap 1: sample subdomains do not overlap; use 0"),
    ],
)
def test_errors_name_the_option(kind: str, n: int, overlap: int, message: str) -> None:
    problem, _ = pinn()
    with pytest.raises(OptionsError, match=message):
        decomposed(problem, kind, n, overlap)


def test_view() -> None:
    # Weights 10, 25, 25, 10: a gradient has 70 products forward, 60 in reverse, 70 of weight gradients.
    problem, _ = pinn()
    assert decomposed(problem, "layers", 3, 1).view() == [
        "decomposition by layers, 3 subdomains, overlap 1",
        "  0: layers 0-1, 45 unknowns, 82% of a gradient",
        "  1: layers 0-2, 75 unknowns, 95% of a gradient",
        "  2: layers 1-3, 72 unknowns, 78% of a gradient",
    ]
    assert decomposed(problem, "samples", 2).view()[1:] == [
        "  0: samples, share 0 of 2, 87 unknowns, 25 samples, 51% of a gradient",
        "  1: samples, share 1 of 2, 87 unknowns, 24 samples, 49% of a gradient",
    ]
    assert decomposed(problem, "blocks", 2).view()[1] == "  0: unknowns 0-42, 43 unknowns, 82% of a gradient"
    by_cost = decompose(problem, Options("layers", 2, 0, "cost"), "npc_")
    assert by_cost.view()[0] == "decomposition by layers, 2 subdomains, overlap 0, cut by cost"


# ---- cut by cost -----------------------------------------------------------------------------------------------------


def largest(problem: PinnProblem, bounds: tuple[int, ...], overlap: int, units: tuple[slice, ...]) -> float:
    """Return the largest cost of a local gradient among the subdomains between bounds."""
    seen = [(max(a - overlap, 0), min(b + overlap, len(units))) for a, b in pairwise(bounds)]
    blocks = [Block(slice(units[a].start, units[b - 1].stop), "") for a, b in seen]
    return max(problem.restrict(block).cost.gradient for block in blocks)


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["layers", "tensors"])
def test_cut_by_cost_is_the_best_of_all_cuts(kind: Any, n: int, overlap: int) -> None:
    problem, _ = pinn(depth=4, n=4)
    units = problem.layers if kind == "layers" else problem.tensors
    cuts = [(0, *inner, len(units)) for inner in combinations(range(1, len(units)), n - 1)]
    best = min(largest(problem, bounds, overlap, units) for bounds in cuts)
    found = decompose(problem, Options(kind, n, overlap, "cost"), "npc_")
    assert torch.equal(covered(found, problem.space.n, "own"), torch.ones(problem.space.n, dtype=torch.float64))
    assert max(found.shares) == pytest.approx(best / problem.cost.gradient, rel=1e-14)
    assert max(found.shares) <= max(decomposed(problem, kind, n, overlap).shares)


def test_cost_of_a_window_of_a_wide_network() -> None:
    """Of D hidden layers, the products between them: forward, reverse and weight gradients for layers a..e-1."""
    depth = 8
    problem, _ = pinn(depth=depth, width=300, n=1)
    found = decomposed(problem, "layers", depth + 1)
    shares = []
    for a, e in [*pairwise(range(depth + 1)), (0, 4), (3, 6), (4, 9)]:
        block = Block(slice(problem.layers[a].start, problem.layers[e - 1].stop), "")
        forward, below = depth - max(a, 1), depth - 1 - a
        w = (forward + below + min(e, depth) - max(a, 1)) / (3 * (depth - 1))
        shares.append(problem.block_cost(block).gradient / problem.cost.gradient)
        assert shares[-1] == pytest.approx(w, abs=0.01)
    assert found.shares[:depth] == pytest.approx(shares[:depth], rel=1e-14)
    count, cost = (decompose(problem, Options("layers", 4, 0, cut), "npc_").shares for cut in ("count", "cost"))
    assert max(cost) < 0.97 * max(count)


@pytest.mark.parametrize("kind", ["blocks", "samples"])
def test_only_layers_and_tensors_are_cut_by_cost(kind: Any) -> None:
    problem, _ = pinn()
    with pytest.raises(OptionsError, match=f"-npc_dm_cut cost: {kind} are cut by count; use"):
        decompose(problem, Options(kind, 2, 0, "cost"), "npc_")


# ---- local problems --------------------------------------------------------------------------------------------------


def test_restricted_local_starts_with_a_slice_of_the_gradient() -> None:
    problem, x = pinn()
    f, g = problem.value_and_gradient(x)
    subdomain = decomposed(problem, "layers", 3).subdomains[1]
    local = subdomain.on(problem)
    assert isinstance(local, RestrictedLocal)
    for at in (x, x + 0.1):
        f, g = problem.value_and_gradient(at)
        start, value, gradient = local.begin(at, f, g)
        assert value == f
        assert torch.equal(start, at[subdomain.block.indices])
        assert gradient is not None
        assert local.problem.objective(start) == pytest.approx(f, rel=1e-14)
        assert relative(local.problem.gradient(start), gradient) < 1e-13
        assert local.begin(at, f, None)[2] is None
    assert gradient is not None
    start += 1  # the caller's own
    gradient += 1
    assert torch.equal(local.begin(x + 0.1, f, g)[0], (x + 0.1)[subdomain.block.indices])
    assert torch.equal(g, problem.gradient(x + 0.1))
    prefix = 1 - local.problem.cost.objective / problem.cost.objective
    assert local.begin_work(problem, problem.cost)["objectives", "work"] == pytest.approx(prefix)
    assert prefix > 0
    assert local.begin_work(problem, problem.cost)["gradients", "total"] == 0


def test_sampled_local_is_consistent_to_first_order() -> None:
    problem, x = pinn()
    f, g = problem.value_and_gradient(x)
    subdomains = decomposed(problem, "samples", 3).subdomains
    locals_ = [s.on(problem) for s in subdomains]
    sampled = problem.sample(problem.shares(3)[1])
    assert isinstance(locals_[1], SampledLocal)
    work = locals_[1].begin_work(problem, problem.cost)
    assert work["gradients", "work"] == pytest.approx(sampled.cost.gradient / problem.cost.gradient)
    assert (work["gradients", "path"], work["gradients", "total"]) == (1, 1)
    start, value, gradient = locals_[1].begin(x, f, g)
    assert torch.equal(start, x)
    assert gradient is not None
    assert torch.equal(gradient, g)
    model = locals_[1].problem
    assert model.objective(x) == pytest.approx(value, rel=1e-14)
    assert relative(model.gradient(x), g) < 1e-13
    assert_taylor(model, x)
    v = 0.1 * random(problem.space.n, 3)
    assert relative(model.hessian_action(x, v), sampled.hessian_action(x, v)) < 1e-13
    # The weighted mean of the models' rises is that of the problem plus a multiple of its slope at the start.
    for local in locals_:
        local.begin(x, f, g)
    shares = [len(s.rows) / problem.samples for s in subdomains if s.rows is not None]
    rises = [local.problem.objective(x + v) - local.problem.objective(x) for local in locals_]
    mean = sum(w * r for w, r in zip(shares, rises, strict=True))
    assert mean == pytest.approx(problem.objective(x + v) - f, rel=1e-12)


def test_an_index_tensor_is_a_block_too() -> None:
    problem, x = pinn()
    f, g = problem.value_and_gradient(x)
    indices = torch.tensor([0, 20, 21, 80])
    local = RestrictedLocal(problem, Block(indices, "scattered"))
    start, _, gradient = local.begin(x, f, g)
    assert torch.equal(start, x[indices])
    assert gradient is not None
    assert torch.equal(gradient, g[indices])
    assert_taylor(local.problem, start)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options("coarse", 4), (0, 2, 4, 6)),
        (Options("coarse", 4, overlap=1), (0, 2, 4, 6)),  # the first layer that is its own
        (Options("coarse", 8), tuple(range(8))),
        (Options("coarse", 2, coarse=(5, 2, 5)), (2, 5)),
        (Options("coarse", 2, coarse=(8,)), (8,)),
    ],
)
def test_the_coarse_space_is_the_first_layer_of_each_subdomain_or_what_is_named(options, expected) -> None:
    problem, _ = pinn(depth=8)
    found = decompose(problem, options, "npc_")
    (subdomain,) = found.subdomains
    assert torch.equal(
        torch.as_tensor(subdomain.block.indices),
        torch.cat([torch.arange(problem.space.n)[problem.layers[k]] for k in expected]),
    )
    assert subdomain.name == f"layers {','.join(map(str, expected))}"
    assert options.count == 1
    assert torch.equal(subdomain.weights, torch.ones(subdomain.block.n, dtype=torch.float64))
    assert found.view()[0] == "coarse space of whole layers"


def test_the_coarse_space_cut_by_cost_begins_where_the_subdomains_do() -> None:
    problem, _ = pinn(depth=8)
    fine = decompose(problem, Options("layers", 4, 0, "cost"), "npc_")
    coarse = decompose(problem, Options("coarse", 4, 0, "cost"), "npc_")
    firsts = [s.block.bounds()[0] for s in fine.subdomains]
    assert set(firsts) <= set(torch.as_tensor(coarse.subdomains[0].block.indices).tolist())


def test_a_coarse_problem_is_the_loss_with_the_other_layers_frozen() -> None:
    """Values and gradients are those of the whole; layers below the lowest are frozen and not paid for."""
    problem, x = pinn(depth=6)
    found = decompose(problem, Options("coarse", coarse=(3, 5)), "")
    local = found.subdomains[0].on(problem)
    start, f, g = local.begin(x, *problem.value_and_gradient(x))
    value, gradient = local.problem.value_and_gradient(start)
    assert value == pytest.approx(f, rel=1e-14)
    assert g is not None
    assert relative(gradient, g) < 1e-13
    assert_taylor(local.problem, start)
    whole, lowest = problem.cost, problem.block_cost(Block(slice(problem.layers[3].start, problem.space.n), ""))
    assert local.problem.cost.gradient <= lowest.gradient < 0.6 * whole.gradient
    assert found.shares == (local.problem.cost.gradient / whole.gradient,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options("coarse", 10), "-npc_dm_subdomains 10: there are only 9 layers to divide; choose at most 9"),
        (Options("coarse", coarse=(2, 9)), "-npc_dm_coarse 9: the layers are 0 to 8"),
        (Options("layers", coarse=(2,)), "-npc_dm_coarse: needs -npc_dm_decomposition coarse"),
    ],
)
def test_a_coarse_space_that_cannot_be_is_refused(options: Options, message: str) -> None:
    problem, _ = pinn(depth=8)
    with pytest.raises(OptionsError) as caught:
        decompose(problem, options, "npc_")
    assert str(caught.value) == message
