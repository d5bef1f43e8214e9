"""Small PINN problems for the tests of this room and of those above it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.log import Log
from ml2hpc.problem.ansatz import collocate
from ml2hpc.problem.interface import Problem
from ml2hpc.problem.jet import Jet, Points
from ml2hpc.problem.network import DenseNetwork, NetworkOptions
from ml2hpc.problem.pde import PDE, dirichlet, periodic
from ml2hpc.problem.pinn import Model, PinnProblem
from ml2hpc.vec import Layout


class Pair(PDE):
    """Two fields, all second derivatives of the first; different hard factors, a soft periodic condition."""

    coordinates = "xt"
    domain = {"x": (0.0, 2.0), "t": (-1.0, 1.0)}
    fields = ("u", "v")

    def residual(self, p: Points, u: Jet, v: Jet) -> tuple[Tensor, Tensor]:
        return u.t + u * v.x - 0.3 * u.xx + 0.2 * u.xt + u.tt * v, v.tt - u * u + torch.sin(p.x)

    def lifting(self, p: Points) -> tuple[Tensor, float]:
        return torch.sin(p.x) * p.t, 0.5

    def distance(self, p: Points) -> tuple[Tensor, Tensor]:
        return (p.t + 1) * (1 + p.x**2), 1 + p.t

    def conditions(self) -> list[Any]:
        return [dirichlet("t", 0, self.start), periodic("x", weight=0.5)]

    def start(self, p: Points) -> Tensor:
        return -torch.sin(p.x)


def alone() -> Communicator:
    return Communicator(MPI.COMM_SELF, Log())


def everyone(comm: Any) -> Communicator:
    return Communicator(comm, Log())


def network_of(pde: PDE, dtype: torch.dtype = torch.float64, seed: int = 0, **net: Any) -> DenseNetwork:
    features = pde.features(torch.zeros(len(pde.coordinates), 1, dtype=dtype))
    options = NetworkOptions(**{"depth": 3, "width": 5} | net)
    return DenseNetwork(len(features), len(pde.fields), options, seed, dtype)


def perturbed(layout: Layout, network: torch.nn.Module, seed: int = 1) -> Tensor:
    """Parameters with biases and slopes away from their starting values."""
    x = layout.flatten(network)
    return x + 0.2 * random(layout.n, seed, x.dtype)


def random(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pinn(
    pde: PDE | None = None,
    comm: Communicator | None = None,
    engine: str = "jets",
    dtype: torch.dtype = torch.float64,
    n: int = 40,
    chunk: int = 16,
    **net: Any,
) -> tuple[PinnProblem, Tensor]:
    """Return a problem with interior and face points, and parameters (n,)."""
    pde = pde or Pair()
    network = network_of(pde, dtype, **net)
    layout = Layout(network)
    model = Model(pde, network, layout, engine, dtype, chunk)
    terms = collocate(pde, n=n, n_face=9, sampler="sobol", seed=3, dtype=dtype, weight=2.0)
    return PinnProblem(comm or alone(), model, terms), perturbed(layout, network)


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference against the largest entry of b."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())


def table(coordinates: str, **values: Any) -> Jet:
    """A jet with given derivatives: value=..., x=..., xx=...; any other is an error."""
    by_index = {
        tuple(sorted(coordinates.index(c) for c in name)) if name != "value" else (): torch.as_tensor(v)
        for name, v in values.items()
    }
    return Jet(coordinates, by_index.__getitem__)


def taylor(problem: Problem, x: Tensor, v: Tensor) -> tuple[float, float]:
    """Return the rates at which the first- and second-order Taylor remainders along v vanish: 2 and 3."""
    f, g = problem.value_and_gradient(x)
    slope = problem.space.dot(g, v)
    curvature = problem.space.dot(problem.hessian_action(x, v), v)
    steps = [2.0**-k for k in range(6, 10)]
    rises = [problem.objective(x + h * v) - f for h in steps]
    first = [abs(r - h * slope) for r, h in zip(rises, steps)]
    second = [abs(r - h * slope - 0.5 * h * h * curvature) for r, h in zip(rises, steps)]
    return rate(first), rate(second)


def rate(errors: list[float]) -> float:
    """The order with which errors fall when the step is halved."""
    return float(np.log2(errors[-2] / errors[-1]))


def assert_taylor(problem: Problem, x: Tensor, seed: int = 5, make: Callable[[Tensor], Tensor] = lambda v: v) -> None:
    v = problem.space.local(random(problem.space.n, seed))
    first, second = taylor(problem, x, make(v))
    assert 1.9 < first < 2.1
    assert 2.9 < second < 3.1
