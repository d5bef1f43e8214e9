"""A problem on the span of a few directions: a -> L(x + sum_k a_k d_k). Subspace minimisation is solving it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.engine import Cost
from ml2hpc.problem.interface import Problem
from ml2hpc.vec import Replicated


class Span(Problem):
    """L over the coefficients of directions d_k, shape (k, n_local)."""

    def __init__(self, parent: Problem, x: Tensor, directions: Sequence[Tensor]) -> None:
        self.parent = parent
        self.x = x
        self.directions = torch.stack(list(directions))
        self.comm = parent.comm
        self.space = Replicated(len(self.directions), x.dtype)
        self.samples = parent.samples
        self.layers = self.tensors = (slice(0, len(self.directions)),)

    def at(self, a: Tensor) -> Tensor:
        """Return x + sum_k a_k d_k, shape (n_local,). Not collective."""
        return torch.addmv(self.x, self.directions.T, a)

    def project(self, g: Tensor) -> Tensor:
        """Return the derivatives along the directions, shape (k,), from a gradient (n_local,). Collective."""
        return self.parent.space.mdot(self.directions, g)

    def objective(self, x: Tensor) -> float:
        return self.parent.objective(self.at(x))

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        value, gradient = self.parent.value_and_gradient(self.at(x))
        return value, self.project(gradient)

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        return self.project(self.parent.hessian_action(self.at(x), self.directions.T @ v))

    @property
    def cost(self) -> Cost:
        return self.parent.cost

    def on(self, comm: Communicator) -> Problem:
        raise UnsupportedError("a span lives where its directions are")

    def sample(self, rows: Tensor) -> Span:
        return Span(self.parent.sample(rows), self.x, list(self.directions))
