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
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ml2hpc.problem.interface import Cost
from ml2hpc.problem.jet import Index, closure, derivatives
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
        indices: tuple[Index, ...],
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

    @abstractmethod
    def cost(self) -> Cost:
        """Return the operations per point, for counting work."""

    def feature_jets(self, x: Tensor) -> Tensor:
        """Return the input features' jets, shape (features, jets, n)."""
        found = derivatives(self.features, x, self.indices)
        return torch.stack([found[i].detach() for i in self.indices], 1)
