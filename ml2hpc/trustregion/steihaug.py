"""Steihaug-Toint: conjugate gradients until they leave the ball or meet negative curvature; the path is kept.

The iterates of conjugate gradients do not depend on the radius and grow in length, so that a smaller ball is left
earlier on the same path: a second radius costs no action of B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ml2hpc.trustregion.interface import Model, Subproblem, Trial

Fallback = Literal["newton", "cauchy", "dogleg"]


@dataclass(frozen=True)
class _Segment:
    """One iteration: from s along p, with r = -g - B s, |s|^2, <s, p>, |p|^2, <r, r> and <p, B p>."""

    ss: float
    sp: float
    pp: float
    rr: float
    curvature: float

    @property
    def length(self) -> float:
        """Where m is least along p; not a number counts as infinitely far, and shows in the decrease."""
        return self.rr / self.curvature if self.curvature > 0.0 else math.inf

    def exit(self, radius: float) -> float:
        """Return tau >= 0 with |s + tau p| = radius."""
        rest = max(radius * radius - self.ss, 0.0)
        root = math.sqrt(self.sp * self.sp + self.pp * rest)
        # Of the two forms of the root, the one that does not cancel.
        return rest / (self.sp + root) if self.sp + root > 0.0 else (root - self.sp) / self.pp

    def decrease(self, tau: float) -> float:
        """Return the decrease of m from s to s + tau p, where <r, p> = <r, r>."""
        return tau * self.rr - 0.5 * tau * tau * self.curvature


class SteihaugToint(Subproblem):
    """Conjugate gradients on B s = -g from s = 0, cut where |s| = Delta.

        s+ = s + alpha p,   alpha = <r, r> / <p, B p>,   r = -g - B s,   p+ = r+ + (<r+, r+> / <r, r>) p

    Negative curvature is followed to the boundary. Outside the ball the step is, by `fallback`, the cut path itself
    (newton), the Cauchy point (cauchy), or the dogleg's: along -g to the Cauchy point, from there towards the whole
    step (dogleg), which is the cut path where the whole step meets negative curvature.

    Parameters
    ----------
    most
        Actions of B at most.
    rtol
        Stop when |r| <= rtol |g|.

    References
    ----------
    Steihaug: The conjugate gradient method and trust regions in large scale optimization, SIAM J. Numer. Anal. 20
    (1983). Conn, Gould, Toint: Trust-region methods, SIAM (2000), algorithm 7.5.1.
    """

    def __init__(self, model: Model, most: int, rtol: float, fallback: Fallback = "newton") -> None:
        self._model, self._most, self._fallback = model, most, fallback
        self._segments: list[_Segment] = []
        self._directions: list[Tensor] = []
        self._s, self._r = torch.zeros_like(model.g), -model.g  # where the path ends
        self._rr = model.space.dot(model.g, model.g)
        self._stop = rtol * rtol * self._rr
        self._p = self._r

    def solve(self, radius: float) -> Trial:
        if self._fallback == "dogleg":
            self._cut(math.inf)  # the whole step is needed
        last, tau, decrease = self._cut(radius)
        if tau is None:
            return Trial(self._s.clone(), decrease, boundary=False)
        if self._fallback == "cauchy":
            return self._cauchy(radius)[0]
        if self._fallback == "dogleg" and self._segments[-1].curvature > 0.0:
            return self._dogleg(radius)
        return Trial(self._at(last, tau), decrease, boundary=True)

    def _cut(self, radius: float) -> tuple[int, float | None, float]:
        """Return the segment on which the path leaves the ball, the length on it (None: it stays), the decrease."""
        decrease, k = 0.0, 0
        while k < len(self._segments) or self._extend():
            segment = self._segments[k]
            tau = segment.exit(radius) if radius < math.inf else math.inf
            if tau <= segment.length:
                return k, tau, decrease + (segment.decrease(tau) if tau < math.inf else 0.0)
            decrease += segment.decrease(segment.length)
            self._advance(k)
            k += 1
        return k, None, decrease

    def _extend(self) -> bool:
        """Measure the curvature along the next direction; return whether there is one. Collective."""
        if len(self._segments) == self._most or not self._rr > self._stop:
            return False
        self._bp = self._model.action(self._p)
        rows = torch.stack([self._s, self._p, self._bp])
        (ss, _), (sp, pp), (_, curvature) = self._model.space.mdot(rows, rows[:2].T).tolist()
        self._segments.append(_Segment(ss, sp, pp, self._rr, curvature))
        self._directions.append(self._p)
        if len(self._segments) == 1:
            self._bg = -self._bp
        return True

    def _advance(self, k: int) -> None:
        """Go to the end of segment k, if the path ends at its start. Collective."""
        if k + 1 < len(self._segments) or self._p is not self._directions[k]:
            return
        alpha = self._segments[k].length
        self._s = torch.add(self._s, self._p, alpha=alpha)
        self._r = torch.sub(self._r, self._bp, alpha=alpha)
        before, self._rr = self._rr, self._model.space.dot(self._r, self._r)
        self._p = torch.add(self._r, self._p, alpha=self._rr / before)

    def _at(self, last: int, tau: float) -> Tensor:
        """Return s on segment `last`."""
        lengths = [segment.length for segment in self._segments[:last]] + [tau]
        return torch.stack(self._directions[: last + 1]).T @ self._s.new_tensor(lengths)

    def _cauchy(self, radius: float) -> tuple[Trial, bool]:
        """Return the Cauchy point, which the ball forces even where it is inside, and whether it is on the boundary."""
        first = self._segments[0]
        edge = first.exit(radius)
        t = min(edge, first.length)
        return Trial(t * self._directions[0], first.decrease(t), boundary=True), t == edge

    def _dogleg(self, radius: float) -> Trial:
        """Cut the path 0, Cauchy point c, whole step s, with B s = -g - r and B c = -t B g known."""
        space, g, t = self._model.space, self._model.g, self._segments[0].length
        cauchy, on_boundary = self._cauchy(radius)
        if on_boundary:
            return cauchy
        d = self._s - cauchy.s
        bd = t * self._bg - g - self._r
        slope = space.dot(g, d)  # of m at c too: d is a sum of directions conjugate to g
        cc, cd, dd = (space.dot(u, v) for u, v in ((cauchy.s, cauchy.s), (cauchy.s, d), (d, d)))
        leg = _Segment(cc, cd, dd, -slope, space.dot(d, bd))
        tau = min(leg.exit(radius), 1.0)
        return Trial(cauchy.s + tau * d, cauchy.decrease + leg.decrease(tau), boundary=True)
