"""Residual networks: discretisations, Taylor rates, restriction, samples, Gauss-Newton matrices, bits over ranks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.comm import Communicator
from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.problem.classification import LOSSES, count_correct
from ml2hpc.problem.control import Architecture, ArchitectureOptions, ResNet
from ml2hpc.problem.interface import Block, Restriction
from ml2hpc.problem.propagation import Unrolled
from ml2hpc.problem.resnet import ResNetModel, ResNetProblem, Samples
from ml2hpc.problem.transfer import Coarsening
from ml2hpc.vec import Layout
from tests.problem.small import alone, assert_taylor, everyone, random, rate, relative
from tests.simulated import DEVICE, Simulation

ENGINES = ["torch", *(["compiled"] if kernels.built() else [])]
DENSE = Architecture((2,), 3, blocks=4, width=3)
VERLET = replace(DENSE, scheme="verlet", opening="tanh", final_time=2.0)
CONV = Architecture((2, 5, 4), 3, blocks=3, width=2, layers="conv")
CONV_VERLET = replace(CONV, scheme="verlet")
ARCHITECTURES = {"euler": DENSE, "verlet": VERLET, "conv": CONV, "conv verlet": CONV_VERLET}
architectures = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
losses = pytest.mark.parametrize("loss", LOSSES)


def samples_for(architecture: Architecture, n: int = 41) -> Samples:
    inputs = architecture.inputs
    x = random(n * torch.Size(inputs).numel(), 7).view(n, *inputs)
    return Samples(x, torch.arange(n) % architecture.classes)


def parameters_of(architecture: Architecture) -> Tensor:
    network = ResNet(architecture, 0, torch.float64)
    x = Layout(network).flatten(network)
    return x + 0.3 * random(len(x), 1)


def resnet(
    architecture: Architecture = DENSE, comm: Communicator | None = None, **model: Any
) -> tuple[ResNetProblem, Tensor]:
    engine = model.pop("engine", "torch")
    made = ResNetModel(architecture, engine, torch.float64, **{"beta": 1e-2, "chunk": 16} | model)
    return ResNetProblem(comm or alone(), made, samples_for(architecture)), parameters_of(architecture)


def engines_for(architecture: Architecture) -> list[str]:
    return ENGINES if architecture.layers == "dense" else ["torch"]


# ---- the network -----------------------------------------------------------------------------------------------------


def test_flat_vector_has_opening_blocks_and_classification() -> None:
    network = ResNet(DENSE, 0, torch.float64)
    layout = Layout(network)
    assert layout.n == DENSE.n == DENSE.layer_slices[-1].stop
    assert DENSE.layer_slices[0] == layout.layers[0] and DENSE.layer_slices[-1] == layout.layers[-1]
    assert [s.stop - s.start for s in DENSE.layer_slices] == [9, 12, 12, 12, 12, 12]
    assert [s.stop - s.start for s in DENSE.tensor_slices] == [6, 3, *[9, 3] * 4, 9, 3]


def test_start_is_glorot_uniform_with_zero_biases() -> None:
    wide = Architecture((200,), 2, blocks=2, width=100)
    network = ResNet(wide, 3, torch.float64)
    bound = (6 / 300) ** 0.5
    assert 0.99 * bound < float(network.opening.weight.detach().abs().max()) <= bound
    variance = float(network.opening.weight.detach().var())
    assert variance == pytest.approx(bound**2 / 3, rel=0.05)
    assert not network.opening.bias.any() and not network.blocks.rows[:, 100 * 100 :].any()


def test_start_is_the_same_for_any_depth_and_type() -> None:
    deep = ResNet(replace(DENSE, blocks=64), 5, torch.float64)
    shallow = ResNet(DENSE, 5, torch.float32)
    assert torch.equal(deep.opening.weight.float(), shallow.opening.weight)
    assert torch.equal(deep.classification.weight.float(), shallow.classification.weight)
    assert torch.equal(deep.blocks.rows[:4].float(), shallow.blocks.rows)


def test_euler_is_the_formula() -> None:
    problem, x = resnet(replace(DENSE, blocks=1, opening="tanh"), beta=0.0)
    k0, b0, k, b, w, c = (x[s] for s in problem.tensors)
    y = torch.tanh(k0.view(3, 2) @ problem.data.x.T + b0[:, None])
    y = y + torch.tanh(k.view(3, 3) @ y + b[:, None])
    z = w.view(3, 3) @ y + c[:, None]
    expected = torch.nn.functional.cross_entropy(z.T, problem.data.labels)
    assert problem.objective(x) == pytest.approx(float(expected), rel=1e-14)
    assert problem.loss_and_accuracy(x)[1] == float((z.argmax(0) == problem.data.labels).double().mean())


@pytest.mark.parametrize(("scheme", "order"), [("euler", 1), ("verlet", 1)])
def test_refined_networks_converge_to_the_ode(scheme: Any, order: float) -> None:
    """Each block is split into blocks of the same weights: the steps shrink, the ODE stays."""
    coarse = replace(DENSE, scheme=scheme, blocks=1, final_time=1.0)
    x = parameters_of(coarse)

    def logits(factor: int) -> Tensor:
        fine = replace(coarse, blocks=factor)
        blocks = x[coarse.groups["blocks"]].repeat(factor)
        whole = torch.cat([x[coarse.groups["opening"]], blocks, x[coarse.groups["classification"]]])
        engine = Unrolled(fine, "cross_entropy", torch.float64)
        samples = samples_for(fine)
        return engine.logits(whole, engine.batch(samples.x, samples.labels, 1.0))

    exact = logits(4096)
    errors = [float((logits(n) - exact).abs().max()) for n in (32, 64)]
    assert rate(errors) == pytest.approx(order, abs=0.1)


def test_verlet_is_reversible() -> None:
    """z, then y, taken back with the same sigma, are where they started: no information is lost."""
    x = parameters_of(VERLET)
    engine = Unrolled(VERLET, "cross_entropy", torch.float64)
    _, layers = engine._layers(x, x, 0)
    start = random(2 * 3 * 5, 4).view(2, 3, 5)
    y, z = engine._through(layers[1:-1], start)
    assert relative(y, start[0]) > 0.1
    for weight, bias in reversed(layers[1:-1]):
        y = y - VERLET.step * torch.tanh(weight @ z + bias[:, None])
        z = z + VERLET.step * torch.tanh(weight.T @ y + bias[:, None])
    assert relative(torch.stack([y, z]), start) < 1e-14


def test_verlet_stays_bounded_where_euler_grows() -> None:
    """y'' = -y: Euler multiplies |y| by sqrt(1 + dt^2) a step, Verlet conserves a quadratic form."""
    architecture = Architecture((1,), 2, blocks=200, width=1, scheme="verlet", activation="identity", final_time=100.0)
    rotation = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(200)
    x = torch.cat([torch.tensor([1.0, 0.0]), rotation, torch.tensor([1.0, 0.0, 0.0, 0.0])]).to(torch.float64)
    engine = Unrolled(architecture, "cross_entropy", torch.float64)
    y = engine.logits(x, engine.batch(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), 1.0))
    assert abs(float(y[0, 0])) < 1.2 < (1 + architecture.step**2) ** 100


def test_coarser_networks() -> None:
    fine = replace(DENSE, blocks=12, final_time=3.0)
    assert fine.coarsen(3) == replace(fine, blocks=4)
    assert fine.coarsen(3).step == 3 * fine.step
    with pytest.raises(UnsupportedError, match="12 residual blocks cannot be coarsened by 5"):
        fine.coarsen(5)


def test_convolutions_need_images() -> None:
    with pytest.raises(OptionsError, match=r"samples have shape \(2,\)"):
        Architecture.of(ArchitectureOptions(layers="conv"), (2,), 2)
    flat = Architecture.of(ArchitectureOptions(), (1, 8, 8), 10)
    assert flat.inputs == (64,)


@architectures
def test_cost_counts_products(architecture: Architecture) -> None:
    """A sample's operations: forward those of all products; back once more for the weights, once for the state."""
    pixels, taps = (20, 9) if architecture.layers == "conv" else (1, 1)
    halves = 2 if architecture.scheme == "verlet" else 1
    w, blocks = architecture.width, architecture.blocks
    opening, block = 2 * taps * pixels * 2 * w, 2 * taps * pixels * w * w * halves
    head = 2 * w * 3
    cost = architecture.cost()
    assert cost.objective == opening + blocks * block + head
    assert cost.gradient == 3 * cost.objective - opening
    frozen = architecture.cost(2, 3)
    assert frozen.objective == (blocks - 1) * block + head
    assert frozen.gradient == frozen.objective + block + (blocks - 2) * block + head


