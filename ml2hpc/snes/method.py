"""What a solver type supplies to the loop, and what the two hand each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from ml2hpc.dm import Transfer
from ml2hpc.errors import UnsupportedError
from ml2hpc.options import option
from ml2hpc.snes.reasons import Reason
from ml2hpc.vec import VectorSpace

if TYPE_CHECKING:
    from ml2hpc.snes.loop import SNES

Side = Literal["left", "right"]
Tree = dict[str, Any]
"""A nested dict of arrays, numbers, strings and dicts: what a checkpoint stores."""


@dataclass(frozen=True)
class Options:
    """Options `-snes_*` of every solver."""

    rtol: float = option(1e-8, "stop when the gradient norm fell by this factor", at_least=0.0)
    atol: float = option(1e-50, "stop when the gradient norm is below", at_least=0.0)
    stol: float = option(1e-8, "stop when the step is this small against the iterate", at_least=0.0)
    divergence_tolerance: float = option(1e4, "stop when the objective grew by this factor", above=0.0)
    max_it: int = option(10000, "most iterations", at_least=0)
    max_funcs: int = option(30000, "most gradient evaluations on the critical path", at_least=0)
    npc_side: Literal["default", "left", "right"] = option("default", "side of the nonlinear preconditioner")
    npc_lag: int = option(1, "apply the nonlinear preconditioner in every n-th iteration", at_least=1)
    monitor: str | None = option(None, "print the gradient norm at every iteration, [ascii][:file[:format]]", alone="")
    converged_reason: str | None = option(None, "print why the solve ended, [ascii][:file]", alone="")
    view: str | None = option(None, "print the solver tree after the solve, [ascii][:file]", alone="")
    error_if_not_converged: bool = option(False, "make every DIVERGED_* reason an error of the job")


@dataclass
class Point:
    """An iterate with L and its gradient there; `r` is what the type takes for the residual.

    Without a left NPC, r is g. `finite` tells, the same on every rank, whether L and the gradient are numbers.
    """

    x: Tensor
    f: float
    g: Tensor
    r: Tensor
    finite: bool = True


@dataclass(frozen=True)
class Step:
    """What a type did: the new point, and why it failed if it did (then the point is the last good one)."""

    point: Point
    failure: str = ""
    reason: Reason = Reason.DIVERGED_LINE_SEARCH
    reported: bool = False  # the type has counted and shown its iterates by `SNES.passed`

    @classmethod
    def broken(cls, point: Point, what: str) -> Step:
        """Return a failure by numbers that are none: L or its gradient is infinite or not a number."""
        return cls(point, f"{what}: the objective or its gradient is not a number", Reason.DIVERGED_OBJECTIVE_NANORINF)


@dataclass(frozen=True)
class Region:
    """A trust region: |s| <= radius, in the 2-norm or the maximum norm."""

    radius: float
    norm: Literal["2", "infinity"]

    def length(self, space: VectorSpace, s: Tensor) -> float:
        """Return |s|, for s of shape (n_local,). Collective if sharded."""
        return space.norm(s) if self.norm == "2" else float(space.gather(s).abs().max())


class Method(ABC):
    """A solver type. One file each; options are a frozen dataclass `Options` with stem `snes_<stem>_`."""

    name: ClassVar[str]
    stem: ClassVar[str]  # of its options; the name, unless PETSc has another one
    title: ClassVar[str]
    Options: ClassVar[type]
    sides: ClassVar[tuple[Side, ...]] = ()  # where it can use an NPC; the first is the default
    defaults: ClassVar[dict[str, Any]] = {}  # of the generic options
    tree: ClassVar[dict[str, Any]] = {}  # a recipe: defaults below the prefix, such as {"npc_snes_type": "nasm"}
    inverts: ClassVar[bool] = False  # whether it has a `linear_solver`
    linesearch: ClassVar[dict[str, Any] | None] = None  # defaults of its line search; None where it has none
    completes: bool = False  # reaching max_it is what it is asked to do
    interrupted: bool = False  # after `resume`: the next step goes on inside one that was cut by the end of a job

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls) and "stem" not in vars(cls):
            cls.stem = cls.name

    def __init__(self, options: Any) -> None:
        self.options = options

    def configure(self, solver: SNES) -> None:  # noqa: B027 - most types have nothing more to read
        """Read further options and create inner solvers, on every rank alike. Not collective."""

    def set_up(self, solver: SNES) -> None:  # noqa: B027
        """Prepare for `solver.problem`. Collective."""

    def rebind(self, solver: SNES) -> None:  # noqa: B027 - most types ask `solver.problem` at every step
        """The problem was replaced by another on the same space (new points, new weights): keep what was learnt.

        Collective.
        """

    def lift(self, coarse: Method, transfer: Transfer, masses: Tensor) -> None:  # noqa: B027
        """Take over what this type has learnt on a coarser level, if it can. Collective.

        Parameters
        ----------
        masses
            The row sums of I' I, shape (n_local,) there.
        """

    def relink(self, coarse: Method, transfer: Transfer, masses: Tensor) -> None:  # noqa: B027
        """After `load`: take again what `lift` refers to. Not collective."""

    def begin(self, solver: SNES) -> None:  # noqa: B027
        """Start a solve that is not a continuation: forget what is not recycled. Collective."""

    @abstractmethod
    def step(self, solver: SNES, point: Point) -> Step:
        """Make one step. Collective."""

    def precondition(self, solver: SNES, point: Point, apply: Callable[[Point], Point]) -> Point:
        """Return what the right NPC makes of `point`, or `point` itself where that is not taken. Collective.

        Parameters
        ----------
        apply
            The preconditioner, from a point to a point.
        """
        half = apply(point)
        return half if half.finite and half.f <= point.f else point

    def confine(self, radius: float) -> None:  # noqa: B027 - most types choose no radius
        """Take the distance from its start that the parent allows the next solve. Not collective."""

    @property
    def region(self) -> Region | None:
        """The trust region of the next step; None where the type has none."""
        return None

    def judge(self, solver: SNES, s: Tensor, rho: float, *, bound: bool) -> None:
        """Change the trust region by a step that was made elsewhere. Collective if sharded.

        Parameters
        ----------
        s
            The step, shape (n_local,).
        rho
            The decrease of L over the one that was predicted.
        bound
            Whether the region kept it from going further.
        """
        raise UnsupportedError(f"-{solver.prefix}snes_type {self.name}: has no trust region; use newtontr")

    def reset(self) -> bool:
        """Forget the memory after a failed step; return whether there was any. Not collective."""
        return False

    def share(self, other: Method) -> bool:
        """After `set_up`: learn from now on together with another solver; tell whether it can. Not collective."""
        return False

    def learner(self) -> Method:
        """Return the type that learns L's curvature: itself, or that of an inner solver. Not collective."""
        return self

    def track(self, solver: SNES) -> None:  # noqa: B027 - most types know no derivative
        """Keep with every step, and in the state, what `derivative` needs. Not collective."""

    def derivative(self, solver: SNES, point: Point) -> Callable[[Tensor], Tensor] | None:
        """Return v -> (I - M'(x)) v for the step M that was made last, from `point`; None where it is not known.

        Collective.
        """
        return None

    def linear_solver(self, solver: SNES, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return b -> H(x)^-1 b by the type's linear solver, where `inverts`. Collective.

        Raises
        ------
        UnsupportedError
            If the type has none.
        """
        raise UnsupportedError(f"-{solver.prefix}snes_type {self.name}: has no linear solver; use newtonls")

    def state(self, solver: SNES) -> Tree:
        """Return what a restart needs, whole vectors, on rank 0. Collective."""
        return {}

    def load(self, solver: SNES, state: Tree) -> None:  # noqa: B027
        """Take over a state that every rank has. Collective."""

    def resume(self, solver: SNES, point: Point) -> None:  # noqa: B027
        """After `load`: the solve goes on from `point`. Collective if the space is sharded."""

    def view(self) -> list[str]:
        """Return lines for -snes_view. Not collective."""
        return []

    def brief(self) -> str:
        """Return the type in a word or two; two trees of the same words have states of the same shape."""
        return self.name

    def inner(self) -> list[tuple[str, SNES]]:
        """Return inner solvers with a heading each, for views. Not collective."""
        return []


class DirectionMethod(Method):
    """A type that chooses a direction; the solver's line search chooses the step x - lambda y."""

    @abstractmethod
    def direction(self, solver: SNES, point: Point) -> Tensor:
        """Return y, shape (n_local,). Collective."""

    def update(self, solver: SNES, old: Point, new: Point, step: float) -> None:
        """Learn from an accepted step. Collective."""

    def step(self, solver: SNES, point: Point) -> Step:
        y = self.direction(solver, point)
        line = solver.line(point, y)
        if not solver.descends(line, point) and solver.forget():
            y = self.direction(solver, point)
            line = solver.line(point, y)
        if not line.slope < 0:  # also catches not-a-number
            y = point.g
            line = solver.line(point, y)
        if line.slope == 0.0:
            return Step(point, "the gradient is zero")
        step, length = solver.search(point, line)
        if not step.failure:
            self.update(solver, point, step.point, length)
        return step
