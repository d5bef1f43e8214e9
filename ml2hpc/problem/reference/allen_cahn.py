"""Allen-Cahn equation u_t = eps u_xx + 5 (u - u^3) on (-1, 1) x (0, 1] with u(x, 0) = x^2 cos(pi x), two variants.

`periodic` has eps = 1e-4 and periodic ends, `dirichlet` has eps = 1e-3 and u(+-1, t) = -1. Both solutions are even,
so [0, 1] with u_x = 0 at 0 suffices, and even + periodic means u_x = 0 at 1 too.

The periodic data have a kink at x = +-1 (u_x jumps from -2 to 2), which makes Fourier methods converge as N^-2. Here
the kink is smoothed analytically: u = v + w, where w solves the heat equation with w(x, 0) = 0, w_x(1, t) = 2,

    w(x, t) = 2 r ierfc((1 - x)/r),   r = 2 sqrt(eps t),   ierfc(s) = exp(-s^2)/sqrt(pi) - s erfc(s),

and v, with v_x(1, t) = -2, is much smoother. The Dirichlet variant has w = -1.

Space: Gauss-Lobatto spectral elements with lumped mass, short where the interface forms and at x = 1, diagonalised.
Time: Radau collocation on panels that double from 2^-20, each solved by Picard iteration on the reaction with the
diffusion implicit. Its polynomials are the dense output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial import legendre
from scipy.special import erfc

from ml2hpc.errors import UserError
from ml2hpc.problem.reference.domain import coordinates
from ml2hpc.problem.reference.panels import Panels, interpolate, lobatto, radau

BOUNDS = ((-1.0, 1.0), (0.0, 1.0))
EPS = {"periodic": 1e-4, "dirichlet": 1e-3}
_DEGREE = 16
_STAGES = 8
_TOLERANCE = 1e-12  # of the Picard iteration, absolute; |u| <= 1
_MAX_IT = 40  # the longest time panels take 10


def allen_cahn(points: np.ndarray, variant: str = "periodic") -> np.ndarray:
    """Evaluate the solution at points (x, t), (n, 2) -> (n,), with an absolute error below 2e-9.

    Not collective. The first call for a variant solves the equation.

    Raises
    ------
    UserError
        If the variant is unknown or a point lies outside the domain.
    """
    if variant not in EPS:
        raise UserError(f"Allen-Cahn variant {variant!r} is unknown; choose one of {', '.join(EPS)}")
    x, t = coordinates(points, BOUNDS)
    np.abs(x, out=x)
    space, time, table = _solve(variant, _DEGREE, _STAGES)
    u: np.ndarray = interpolate(space, time, table, x, t) + _lift(variant, x, t)
    return u


def initial(x: np.ndarray) -> np.ndarray:
    """Evaluate u(x, 0)."""
    u: np.ndarray = x**2 * np.cos(np.pi * x)
    return u


def _lift(
    variant: str,
    x: np.ndarray,  # broadcasts with t
    t: np.ndarray,
) -> np.ndarray:
    """Evaluate w(x, t), the part of the solution that carries the boundary condition at x = 1."""
    if variant == "dirichlet":
        return np.full(np.broadcast(x, t).shape, -1.0)
    r = 2.0 * np.sqrt(EPS[variant] * t)
    s = (1.0 - x) / np.maximum(r, 1e-100)  # at t = 0 the product below is 0 whatever s is
    w: np.ndarray = 2.0 * r * (np.exp(-(s**2)) / np.sqrt(np.pi) - s * erfc(s))
    return w


@dataclass(frozen=True)
class _Modes:
    """The semi-discrete problem v' = -decay v + reaction in the basis of eigenvectors of the diffusion."""

    decay: np.ndarray  # (m,)
    forward: np.ndarray  # (m, N): nodal values -> coefficients
    backward: np.ndarray  # (N, m): coefficients -> nodal values
    load: np.ndarray  # (m, 1): the flux of v through x = 1