# ---- the problem -----------------------------------------------------------------------------------------------------


@losses
@architectures
def test_taylor_rates_and_one_function(architecture: Architecture, loss: str) -> None:
    for engine in engines_for(architecture):
        problem, x = resnet(architecture, engine=engine, loss=loss)
        f, g = problem.value_and_gradient(x)
        assert abs(problem.objective(x) - f) <= 1e-14 * abs(f)
        assert abs(sum(problem.terms(x).values()) - f) <= 1e-14 * abs(f)
        assert problem.terms(x)["regularization"] == pytest.approx(0.5e-2 * float(x @ x), rel=1e-14)
        assert torch.equal(problem.gradient(x), g)
        assert_taylor(problem, x)


def test_regularization_of_a_coarser_level_counts_blocks_by_scaling() -> None:
    """With c times fewer blocks of the same weights, both levels have the same L but for the discretisation."""
    problem, x = resnet(replace(DENSE, blocks=8))
    blocks = x[problem.model.architecture.groups["blocks"]].view(8, -1)
    blocks[1::2] = blocks[::2]
    coarse, _ = problem.coarsen(Coarsening("depth"))
    assert isinstance(coarse, ResNetProblem)
    assert coarse.model.scaling == 2.0 and coarse.model.architecture.blocks == 4
    groups = problem.model.architecture.groups
    t = torch.cat([x[groups["opening"]], blocks[::2].flatten(), x[groups["classification"]]])
    assert coarse.terms(t)["regularization"] == pytest.approx(problem.terms(x)["regularization"], rel=1e-14)
    assert_taylor(coarse, t)
    assert coarse.cost.gradient < 0.6 * problem.cost.gradient


