"""Klein-Gordon u_tt - u_xx + u^2 = f on (-1, 1) x (0, 12], with the exact solution x cos t."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc.problem.jet import Jet, Points
from ml2hpc.problem.pde import PDE, Condition, dirichlet, neumann
from ml2hpc.problem.reference.klein_gordon import klein_gordon


class KleinGordon(PDE):
    """u(x, 0) = x, u_t(x, 0) = 0, u(+-1, t) = +-cos t.

    The usual lifting x cos t is the solution itself, so a network that learns nothing is exact. The lifting here,
    g = x^3 cos t + x - x^3, meets every condition and leaves N = x (cos t - 1) T^2 / t^2 to be learnt; the factor t^2
    also imposes u_t(x, 0) = 0.
    """

    coordinates = "xt"
    domain = {"x": (-1.0, 1.0), "t": (0.0, 12.0)}
    title = "Klein-Gordon"

    def residual(self, p: Points, u: Jet) -> Tensor:
        wave = p.x * torch.cos(p.t)
        return u.tt - u.xx + u * u - (wave**2 - wave)

    def lifting(self, p: Points) -> Tensor:
        return p.x**3 * torch.cos(p.t) + p.x - p.x**3

    def distance(self, p: Points) -> Tensor:
        return (1 - p.x**2) * (p.t / self.domain["t"][1]) ** 2

    def conditions(self) -> Sequence[Condition]:
        return [
            dirichlet("t", 0, lambda p: p.x),
            neumann("t", 0, 0.0),
            dirichlet("x", 0, lambda p: -torch.cos(p.t)),
            dirichlet("x", 1, lambda p: torch.cos(p.t)),
        ]

    def reference(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return klein_gordon(points)


class KleinGordonLeaking(KleinGordon):
    """The published trial function, for comparison only: its lifting x cos t is the solution.

    Its factor t (T - t) imposes the value at the end T, in place of the slope at the start.
    """

    title = "Klein-Gordon, leaking lifting"

    def lifting(self, p: Points) -> Tensor:
        return p.x * torch.cos(p.t)

    def distance(self, p: Points) -> Tensor:
        return (1 - p.x**2) * p.t * (self.domain["t"][1] - p.t)

    def conditions(self) -> Sequence[Condition]:
        return [c for c in super().conditions() if c.name != "t0_slope"] + [dirichlet("t", 1, self.lifting)]
