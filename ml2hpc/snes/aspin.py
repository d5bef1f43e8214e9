"""ASPIN, a recipe: Newton's method for x = M(x), with M one step of nonlinear Schwarz by Newton's method.

    sum_s E_s W_s H_ss^-1 R_s H y = x - M(x),  x <- x - lambda y

In the tree: newtonls with a left NPC nasm, whose options `-npc_snes_nasm_*`, `-npc_dm_*`, `-npc_sub_*` change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ml2hpc.errors import OptionsError
from ml2hpc.snes.interface import SNES
from ml2hpc.snes.newton import Newton


class Aspin(Newton):
    """Additive Schwarz preconditioned inexact Newton.

    References
    ----------
    Cai, Keyes: Nonlinearly preconditioned inexact Newton algorithms, SIAM J. Sci. Comput. 24 (2002).
    """

    @dataclass(frozen=True)
    class Options:
        """The recipe has no options of its own."""

    name = "aspin"
    title = "Additive Schwarz preconditioned inexact Newton (aspin)"
    sides = ("left",)
    linesearch = {"type": "bt"}
    # The sum of corrections as it is: with a search, M would have no derivative. Weights count unknowns in the overlap
    # once. Local matrices may be indefinite where the local solves end: minres solves with them all the same.
    tree: ClassVar[dict[str, Any]] = {
        "npc_snes_type": "nasm",
        "npc_snes_nasm_type": "additive",
        "npc_snes_linesearch_type": "none",
        "npc_sub_snes_type": "newtonls",
        "npc_sub_ksp_type": "minres",
    }

    def configure(self, solver: SNES) -> None:
        if solver.npc is None:
            raise OptionsError(
                f"-{solver.prefix}npc_snes_type none: aspin is a nonlinear preconditioner with Newton's method around "
                f"it; use -{solver.prefix}snes_type newtonls"
            )
        super().configure(solver)
