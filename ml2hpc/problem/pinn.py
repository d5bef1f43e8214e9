"""PINN problems: L(x) = sum over terms of factor * sum of squared residuals, over points dealt to the ranks.

The points are cut into chunks that fit the cache. Chunks, not ranks, are what is summed (`TreeSum`), so L and its
gradient have the same bits on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ml2hpc import kernels
from ml2hpc.comm import Communicator
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem import guard
from ml2hpc.problem.ansatz import Term, Trial, residuals
from ml2hpc.problem.autograd import AutogradEngine
from ml2hpc.problem.compiled import CompiledEngine
from ml2hpc.problem.device import DeviceEngine
from ml2hpc.problem.engine import Batch, Engine, Window
from ml2hpc.problem.gram import add_square, panels
from ml2hpc.problem.graph import Recorded
from ml2hpc.problem.interface import Block, Cost, Linearization, LinearizedCost, Problem, Restriction, slices
from ml2hpc.problem.jet import Carried, Points
from ml2hpc.problem.jets import JetsEngine
from ml2hpc.problem.narrowing import narrowed
from ml2hpc.problem.network import DenseNetwork
from ml2hpc.problem.pde import PDE
from ml2hpc.problem.shortening import shortened
from ml2hpc.problem.thinning import along, thinned
from ml2hpc.problem.transfer import Coarsening, Identity, Transfer
from ml2hpc.vec import CPU, Layout, Replicated, TreeSum

ENGINES: dict[str, type[Engine[Any]]] = {
    "compiled": CompiledEngine,
    "device": DeviceEngine,
    "jets": JetsEngine,
    "autograd": AutogradEngine,
}
FASTEST: Literal["compiled", "jets"] = "compiled" if kernels.built() else "jets"


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
        self._engines: dict[tuple[Carried, ...], Engine[Any]] = {}
        self._pieces: list[tuple[int, slice]] = []
        costs: list[float] = []
        cost = [self._engine(t.indices).cost() for t in terms]
        for number, term in enumerate(terms):
            pieces = math.ceil(term.n / model.chunk)
            for k in range(pieces):
                rows = slice(k * term.n // pieces, (k + 1) * term.n // pieces)
                self._pieces.append((number, rows))
                costs.append(cost[number].gradient * (rows.stop - rows.start))
        self.cost = _total(cost, terms)
        self._sum = TreeSum(comm, costs)
        self._chunks = {i: self._chunk(i) for i in self._sum.parts}
        self._recorded: dict[int, Recorded] = {}  # loss and gradient by chunk

    def _engine(self, indices: tuple[Carried, ...]) -> Engine[Any]:
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

        return self._sum(part, len(self._terms), parameters.dtype, parameters.device)

    def losses_and_gradient(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the terms' losses (terms,) and the gradient over the window (window.stop - window.start,)."""
        n = self.window.stop - self.window.start

        def part(i: int, out: Tensor) -> None:
            if not self._model.graph:
                self._loss_and_gradient(self._chunks[i], parameters, out)
                return
            if i not in self._recorded:
                self._recorded[i] = self._record(self._chunks[i], parameters, out)
            self._recorded[i](parameters, out)

        packed = self._sum(part, n + len(self._terms), parameters.dtype, parameters.device)
        return packed[n:], packed[:n]

    def _record(self, chunk: _Chunk, parameters: Tensor, out: Tensor) -> Recorded:
        def refused(error: Exception) -> None:
            if self._sum.comm.rank == 0:
                why = str(error).splitlines()[0]
                print(f"{chunk.name} cannot be recorded for the GPU and runs step by step: {why}", flush=True)

        return Recorded(partial(self._loss_and_gradient, chunk), parameters, out, refused)

    def _loss_and_gradient(self, chunk: _Chunk, parameters: Tensor, out: Tensor) -> None:
        """Write one chunk's gradient over the window, then the terms' losses, over `out`."""
        n = self.window.stop - self.window.start
        # Only the residual is differentiated by autograd; trial function and network have their own reverse passes.
        u = chunk.trial.jets(chunk.engine.forward(parameters, chunk.batch, reverse=True)).requires_grad_()
        loss = self._loss(chunk, u)
        (cotangent,) = torch.autograd.grad(loss, u)
        chunk.engine.reverse(parameters, chunk.batch, chunk.trial.pull_back(cotangent), out[:n])
        out[n:].zero_()
        out[n + chunk.number] = loss.detach()

    def hessian_action(self, parameters: Tensor, v: Tensor) -> Tensor:
        """Return the Hessian over the window times v, both of shape (window.stop - window.start,)."""
        w = self.window

        def part(i: int, out: Tensor) -> None:
            chunk, engine, trial = self._chunks[i], self._chunks[i].engine, self._chunks[i].trial
            network = engine.forward(parameters, chunk.batch, reverse=False)
            u = trial.jets(network.clone()).requires_grad_()  # apart from the engine's buffers, which change below
            (cotangent,) = torch.autograd.grad(self._loss(chunk, u), u, create_graph=True)
            u_dot = trial.push_forward(engine.tangent(parameters, v, chunk.batch))
            bent = torch.zeros_like(u)
            if cotangent.requires_grad:  # not where the residual is constant in u
                (bent,) = torch.autograd.grad(cotangent, u, u_dot, materialize_grads=True)
            back, back_dot = trial.pull_back(cotangent.detach()), trial.pull_back(bent)
            engine.reverse_tangent(parameters, v, chunk.batch, back, back_dot, out)

        return self._sum(part, w.stop - w.start, parameters.dtype, parameters.device)

    # Residuals linearised in the parameters. ---------------------------------------------------------------------

    @cached_property
    def linearized_cost(self) -> tuple[float, float]:
        """Operations of a Gauss-Newton action, and of the rows of the Jacobian; the products are not in it."""
        # An action: values and their derivative along v forward, one reverse pass with gradient.
        rows = sum(self._components(t) * _total([self._engine(t.indices).cost()], [t]).gradient for t in self._terms)
        return self.cost.objective + self.cost.gradient, rows

    @cached_property
    def residual_count(self) -> int:
        """Number of residuals: points times components of each term."""
        return sum(self._components(t) * t.n for t in self._terms)

    def _components(self, term: Term) -> int:
        """How many residuals a point of the term has, seen at its first one with the network zero."""
        engine, one = self._engine(term.indices), term.part(slice(0, 1))
        x = one.all_points()
        trial = Trial(self._model.pde, x, engine.indices)
        u = trial.jets(
            torch.zeros(len(self._model.pde.fields), len(engine.indices), x.shape[1], dtype=x.dtype, device=x.device)
        )
        fields = trial.fields(u, pairs=one.partner is not None)
        return len(residuals(one.residual(Points(self._model.pde.coordinates, one.points), *fields)))

    def slopes(self, parameters: Tensor) -> dict[int, Tensor]:
        """Return dr_m / du by chunk, shape (components, fields, jets, n). Not collective."""
        return {i: self._slopes(chunk, parameters) for i, chunk in self._chunks.items()}

    def _slopes(self, chunk: _Chunk, parameters: Tensor) -> Tensor:
        """One chunk's dr_m / du; leaves the engine as after `forward` with `reverse`."""
        u = chunk.trial.jets(chunk.engine.forward(parameters, chunk.batch, reverse=True)).requires_grad_()
        found = self._residuals(chunk, u)
        # A residual reads the jets of its own point only, so that the gradient of the sum holds each one's.
        return torch.stack(
            [
                torch.autograd.grad(r.sum(), u, retain_graph=True)[0] if r.requires_grad else torch.zeros_like(u)
                for r in found
            ]
        )

    def gauss_newton_action(self, parameters: Tensor, slopes: dict[int, Tensor], v: Tensor) -> Tensor:
        """Return 2 J' D J v, both of shape (window.stop - window.start,)."""

        def part(i: int, out: Tensor) -> None:
            chunk, engine, slope = self._chunks[i], self._chunks[i].engine, slopes[i]
            u_dot = chunk.trial.push_forward(engine.tangent(parameters, v, chunk.batch))
            r_dot = torch.sum(slope * u_dot, (1, 2))
            if chunk.term.partner is not None:
                r_dot = _folded(r_dot).repeat(1, 2)
            cotangent = torch.sum(slope * r_dot[:, None, None], 0).mul_(2 * chunk.term.factor)
            engine.forward(parameters, chunk.batch, reverse=True)
            engine.reverse(parameters, chunk.batch, chunk.trial.pull_back(cotangent), out)

        return self._sum(part, self.window.stop - self.window.start, parameters.dtype, parameters.device)

    def gauss_newton_matrix(self, parameters: Tensor, inside: slice | Tensor) -> Tensor:
        """Return the rows and columns `inside` of 2 J' D J, shape (n, n), the window's first parameter being 0."""
        n = Block(inside, "").n
        matrix = parameters.new_empty(n, n)
        for low, high in panels(n):
            panel = self._panel(parameters, inside, low, high)
            summed = self._sum(panel, (high - low) * high, parameters.dtype, parameters.device)
            left = summed[: (high - low) * low].view(high - low, low)
            square = summed[(high - low) * low :].view(high - low, high - low)
            matrix[low:high, :low] = left
            matrix[:low, low:high] = left.T
            matrix[low:high, low:high] = square.tril() + square.tril(-1).T
        return matrix

    def _panel(self, parameters: Tensor, inside: slice | Tensor, low: int, high: int) -> Callable[[int, Tensor], None]:
        """Rows low..high-1 of the lower triangle, as parts of a sum: what is left of the diagonal square, then it."""
        n, rows = self.window.stop - self.window.start, high - low
        buffers: dict[int, Tensor] = {}  # of a transposed Jacobian, by number of points

        def part(i: int, out: Tensor) -> None:
            chunk = self._chunks[i]
            left, square = out[: rows * low].view(rows, low), out[rows * low :].view(rows, rows)
            out.zero_()
            for slope in self._slopes(chunk, parameters):
                columns = slope.shape[-1]
                if columns not in buffers:
                    buffers[columns] = slope.new_empty(n, columns)
                chunk.engine.rows(parameters, chunk.batch, chunk.trial.pull_back(slope), buffers[columns])
                j = buffers[columns][inside][:high]
                if chunk.term.partner is not None:
                    j = _folded(j)
                add_square(square, j[low:], 2 * chunk.term.factor)
                if low:
                    left.addmm_(j[low:], j[:low].T, alpha=2 * chunk.term.factor)

        return part

    @staticmethod
    def _residuals(chunk: _Chunk, u: Tensor) -> tuple[Tensor, ...]:
        fields = chunk.trial.fields(u, pairs=chunk.term.partner is not None)
        return residuals(guard.call(chunk.name, chunk.term.residual, chunk.points, *fields))

    @classmethod
    def _loss(cls, chunk: _Chunk, u: Tensor) -> Tensor:
        parts = [torch.dot(r, r) for r in cls._residuals(chunk, u)]
        total = parts[0]
        for other in parts[1:]:
            total = total + other
        return chunk.term.factor * total


