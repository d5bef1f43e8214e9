"""PINN problems: L(x) = sum over terms of factor * sum of squared residuals, over points dealt to the ranks.

The points are cut into chunks that fit the cache. Chunks, not ranks, are what is summed (`TreeSum`), so L and its
gradient have the same bits on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ml2hpc.comm import Communicator
from ml2hpc.problem import guard
from ml2hpc.problem.ansatz import Term, Trial, residuals
from ml2hpc.problem.autograd import AutogradEngine
from ml2hpc.problem.engine import Batch, Engine, Window
from ml2hpc.problem.interface import Block, Cost, Problem, Restriction, slices
from ml2hpc.problem.jet import Index, Points
from ml2hpc.problem.jets import JetsEngine
from ml2hpc.problem.pde import PDE
from ml2hpc.vec import Layout, Replicated, TreeSum

ENGINES: dict[str, type[Engine[Any]]] = {"jets": JetsEngine, "autograd": AutogradEngine}


@dataclass
class _Chunk:
    """Consecutive points of one term with what is kept for them."""

    number: int
    name: str  # of the term, with the equation's class
    term: Term
    engine: Engine[Any]
    batch: Batch
    trial: Trial
    points: Points


class _Evaluation:
    """Sums over the chunks of some terms for one window of layers. Collective calls only, except where said."""

    def __init__(self, comm: Communicator, model: Model, terms: Sequence[Term], window: Window) -> None:
        self.window = window
        self._model = model
        self._terms = terms
        self._engines: dict[tuple[Index, ...], Engine[Any]] = {}
        self._pieces: list[tuple[int, slice]] = []
        costs: list[float] = []
        cost = [self._engine(t.indices).cost() for t in terms]
        for number, term in enumerate(terms):
            pieces = math.ceil(term.n / model.chunk)
            for k in range(pieces):
                rows = slice(k * term.n // pieces, (k + 1) * term.n // pieces)
                self._pieces.append((number, rows))
                costs.append(cost[number].gradient * (rows.stop - rows.start))
        points = [t.all_points().shape[1] for t in terms]
        self.cost = Cost(
            sum(c.objective * n for c, n in zip(cost, points, strict=True)),
            sum(c.gradient * n for c, n in zip(cost, points, strict=True)),
        )
        self._sum = TreeSum(comm, costs)
        self._chunks = {i: self._chunk(i) for i in self._sum.parts}

    def _engine(self, indices: tuple[Index, ...]) -> Engine[Any]:
        if indices not in self._engines:
            self._engines[indices] = self._model.engine(indices, self.window)
        return self._engines[indices]

    def _chunk(self, i: int) -> _Chunk:
        number, rows = self._pieces[i]
        whole = self._terms[number]
        term = whole.part(rows)
        engine = self._engine(term.indices)
        x = term.all_points().contiguous()
        return _Chunk(
            number,
            f"{type(self._model.pde).__name__}.{term.name}",
            term,
            engine,
            engine.batch(x),
            Trial(self._model.pde, x, engine.indices),
            Points(self._model.pde.coordinates, term.points),
        )

    def freeze(self, parameters: Tensor) -> None:
        """Take the layers below the window as fixed. Not collective."""
        for chunk in self._chunks.values():
            chunk.engine.freeze(parameters, chunk.batch)

    def losses(self, parameters: Tensor) -> Tensor:
        """Return the terms' losses, shape (terms,)."""

        def part(i: int, out: Tensor) -> None:
            chunk = self._chunks[i]
            out.zero_()
            with torch.no_grad():
                u = chunk.trial.jets(chunk.engine.forward(parameters, chunk.batch, reverse=False))
                out[chunk.number] = self._loss(chunk, u)

        return self._sum(part, len(self._terms), parameters.dtype)

    def losses_and_gradient(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the terms' losses (terms,) and the gradient over the window (window.stop - window.start,)."""
        n = self.window.stop - self.window.start

        def part(i: int, out: Tensor) -> None:
            chunk = self._chunks[i]
            # Only the residual is differentiated by autograd; trial function and network have their own reverse passes.
            u = chunk.trial.jets(chunk.engine.forward(parameters, chunk.batch, reverse=True)).requires_grad_()
            loss = self._loss(chunk, u)
            (cotangent,) = torch.autograd.grad(loss, u)
            chunk.engine.reverse(parameters, chunk.batch, chunk.trial.pull_back(cotangent), out[:n])
            out[n:].zero_()
            out[n + chunk.number] = loss.detach()

        packed = self._sum(part, n + len(self._terms), parameters.dtype)
        return packed[n:], packed[:n]

    def hessian_action(self, parameters: Tensor, v: Tensor) -> Tensor:
        """Return the Hessian over the window times v, both of shape (window.stop - window.start,)."""
        w = self.window

        def part(i: int, out: Tensor) -> None:
            chunk = self._chunks[i]
            leaf = parameters[w.start : w.stop].clone().requires_grad_()
            whole = torch.cat([parameters[: w.start], leaf, parameters[w.stop :]])
            loss = self._loss(chunk, chunk.trial.jets(chunk.engine.differentiable(whole, chunk.batch)))
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            (action,) = torch.autograd.grad(gradient, leaf, v, materialize_grads=True)
            out.copy_(action)

        return self._sum(part, w.stop - w.start, parameters.dtype)

    @staticmethod
    def _loss(chunk: _Chunk, u: Tensor) -> Tensor:
        fields = chunk.trial.fields(u, pairs=chunk.term.partner is not None)
        values = guard.call(chunk.name, chunk.term.residual, chunk.points, *fields)
        parts = [torch.dot(r, r) for r in residuals(values)]
        total = parts[0]
        for other in parts[1:]:
            total = total + other
        return chunk.term.factor * total


@dataclass(frozen=True)
class Model:
    """What a PINN's loss is made of apart from points: equation, network and how its jets are computed.

    Attributes
    ----------
    chunk
        Points evaluated at a time: small enough for the cache, large enough for the products.
    """

    pde: PDE
    network: nn.Module
    layout: Layout
    engine_name: str
    dtype: torch.dtype
    chunk: int

    def engine(self, indices: tuple[Index, ...], window: Window | None = None) -> Engine[Any]:
        """Return the engine for some derivatives and layers."""
        return ENGINES[self.engine_name](self.network, self.layout, self.pde.features, indices, window)

    def solution(self, x: Tensor, points: Tensor) -> Tensor:
        """Return the trial function at points (d, n), shape (fields, n), for parameters x. Not collective."""
        engine = self.engine(((),))
        parts = []
        with torch.no_grad():
            for few in points.split(4096, dim=1):
                jets = engine.forward(x, engine.batch(few.contiguous()), reverse=False)
                parts.append(Trial(self.pde, few, engine.indices).jets(jets)[:, 0])
        return torch.cat(parts, 1)

    def squares(self, x: Tensor, term: Term, cuts: Sequence[slice]) -> list[Tensor]:
        """Return a term's squared residual at each point (pair) of each cut, evaluated cut by cut. Not collective."""
        engine = self.engine(term.indices)
        found = []
        with torch.no_grad():
            for part in map(term.part, cuts):
                points = part.all_points().contiguous()
                trial = Trial(self.pde, points, engine.indices)
                jets = trial.jets(engine.forward(x, engine.batch(points), reverse=False))
                fields = trial.fields(jets, pairs=part.partner is not None)
                name = f"{type(self.pde).__name__}.{part.name}"
                values = guard.call(name, part.residual, Points(self.pde.coordinates, part.points), *fields)
                found.append(torch.stack([r * r for r in residuals(values)]).sum(0))
        return found


class PinnProblem(Problem):
    """The loss of a PINN as a function of the network's parameters.

    Parameters
    ----------
    comm
        The ranks that share the points. Collective.
    model
        Equation, network, engine.
    terms
        The loss, on points known to every rank.
    """

    def __init__(self, comm: Communicator, model: Model, terms: Sequence[Term]) -> None:
        self.comm = comm
        self.model = model
        self.loss_terms = tuple(terms)
        self.space = Replicated(model.layout.n, model.dtype)
        self.samples = sum(t.n for t in terms)
        self.layers = model.layout.layers
        self.tensors = tuple(slice(e.start, e.stop) for e in model.layout.entries)

    @cached_property
    def _evaluation(self) -> _Evaluation:
        whole = Window.of(self.model.layout, 0, len(self.layers))
        return _Evaluation(self.comm, self.model, self.loss_terms, whole)

    @property
    def cost(self) -> Cost:
        return self._evaluation.cost

    def objective(self, x: Tensor) -> float:
        return float(self._evaluation.losses(x).sum())

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        losses, gradient = self._evaluation.losses_and_gradient(x)
        return float(losses.sum()), gradient

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        return self._evaluation.hessian_action(x, v)

    def terms(self, x: Tensor) -> dict[str, float]:
        losses = self._evaluation.losses(x)
        return {t.name: float(v) for t, v in zip(self.loss_terms, losses, strict=True)}

    def on(self, comm: Communicator) -> PinnProblem:
        return PinnProblem(comm, self.model, self.loss_terms)

    def sample(self, rows: Tensor) -> PinnProblem:
        """Return L over some of the samples.

        Each carries samples / k times its share of L, whichever term it belongs to. So a random sample's L has the
        mean L, and the L of a union of disjoint samples is the weighted mean of theirs.
        """
        assert len(rows) > 0, "an empty sample"
        pieces = slices([t.n for t in self.loss_terms])
        parts = [
            term.part(rows[(rows >= s.start) & (rows < s.stop)] - s.start, self.samples / len(rows))
            for term, s in zip(self.loss_terms, pieces, strict=True)
        ]
        return PinnProblem(self.comm, self.model, [t for t in parts if t.n])

    def restrict(self, block: Block) -> PinnRestriction:
        return PinnRestriction(self, block)


class PinnRestriction(Restriction):
    """A PINN's loss over a block of parameters: frozen prefix below, no weight gradients outside its layers."""

    parent: PinnProblem

    def __init__(self, parent: PinnProblem, block: Block) -> None:
        super().__init__(parent, block)
        low, high = block.bounds()
        touched = [k for k, s in enumerate(parent.layers) if s.start < high and s.stop > low]
        window = Window.of(parent.model.layout, touched[0], touched[-1] + 1)
        self._evaluation = _Evaluation(parent.comm, parent.model, parent.loss_terms, window)
        indices = block.indices
        shift = window.start
        self._inside = (
            slice(indices.start - shift, indices.stop - shift) if isinstance(indices, slice) else indices - shift
        )

    @property
    def cost(self) -> Cost:
        return self._evaluation.cost

    def rebase(self, x: Tensor) -> Tensor:
        start = super().rebase(x)
        self._evaluation.freeze(self._full)
        return start

    def objective(self, x: Tensor) -> float:
        return float(self._evaluation.losses(self.embed(x)).sum())

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        losses, gradient = self._evaluation.losses_and_gradient(self.embed(x))
        return float(losses.sum()), gradient[self._inside]

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        window = self._evaluation.window
        direction = torch.zeros(window.stop - window.start, dtype=v.dtype)
        direction[self._inside] = v
        return self._evaluation.hessian_action(self.embed(x), direction)[self._inside]

    def terms(self, x: Tensor) -> dict[str, float]:
        losses = self._evaluation.losses(self.embed(x))
        return {t.name: float(v) for t, v in zip(self.parent.loss_terms, losses, strict=True)}
