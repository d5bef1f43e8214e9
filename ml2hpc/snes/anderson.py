"""Anderson mixing: the affine combination of the last steps whose residuals combine to the smallest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ml2hpc.options import option
from ml2hpc.snes.interface import SNES, Method, Point, Step, Tree
from ml2hpc.snes.mixing import DELTA_B, EPSILON_B, GAMMA, Window, above, lowers


class Anderson(Method):
    """x <- x_A = sum_j a_j (x_j - beta r_j),  a = argmin |sum_j a_j r_j|,  sum_j a_j = 1, over the last m + 1 points.

    With a right NPC, x_j + beta (M(x_j) - x_j) takes the place of x_j - beta r_j, and r_j is the residual at M(x_j).
    With a left NPC r = x - M(x).

    A mixed step that raises L is not taken: the line search damps it, x <- x - lambda (x - x_A), from M(x) after a
    right NPC. Where that does not descend the search follows the residual. What was stored stays true and is kept.

    References
    ----------
    Anderson: Iterative procedures for nonlinear integral equations, J. ACM 12 (1965). Walker, Ni: Anderson acceleration
    for fixed-point iterations, SIAM J. Numer. Anal. 49 (2011).
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_anderson_*`, PETSc's with its defaults."""

        m: int = option(30, "stored pairs of points and residuals", at_least=0)
        beta: float = option(1.0, "length of the step along the residual, or to the right NPC's point", above=0.0)
        restart_type: Literal["none", "periodic", "difference"] = option("none", "when to forget all pairs")
        restart: int = option(30, "iterations between two restarts (periodic)", at_least=1)
        restart_it: int = option(
            2,
            "iterations in a row that x_A crowds the points, or L is twice its least, before a restart (difference)",
            at_least=1,
        )

    name = "anderson"
    title = "Anderson mixing (anderson)"
    sides = ("right", "left")
    linesearch = {"type": "bt"}

    def set_up(self, solver: SNES) -> None:
        self._window = Window(solver.problem.space, self.options.m)
        self._least: float = float("inf")  # L at x_A, in this solve
        self._restarted()

    def _restarted(self) -> None:
        self._window.clear()
        self._age = self._crowded = 0

    def begin(self, solver: SNES) -> None:
        self._restarted()
        self._least = float("inf")

    def reset(self) -> bool:
        had = len(self._window) > 0
        self._restarted()
        return had

    def step(self, solver: SNES, point: Point) -> Step:
        assert solver.base is not None
        beta, base = self.options.beta, solver.base
        if point is base:
            x = point.x - beta * point.r
        else:
            x = point.x if beta == 1.0 else base.x + beta * (point.x - base.x)
        mixed = self._window.combine(x, point.r)
        new = point if mixed is point.x else solver.point(mixed, *solver.gradient(mixed))
        step = Step(new) if new is point or lowers(solver, base, new) else self._damped(solver, point, mixed)
        if self._must_restart(solver, x, new):
            self._restarted()
        elif not step.failure:
            self._window.push(x, point.r)
            self._age += 1
        return step

    def _damped(self, solver: SNES, point: Point, mixed: Tensor) -> Step:
        """Search towards x_A, where that descends; else along the residual or the gradient. Collective."""
        directions = (point.x - mixed, point.r, point.g)
        lines = (solver.line(point, y) for y in directions)
        line = next((line for line in lines if solver.descends(line, point)), None)
        if line is None:
            return Step(point, "the gradient is zero")
        return solver.search(point, line)[0]

    def _must_restart(self, solver: SNES, x: Tensor, mixed: Point) -> bool:
        o = self.options
        self._least = min(self._least, mixed.f) if mixed.finite else self._least
        if o.restart_type == "difference" and len(self._window) > 0:
            far, near = self._window.distances(mixed.x, x)
            crowds = EPSILON_B * far > near and mixed.f > above(self._least, DELTA_B)
            poor = not mixed.f <= above(self._least, GAMMA)
            self._crowded = self._crowded + 1 if crowds or poor else 0
            return bool(self._crowded >= o.restart_it)
        return bool(o.restart_type == "periodic" and self._age > o.restart)

    def rebind(self, solver: SNES) -> None:
        self._least = float("inf")  # values of another L; a combination that misleads is damped

    def state(self, solver: SNES) -> Tree:
        return {**self._window.state(), "age": self._age, "crowded": self._crowded, "least": repr(self._least)}

    def load(self, solver: SNES, state: Tree) -> None:
        self._window.load(state)
        self._age, self._crowded = int(state["age"]), int(state["crowded"])
        self._least = float(state["least"])

    def brief(self) -> str:
        return f"anderson({self.options.m})"

    def view(self) -> list[str]:
        o = self.options
        return [f"Number of stored past updates: {o.m}", f"beta={o.beta:g}, restart type is {o.restart_type.upper()}"]
