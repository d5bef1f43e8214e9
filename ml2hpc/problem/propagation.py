"""Propagation: engines that take samples through a residual network, and derivatives back.

An engine works on a window of layers first..last-1 of the opening layer, the blocks and the classification layer. What
lies below the window is computed once (`freeze`); gradients are formed for the window only. `Unrolled` is plain torch,
for images, GPUs and second derivatives, and the oracle of compiled engines.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d

from ml2hpc.problem.classification import LOSSES, count_correct
from ml2hpc.problem.control import Architecture
from ml2hpc.problem.interface import Cost

_Layer = tuple[Tensor, Tensor]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda z: z}


@dataclass
class Batch:
    """Samples as an engine takes them.

    Attributes
    ----------
    x
        Shape (features, n), or (n, channels, height, width) of images.
    targets
        One-hot, shape (classes, n).
    weight
        Shares of the mean, shape (n,).
    below
        What enters the window, (1 or 2, *state), once frozen: y, and z of Verlet's scheme.
    """

    x: Tensor
    targets: Tensor
    weight: Tensor
    below: Tensor | None = None


class Propagation(ABC):
    """Logits of a batch, their loss and its derivatives in the window's parameters. Not collective.

    Parameters
    ----------
    loss
        A name in `classification.LOSSES`.
    first, last
        The window; parameters are always the whole flat vector, gradients and directions the window's part.
    """

    def __init__(
        self, architecture: Architecture, loss: str, dtype: torch.dtype, first: int = 0, last: int | None = None
    ) -> None:
        layers = architecture.layer_slices
        self.architecture = architecture
        self.loss_name = loss
        self.dtype = dtype
        self.first, self.last = first, len(layers) if last is None else last
        self.window = slice(layers[self.first].start, layers[self.last - 1].stop)
        self.description = "torch"

    @abstractmethod
    def batch(self, x: Tensor, labels: Tensor, weight: float) -> Batch:
        """Return samples (n, *inputs) with labels (n,), each of the given weight, ready for this engine."""

    @abstractmethod
    def freeze(self, parameters: Tensor, batch: Batch) -> None:
        """Compute what enters the window."""

    @abstractmethod
    def loss(self, parameters: Tensor, batch: Batch, out: Tensor) -> None:
        """Write the loss and the number of samples classified correctly over `out`, shape (2,)."""

    @abstractmethod
    def loss_and_gradient(self, parameters: Tensor, batch: Batch, out: Tensor) -> None:
        """Write the gradient over the window, then loss and number of correct samples, over `out`."""

    @abstractmethod
    def logits(self, parameters: Tensor, batch: Batch) -> Tensor:
        """Return the logits, shape (classes, n)."""

    @abstractmethod
    def hessian_action(self, parameters: Tensor, v: Tensor, batch: Batch, out: Tensor) -> None:
        """Write the Hessian over the window times v over `out`."""

    @abstractmethod
    def gauss_newton_action(self, parameters: Tensor, v: Tensor, batch: Batch, out: Tensor) -> None:
        """Write J' H J v over `out`: J are the logits' derivatives, H is the loss's Hessian in the logits."""

    @abstractmethod
    def gauss_newton_root(self, parameters: Tensor, batch: Batch) -> Tensor:
        """Return B with B B' = J' H J, shape (window, classes * n)."""

    def cost(self) -> Cost:
        """Return the operations of one sample."""
        return self.architecture.cost(self.first, self.last)


