"""A user's step: the trees and options of its contract."""

from __future__ import annotations

STEP = f"{__file__}:descend"


def descend(problem, x, g):
    """A user's step."""
    return x - 5e-3 * g


TREES = {"shell": (f"-snes_type shell -snes_shell_step {STEP}", 3000, 1e-4)}
CHANGES = {"step": ("-snes_type shell", STEP)}
