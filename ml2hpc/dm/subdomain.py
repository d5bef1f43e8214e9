"""A subdomain: the local problem that a Schwarz method solves, and how its correction enters the whole vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ml2hpc.errors import UnsupportedError
from ml2hpc.log import Work
from ml2hpc.problem.interface import Block, Cost, Problem


@dataclass(frozen=True)
class Subdomain:
    """One part of a decomposition.

    Attributes
    ----------
    name
        For views.
    block
        The unknowns that it varies.
    weights
        Partition of unity: factors of its correction by unknown, shape (block.n,).
    own
        1 for the unknowns that it owns, each unknown having one owner, else 0, shape (block.n,): restricted Schwarz.
        Samples own nothing: there it is `weights`.
    rows
        The samples that it sees, shape (k,), or None for all.
    """

    name: str
    block: Block
    weights: Tensor
    own: Tensor
    rows: Tensor | None = None

    def describe(self) -> str:
        """Return name and size, for views. Not collective."""
        return f"{self.name}, {self.block.n} unknowns" + ("" if self.rows is None else f", {len(self.rows)} samples")

    def on(self, problem: Problem) -> Local:
        """Return the local problem on the ranks of `problem`. Collective there."""
        if self.rows is None:
            return RestrictedLocal(problem, self.block)
        return SampledLocal(problem.sample(self.rows))


class Local(ABC):
    """A local problem that is rebased at the start of every Schwarz step."""

    problem: Problem

    @abstractmethod
    def begin(self, x: Tensor, f: float, g: Tensor | None) -> tuple[Tensor, float, Tensor | None]:
        """Take x as the frozen state; return the local start, its objective and (if known) gradient. Collective.

        Parameters
        ----------
        x, g
            The state and, if known there, the gradient of L: whole vectors, shape (n,), or what the exchange of a
            partitioned problem brings.
        f
            L(x).
        """

    @abstractmethod
    def begin_work(self, whole: Problem, unit: Cost) -> Work:
        """Return what `begin` evaluates, in units of the whole problem's evaluations. Not collective."""

    def hessian_rows(self, end: Tensor, v: Tensor) -> Tensor:
        """Return R_s H v, shape (n_local,) of the local space, with H where `begin` was, but the local unknowns at end.

        Parameters
        ----------
        v
            A direction in the form in which `begin` takes the state. Collective.

        Raises
        ------
        UnsupportedError
            Where a local correction has no derivative.
        """
        raise UnsupportedError(f"{type(self).__name__} has no rows of a Hessian")

    @property
    def rows_cost(self) -> Cost:
        """Operations of what `hessian_rows` evaluates."""
        return self.problem.cost


class RestrictedLocal(Local):
    """L over a block of unknowns: its first gradient is a slice of the known one."""

    def __init__(self, problem: Problem, block: Block) -> None:
        self.problem = self._restriction = problem.restrict(block)
        self._indices = block.indices

    def begin(self, x: Tensor, f: float, g: Tensor | None) -> tuple[Tensor, float, Tensor | None]:
        start = self._restriction.rebase(x)
        return start, f, None if g is None else g[self._indices].clone()

    def begin_work(self, whole: Problem, unit: Cost) -> Work:
        work = Work()
        # The frozen prefix is part of an objective, not an evaluation of its own.
        work.counts[0, 2] = (whole.cost.objective - self.problem.cost.objective) / unit.objective
        return work

    def hessian_rows(self, end: Tensor, v: Tensor) -> Tensor:
        parent = self._restriction.parent
        space = parent.space
        action = parent.hessian_action(space.local(self._restriction.embed(end)), space.local(v))
        return space.gather(action)[self._indices]

    @property
    def rows_cost(self) -> Cost:
        return self._restriction.parent.cost


class SampledLocal(Local):
    """L over some samples, shifted so that its gradient at the start is the whole one (first-order consistency)."""

    def __init__(self, problem: Problem) -> None:
        self._sampled = problem
        self.problem = problem

    def begin(self, x: Tensor, f: float, g: Tensor | None) -> tuple[Tensor, float, Tensor | None]:
        assert g is not None, "sample subdomains start from the whole gradient"
        value, gradient = self._sampled.value_and_gradient(x)
        slope = g - gradient
        self.problem = self._sampled.shift(slope)
        return x.clone(), value + self.problem.space.dot(slope, x), g.clone()

    def begin_work(self, whole: Problem, unit: Cost) -> Work:
        work = Work()
        work.add("gradients", self._sampled.cost.gradient / unit.gradient)
        return work
