"""Gauss-Newton: the trees and options of its contract."""

from __future__ import annotations

TREES = {
    "gn": ("-snes_type gn", 30, 1e-08),
    "gn cg": ("-snes_type gn -snes_gn_linear cg", 60, 1e-08),
    "gn none": ("-snes_type gn -snes_gn_regularization none", 3, 1e-08),
    "gn none cg": ("-snes_type gn -snes_gn_regularization none -snes_gn_linear cg", 30, 1e-08),
    "gn, right nasm of gn": (
        "-snes_type gn -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_type gn -npc_sub_snes_max_it 1",
        30,
        1e-08,
    ),
}
CHANGES: dict[str, tuple[str, str]] = {
    "regularization": ("-snes_type gn -snes_max_it 4", "none"),
    "linear": ("-snes_type gn -snes_max_it 4", "cg"),
    "damping": ("-snes_type gn -snes_max_it 4", "1"),
    "scaling": ("-snes_type gn -snes_max_it 4", "diagonal"),
    "recycle": ("-snes_type nrichardson -npc_snes_type gn -npc_snes_max_it 2 -npc_snes_gn_recycle", "false"),
    "cg_max_it": ("-snes_type gn -snes_max_it 4 -snes_gn_linear cg", "2"),
    "cg_rtol": ("-snes_type gn -snes_max_it 4 -snes_gn_linear cg", "0.9"),
}
