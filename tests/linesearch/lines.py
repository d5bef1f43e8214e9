"""Functions of one variable as lines, with their evaluations counted."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ml2hpc.linesearch import Line, LineSearch, Options, Result, create
from ml2hpc.vec import Replicated

Function = Callable[[float], tuple[float, float]]  # l -> phi(l), phi'(l)
SPACE = Replicated(1, torch.float64)
SHORT = 1e-3  # of the central difference that gives curvatures


def vector(value: float) -> Tensor:
    """Return a vector of length one."""
    return torch.tensor([value], dtype=torch.float64)


class Counted(Line):
    """phi along x - lambda y from x = 0 with y = -1, so that lambda is x.

    Attributes
    ----------
    objectives, gradients
        The points where L, and L with its gradient, were computed.
    actions
        How often the Hessian was applied.
    """

    def __init__(self, phi: Function) -> None:
        self.phi = phi
        self.objectives: list[float] = []
        self.gradients: list[float] = []
        self.actions = 0
        f, slope = phi(0.0)
        super().__init__(
            self._objective, self._gradient, SPACE, vector(0.0), vector(-1.0), f, vector(slope), self._action
        )

    def _objective(self, x: Tensor) -> float:
        self.objectives.append(float(x))
        return self.phi(float(x))[0]

    def _gradient(self, x: Tensor) -> tuple[float, Tensor]:
        self.gradients.append(float(x))
        f, slope = self.phi(float(x))
        return f, vector(slope)

    def _action(self, x: Tensor, v: Tensor) -> Tensor:
        self.actions += 1
        rise = self.phi(float(x) + SHORT)[1] - self.phi(float(x) - SHORT)[1]
        return v * (rise / (2 * SHORT))

    @property
    def evaluations(self) -> int:
        """How often L was evaluated, with or without gradient."""
        return len(self.objectives) + len(self.gradients)


def search(phi: Function, kind: str, **fields: object) -> tuple[Result, Counted]:
    """Search along a function; return the result and the line with its counts."""
    line = Counted(phi)
    return make(kind, **fields).search(line), line


def make(kind: str, **fields: object) -> LineSearch:
    """Return a line search."""
    return create(Options(type=kind, **fields))  # type: ignore[arg-type]


def parabola(minimiser: float, curvature: float = 2.0, f: float = 1.0) -> Function:
    """Return f + curvature ((l - minimiser)^2 - minimiser^2) / 2."""
    return lambda step: (f + 0.5 * curvature * (step * step - 2 * step * minimiser), curvature * (step - minimiser))


def walled(phi: Function, wall: float, beyond: float) -> Function:
    """Return phi up to a wall, and a value that is no number beyond."""
    return lambda step: phi(step) if step < wall else (beyond, beyond)


# ---- the test functions of Moré and Thuente, ACM Trans. Math. Softw. 20 (1994) ---------------------------------------


def rational(a: float) -> tuple[float, float]:
    """Concave for large steps: -a / (a^2 + 2)."""
    b = 2.0
    return -a / (a * a + b), (a * a - b) / (a * a + b) ** 2


def quintic(a: float) -> tuple[float, float]:
    """Flat at the start: (a + b)^5 - 2 (a + b)^4."""
    t = a + 0.004
    return t**5 - 2 * t**4, 5 * t**4 - 8 * t**3


def wavy(a: float) -> tuple[float, float]:
    """Many local minima: |1 - a| smoothed, plus a sine."""
    b, waves = 0.01, 39
    if a <= 1 - b:
        p, d = 1 - a, -1.0
    elif a >= 1 + b:
        p, d = a - 1, 1.0
    else:
        p, d = (a - 1) ** 2 / (2 * b) + b / 2, (a - 1) / b
    angle = 0.5 * waves * math.pi
    return p + (1 - b) / angle * math.sin(angle * a), d + (1 - b) * math.cos(angle * a)


def roots(b1: float, b2: float) -> Function:
    """Return two square roots that are steep near 0 and near 1."""
    g1, g2 = (math.hypot(1.0, b) - b for b in (b1, b2))

    def phi(a: float) -> tuple[float, float]:
        r1, r2 = math.hypot(1 - a, b2), math.hypot(a, b1)
        return g1 * r1 + g2 * r2, g1 * (a - 1) / r1 + g2 * a / r2

    return phi


# name: (phi, sufficient decrease, curvature), tight as there
MORE_THUENTE: dict[str, tuple[Function, float, float]] = {
    "rational": (rational, 1e-3, 0.1),
    "quintic": (quintic, 0.1, 0.1),
    "wavy": (wavy, 0.1, 0.1),
    "roots a": (roots(1e-3, 1e-3), 1e-3, 1e-3),
    "roots b": (roots(1e-2, 1e-3), 1e-3, 1e-3),
    "roots c": (roots(1e-3, 1e-2), 1e-3, 1e-3),
}
STARTS = (1e-3, 1e-1, 1e1, 1e3)
