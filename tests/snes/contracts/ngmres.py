"""Nonlinear GMRES: the trees and options of its contract."""

from __future__ import annotations

_FULL_STEPS = "-snes_type ngmres -snes_linesearch_type none"

TREES = {
    "ngmres": ("-snes_type ngmres", 40, 1e-08),
    "ngmres, full steps": ("-snes_type ngmres -snes_linesearch_type none -snes_linesearch_damping 0.01", 40, 1e-08),
    "ngmres, search": ("-snes_type ngmres -snes_ngmres_select_type linesearch", 40, 1e-08),
    "ngmres, periodic": ("-snes_type ngmres -snes_ngmres_restart_type periodic -snes_ngmres_restart 4", 100, 1e-08),
    "ngmres, right nasm": (
        "-snes_type ngmres -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 5",
        40,
        1e-08,
    ),
    "ngmres, right nrichardson": ("-snes_type ngmres -npc_snes_type nrichardson -npc_snes_max_it 3", 40, 1e-08),
    "ngmres, left nasm": (
        "-snes_type ngmres -snes_npc_side left -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 30",
        60,
        1e-08,
    ),
}
CHANGES: dict[str, tuple[str, str]] = {
    "m": ("-snes_type ngmres", "2"),
    "select_type": ("-snes_type ngmres", "linesearch"),
    "restart_type": ("-snes_type ngmres -snes_ngmres_restart 3", "periodic"),
    "restart": ("-snes_type ngmres -snes_ngmres_restart_type periodic", "4"),
    "restart_it": ("-snes_type ngmres -snes_ngmres_gammaC 0.9", "1"),
    "gammaa": ("-snes_type ngmres", "0.9"),
    "gammac": ("-snes_type ngmres", "0.9"),
    "epsilonb": ("-snes_type ngmres", "10"),
    "deltab": ("-snes_type ngmres -snes_ngmres_epsilonB 10", "0.1"),
    "restart_fm_rise": (f"{_FULL_STEPS} -snes_ngmres_restart_fm_rise", "true"),
    "candidate": ("-snes_type ngmres -snes_ngmres_candidate", "true"),
}