class Unrolled(Propagation):
    """The network as torch operations, one after the other, differentiated by autograd."""

    def batch(self, x: Tensor, labels: Tensor, weight: float) -> Batch:
        a = self.architecture
        n = len(x)
        shaped = x.reshape(n, *a.inputs) if a.layers == "conv" else x.reshape(n, -1).T.contiguous()
        targets = torch.zeros(a.classes, n, dtype=self.dtype, device=x.device)
        targets[labels.to(x.device), torch.arange(n, device=x.device)] = 1.0
        return Batch(shaped.to(self.dtype), targets, x.new_full((n,), weight, dtype=self.dtype))

    def freeze(self, parameters: Tensor, batch: Batch) -> None:
        if self.first > 0:
            with torch.no_grad():
                below, _ = self._layers(parameters[self.window], parameters, self.first)
                batch.below = self._through(below[1:], self._enter(below[0], batch.x))

    def loss(self, parameters: Tensor, batch: Batch, out: Tensor) -> None:
        with torch.no_grad():
            z = self.logits(parameters, batch)
            out[0] = self._loss(z, batch)
            out[1] = count_correct(z, batch.targets)

    def loss_and_gradient(self, parameters: Tensor, batch: Batch, out: Tensor) -> None:
        leaf = self._leaf(parameters)
        z = self._logits(leaf, parameters, batch)
        loss = self._loss(z, batch)
        (out[:-2],) = torch.autograd.grad(loss, leaf)
        out[-2] = loss.detach()
        out[-1] = count_correct(z.detach(), batch.targets)

    def logits(self, parameters: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            return self._logits(parameters[self.window], parameters, batch)

    def hessian_action(self, parameters: Tensor, v: Tensor, batch: Batch, out: Tensor) -> None:
        leaf = self._leaf(parameters)
        loss = self._loss(self._logits(leaf, parameters, batch), batch)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (action,) = torch.autograd.grad(gradient, leaf, v)
        out.copy_(action)

    def gauss_newton_action(self, parameters: Tensor, v: Tensor, batch: Batch, out: Tensor) -> None:
        leaf = self._leaf(parameters)
        z = self._logits(leaf, parameters, batch)
        # J v is the derivative of <J' u, v> in u.
        u = torch.zeros_like(z, requires_grad=True)
        (pulled,) = torch.autograd.grad(z, leaf, u, create_graph=True)
        (z_dot,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
        curved = LOSSES[self.loss_name].curvature(z.detach(), z_dot, batch.weight)
        (action,) = torch.autograd.grad(z, leaf, curved)
        out.copy_(action)

    def gauss_newton_root(self, parameters: Tensor, batch: Batch) -> Tensor:
        # Where samples are counted, in x and in the state, which has a first axis for y and z.
        axis, below_axis = (0, 1) if self.architecture.layers == "conv" else (1, 2)

        def single(leaf: Tensor, x: Tensor, below: Tensor | None) -> Tensor:
            state = None if below is None else below.unsqueeze(below_axis)
            return self._logits(leaf, parameters, replace(batch, x=x.unsqueeze(axis), below=state))[:, 0]

        dims = (None, axis, None if batch.below is None else below_axis)
        jacobian = torch.func.vmap(torch.func.jacrev(single), in_dims=dims)
        rows = jacobian(parameters[self.window].detach(), batch.x, batch.below)  # (n, classes, window)
        root = LOSSES[self.loss_name].root(self.logits(parameters, batch), rows.permute(2, 1, 0), batch.weight)
        return root.reshape(len(root), -1)

    # ------------------------------------------------------------------------------------------------------------

    def _leaf(self, parameters: Tensor) -> Tensor:
        return parameters[self.window].detach().clone().requires_grad_()

    def _loss(self, z: Tensor, batch: Batch) -> Tensor:
        return LOSSES[self.loss_name].value(z, batch.targets, batch.weight)

    def _logits(self, leaf: Tensor, parameters: Tensor, batch: Batch) -> Tensor:
        _, above = self._layers(leaf, parameters, self.first)
        state = batch.below
        if self.first == 0:
            state = self._enter(above[0], batch.x)
        assert state is not None, "freeze comes first"
        state = self._through(above[1:-1] if self.first == 0 else above[:-1], state)
        weight, bias = above[-1]
        y = state[0]
        if self.architecture.layers == "conv":
            y = y.mean((2, 3)).T  # the means of the channels
        return torch.addmm(bias[:, None], weight, y)

    def _layers(self, leaf: Tensor, parameters: Tensor, first: int) -> tuple[list[_Layer], list[_Layer]]:
        """Split the network below layer `first` and from it on: matrix and bias of each, the window's of the leaf."""
        a, w = self.architecture, self.window
        whole = torch.cat([parameters[: w.start].detach(), leaf, parameters[w.stop :].detach()])
        opening, blocks, last = (whole[s] for s in a.groups.values())
        shape = a.block_shapes[0]
        rows, n = blocks.view(a.blocks, -1), math.prod(shape)
        # Unbound at once: the reverse of a slice of the whole writes a whole vector.
        stack = list(zip(rows[:, :n].reshape(-1, *shape).unbind(), rows[:, n:].unbind(), strict=True))
        found = [_affine(opening, a.opening_shapes), *stack, _affine(last, a.classification_shapes)]
        return found[:first], found[first:]

    def _enter(self, opening: _Layer, x: Tensor) -> Tensor:
        """Return y_0, with z_0 = 0 of Verlet's scheme, stacked."""
        y = _ACTIVATIONS[self.architecture.opening](self._apply(opening, x))
        return torch.stack([y, torch.zeros_like(y)] if self.architecture.scheme == "verlet" else [y])

    def _through(self, layers: Sequence[_Layer], state: Tensor) -> Tensor:
        """Take the state through blocks."""
        a, sigma = self.architecture, _ACTIVATIONS[self.architecture.activation]
        if a.scheme == "euler":
            y = state[0]
            for layer in layers:
                y = y + a.step * sigma(self._apply(layer, y))
            return y[None]
        y, z = state
        for layer in layers:
            z = z - a.step * sigma(self._apply(layer, y, transposed=True))
            y = y + a.step * sigma(self._apply(layer, z))
        return torch.stack([y, z])

    def _apply(self, layer: _Layer, y: Tensor, *, transposed: bool = False) -> Tensor:
        """Return K y + b, or K' y + b."""
        weight, bias = layer
        if self.architecture.layers == "conv":
            return (conv_transpose2d if transposed else conv2d)(y, weight, bias, padding=1)
        return torch.addmm(bias[:, None], weight.T if transposed else weight, y)


def _affine(part: Tensor, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> _Layer:
    n = part.numel() - shapes[1][0]
    return part[:n].view(shapes[0]), part[n:]
