"""Diffusion-advection -mu Laplace u + b . grad u = 1 on the unit square, mu = 1e-2, b = (1, 1).

The solution has layers of width mu at x = 1 and y = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc.problem.jet import Jet, Points
from ml2hpc.problem.pde import PDE, Condition, dirichlet
from ml2hpc.problem.reference.diffusion_advection import diffusion_advection


class DiffusionAdvection(PDE):
    """u = 0 on the boundary."""

    coordinates = "xy"
    domain = {"x": (0.0, 1.0), "y": (0.0, 1.0)}
    title = "Diffusion-advection"
    diffusion = 1e-2

    def residual(self, p: Points, u: Jet) -> Tensor:
        return u.x + u.y - self.diffusion * (u.xx + u.yy) - 1.0

    def distance(self, p: Points) -> Tensor:
        return p.x * (1 - p.x) * p.y * (1 - p.y)

    def conditions(self) -> Sequence[Condition]:
        return [dirichlet(axis, end, 0.0) for axis in "xy" for end in (0, 1)]

    def reference(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return diffusion_advection(points)
