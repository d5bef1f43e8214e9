"""Nonlinear Gauss-Seidel: the trees and options of its contract."""

from __future__ import annotations

TREES = {
    "ngs": ("-snes_type ngs", 1500, 1e-6),
    "ngs unknowns": ("-snes_type ngs -snes_ngs_blocks unknowns", 1500, 1e-6),
    "ngs newton": ("-snes_type ngs -snes_ngs_blocks tensors -snes_ngs_secant false", 1500, 1e-6),
    "ngs subdomains": ("-snes_type ngs -snes_ngs_blocks dm -dm_decomposition blocks -dm_subdomains 3", 1500, 1e-6),
}
FEW = "-snes_type ngs -snes_max_it 3"
CHANGES: dict[str, tuple[str, str]] = {
    "blocks": (FEW, "unknowns"),
    "sweeps": (FEW, "2"),
    "max_it": (FEW, "2"),
    "rtol": (FEW, "0.5"),
    "atol": (FEW, "0.1"),
    "stol": (FEW, "0.1"),
    "secant": (FEW, "false"),
}
