"""The derivative engine's interface: jets of a network at a batch of points, and the reverse pass.

An engine knows the network and nothing of equations. A loss on jets is ordinary torch code above it: `forward` hands
out the jets, the caller differentiates its loss with respect to them, `reverse` turns that cotangent into a gradient.

An engine is made for a `Window` of consecutive layers. What lies below the window depends on frozen parameters only:
`freeze` may compute it once, and no cotangent is propagated below the window. Layers above get no weight gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.interface import Cost
from ml2hpc.problem.jet import Carried, closure, derivatives, order
from ml2hpc.problem.network import DenseNetwork
from ml2hpc.problem.plan import HIGHEST_ORDER
from ml2hpc.vec import Layout

Features = Callable[[Tensor], Tensor]
"""Maps coordinates (d, n) to network inputs (features, n)."""


@dataclass(frozen=True)
class Window:
    """Layers first..last-1 of a network, whose parameters are start..stop-1 of the flat vector."""

    first: int
    last: int
    start: int
    stop: int

    @classmethod
    def of(cls, layout: Layout, first: int, last: int) -> Window:
        """Return the window of layers first..last-1."""
        return cls(first, last, layout.layers[first].start, layout.layers[last - 1].stop)


class Batch:
    """Points of one chunk with what an engine keeps for them; engines subclass it."""

    def __init__(self, x: Tensor) -> None:
        self.x = x  # (d, n)


B = TypeVar("B", bound=Batch)


class Engine(ABC, Generic[B]):
    """Jets of one network, for the derivatives `indices` and one window.

    Parameters
    ----------
    network
        Maps (features, n) to (outputs, n).
    layout
        Places its parameters in the flat vector x, shape (n_parameters,).
    features
        Input features of coordinates.
    indices
        Derivatives wanted; the closure is carried. `self.indices` is the order along the jet axis.
    window
        Which layers are varied; all of them by default.

    Raises
    ------
    UnsupportedError
        If the engine cannot carry these derivatives or this network.
    """

    def __init__(
        self,
        network: nn.Module,
        layout: Layout,
        features: Features,
        indices: tuple[Carried, ...],
        window: Window | None = None,
    ) -> None:
        self.network = network
        self.layout = layout
        self.features = features
        self.indices = closure(indices)
        self.window = window or Window.of(layout, 0, len(layout.layers))

    @abstractmethod
    def batch(self, x: Tensor) -> B:
        """Prepare the points x, shape (d, n)."""

    def freeze(self, parameters: Tensor, batch: B) -> None:
        """Take the parameters below the window as fixed, until the next call. Engines may keep what follows."""

    @abstractmethod
    def forward(self, parameters: Tensor, batch: B, *, reverse: bool) -> Tensor:
        """Return the jets, shape (outputs, jets, n); valid until the next call.

        With `reverse`, what the reverse pass needs is kept; only one batch is under way at a time.
        """

    @abstractmethod
    def reverse(self, parameters: Tensor, batch: B, cotangent: Tensor, out: Tensor) -> None:
        """Write the gradient of <cotangent, jets> over `out`, shape (window.stop - window.start,).

        The jets are those of the latest `forward`, which had the same arguments.
        """

    @abstractmethod
    def differentiable(self, parameters: Tensor, batch: B) -> Tensor:
        """Return the jets, shape (outputs, jets, n), as a graph on the window's parameters for higher derivatives."""

    def tangent(self, parameters: Tensor, direction: Tensor, batch: B) -> Tensor:
        """Return the jets' derivative along a direction of the window's parameters: J v.

        Parameters
        ----------
        direction
            v, shape (window.stop - window.start,).

        Returns
        -------
        Tensor
            Shape (outputs, jets, n); valid until the next call. Needs no `forward`, and spoils the latest one.
        """
        leaf, jets = self.graph(parameters, batch)
        dual = torch.zeros_like(jets, requires_grad=True)
        (pulled,) = torch.autograd.grad(jets, leaf, dual, create_graph=True, materialize_grads=True)
        (pushed,) = torch.autograd.grad(pulled, dual, direction, materialize_grads=True)
        return pushed

    def reverse_tangent(
        self,
        parameters: Tensor,
        direction: Tensor,
        batch: B,
        cotangent: Tensor,
        cotangent_tangent: Tensor,
        out: Tensor,
    ) -> None:
        """Write the derivative of the reverse pass along a direction over `out`: J' dc + (dJ)' c, a Hessian's action.

        The latest call was `tangent` with the same arguments. Shapes as in `reverse`.
        """
        leaf, jets = self.graph(parameters, batch)
        (gradient,) = torch.autograd.grad(jets, leaf, cotangent, create_graph=True, materialize_grads=True)
        out.zero_()
        if gradient.requires_grad:
            (bent,) = torch.autograd.grad(gradient, leaf, direction, retain_graph=True, materialize_grads=True)
            out += bent
        (pulled,) = torch.autograd.grad(jets, leaf, cotangent_tangent, materialize_grads=True)
        out += pulled

    def rows(self, parameters: Tensor, batch: B, cotangent: Tensor, out: Tensor) -> None:
        """Write the gradient of <cotangent, jets> point by point: a Jacobian of residuals, transposed.

        Parameters
        ----------
        cotangent
            Shape (outputs, jets, n).
        out
            Shape (window.stop - window.start, n): column p is the gradient of what point p contributes.

        The jets are those of the latest `forward`, which had the same arguments and `reverse`.
        """
        leaf, jets = self.graph(parameters, batch)
        parts = (cotangent * jets).sum((0, 1))
        for p, part in enumerate(parts.unbind()):
            (gradient,) = torch.autograd.grad(part, leaf, retain_graph=True, materialize_grads=True)
            out[:, p] = gradient

    def graph(self, parameters: Tensor, batch: B) -> tuple[Tensor, Tensor]:
        """The window's parameters as a leaf, and the jets as a function of it."""
        w = self.window
        with torch.enable_grad():
            leaf = parameters[w.start : w.stop].detach().clone().requires_grad_()
            whole = torch.cat([parameters[: w.start], leaf, parameters[w.stop :]])
            return leaf, self.differentiable(whole, batch)

    @abstractmethod
    def cost(self) -> Cost:
        """Return the operations per point, for counting work."""

    def feature_jets(self, x: Tensor) -> Tensor:
        """Return the input features' jets, shape (features, jets, n)."""
        found = derivatives(self.features, x, self.indices)
        return torch.stack([found[i].detach() for i in self.indices], 1)


class DenseEngine(Engine[B]):
    """An engine that knows a `DenseNetwork` from inside, up to the highest order of the tests and kernels.

    Attributes
    ----------
    name
        What -pinn_engine calls it.
    """

    name: ClassVar[str]
    network: DenseNetwork

    def __init__(
        self,
        network: nn.Module,
        layout: Layout,
        features: Features,
        indices: tuple[Carried, ...],
        window: Window | None = None,
    ) -> None:
        super().__init__(network, layout, features, indices, window)
        if not isinstance(network, DenseNetwork):
            raise UnsupportedError(f"the {self.name} engine propagates dense networks only; use -pinn_engine autograd")
        if max(map(order, self.indices)) > HIGHEST_ORDER:
            raise UnsupportedError(
                f"the {self.name} engine carries derivatives up to order {HIGHEST_ORDER}; use -pinn_engine autograd"
            )
        self._set_up()

    @abstractmethod
    def _set_up(self) -> None:
        """Make what does not depend on parameters and points; the network and the derivatives are fit."""
