"""Nonlinear conjugate gradients: y = r + beta y_old. Two vectors of memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ml2hpc.options import option
from ml2hpc.snes.interface import SNES, DirectionMethod, Point, Tree


class ConjugateGradients(DirectionMethod):
    """x <- x - lambda y,  y = r + beta y_old.

    With r_old the residual where the step before started, beta is by

        fr   <r, r> / <r_old, r_old>                  prp  max(0, <r, r - r_old> / <r_old, r_old>)
        hs   <r, r - r_old> / <y_old, r_old - r>      dy   <r, r> / <y_old, r_old - r>
        cd   <r, r> / <y_old, r_old>

    With a left NPC r = x - M(x) stands in for the gradient. With a right NPC the preconditioned point starts the step,
    and y_old is kept over M. A direction that does not descend on L costs the memory: beta = 0.

    References
    ----------
    Nocedal, Wright: Numerical Optimization, 2006, ch. 5. With an NPC: Brune, Knepley, Smith, Tu: Composing scalable
    nonlinear algebraic solvers, SIAM Review 57 (2015).
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_ncg_*`."""

        # The only one that restarts by itself where a step makes no progress (Nocedal and Wright 2006, sec. 5.2).
        type: Literal["fr", "prp", "hs", "dy", "cd"] = option(
            "prp", "beta by Fletcher-Reeves, Polak-Ribiere-Polyak, Hestenes-Stiefel, Dai-Yuan or conjugate descent"
        )

    name = "ncg"
    title = "Nonlinear conjugate gradients (ncg)"
    sides = ("left", "right")
    # PETSc takes cp, whose steps stay below 1 and begin at the length of the gradient. On a network for Klein-Gordon
    # 2000 gradients take L from 19 to 5e-1 by cp, 1e-2 by secant, 5e-3 by wolfe with the curvature that Nocedal and
    # Wright give for conjugate gradients.
    linesearch = {"type": "wolfe", "curvature": 0.1}
    defaults = {"stol": 1e-20}

    def set_up(self, solver: SNES) -> None:
        self._old: tuple[Tensor, Tensor] | None = None  # direction and residual of the step before
        self._direction = solver.problem.space.zeros()

    def begin(self, solver: SNES) -> None:
        self._old = None

    def reset(self) -> bool:
        had, self._old = self._old is not None, None
        return had

    def direction(self, solver: SNES, point: Point) -> Tensor:
        self._direction = point.r
        if self._old is not None:
            beta = self._beta(solver, point.r, *self._old)
            self._direction = torch.add(point.r, self._old[0], alpha=beta)
        return self._direction

    def _beta(self, solver: SNES, r: Tensor, y: Tensor, old: Tensor) -> float:
        kind = self.options.type
        left, right = torch.stack([r, old, y]), torch.stack([r, old], 1)
        (rr, r_old), (_, old_old), (yr, y_old) = solver.problem.space.mdot(left, right).tolist()
        over, under = {
            "fr": (rr, old_old),
            "prp": (max(rr - r_old, 0.0), old_old),
            "hs": (rr - r_old, y_old - yr),
            "dy": (rr, y_old - yr),
            "cd": (rr, y_old),
        }[kind]
        beta = over / under if under != 0.0 else 0.0
        return beta if math.isfinite(beta) else 0.0

    def update(self, solver: SNES, old: Point, new: Point, step: float) -> None:
        # With a left NPC the loop takes the gradient where the direction does not descend.
        descends = old.r is old.g or solver.problem.space.dot(old.g, self._direction) > 0.0
        self._old = (self._direction if descends else old.g, old.r)

    def state(self, solver: SNES) -> Tree:
        if self._old is None:
            return {}
        gather = solver.problem.space.gather
        return {k: gather(v).cpu().numpy() for k, v in zip(("direction", "residual"), self._old, strict=True)}

    def load(self, solver: SNES, state: Tree) -> None:
        restored = solver.problem.space.restored
        self._old = (restored(state["direction"]), restored(state["residual"])) if state else None

    def brief(self) -> str:
        return f"ncg({self.options.type})"

    def view(self) -> list[str]:
        return [f"type: {self.options.type.upper()}"]