def test_an_integral_over_blocks_is_the_same_on_all_levels() -> None:
    """Its scaling is the step in time."""
    whole, x = resnet(replace(DENSE, blocks=8))
    model = replace(whole.model, scaling=whole.model.architecture.step)
    problem = ResNetProblem(whole.comm, model, whole.data)
    coarse, transfer = problem.coarsen(Coarsening("depth"))
    assert isinstance(coarse, ResNetProblem)
    assert coarse.model.scaling == coarse.model.architecture.step == 2 * model.scaling
    x = transfer.lift(transfer.project(x))
    fine = problem.terms(x)["regularization"]
    assert coarse.terms(transfer.project(x))["regularization"] == pytest.approx(fine, rel=1e-14)


BLOCKS: dict[str, Any] = {
    "opening": lambda p: p.layers[0],
    "a block": lambda p: p.layers[2],
    "two blocks": lambda p: slice(p.layers[1].start, p.layers[2].stop),
    "part of blocks": lambda p: slice(p.layers[1].start + 3, p.layers[2].start + 2),
    "classification": lambda p: p.layers[-1],
    "last block and classification": lambda p: slice(p.layers[-2].start, p.layers[-1].stop),
    "all": lambda p: slice(0, p.space.n),
    "outer layers": lambda p: torch.cat([torch.arange(s.start, s.stop) for s in (p.layers[0], p.layers[-1])]),
    "scattered": lambda p: torch.arange(p.layers[2].start, p.space.n, 3),
}


@pytest.mark.parametrize("indices", BLOCKS.values(), ids=BLOCKS.keys())
@architectures
def test_restriction_is_the_parent_on_a_block(architecture: Architecture, indices: Any) -> None:
    for engine in engines_for(architecture):
        problem, x = resnet(architecture, engine=engine)
        block = Block(indices(problem), "block")
        mine, plain = problem.restrict(block), Restriction(problem, block)
        t = mine.rebase(x)
        plain.rebase(x)
        f, g = plain.value_and_gradient(t)
        value, gradient = mine.value_and_gradient(t)
        assert abs(value - f) <= 1e-14 * f and abs(mine.objective(t) - f) <= 1e-14 * f
        assert relative(gradient, g) < 1e-13
        v = random(len(t), 3)
        assert relative(mine.hessian_action(t, v), plain.hessian_action(t, v)) < 1e-12
        assert relative(mine.linearize(t).action(v), plain.linearize(t).action(v)) < 1e-12
        assert abs(sum(mine.terms(t).values()) - f) <= 1e-14 * f
        # A frozen prefix follows its base.
        t = mine.rebase(x + 0.1)
        assert mine.objective(t) == pytest.approx(problem.objective(x + 0.1), rel=1e-14)
        assert (
            mine.cost.gradient <= problem.cost.gradient == problem.restrict(Block(slice(0, len(x)), "")).cost.gradient
        )


def test_restriction_costs_less_by_its_prefix() -> None:
    problem, _ = resnet(replace(DENSE, blocks=8))
    costs = [problem.block_cost(Block(s, "")) for s in problem.layers]
    assert [problem.restrict(Block(s, "")).cost for s in problem.layers] == costs
    assert all(a.objective > b.objective for a, b in pairwise(costs))


@losses
@architectures
def test_gauss_newton_matrix(architecture: Architecture, loss: str) -> None:
    """The matrix is its action on unit vectors, J' H J of a Jacobian formed sample by sample, plus the penalty."""
    problem, x = resnet(architecture, loss=loss, beta=1e-3)
    linear = problem.linearize(x)
    matrix = linear.matrix()
    assert torch.equal(matrix, matrix.T)
    v = random(len(x), 2)
    assert relative(linear.action(v), matrix @ v) < 1e-12
    assert float(torch.linalg.eigvalsh(matrix)[0]) > 0.99e-3
    engine = Unrolled(architecture, loss, torch.float64)
    batch = engine.batch(problem.data.x, problem.data.labels, 1 / 41)
    jacobian = torch.autograd.functional.jacobian(lambda t: engine._logits(t, x, batch), x)  # (classes, n, p)
    z = engine.logits(x, batch)
    curved = torch.stack([LOSSES[loss].curvature(z, j, batch.weight) for j in jacobian.permute(2, 0, 1)])
    expected = torch.einsum("cnp,qcn->pq", jacobian, curved) + 1e-3 * torch.eye(len(x), dtype=torch.float64)
    assert relative(matrix, expected) < 1e-12


