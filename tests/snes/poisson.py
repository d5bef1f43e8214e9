"""Energies of the 1-D Poisson equation on grids of 2^k intervals: a hierarchy whose costs halve from level to level."""

from __future__ import annotations

import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.problem.interface import Cost, Problem
from ml2hpc.problem.transfer import Coarsening, Transfer
from ml2hpc.vec import Replicated


class Interpolation(Transfer):
    """Linear, between the nodes inside of 2^k and of 2^(k-1) intervals."""

    def prolong(self, e: Tensor) -> Tensor:
        x = e.new_zeros(2 * len(e) + 1)
        x[1::2] = e
        x[::2] += 0.5 * torch.cat([e, e.new_zeros(1)]) + 0.5 * torch.cat([e.new_zeros(1), e])
        return x

    def restrict(self, g: Tensor) -> Tensor:
        return g[1::2] + 0.5 * g[:-1:2] + 0.5 * g[2::2]

    def project(self, x: Tensor) -> Tensor:
        return x[1::2].clone()


class Poisson(Problem):
    """L(u) = 1/2 sum_i (u_{i+1} - u_i)^2 / h + h sum_i (quartic u_i^4 / 4 - u_i), u = 0 at both ends.

    Parameters
    ----------
    k
        There are 2^k intervals of length h.
    quartic
        Makes it nonlinear.
    """

    def __init__(self, comm: Communicator, k: int, quartic: float = 0.0) -> None:
        self.comm, self.k, self.quartic = comm, k, quartic
        self.h = 0.5**k
        self.space = Replicated(2**k - 1, torch.float64)
        self.samples = 1
        self.layers = self.tensors = (slice(0, self.space.n),)
        self.gradients = 0

    def objective(self, x: Tensor) -> float:
        zero = x.new_zeros(1)
        steps = torch.diff(torch.cat([zero, x, zero]))
        return float(0.5 * (steps @ steps) / self.h + self.h * (0.25 * self.quartic * x**4 - x).sum())

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        self.gradients += 1
        return self.objective(x), self._stiffness(x) + self.h * (self.quartic * x**3 - 1.0)

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        return self._stiffness(v) + 3 * self.h * self.quartic * x**2 * v

    def _stiffness(self, x: Tensor) -> Tensor:
        zero = x.new_zeros(1)
        return -torch.diff(torch.diff(torch.cat([zero, x, zero]))) / self.h

    @property
    def cost(self) -> Cost:
        return Cost(1.0 * 2**self.k, 3.0 * 2**self.k)

    def on(self, comm: Communicator) -> Poisson:
        return Poisson(comm, self.k, self.quartic)

    def sample(self, rows: Tensor) -> Poisson:
        return self

    def coarsen(self, how: Coarsening) -> tuple[Problem, Transfer]:
        assert how == Coarsening("grid", 2, linear=True)
        return Poisson(self.comm, self.k - 1, self.quartic), Interpolation()
