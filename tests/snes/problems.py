"""Small problems with known answers, as functions of a flat vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.log import Log
from ml2hpc.options import Database
from ml2hpc.problem.interface import Cost, Linearization, LinearizedCost, Problem, slices
from ml2hpc.problem.transfer import Coarsening, Transfer, width
from ml2hpc.snes import SNES, create
from ml2hpc.vec import Replicated

Function = Callable[[Tensor, Tensor], Tensor]


class Jacobian(Linearization):
    """A Gauss-Newton matrix from the Jacobian of all residuals."""

    def __init__(self, jacobian: Tensor) -> None:
        self.jacobian = jacobian

    def action(self, v: Tensor) -> Tensor:
        return 2 * self.jacobian.T @ (self.jacobian @ v)

    def matrix(self) -> Tensor:
        return 2 * self.jacobian.T @ self.jacobian

    @property
    def cost(self) -> LinearizedCost:
        return LinearizedCost(1.0 * self.jacobian.numel(), 2.0 * self.jacobian.numel())


class Groups(Transfer):
    """Each coarse unknown is the value of a group of fine ones."""

    def __init__(self, n: int, factor: int) -> None:
        self._group = torch.arange(n) // factor
        self._factor = factor
        self.count = width(n, factor)

    def prolong(self, e: Tensor) -> Tensor:
        return e[self._group]

    def restrict(self, g: Tensor) -> Tensor:
        return g.new_zeros(self.count).index_add(0, self._group, g)

    def project(self, x: Tensor) -> Tensor:
        return x[:: self._factor].clone()


class Analytic(Problem):
    """L = mean over samples of f(x, sample), by autograd; where it is known, |residual|^2 is f up to a constant."""

    def __init__(self, comm, f: Function, n: int, data: Tensor | None = None, residual: Function | None = None) -> None:
        self.comm = comm
        self.f = f
        self.residual = residual
        self.linearized = 0
        self.data = torch.zeros(1, dtype=torch.float64) if data is None else data
        self.samples = len(self.data)
        self.space = Replicated(n, torch.float64)
        self.layers = slices([2] * (n // 2) + [1] * (n % 2))
        self.tensors = slices([1] * n)
        self.evaluations = 0

    def _value(self, x: Tensor) -> Tensor:
        self.evaluations += 1
        return torch.stack([self.f(x, d) for d in self.data]).mean()

    def objective(self, x: Tensor) -> float:
        return float(self._value(x))

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        leaf = x.detach().clone().requires_grad_()
        value = self._value(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.autograd.functional.hvp(self._value, x, v)[1]

    def linearize(self, x: Tensor) -> Linearization:
        residual = self.residual
        if residual is None:
            return super().linearize(x)
        self.linearized += 1
        jacobians = [torch.autograd.functional.jacobian(lambda t, d=d: residual(t, d), x) for d in self.data]
        return Jacobian(torch.cat(jacobians) / self.samples**0.5)

    @property
    def cost(self) -> Cost:
        return Cost(1.0 * self.samples, 3.0 * self.samples)

    def on(self, comm) -> Analytic:
        return Analytic(comm, self.f, self.space.n, self.data, self.residual)

    def coarsen(self, how: Coarsening) -> tuple[Problem, Transfer]:
        """L on the vectors whose unknowns are equal in groups of `factor`; by samples as all problems."""
        if how.kind == "samples":
            return super().coarsen(how)
        f, residual, up = self.f, self.residual, Groups(self.space.n, how.factor)
        coarse = Analytic(
            self.comm,
            lambda x, d: f(up.prolong(x), d),
            up.count,
            self.data,
            None if residual is None else lambda x, d: residual(up.prolong(x), d),
        )
        return coarse, up

    def sample(self, rows: Tensor) -> Analytic:
        return Analytic(self.comm, self.f, self.space.n, self.data[rows], self.residual)


def matrix(n: int) -> Tensor:
    """A symmetric positive definite matrix with condition number 100 and off-diagonal coupling."""
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return q @ torch.diag(torch.logspace(0, 2, n, dtype=torch.float64)) @ q.T


def quadratic(comm, n: int = 8) -> Analytic:
    """0.5 x' A x with its minimum 0 at 0."""
    a = matrix(n)
    root = torch.linalg.cholesky(0.5 * a).T
    return Analytic(comm, lambda x, d: 0.5 * x @ (a @ x), n, residual=lambda x, d: root @ x)


def rosenbrock(comm, n: int = 6) -> Analytic:
    """The chained Rosenbrock function, minimum 0 at (1, ..., 1)."""

    def f(x: Tensor, d: Tensor) -> Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    return Analytic(comm, f, n, residual=lambda x, d: torch.cat([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]]))


def double_well(comm, n: int = 4) -> Analytic:
    """A local maximum at 0 with L = 16 and minima around it."""

    def f(x: Tensor, d: Tensor) -> Tensor:
        return ((x**2 - 2) ** 2).sum() + 0.3 * x.sum()

    return Analytic(comm, f, n, residual=lambda x, d: torch.sqrt((x**2 - 2) ** 2 + 0.3 * x + 0.5))


def least_squares(comm, n: int = 6, samples: int = 12) -> Analytic:
    """mean over samples of (<a_d, x> - 1)^2 + |x|^2 / 10, for sampled methods."""
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(samples, n, generator=generator, dtype=torch.float64)

    def residual(x: Tensor, d: Tensor) -> Tensor:
        return torch.cat([(d @ x - 1)[None], 0.1**0.5 * x])

    return Analytic(comm, lambda x, d: (d @ x - 1) ** 2 + 0.1 * x @ x, n, data, residual)


def world(mpi) -> Communicator:
    """All ranks of the test."""
    return Communicator(mpi, Log())


def tree(options: str, problem: Problem, **defaults) -> SNES:
    """Return the solver tree that the options describe, set up; every option must be used."""
    database = Database.from_string(options)
    solver = create(database, defaults=defaults)
    database.check_unused()
    solver.set_up(problem)
    return solver
