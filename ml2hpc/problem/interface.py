"""Problems: what a solver minimises, closed under restriction, sampling, shifting and coarsening.

A problem lives on a communicator: every rank calls its methods together and gets the same numbers. Each operation
returns a `Problem` again, so they nest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.transfer import Coarsening, Embedded, Identity, Transfer, Whole
from ml2hpc.vec import CPU, Replicated, Sharded, VectorSpace


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one objective and of one objective with gradient."""

    objective: float
    gradient: float

    @property
    def hessian(self) -> float:
        """Operations of a Hessian's action: an objective with gradient, and its derivative along a direction."""
        return 2.0 * self.gradient


@dataclass(frozen=True)
class LinearizedCost:
    """Floating-point operations of a Gauss-Newton matrix's action and of the matrix itself, over all ranks."""

    action: float
    matrix: float


@dataclass(frozen=True)
class Block:
    """Some of a problem's unknowns.

    Attributes
    ----------
    indices
        A slice with start and stop, or a sorted index tensor (n_block,), into the problem's vector.
    name
        Such as "layers 0-1", for views.
    """

    indices: slice | Tensor
    name: str

    @property
    def n(self) -> int:
        """Number of unknowns."""
        if isinstance(self.indices, slice):
            return int(self.indices.stop - self.indices.start)
        return self.indices.numel()

    def bounds(self) -> tuple[int, int]:
        """First index and one past the last."""
        if isinstance(self.indices, slice):
            return self.indices.start, self.indices.stop
        return int(self.indices[0]), int(self.indices[-1]) + 1

    def within(self, outer: Block) -> Block:
        """Return the same unknowns as a block of the whole, where the indices count inside `outer`."""
        if isinstance(outer.indices, Tensor):
            return Block(outer.indices[self.indices], self.name)
        start = outer.indices.start
        shifted = self.indices + start if isinstance(self.indices, Tensor) else None
        low, high = self.bounds()
        return Block(slice(low + start, high + start) if shifted is None else shifted, self.name)


