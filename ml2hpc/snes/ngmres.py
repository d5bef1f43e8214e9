"""Nonlinear GMRES: the affine combination of a candidate and the last iterates with the smallest residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ml2hpc import linesearch
from ml2hpc.options import option
from ml2hpc.snes.interface import SNES, Method, Point, Step, Tree
from ml2hpc.snes.mixing import DELTA_B, EPSILON_B, GAMMA, Window, above, lowers


class NGMRES(Method):
    """x <- x_M or x_A = (1 - sum_j a_j) x_M + sum_j a_j x_j,  a = argmin |(1 - sum_j a_j) r_M + sum_j a_j r_j|.

    The candidate x_M is the right NPC's point; without one, or where its step was not taken, a step of the line search
    along the residual. Of the two the selection prefers x_A where, with the least value L_min so far and the distances
    d to x_M and d_min to the nearest x_j,

        L(x_A) < gammaA L_min   and   (epsilonB d < d_min   or   L(x_A) < deltaB L_min),

    and the other one is taken if the preferred one raises L. Restarts are judged by L in the same way.

    References
    ----------
    Oosterlee, Washio: Krylov subspace acceleration of nonlinear multigrid with application to recirculating flows, SIAM
    J. Sci. Comput. 21 (2000). With the objective: De Sterck: A nonlinear GMRES optimization algorithm for canonical
    tensor decomposition, SIAM J. Sci. Comput. 34 (2012).
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_ngmres_*`, PETSc's with its defaults."""

        m: int = option(30, "stored pairs of points and residuals; 0 takes the candidate", at_least=0)
        select_type: Literal["none", "difference", "linesearch"] = option(
            "difference", "take x_A always, by L and distances, or search from x_M to x_A"
        )
        restart_type: Literal["none", "periodic", "difference"] = option("difference", "when to forget all pairs")
        restart: int = option(30, "iterations between two restarts (periodic)", at_least=1)
        restart_it: int = option(2, "iterations in a row that ask for a restart before it is made", at_least=1)
        gammaa: float = option(GAMMA, "select x_A when L is below this times its least value", above=0.0)
        gammac: float = option(GAMMA, "restart when L at x_A is above this times its least value", above=0.0)
        epsilonb: float = option(
            EPSILON_B, "x_A crowds a point when it is nearer to it than this part of its way from x_M", at_least=0.0
        )
        deltab: float = option(DELTA_B, "crowding is no harm when L is below this times its least value", above=0.0)
        restart_fm_rise: bool = option(False, "restart when L at the candidate is above L at the selected point")
        candidate: bool = option(False, "store candidates in the place of selected points")

    name = "ngmres"
    title = "Nonlinear GMRES (ngmres)"
    sides = ("right", "left")
    linesearch = {"type": "secant"}

    def configure(self, solver: SNES) -> None:
        self._additive: linesearch.LineSearch | None = None
        if self.options.select_type == "linesearch":
            stem, title = (
                "snes_ngmres_additive_snes_linesearch_",
                "Search from the candidate to the combination (ngmres)",
            )
            self._additive = linesearch.create(solver.read(linesearch.Options, stem, title, {"type": "secant"}))

    def set_up(self, solver: SNES) -> None:
        self._window = Window(solver.problem.space, self.options.m)
        self._forget()

    def _forget(self) -> None:
        self._window.clear()
        self._asked, self._age = 0, 1
        self._least = float("inf")

    def begin(self, solver: SNES) -> None:
        self._forget()

    def reset(self) -> bool:
        had = len(self._window) > 1  # the iterate alone is no memory
        self._forget()
        return had

    def step(self, solver: SNES, point: Point) -> Step:
        base = solver.base
        assert base is not None
        if len(self._window) == 0:
            self._window.push(base.x, base.r)
        made = Step(point) if point is not base else self._search(solver, base)
        if made.failure or self.options.m == 0:
            return made
        candidate = made.point
        self._least = min(self._least, base.f, candidate.f)
        x = self._window.combine(candidate.x, candidate.r)
        combined, prefers, asks = (self._searched if self._additive else self._compared)(solver, candidate, x)
        order = (combined, candidate) if prefers else (candidate, combined)
        taken = next((p for p in order if lowers(solver, base, p)), None)
        if taken is None:
            return Step(point, "neither the candidate nor the combination lowers the objective")
        rises = self.options.restart_fm_rise and candidate.f > base.f
        self._remember(candidate, taken, asks or rises)
        return Step(taken)

    def _search(self, solver: SNES, base: Point) -> Step:
        """Return the candidate of the line search along the residual."""
        line = solver.line(base, base.r)
        if not solver.descends(line, base):
            line = solver.line(base, base.g)
        if line.slope == 0.0:
            return Step(base, "the gradient is zero")
        return solver.search(base, line)[0]

    def _compared(self, solver: SNES, candidate: Point, x: Tensor) -> tuple[Point, bool, bool]:
        """Return x_A, whether it is preferred, and whether it asks for a restart. Collective."""
        o = self.options
        combined = solver.point(x, *solver.gradient(x))
        if not combined.finite:
            return combined, False, True
        far, near = self._window.distances(x, candidate.x)
        low = combined.f < above(self._least, o.deltab)
        apart = o.epsilonb * far < near or low
        prefers = o.select_type == "none" or (apart and combined.f < above(self._least, o.gammaa))
        asks = (o.epsilonb * far > near and not low) or combined.f > above(self._least, o.gammac)
        return combined, prefers, asks

    def _searched(self, solver: SNES, candidate: Point, x: Tensor) -> tuple[Point, bool, bool]:
        """Return the point of a search from x_M to x_A; the candidate, and ask for a restart, where that ascends."""
        assert self._additive is not None
        line = solver.line(candidate, candidate.x - x)
        result = self._additive.search(line)
        if result.failure:
            return candidate, True, not line.slope < 0
        return solver.point(line.at(result.step), *line.gradient(result.step)), True, False

    def _remember(self, candidate: Point, taken: Point, asks: bool) -> None:
        o = self.options
        self._asked = self._asked + 1 if asks else 0
        restarts = {
            "none": False,
            "periodic": self._age > o.restart,
            "difference": self._asked >= o.restart_it,
        }[o.restart_type]
        if restarts:
            self._window.clear()
            self._asked = self._age = 0
        kept = candidate if restarts or o.candidate else taken
        self._window.push(kept.x, kept.r)
        self._least = min(self._least, kept.f)
        self._age += 1

    def rebind(self, solver: SNES) -> None:
        self._least = float("inf")  # values of another L; a combination that misleads is not taken

    def state(self, solver: SNES) -> Tree:
        tree = self._window.state() | {"age": self._age, "asked": self._asked, "least": repr(self._least)}
        if self._additive is not None:
            tree["steps"] = list(map(repr, self._additive.recent))
        return tree

    def load(self, solver: SNES, state: Tree) -> None:
        self._window.load(state)
        self._age, self._asked, self._least = int(state["age"]), int(state["asked"]), float(state["least"])
        if self._additive is not None:
            self._additive.recent = list(map(float, state["steps"]))

    def brief(self) -> str:
        return f"ngmres({self.options.m})"

    def view(self) -> list[str]:
        o = self.options
        lines = [
            f"Number of stored past {'candidates' if o.candidate else 'updates'}: {o.m}",
            f"select type is {o.select_type.upper()}, restart type is {o.restart_type.upper()}",
            f"Residual selection: gammaA={o.gammaa:g}, gammaC={o.gammac:g}",
            f"Difference restart: epsilonB={o.epsilonb:g}, deltaB={o.deltab:g}",
        ]
        if self._additive is not None:
            lines += ["Additive line search:", *(f"  {line}" for line in self._additive.view())]
        return lines
