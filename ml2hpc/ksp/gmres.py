"""Restarted GMRES with the preconditioner on the right, for operators that need not be symmetric."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ml2hpc.ksp.interface import Reason, Solution, System, ending


def generalised_minimum_residuals(system: System, b: Tensor) -> Solution:
    """Solve B x = b from zero; the true residual norm is least over each cycle's Krylov space. Collective.

        B Z_k = V_(k+1) H_k,  Z_k = P^-1 V_k,  x = x_0 + Z_k argmin_y | |r_0| e_1 - H_k y |

    Orthogonalised twice by classical Gram-Schmidt: two reductions an iteration, whatever its number. Where a symmetric
    B should be definite, the least eigenvalue of Z_k' B Z_k tells whether it is on the space so far.

    References
    ----------
    Saad, Schultz, SIAM J. Sci. Stat. Comput. 7 (1986); Saad: A flexible inner-outer preconditioned GMRES algorithm,
    SIAM J. Sci. Comput. 14 (1993).
    """
    x, r = torch.zeros_like(b), b.clone()
    start = norm = system.space.norm(b)
    done = 0
    system.monitor(0, norm)
    reason = ending(norm, start, 0, system.tolerances)
    if norm == 0.0 or reason is Reason.DIVERGED_NANORINF:
        return Solution(x, reason or Reason.CONVERGED_ATOL, 0, norm)
    while True:
        cycle = _Cycle(system, r, norm)
        reason = cycle.run(done, start)
        done += len(cycle.z)
        x = x + cycle.correction()
        if reason is Reason.CONVERGED_NEG_CURVE:
            return Solution(x, reason, done, cycle.norm, cycle.curvature)
        if reason is not None:
            return Solution(x, reason, done, cycle.norm)
        r = b - system.action(x)
        norm = system.space.norm(r)
        reason = ending(norm, start, done, system.tolerances)
        if reason is not None:
            return Solution(x, reason, done, norm)


class _Cycle:
    """The iterations between two restarts; the small matrices are on the host.

    Parameters
    ----------
    r, norm
        The residual that it starts from, and its norm.
    """

    def __init__(self, system: System, r: Tensor, norm: float) -> None:
        self._system = system
        self.norm = norm
        self._start = norm
        self._v = [r / norm]
        self.z: list[Tensor] = []
        self._h: list[Tensor] = []  # columns of H, of growing length
        self._c: list[Tensor] = []  # columns of the upper triangle of Z' B Z
        self._kept = 0  # iterations whose correction is used
        self.curvature: Tensor | None = None

    def run(self, done: int, start: float) -> Reason | None:
        """Iterate until the end of the cycle, or until the solve ends; return why, None at a restart. Collective."""
        tolerances = self._system.tolerances
        for k in range(done + 1, done + tolerances.restart + 1):
            if not self._extend():
                return Reason.DIVERGED_NANORINF
            if self._system.definite and self._indefinite():
                return Reason.CONVERGED_NEG_CURVE
            self._kept += 1
            breakdown = float(self._h[-1][-1]) == 0.0
            self.norm = self._residual()
            self._system.monitor(k, self.norm)
            reason = ending(self.norm, start, k, tolerances)
            if reason is not None or breakdown:
                return reason or Reason.DIVERGED_BREAKDOWN
        return None

    def _extend(self) -> bool:
        """Add a column; return whether it is made of numbers. Collective."""
        system, space = self._system, self._system.space
        z = self._v[-1] if system.precondition is None else system.precondition(self._v[-1])
        w = system.action(z)
        self.z.append(z)
        basis = torch.stack(self._v)
        rows = basis if system.precondition is None else torch.cat([basis, torch.stack(self.z)])
        products = space.mdot(rows, w)
        first, self_curvature = products[: len(self._v)], products[-len(self.z) :]
        scale = space.norm(w)
        w = w - basis.T @ first
        second = space.mdot(basis, w)
        w = w - basis.T @ second
        length = space.norm(w)
        if not math.isfinite(length):
            return False
        if length <= torch.finfo(w.dtype).eps * scale:
            length = 0.0  # what is left is rounding: the space is invariant
        self._h.append(torch.cat([(first + second).cpu(), torch.tensor([length], dtype=w.dtype, device="cpu")]))
        self._c.append(self_curvature.cpu())
        if length > 0.0:
            self._v.append(w / length)
        return True

    def _indefinite(self) -> bool:
        """Tell whether Z' B Z has a nonpositive eigenvalue; keep its direction. Not collective."""
        k = len(self._c)
        small = self._c[0].new_zeros(k, k)
        for j, column in enumerate(self._c):
            small[: j + 1, j] = column
            small[j, : j + 1] = column
        values, vectors = torch.linalg.eigh(small)
        if float(values[0]) > 0.0:
            return False
        direction = torch.stack(self.z).T @ vectors[:, 0].to(self.z[0].device)
        ahead = self._system.space.dot(direction, self._v[0])
        self.curvature = direction if ahead >= 0.0 else -direction
        return True

    def _least_squares(self) -> tuple[Tensor, float]:
        """Return y, shape (k,), and the least residual norm. Not collective."""
        k = self._kept
        h = self._h[0].new_zeros(k + 1, k)
        for j, column in enumerate(self._h[:k]):
            h[: j + 2, j] = column
        right = h.new_zeros(k + 1, 1)
        right[0] = self._start
        y = torch.linalg.lstsq(h, right, driver="gelsd").solution
        return y[:, 0], float((right - h @ y).norm())

    def _residual(self) -> float:
        return self._least_squares()[1]

    def correction(self) -> Tensor:
        """Return Z y, shape (n_local,). Not collective."""
        if self._kept == 0:
            return torch.zeros_like(self._v[0])
        return torch.stack(self.z[: self._kept]).T @ self._least_squares()[0].to(self._v[0].device)