class _PinnLinearization(Linearization):
    """A PINN's loss linearised at the network's parameters, as a function of those `inside` the window."""

    def __init__(self, evaluation: _Evaluation, parameters: Tensor, inside: slice | Tensor) -> None:
        self._evaluation = evaluation
        self._parameters = parameters.clone()
        self._inside = inside

    @cached_property
    def _slopes(self) -> dict[int, Tensor]:
        return self._evaluation.slopes(self._parameters)

    @cached_property
    def cost(self) -> LinearizedCost:
        evaluation, n = self._evaluation, Block(self._inside, "").n
        action, rows = evaluation.linearized_cost
        # The rows once per panel; a multiplication and an addition for half of the entries.
        return LinearizedCost(action, rows * len(list(panels(n))) + 1.0 * evaluation.residual_count * n * n)

    def action(self, v: Tensor) -> Tensor:
        window = self._evaluation.window
        direction = v.new_zeros(window.stop - window.start)
        direction[self._inside] = v
        return self._evaluation.gauss_newton_action(self._parameters, self._slopes, direction)[self._inside]

    def matrix(self) -> Tensor:
        return self._evaluation.gauss_newton_matrix(self._parameters, self._inside)


def _total(cost: Sequence[Cost], terms: Sequence[Term]) -> Cost:
    """The cost of some terms from that of a point of each, partners counted."""
    points = [t.n * (1 if t.partner is None else 2) for t in terms]
    return Cost(
        sum(c.objective * n for c, n in zip(cost, points, strict=True)),
        sum(c.gradient * n for c, n in zip(cost, points, strict=True)),
    )


