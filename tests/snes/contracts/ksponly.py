"""One linear solve: the trees and options of its contract."""

from __future__ import annotations

# Loosely solved, so that there are several steps to take.
TREES = {"ksponly": ("-snes_type ksponly -snes_ksponly_model gn -ksp_rtol 0.1", 12, 1e-08)}
CHANGES: dict[str, tuple[str, str]] = {"model": ("-snes_type ksponly -snes_max_it 2", "gn")}
