"""The compiled sweep against torch, for every instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem import sweep
from ml2hpc.problem.control import ACTIVATIONS, SCHEMES, Architecture
from ml2hpc.problem.interface import Block
from ml2hpc.problem.propagation import Unrolled
from ml2hpc.problem.resnet import ResNetModel, ResNetProblem
from ml2hpc.problem.sweep import Sweep
from tests.problem.small import alone, relative
from tests.problem.test_compiled import SETS
from tests.problem.test_resnet import parameters_of, samples_for

pytestmark = pytest.mark.skipif(not kernels.built(), reason="built without a C compiler")
WIDTHS = (1, 2, 3, 4, 5, 7, 10, 16, 33)


@pytest.fixture(params=SETS)
def instruction_set(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    load = kernels.load
    monkeypatch.setattr(kernels, "load", lambda: load(request.param))
    return request.param


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def problem_of(
    architecture: Architecture,
    engine: str,
    dtype: torch.dtype = torch.float64,
    n: int = 53,
    loss: str = "cross_entropy",
) -> ResNetProblem:
    data = samples_for(architecture, n)
    data = type(data)(data.x.to(dtype), data.labels)
    return ResNetProblem(alone(), ResNetModel(architecture, engine, dtype, loss, beta=1e-3, chunk=1024), data)


def assert_same(architecture: Architecture, dtype: torch.dtype, tolerance: float, **others: Any) -> None:
    mine, oracle = (problem_of(architecture, engine, dtype, **others) for engine in ("compiled", "torch"))
    x = parameters_of(architecture).to(dtype)
    (f, g), (value, gradient) = mine.value_and_gradient(x), oracle.value_and_gradient(x)
    assert abs(f - value) <= tolerance * value
    assert abs(mine.objective(x) - value) <= tolerance * value
    assert relative(g, gradient) < tolerance
    assert mine.loss_and_accuracy(x)[1] == oracle.loss_and_accuracy(x)[1] > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_of_any_width_and_activation(instruction_set: str, scheme: Any) -> None:
    for width, activation in product(WIDTHS, ACTIVATIONS):
        architecture = Architecture((2,), 3, 5, width, scheme=scheme, activation=activation, opening="tanh")
        assert_same(architecture, torch.float64, 1e-12)
        assert_same(architecture, torch.float32, 1e-4)


@pytest.mark.parametrize(("blocks", "n", "classes"), [(1, 1, 2), (16, 64, 10), (17, 600, 2), (100, 257, 1)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_of_any_depth_and_number_of_samples(scheme: Any, blocks: int, n: int, classes: int) -> None:
    """Segments between checkpoints, strips of samples and classes that fill nothing whole."""
    for width, opening, loss in product((3, 6), ("identity", "relu"), ("cross_entropy", "least_squares")):
        architecture = Architecture((4,), classes, blocks, width, scheme=scheme, opening=opening)  # type: ignore[arg-type]
        assert_same(architecture, torch.float64, 1e-12, n=n, loss=loss)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [3, 6])
def test_windows(instruction_set: str, scheme: Any, width: int) -> None:
    architecture = Architecture((2,), 3, 6, width, scheme=scheme)
    mine, oracle = (problem_of(architecture, engine) for engine in ("compiled", "torch"))
    x = parameters_of(architecture)
    layers = len(mine.layers)
    for first, last in ((i, j) for i in range(layers) for j in range(i + 1, layers + 1)):
        block = Block(slice(mine.layers[first].start, mine.layers[last - 1].stop), "")
        a, b = mine.restrict(block), oracle.restrict(block)
        t = a.rebase(x)
        b.rebase(x)
        (f, g), (value, gradient) = a.value_and_gradient(t), b.value_and_gradient(t)
        assert abs(f - value) <= 1e-13 * value, (first, last)
        assert relative(g, gradient) < 1e-12, (first, last)
        assert abs(a.objective(t) - value) <= 1e-13 * value


class Spy:
    """The kernel, and with how many threads it was called."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.threads: list[int] = []

    def __call__(self, plan: int, *rest: Any) -> None:
        self.threads.append(sweep.Plan.from_address(plan).threads)
        self.kernel(plan, *rest)


