"""A user's solver type: the trees and options of its contract."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ml2hpc.options import option
from ml2hpc.snes.interface import SNES, DirectionMethod, Method, Point, Step, Tree


class Averaged(DirectionMethod):
    """y <- (1 - mu) y + mu g."""

    @dataclass(frozen=True)
    class Options:
        """One number."""

        mu: float = option(0.7, "weight of the new gradient", above=0.0, at_most=1.0)

    name = "averaged"
    title = "Averaged gradients (averaged)"
    linesearch = {"type": "wolfe"}
    sides = ("right",)

    def set_up(self, solver: SNES) -> None:
        self._y: Tensor | None = None

    def direction(self, solver: SNES, point: Point) -> Tensor:
        mu = self.options.mu
        self._y = point.r if self._y is None else (1 - mu) * self._y + mu * point.r
        return self._y

    def reset(self) -> bool:
        had, self._y = self._y is not None, None
        return had

    def state(self, solver: SNES) -> Tree:
        return {} if self._y is None else {"y": solver.problem.space.gather(self._y).cpu().numpy()}

    def load(self, solver: SNES, state: Tree) -> None:
        self._y = solver.problem.space.restored(state["y"]) if "y" in state else None


class Descent(Method):
    """x <- x - 0.005 g, halved until L falls."""

    @dataclass(frozen=True)
    class Options:
        """None."""

    name = "descent"
    title = "Descent (descent)"

    def step(self, solver: SNES, point: Point) -> Step:
        length = 5e-3
        for _ in range(40):
            x = point.x - length * point.g
            new = solver.point(x, *solver.gradient(x))
            if new.finite and new.f < point.f:
                return Step(new)
            length *= 0.5
        return Step(point, "no descent")


def not_a_class(point: Point) -> torch.Tensor:
    """A function."""
    return point.x


AVERAGED = f"-snes_type python -snes_python_type {__file__}:Averaged"
TREES = {
    "python": (AVERAGED, 400, 1e-6),
    "python, a step": (f"-snes_type python -snes_python_type {__name__}.Descent", 3000, 1e-4),
    "python, right nasm": (f"{AVERAGED} -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 5", 400, 1e-6),
}
CHANGES: dict[str, tuple[str, str]] = {"type": (AVERAGED, f"{__file__}:Descent")}
