"""Forcing terms: how exactly an inexact Newton method solves its linear systems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ml2hpc.options import option


@dataclass(frozen=True)
class Options:
    """Options `-snes_ksp_*`, PETSc's names and numbers."""

    # PETSc leaves it off. A Hessian's action costs two gradients, and far from a minimum, where training is most of
    # the time, an exact solve of a wrong model is lost: Gauss-Newton on Burgers is stuck without forcing terms.
    ew: bool = option(True, "choose the relative tolerance of linear solves by Eisenstat and Walker, not -ksp_rtol")
    # PETSc takes 2. On PINNs 3 needs half the iterations of 2, for the same work without a sketch, for less with one.
    ew_version: Literal["1", "2", "3"] = option(
        "3", "by the error of the linear model, by the fall of the gradient, or that without oversolving at the end"
    )
    ew_rtol0: float = option(0.3, "relative tolerance of the first linear solve", above=0.0, below=1.0)
    ew_rtolmax: float = option(0.9, "largest relative tolerance (versions 1 and 2)", above=0.0, below=1.0)
    ew_gamma: float = option(1.0, "factor of the fall (versions 2 and 3)", above=0.0, at_most=1.0)
    # The golden section: the largest with which version 2 converges as fast as version 1, (1 + sqrt 5) / 2.
    ew_alpha: float = option(
        0.5 * (1.0 + math.sqrt(5.0)),
        "power of the fall (versions 2 and 3), and of the safeguard",
        above=1.0,
        at_most=2.0,
    )
    ew_threshold: float = option(
        0.1, "do not fall faster than the safeguard while that is above (versions 1 and 2)", above=0.0, below=1.0
    )


class Forcing:
    """Eisenstat and Walker's forcing terms eta_k.

        1    eta_k = | |g_k| - |g_(k-1) - B s| | / |g_(k-1)|            safeguard eta_(k-1)^alpha
        2    eta_k = gamma (|g_k| / |g_(k-1)|)^alpha                    safeguard gamma eta_(k-1)^alpha
        3    as 2, always safeguarded, at least gamma |g wanted| / |g_k| and at most eta_0

    References
    ----------
    Eisenstat, Walker: Choosing the forcing terms in an inexact Newton method, SIAM J. Sci. Comput. 17 (1996).
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.value = options.ew_rtol0
        self.norm = 0.0  # of the gradient before; 0 at the start
        self.linear = 0.0  # norm of the linear residual before

    @classmethod
    def quadratic(cls, most: float) -> Forcing:
        """Return the second choice with gamma 0.9 and alpha 2, from `most` and never above. Not collective."""
        return cls(Options(ew_version="2", ew_rtol0=most, ew_rtolmax=most, ew_gamma=0.9, ew_alpha=2.0))

    def follow(self, norm: float, wanted: float = 0.0) -> None:
        """Take the next gradient's norm, and the norm that would be small enough. Not collective."""
        if self.norm > 0.0:
            self.value = self._next(norm, wanted)
        self.norm = norm

    def _next(self, norm: float, wanted: float) -> float:
        o = self.options
        eta: float
        safe: float
        if o.ew_version == "1":
            eta, safe = abs(norm - self.linear) / self.norm, self.value**o.ew_alpha
        else:
            eta, safe = o.ew_gamma * (norm / self.norm) ** o.ew_alpha, o.ew_gamma * self.value**o.ew_alpha
        if o.ew_version == "3":
            return min(max(eta, safe, o.ew_gamma * wanted / norm), o.ew_rtol0)
        return min(max(eta, safe if safe > o.ew_threshold else 0.0), o.ew_rtolmax)