def test_problems_of_one_model_may_be_evaluated_by_two_threads() -> None:
    """They share an engine."""
    architecture = Architecture((2,), 3, 37, 3)
    x = parameters_of(architecture)
    large = problem_of(architecture, "compiled", n=3000)
    problems = [large, large.sample(torch.arange(100))]
    expected = [problem.value_and_gradient(x) for problem in problems]

    def repeat(problem: Any) -> list[tuple[float, torch.Tensor]]:
        return [problem.value_and_gradient(x) for _ in range(50)]

    with ThreadPoolExecutor(2) as pool:
        for many, (f, g) in zip(pool.map(repeat, problems), expected, strict=True):
            assert all(value == f and torch.equal(gradient, g) for value, gradient in many)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bits_do_not_depend_on_threads_or_checkpoints(
    scheme: Any, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in (3, 6):
        architecture = Architecture((2,), 3, 37, width, scheme=scheme)
        x = parameters_of(architecture)
        found = []
        for threads, checkpoint in ((2, 16), (1, 16), (1, 5), (2, 40)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(sweep, "_CHECKPOINT", checkpoint)
            problem = problem_of(architecture, "compiled", n=1000)
            engine = problem._evaluation.engine
            assert isinstance(engine, Sweep)
            engine._network = Spy(engine._network)
            found.append(problem.value_and_gradient(x))
            assert engine._network.threads == [threads]
        assert all(f == found[0][0] and torch.equal(g, found[0][1]) for f, g in found)


def test_logits_are_those_of_torch() -> None:
    architecture = Architecture((2,), 4, 20, 5, scheme="verlet")
    x, data = parameters_of(architecture), samples_for(architecture)
    mine, oracle = (kind(architecture, "cross_entropy", torch.float64) for kind in (Sweep, Unrolled))
    a, b = (e.logits(x, e.batch(data.x, data.labels, 1.0)) for e in (mine, oracle))
    assert relative(a[:, : b.shape[1]], b) < 1e-13


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_a_number_is_seen(activation: Any) -> None:
    for width in (3, 6):
        architecture = Architecture((2,), 2, 4, width, activation=activation)
        problem = problem_of(architecture, "compiled")
        x = parameters_of(architecture)
        for place in (0, problem.layers[2].start, problem.layers[-1].start):
            broken = x.clone()
            broken[place] = torch.nan
            f, g = problem.value_and_gradient(broken)
            assert f != f and bool(g.isnan().any())
            assert problem.loss_and_accuracy(broken)[1] == 0.0


def test_large_logits_do_not_overflow() -> None:
    architecture = Architecture((2,), 3, 2, 3)
    problem, oracle = (problem_of(architecture, engine) for engine in ("compiled", "torch"))
    x = 1e3 * parameters_of(architecture)
    f, g = problem.value_and_gradient(x)
    value, gradient = oracle.value_and_gradient(x)
    assert f == pytest.approx(value, rel=1e-12) and relative(g, gradient) < 1e-12


def test_convolutions_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="use -resnet_engine torch"):
        Sweep(Architecture((1, 4, 4), 2, layers="conv"), "cross_entropy", torch.float64)


def test_two_engines_do_not_share_results() -> None:
    """The scratch memory is shared; what one problem returned stays when another one is evaluated."""
    small, large = (problem_of(Architecture((2,), 3, blocks, 3), "compiled") for blocks in (3, 9))
    points = [parameters_of(p.model.architecture) for p in (small, large)]
    first: Tensor = small.gradient(points[0])
    copy = first.clone()
    large.gradient(points[1])
    assert torch.equal(first, copy)
    assert torch.equal(small.gradient(points[0]), copy)
