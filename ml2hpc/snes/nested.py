"""Nested iteration: solve on the coarsest level, take what is found to the next finer one, and so on, once.

Most of a training may happen here, inside one iteration of the solver. So the run is asked between levels, and after
every iteration of a level's solver, whether to go on; a restart goes on there, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ml2hpc.snes.interface import SNES, After, Point, Tree
from ml2hpc.snes.levels import LevelSolvers
from ml2hpc.snes.reasons import Reason
from ml2hpc.vec import VectorSpace

Question = Callable[[str, After], bool]
"""Asks the run whether to go on, with how far the step is, and after what."""


@dataclass(frozen=True)
class Before:
    """A nested iteration that comes to a level.

    Attributes
    ----------
    x
        What was found on the next coarser one.
    """

    level: int
    x: Tensor


@dataclass(frozen=True)
class Inside:
    """A nested iteration in the solve on a level, from `start`, now at `now`."""

    level: int
    start: Point
    now: Point


class NestedIteration:
    """The solves on all levels, from the coarsest to the finest.

    Parameters
    ----------
    lift
        Whether solvers start with what those of the next coarser level have learnt.
    steps
        Of a level's solver; None for a cycle there.
    cycle
        Make a cycle on a level and those below. Collective.
    """

    def __init__(
        self,
        levels: LevelSolvers,
        lift: bool,
        steps: Callable[[int], int | None],
        cycle: Callable[[SNES, int, Point], Point],
    ) -> None:
        self._levels, self._lift = levels, lift
        self._steps, self._cycle = steps, cycle
        self.stage: Before | Inside | None = None  # where one that was interrupted goes on

    def solve(self, solver: SNES, point: Point, goes_on: Question) -> Point:
        """Return what is below L on the finest level, else the point; `stage` is set if the run ends it. Collective.

        Parameters
        ----------
        goes_on
            Ask whether to go on. Collective.
        """
        levels, stage = self._levels, self.stage or Before(0, self._project(point.x))
        for level in range(stage.level, levels.finest + 1):
            if isinstance(stage, Before):
                start = self._enter(level, stage.x)
                stage = Inside(level, start, start)
            end = self._visit(solver, stage, goes_on) if stage.now.finite else None
            if end is None:
                break
            if level == levels.finest:
                self.stage = None
                return end if end.f < point.f else point
            self.stage = stage = Before(level + 1, end.x)
            if not goes_on(f"level {level} of nested iteration done", "level"):
                break
        if solver.reason == Reason.CONVERGED_ITERATING:
            self.stage = None
        return point

    def _project(self, x: Tensor) -> Tensor:
        """Return a point on the coarsest level. Collective."""
        levels = self._levels
        for level in range(levels.finest, 0, -1):
            x = levels.levels.transfer(level - 1).project(x)
        return x

    def _enter(self, level: int, x: Tensor) -> Point:
        """Return where the solve on a level begins, from what was found on the next coarser one. Collective."""
        levels = self._levels
        if level:
            x = levels.levels.transfer(level - 1).lift(x)
        if level < levels.finest:
            levels.see(level, levels.levels[level].problem)
        if level and self._lift:
            levels.inherit(level)
        return levels.evaluated(level, x)

    def _visit(self, solver: SNES, stage: Inside, goes_on: Question) -> Point | None:
        """Solve on a level, or go on there; return the end, None if the run ends it on the way. Collective."""
        level, steps = stage.level, self._steps(stage.level)
        if steps is None:
            return self._cycle(solver, level, stage.start)
        child = self._levels.children[level]

        def ask(child: SNES, now: Point, norm: float, update: float) -> Reason:
            if child.iteration and child.reason == Reason.CONVERGED_ITERATING:
                self.stage = Inside(level, stage.start, now)
                goes_on(f"level {level} of nested iteration, step {child.iteration} of {steps}", "step")
            return solver.reason

        # Groups of fewer ranks are not asked: they need not be as long on their way.
        whole = child.problem.comm.size == solver.problem.comm.size
        child.observe = ask if whole else None
        on_the_way = None if stage.now is stage.start else stage.now
        end = self._levels.smooth(level, stage.start, steps, on_the_way)
        child.observe = None
        return end if solver.reason == Reason.CONVERGED_ITERATING else None

    # State. ------------------------------------------------------------------------------------------------------

    def state(self) -> Tree:
        """Return where it stands, complete on rank 0; the levels' solvers have states of their own. Collective."""
        stage = self.stage
        if stage is None:
            return {}
        if isinstance(stage, Before):
            return {"level": stage.level, "x": self._space(stage.level - 1).gather(stage.x).cpu().numpy()}
        space = self._space(stage.level)
        points = {name: _written(space, p) for name, p in (("start", stage.start), ("now", stage.now))}
        return {"level": stage.level, **points}

    def load(self, state: Tree) -> None:
        """Take over a state that every rank has. Not collective."""
        self.stage = None
        if not state:
            return
        level = int(state["level"])
        if "x" in state:
            self.stage = Before(level, self._space(level - 1).restored(state["x"]))
        else:
            self.stage = Inside(level, *(_read(self._space(level), state[name]) for name in ("start", "now")))

    def _space(self, level: int) -> VectorSpace:
        return self._levels.children[level].problem.space


def _written(space: VectorSpace, point: Point) -> Tree:
    vectors = {"x": point.x, "g": point.g} | ({} if point.r is point.g else {"r": point.r})
    return {"f": repr(point.f), **{name: space.gather(v).cpu().numpy() for name, v in vectors.items()}}


def _read(space: VectorSpace, state: Tree) -> Point:
    x, g = (space.restored(state[name]) for name in ("x", "g"))
    return Point(x, float(state["f"]), g, space.restored(state["r"]) if "r" in state else g)
