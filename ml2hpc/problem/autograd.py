"""Engine `autograd`: nested reverse-mode differentiation, any module, any order. The oracle of the other engines.

Below a window, a `DenseNetwork` is differentiated once, by `freeze`. Around each point, with a displacement s of it,
what enters the window is then the Taylor polynomial

    y(s) = sum_a D^a y s^a / a!

over the derivatives a that are carried: the layers above, differentiated in s at 0, have the same derivatives. In other
modules, which need not be a stack of layers, the prefix is computed again each time.
"""

from __future__ import annotations

from collections import Counter
from math import factorial, prod

import torch
from torch import Tensor

from ml2hpc.problem.engine import Batch, Engine
from ml2hpc.problem.interface import Cost
from ml2hpc.problem.jet import Index, Operator, closure, derivatives, order
from ml2hpc.problem.network import DenseNetwork


class AutogradBatch(Batch):
    """Points with the Taylor coefficients of what enters the window, once frozen."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.below: list[tuple[Index, Tensor]] = []  # of the powers s^a, (width, n)


class AutogradEngine(Engine[AutogradBatch]):
    """Jets by differentiating the network with respect to its input coordinates, once per order."""

    _jets: Tensor
    _leaf: Tensor

    def batch(self, x: Tensor) -> AutogradBatch:
        return AutogradBatch(x)

    @property
    def _keeps_prefix(self) -> bool:
        return self.window.first > 0 and isinstance(self.network, DenseNetwork)

    def freeze(self, parameters: Tensor, batch: AutogradBatch) -> None:
        if not self._keeps_prefix:
            return
        combined = [index for i in self.indices if isinstance(i, Operator) for index, _ in i.terms]
        powers = [i for i in closure([*self.indices, *combined]) if not isinstance(i, Operator)]
        views = self.layout.views(parameters.detach())

        def prefix(x: Tensor) -> Tensor:
            y: Tensor = torch.func.functional_call(self.network, views, (self.features(x), 0, self.window.first))
            return y

        found = derivatives(prefix, batch.x, powers)
        batch.below = [(a, found[a].detach() / prod(map(factorial, Counter(a).values()))) for a in powers]

    def forward(self, parameters: Tensor, batch: AutogradBatch, *, reverse: bool) -> Tensor:
        w = self.window
        self._leaf = parameters[w.start : w.stop].clone().requires_grad_(reverse)
        full = torch.cat([parameters[: w.start], self._leaf, parameters[w.stop :]])
        self._jets = self.differentiable(full, batch)
        return self._jets.detach()

    def reverse(self, parameters: Tensor, batch: AutogradBatch, cotangent: Tensor, out: Tensor) -> None:
        (gradient,) = torch.autograd.grad(self._jets, self._leaf, cotangent, materialize_grads=True)
        out.copy_(gradient)

    def differentiable(self, parameters: Tensor, batch: AutogradBatch) -> Tensor:
        views = self.layout.views(parameters)

        def network(x: Tensor) -> Tensor:
            outputs: Tensor = torch.func.functional_call(self.network, views, self.features(x))
            return outputs

        def above(s: Tensor) -> Tensor:
            y = _polynomial(batch.below, s)
            outputs: Tensor = torch.func.functional_call(self.network, views, (y, self.window.first))
            return outputs

        if self._keeps_prefix:
            assert batch.below, "freeze comes first"
            found = derivatives(above, torch.zeros_like(batch.x), self.indices)
        else:
            found = derivatives(network, batch.x, self.indices)
        return torch.stack([found[i] for i in self.indices], 1)

    def cost(self) -> Cost:
        # Each order differentiates all that is there once more: about 2^order sweeps, half of them for the value.
        orders = [order(i) for i in self.indices]
        kept = self.layout.layers[self.window.first].start if self._keeps_prefix else 0
        below = 2.0 * (self.layout.n - kept) * 2 ** max(orders) * orders.count(max(orders))
        return Cost(objective=below, gradient=3.0 * below)


def _polynomial(coefficients: list[tuple[Index, Tensor]], s: Tensor) -> Tensor:
    """The sum of coefficients (width, n) times powers of s (d, n); a derivative's index names the power."""
    (_, total), *others = coefficients  # the value comes first
    for powers, coefficient in others:
        total = total + coefficient * s[list(powers)].prod(0)
    return total
