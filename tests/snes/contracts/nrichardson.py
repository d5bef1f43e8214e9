"""Richardson: the trees and options of its contract."""

from __future__ import annotations

TREES = {
    "nrichardson": ("-snes_type nrichardson", 400, 1e-06),
    "nrichardson, left nasm": (
        "-snes_type nrichardson -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 5",
        1500,
        1e-06,
    ),
}
CHANGES: dict[str, tuple[str, str]] = {}
