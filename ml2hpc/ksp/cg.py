"""Conjugate gradients, stopped at the first direction of nonpositive curvature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ml2hpc.ksp.interface import Reason, Solution, System


def conjugate_gradients(system: System, b: Tensor) -> Solution:
    """Solve B x = b from zero, B symmetric. Collective.

        x <- x + alpha p,  r <- r - alpha B p,  alpha = <r, z> / <p, B p>,
        p <- z + beta p,   z = P^-1 r,          beta = <r, z>_new / <r, z>

    Tested by the residual norm |r|. The first p with <p, B p> <= 0 ends it, whether or not `system.definite`: beyond
    it there is nothing to minimise.

    References
    ----------
    Hestenes, Stiefel, J. Res. Nat. Bur. Standards 49 (1952). Steihaug, SIAM J. Numer. Anal. 20 (1983).
    """
    x, r = torch.zeros_like(b), b.clone()
    z, rz, rr = _preconditioned(system, r)
    p = z.clone()
    start = rr
    stop = max(system.tolerances.rtol**2 * rr, system.tolerances.atol**2)
    system.monitor(0, math.sqrt(rr))
    if rr == 0.0:
        return Solution(x, Reason.CONVERGED_ATOL, 0, 0.0)
    for k in range(1, system.tolerances.max_it + 1):
        b_p = system.action(p)
        curvature = system.space.dot(p, b_p)
        if not curvature > 0.0:
            if math.isnan(curvature):
                return Solution(x, Reason.DIVERGED_NANORINF, k, math.nan)
            return Solution(x, Reason.CONVERGED_NEG_CURVE, k, math.sqrt(rr), p)
        length = rz / curvature
        x.add_(p, alpha=length)
        r.sub_(b_p, alpha=length)
        before = rz
        z, rz, rr = _preconditioned(system, r)
        system.monitor(k, math.sqrt(rr) if rr >= 0.0 else rr)
        if not rr > stop:
            return Solution(x, _reason(rr, start, system), k, math.sqrt(rr) if rr >= 0.0 else rr)
        p = torch.add(z, p, alpha=rz / before)
    return Solution(x, Reason.DIVERGED_ITS, system.tolerances.max_it, math.sqrt(rr))


def _preconditioned(system: System, r: Tensor) -> tuple[Tensor, float, float]:
    """Return z = P^-1 r, <r, z> and <r, r>, in one reduction. Collective if sharded."""
    if system.precondition is None:
        rr = system.space.dot(r, r)
        return r, rr, rr
    z = system.precondition(r)
    rz, rr = system.space.mdot(torch.stack([z, r]), r).tolist()
    return z, rz, rr


def _reason(rr: float, start: float, system: System) -> Reason:
    if not math.isfinite(rr):
        return Reason.DIVERGED_NANORINF
    return Reason.CONVERGED_RTOL if rr <= system.tolerances.rtol**2 * start else Reason.CONVERGED_ATOL
