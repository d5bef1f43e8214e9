"""Nonlinear Richardson: x <- x - lambda r. Steepest descent; with a left NPC, x <- x + lambda (M(x) - x)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ml2hpc.snes.interface import SNES, DirectionMethod, Point


class NRichardson(DirectionMethod):
    """Follow the residual.

    References
    ----------
    Brune, Knepley, Smith, Tu: Composing scalable nonlinear algebraic solvers, SIAM Review 57 (2015).
    """

    @dataclass(frozen=True)
    class Options:
        """The type has no options of its own; `-snes_linesearch_*` chooses the step."""

    name = "nrichardson"
    title = "Nonlinear Richardson (nrichardson)"
    sides = ("left", "right")
    linesearch = {"type": "wolfe"}
    defaults = {"stol": 1e-20}

    def direction(self, solver: SNES, point: Point) -> Tensor:
        return point.r
