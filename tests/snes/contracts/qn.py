"""Quasi-Newton: the trees and options of its contract."""

from __future__ import annotations

TREES = {
    "qn": ("-snes_type qn", 60, 1e-08),
    "qn bfgs": ("-snes_type qn -snes_qn_type bfgs", 40, 1e-08),
    "qn ssbfgs": ("-snes_type qn -snes_qn_type ssbfgs", 40, 1e-08),
    "qn ssbroyden": ("-snes_type qn -snes_qn_type ssbroyden", 40, 1e-08),
    "qn ssbroyden by layers": (
        "-snes_type qn -snes_qn_type ssbroyden -snes_qn_blocks layers -snes_linesearch_memory 0",
        400,
        1e-08,
    ),
    "qn ssbroyden by layers, learnt steps": (
        "-snes_type qn -snes_qn_type ssbroyden -snes_qn_blocks layers",
        1000,
        1e-08,
    ),
    "qn, right nasm": ("-snes_type qn -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 5", 30, 1e-08),
    "qn, left nasm": (
        "-snes_type qn -snes_npc_side left -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 30",
        100,
        1e-08,
    ),
    "qn, right multiplicative nasm": (
        "-snes_type qn -npc_snes_type nasm -npc_snes_nasm_type multiplicative -npc_dm_subdomains 2",
        30,
        1e-08,
    ),
    "qn, right qn with one matrix": (
        "-snes_type qn -snes_qn_share -npc_snes_type qn -npc_snes_max_it 2",
        30,
        1e-08,
    ),
}
CHANGES: dict[str, tuple[str, str]] = {
    "type": ("-snes_type qn", "bfgs"),
    "blocks": ("-snes_type qn -snes_qn_type ssbroyden", "layers"),
    "m": ("-snes_type qn", "2"),
    "scale_type": ("-snes_type qn", "none"),
    "restart_type": ("-snes_type qn -snes_qn_restart 3", "periodic"),
    "restart": ("-snes_type qn -snes_qn_restart_type periodic", "4"),
    "powell_gamma": ("-snes_type qn -snes_qn_restart_type powell", "0.01"),
    "momentum": ("-snes_type qn", "0.9"),
    "recycle": ("-snes_type nrichardson -npc_snes_type qn -npc_snes_max_it 2 -npc_snes_qn_recycle", "false"),
    "share": ("-snes_type qn -npc_snes_type qn -npc_snes_max_it 2", "true"),
    "pairs": (
        "-snes_type qn -snes_qn_type ssbroyden -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 2",
        "both",
    ),
    "curvature": ("-snes_type qn", "0.9"),
}
