"""The preconditioner applied once: a direct solver, where the preconditioner is a factored matrix."""

from __future__ import annotations

from torch import Tensor

from ml2hpc.ksp.interface import Reason, Solution, System


def precondition_only(system: System, b: Tensor) -> Solution:
    """Return x = P^-1 b. Collective if sharded.

    The residual is not computed: its norm counts as zero.
    """
    assert system.precondition is not None, "there is something to apply"
    x = system.precondition(b)
    square = system.space.dot(x, x)
    finite = square < float("inf")
    return Solution(x, Reason.CONVERGED_ITS if finite else Reason.DIVERGED_NANORINF, 1, 0.0 if finite else square)
