"""Why a solve ended: PETSc's names and numbers, and two of our own for budgets that PETSc does not have."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """Positive: converged. Negative: diverged, or a budget is spent. Zero: still iterating."""

    CONVERGED_ITERATING = 0
    CONVERGED_FNORM_ABS = 2
    CONVERGED_FNORM_RELATIVE = 3
    CONVERGED_SNORM_RELATIVE = 4
    CONVERGED_ITS = 5
    CONVERGED_USER = 7  # a goal of the app's own
    DIVERGED_FUNCTION_COUNT = -2
    DIVERGED_FUNCTION_NANORINF = -4
    DIVERGED_MAX_IT = -5
    DIVERGED_LINE_SEARCH = -6
    DIVERGED_INNER = -7
    DIVERGED_DTOL = -9
    DIVERGED_TR_DELTA = -11
    DIVERGED_OBJECTIVE_NANORINF = -14
    DIVERGED_MAX_TIME = -21
    DIVERGED_SIGNAL = -22

    @property
    def is_failure(self) -> bool:
        """Whether the numbers broke down; a spent budget and a stagnated search are no failures."""
        return self in (
            Reason.DIVERGED_FUNCTION_NANORINF,
            Reason.DIVERGED_OBJECTIVE_NANORINF,
            Reason.DIVERGED_INNER,
            Reason.DIVERGED_DTOL,
        )
