"""The device engine against nested autograd, on the C library and on the CUDA source run thread by thread."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem import device as device_module
from ml2hpc.problem.autograd import AutogradEngine
from ml2hpc.problem.device import DeviceEngine
from ml2hpc.problem.engine import Engine, Window
from ml2hpc.problem.jets import JetsEngine
from ml2hpc.problem.network import DenseNetwork
from ml2hpc.problem.neurons import CudaNeurons, HostNeurons
from ml2hpc.vec import Layout
from tests.kernels.emulated import Driver, definitions, install
from tests.problem.small import perturbed, random, relative
from tests.problem.test_compiled import HIGH, NETWORKS, tangent_and_rows
from tests.problem.test_engines import ALL, WAVE, WINDOWS, evaluate, features, network_of, points

needs_library = pytest.mark.skipif(not kernels.built(), reason="built without a C compiler")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
NAMES = ["-".join(map(str, o.values())) for o in NETWORKS]


@pytest.fixture(params=[pytest.param("c", marks=needs_library), pytest.param("cuda", marks=needs_compiler)])
def launcher(request: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Driver | None:
    """The kernels' two homes; with the second, the engine takes the processor for a GPU."""
    if request.param == "c":
        return None
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(
        device_module, "neurons_on", lambda device, carried, name, dtype: CudaNeurons(carried, name, dtype, gpu)
    )
    return install(monkeypatch, tmp_path)


def both(
    network: DenseNetwork, indices: tuple[Any, ...], first: int = 0, last: int | None = None
) -> tuple[DeviceEngine, Engine[Any], Tensor]:
    layout = Layout(network)
    window = Window.of(layout, first, last or len(layout.layers))
    mine, oracle = (kind(network, layout, features, indices, window) for kind in (DeviceEngine, AutogradEngine))
    assert isinstance(mine, DeviceEngine)
    return mine, oracle, perturbed(layout, network)


def assert_same(network: DenseNetwork, indices: tuple[Any, ...], dim: int, tolerance: float) -> None:
    mine, oracle, parameters = both(network, indices)
    jets, gradient = evaluate(mine, parameters, points(dim, parameters.dtype))
    wanted, gradient_of_oracle = evaluate(oracle, parameters, points(dim, parameters.dtype))
    assert relative(gradient, gradient_of_oracle) < tolerance
    for j in range(jets.shape[1]):
        assert relative(jets[:, j], wanted[:, j]) < tolerance


@pytest.mark.parametrize("options", NETWORKS, ids=NAMES)
def test_second_order(launcher: Driver | None, options: dict[str, Any]) -> None:
    assert_same(network_of(2, **options), ALL[2], 2, 1e-12)
    assert_same(network_of(2, dtype=torch.float32, **options), ALL[2], 2, 1e-4)
    assert launcher is None or {"neurons_forward", "neurons_reverse"} == set(launcher.started)


@pytest.mark.parametrize("indices", [((),), ((0,),), ((0, 1),), ((0, 0), (1,)), (WAVE,)], ids=str)
def test_only_what_is_read(launcher: Driver | None, indices: tuple[Any, ...]) -> None:
    assert_same(network_of(2, outputs=3, width=7, type="resnet"), indices, 2, 1e-12)


@needs_library
@pytest.mark.parametrize("dim", [1, 3, 4])
def test_one_to_four_coordinates(dim: int) -> None:
    assert_same(network_of(dim, type="resnet", adaptive=True), ALL[dim], dim, 1e-12)


@pytest.mark.parametrize("indices", HIGH, ids=str)
def test_orders_three_and_four(launcher: Driver | None, indices: tuple[Any, ...]) -> None:
    dim = 1 if indices == HIGH[0] else 2
    for activation in ("tanh", "sin", "silu", "gelu"):
        network = network_of(dim, outputs=1, depth=2, width=3, activation=activation, type="resnet", adaptive=True)
        assert_same(network, indices, dim, 1e-12)


