"""Newton's method with a line search, inexact and matrix-free: x <- x - lambda y with B y = grad L(x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ml2hpc.options import option
from ml2hpc.snes.interface import SNES
from ml2hpc.snes.newton import Newton


class NewtonLS(Newton):
    """Newton's method for a minimum; with a left NPC, for x = M(x), searched along on L.

    References
    ----------
    Eisenstat, Walker: Choosing the forcing terms in an inexact Newton method, SIAM J. Sci. Comput. 17 (1996). Rathore,
    Lei, Frangella, Lu, Udell: Challenges in training PINNs: a loss landscape perspective, ICML (2024).
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_newtonls_*`."""

        # The exact Hessian converges quadratically wherever L is smooth; Gauss-Newton needs small residuals.
        model: Literal["hessian", "gn"] = option(
            "hessian", "matrix of the linear systems: the Hessian of L, or its Gauss-Newton part, never indefinite"
        )
        # None is Newton's method; Rathore et al. search for it between 1e-5 and 0.1 on PINNs.
        damping: float = option(0.0, "mu of B + mu I, which bounds the step where B is singular", at_least=0.0)

    name = "newtonls"
    title = "Newton's method with a line search (newtonls)"
    sides = ("right", "left")
    linesearch = {"type": "bt"}  # the full step is the natural one

    def configure(self, solver: SNES) -> None:
        self.model, self.damping = self.options.model, self.options.damping
        super().configure(solver)
