"""A step that the user supplies: `-snes_type shell -snes_shell_step my_file.py:my_step`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ml2hpc.errors import UserError
from ml2hpc.options import option
from ml2hpc.problem.interface import Problem
from ml2hpc.snes.interface import SNES, Method, Point, Step
from ml2hpc.userfile import load

UserStep = Callable[[Problem, Tensor, Tensor], Tensor]


class Shell(Method):
    """x <- step(problem, x, r), any function of the user.

    It is called with the problem, the iterate and its residual, both of shape (n_local,), on all ranks together, and
    returns the new iterate. Its step is taken as it is.
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_shell_*`."""

        step: str = option("", "the function, as file.py:name or package.module:name")

    name = "shell"
    title = "User's step (shell)"
    sides = ("right", "left")

    def configure(self, solver: SNES) -> None:
        if not self.options.step:
            raise UserError(f"-{solver.prefix}snes_type shell needs -{solver.prefix}snes_shell_step file.py:function")
        name = f"-{solver.prefix}snes_shell_step"
        self._user: UserStep = load(self.options.step, name)
        if not callable(self._user):
            raise UserError(f"{name} {self.options.step}: is no function but {type(self._user).__name__}")

    def step(self, solver: SNES, point: Point) -> Step:
        x = self._user(solver.problem, point.x.clone(), point.r.clone())
        if not isinstance(x, Tensor) or x.shape != point.x.shape or x.dtype != point.x.dtype:
            raise UserError(
                f"-{solver.prefix}snes_shell_step {self.options.step}: must return a tensor of shape "
                f"{tuple(point.x.shape)} and type {point.x.dtype}, got {type(x).__name__} "
                f"{tuple(x.shape) if isinstance(x, Tensor) else ''}"
            )
        new = solver.point(x, *solver.gradient(x))
        return Step(new) if new.finite else Step.broken(point, "after the user's step")

    def view(self) -> list[str]:
        return [f"step: {self.options.step}"]
