"""Engine `autograd`: nested reverse-mode differentiation, any module, any order. The oracle of the other engines."""

from __future__ import annotations

import torch
from torch import Tensor

from ml2hpc.problem.engine import Batch, Engine
from ml2hpc.problem.interface import Cost
from ml2hpc.problem.jet import derivatives, order


class AutogradEngine(Engine[Batch]):
    """Jets by differentiating the network with respect to its input coordinates, once per order."""

    _jets: Tensor
    _leaf: Tensor

    def batch(self, x: Tensor) -> Batch:
        return Batch(x)

    def forward(self, parameters: Tensor, batch: Batch, *, reverse: bool) -> Tensor:
        w = self.window
        self._leaf = parameters[w.start : w.stop].clone().requires_grad_(reverse)
        full = torch.cat([parameters[: w.start], self._leaf, parameters[w.stop :]])
        self._jets = self.differentiable(full, batch)
        return self._jets.detach()

    def reverse(self, parameters: Tensor, batch: Batch, cotangent: Tensor, out: Tensor) -> None:
        (gradient,) = torch.autograd.grad(self._jets, self._leaf, cotangent, materialize_grads=True)
        out.copy_(gradient)

    def differentiable(self, parameters: Tensor, batch: Batch) -> Tensor:
        views = self.layout.views(parameters)

        def network(x: Tensor) -> Tensor:
            outputs: Tensor = torch.func.functional_call(self.network, views, self.features(x))
            return outputs

        found = derivatives(network, batch.x, self.indices)
        return torch.stack([found[i] for i in self.indices], 1)

    def cost(self) -> Cost:
        # Each order differentiates all that is there once more: about 2^order sweeps, half of them for the value.
        orders = [order(i) for i in self.indices]
        below = 2.0 * self.layout.n * 2 ** max(orders) * orders.count(max(orders))
        return Cost(objective=below, gradient=3.0 * below)
