"""What the tests of anderson and ngmres have in common."""

from __future__ import annotations

from torch import Tensor

from ml2hpc.snes import SNES


def history(solver: SNES, x: Tensor) -> list[tuple[Tensor, float, int]]:
    """Solve, and return iterates, values of L and the number of stored pairs."""
    seen: list[tuple[Tensor, float, int]] = []

    def note(solver, point, norm, update):
        seen.append((point.x, point.f, len(solver.method._window)))
        return solver.reason

    solver.observe = note
    solver.solve(x)
    return seen
