"""Full approximation scheme: corrections from coarser levels, in nonlinear multigrid cycles (MG/OPT).

    smooth H_l;   x_{l-1} <- argmin H_{l-1}, roughly, from P x_l;   x_l <- x_l + lambda I (x_{l-1} - P x_l);   smooth

lambda is chosen by a line search, so that a cycle never raises L; on a mini-batch what it does last is not judged. With
one level it is the coarsest level's solver.

    multiplicative   the cycle above
    additive         smoothing and coarse correction from the same point, added by the line search
    full             starts with nested iteration, a cycle on each level, then as multiplicative
    kaskade          starts with nested iteration, then smooths on the way up only
    nested           nested iteration, then the finest level alone

Nested iteration solves on the coarsest level, takes the result to the next finer one, and so on, once: the unknowns,
and what quasi-Newton methods have learnt there. Its work is small against that of the finest level, and so it is the
first thing to try on a deep network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.linesearch import Line
from ml2hpc.log import Work
from ml2hpc.options import option
from ml2hpc.snes.interface import SNES, After, Method, Point, Step, Tree
from ml2hpc.snes.levels import Cycle, LevelSolvers, SmoothingOptions, Steps, rises, visits
from ml2hpc.snes.nested import NestedIteration

_NESTED = ("full", "kaskade", "nested")  # types that start with nested iteration


class FullApproximation(Method):
    """Multigrid cycles on the problem itself, first-order consistent between levels.

    References
    ----------
    Brandt: Multi-level adaptive solutions to boundary-value problems, Math. Comp. 31 (1977); Nash: A multigrid approach
    to discretized optimization problems, Optim. Methods Softw. 14 (2000); Gaedke-Merzhäuser, Kopaničáková, Krause:
    Multilevel minimization for deep residual networks, ESAIM Proc. 71 (2021).
    """

    @dataclass(frozen=True)
    class Options(SmoothingOptions):
        """Options `-snes_fas_*`; those that PETSc has bear its names."""

        type: Literal["multiplicative", "additive", "full", "kaskade", "nested"] = option(
            "multiplicative",
            "cycles; smoother and correction added; nested iteration with cycles; nested iteration with cycles that "
            "smooth on the way up; nested iteration, then the finest level alone",
        )
        # Spirals of three turns on 1024 blocks, accuracy 0.99: five seeds of five from a dense matrix, four with the
        # pairs of L-BFGS, three with the unknowns alone.
        lift: bool = option(
            True,
            "nested iteration: L-BFGS on a level starts with the secant pairs of the next coarser one, or its dense "
            "matrix",
        )
        cycles: Cycle = option("1", "1: V-cycles, 2: W-cycles, f: F-cycles", aliases={"v": "1", "w": "2"})
        # PETSc has it off: it does not judge corrections by L. One objective on the level.
        use_coarse_correction_linesearch: bool = option(
            True, "search along coarse corrections by -snes_linesearch_*, else refuse those that raise L"
        )
        # Cycles make few steps; a start from nothing needs many, which are cheap on coarse levels.
        nested_steps: int = option(
            0, "steps on each coarser level in nested iteration; 0: those of a cycle", at_least=0
        )
        # On levels of samples the curvature is nearly the same, and coarse steps learn it for a share of the price.
        share: bool = option(False, "let all levels learn one quasi-Newton matrix together (qn, on samples)")
        damping: float = option(1.0, "factor of coarse corrections without a search", above=0.0)
        # Off, since what searches and preconditioners compare is L.
        batch_ahead: bool = option(
            False,
            "with batches, show L over the next one, whose gradient is needed anyway, instead of one more evaluation "
            "over all samples",
        )

    name = "fas"
    title = "Full approximation scheme (fas)"
    # The length of a coarse correction means something: a full step is taken if L falls enough.
    linesearch = {"type": "bt"}

    def configure(self, solver: SNES) -> None:
        o = self.options
        self._check(solver)
        # Gradient descent, the published smoother, leaves the blocks of networks where they are.
        self._levels = LevelSolvers(solver, "fas", o, {"snes_type": "qn"}, {})
        self._to_nest = o.type in _NESTED
        self._nested = NestedIteration(self._levels, o.lift, self._nested_steps, self._cycle)
        self._counted = Work()  # what of the levels' work the solver's has
        self._failures = 0  # iterations in a row that failed
        self._ahead: Point | None = None  # the iterate on the finest level, over the batch that has been drawn for it

    def _check(self, solver: SNES) -> None:
        """Refuse options that the others leave without an effect."""
        o, stem = self.options, f"-{solver.prefix}snes_fas_"
        if o.nested_steps and o.type not in _NESTED:
            raise OptionsError(f"{stem}nested_steps: {stem}type {o.type} has no nested iteration; use full or nested")
        if o.cycles != "1" and o.type in ("additive", "nested"):
            raise OptionsError(
                f"{stem}cycles {o.cycles}: {stem}type {o.type} makes no such cycles; use multiplicative or full"
            )
        if o.damping != 1.0 and o.use_coarse_correction_linesearch:
            raise OptionsError(
                f"{stem}damping: the search chooses lengths; use it with {stem}use_coarse_correction_linesearch false"
            )

    def set_up(self, solver: SNES) -> None:
        if self.options.batch_ahead and (solver.is_inner or solver.level > 0 or not self.options.batch):
            raise OptionsError(
                f"-{solver.prefix}snes_fas_batch_ahead: needs -{solver.prefix}snes_fas_batch, and is for the outermost "
                f"solver, whose iterates are not compared with L over all samples"
            )
        self._levels.set_up(solver)
        coarse, *others = self._levels.children
        for child in others if self.options.share else []:
            if not child.method.share(coarse.method):
                raise UnsupportedError(
                    f"-{solver.prefix}snes_fas_share: {child.prefix} and {coarse.prefix} cannot learn one matrix; use "
                    f"-{solver.prefix}dm_hierarchy samples, no -{solver.prefix}dm_coarse_ranks, and type qn with the "
                    f"same -snes_qn_* on all levels"
                )

    def rebind(self, solver: SNES) -> None:
        self._levels.rebind(solver)
        self._ahead = None

    def begin(self, solver: SNES) -> None:
        self._ahead = self._nested.stage = None
        self.interrupted = False

    def step(self, solver: SNES, point: Point) -> Step:
        levels, self.interrupted = self._levels, False
        self._counted = levels.work
        start = self._ahead or levels.open(solver, point)
        self._ahead = None
        end = start
        if self._to_nest and levels.finest:
            end = self._nested.solve(solver, start, lambda *told: self._goes_on(solver, point, *told))
            if self._nested.stage is not None:  # the run ends
                return Step(point, reported=True)
        self._to_nest = False
        if end is start and start.finite:
            end = self._once(solver, start)
        moved = solver.problem.space.norm(end.x - start.x) > 0.0
        close = self._close_ahead if self.options.batch_ahead else levels.close
        new = close(solver, end) if moved else point
        self._count(solver)
        self._failures = 0 if moved else self._failures + 1
        if not new.finite:
            return Step.broken(point, "after the cycle")
        return Step(new) if moved else Step(point, "no level lowers the objective")

    def _count(self, solver: SNES) -> None:
        """Add the levels' work to the solver's. Not collective."""
        before, self._counted = self._counted, self._levels.work
        solver.work.counts += self._counted.counts - before.counts

    def _goes_on(self, solver: SNES, point: Point, told: str, after: After) -> bool:
        """Ask the run, inside an iteration from a point, whether to go on. Collective."""
        if self.options.batch:  # which is drawn for an iteration, and not kept
            return True
        self._count(solver)
        return solver.goes_on(point, told, after)

    def _nested_steps(self, level: int) -> int | None:
        """Return the steps on a level in nested iteration, None for a cycle. Not collective."""
        o, steps = self.options, self._steps(level)
        apart: int = o.nested_steps
        if level < self._levels.finest and apart:
            return apart
        if level == 0:
            return steps.down
        if o.type not in ("kaskade", "nested"):
            return None
        return steps.up or steps.down

    def _close_ahead(self, solver: SNES, point: Point) -> Point:
        """Draw the next batch; return the end of an iteration as a point of the solver, L over that. Collective."""
        levels = self._levels
        self._drawn_from = levels.draws
        self._ahead = levels.open(solver, levels.at(point))
        new = levels.at(self._ahead)
        return solver.point(new.x, new.f, new.g)

    def _steps(self, level: int) -> Steps:
        steps = self._levels.steps[level]
        upwards = self.options.type in ("kaskade", "nested")
        return Steps(0, steps.up or steps.down) if upwards and level else steps

    # Cycles. -----------------------------------------------------------------------------------------------------

    def _once(self, solver: SNES, start: Point) -> Point:
        """Make the iteration's cycle; return its end. Collective."""
        o, finest = self.options, self._levels.finest
        if o.type == "additive":
            return self._add(solver, finest, start)
        if o.type == "nested":
            return self._smooth(solver, finest, start)
        if 0 < o.batch < solver.problem.samples:  # nobody asks for this batch's L at the end
            return replace(start, x=self._last(solver, finest, start, o.cycles))
        return self._cycle(solver, finest, start)

    def _cycle(self, solver: SNES, level: int, point: Point, kind: Cycle | None = None) -> Point:
        """Make a cycle on H_l from a point; return a point that is not above it. Collective."""
        levels, steps = self._levels, self._steps(level)
        point = levels.smooth(level, point, steps.down)
        if level == 0:
            return point
        line = self._line(solver, level, point, self._correction(solver, level, point, kind))
        if line is not None:
            point = self._take(solver, level, line, point)
        return levels.smooth(level, point, steps.up)

    def _last(self, solver: SNES, level: int, point: Point, kind: Cycle) -> Tensor:
        """Make the same cycle; return where it ends, without a gradient there. Collective."""
        levels, steps = self._levels, self._steps(level)
        if level == 0:
            return levels.finish(0, point, steps.down)
        point = levels.smooth(level, point, steps.down)
        line = self._line(solver, level, point, self._correction(solver, level, point, kind))
        if line is None:
            return levels.finish(level, point, steps.up)
        if steps.up:
            return levels.finish(level, self._take(solver, level, line, point), steps.up)
        search = solver.linesearch
        assert search is not None
        if self.options.use_coarse_correction_linesearch and search.options.type == "none":
            return line.at(search.options.damping)  # takes any step, and no value is asked for here
        return line.at(self._length(solver, line))

    def _correction(self, solver: SNES, level: int, point: Point, kind: Cycle | None) -> Tensor | None:
        """Return I e, shape (n_local,), from the next coarser level; None if L is no number there. Collective."""
        levels = self._levels
        start = levels.below(level, point)
        if start is None:
            return None
        *before, last = visits(level, kind or self.options.cycles)
        here = start
        for visit in before:
            here = self._cycle(solver, level - 1, here, visit)
        return levels.levels.transfer(level - 1).prolong(self._last(solver, level - 1, here, last) - start.x)

    def _line(self, solver: SNES, level: int, point: Point, e: Tensor | None) -> Line | None:
        """Return H_l along a correction, None where there is none that descends. Collective."""
        levels = self._levels
        levels.tried += 1
        if e is not None:
            line = levels.children[level].line(point, -e)
            if line.slope < 0:
                return line
        levels.rejected += 1
        return None

    def _length(self, solver: SNES, line: Line) -> float:
        """Return the factor of a correction, 0 where none lowers H_l. Collective."""
        o = self.options
        if not o.use_coarse_correction_linesearch:
            taken = line.value(o.damping) <= line.f
            self._levels.rejected += not taken
            return o.damping if taken else 0.0
        assert solver.linesearch is not None
        with solver.log.event("SNESLineSearch", solver.label):
            result = solver.linesearch.search(line)
        self._levels.rejected += bool(result.failure)
        return 0.0 if result.failure else result.step

    def _take(self, solver: SNES, level: int, line: Line, point: Point) -> Point:
        """Return the point that the search along a line finds, the old one if H_l rises. Collective."""
        line.eager = True  # a full step, most often taken: one evaluation instead of a value and then both
        step = self._length(solver, line)
        if step == 0.0:
            return point
        f, g = line.gradient(step)
        # The search `none` takes any step.
        finite = math.isfinite(self._levels.children[level].problem.space.norm(g))
        if finite and not rises(f, point.f):
            return Point(line.at(step), f, g, g)
        self._levels.rejected += 1
        return point

    def _smooth(self, solver: SNES, level: int, point: Point) -> Point:
        steps = self._steps(level)
        return self._levels.smooth(level, point, steps.up or steps.down)

    def _add(self, solver: SNES, level: int, point: Point) -> Point:
        """Add smoothing and coarse correction from the same point; return what is below. Collective."""
        levels = self._levels
        smoothed = levels.smooth(level, point, self._steps(level).down)
        if level == 0:
            return smoothed
        start = levels.below(level, point)
        if start is None:
            return smoothed
        e = levels.levels.transfer(level - 1).prolong(self._add(solver, level - 1, start).x - start.x)
        line = self._line(solver, level, point, e + (smoothed.x - point.x))
        together = point if line is None else self._take(solver, level, line, point)
        return together if together.f < smoothed.f else smoothed

    def learner(self) -> Method:
        if self._levels.levels[self._levels.finest].scale is not None:
            return self  # what is learnt there is of other unknowns
        return self._levels.children[-1].method.learner()

    # State and views. --------------------------------------------------------------------------------------------

    def reset(self) -> bool:
        # Where levels without a memory have failed too, another try changes nothing.
        return self._levels.forget() and self._failures < 2

    def state(self, solver: SNES) -> Tree:
        tree = {**self._levels.state(), "to_nest": self._to_nest, "failures": self._failures}
        tree["nested"] = self._nested.state()
        # The batch ahead is drawn again after a restart.
        return tree if self._ahead is None else {**tree, "generator": self._drawn_from}

    def load(self, solver: SNES, state: Tree) -> None:
        self._levels.load(state)
        self._levels.relink()
        self._to_nest, self._failures = bool(state["to_nest"]), int(state["failures"])
        self._nested.load(state.get("nested", {}))

    def resume(self, solver: SNES, point: Point) -> None:
        self.interrupted = self._nested.stage is not None

    def inner(self) -> list[tuple[str, SNES]]:
        return self._levels.inner()

    def brief(self) -> str:
        one = ", one matrix" if self.options.share else ""
        return f"fas({self.options.type}, {self._levels.brief()}{one})"

    def view(self) -> list[str]:
        o = self.options
        name = {"1": "V", "2": "W", "f": "F"}[o.cycles]
        how = "line search" if o.use_coarse_correction_linesearch else f"damping={o.damping:g}"
        line = f"type is {o.type.upper()}"
        if o.type != "nested":
            line += f", {name}-cycles, coarse corrections by {how}"
        line += ", one matrix for all levels" if o.share else ""
        line += f", batches of {o.batch} samples" if o.batch else ""
        return [line, *self._levels.view([self._steps(level) for level in range(self._levels.finest + 1)])]
