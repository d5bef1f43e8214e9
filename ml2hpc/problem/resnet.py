"""Training residual networks: the mean loss over samples, dealt to the ranks, with Tikhonov regularisation.

    L(theta) = 1/n sum_i l(network(x_i; theta), c_i) + beta/2 (|theta_Q|^2 + scaling |theta_blocks|^2)

theta_Q are the opening and the classification layer. On a level with c times fewer blocks than the finest, scaling is
c: then both sums over the blocks approximate beta / dt times the same integral over [0, T].

The samples are cut into chunks. Chunks, not ranks, are what is summed (`TreeSum`), so L and its gradient have the same
bits on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.comm import Communicator
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.control import Architecture
from ml2hpc.problem.interface import Block, Cost, Linearization, LinearizedCost, Problem, Restriction
from ml2hpc.problem.propagation import Batch, Propagation, Unrolled
from ml2hpc.problem.sweep import Sweep
from ml2hpc.problem.transfer import Coarsening, Depth, Part, Transfer, Width, width
from ml2hpc.vec import CPU, Replicated, TreeSum

PROPAGATIONS: dict[str, type[Propagation]] = {"compiled": Sweep, "torch": Unrolled}
FASTEST: Literal["compiled", "torch"] = "compiled" if kernels.built() else "torch"


@dataclass(frozen=True)
class Samples:
    """Samples with their classes, known to every rank.

    Attributes
    ----------
    x
        Shape (n, *inputs).
    labels
        Shape (n,), int64, in 0..classes-1.
    """

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: Tensor | slice) -> Samples:
        """Return some of them. Not collective."""
        return Samples(self.x[rows], self.labels[rows])


@dataclass(frozen=True)
class ResNetModel:
    """What the loss is made of apart from samples.

    Attributes
    ----------
    engine_name
        In `PROPAGATIONS`.
    loss
        In `classification.LOSSES`.
    beta
        Of the regularisation.
    scaling
        Of the blocks' part of it: the number of blocks on the finest level over that here; T over the number here for
        an integral over [0, T].
    chunk
        Samples evaluated at a time.
    """

    architecture: Architecture
    engine_name: str
    dtype: torch.dtype
    loss: str = "cross_entropy"
    beta: float = 0.0
    scaling: float = 1.0
    chunk: int = 1024
    device: torch.device = CPU

    def engine(self, first: int = 0, last: int | None = None) -> Propagation:
        """Return the engine for a window of layers, made once: mini-batches are many. Not collective."""
        if (first, last) not in self._engines:
            kind = PROPAGATIONS[self.engine_name]
            self._engines[first, last] = kind(self.architecture, self.loss, self.dtype, first, last)
        return self._engines[first, last]

    @cached_property
    def _engines(self) -> dict[tuple[int, int | None], Propagation]:
        return {}

    @cached_property
    def penalty(self) -> Tensor:
        """The diagonal of the regularisation's Hessian, shape (n,)."""
        diagonal = torch.full((self.architecture.n,), self.beta, dtype=self.dtype, device=self.device)
        diagonal[self.architecture.groups["blocks"]] *= self.scaling
        return diagonal

    def regularization(self, x: Tensor) -> float:
        """Return its value at x, shape (n,). Not collective."""
        return 0.5 * float(torch.dot(self.penalty, x * x)) if self.beta else 0.0

    def narrow(self, factor: int) -> ResNetModel:
        """Return the model with fewer neurons in each block. Not collective.

        Raises
        ------
        UnsupportedError
            If blocks have one neuron, or the scheme is not forward Euler.
        """
        architecture = self.architecture
        if architecture.scheme != "euler":
            raise UnsupportedError(
                f"-resnet_scheme {architecture.scheme}: K' y is no narrower layer; use euler or depth"
            )
        if architecture.width == 1:
            raise UnsupportedError("blocks of one neuron cannot be coarsened in width: use fewer levels")
        return replace(self, architecture=replace(architecture, width=width(architecture.width, factor)))

    def coarsen(self, factor: int) -> ResNetModel:
        """Return the model with fewer blocks, its regularisation scaled. Not collective."""
        if factor not in self._coarser:
            architecture = self.architecture.coarsen(factor)
            self._coarser[factor] = replace(self, architecture=architecture, scaling=factor * self.scaling)
        return self._coarser[factor]

    @cached_property
    def _coarser(self) -> dict[int, ResNetModel]:
        """Coarse models, made once: with mini-batches, hierarchies are made anew in every iteration."""
        return {}


