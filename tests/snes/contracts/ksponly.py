"""One linear solve: the trees and options of its contract."""

from __future__ import annotations

TREES = {"ksponly": ("-snes_type ksponly -ksp_rtol 1e-10", 1, 1e-08)}
CHANGES: dict[str, tuple[str, str]] = {"model": ("-snes_type ksponly -snes_max_it 2", "gn")}
