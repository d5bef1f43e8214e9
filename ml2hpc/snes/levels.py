"""A solver on every level of a hierarchy: what multilevel types have in common.

The level's solver minimises H_l, which is L on the finest level and else

    H_l(x) = L_l(x) + <R grad H_{l+1}(x_{l+1}) - grad L_l(P x_{l+1}), x>

so that the gradient of H_l at P x_{l+1} is R grad H_{l+1}(x_{l+1}): known, and not evaluated again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc import dm
from ml2hpc.errors import OptionsError
from ml2hpc.log import Work
from ml2hpc.options import option
from ml2hpc.problem.interface import Problem
from ml2hpc.snes.interface import SNES, DirectionMethod, Method, Point, Tree

# A smoother makes its steps and tests nothing, as in PETSc.
_SMOOTHER = {"snes_rtol": 0.0, "snes_atol": 0.0, "snes_stol": 0.0, "snes_max_funcs": 10**9}
_BRACKETS = re.compile(r"\[((?:\(\d+\)|\d+),)*\{\d+\}\]")


Cycle = Literal["1", "2", "f"]
_ROUNDING = 1e-12  # of L: below this, line searches and trust regions judge by slopes


def visits(level: int, cycle: Cycle) -> tuple[Cycle, ...]:
    """Return the cycles that one on a level makes on the next coarser one. Not collective.

    >>> [visits(2, cycle) for cycle in ("1", "2", "f")], visits(1, "2")
    ([('1',), ('2', '2'), ('f', '1')], ('1',))
    """
    if level == 1:  # a second solve on the coarsest level would go on with the first
        return ("1",)
    return {"1": ("1",), "2": ("2", "2"), "f": ("f", "1")}[cycle]  # type: ignore[return-value]


def rises(new: float, old: float) -> bool:
    """Tell whether L rises by more than rounding. Not collective."""
    return not new <= old + _ROUNDING * abs(old)


@dataclass(frozen=True)
class SmoothingOptions:
    """Options of the steps on each level, under the stem of the multilevel type."""

    # PETSc's numbers.
    smoothdown: int = option(1, "steps on a level before its coarse correction", at_least=0)
    smoothup: int = option(1, "steps on a level after its coarse correction", at_least=0)
    # As the published implementation of RMTR does on its coarsest level.
    smoothcoarse: int = option(10, "steps on the coarsest level", at_least=1)
    smoothing: str | None = option(
        None,
        "steps on all levels, the finest first, for the three above: [(1),1,2,{3}] has 1, 1, 2 before and after the "
        "correction, none after it in ( ), 3 on the coarsest level",
    )
    batch: int = option(
        0, "samples drawn for each iteration, which sees L over these on every level; 0 takes all", at_least=0
    )
    seed: int = option(0, "seed of these draws", at_least=0)


@dataclass(frozen=True)
class Steps:
    """Steps on a level before and after the coarse correction; on the coarsest level all are before."""

    down: int
    up: int


def schedule(options: Any, count: int, stem: str) -> list[Steps]:
    """Return the steps of each level, the coarsest first. Not collective.

    Parameters
    ----------
    options
        With the fields of `SmoothingOptions`.

    Raises
    ------
    OptionsError
        If the notation is wrong, or has another number of levels.

    Examples
    --------
    >>> schedule(SmoothingOptions(smoothing="[(1),2,{5}]"), 3, "-snes_fas_")
    [Steps(down=5, up=0), Steps(down=2, up=2), Steps(down=1, up=0)]
    """
    if options.smoothing is None:
        return [Steps(options.smoothcoarse, 0), *[Steps(options.smoothdown, options.smoothup)] * (count - 1)]
    text = options.smoothing.replace(" ", "")
    words = text.strip("[]").split(",")
    if not _BRACKETS.fullmatch(text) or len(words) != count:
        raise OptionsError(
            f"{stem}smoothing {options.smoothing}: write one number for each of the {count} levels, the finest first, "
            f"the coarsest in braces, such as [(1),1,{{2}}]"
        )
    numbers = [int(word.strip("(){}")) for word in words]
    found = [Steps(n, 0 if word[0] in "({" else n) for word, n in zip(words, numbers, strict=True)]
    return found[::-1]


class LevelSolvers:
    """The hierarchy, the solver of each level, and the steps that they make.

    Parameters
    ----------
    role
        The first part of the children's prefixes: <role>_coarse_ for level 0, <role>_levels_1_, ...
    defaults
        Of all children.
    """

    def __init__(self, solver: SNES, role: str, options: Any, defaults: Tree, coarse: Tree) -> None:
        self.options = solver.read(dm.HierarchyOptions, "dm_", "Hierarchy (DM)")
        self.options.check(solver.prefix)
        self._o = options
        stem = f"-{solver.prefix}snes_{solver.method.stem}_"
        count = self.options.levels
        self.steps = schedule(options, count, stem)
        roles = [f"{role}_coarse_", *(f"{role}_levels_{k}_" for k in range(1, count))]
        self.children = []
        for k, name in enumerate(roles):
            wanted = {**defaults, **(coarse if k == 0 else {}), **_SMOOTHER, "snes_max_it": self.steps[k].down}
            # The options of one level between the coarsest and the finest stand for those of the others.
            child = solver.spawn(name, wanted, listed=k < 2)
            child.is_inner = True
            self.children.append(child)
            if child.options.max_it != self.steps[k].down:  # the user's own number for this level
                n = child.options.max_it
                self.steps[k] = Steps(n, n if self.steps[k].up else 0)
        self.finest = count - 1
        self._generator = torch.Generator().manual_seed(options.seed)
        self.rejected = 0  # coarse corrections that did not lower L
        self.tried = 0

    # Problems. ---------------------------------------------------------------------------------------------------

    def set_up(self, solver: SNES) -> None:
        """Build the hierarchy and prepare the solvers. Collective."""
        if self._o.batch > solver.problem.samples:
            raise OptionsError(
                f"-{solver.prefix}snes_{solver.method.stem}_batch {self._o.batch}: there are {solver.problem.samples} "
                f"samples"
            )
        self._prefix, self._unit = solver.prefix, solver.unit
        self._coarsened = solver.problem
        self.levels = self._whole = dm.coarsen(solver.problem, self.options, solver.prefix)
        self._sampled = False  # whether `levels` are those of a batch
        for child, level in zip(self.children, self.levels.levels, strict=True):
            child.set_up(level.problem, solver.unit)
            if not level.spokes:
                _silence(child)  # another group shows the same

    def rebind(self, solver: SNES) -> None:
        """Build the hierarchy of another problem on the same space. Collective."""
        self._unit = solver.unit
        self._coarsened = solver.problem
        self.levels = self._whole = dm.coarsen(solver.problem, self.options, solver.prefix)
        for child, level in zip(self.children, self.levels.levels, strict=True):
            child.rebind(level.problem, solver.unit)

    def open(self, solver: SNES, point: Point) -> Point:
        """Return the start of an iteration on the finest level, where a batch is drawn if one is asked for. Collective.

        The solver's problem may have been shifted since `set_up`.
        """
        samples, batch = solver.problem.samples, self._o.batch
        return self.over(solver, point, self.shuffled(samples)[:batch].sort().values if batch else None)

    def shuffled(self, samples: int) -> Tensor:
        """Return all sample numbers in an order that is drawn anew, the same on every rank. Not collective."""
        return torch.randperm(samples, generator=self._generator, device=self._generator.device)

    def over(self, solver: SNES, point: Point, rows: Tensor | None) -> Point:
        """Return a point on the finest level, in its units, of L over some samples; None takes all. Collective.

        Over some, L is evaluated there.
        """
        problem = solver.problem
        self._sampled = rows is not None
        self.levels = self._whole
        if rows is not None:
            problem = problem.sample(rows)
            self.levels = dm.coarsen(problem, self.options, self._prefix)
        scale = self.levels[self.finest].scale
        # A problem made anew would cost the solver what it keeps of the old one.
        same = self._sampled or problem is self._coarsened
        self.see(self.finest, self.levels[self.finest].problem if same else dm.in_metric(problem, scale))
        x = point.x if scale is None else scale * point.x
        if self._sampled:
            return self.evaluated(self.finest, x)
        g = point.g if scale is None else point.g / scale
        return Point(x, point.f, g, g)

    def see(self, level: int, problem: Problem) -> SNES:
        """Let a level's solver minimise another problem; return it. Collective."""
        child = self.children[level]
        if child.problem is not problem:
            child.rebind(problem, self._unit)
        return child

    def at(self, point: Point) -> Point:
        """Return a point of the finest level in the units of the solver, with L of the levels. Not collective."""
        scale = self.levels[self.finest].scale
        x, g = (point.x, point.g) if scale is None else (point.x / scale, point.g * scale)
        return Point(x, point.f, g, g)

    def close(self, solver: SNES, point: Point) -> Point:
        """Return the end of an iteration as a point of the solver. Collective if it saw a batch."""
        end = self.at(point)
        return solver.point(end.x, *(solver.gradient(end.x) if self._sampled else (end.f, end.g)))

    def evaluated(self, level: int, x: Tensor) -> Point:
        """Return a point of the level's problem, evaluated. Collective."""
        child = self.children[level]
        f, g = child.gradient(x)
        return Point(x, f, g, g, math.isfinite(f) and math.isfinite(child.problem.space.norm(g)))

    def inherit(self, level: int) -> None:
        """Let a level's solver start with what that of the next coarser one has learnt. Collective."""
        here, there = self.children[level], self.children[level - 1]
        here.method.lift(there.method, self.levels.transfer(level - 1), self._masses(level - 1))
        if here.linesearch is not None and there.linesearch is not None:
            here.linesearch.recent = list(there.linesearch.recent)

    def relink(self) -> None:
        """After `load`: let the solvers find again what they have of coarser levels. Collective."""
        for level in range(1, self.finest + 1):
            transfer, masses = self.levels.transfer(level - 1), self._masses(level - 1)
            self.children[level].method.relink(self.children[level - 1].method, transfer, masses)

    def _masses(self, level: int) -> Tensor:
        """The row sums of I' I, from a level to the next finer one; 1 for what it leaves out, as the edge of a grid."""
        transfer = self.levels.transfer(level)
        sums = transfer.restrict(transfer.prolong(torch.ones_like(self.children[level].problem.space.zeros())))
        return torch.where(sums == 0.0, 1.0, sums)

    # Steps. ------------------------------------------------------------------------------------------------------

    def below(self, level: int, point: Point) -> Point | None:
        """Make H_{l-1}, consistent with H_l at a point; return where it starts, None if it is not a number there.

        Collective.
        """
        transfer = self.levels.transfer(level - 1)
        coarse = self.levels[level - 1].problem
        self.children[level - 1].problem = coarse
        start = self.evaluated(level - 1, transfer.project(point.x))
        if not start.finite:
            return None
        g = transfer.restrict(point.g)
        slope = g - start.g
        self.see(level - 1, coarse.shift(slope))
        return Point(start.x, start.f + coarse.space.dot(slope, start.x), g, g)

    def smooth(self, level: int, point: Point, steps: int, now: Point | None = None) -> Point:
        """Return where some steps of the level's solver lead, or the point itself if H_l rose. Collective.

        Parameters
        ----------
        now
            Where a solver is that goes on after a restart.
        """
        if steps == 0:
            return point
        child = self.children[level]
        child.options = replace(child.options, max_it=steps)
        end = child.solve(point.x, (point.f, point.g)) if now is None else child.resume(now)
        return Point(end.x, end.f, end.g, end.g) if end.finite and not rises(end.f, point.f) else point

    def finish(self, level: int, point: Point, steps: int) -> Tensor:
        """Return where the last steps of a cycle on a coarse level lead. Collective.

        A solver that neither learns nor searches gets no gradient there: nobody asks for it.
        """
        child = self.children[level]
        method, search = child.method, child.linesearch
        forgetful = type(method).state is Method.state and child.npc is None
        full = search is not None and search.options.type == "none"
        if not (isinstance(method, DirectionMethod) and forgetful and full and steps):
            return self.smooth(level, point, steps).x
        assert search is not None
        point = self.smooth(level, point, steps - 1)
        return point.x - search.options.damping * method.direction(child, point)

    # State and views. --------------------------------------------------------------------------------------------

    @property
    def work(self) -> Work:
        """What all levels have evaluated, in units of the solver's. Not collective."""
        found = Work()
        found.sequential([child.work for child in self.children])
        return found

    @property
    def draws(self) -> NDArray[np.uint8]:
        """The state of the generator that draws batches. Not collective."""
        return self._generator.get_state().numpy()

    def forget(self) -> bool:
        """Reset the memories of all levels; return whether there was any. Not collective."""
        had = [child.forget() for child in self.children]
        return any(had)

    def state(self) -> Tree:
        """Return the states of all levels, complete on rank 0. Collective."""
        tree: Tree = {f"level_{k}": child.state() for k, child in enumerate(self.children)}
        tree["generator"] = self.draws
        tree["corrections"] = np.array([self.rejected, self.tried])
        return tree

    def load(self, state: Tree) -> None:
        """Take over a state that every rank has. Collective."""
        for k, child in enumerate(self.children):
            child.load(state[f"level_{k}"])
        self._generator.set_state(torch.from_numpy(state["generator"]))
        self.rejected, self.tried = map(int, state["corrections"])

    def inner(self) -> list[tuple[str, SNES]]:
        """Return the solvers with a heading each, the finest first. Not collective."""
        names = [f"level {k}" for k in range(len(self.children))]
        names[0] = "the coarsest level"
        found = [(f"Solver on {name}:", child) for name, child in zip(names, self.children, strict=True)]
        return found[::-1]

    def brief(self) -> str:
        """Return the hierarchy in a few words, of which the levels' unknowns and their units follow. Not collective."""
        o = self.options
        factor = f", coarsening {o.coarsening}" if o.coarsening != 2 else ""
        metric = f", metric {o.metric}" if o.metric != "euclidean" else ""
        return f"{o.levels} levels by {' and '.join(o.hierarchy)}{factor}{metric}"

    def view(self, made: Sequence[Steps]) -> list[str]:
        """Return lines for -snes_view, with the steps that are made on each level. Not collective."""
        steps = ", ".join(f"{s.down}/{s.up}" for s in made[:0:-1])
        return [
            *self.levels.view(self._unit),
            f"steps down/up, the finest first: {steps or 'none'}; {made[0].down} on the coarsest level",
            f"coarse corrections refused: {self.rejected} of {self.tried}",
        ]


def _silence(solver: SNES) -> None:
    """Let a solver and the tree below it print nothing. Not collective."""
    solver.monitor = solver.reason_viewer = None
    for child in [*([solver.npc] if solver.npc is not None else []), *(child for _, child in solver.method.inner())]:
        _silence(child)
