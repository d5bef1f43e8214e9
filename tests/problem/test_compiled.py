"""The compiled engine against nested autograd, for every instruction set that this processor has."""

from __future__ import annotations

import weakref
from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.autograd import AutogradEngine
from ml2hpc.problem.compiled import CompiledEngine, _Plain
from ml2hpc.problem.engine import Engine, Window
from ml2hpc.problem.jet import Index, Operator
from ml2hpc.problem.jets import JetsEngine
from ml2hpc.problem.network import DenseNetwork, NetworkOptions
from ml2hpc.problem.plan import terms_of
from ml2hpc.vec import Layout
from tests.problem.small import perturbed, random, relative
from tests.problem.test_engines import ALL, WINDOWS, evaluate, features, network_of, points

LIBRARY = kernels.load()
BEST = LIBRARY.instruction_set if LIBRARY else "none"
SETS = {"avx512": ("avx512", "avx2", "generic"), "avx2": ("avx2", "generic"), "neon": ("neon", "generic")}.get(
    BEST, ("generic",)
)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="built without a C compiler")
NETWORKS: list[dict[str, Any]] = [
    {"activation": activation, "type": kind, "adaptive": adaptive}
    for activation in ("tanh", "sin", "silu", "gelu")
    for kind, adaptive in (("mlp", False), ("resnet", True))
]
HIGH = [((0,) * 4,), ((0, 0, 1, 1), (1, 1, 1)), ((0, 0, 1), (0, 1, 1))]


@pytest.fixture(params=SETS)
def instruction_set(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    load = kernels.load
    monkeypatch.setattr(kernels, "load", lambda: load(request.param))
    return request.param


def both(
    network: DenseNetwork, indices: tuple[Any, ...], first: int = 0, last: int | None = None
) -> tuple[Engine[Any], Engine[Any], Tensor]:
    layout = Layout(network)
    window = Window.of(layout, first, last or len(layout.layers))
    mine, oracle = (kind(network, layout, features, indices, window) for kind in (CompiledEngine, AutogradEngine))
    return mine, oracle, perturbed(layout, network)


def assert_same(network: DenseNetwork, indices: tuple[Any, ...], dim: int, tolerance: float) -> None:
    mine, oracle, parameters = both(network, indices)
    jets, gradient = evaluate(mine, parameters, points(dim, parameters.dtype))
    jets_of_oracle, gradient_of_oracle = evaluate(oracle, parameters, points(dim, parameters.dtype))
    assert relative(gradient, gradient_of_oracle) < tolerance
    for j in range(jets.shape[1]):
        assert relative(jets[:, j], jets_of_oracle[:, j]) < tolerance


@pytest.mark.parametrize("options", NETWORKS, ids=lambda o: "-".join(map(str, o.values())))
def test_second_order(instruction_set: str, options: dict[str, Any]) -> None:
    assert_same(network_of(2, **options), ALL[2], 2, 1e-12)
    assert_same(network_of(2, dtype=torch.float32, **options), ALL[2], 2, 1e-4)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 7, 11, 20, 33])
def test_any_width(instruction_set: str, width: int) -> None:
    assert_same(network_of(2, width=width, depth=2), ((0, 0), (1,)), 2, 1e-12)