class Linearization(ABC):
    """A sum of squares with its residuals linearised at x: L(x + s) = L(x) + <grad L, s> + <s, A s> / 2.

    For L = sum_p factor_p r_p^2 the Gauss-Newton matrix is A = 2 sum_p factor_p grad r_p grad r_p': symmetric, positive
    semidefinite, the Hessian of L without the residuals' second derivatives. Nothing is evaluated before it is asked
    for; what is frozen by `Restriction.rebase` stays as it is as long as the linearization is used.
    """

    @abstractmethod
    def action(self, v: Tensor) -> Tensor:
        """Return A v, both of shape (n_local,). Collective."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """Return A, shape (n, n), whole on every rank. Collective."""

    @property
    @abstractmethod
    def cost(self) -> LinearizedCost:
        """Operations of an action and of the matrix."""


class Problem(ABC):
    """Minimise L(x). Vectors have the shape (space.n_local,).

    Attributes
    ----------
    comm
        The ranks that evaluate it together.
    space
        The vector space of x.
    samples
        Number of samples or collocation points in L.
    layers
        Consecutive groups of unknowns in the order in which they act; one group where there is no such structure.
    tensors
        Consecutive finer groups, such as single parameter tensors.
    """

    comm: Communicator
    space: VectorSpace
    samples: int
    layers: tuple[slice, ...]
    tensors: tuple[slice, ...]

    @abstractmethod
    def objective(self, x: Tensor) -> float:
        """Return L(x). Collective."""

    @abstractmethod
    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Return L(x) and grad L(x). Collective."""

    def gradient(self, x: Tensor) -> Tensor:
        """Return grad L(x). Collective."""
        return self.value_and_gradient(x)[1]

    @abstractmethod
    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        """Return the Hessian of L at x times v. Collective."""

    def linearize(self, x: Tensor) -> Linearization:
        """Return L with its residuals linearised at x. Collective.

        Raises
        ------
        UnsupportedError
            If L is not a sum of squares.
        """
        raise UnsupportedError(f"{type(self).__name__} is not a sum of squares: Gauss-Newton needs residuals; use qn")

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """Floating-point operations of one objective and of one objective with gradient, over all ranks."""

    def block_cost(self, block: Block) -> Cost:
        """Return the cost of `restrict(block)` without building it. Not collective."""
        return self.cost

    @abstractmethod
    def on(self, comm: Communicator) -> Problem:
        """Return the same problem on other ranks. Collective on `comm`."""

    @abstractmethod
    def sample(self, rows: Tensor) -> Problem:
        """Return L over some of the samples.

        Parameters
        ----------
        rows
            Sorted sample numbers, shape (k,), in 0..samples-1.
        """

    def shares(self, parts: int) -> list[Tensor]:
        """Return the sample numbers of equal shares, each like the whole: every k-th one. Not collective."""
        return [torch.arange(part, self.samples, parts, device=CPU) for part in range(parts)]

    def restrict(self, block: Block) -> Restriction:
        """Return L as a function of a block of the unknowns, the others frozen by `Restriction.rebase`."""
        return Restriction(self, block)

    def shift(self, slope: Tensor) -> Problem:
        """Return L + <slope, x>, in value and gradient."""
        return Shifted(self, slope)

    def coarsen(self, how: Coarsening) -> tuple[Problem, Transfer]:
        """Return the same problem on a coarser level, and the transfer between the two. Collective.

        Every c-th sample is kept, c = `how.factor`; other kinds are the problems' own.

        Raises
        ------
        UnsupportedError
            Where there is no coarser level.
        """
        if how.kind != "samples":
            raise UnsupportedError(f"{type(self).__name__} cannot be coarsened in {how.kind}; use samples")
        self.check_samples(how.factor)
        return self.sample(torch.arange(0, self.samples, how.factor, device=CPU)), Identity()

    def check_samples(self, factor: int) -> None:
        """Refuse to take one of `factor` samples where there are fewer. Not collective.

        Raises
        ------
        UnsupportedError
            If there are fewer.
        """
        if self.samples < factor:
            raise UnsupportedError(
                f"{self.samples} samples cannot be coarsened by {factor}: use fewer -dm_levels, or larger mini-batches"
            )

    def metric(self) -> Tensor:
        """Return the weights m, shape (n_local,), of <x, y> = sum_i m_i x_i y_i for what x discretises. Not collective.

        Raises
        ------
        UnsupportedError
            Where the unknowns discretise no functions.
        """
        raise UnsupportedError(f"the unknowns of {type(self).__name__} are no functions: use -dm_metric euclidean")

    def terms(self, x: Tensor) -> dict[str, float]:
        """Return the parts that L is the sum of, by name. Collective."""
        return {"loss": self.objective(x)}

    def view(self) -> list[str]:
        """Return lines that say how L is evaluated, for -snes_view. Not collective."""
        return []


