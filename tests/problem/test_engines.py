"""Engines: jets against nested autograd, windows against slices of the whole, what an engine refuses."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch
from torch import Tensor

from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.autograd import AutogradEngine
from ml2hpc.problem.engine import Engine, Window
from ml2hpc.problem.jet import Carried, Operator, closure
from ml2hpc.problem.jets import JetsEngine
from ml2hpc.problem.network import SLOPE, DenseNetwork, NetworkOptions
from ml2hpc.vec import Layout
from tests.problem.small import perturbed, random, relative

ALL = {d: tuple(combinations_with_replacement(range(d), 2)) for d in (1, 2, 3, 4)}
WAVE = Operator((((0, 0), 1.0), ((1, 1), -0.7)))
CROSSED = Operator((((0, 0), 0.3), ((0, 1), 1.0), ((2, 2), -2.0)))
HIGH: dict[int, tuple[Carried, ...]] = {
    1: ((0, 0, 0, 0),),
    2: ((0, 0, 0), (0, 0, 1, 1), WAVE),
    3: ((0, 1, 2), (1, 1, 1, 2), CROSSED),
    4: ((0, 1, 2, 3), (3, 3, 3)),
}
N = 11  # points
WINDOWS = [(a, b) for a in range(5) for b in range(a + 1, 6)]  # 4 hidden layers and the output layer


def features(x: Tensor) -> Tensor:
    """Curved, so that second derivatives enter from below, with one more row than coordinates."""
    return torch.cat([torch.sin(x), (x * x).sum(0, keepdim=True)])


def network_of(dim: int, outputs: int = 2, dtype: torch.dtype = torch.float64, **options: Any) -> DenseNetwork:
    return DenseNetwork(dim + 1, outputs, NetworkOptions(**{"depth": 4, "width": 5} | options), 0, dtype)


def points(dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return random(dim * N, 7, dtype).view(dim, N)


def evaluate(engine: Engine[Any], parameters: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return jets and the gradient of their product with fixed cotangents."""
    batch = engine.batch(x)
    engine.freeze(parameters, batch)
    jets = engine.forward(parameters, batch, reverse=True).clone()
    cotangent = random(jets.numel(), 9, x.dtype).view(jets.shape)
    out = torch.full((engine.window.stop - engine.window.start,), float("nan"), dtype=x.dtype)
    engine.reverse(parameters, batch, cotangent, out)
    return jets, out


