"""The one solve loop.

    repeat
        x_half = M(x_k)                       right nonlinear preconditioner (NPC), if there is one
        x_{k+1} = step(x_half)                the type: a direction with a line search, a sweep, an optimiser's step

A left NPC replaces the residual grad L(x) by x - M(x) in what the type sees; the merit function stays L. The loop
knows preconditioning, types do not. A preconditioner step that raises L is not taken.

Between two iterations `SNES.refresh` may replace the problem by another on the same space (new points, new weights).
Solvers keep what they learnt; a direction that is no descent direction any more costs the type its memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from ml2hpc.errors import UserError
from ml2hpc.linesearch import Line, LineSearch
from ml2hpc.log import Log, Work
from ml2hpc.monitor import Viewer, norm_line, reason_line
from ml2hpc.problem.interface import Cost, Problem
from ml2hpc.snes import view
from ml2hpc.snes.method import Method, Options, Point, Side, Step, Tree
from ml2hpc.snes.reasons import Reason

Observer = Callable[["SNES", "Point", float, float], Reason]
"""Called after every iteration with the solver, the iterate, its gradient norm and the length of the step."""

After = Literal["step", "level", "iteration"]

Ask = Callable[["SNES", "Point", str, After], Reason]
"""Called inside a long step with the solver, the iterate before it, how far the step is, and after what."""

Refresh = Callable[["SNES", "Point"], "Point | None"]
"""Called before every iteration; may `SNES.replace` the problem, and then returns the iterate on the new one."""

# Cosine of the angle between direction and gradient below which the direction is noise: a definite matrix reaches it
# with a condition number above 1e20 only, more than float64 can hold.
_PERPENDICULAR = 1e-10


class SNES:
    """One node of the solver tree: generic options, a type, a line search and, perhaps, an NPC.

    Parameters
    ----------
    prefix
        Names its options, monitor lines, timers and groups in files.
    level
        Depth in the tree, for indentation.
    spawn
        Creates a child: `spawn(role, defaults, listed=True)`; its prefix is this one's plus the role word.
    read
        Reads more options under this prefix: `read(schema, stem, title)`.
    foreign
        Returns the options below this prefix and a stem that another library reads: `foreign(stem)`.
    """

    def __init__(
        self,
        method: Method,
        options: Options,
        linesearch: LineSearch | None,
        npc: SNES | None,
        *,
        prefix: str,
        level: int,
        spawn: Callable[..., SNES],
        read: Callable[..., Any],
        foreign: Callable[[str], dict[str, str]],
    ) -> None:
        self.method = method
        self.options = options
        self.linesearch = linesearch
        self.npc = npc
        self.prefix = prefix
        self.label = prefix  # names its timers; subdomain solvers share one
        self.level = level
        self.spawn = spawn
        self.read = read
        self.foreign = foreign
        self.is_inner = False  # True for an NPC: reaching max_it is what it is asked to do
        self.side: Side | None = None
        if npc is not None:
            self.side = method.sides[0] if options.npc_side == "default" else options.npc_side
        self.monitor = self._viewer("monitor", options.monitor)
        self.reason_viewer = self._viewer("converged_reason", options.converged_reason)
        self.viewer = self._viewer("view", options.view)
        self.observe: Observer | None = None  # the run's say after every iteration
        self.ask: Ask | None = None  # the run's say inside a long step
        self.refresh: Refresh | None = None  # the run's chance to replace the problem before every iteration
        self.work = Work()
        self.iteration = 0
        self.rejected = 0
        self.resets = 0  # times that the type's memory was given up, in all solves
        self.reason = Reason.CONVERGED_ITERATING
        self.failure = ""
        self.base: Point | None = None  # the iterate that a step starts from, before the right NPC
        self._spent = 0.0  # gradients of earlier solves, which do not count for max_funcs
        self._start: tuple[float, float] = (0.0, 0.0)  # f and gradient norm at iteration 0

    def _viewer(self, name: str, text: str | None) -> Viewer | None:
        return None if text is None else Viewer.parse(text, f"-{self.prefix}snes_{name}")

    def set_up(self, problem: Problem, unit: Cost | None = None) -> None:
        """Prepare the tree for a problem. Collective on the problem's ranks.

        Parameters
        ----------
        unit
            The cost that counts as one evaluation: the whole problem's.
        """
        self.problem = problem
        self.unit = unit or problem.cost
        self.log: Log = problem.comm.log
        if self.npc is not None:
            self.npc.set_up(problem, self.unit)
        self.method.set_up(self)

    def rebind(self, problem: Problem, unit: Cost | None = None) -> None:
        """Take another problem on the same space; the tree keeps what it learnt. Collective on the problem's ranks."""
        space = problem.space
        assert (space.n, space.n_local, space.dtype) == (
            self.problem.space.n,
            self.problem.space.n_local,
            self.problem.space.dtype,
        ), "a replaced problem has the same unknowns"
        self.problem = problem
        self.unit = unit or problem.cost
        if self.npc is not None:
            self.npc.rebind(problem, self.unit)
        self.method.rebind(self)

    def replace(self, problem: Problem, point: Point) -> Point | None:
        """Go on with another problem on the same space from the same x; return the iterate there. Collective.

        What is measured against the start is measured anew: the gradient norm against its value here, L against the
        larger of the two starts, so that a jump of L is neither convergence nor divergence.

        Returns
        -------
        point
            None if L or its gradient is not a number there: the old problem stays, and the solve ends.
        """
        old = self.problem
        self.rebind(problem)
        f, g = self.gradient(point.x)
        new = self.point(point.x, f, g)
        if not new.finite:
            self.rebind(old)
            what = "the problem that replaces this one: its objective or gradient is not a number"
            self._end(Reason.DIVERGED_OBJECTIVE_NANORINF, what)
            return None
        self._start = (max(self._start[0], f, key=abs), self.problem.space.norm(g))
        return new

    # Evaluations, counted and timed. -----------------------------------------------------------------------------

    def objective(self, x: Tensor) -> float:
        """Return L(x). Collective."""
        self.work.add("objectives", self.problem.cost.objective / self.unit.objective)
        with self.log.event("SNESObjectiveEval", self.label):
            return self.problem.objective(x)

    def gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Return L(x) and its gradient. Collective."""
        self.work.add("gradients", self.problem.cost.gradient / self.unit.gradient)
        with self.log.event("SNESFunctionEval", self.label):
            return self.problem.value_and_gradient(x)

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        """Return the Hessian of L at x times v. Collective."""
        self.work.add("hessians", self.problem.cost.hessian / self.unit.hessian)
        with self.log.event("SNESJacobianEval", self.label):
            return self.problem.hessian_action(x, v)

    def point(self, x: Tensor, f: float, g: Tensor) -> Point:
        """Return the iterate with its residual: g, or x - M(x) for a left NPC. Collective."""
        point = Point(x, f, g, g, math.isfinite(f) and math.isfinite(self.problem.space.norm(g)))
        if self.side == "left" and point.finite:
            point.r = x - self._apply(point).x
        return point

    def line(self, point: Point, y: Tensor) -> Line:
        """Return L along x - lambda y. Collective."""
        space = self.problem.space
        return Line(self.objective, self.gradient, space, point.x, y, point.f, point.g, self.hessian_action)

    def descends(self, line: Line, point: Point) -> bool:
        """Tell whether -y descends, and is not perpendicular to the gradient up to noise. Collective if sharded."""
        gg, yy = self.problem.space.dots((point.g, point.g), (line.y, line.y))
        return -line.slope > _PERPENDICULAR * math.sqrt(gg * yy)

    def forget(self) -> bool:
        """Reset the type's memory and count it; return whether there was any. Not collective."""
        if self.linesearch is not None:
            self.linesearch.forget()
        had = self.method.reset()
        self.resets += had
        return had

    def search(self, point: Point, line: Line) -> tuple[Step, float]:
        """Search along a line from a point; return the step and its lambda, 0 where it failed. Collective."""
        assert self.linesearch is not None
        with self.log.event("SNESLineSearch", self.label):
            result = self.linesearch.search(line)
            if result.failure and not line.seen_finite:
                return Step.broken(point, "every trial of the line search"), 0.0
            if result.failure:
                return Step(point, result.failure), 0.0
            new = self.point(line.at(result.step), *line.gradient(result.step))
        return (Step(new), result.step) if new.finite else (Step.broken(point, "after the line search"), 0.0)

    # The loop. ---------------------------------------------------------------------------------------------------

    def solve(self, x: Tensor, known: tuple[float, Tensor] | None = None) -> Point:
        """Minimise from x; `self.reason` says how it ended. Collective.

        Parameters
        ----------
        x
            Start, shape (n_local,); not changed.
        known
            L and its gradient there, if they have been computed.

        Raises
        ------
        UserError
            If x is not a vector of the problem's space.
        """
        space = self.problem.space
        if x.shape != (space.n_local,) or x.dtype != space.dtype:
            raise UserError(
                f"the start must be a tensor of shape ({space.n_local},) and type {space.dtype}, "
                f"got {tuple(x.shape)} and {x.dtype}"
            )
        with self.log.event("SNESSolve", self.label):
            self.method.begin(self)
            spent = self.work["gradients", "path"]
            f, g = known if known is not None else self.gradient(x)
            point = self.point(x, f, g)
            self.iteration = 0
            self.rejected = 0
            self.failure = ""
            self._start = (point.f, self.problem.space.norm(point.g))
            self._spent = spent
            self.reason = Reason.CONVERGED_ITERATING
            self._report(point, 0.0)
            return self._loop(point)

    def resume(self, point: Point) -> Point:
        """Go on from a loaded state. Collective."""
        with self.log.event("SNESSolve", self.label):
            self.reason, self.failure = Reason.CONVERGED_ITERATING, ""
            self.method.resume(self, point)
            if self.iteration >= self.options.max_it:
                self._end(Reason.DIVERGED_MAX_IT)
            return self._loop(point)

    def _loop(self, point: Point) -> Point:
        while self.reason == Reason.CONVERGED_ITERATING:
            refresh = None if self.method.interrupted else self.refresh
            refreshed = refresh(self, point) if refresh is not None else None
            if self.reason == Reason.CONVERGED_ITERATING:
                point = self._iterate(refreshed or point)
        if self.reason_viewer and self.problem.comm.rank == 0:
            self.reason_viewer.write(reason_line(self.level, self.prefix, self.reason.name, self.iteration))
        return point

    def _iterate(self, point: Point) -> Point:
        self.base = point
        half = point if self.method.interrupted else self._precondition(point)
        if self.reason != Reason.CONVERGED_ITERATING:
            return point
        step = self.method.step(self, half)
        moved = step.point.f < point.f
        broken = step.reason != Reason.DIVERGED_LINE_SEARCH
        if step.failure and (broken or (not self.forget() and not moved)):
            self._end(step.reason, step.failure)
            return step.point
        if not step.reported:
            self.iteration += 1
            self._report(step.point, self.problem.space.norm(step.point.x - point.x))
        return step.point

    def passed(self, point: Point, before: Point) -> bool:
        """Count, test and show an iterate inside a step; return whether the step may go on. Collective."""
        self.iteration += 1
        self._report(point, self.problem.space.norm(point.x - before.x))
        return self.reason == Reason.CONVERGED_ITERATING

    def goes_on(self, point: Point, told: str, after: After) -> bool:
        """Ask the run, inside a step from a point, whether to go on; if not, the step is to end. Collective.

        Parameters
        ----------
        told
            How far the step is, in words.
        """
        said = Reason.CONVERGED_ITERATING if self.ask is None else self.ask(self, point, told, after)
        if said != Reason.CONVERGED_ITERATING:
            self._end(said, told)
        return self.reason == Reason.CONVERGED_ITERATING

    def _precondition(self, point: Point) -> Point:
        if self.npc is None:
            return point
        half = point
        if self.side == "right":
            if self.iteration % self.options.npc_lag:
                return point
            half = self.method.precondition(self, point, self._apply)
            self.rejected += half is point
        if self.npc.reason.is_failure:
            self._end(Reason.DIVERGED_INNER, f"{self.npc.prefix}: {self.npc.reason.name} {self.npc.failure}".rstrip())
        return half

    def _apply(self, point: Point) -> Point:
        assert self.npc is not None
        with self.log.event("SNESNPCSolve", self.npc.label):
            before = Work(self.npc.work.counts)
            result = self.npc.solve(point.x, (point.f, point.g))
            self.work.counts += self.npc.work.counts - before.counts
        return result

    def residual_action(self, point: Point) -> Callable[[Tensor], Tensor] | None:
        """Return v -> (I - M'(x)) v of the left NPC, applied last at the point, if it knows it. Collective."""
        npc = self.npc
        assert npc is not None
        derivative = npc.method.derivative(npc, point)

        def action(v: Tensor) -> Tensor:
            assert derivative is not None
            with self.log.event("SNESNPCDerivative", npc.label):
                before = Work(npc.work.counts)
                result = derivative(v)
                self.work.counts += npc.work.counts - before.counts
            return result

        return None if derivative is None else action

    def _report(self, point: Point, update: float) -> None:
        """Test, show and record an iterate."""
        norm = self.problem.space.norm(point.g)
        if self.monitor and self.problem.comm.rank == 0:
            detail = (update, point.f) if self.monitor.detail else None
            self.monitor.write(norm_line(self.level, self.iteration, norm, detail))
        self._test(point, norm, update)
        if self.observe is not None:
            said = self.observe(self, point, norm, update)
            if self.reason == Reason.CONVERGED_ITERATING and said != Reason.CONVERGED_ITERATING:
                self._end(said)

    def _test(self, point: Point, norm: float, update: float) -> None:
        o = self.options
        f_start, norm_start = self._start
        if not math.isfinite(point.f):
            self._end(Reason.DIVERGED_OBJECTIVE_NANORINF)
        elif not math.isfinite(norm):
            self._end(Reason.DIVERGED_FUNCTION_NANORINF)
        elif norm < o.atol or norm == 0.0:
            self._end(Reason.CONVERGED_FNORM_ABS)
        elif self.iteration > 0 and norm <= o.rtol * norm_start:
            self._end(Reason.CONVERGED_FNORM_RELATIVE)
        elif self.iteration > 0 and 0.0 < update < o.stol * self.problem.space.norm(point.x):
            self._end(Reason.CONVERGED_SNORM_RELATIVE)
        elif self.iteration > 0 and point.f > o.divergence_tolerance * abs(f_start):
            self._end(Reason.DIVERGED_DTOL)
        elif self.iteration >= o.max_it:
            asked = self.is_inner or self.method.completes
            self._end(Reason.CONVERGED_ITS if asked else Reason.DIVERGED_MAX_IT)
        elif self.work["gradients", "path"] - self._spent >= o.max_funcs:
            self._end(Reason.DIVERGED_FUNCTION_COUNT)

    def _end(self, reason: Reason, failure: str = "") -> None:
        self.reason = reason
        self.failure = failure

    # State and views. --------------------------------------------------------------------------------------------

    def state(self) -> Tree:
        """Return what a restart needs apart from the iterate; complete on rank 0. Collective."""
        own: Tree = {"type": self.method.name, "work": self.work.counts.copy(), "method": self.method.state(self)}
        own |= {"iteration": self.iteration, "rejected": self.rejected, "resets": self.resets, "spent": self._spent}
        own["start"] = list(map(repr, self._start))
        if self.linesearch is not None:
            own["steps"] = list(map(repr, self.linesearch.recent))
        if self.npc is not None:
            own["npc"] = self.npc.state()
        return own

    def load(self, state: Tree) -> None:
        """Take over a state that every rank has, after `set_up`. Collective."""
        self.work = Work(state["work"])
        self.iteration = int(state["iteration"])
        self.rejected = int(state["rejected"])
        self.resets = int(state["resets"])
        self._spent = float(state["spent"])
        f, norm = map(float, state["start"])
        self._start = (f, norm)
        if self.linesearch is not None:
            self.linesearch.recent = list(map(float, state["steps"]))
        self.method.load(self, state["method"])
        if self.npc is not None and "npc" in state:
            self.npc.load(state["npc"])

    def view(self) -> str:
        """Return the tree below this solver as PETSc prints it. Not collective."""
        return view.text(self)

    def ending(self) -> str:
        """Return how the solve ended, such as "DIVERGED_MAX_IT after 7 iterations", and what is known of it."""
        text = f"{self.reason.name} after {self.iteration} iterations"
        return f"{text}: {self.failure}" if self.failure else text

    def brief(self) -> str:
        """Return the tree below this solver in a line, such as "qn(lbfgs 10) + npc nasm(...) of qn(ssbroyden)"."""
        text = " of ".join([self.method.brief(), *(child.brief() for _, child in self.method.inner())])
        return f"{text} + {self.side} npc {self.npc.brief()}" if self.npc is not None else text
