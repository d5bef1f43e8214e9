"""Diffusion-advection -mu Lap u + u_x + u_y = 1 on the unit square, u = 0 on its boundary, mu = 1e-2.

u(x, y) is the mean time after which a particle with drift -(1, 1) and diffusion mu, started at (x, y), leaves the
square. Both coordinates move independently, so the probability of being still inside factorises and

    u(x, y) = int_0^inf p(x, t) p(y, t) dt,    p_t = mu p_xx - p_x,  p(0, t) = p(1, t) = 0,  p(x, 0) = 1.

The images of the start in the two walls give p in closed form, with z = 1 - x,

    p(x, t) = S(x, t) + exp(-z/mu) (S(z, t) - S(1 + z, t)) + O(exp(-1/mu)),    exp(-1/mu) = 4e-44,
    S(x, t) = erfc((t - x)/r)/2 - exp(x/mu) erfc((x + t)/r)/2,    r = 2 sqrt(mu t),

where S is the probability of not having met a single wall at distance x. The outflow layers (width mu at x = 1 and
y = 1) and the weak corner singularities, r^2 log r, are thus exact. The integral is tabulated once on panels graded
towards the four sides and interpolated.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.special import erfc, erfcx, roots_legendre

from ml2hpc.problem.reference.domain import coordinates
from ml2hpc.problem.reference.panels import Panels, interpolate, lobatto

BOUNDS = ((0.0, 1.0), (0.0, 1.0))
MU = 1e-2
_DEGREE = 16
_LEVELS = 16  # the panels at the sides have length 2^-16
_T_END = 4.0  # p(x, t) p(y, t) <= exp((x + y - t)/(2 mu)) is below 1e-40 from here on


def diffusion_advection(points: np.ndarray) -> np.ndarray:
    """Evaluate the solution at points (x, y), (n, 2) -> (n,), with an absolute error below 1e-12.

    Not collective.
    """
    x, y = coordinates(points, BOUNDS)
    panels, table = _solve(_DEGREE, _LEVELS)
    return interpolate(panels, panels, table, x, y)


@cache
def _solve(degree: int, levels: int) -> tuple[Panels, np.ndarray]:
    """Tabulate u on the panels: table = P W P^T with P[i, k] = p(x_i, t_k)."""
    half = np.concatenate(([0.0], 2.0 ** np.arange(-levels, -3), np.arange(2, 9) / 16.0))
    panels = Panels(np.concatenate((half, 1.0 - half[-2::-1])), lobatto(degree))
    t, w = _time_rule(nodes=16)
    p = _survival(panels.nodes.reshape(-1, 1), t)
    table = (p * w) @ p.T
    return panels, table.reshape(panels.nodes.shape * 2)


def _time_rule(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return composite Gauss-Legendre nodes and weights on [0, T_END].

    Panels halve towards t = 0, where points close to a wall leave; later ones are as long as the spread of the exit
    time, sqrt(2 mu t), is wide.
    """
    breaks = np.concatenate(([0.0], 2.0 ** np.arange(-44, -3), np.arange(2, 8 * int(_T_END) + 1) / 8.0))
    g, w = roots_legendre(nodes)
    lengths = np.diff(breaks)[:, None]
    return (breaks[:-1, None] + lengths * (g + 1.0) / 2.0).ravel(), (lengths * w / 2.0).ravel()


def _survival(
    x: np.ndarray,  # broadcasts with t
    t: np.ndarray,
) -> np.ndarray:
    """Evaluate p(x, t)."""
    z = 1.0 - x
    p: np.ndarray = _one_wall(x, t) + np.exp(-z / MU) * (_one_wall(z, t) - _one_wall(1.0 + z, t))
    return p


def _one_wall(
    x: np.ndarray,  # broadcasts with t
    t: np.ndarray,
) -> np.ndarray:
    """Evaluate S(x, t); exp(x/mu) erfc(b) is written exp(-a^2) erfcx(b), a^2 = b^2 - x/mu, to avoid overflow."""
    r = 2.0 * np.sqrt(MU * t)
    a = (t - x) / r
    s: np.ndarray = 0.5 * (erfc(a) - np.exp(-(a**2)) * erfcx((t + x) / r))
    return s