def _discretise(variant: str, space: Panels) -> _Modes:
    """Assemble mass M and stiffness K on the shared nodes and diagonalise eps M^-1/2 K M^-1/2 = Q decay Q^T."""
    degree = len(space.reference) - 1
    size = len(space.lengths) * degree + 1
    last = legendre.legvander(space.reference, degree)[:, degree]
    weights = 2.0 / (degree * (degree + 1) * last**2)
    unit_stiffness = space.derivative.T @ (weights[:, None] * space.derivative)
    mass, stiffness = np.zeros(size), np.zeros((size, size))
    for panel, length in enumerate(space.lengths):
        part = slice(panel * degree, (panel + 1) * degree + 1)
        mass[part] += weights * length / 2.0
        stiffness[part, part] += unit_stiffness * 2.0 / length
    flux = np.zeros((size, 1))
    free = size
    if variant == "periodic":
        flux[-1] = -2.0 * EPS[variant]  # eps v_x(1, t)
    else:
        free = size - 1  # v = 0 at x = 1
    root = np.sqrt(mass[:free])
    scaled = EPS[variant] * stiffness[:free, :free] / (root[:, None] * root)
    # The large entries, of the short panels, are at the lower right: reducing the upper triangle starts there and keeps
    # the small eigenvalues accurate. The lower triangle would lose a factor of 1000 in the solution.
    decay, q = np.linalg.eigh(scaled, UPLO="U")
    forward, backward = np.zeros((free, size)), np.zeros((size, free))
    forward[:, :free] = q.T * root
    backward[:free] = q / root[:, None]
    return _Modes(decay, forward, backward, q.T @ (flux[:free] / root[:, None]))


@cache
def _solve(variant: str, degree: int, stages: int) -> tuple[Panels, Panels, np.ndarray]:
    """Return the panels in space and time and the values of v at their nodes, (Px, degree + 1, Pt, stages + 1)."""
    middle = np.array([0.0, 0.08, 0.16, 0.24, 0.32, 0.38, 0.42, 0.45, 0.48, 0.5, 0.52, 0.55, 0.58, 0.62, 0.68, 0.75])
    space = Panels(np.concatenate((middle, 1.0 - 2.0 ** np.arange(-3.0, -11.0, -1.0), [1.0])), lobatto(degree))
    time = Panels(np.concatenate(([0.0], 2.0 ** np.arange(-20.0, -5.0), np.arange(1, 33) / 32.0)), radau(stages))
    modes = _discretise(variant, space)
    x = np.append(space.nodes[:, :-1].ravel(), 1.0)[:, None]  # (N, 1): nodes shared by neighbours once

    v = initial(x) - _lift(variant, x, np.zeros(1))
    history = np.empty((len(x), len(time.lengths), stages + 1))
    for panel, length in enumerate(time.lengths):
        w = _lift(variant, x, time.nodes[panel])

        def reaction(v: np.ndarray, w: np.ndarray = w) -> np.ndarray:
            u = v + w[:, 1:]
            rate: np.ndarray = modes.forward @ (5.0 * u * (1.0 - u**2)) + modes.load
            return rate

        history[:, panel, 0] = v[:, 0]
        history[:, panel, 1:] = _advance(v, 2.0 / length * time.derivative, modes, reaction)
        v = history[:, panel, -1:]
    shared = np.arange(len(space.lengths))[:, None] * degree + np.arange(degree + 1)
    return space, time, history[shared]


def _advance(
    v: np.ndarray,  # (N, 1) at the start of the time panel
    derivative: np.ndarray,  # (stages + 1, stages + 1)
    modes: _Modes,
    reaction: Callable[[np.ndarray], np.ndarray],  # (N, stages) -> (m, stages)
) -> np.ndarray:  # (N, stages) at its other nodes
    """Solve (D + decay) v = reaction(v) at the nodes of one time panel by Picard iteration."""
    inner = derivative[1:, 1:]
    inverse = np.linalg.inv(inner + modes.decay[:, None, None] * np.eye(len(inner)))  # (m, stages, stages)
    start = modes.forward @ v * derivative[1:, 0]
    old = np.repeat(v, len(inner), axis=1)
    for _ in range(_MAX_IT):
        coefficients = np.matmul(inverse, (reaction(old) - start)[:, :, None])[:, :, 0]
        new: np.ndarray = modes.backward @ coefficients
        if np.abs(new - old).max() < _TOLERANCE:
            return new
        old = new
    raise AssertionError(f"Picard iteration on a time panel did not reach {_TOLERANCE} in {_MAX_IT} steps")