def test_gauss_newton_is_the_hessian_where_logits_are_linear() -> None:
    """In the classification layer alone the logits are linear, and nothing is neglected."""
    for loss in LOSSES:
        problem, x = resnet(VERLET, loss=loss)
        restriction = problem.restrict(Block(problem.layers[-1], "classification"))
        t = restriction.rebase(x)
        v = random(len(t), 6)
        assert relative(restriction.linearize(t).action(v), restriction.hessian_action(t, v)) < 1e-12
        matrix = restriction.linearize(t).matrix()
        assert relative(matrix @ v, restriction.hessian_action(t, v)) < 1e-12


def test_a_sample_is_the_mean_over_its_rows() -> None:
    problem, x = resnet(beta=0.0)
    rows = torch.arange(0, 41, 3)
    sample = problem.sample(rows)
    rest = problem.sample(torch.tensor([k for k in range(41) if k % 3]))
    assert sample.samples == 14
    mean = (14 * sample.gradient(x) + 27 * rest.gradient(x)) / 41
    assert relative(mean, problem.gradient(x)) < 1e-13
    assert torch.equal(problem.sample(torch.arange(41)).gradient(x), problem.gradient(x))
    assert sample.cost.gradient == pytest.approx(14 / 41 * problem.cost.gradient)


def test_levels_and_blocks_share_their_samples() -> None:
    """Made ready once; what enters the window of a block is its own."""
    problem, x = resnet(Architecture((2,), 2, blocks=4, width=3))
    coarse = problem.coarsen(Coarsening("depth"))[0]
    block = problem.restrict(Block(problem.layers[2], "second block"))
    assert isinstance(coarse, ResNetProblem)
    block.rebase(x)
    fine, of_coarse, of_block = (p._evaluation._batches[0] for p in (problem, coarse, block))
    assert fine.x is of_coarse.x is of_block.x and fine.targets is of_coarse.targets
    assert fine.below is None and of_coarse.below is None and of_block.below is not None
    assert problem.model.coarsen(2) is coarse.model


def test_accuracy_counts_ties_as_mistakes() -> None:
    z = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    targets = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert float(count_correct(z, targets)) == 1.0
    problem, x = resnet()
    assert problem.loss_and_accuracy(torch.zeros_like(x))[1] == 0.0


@architectures
def test_a_device_gives_the_bits_of_the_host(architecture: Architecture) -> None:
    problem, x = resnet(architecture)
    v = random(len(x), 3)
    block = Block(slice(problem.layers[2].start, len(x)), "upper layers")
    restriction = problem.restrict(block)
    t = restriction.rebase(x)
    wanted = [problem.gradient(x), problem.hessian_action(x, v), restriction.gradient(t)]
    wanted.append(problem.linearize(x).action(v))
    with Simulation():
        there, x = ResNetProblem(alone(), replace(problem.model, device=DEVICE), problem.data), x.to(DEVICE)
        restriction = there.restrict(block)
        t = restriction.rebase(x)
        found = [there.gradient(x), there.hessian_action(x, v.to(DEVICE)), restriction.gradient(t)]
        found.append(there.linearize(x).action(v.to(DEVICE)))
        assert all(f.device == DEVICE for f in found)
        assert all(torch.equal(f.cpu(), w) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("engine", ENGINES)
def test_bits_do_not_depend_on_ranks(comm: Any, engine: str) -> None:
    for architecture in (DENSE, VERLET):
        problem, x = resnet(architecture, everyone(comm), engine=engine, chunk=7)
        serial, _ = resnet(architecture, engine=engine, chunk=7)
        (f, g), (value, gradient) = problem.value_and_gradient(x), serial.value_and_gradient(x)
        v = random(len(x), 5)
        assert f == value and torch.equal(g, gradient)
        assert problem.objective(x) == serial.objective(x)
        assert problem.loss_and_accuracy(x) == serial.loss_and_accuracy(x)
        assert torch.equal(problem.hessian_action(x, v), serial.hessian_action(x, v))
        assert torch.equal(problem.linearize(x).action(v), serial.linearize(x).action(v))
        assert torch.equal(problem.linearize(x).matrix(), serial.linearize(x).matrix())
        assert torch.equal(problem.on(alone()).gradient(x), g)
