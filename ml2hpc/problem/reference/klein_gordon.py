"""Klein-Gordon equation u_tt - u_xx + u^2 = f on (-1, 1) x (0, 12], with the exact solution u = x cos t.

The data are u(x, 0) = x, u_t(x, 0) = 0, u(+-1, t) = +-cos t and f = -x cos t + x^2 cos^2 t. In the general form
u_tt + alpha u_xx + beta u + gamma u^2 = f: alpha = -1, beta = 0, gamma = 1.
"""

from __future__ import annotations

import numpy as np

from ml2hpc.problem.reference.domain import coordinates

BOUNDS = ((-1.0, 1.0), (0.0, 12.0))


def klein_gordon(points: np.ndarray) -> np.ndarray:
    """Evaluate u = x cos t at points (x, t), (n, 2) -> (n,). Exact to rounding.

    Not collective.
    """
    x, t = coordinates(points, BOUNDS)
    u: np.ndarray = x * np.cos(t)
    return u
