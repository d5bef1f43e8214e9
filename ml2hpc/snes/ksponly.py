"""One linear solve, for losses that are quadratic: linear least squares, a last layer, a linear problem's check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ml2hpc.options import option
from ml2hpc.snes.interface import SNES, Point, Step
from ml2hpc.snes.newton import Newton


class KSPOnly(Newton):
    """x <- x - B^-1 grad L(x), once and without a search; taken only if L falls."""

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_ksponly_*`."""

        # The two are the same where residuals are linear; the Hessian needs no sum of squares.
        model: Literal["hessian", "gn"] = option(
            "hessian", "matrix of the linear system: the Hessian of L, or its Gauss-Newton part"
        )

    name = "ksponly"
    title = "One linear solve (ksponly)"
    defaults = {"max_it": 1}
    forces = False

    def configure(self, solver: SNES) -> None:
        self.model = self.options.model
        super().configure(solver)

    def begin(self, solver: SNES) -> None:
        super().begin(solver)
        self.completes = False

    def step(self, solver: SNES, point: Point) -> Step:
        """Solve; with a linear solver that converged, the one iteration is all that was asked for. Collective."""
        x = point.x - self.direction(solver, point)
        self.completes = self.solved
        new = solver.point(x, *solver.gradient(x))
        if not new.finite:
            return Step.broken(point, "after the linear solve")
        return Step(new) if new.f < point.f else Step(point, "the linear solve does not lower the objective")
