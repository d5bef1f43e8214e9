"""Anderson mixing: the trees and options of its contract."""

from __future__ import annotations

TREES = {
    "anderson": ("-snes_type anderson -snes_anderson_beta 0.02", 60, 1e-08),
    "anderson, long steps": ("-snes_type anderson", 200, 1e-08),
    "anderson, restarts": (
        "-snes_type anderson -snes_anderson_beta 0.02 -snes_anderson_m 4 -snes_anderson_restart_type difference",
        400,
        1e-08,
    ),
    "anderson, right nasm": (
        "-snes_type anderson -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 5",
        60,
        1e-08,
    ),
    "anderson, left nasm": (
        "-snes_type anderson -snes_npc_side left -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 30",
        60,
        1e-08,
    ),
}
CHANGES: dict[str, tuple[str, str]] = {
    "m": ("-snes_type anderson", "2"),
    "beta": ("-snes_type anderson", "0.1"),
    "restart_type": ("-snes_type anderson -snes_anderson_restart 3", "periodic"),
    "restart": ("-snes_type anderson -snes_anderson_restart_type periodic", "4"),
    "restart_it": (
        "-snes_type anderson -snes_anderson_beta 5 -snes_anderson_m 3 -snes_anderson_restart_type difference",
        "1",
    ),
}