class _Deal:
    """Samples cut into chunks and dealt to the ranks, each chunk made ready for engines once.

    That depends on no layer: all levels of a network, and all blocks of its layers, share it. Not collective.
    """

    def __init__(self, comm: Communicator, chunk: int, samples: Samples) -> None:
        n = len(samples)
        pieces = math.ceil(n / chunk)
        self._cuts = [slice(k * n // pieces, (k + 1) * n // pieces) for k in range(pieces)]
        self._samples = samples
        self._comm = comm
        self._batches: dict[int, Batch] = {}

    def sum(self) -> TreeSum:
        """Return a new sum over the chunks."""
        return TreeSum(self._comm, [float(s.stop - s.start) for s in self._cuts])

    def batches(self, parts: Sequence[int], engine: Propagation, device: torch.device) -> dict[int, Batch]:
        """Return chunks for an engine, which may keep what enters its window with them."""
        for i in parts:
            if i not in self._batches:
                part = self._samples.part(self._cuts[i])
                x, labels = part.x.to(device), part.labels.to(device)
                self._batches[i] = engine.batch(x, labels, 1.0 / len(self._samples))
        return {i: replace(self._batches[i]) for i in parts}


class _Evaluation:
    """Sums over chunks of samples for one window of layers. Collective calls only, except where said."""

    def __init__(self, model: ResNetModel, deal: _Deal, first: int, last: int) -> None:
        self.engine = model.engine(first, last)
        self.window = self.engine.window
        self._model = model
        self._sum = deal.sum()
        self._batches = deal.batches(self._sum.parts, self.engine, model.device)

    def freeze(self, parameters: Tensor) -> None:
        """Take the layers below the window as fixed. Not collective."""
        for batch in self._batches.values():
            self.engine.freeze(parameters, batch)

    def loss(self, parameters: Tensor) -> tuple[float, float]:
        """Return the mean loss and the number of samples classified correctly."""
        found = self._over(lambda batch, out: self.engine.loss(parameters, batch, out), 2)
        return float(found[0]), float(found[1])

    def loss_and_gradient(self, parameters: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss and its gradient over the window."""
        n = self.window.stop - self.window.start
        found = self._over(lambda batch, out: self.engine.loss_and_gradient(parameters, batch, out), n + 2)
        return float(found[n]), found[:n]

    def hessian_action(self, parameters: Tensor, v: Tensor) -> Tensor:
        """Return the Hessian over the window times v."""
        return self._over(lambda batch, out: self.engine.hessian_action(parameters, v, batch, out), len(v))

    def gauss_newton_action(self, parameters: Tensor, v: Tensor) -> Tensor:
        """Return the Gauss-Newton matrix over the window times v."""
        return self._over(lambda batch, out: self.engine.gauss_newton_action(parameters, v, batch, out), len(v))

    def gauss_newton_matrix(self, parameters: Tensor, inside: slice | Tensor) -> Tensor:
        """Return the rows and columns `inside` of the Gauss-Newton matrix."""

        def square(batch: Batch, out: Tensor) -> None:
            root = self.engine.gauss_newton_root(parameters, batch)[inside]
            torch.mm(root, root.T, out=out.view(len(root), len(root)))

        n = Block(inside, "").n
        whole = self._over(square, n * n).view(n, n)
        return whole.tril() + whole.tril(-1).T  # symmetric to the last bit

    def _over(self, part: Callable[[Batch, Tensor], None], length: int) -> Tensor:
        model = self._model
        return self._sum(lambda i, out: part(self._batches[i], out), length, model.dtype, model.device)


class _ResNetLinearization(Linearization):
    """The logits linearised at x, under the loss's own Hessian: the generalised Gauss-Newton matrix J' H J.

    Of a sum of squares that is the Gauss-Newton matrix; of cross-entropy, Fisher's.
    """

    def __init__(self, evaluation: _Evaluation, x: Tensor, inside: slice | Tensor, penalty: Tensor, n: int) -> None:
        self._evaluation, self._x, self._inside = evaluation, x.clone(), inside
        self._penalty = penalty  # inside
        self._n = n

    def action(self, v: Tensor) -> Tensor:
        window = self._evaluation.window
        direction = v.new_zeros(window.stop - window.start)
        direction[self._inside] = v
        action = self._evaluation.gauss_newton_action(self._x, direction)[self._inside]
        return action + self._penalty * v

    def matrix(self) -> Tensor:
        found = self._evaluation.gauss_newton_matrix(self._x, self._inside)
        found.diagonal().add_(self._penalty)
        return found

    @cached_property
    def cost(self) -> LinearizedCost:
        one = self._evaluation.engine.cost()
        classes, n = self._evaluation.engine.architecture.classes, Block(self._inside, "").n
        # Forward with derivative, then a gradient; of the matrix one reverse pass a class, and the products.
        return LinearizedCost(
            self._n * (one.objective + one.gradient), self._n * classes * (one.gradient + 1.0 * n * n)
        )


class ResNetProblem(Problem):
    """The loss of a residual network as a function of its parameters.

    Parameters
    ----------
    comm
        The ranks that share the samples. Collective.
    samples
        At least one, on every rank.
    deal
        The same samples, as another level has dealt them.
    """

    def __init__(self, comm: Communicator, model: ResNetModel, data: Samples, *, deal: _Deal | None = None) -> None:
        assert len(data) > 0, "an empty sample"
        self.comm = comm
        self.model = model
        self.data = data
        self.space = Replicated(model.architecture.n, model.dtype, model.device)
        self.samples = len(data)
        self.layers = model.architecture.layer_slices
        self.tensors = model.architecture.tensor_slices
        self.deal = deal or _Deal(comm, model.chunk, data)

    @cached_property
    def _evaluation(self) -> _Evaluation:
        return _Evaluation(self.model, self.deal, 0, len(self.layers))

    @cached_property
    def cost(self) -> Cost:
        return self._of_all(self.model.architecture.cost())

    def _of_all(self, one: Cost) -> Cost:
        return Cost(self.samples * one.objective, self.samples * one.gradient)

    def objective(self, x: Tensor) -> float:
        return self._evaluation.loss(x)[0] + self.model.regularization(x)

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        loss, gradient = self._evaluation.loss_and_gradient(x)
        if self.model.beta:
            gradient = gradient + self.model.penalty * x
        return loss + self.model.regularization(x), gradient

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        return self._evaluation.hessian_action(x, v) + self.model.penalty * v

    def linearize(self, x: Tensor) -> Linearization:
        """Return L with the logits linearised at x: the generalised Gauss-Newton matrix. Collective."""
        return _ResNetLinearization(self._evaluation, x, slice(0, self.space.n), self.model.penalty, self.samples)

    def loss_and_accuracy(self, x: Tensor) -> tuple[float, float]:
        """Return the mean loss without regularisation and the share of samples classified correctly. Collective."""
        loss, correct = self._evaluation.loss(x)
        return loss, correct / self.samples

    def terms(self, x: Tensor) -> dict[str, float]:
        loss = self._evaluation.loss(x)[0]
        return {"loss": loss, "regularization": self.model.regularization(x)} if self.model.beta else {"loss": loss}

    def block_cost(self, block: Block) -> Cost:
        return self._of_all(self.model.architecture.cost(*self.window(block)))

    def window(self, block: Block) -> tuple[int, int]:
        """Return first and last of the layers first..last-1 that a block of the unknowns touches. Not collective."""
        low, high = block.bounds()
        touched = [k for k, s in enumerate(self.layers) if s.start < high and s.stop > low]
        return touched[0], touched[-1] + 1

    def view(self) -> list[str]:
        model = self.model
        where = "" if model.device.type == "cpu" else f" on {model.device}"
        scaled = f", {model.scaling:g} times that of the blocks" if model.scaling != 1 else ""
        return [
            f"network {model.architecture.view()}",
            f"engine {self._evaluation.engine.description}{where}, chunks of {model.chunk} samples",
            f"{self.samples} samples, {model.loss}, beta {model.beta:g}{scaled}",
        ]

    def on(self, comm: Communicator) -> ResNetProblem:
        return ResNetProblem(comm, self.model, self.data)

    def sample(self, rows: Tensor) -> ResNetProblem:
        """Return L over some of the samples: their own mean, and the same regularisation."""
        return ResNetProblem(self.comm, self.model, self.data.part(rows.to(self.data.labels.device)))

    def restrict(self, block: Block) -> ResNetRestriction:
        return ResNetRestriction(self, block)

    def coarsen(self, how: Coarsening) -> tuple[Problem, Transfer]:
        """Return the problem with fewer blocks, neurons or samples, and the transfer. Not collective.

        Raises
        ------
        UnsupportedError
            If the number of blocks is no multiple of the factor.
        """
        if how.kind not in ("depth", "width"):
            return super().coarsen(how)
        model = self.model.coarsen(how.factor) if how.kind == "depth" else self.model.narrow(how.factor)
        coarse = ResNetProblem(self.comm, model, self.data, deal=self.deal)
        return coarse, self._transfer(how, model.architecture)

    def _transfer(self, how: Coarsening, coarse: Architecture) -> Transfer:
        fine, space = self.model.architecture, self.space
        if how.kind == "depth":
            return Depth(fine.groups["blocks"], coarse.blocks, how, space.dtype, space.device)
        parts = [Part(fine.opening_shapes[0], True, False), Part(fine.opening_shapes[1], True, False)]
        parts += [Part(fine.block_shapes[0], True, True), Part(fine.block_shapes[1], True, False)] * fine.blocks
        parts += [Part(fine.classification_shapes[0], False, True), Part(fine.classification_shapes[1], False, False)]
        return Width(parts, how, space.dtype, space.device)

    def metric(self) -> Tensor:
        """Return dt for the blocks' parameters, which are functions on [0, T], and 1 for the others. Not collective."""
        architecture = self.model.architecture
        weights = torch.ones_like(self.space.zeros())
        weights[architecture.groups["blocks"]] = architecture.step
        return weights


class ResNetRestriction(Restriction):
    """The loss over a block of the parameters: frozen prefix below, no weight gradients outside its layers."""

    parent: ResNetProblem

    def __init__(self, parent: ResNetProblem, block: Block) -> None:
        super().__init__(parent, block)
        self._evaluation = _Evaluation(parent.model, parent.deal, *parent.window(block))
        indices, shift = block.indices, self._evaluation.window.start
        self._inside = (
            slice(indices.start - shift, indices.stop - shift) if isinstance(indices, slice) else indices - shift
        )

    @cached_property
    def cost(self) -> Cost:
        return self.parent.block_cost(self.block)

    @cached_property
    def _penalty(self) -> Tensor:
        return self.parent.model.penalty[self.block.indices]

    def rebase(self, x: Tensor) -> Tensor:
        start = super().rebase(x)
        self._evaluation.freeze(self._full)
        return start

    def objective(self, x: Tensor) -> float:
        whole = self.embed(x)
        return self._evaluation.loss(whole)[0] + self.parent.model.regularization(whole)

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        whole = self.embed(x)
        loss, gradient = self._evaluation.loss_and_gradient(whole)
        return loss + self.parent.model.regularization(whole), gradient[self._inside] + self._penalty * x

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        window = self._evaluation.window
        direction = v.new_zeros(window.stop - window.start)
        direction[self._inside] = v
        return self._evaluation.hessian_action(self.embed(x), direction)[self._inside] + self._penalty * v

    def linearize(self, x: Tensor) -> Linearization:
        return _ResNetLinearization(self._evaluation, self.embed(x), self._inside, self._penalty, self.parent.samples)

    def terms(self, x: Tensor) -> dict[str, float]:
        whole = self.embed(x)
        found = {"loss": self._evaluation.loss(whole)[0]}
        return found | ({"regularization": self.parent.model.regularization(whole)} if self.parent.model.beta else {})
