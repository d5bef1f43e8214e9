"""A problem as a user writes it: the heat equation u_t = a u_xx on (0, 1), u(x, 0) = sin(pi x), u = 0 at both ends.

python -m ml2hpc.apps.pinn -pinn_problem apps/problems/heat.py:Heat -net_depth 3 -npc_dm_subdomains 3
"""

import numpy as np
import torch

from ml2hpc.problem.pde import PDE, dirichlet


class Heat(PDE):
    """u(x, t) = exp(-a pi^2 t) sin(pi x)."""

    coordinates = "xt"
    domain = {"x": (0.0, 1.0), "t": (0.0, 1.0)}
    a = 0.1

    def residual(self, p, u):
        return u.t - self.a * u.xx

    def conditions(self):
        return [dirichlet("t", 0, lambda p: torch.sin(torch.pi * p.x)), dirichlet("x", 0, 0.0), dirichlet("x", 1, 0.0)]

    def reference(self, points):
        x, t = points.T
        return np.exp(-self.a * np.pi**2 * t) * np.sin(np.pi * x)