@needs_library
@pytest.mark.parametrize("n", [1, 31, 32, 33])
def test_points_are_filled_up_to_whole_vectors(n: int) -> None:
    """Copies of the last point stand behind the others, and nothing of them is seen."""
    mine, oracle, parameters = both(network_of(2), ALL[2])
    x = points(2).repeat(1, 4)[:, :n]
    batch = mine.batch(x)
    assert batch.filled.x.shape[1] == -(-n // 32) * 32
    jets, gradient = evaluate(mine, parameters, x)
    wanted, gradient_of_oracle = evaluate(oracle, parameters, x)
    assert jets.shape == wanted.shape
    assert relative(jets, wanted) < 1e-12 and relative(gradient, gradient_of_oracle) < 1e-12


@needs_library
@pytest.mark.parametrize("options", NETWORKS, ids=NAMES)
@pytest.mark.parametrize(("first", "last"), WINDOWS)
def test_windows(first: int, last: int, options: dict[str, Any]) -> None:
    network, x = network_of(2, **options), points(2)
    mine, oracle, parameters = both(network, ALL[2], first, last)
    jets, gradient = evaluate(mine, parameters, x)
    jets_of_whole, gradient_of_whole = evaluate(both(network, ALL[2])[0], parameters, x)
    assert torch.equal(jets, jets_of_whole)
    assert torch.equal(gradient, gradient_of_whole[mine.window.start : mine.window.stop])
    assert relative(gradient, evaluate(oracle, parameters, x)[1]) < 1e-12


@needs_library
@pytest.mark.parametrize("options", NETWORKS, ids=NAMES)
@pytest.mark.parametrize(("first", "last"), [(0, 5), (1, 4), (4, 5)])
def test_tangent_and_rows(first: int, last: int, options: dict[str, Any]) -> None:
    network = network_of(2, **options)
    mine, oracle, parameters = both(network, ALL[2], first, last)
    for got, want in zip(tangent_and_rows(mine, parameters), tangent_and_rows(oracle, parameters), strict=True):
        assert relative(got, want) < 1e-11  # the oracle's own rounding in the second derivatives


@needs_library
def test_tangent_and_rows_in_order_four() -> None:
    network = network_of(2, activation="gelu", type="resnet", adaptive=True, depth=2, width=3)
    mine, _, parameters = both(network, HIGH[1], 1, 3)
    oracle = JetsEngine(network, mine.layout, features, HIGH[1], mine.window)
    for got, want in zip(tangent_and_rows(mine, parameters), tangent_and_rows(oracle, parameters), strict=True):
        assert relative(got, want) < 1e-12


@needs_library
def test_buffers_keep_their_places() -> None:
    """What a recorded evaluation relies on: the same addresses in every evaluation, prefix included."""
    mine, _, parameters = both(network_of(2, type="resnet"), ALL[2], 1, 4)
    batch = mine.batch(points(2))
    seen = []
    for shift in (0.0, 0.1):
        mine.freeze(parameters + shift, batch)
        mine.forward(parameters + shift, batch, reverse=True)
        assert batch.filled.below is not None
        space = mine._fused._space(batch.filled)
        seen.append([batch.filled.below.data_ptr(), *(t.data_ptr() for k in space.hidden for t in (k.z.all, k.y.all))])
    assert seen[0] == seen[1]


@needs_compiler
def test_the_cuda_source_says_what_the_jets_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = install(monkeypatch, tmp_path)
    kernels_of = CudaNeurons(both(network_of(2), ALL[2])[0].indices, "silu", torch.float32, torch.device("cuda", 0))
    found = definitions((tmp_path / "module1.cc").read_text().partition("gridDim, blockDim;\n")[2])
    assert (found["T"], found["ACTIVATION"], found["JETS"], found["TERMS"]) == ("float", "2", "6", "3")
    z = random(2 * 6 * 32, 1, torch.float32).view(2, 6, 32)
    more, y = torch.zeros(2, kernels_of.planes, 32), torch.zeros_like(z)
    kernels_of.forward(torch.zeros(2), z, more, y, None)
    assert driver.started == ["neurons_forward"]
    assert bool(y.abs().sum() > 0)


def test_without_a_library_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: None)
    with pytest.raises(UnsupportedError, match="built without a C compiler; use -pinn_engine jets"):
        HostNeurons(((),), "tanh", torch.float64)


@needs_library
def test_what_it_cannot_carry_names_this_engine() -> None:
    with pytest.raises(UnsupportedError, match=r"the device engine carries derivatives up to order 4; use"):
        both(network_of(1), ((0,) * 5,))
