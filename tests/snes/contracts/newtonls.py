"""Newton's method: the trees and options of its contract."""

from __future__ import annotations

SCHWARZ = "-npc_snes_type nasm -npc_dm_subdomains 2"
TREES = {
    "newtonls": ("-snes_type newtonls", 20, 1e-08),
    "newtonls gn": ("-snes_type newtonls -snes_newtonls_model gn", 20, 1e-08),
    "newtonls minres": ("-snes_type newtonls -ksp_type minres", 20, 1e-08),
    "newtonls gmres": ("-snes_type newtonls -ksp_type gmres", 20, 1e-08),
    "newtonls nystrom": ("-snes_type newtonls -pc_type nystrom -pc_nystrom_rank 3 -pc_nystrom_lag 4", 20, 1e-08),
    "newtonls cholesky": ("-snes_type newtonls -ksp_type preonly -pc_type lu", 1, 1e-08),
    "newtonls, right nasm": (f"-snes_type newtonls {SCHWARZ} -npc_sub_snes_max_it 5", 20, 1e-08),
    "newtonls, left nasm by differences": (
        f"-snes_type newtonls -snes_npc_side left {SCHWARZ} -npc_sub_snes_max_it 30 -npc_snes_linesearch_type none",
        30,
        1e-06,
    ),
}
CHANGES: dict[str, tuple[str, str]] = {
    "model": ("-snes_type newtonls -snes_max_it 2", "gn"),
    "damping": ("-snes_type newtonls -snes_max_it 2", "0.1"),
}