class Restriction(Problem):
    """L over a block of the unknowns: t -> L(x with block := t).

    Evaluates the parent at the full vector; parents that can do less work for a block override `Problem.restrict`.
    """

    def __init__(self, parent: Problem, block: Block) -> None:
        self.parent = parent
        self.block = block
        self.comm = parent.comm
        self.space = Replicated(block.n, parent.space.dtype, parent.space.device)
        self.samples = parent.samples
        self.layers = self.tensors = (slice(0, block.n),)
        self._full = torch.zeros(parent.space.n, dtype=parent.space.dtype, device=parent.space.device)

    def rebase(self, x: Tensor) -> Tensor:
        """Freeze the unknowns outside the block at x, shape (parent.space.n,); return the block's own. Collective."""
        self._full.copy_(x)
        return x[self.block.indices].clone()

    def embed(self, t: Tensor) -> Tensor:
        """Return the whole vector (parent.space.n,) with the block set to t; valid until the next call."""
        self._full[self.block.indices] = t
        return self._full

    def objective(self, x: Tensor) -> float:
        return self.parent.objective(self.parent.space.local(self.embed(x)))

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        space = self.parent.space
        value, gradient = self.parent.value_and_gradient(space.local(self.embed(x)))
        return value, space.gather(gradient)[self.block.indices]

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        space = self.parent.space
        direction = torch.zeros_like(self._full)
        direction[self.block.indices] = v
        action = self.parent.hessian_action(space.local(self.embed(x)), space.local(direction))
        return space.gather(action)[self.block.indices]

    def linearize(self, x: Tensor) -> Linearization:
        return _Restricted(self.parent.linearize(self.parent.space.local(self.embed(x))), self.parent.space, self.block)

    @property
    def cost(self) -> Cost:
        return self.parent.cost

    def block_cost(self, block: Block) -> Cost:
        return self.parent.block_cost(block.within(self.block))

    def view(self) -> list[str]:
        return self.parent.view()

    def on(self, comm: Communicator) -> Restriction:
        return self._again(self.parent.on(comm))

    def sample(self, rows: Tensor) -> Restriction:
        return self._again(self.parent.sample(rows))

    def shares(self, parts: int) -> list[Tensor]:
        return self.parent.shares(parts)

    def terms(self, x: Tensor) -> dict[str, float]:
        return self.parent.terms(self.parent.space.local(self.embed(x)))

    def coarsen(self, how: Coarsening) -> tuple[Problem, Transfer]:
        """Return the restriction of the coarser level to the unknowns whose prolongation stays in the block.

        The coarse unknowns outside are frozen where the fine ones are when a point is projected.
        """
        parent, inner = self.parent.coarsen(how)
        inside = torch.zeros_like(self._full)
        inside[self.block.indices] = 1.0
        space, coarse = self.parent.space, parent.space
        reached = coarse.gather(inner.restrict(space.local(inside))) > 0
        left = coarse.gather(inner.restrict(space.local(1.0 - inside))) > 0
        indices = (reached & ~left).nonzero()[:, 0]
        if not len(indices):
            raise UnsupportedError(f"{self.block.name}: no unknown of the block stays in it in a coarser {how.kind}")
        restriction = parent.restrict(Block(indices, self.block.name))
        restriction.rebase(coarse.gather(inner.project(space.local(self._full))))
        if isinstance(space, Replicated):
            lengths = coarse.n, space.n
            wholes = self.embed, restriction.embed
            transfer = Embedded(inner, indices, self.block.indices, lengths, restriction.rebase, *wholes)
            return restriction, transfer
        raise UnsupportedError("a block of sharded or partitioned unknowns cannot be coarsened")

    def metric(self) -> Tensor:
        return self.parent.space.gather(self.parent.metric())[self.block.indices]

    def _again(self, parent: Problem) -> Restriction:
        """The same restriction of another problem, frozen at the same point."""
        restricted = parent.restrict(self.block)
        restricted.rebase(self._full)
        return restricted


class _Restricted(Linearization):
    """Rows and columns of a block: E' A E for the embedding E."""

    def __init__(self, whole: Linearization, space: VectorSpace, block: Block) -> None:
        self._whole, self._space, self._indices = whole, space, block.indices

    @property
    def cost(self) -> LinearizedCost:
        return self._whole.cost

    def action(self, v: Tensor) -> Tensor:
        direction = v.new_zeros(self._space.n)
        direction[self._indices] = v
        return self._space.gather(self._whole.action(self._space.local(direction)))[self._indices]

    def matrix(self) -> Tensor:
        return self._whole.matrix()[self._indices][:, self._indices]


class Wrapped(Problem):
    """A problem that changes another one's numbers and keeps its structure."""

    def __init__(self, inner: Problem) -> None:
        self.inner = inner
        self.comm, self.space, self.samples = inner.comm, inner.space, inner.samples
        self.layers, self.tensors = inner.layers, inner.tensors

    @property
    def cost(self) -> Cost:
        return self.inner.cost

    def objective(self, x: Tensor) -> float:
        return self.inner.objective(x)

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        return self.inner.value_and_gradient(x)

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        return self.inner.hessian_action(x, v)

    def linearize(self, x: Tensor) -> Linearization:
        return self.inner.linearize(x)

    def block_cost(self, block: Block) -> Cost:
        return self.inner.block_cost(block)

    def shares(self, parts: int) -> list[Tensor]:
        return self.inner.shares(parts)

    def metric(self) -> Tensor:
        return self.inner.metric()

    def view(self) -> list[str]:
        return self.inner.view()


class Shifted(Wrapped):
    """L + <slope, x>: first-order consistency between models of the same loss."""

    def __init__(self, inner: Problem, slope: Tensor) -> None:
        super().__init__(inner)
        self.slope = slope

    def objective(self, x: Tensor) -> float:
        return self.inner.objective(x) + self.space.dot(self.slope, x)

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        value, gradient = self.inner.value_and_gradient(x)
        return value + self.space.dot(self.slope, x), gradient + self.slope

    def terms(self, x: Tensor) -> dict[str, float]:
        return {**self.inner.terms(x), "shift": self.space.dot(self.slope, x)}

    def on(self, comm: Communicator) -> Shifted:
        return Shifted(self.inner.on(comm), self.slope)

    def sample(self, rows: Tensor) -> Shifted:
        return Shifted(self.inner.sample(rows), self.slope)

    def coarsen(self, how: Coarsening) -> tuple[Problem, Transfer]:
        coarse, transfer = self.inner.coarsen(how)
        return coarse.shift(transfer.restrict(self.slope)), transfer


