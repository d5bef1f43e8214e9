"""Trust regions: minimise a quadratic model of L in a ball whose radius follows the model's success.

With a right NPC this is the globalisation of APTS: the preconditioner's step is held in the same ball, judged by the
same ratio, and changes the same radius; where the preconditioner is `nasm` of `newtontr`, its local solves stay in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ml2hpc.errors import OptionsError
from ml2hpc.options import option
from ml2hpc.problem.interface import Problem
from ml2hpc.snes.interface import SNES, Method, Point, Region, Step, Tree
from ml2hpc.snes.reasons import Reason
from ml2hpc.snes.sr1 import SR1, DenseSR1, LimitedSR1
from ml2hpc.trustregion import Box, Fallback, Model, SteihaugToint, Subproblem, Trial

_TRIALS = 20  # of one step: a radius of 1 is 1e-12 after them, and the next step goes on from there
_SPENT = 1e-6  # of the ball of a parent: with less of it left, the solve ends
_ON = 1.0 - 1e-8  # of the radius: a step that long is on the boundary
# Rounding of L against L, in units of the last digit (Conn, Gould, Toint, section 17.4.2, with |L| in place of
# max(1, |L|): losses go far below 1).
_ROUNDING = 10.0


class NewtonTR(Method):
    """x+ = x + s, with s the minimiser of m(s) = <g, s> + <s, B s> / 2 in |s| <= Delta, if rho > eta1.

        rho = (L(x) - L(x + s)) / -m(s)
        Delta+ = t1 min(Delta, |s|)        if rho < eta2
                 min(t2 Delta, deltamax)   if rho > eta3 and Delta bound the step, else Delta

    B is the Hessian or the Gauss-Newton matrix by its action, or a symmetric rank-one model of secant pairs. A refused
    trial costs an objective; of secant models a gradient, from which the model learns. Where L(x) - L(x + s) and -m(s)
    are lost in the rounding of L, the decrease is taken from the gradients, -<g(x) + g(x + s), s> / 2.

    The step of a right NPC is cut at the boundary, and taken if L falls by more than eta1 times the larger of the
    model's decrease for it and for the Cauchy step: what the theory asks of the model's own steps, even where the model
    rises along the preconditioner's. Its own ratio rho changes the radius.

    References
    ----------
    Conn, Gould, Toint: Trust-region methods, SIAM (2000). Brust, Erway, Marcia, Comput. Optim. Appl. 66 (2017).
    Trotti, Cruz, Kopanicakova, Krause: Parallel trust-region approaches in neural network training, arXiv 2312.13677.
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_tr_*`, most of them PETSc's with its defaults."""

        delta0: float = option(0.2, "first radius", above=0.0, below=math.inf)
        deltamin: float = option(1e-12, "end when no step succeeds with a radius above this", above=0.0)
        deltamax: float = option(1e10, "largest radius", above=0.0, below=math.inf)
        eta1: float = option(0.001, "take a step when L falls by more than this share of the model", at_least=0.0)
        eta2: float = option(0.25, "shrink the radius when the share is below", at_least=0.0)
        eta3: float = option(0.75, "grow the radius when the share is above, for a step that it bound", at_least=0.0)
        t1: float = option(0.25, "factor of a shrinking radius", above=0.0, below=1.0)
        t2: float = option(2.0, "factor of a growing radius", above=1.0)
        norm_type: Literal["2", "infinity"] = option("2", "the region is a ball, or a box")
        # 0 asks for nothing: every solver of the subproblem here falls at least as far as the Cauchy point.
        kmdc: float = option(
            0.0, "refuse steps whose model falls less than this times |g| min(Delta, |g|/|B|)", at_least=0.0, below=1.0
        )
        fallback_type: Fallback = option(
            "newton", "where conjugate gradients leave the ball: cut them, the Cauchy point, or the dogleg"
        )
        # The exact Hessian converges quadratically, and sees the negative curvature that Gauss-Newton does not.
        model: Literal["hessian", "gn"] = option("hessian", "B by its action: the Hessian, or the Gauss-Newton matrix")
        qn: Literal["none", "sr1", "lsr1"] = option(
            "none", "no secant model, or B as a symmetric rank-one matrix (sr1: dense), of limited memory (lsr1)"
        )
        # RMTR for residual networks uses 10 pairs and 1e-8.
        qn_m: int = option(10, "stored pairs (lsr1)", at_least=1)
        qn_tol: float = option(1e-8, "leave a pair out when |<w, s>| is below this times |w| |s|", above=0.0, below=1.0)
        # As for gn: bounded work, and a rough step is enough while the gradient is large.
        cg_max_it: int = option(50, "most actions of B in one subproblem", at_least=1)
        cg_rtol: float = option(
            0.1, "largest relative residual of the subproblem; it falls as the gradient does", above=0.0, below=1.0
        )
        recycle: bool = option(True, "keep the radius and the pairs from one solve to the next")

    name = "newtontr"
    stem = "tr"
    title = "Trust region (newtontr)"
    sides = ("right",)
    defaults = {"stol": 0.0}  # as in PETSc: short steps are the radius's, not convergence

    def configure(self, solver: SNES) -> None:
        o, stem = self.options, f"-{solver.prefix}snes_tr_"
        krylov = o.qn == "none" and o.norm_type == "2"
        if o.fallback_type != "newton" and not krylov:
            raise OptionsError(
                f"{stem}fallback_type {o.fallback_type}: needs conjugate gradients in a ball; "
                f"use {stem}qn none and {stem}norm_type 2"
            )
        if o.model == "gn" and o.qn != "none":
            raise OptionsError(f"{stem}model gn: {stem}qn {o.qn} is another model; use one of both")
        if not o.eta1 <= o.eta2 <= o.eta3:
            raise OptionsError(f"{stem}eta1, eta2, eta3: must not fall, got {o.eta1:g}, {o.eta2:g}, {o.eta3:g}")
        if not o.deltamin <= o.delta0 <= o.deltamax:
            raise OptionsError(f"{stem}delta0 {o.delta0:g}: must be in [{o.deltamin:g}, {o.deltamax:g}]")
        self._delta = o.delta0

    def set_up(self, solver: SNES) -> None:
        o, space = self.options, solver.problem.space
        if o.model == "gn":
            solver.problem.linearize(space.zeros())  # refuses what is no sum of squares
        self._secant: SR1 | None = None
        if o.qn != "none":
            self._secant = DenseSR1(space, o.qn_tol) if o.qn == "sr1" else LimitedSR1(space, o.qn_tol, o.qn_m)
        self._delta = o.delta0
        self._most = math.inf  # how far the parent allows
        self._accepted = 0  # steps since the memory was given up
        self.begin(solver)

    def begin(self, solver: SNES) -> None:
        self._first_norm: float | None = None  # of the gradient, for the forcing term
        self._origin: Tensor | None = None  # where the parent's ball is centred
        if self._delta < self.options.deltamin:  # a radius that collapsed is no guide
            self._delta = self.options.delta0
        if not self.options.recycle:
            self._delta = self.options.delta0
            self.reset()

    def reset(self) -> bool:
        had = self._secant is not None and self._secant.pairs > 0 and self._accepted > 0
        if self._secant is not None:
            self._secant.reset()
        self._accepted = 0
        return had

    def confine(self, radius: float) -> None:
        self._most = radius

    @property
    def region(self) -> Region:
        return Region(self._delta, self.options.norm_type)

    def judge(self, solver: SNES, s: Tensor, rho: float, *, bound: bool) -> None:
        self._adapt(rho, self._length(solver, s), self._delta, bound=bound)

    # The step. ---------------------------------------------------------------------------------------------------

    def step(self, solver: SNES, point: Point) -> Step:
        if solver.problem.space.norm(point.g) == 0.0:
            return Step(point, "the gradient is zero")
        room = self._room(solver, point)
        if room < _SPENT * self._most:
            return Step(point, "the ball that the parent allows is used up", Reason.DIVERGED_TR_DELTA)
        subproblem = self._subproblem(solver, point)
        for _ in range(_TRIALS):
            with solver.log.event("KSPSolve", solver.label):
                radius = min(self._delta, room)
                trial = subproblem.solve(radius)
            if not math.isfinite(trial.decrease):
                return Step.broken(point, "the model of the objective")
            if not trial.decrease > 0.0:
                return Step(point, "no step lowers the model of the objective")
            new = self._try(solver, point, trial, radius)
            if new is not None:
                self._accepted += 1
                return Step(new)
            if self._delta < self.options.deltamin:
                return self._collapsed(solver, point)
            if self._secant is not None:
                subproblem = self._subproblem(solver, point)
        return Step(point)  # the radius goes on shrinking in the next iteration

    def _collapsed(self, solver: SNES, point: Point) -> Step:
        """Give up the pairs, if steps were made with them; else end the solve."""
        if solver.forget():
            self._delta = self.options.delta0
            return Step(point)
        return Step(point, f"no step lowers L with a radius of {self._delta:.1e}", Reason.DIVERGED_TR_DELTA)

    def _room(self, solver: SNES, point: Point) -> float:
        """How far a step may go: what the way from the origin left of the parent's ball."""
        if self._most == math.inf:
            return math.inf
        if self._origin is None:
            self._origin = point.x
        return self._most - self._length(solver, point.x - self._origin)

    def _try(self, solver: SNES, point: Point, trial: Trial, radius: float) -> Point | None:
        """Judge a trial and change the radius; return the new point if it is taken. Collective."""
        x = point.x + trial.s
        length = self._length(solver, trial.s)
        new = self._point(solver, point, x) if self._secant is not None else None
        f = solver.objective(x) if new is None else new.f
        digits = _ROUNDING * torch.finfo(x.dtype).eps * abs(point.f)
        small = abs(point.f - f) <= digits and trial.decrease <= digits
        if small and new is None:
            new = self._point(solver, point, x)
        decrease = point.f - f
        if small and new is not None:
            decrease = -0.5 * solver.problem.space.dot(point.g + new.g, trial.s)
        rho = decrease / trial.decrease
        enough = rho > self.options.eta1 and self._sufficient(solver, point, trial, radius)
        if enough and new is None:
            new = self._point(solver, point, x)
        taken = new if enough and new is not None and new.finite else None
        bound = trial.boundary or length >= _ON * radius
        self._adapt(-math.inf if taken is None else rho, length, radius, bound=bound)
        return taken

    def _point(self, solver: SNES, old: Point, x: Tensor) -> Point:
        """Evaluate at x; the secant model learns from what it finds. Collective."""
        new = solver.point(x, *solver.gradient(x))
        if self._secant is not None and new.finite:
            with solver.log.event("SNESQNUpdate", solver.label):
                self._secant.update(new.x - old.x, new.g - old.g)
        return new

    def _sufficient(self, solver: SNES, point: Point, trial: Trial, radius: float) -> bool:
        o = self.options
        if o.kmdc == 0.0:
            return True
        space, model = solver.problem.space, self._model(solver, point)
        norm = space.norm(point.g)
        stiffness = space.norm(model.action(point.g)) / norm
        least: float = o.kmdc * norm * min(radius, norm / max(stiffness, 1e-300))
        return trial.decrease >= least

    def _adapt(self, rho: float, length: float, radius: float, *, bound: bool) -> None:
        """Change the radius, which bound the step if `bound`; NaN shrinks it. Not collective."""
        o = self.options
        if not rho >= o.eta2:
            # A radius above the step's length would give the same step again.
            self._delta = o.t1 * min(self._delta, radius, length)
        elif rho > o.eta3 and bound:
            self._delta = min(max(self._delta, o.t2 * radius), o.deltamax)

    def _length(self, solver: SNES, s: Tensor) -> float:
        return self.region.length(solver.problem.space, s)

    # The model. --------------------------------------------------------------------------------------------------

    def _subproblem(self, solver: SNES, point: Point) -> Subproblem:
        o, norm = self.options, solver.problem.space.norm(point.g)
        if self._first_norm is None:
            self._first_norm = norm
        rtol = min(o.cg_rtol, norm / self._first_norm)  # in proportion to the gradient: quadratic convergence
        if o.norm_type == "infinity":
            return Box(self._model(solver, point), o.cg_max_it, rtol)
        if self._secant is not None:
            return self._secant.spectrum(point.g)
        return SteihaugToint(self._model(solver, point), o.cg_max_it, rtol, o.fallback_type)

    def _model(self, solver: SNES, point: Point) -> Model:
        if self._secant is not None:
            return self._secant.spectrum(point.g).model
        return Model(solver.problem.space, point.g, self._action(solver, solver.problem, point.x))

    def _action(self, solver: SNES, problem: Problem, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> B v at x, counted."""
        linear = problem.linearize(x) if self.options.model == "gn" else None
        cost = problem.cost.hessian if linear is None else linear.cost.action

        def action(v: Tensor) -> Tensor:
            solver.work.add("hessians", cost / solver.unit.hessian)
            return problem.hessian_action(x, v) if linear is None else linear.action(v)

        return action

    # The right NPC. ----------------------------------------------------------------------------------------------

    def precondition(self, solver: SNES, point: Point, apply: Callable[[Point], Point]) -> Point:
        assert solver.npc is not None
        room = self._room(solver, point)
        if room < _SPENT * self._most:
            return point
        radius = min(self._delta, room)
        solver.npc.method.confine(radius)
        half = apply(point)
        s = half.x - point.x
        length = self._length(solver, s)
        if not half.finite or length == 0.0:
            return point
        if length > radius:
            s, length = (radius / length) * s, radius
            x = point.x + s
            half = solver.point(x, *solver.gradient(x))
        model = self._model(solver, point)
        gg = self._length(solver, point.g)
        predicted, decrease = model.decrease(s), point.f - half.f
        taken = half.finite and decrease > self.options.eta1 * max(predicted, model.cauchy(radius / gg))
        if predicted > 0.0 or not decrease > 0.0:  # else L falls where the model rises: no reason to change the radius
            rho = decrease / abs(predicted) if predicted else -math.inf
            self._adapt(rho, length, radius, bound=length >= _ON * radius)
        if self._secant is not None and half.finite:
            self._secant.update(s, half.g - point.g)
        return half if taken else point

    # State and views. --------------------------------------------------------------------------------------------

    def state(self, solver: SNES) -> Tree:
        tree: Tree = {"delta": repr(self._delta), "accepted": self._accepted}
        if self._first_norm is not None:
            tree["first_norm"] = repr(self._first_norm)
        return tree if self._secant is None else tree | {"secant": self._secant.state()}

    def load(self, solver: SNES, state: Tree) -> None:
        self._delta, self._accepted = float(state["delta"]), int(state["accepted"])
        self._first_norm = float(state["first_norm"]) if "first_norm" in state else None
        if self._secant is not None:
            self._secant.load(state["secant"])

    def brief(self) -> str:
        o = self.options
        model = f"{o.qn} {o.qn_m}" if o.qn == "lsr1" else o.qn if o.qn != "none" else o.model
        return f"newtontr({model}{', box' if o.norm_type == 'infinity' else ''})"

    def view(self) -> list[str]:
        o = self.options
        model = {"none": o.model.upper(), "sr1": "SR1, dense", "lsr1": f"LSR1, {o.qn_m} pairs"}[o.qn]
        solved = "by its eigenvalues" if o.qn != "none" else f"by CG, at most {o.cg_max_it} actions"
        if o.norm_type == "infinity":
            solved = f"in a box, at most {o.cg_max_it} actions"
        return [
            "Trust region parameters:",
            f"  eta1={o.eta1:g}, eta2={o.eta2:g}, eta3={o.eta3:g}",
            f"  t1={o.t1:g}, t2={o.t2:g}",
            f"  delta_min={o.deltamin:g}, delta_0={o.delta0:g}, delta_max={o.deltamax:g}",
            f"  kmdc={o.kmdc:g}",
            f"  fallback={o.fallback_type.upper()}",
            f"model is {model}, solved {solved}",
        ]
