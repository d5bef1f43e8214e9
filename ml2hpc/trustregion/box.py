"""The box |s|_inf <= Delta: gradient projection finds the face, conjugate gradients minimise on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ml2hpc.trustregion.interface import Model, Subproblem, Trial

_HALVINGS = 30  # of a projected step; each costs an action
_SUFFICIENT = 0.1  # of the linear decrease along a projected step (Conn, Gould, Toint, section 12.2)


class Box(Subproblem):
    """Alternate projected steps and conjugate gradients until |P(s + r) - s| <= rtol |P(-g)|.

    With r = -g - B s, and P the projection on the box,

        s <- P(s + t r)    with t halved until m falls by a tenth of <r, P(s + t r) - s>
        s <- conjugate gradients from s in the unknowns that are not on the boundary, cut where they meet it

    What ends it satisfies the conditions of Karush, Kuhn and Tucker to that accuracy; m falls with every step.

    Parameters
    ----------
    most
        Actions of B at most in one solve; every radius needs its own.

    References
    ----------
    Conn, Gould, Toint: Testing a class of methods for solving minimization problems with simple bounds on the
    variables, Math. Comp. 50 (1988). More, Toraldo: On the solution of large quadratic programming problems with bound
    constraints, SIAM J. Optim. 1 (1991).
    """

    def __init__(self, model: Model, most: int, rtol: float) -> None:
        self._model, self._most, self._rtol = model, most, rtol

    def solve(self, radius: float) -> Trial:
        return _Solve(self._model, self._most, radius).run(self._rtol)


class _Solve:
    """One radius: the step s, r = -g - B s there and the decrease -m(s)."""

    def __init__(self, model: Model, most: int, radius: float) -> None:
        self._model, self._left, self._radius = model, most, radius
        self._space = model.space
        self.s, self.r, self.decrease = torch.zeros_like(model.g), -model.g, 0.0

    def run(self, rtol: float) -> Trial:
        """Return the step. Collective."""
        stop = rtol * self._criticality()
        while self._left > 0 and self._criticality() > stop and self._project():
            self._search_face(stop)
        top = float(self._space.gather(self.s).abs().max())
        return Trial(self.s, self.decrease, boundary=top >= self._radius)

    def _criticality(self) -> float:
        """|P(s + r) - s|, which is 0 at a minimiser."""
        return self._space.norm(self._projected(1.0) - self.s)

    def _projected(self, t: float) -> Tensor:
        return torch.add(self.s, self.r, alpha=t).clamp(-self._radius, self._radius)

    def _move(self, s: Tensor, r: Tensor, decrease: float) -> None:
        self.s, self.r, self.decrease = s, r, self.decrease + decrease

    def _action(self, v: Tensor) -> Tensor:
        self._left -= 1
        return self._model.action(v)

    def _project(self) -> bool:
        """Take a projected step along r; return whether m falls. Collective."""
        t = 2.0 * self._radius / max(float(self._space.gather(self.r).abs().max()), 1e-300)  # across the box
        for _ in range(_HALVINGS):
            d = self._projected(t) - self.s
            bd = self._action(d)
            slope, curvature = self._space.mdot(torch.stack([self.r, bd]), d).tolist()
            falls = slope - 0.5 * curvature
            if falls >= _SUFFICIENT * slope > 0.0:
                self._move(self._projected(t), self.r - bd, falls)
                return True
            if self._left <= 0 and curvature > slope > 0.0:  # the least value along d, which lies inside the box
                tau = slope / curvature
                self._move(self.s + tau * d, self.r - tau * bd, 0.5 * tau * slope)
                return True
            # Along d the model is least at slope / curvature: a better guess than half of t.
            t *= max(min(0.5, slope / curvature), 0.01) if curvature > 0.0 and slope > 0.0 else 0.5
            if self._left <= 0:
                return False
        return False

    def _search_face(self, stop: float) -> None:
        """Minimise over the unknowns inside the box; negative curvature is followed to its boundary. Collective."""
        free = (self.s.abs() < self._radius).to(self.s)
        p = free * self.r
        rr = self._space.dot(p, p)
        while self._left > 0 and rr > stop * stop:
            bp = self._action(p)
            curvature = self._space.dot(p, bp)
            edge = self._edge(p)
            length = rr / curvature if curvature > 0.0 else math.inf
            t = min(length, edge)
            s = torch.add(self.s, p, alpha=t).clamp(-self._radius, self._radius)
            self._move(s, torch.sub(self.r, bp, alpha=t), t * rr - 0.5 * t * t * curvature)
            if t == edge or not curvature > 0.0:
                return
            z = free * self.r
            before, rr = rr, self._space.dot(z, z)
            p = torch.add(z, p, alpha=rr / before)

    def _edge(self, p: Tensor) -> float:
        """Return the t at which s + t p meets the boundary."""
        room = self._radius - self.s * p.sign()
        return float(self._space.gather(torch.where(p == 0.0, math.inf, room / p.abs())).min())