@pytest.mark.parametrize("outputs", [1, 3, 5])
def test_any_number_of_outputs(instruction_set: str, outputs: int) -> None:
    assert_same(network_of(2, outputs=outputs), ((0, 0), (1,)), 2, 1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_one_to_four_coordinates(dim: int) -> None:
    assert_same(network_of(dim, type="resnet", adaptive=True), ALL[dim], dim, 1e-12)


@pytest.mark.parametrize("indices", [((),), ((0,),), ((0, 1),), ((0, 0), (0, 1))])
def test_only_what_is_read(instruction_set: str, indices: tuple[Index, ...]) -> None:
    assert_same(network_of(2), indices, 2, 1e-12)


@pytest.mark.parametrize("options", NETWORKS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("indices", HIGH, ids=str)
def test_orders_three_and_four(indices: tuple[Index, ...], options: dict[str, Any]) -> None:
    dim = 1 if indices == HIGH[0] else 2
    assert_same(network_of(dim, outputs=1, **{"depth": 2, "width": 3, **options}), indices, dim, 1e-12)


def test_order_four_in_four_coordinates() -> None:
    assert_same(network_of(4, outputs=1, depth=1, width=2), ((0, 1, 2, 3),), 4, 1e-12)


def test_operator(instruction_set: str) -> None:
    operator = Operator((((0, 0), 1.5), ((0, 1), -0.5), ((1, 1), 2.0)))
    network = network_of(2, type="resnet")
    mine, oracle, parameters = both(network, ALL[2])
    collapsed, _, _ = both(network, (operator,))
    jets, _ = evaluate(oracle, parameters, points(2))
    found, gradient = evaluate(collapsed, parameters, points(2))
    xx, xt, tt = (jets[:, oracle.indices.index(i)] for i in ALL[2])
    assert relative(found[:, -1], 1.5 * xx - 0.5 * xt + 2.0 * tt) < 1e-13
    batch, batch_of_collapsed = mine.batch(points(2)), collapsed.batch(points(2))
    cotangent = torch.zeros_like(jets)
    for factor, index in ((1.5, (0, 0)), (-0.5, (0, 1)), (2.0, (1, 1))):
        cotangent[:, mine.indices.index(index)] = factor * found[:, 0]
    want = torch.empty_like(gradient)
    mine.forward(parameters, batch, reverse=True)
    mine.reverse(parameters, batch, cotangent, want)
    last = torch.zeros_like(found)
    last[:, -1] = found[:, 0]
    got = torch.empty_like(gradient)
    collapsed.forward(parameters, batch_of_collapsed, reverse=True)
    collapsed.reverse(parameters, batch_of_collapsed, last, got)
    assert relative(got, want) < 1e-13


@pytest.mark.parametrize("options", NETWORKS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize(("first", "last"), WINDOWS)
def test_windows(first: int, last: int, options: dict[str, Any]) -> None:
    network, x = network_of(2, **options), points(2)
    mine, oracle, parameters = both(network, ALL[2], first, last)
    whole, _, _ = both(network, ALL[2])
    jets, gradient = evaluate(mine, parameters, x)
    jets_of_whole, gradient_of_whole = evaluate(whole, parameters, x)
    window = mine.window
    assert torch.equal(jets, jets_of_whole)
    assert torch.equal(gradient, gradient_of_whole[window.start : window.stop])
    assert relative(gradient, evaluate(oracle, parameters, x)[1]) < 1e-12


def tangent_and_rows(engine: Engine[Any], parameters: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    n = engine.window.stop - engine.window.start
    batch = engine.batch(points(2) if x is None else x)
    engine.freeze(parameters, batch)
    tangent = engine.tangent(parameters, random(n, 3), batch).clone()
    cotangent, change = (random(tangent.numel(), seed).view(tangent.shape) for seed in (4, 5))
    action = torch.full((n,), float("nan"), dtype=torch.float64)
    engine.reverse_tangent(parameters, random(n, 3), batch, cotangent, change, action)
    engine.forward(parameters, batch, reverse=True)
    rows = torch.full((n, batch.x.shape[1]), float("nan"), dtype=torch.float64)
    engine.rows(parameters, batch, cotangent, rows)
    return tangent, action, rows


@pytest.mark.parametrize("options", NETWORKS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize(("first", "last"), [(0, 5), (1, 4), (4, 5)])
def test_tangent_and_rows(instruction_set: str, first: int, last: int, options: dict[str, Any]) -> None:
    network = network_of(2, **options)
    mine, oracle, parameters = both(network, ALL[2], first, last)
    for got, want in zip(tangent_and_rows(mine, parameters), tangent_and_rows(oracle, parameters), strict=True):
        assert relative(got, want) < 1e-12


@pytest.mark.parametrize("activation", ["tanh", "sin", "silu", "gelu"])
def test_tangent_and_rows_in_order_four(activation: str) -> None:
    network = network_of(2, activation=activation, type="resnet", adaptive=True, depth=2, width=3)
    mine, _, parameters = both(network, HIGH[1], 1, 3)
    oracle = JetsEngine(network, mine.layout, features, HIGH[1], mine.window)
    for got, want in zip(tangent_and_rows(mine, parameters), tangent_and_rows(oracle, parameters), strict=True):
        assert relative(got, want) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", ["tanh", "sin", "silu", "gelu"])
def test_activations_to_the_last_digits(instruction_set: str, activation: str, dtype: torch.dtype) -> None:
    """One neuron, far out and near zero, against torch in float64."""
    network = DenseNetwork(1, 1, NetworkOptions(depth=1, width=1, activation=activation), 0, dtype)  # type: ignore[arg-type]
    layout = Layout(network)
    parameters = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=dtype)
    sizes = 10.0 ** torch.linspace(-12, 12, 900, dtype=torch.float64)
    x = torch.cat([sizes, -sizes, torch.linspace(-45, 45, 900)]).to(dtype)[None]
    engine = CompiledEngine(network, layout, lambda y: y, ((),))
    got = engine.forward(parameters, engine.batch(x), reverse=False)[0, 0].double()
    want = network.activation.value(x[0].double())
    digits = torch.finfo(dtype).eps
    size = want.abs() if activation in ("tanh", "sin") else x[0].double().abs()
    assert float(((got - want).abs() / (digits * size + torch.finfo(dtype).tiny)).max()) < 4.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", ["tanh", "silu", "gelu"])
def test_flat_far_out(instruction_set: str, activation: str, dtype: torch.dtype) -> None:
    """No power of a large argument meets what an exponential leaves."""
    network = DenseNetwork(1, 1, NetworkOptions(depth=1, width=1, activation=activation), 0, dtype)  # type: ignore[arg-type]
    parameters = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=dtype)
    engine = CompiledEngine(network, Layout(network), lambda y: y, ((0,) * 4,))
    x = torch.tensor([[-1e9, -1e4, 1e4, 1e9]], dtype=dtype)
    jets = engine.forward(parameters, engine.batch(x), reverse=False)[0]
    assert engine.indices[2:] == ((0,) * 2, (0,) * 3, (0,) * 4)
    assert float(jets[2:].abs().max()) < 1e-20


def test_not_a_number_is_seen(instruction_set: str) -> None:
    mine, _, parameters = both(network_of(2), ALL[2])
    for bad in (float("nan"), float("inf")):
        spoilt = parameters.clone()
        spoilt[3] = bad
        assert not mine.forward(spoilt, mine.batch(points(2)), reverse=False).isfinite().all()
        assert mine.forward(parameters, mine.batch(points(2)), reverse=False).isfinite().all()


def test_threads_change_no_bit() -> None:
    network = network_of(2, width=24)
    x = random(2 * 1000, 3).view(2, 1000)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        mine, _, parameters = both(network, ALL[2])
        found += [evaluate(mine, parameters, x) for _ in range(3)]
    torch.set_num_threads(before)
    for jets, gradient in found[1:]:
        assert torch.equal(jets, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("n", [1, 7, 8, 33, 1000])
def test_points_do_not_see_each_other(n: int) -> None:
    mine, _, parameters = both(network_of(2), ALL[2])
    x = random(2 * n, 3).view(2, n)
    whole, _ = evaluate(mine, parameters, x)
    last = mine.forward(parameters, mine.batch(x[:, -1:].contiguous()), reverse=False)
    assert torch.equal(whole[:, :, -1:], last)


def test_a_kernel_reads_what_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folded parameters turn to NaN with their last reference."""
    network = network_of(2, type="resnet", adaptive=True)
    mine, oracle, parameters = both(network, ALL[2])
    take = _Plain.take

    def mortal(plain: _Plain, parameters: Tensor) -> Tensor:
        found = take(plain, parameters)
        weakref.finalize(found, found.detach().fill_, float("nan"))
        return found

    monkeypatch.setattr(_Plain, "take", mortal)
    for got, want in zip(tangent_and_rows(mine, parameters), tangent_and_rows(oracle, parameters), strict=True):
        assert relative(got, want) < 1e-12


@pytest.mark.parametrize("options", NETWORKS[:2], ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize(("first", "last"), [(0, 5), (1, 3)])
def test_many_strips(instruction_set: str, first: int, last: int, options: dict[str, Any]) -> None:
    """A group of strips holds several, and the last strip is short."""
    network = network_of(2, **{"width": 30, **options})
    mine, _, parameters = both(network, ALL[2], first, last)
    oracle = JetsEngine(network, mine.layout, features, ALL[2], mine.window)
    x = random(2 * 997, 3).view(2, 997)
    assert isinstance(mine, CompiledEngine)
    assert mine._plan.strip * 8 < 997
    for got, want in zip(evaluate(mine, parameters, x), evaluate(oracle, parameters, x), strict=True):
        assert relative(got, want) < 1e-12
    for got, want in zip(tangent_and_rows(mine, parameters, x), tangent_and_rows(oracle, parameters, x), strict=True):
        assert relative(got, want) < 1e-12


def test_cotangents_may_be_views() -> None:
    mine, _, parameters = both(network_of(2), ALL[2])
    batch = mine.batch(points(2))
    jets = mine.forward(parameters, batch, reverse=True).clone()
    view = torch.stack([jets, jets], -1)[..., 0]
    found = []
    for cotangent in (jets, view):
        mine.tangent(parameters, parameters, batch)
        gradient, action = torch.empty_like(parameters), torch.empty_like(parameters)
        rows = torch.empty(len(parameters), batch.x.shape[1], dtype=torch.float64)
        mine.reverse_tangent(parameters, parameters, batch, cotangent, cotangent, action)
        mine.forward(parameters, batch, reverse=True)
        mine.reverse(parameters, batch, cotangent, gradient)
        mine.rows(parameters, batch, cotangent, rows)
        found.append(torch.cat([gradient, action, rows.flatten()]))
    assert not view.is_contiguous()
    assert torch.equal(*found)


def test_terms() -> None:
    assert terms_of(((), (0,), (1,), (0, 1))) == [(3, (1, 2), 1.0)]
    assert sum(factor for _, _, factor in terms_of(tuple((0,) * k for k in range(5)))) == 1 + 4 + 14


def test_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(1)
    with pytest.raises(UnsupportedError, match=r"order 4; use -pinn_engine autograd"):
        CompiledEngine(network, Layout(network), features, ((0,) * 5,))
    with pytest.raises(UnsupportedError, match=r"at most, and the equation needs 91; use -pinn_engine jets"):
        CompiledEngine(network, Layout(network), features, tuple(combinations_with_replacement(range(12), 2)))
    other = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedError, match="dense networks only"):
        CompiledEngine(other, Layout(other), features, ((),))
    monkeypatch.setattr(kernels, "load", lambda: None)
    with pytest.raises(UnsupportedError, match=r"without a C compiler.*-pinn_engine jets"):
        CompiledEngine(network, Layout(network), features, ((),))
