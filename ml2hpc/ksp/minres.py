"""Minimum residuals for symmetric matrices, indefinite or singular ones too."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ml2hpc.ksp.interface import Reason, Solution, System, ending


def minimum_residuals(system: System, b: Tensor) -> Solution:
    """Solve B x = b from zero, B symmetric; the residual norm |P^-1/2 r| is least over the Krylov space. Collective.

    Lanczos vectors z_k make B tridiagonal, Givens rotations (c_k, s_k) make that triangular with diagonal entries a_k
    before their rotation. The residual r and its curvature follow without further products:

        P^-1 r_k = s_k^2 P^-1 r_(k-1) + eta_k c_k z_(k+1),      <P^-1 r_k, B P^-1 r_k> = eta_k^2 c_k a_(k+1)

    References
    ----------
    Paige, Saunders, SIAM J. Numer. Anal. 12 (1975); Elman, Silvester, Wathen: Finite Elements and Fast Iterative
    Solvers (2014), algorithm 4.1; Liu, Roosta: MINRES: from negative curvature detection to monotonicity properties,
    SIAM J. Optim. 32 (2022).
    """
    space, x = system.space, torch.zeros_like(b)
    v_old, v = torch.zeros_like(b), b.clone()
    z, gamma = _lanczos(system, v)
    start = eta = gamma
    before = 1.0  # gamma of the vector before
    c_old, c, s_old, s = 1.0, 1.0, 0.0, 0.0
    w_old, w = torch.zeros_like(b), torch.zeros_like(b)
    residual = z.clone()  # P^-1 r
    system.monitor(0, start)
    reason = ending(start, start, 0, system.tolerances)
    if reason is not None and (start == 0.0 or reason is Reason.DIVERGED_NANORINF):
        return Solution(x, reason, 0, start)
    for k in range(1, system.tolerances.max_it + 1):
        z = z / gamma
        b_z = system.action(z)
        diagonal = space.dot(b_z, z)
        a = c * diagonal - c_old * s * gamma
        if system.definite and not c * a > 0.0:
            if math.isnan(a):
                return Solution(x, Reason.DIVERGED_NANORINF, k, math.nan)
            return Solution(x, Reason.CONVERGED_NEG_CURVE, k, abs(eta), residual)
        v_old, v = v, b_z - (diagonal / gamma) * v - (gamma / before) * v_old
        z_old = z
        z, following = _lanczos(system, v)
        if math.isnan(following) or math.isnan(a):
            return Solution(x, Reason.DIVERGED_NANORINF, k, math.nan)
        length = math.hypot(a, following)
        if length == 0.0:
            # B is singular and b is not in its range: x is the best there is.
            return Solution(x, Reason.DIVERGED_BREAKDOWN, k, abs(eta))
        above, corner = s * diagonal + c_old * c * gamma, s_old * gamma
        c_old, c, s_old, s = c, a / length, s, following / length
        w_old, w = w, (z_old - corner * w_old - above * w) / length
        x.add_(w, alpha=c * eta)
        eta = -s * eta
        if following > 0.0:
            residual = torch.add(s * s * residual, z, alpha=eta * c / following)
        before, gamma = gamma, following
        system.monitor(k, abs(eta))
        reason = ending(abs(eta), start, k, system.tolerances)
        if reason is not None:
            return Solution(x, reason, k, abs(eta))
    raise AssertionError("the last iteration ends the solve")


def _lanczos(system: System, v: Tensor) -> tuple[Tensor, float]:
    """Return P^-1 v and the norm <v, P^-1 v>^(1/2). Collective if sharded."""
    z = v if system.precondition is None else system.precondition(v)
    square = system.space.dot(z, v)
    return z, math.sqrt(max(square, 0.0)) if not math.isnan(square) else math.nan