def assert_agree(network: DenseNetwork, indices: tuple[Carried, ...], dim: int, tolerance: float) -> None:
    layout = Layout(network)
    parameters = perturbed(layout, network)
    x = points(dim, parameters.dtype)
    mine = JetsEngine(network, layout, features, indices)
    oracle = AutogradEngine(network, layout, features, indices)
    jets, gradient = evaluate(mine, parameters, x)
    jets_of_oracle, gradient_of_oracle = evaluate(oracle, parameters, x)
    assert jets.dtype == gradient.dtype == parameters.dtype
    assert jets.shape == (2, len(closure(indices)), N)
    assert gradient_of_oracle.abs().min() > 0
    assert relative(gradient, gradient_of_oracle) < tolerance
    for j in range(jets.shape[1]):
        assert relative(jets[:, j], jets_of_oracle[:, j]) < tolerance
        assert jets[:, j].abs().max() > 1e-2
    assert torch.equal(mine.forward(parameters, mine.batch(x), reverse=False), jets)
    assert relative(mine.differentiable(parameters.requires_grad_(), mine.batch(x)), jets) < tolerance


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "resnet"])
@pytest.mark.parametrize("activation", ["tanh", "sin", "silu", "gelu"])
def test_engines_agree(activation: str, kind: str, adaptive: bool) -> None:
    assert_agree(network_of(2, activation=activation, type=kind, adaptive=adaptive), ALL[2], 2, 1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_engines_agree_in_one_to_four_coordinates(dim: int) -> None:
    assert_agree(network_of(dim, type="resnet", adaptive=True), ALL[dim], dim, 1e-12)


@pytest.mark.parametrize(
    "indices",
    [((),), ((0,),), ((0,), (2,)), ((1, 1),), ((0, 2),), ((0, 0), (0, 1)), ((1,), (0, 2), (1, 2), (2, 2))],
)
def test_engines_agree_for_some_derivatives(indices: tuple[Carried, ...]) -> None:
    assert_agree(network_of(3), indices, 3, 1e-12)


@pytest.mark.parametrize("indices", [(WAVE,), ((0, 1), WAVE), ((2, 2), CROSSED), (CROSSED, WAVE)])
@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_engines_agree_on_operators(kind: str, indices: tuple[Carried, ...]) -> None:
    assert_agree(network_of(3, type=kind), indices, 3, 1e-12)


def test_an_operator_is_the_combination_of_its_second_derivatives() -> None:
    network = network_of(3)
    layout = Layout(network)
    engine = JetsEngine(network, layout, features, (*ALL[3], CROSSED))
    jets, _ = evaluate(engine, perturbed(layout, network), points(3))
    by_index = dict(zip(engine.indices, jets.unbind(1), strict=True))
    assert relative(by_index[CROSSED], CROSSED.of(by_index.__getitem__)) < 1e-13


@pytest.mark.parametrize("depth", [1, 2])
def test_engines_agree_on_shallow_networks(depth: int) -> None:
    assert_agree(network_of(2, depth=depth), ALL[2], 2, 1e-12)


@pytest.mark.parametrize("activation", ["tanh", "sin", "silu", "gelu"])
def test_engines_agree_in_single_precision(activation: str) -> None:
    assert_agree(network_of(2, dtype=torch.float32, activation=activation, adaptive=True), ALL[2], 2, 1e-4)


def test_gradient_of_a_slope_that_vanishes() -> None:
    network = network_of(2, adaptive=True)
    layout = Layout(network)
    parameters = perturbed(layout, network)
    place = next(e.start for e in layout.entries if e.name == "layers.1.slope")
    parameters[place] = 0.0
    mine, oracle = (
        evaluate(kind(network, layout, features, ALL[2]), parameters, points(2))[1]
        for kind in (JetsEngine, AutogradEngine)
    )
    assert abs(float(oracle[place])) > 1e-3
    assert relative(mine, oracle) < 1e-12


def test_adaptive_slope_starts_as_the_plain_network() -> None:
    plain, adaptive = network_of(2), network_of(2, adaptive=True)
    inputs = features(points(2))
    assert torch.equal(plain(inputs), adaptive(inputs))
    assert float(adaptive.get_parameter("layers.0.slope").detach()) * SLOPE == 1.0


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
@pytest.mark.parametrize("engine", [JetsEngine, AutogradEngine])
@pytest.mark.parametrize(("first", "last"), WINDOWS)
def test_window_gives_the_slice_of_the_gradient(engine: Any, kind: str, first: int, last: int) -> None:
    network = network_of(2, type=kind, adaptive=True)
    layout = Layout(network)
    parameters = perturbed(layout, network)
    whole_jets, whole = evaluate(engine(network, layout, features, ALL[2]), parameters, points(2))
    window = Window.of(layout, first, last)
    jets, gradient = evaluate(engine(network, layout, features, ALL[2], window), parameters, points(2))
    if engine is JetsEngine:
        assert torch.equal(jets, whole_jets)
        assert torch.equal(gradient, whole[window.start : window.stop])
    assert relative(jets, whole_jets) < 1e-13
    assert relative(gradient, whole[window.start : window.stop]) < 1e-13


@pytest.mark.parametrize("engine", [JetsEngine, AutogradEngine])
@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_windows_up_to_order_four(engine: Any, dim: int) -> None:
    network = network_of(dim, depth=2, width=3, adaptive=True)
    layout = Layout(network)
    parameters, x, window = perturbed(layout, network), points(dim), Window.of(layout, 1, 2)
    whole_jets, whole = evaluate(JetsEngine(network, layout, features, HIGH[dim]), parameters, x)
    jets, gradient = evaluate(engine(network, layout, features, HIGH[dim], window), parameters, x)
    assert relative(jets, whole_jets) < 1e-12
    assert relative(gradient, whole[window.start : window.stop]) < 1e-12


@pytest.mark.parametrize("kind", [JetsEngine, AutogradEngine])
def test_frozen_prefix_is_kept_and_renewed(kind: Any) -> None:
    network = network_of(2)
    layout = Layout(network)
    x, before = points(2), perturbed(layout, network)
    after = before.clone()
    after[layout.layers[1]] += 0.1
    engine = kind(network, layout, features, ALL[2], Window.of(layout, 2, 3))
    whole = kind(network, layout, features, ALL[2])
    batch, batch_of_whole = engine.batch(x), whole.batch(x)
    engine.freeze(before, batch)
    old, new = (whole.forward(p, batch_of_whole, reverse=False).clone() for p in (before, after))
    assert relative(old, new) > 1e-3
    assert relative(engine.forward(after, batch, reverse=False), old) < 1e-14
    engine.freeze(after, batch)
    assert relative(engine.forward(after, batch, reverse=False), new) < 1e-14


def test_batches_of_other_lengths_do_not_disturb() -> None:
    network = network_of(2)
    layout = Layout(network)
    engine, parameters = JetsEngine(network, layout, features, ALL[2]), perturbed(layout, network)
    first = evaluate(engine, parameters, points(2))
    evaluate(engine, 2 * parameters, points(2)[:, :4])
    again = evaluate(engine, parameters, points(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_engines_agree_up_to_order_four(dim: int, kind: str) -> None:
    assert_agree(network_of(dim, type=kind, depth=2, width=3, adaptive=kind == "resnet"), HIGH[dim], dim, 1e-12)


@pytest.mark.parametrize("activation", ["sin", "silu", "gelu"])
def test_activations_agree_up_to_order_four(activation: str) -> None:
    assert_agree(network_of(2, depth=2, activation=activation), HIGH[2], 2, 1e-12)


def test_highest_derivatives_against_differences() -> None:
    network = network_of(1)
    layout = Layout(network)
    parameters, x, h = perturbed(layout, network), points(1), 1e-3
    for kind in (JetsEngine, AutogradEngine):
        engine: Engine[Any] = kind(network, layout, features, ((0, 0, 0, 0),))
        assert engine.indices == ((), (0,), (0, 0), (0, 0, 0), (0, 0, 0, 0))
        jets = [engine.forward(parameters, engine.batch(x + s * h), reverse=False).clone() for s in (1, 0, -1)]
        assert relative((jets[0] - jets[2])[:, 2:4] / (2 * h), jets[1][:, 3:]) < 1e-4


def test_order_five_is_for_autograd() -> None:
    network = network_of(1)
    with pytest.raises(UnsupportedError, match=r"order 4; use -pinn_engine autograd"):
        JetsEngine(network, Layout(network), features, ((0,) * 5,))


# ---- along a direction, and point by point ---------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [((),), ((0,),), (*ALL[2], WAVE), (WAVE,), ((0, 0, 1),)])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("first", "last"), [(0, 3), (0, 1), (1, 2), (1, 3), (2, 3)])
def test_tangent_and_rows(indices: tuple[Carried, ...], adaptive: bool, first: int, last: int) -> None:
    """Both against their definitions by autograd; <c, J v> = <J' c, v>; the rows add up to the gradient."""
    network = network_of(2, depth=2, type="resnet", adaptive=adaptive)
    layout = Layout(network)
    parameters, x = perturbed(layout, network), points(2)
    window = Window.of(layout, first, last)
    mine = JetsEngine(network, layout, features, indices, window)
    batch = mine.batch(x)
    mine.freeze(parameters, batch)
    direction = random(window.stop - window.start, 3)
    tangent = mine.tangent(parameters, direction, batch).clone()
    assert tangent.abs().max() > 1e-2
    assert relative(tangent, Engine.tangent(mine, parameters, direction, batch)) < 1e-13

    jets, gradient = evaluate(mine, parameters, x)
    cotangent = random(jets.numel(), 9).view(jets.shape)
    assert float((cotangent * tangent).sum()) == pytest.approx(float(gradient @ direction), rel=1e-12)  # <c, J v>
    rows, expected = torch.full((2, window.stop - window.start, N), float("nan"), dtype=torch.float64)
    mine.forward(parameters, batch, reverse=True)
    mine.rows(parameters, batch, cotangent, rows)
    Engine.rows(mine, parameters, batch, cotangent, expected)
    assert relative(rows, expected) < 1e-13
    assert relative(rows.sum(1), gradient) < 1e-13


def test_rows_in_several_blocks() -> None:
    network = network_of(2, depth=2, width=24)
    layout = Layout(network)
    engine, parameters = JetsEngine(network, layout, features, ALL[2]), perturbed(layout, network)
    batch = engine.batch(random(2 * 1001, 7).view(2, 1001))
    cotangent = random(2 * 6 * 1001, 9).view(2, 6, 1001)
    rows, gradient = torch.full((layout.n, 1001), float("nan"), dtype=torch.float64), torch.empty(layout.n).double()
    engine.forward(parameters, batch, reverse=True)
    engine.rows(parameters, batch, cotangent, rows)
    engine.forward(parameters, batch, reverse=True)
    engine.reverse(parameters, batch, cotangent, gradient)
    assert relative(rows.sum(1), gradient) < 1e-12


@pytest.mark.parametrize("indices", [(WAVE,), ((0, 0, 1, 1),)])
def test_reverse_tangent_is_the_derivative_of_the_reverse_pass(indices: tuple[Carried, ...]) -> None:
    network = network_of(2, depth=2, adaptive=True)
    layout = Layout(network)
    engine, parameters = JetsEngine(network, layout, features, indices), perturbed(layout, network)
    batch, v, h = engine.batch(points(2)), random(layout.n, 3), 1e-6
    cotangent, change = random(2 * len(engine.indices) * N * 2, 9).view(2, 2, -1, N)
    out = torch.empty(3, layout.n, dtype=torch.float64)
    engine.tangent(parameters, v, batch)
    engine.reverse_tangent(parameters, v, batch, cotangent, change, out[0])
    for sign, gradient in ((1, out[1]), (-1, out[2])):
        engine.forward(parameters + sign * h * v, batch, reverse=True)
        engine.reverse(parameters + sign * h * v, batch, cotangent + sign * h * change, gradient)
    assert relative((out[1] - out[2]) / (2 * h), out[0]) < 1e-7


def test_other_networks_are_for_autograd() -> None:
    network = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedError, match="dense networks only"):
        JetsEngine(network, Layout(network), features, ((),))


def test_cost_of_a_window_leaves_out_what_is_frozen() -> None:
    network = network_of(2)
    layout = Layout(network)
    whole, top = (AutogradEngine(network, layout, features, ALL[2], w).cost() for w in (None, Window.of(layout, 3, 4)))
    share = (layout.n - layout.layers[3].start) / layout.n
    assert top.objective == pytest.approx(share * whole.objective, rel=1e-12)
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))  # its prefix is computed again
    costs = [
        AutogradEngine(other, Layout(other), features, ALL[2], w).cost() for w in (None, Window.of(Layout(other), 1, 2))
    ]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("depth", [1, 4])
def test_cost_counts_products(depth: int) -> None:
    network = network_of(2, depth=depth)
    layout = Layout(network)
    whole = JetsEngine(network, layout, features, ALL[2]).cost()
    weights = sum(layer.weight.numel() for layer in network.stack)
    assert whole.objective == 2 * 6 * weights  # 6 jets
    assert whole.gradient == 3 * whole.objective - 2 * 6 * network.stack[0].weight.numel()
    top = JetsEngine(network, layout, features, ALL[2], Window.of(layout, depth, depth + 1)).cost()
    assert top.objective == 2 * 6 * network.stack[-1].weight.numel()
    assert top.gradient == 2 * top.objective
