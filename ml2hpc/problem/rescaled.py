"""A problem in other units of its unknowns: the metric in which solvers measure steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.problem.interface import Linearization, LinearizedCost, Problem, Wrapped
from ml2hpc.problem.transfer import Coarsening, Scaled, Transfer
from ml2hpc.vec import VectorSpace


class Rescaled(Wrapped):
    """L as a function of D x: the gradient is D^-1 grad L, so that distances of D x are those of the metric D^2.

    Parameters
    ----------
    scale
        The diagonal of D, shape (n_local,).
    """

    def __init__(self, inner: Problem, scale: Tensor) -> None:
        super().__init__(inner)
        self.scale = scale

    def objective(self, x: Tensor) -> float:
        return self.inner.objective(x / self.scale)

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        value, gradient = self.inner.value_and_gradient(x / self.scale)
        return value, gradient / self.scale

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        return self.inner.hessian_action(x / self.scale, v / self.scale) / self.scale

    def linearize(self, x: Tensor) -> Linearization:
        return _Rescaled(self.inner.linearize(x / self.scale), self.space, self.scale)

    def terms(self, x: Tensor) -> dict[str, float]:
        return self.inner.terms(x / self.scale)

    def on(self, comm: Communicator) -> Rescaled:
        return Rescaled(self.inner.on(comm), self.scale)

    def sample(self, rows: Tensor) -> Rescaled:
        return Rescaled(self.inner.sample(rows), self.scale)

    def coarsen(self, how: Coarsening) -> tuple[Problem, Transfer]:
        coarse, transfer = self.inner.coarsen(how)
        scale = coarse.metric().sqrt()
        return Rescaled(coarse, scale), Scaled(transfer, scale, self.scale)

    def metric(self) -> Tensor:
        return self.inner.metric() / self.scale**2


class _Rescaled(Linearization):
    """D^-1 A D^-1."""

    def __init__(self, whole: Linearization, space: VectorSpace, scale: Tensor) -> None:
        self._whole, self._space, self._scale = whole, space, scale

    @property
    def cost(self) -> LinearizedCost:
        return self._whole.cost

    def action(self, v: Tensor) -> Tensor:
        return self._whole.action(v / self._scale) / self._scale

    def matrix(self) -> Tensor:
        scale = self._space.gather(self._scale)
        return self._whole.matrix() / torch.outer(scale, scale)
