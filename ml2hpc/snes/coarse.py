"""What a coarser level has learnt as the start matrix of L-BFGS on the next finer one."""

from __future__ import annotations

import torch
from torch import Tensor

from ml2hpc.dm import Transfer
from ml2hpc.snes.secant import Inverse
from ml2hpc.vec import VectorSpace


class CoarseStart:
    """H_0 = I H_c I' + gamma (1 - I M^-1 I'),  M = diag(masses).

    Where L on the coarser level is L at interpolated unknowns, its Hessian is I' A I, and I H_c I' is what Newton's
    method would do in the range of I. The rest, corrections that the coarser level does not see, has a scale of its
    own: gamma = s'y / y'y of what is left there of the newest pair, unless that is rounding. As y has the coupling of
    both, it is a careful one. M - I' I is diagonally dominant, so H_0 is positive.

    Parameters
    ----------
    space
        Of the finer level.
    inverse
        H_c; what it learns later counts here too.
    masses
        The row sums of I' I, shape (n_local,) on the coarser level.
    gamma
        Of the rest until there is a pair.
    """

    def __init__(self, space: VectorSpace, inverse: Inverse, transfer: Transfer, masses: Tensor, gamma: float) -> None:
        self._space, self.inverse, self._transfer, self._masses = space, inverse, transfer, masses
        self.gamma = gamma

    def apply(self, g: Tensor) -> Tensor:
        """Return H_0 g, shape (n_local,). Collective."""
        if self.inverse.blank:  # it has been forgotten there
            return self.gamma * g
        coarse = self._transfer.restrict(g)
        light = self.inverse.apply(coarse) - self.gamma * (coarse / self._masses)
        return self._transfer.prolong(light).add_(g, alpha=self.gamma)

    def learn(self, s: Tensor, y: Tensor) -> None:
        """Take gamma from a pair, unless its rest is rounding or has no positive curvature. Collective."""
        r, q = self._rest(s), self._rest(y)
        rq, qq, rr, ss = self._space.dots((r, q), (q, q), (r, r), (s, s))
        if rq > 0.0 and rr > torch.finfo(s.dtype).eps * ss:
            self.gamma = rq / qq

    def _rest(self, v: Tensor) -> Tensor:
        return v - self._transfer.prolong(self._transfer.restrict(v) / self._masses)