def _folded(columns: Tensor) -> Tensor:
    """The sum over both ends of periodic pairs, (n, pairs), from (n, 2 pairs)."""
    n = columns.shape[1] // 2
    return columns[:, :n] + columns[:, n:]


@dataclass(frozen=True)
class Model:
    """What a PINN's loss is made of apart from points: equation, network and how its jets are computed.

    Attributes
    ----------
    chunk
        Points evaluated at a time: small enough for the cache, large enough for the products.
    device
        Where parameters, points and jets are.
    graph
        Whether a chunk's loss and gradient are recorded and replayed.
    """

    pde: PDE
    network: nn.Module
    layout: Layout
    engine_name: str
    dtype: torch.dtype
    chunk: int
    device: torch.device = CPU
    graph: bool = False

    def engine(self, indices: tuple[Carried, ...], window: Window | None = None) -> Engine[Any]:
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
        self.space = Replicated(model.layout.n, model.dtype, model.device)
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

    def linearize(self, x: Tensor) -> Linearization:
        return _PinnLinearization(self._evaluation, x, slice(0, self.space.n))

    def block_cost(self, block: Block) -> Cost:
        window = self.window(block)
        return _total([self.model.engine(t.indices, window).cost() for t in self.loss_terms], self.loss_terms)

    def window(self, block: Block) -> Window:
        """Return the layers that a block of the parameters touches. Not collective."""
        low, high = block.bounds()
        touched = [k for k, s in enumerate(self.layers) if s.start < high and s.stop > low]
        return Window.of(self.model.layout, touched[0], touched[-1] + 1)

    def view(self) -> list[str]:
        engine = self.model.engine(self.loss_terms[0].indices)
        where = "" if self.model.device.type == "cpu" else f" on {self.model.device}"
        # An engine may tell more than its name.
        name = getattr(engine, "description", f"{self.model.engine_name}{where}")
        weights = [t.factor * t.n for t in self.loss_terms]
        told = ["" if math.isclose(w, 1.0) else f" (weight {w:.3g})" for w in weights]
        points = ", ".join(f"{t.n} {t.name}{w}" for t, w in zip(self.loss_terms, told, strict=True))
        how = ", recorded" if self.model.graph else ""
        return [f"engine {name}, chunks of {self.model.chunk} points{how}", f"points: {points}"]

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

    def shares(self, parts: int) -> list[Tensor]:
        """Return every k-th point along a curve through each term's, so that shares have the density of the whole."""
        starts = [s.start for s in slices([t.n for t in self.loss_terms])]
        order = torch.cat([start + along(t.points) for start, t in zip(starts, self.loss_terms, strict=True)])
        return [order[k::parts].sort().values for k in range(parts)]

    def restrict(self, block: Block) -> PinnRestriction:
        return PinnRestriction(self, block)

    def coarsen(self, how: Coarsening) -> tuple[Problem, Transfer]:
        """Return the loss with fewer points, or of a network with fewer residual blocks or neurons. Collective.

        Raises
        ------
        UnsupportedError
            If the network is asked for fewer layers that are no steps of a discretisation, so that two of them are not
            approximately one.
        """
        if how.kind == "samples":
            return self._thinned(how.factor), Identity()
        if how.kind not in ("depth", "width"):
            return super().coarsen(how)
        fewer = shortened if how.kind == "depth" else narrowed
        network, transfer = fewer(self.model.network, how, self.model.device)
        model = replace(self.model, network=network, layout=Layout(network))
        return PinnProblem(self.comm, model, self.loss_terms), transfer

    def metric(self) -> Tensor:
        """Return h for the parameters of residual blocks, functions of time, and 1 for the others. Not collective."""
        network = self.model.network
        if not isinstance(network, DenseNetwork) or network.options.type != "resnet":
            return super().metric()
        weights = torch.ones_like(self.space.zeros())
        weights[self.layers[1].start : self.layers[-1].start] = network.options.step
        return weights

    def _thinned(self, factor: int) -> PinnProblem:
        """L over fewer points of the same density, every term with its weight."""
        self.check_samples(factor)
        kept = [thinned(t.points, factor) for t in self.loss_terms]
        if sum(map(len, kept)) == self.samples:
            raise UnsupportedError(f"{self.samples} points, one a term, cannot be coarsened: use fewer -dm_levels")
        terms = [t.part(rows, t.n / len(rows)) for t, rows in zip(self.loss_terms, kept, strict=True)]
        return PinnProblem(self.comm, self.model, terms)


class PinnRestriction(Restriction):
    """A PINN's loss over a block of parameters: frozen prefix below, no weight gradients outside its layers."""

    parent: PinnProblem

    def __init__(self, parent: PinnProblem, block: Block) -> None:
        super().__init__(parent, block)
        window = parent.window(block)
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
        direction = v.new_zeros(window.stop - window.start)
        direction[self._inside] = v
        return self._evaluation.hessian_action(self.embed(x), direction)[self._inside]

    def linearize(self, x: Tensor) -> Linearization:
        return _PinnLinearization(self._evaluation, self.embed(x), self._inside)

    def terms(self, x: Tensor) -> dict[str, float]:
        losses = self._evaluation.losses(self.embed(x))
        return {t.name: float(v) for t, v in zip(self.parent.loss_terms, losses, strict=True)}
