"""Burgers' equation u_t + u u_x = nu u_xx, nu = 0.01 / pi, on (-1, 1) x (0, 1]: a sine steepens to a front at x = 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc.problem.jet import Jet, Points
from ml2hpc.problem.pde import PDE, Condition, dirichlet
from ml2hpc.problem.reference.burgers import burgers


class Burgers(PDE):
    """u(x, 0) = -sin(pi x), u(+-1, t) = 0."""

    coordinates = "xt"
    domain = {"x": (-1.0, 1.0), "t": (0.0, 1.0)}
    title = "Burgers"
    viscosity = 0.01 / math.pi

    def residual(self, p: Points, u: Jet) -> Tensor:
        return u.t + u * u.x - self.viscosity * u.xx

    def lifting(self, p: Points) -> Tensor:
        return -torch.sin(math.pi * p.x)

    def distance(self, p: Points) -> Tensor:
        return p.t * (1 - p.x**2)

    def conditions(self) -> Sequence[Condition]:
        return [dirichlet("t", 0, self.lifting), dirichlet("x", 0, 0.0), dirichlet("x", 1, 0.0)]

    def reference(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return burgers(points)