class ShardedProblem(Wrapped):
    """A problem whose solver works on slices: vectors are gathered for an evaluation, gradients cut."""

    def __init__(self, inner: Problem) -> None:
        super().__init__(inner)
        self.space = Sharded(inner.comm, inner.space.n, inner.space.dtype, inner.space.device)

    def objective(self, x: Tensor) -> float:
        return self.inner.objective(self.space.gather(x))

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        value, gradient = self.inner.value_and_gradient(self.space.gather(x))
        return value, self.space.local(gradient).clone()

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        return self.space.local(self.inner.hessian_action(self.space.gather(x), self.space.gather(v))).clone()

    def linearize(self, x: Tensor) -> Linearization:
        return _Sliced(self.inner.linearize(self.space.gather(x)), self.space)

    def terms(self, x: Tensor) -> dict[str, float]:
        return self.inner.terms(self.space.gather(x))

    def on(self, comm: Communicator) -> Problem:
        """Return the problem with whole vectors on other ranks: a subdomain's vectors are small."""
        return self.inner.on(comm)

    def sample(self, rows: Tensor) -> ShardedProblem:
        return ShardedProblem(self.inner.sample(rows))

    def restrict(self, block: Block) -> Restriction:
        return self.inner.restrict(block)

    def metric(self) -> Tensor:
        return self.space.local(self.inner.metric()).clone()

    def coarsen(self, how: Coarsening) -> tuple[Problem, Transfer]:
        inner, transfer = self.inner.coarsen(how)
        coarse = ShardedProblem(inner)
        return coarse, Whole(transfer, coarse.space, self.space)


class _Sliced(Linearization):
    """The action on slices of vectors; the matrix stays whole."""

    def __init__(self, whole: Linearization, space: VectorSpace) -> None:
        self._whole, self._space = whole, space

    @property
    def cost(self) -> LinearizedCost:
        return self._whole.cost

    def action(self, v: Tensor) -> Tensor:
        return self._space.local(self._whole.action(self._space.gather(v))).clone()

    def matrix(self) -> Tensor:
        return self._whole.matrix()


class Span(Problem):
    """L on the span of a few directions: a -> L(x + sum_k a_k d_k). Subspace minimisation is solving it.

    Parameters
    ----------
    x, directions
        Where the span is attached, and the d_k, each of shape (n_local,).
    """

    def __init__(self, parent: Problem, x: Tensor, directions: Sequence[Tensor]) -> None:
        self.parent = parent
        self.x = x
        self.directions = torch.stack(list(directions))
        self.comm = parent.comm
        self.space = Replicated(len(self.directions), x.dtype, x.device)
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

    def linearize(self, x: Tensor) -> Linearization:
        return _Spanned(self.parent.linearize(self.at(x)), self)

    @property
    def cost(self) -> Cost:
        return self.parent.cost

    def on(self, comm: Communicator) -> Problem:
        raise UnsupportedError("a span lives where its directions are")

    def sample(self, rows: Tensor) -> Span:
        return Span(self.parent.sample(rows), self.x, list(self.directions))

    def shares(self, parts: int) -> list[Tensor]:
        return self.parent.shares(parts)


class _Spanned(Linearization):
    """D A D' for the directions D (k, n_local), one action a column."""

    def __init__(self, whole: Linearization, span: Span) -> None:
        self._whole, self._span = whole, span

    @property
    def cost(self) -> LinearizedCost:
        action = self._whole.cost.action
        return LinearizedCost(action, len(self._span.directions) * action)

    def action(self, v: Tensor) -> Tensor:
        return self._span.project(self._whole.action(self._span.directions.T @ v))

    def matrix(self) -> Tensor:
        columns = torch.stack([self._span.project(self._whole.action(d)) for d in self._span.directions], 1)
        return 0.5 * (columns + columns.T)


def slices(lengths: Sequence[int]) -> tuple[slice, ...]:
    """Return consecutive slices of the given lengths."""
    return tuple(slice(end - n, end) for n, end in zip(lengths, accumulate(lengths), strict=True))
