"""Allen-Cahn u_t - eps u_xx - 5 (u - u^3) = 0, u(x, 0) = x^2 cos(pi x): the Dirichlet and the periodic problem."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc.problem.jet import Jet, Points
from ml2hpc.problem.pde import PDE, Condition, dirichlet, periodic, periodic_feature
from ml2hpc.problem.reference.allen_cahn import allen_cahn


class AllenCahn(PDE):
    """eps = 1e-3, u(+-1, t) = -1: the problem of the SPQN experiments."""

    coordinates = "xt"
    domain = {"x": (-1.0, 1.0), "t": (0.0, 1.0)}
    title = "Allen-Cahn"
    diffusion = 1e-3

    def residual(self, p: Points, u: Jet) -> Tensor:
        return u.t - self.diffusion * u.xx - 5 * (u - u**3)

    def lifting(self, p: Points) -> Tensor:
        return p.x**2 * torch.cos(math.pi * p.x)

    def distance(self, p: Points) -> Tensor:
        return p.t * (1 - p.x**2)

    def conditions(self) -> Sequence[Condition]:
        return [dirichlet("t", 0, self.lifting), dirichlet("x", 0, -1.0), dirichlet("x", 1, -1.0)]

    def reference(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return allen_cahn(points, "dirichlet")


class AllenCahnPeriodic(AllenCahn):
    """eps = 1e-4, periodic in x: the common benchmark.

    Periodicity is hard by features, the start by the lifting. The initial value has slopes -+2 at x = +-1: a kink of
    its periodic extension, which a lifting without time would keep for ever, while the solution is smooth for t > 0.
    The lifting lets it diffuse: from each wall, with d the distance to it,

        k = 4 sqrt(eps t) ierfc(d / (2 sqrt(eps t))),   ierfc(z) = exp(-z^2) / sqrt(pi) - z erfc(z),

    solves k_t = eps k_xx, vanishes at t = 0 and has slope -2 in d at the wall.
    """

    title = "Allen-Cahn, periodic"
    diffusion = 1e-4

    def features(self, x: Tensor) -> Tensor:
        if not self.hard:
            return super().features(x)
        return torch.cat([periodic_feature(x[0], self.domain["x"]), super().features(x)[1:]])

    def lifting(self, p: Points) -> Tensor:
        length = torch.sqrt(self.diffusion * p.t.clamp(min=1e-30))  # nothing, but no division by zero, at t = 0
        u = super().lifting(p)
        for wall in (1 - p.x, 1 + p.x):
            z = wall / (2 * length)
            u = u + 4 * length * (torch.exp(-z * z) / math.sqrt(math.pi) - z * torch.erfc(z))
        return u

    def distance(self, p: Points) -> Tensor:
        return p.t

    def conditions(self) -> Sequence[Condition]:
        return [dirichlet("t", 0, super().lifting), periodic("x")]

    def reference(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return allen_cahn(points, "periodic")
