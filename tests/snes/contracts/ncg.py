"""Nonlinear conjugate gradients: the trees and options of their contract."""

from __future__ import annotations

TREES = {
    "ncg": ("-snes_type ncg", 60, 1e-08),
    "ncg fr, exact steps": ("-snes_type ncg -snes_ncg_type fr -snes_linesearch_type ncglinear", 12, 1e-08),
    "ncg hs": ("-snes_type ncg -snes_ncg_type hs", 60, 1e-08),
    "ncg dy, bisection": ("-snes_type ncg -snes_ncg_type dy -snes_linesearch_type bisection", 60, 1e-08),
    "ncg cd": ("-snes_type ncg -snes_ncg_type cd", 60, 1e-08),
    "ncg, left nasm": ("-snes_type ncg -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 30", 100, 1e-08),
    "ncg, right nasm": (
        "-snes_type ncg -snes_npc_side right -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 5",
        100,
        1e-08,
    ),
}
CHANGES: dict[str, tuple[str, str]] = {"type": ("-snes_type ncg", "fr")}
