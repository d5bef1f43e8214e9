"""ASPIN: the trees of its contract; the recipe has no options."""

from __future__ import annotations

TREES = {
    "aspin": ("-snes_type aspin -npc_dm_subdomains 2", 20, 1e-08),
    "aspin overlap": (
        "-snes_type aspin -npc_dm_decomposition blocks -npc_dm_subdomains 2 -npc_dm_overlap 1",
        20,
        1e-08,
    ),
    "aspin restrict average": (
        "-snes_type aspin -npc_dm_subdomains 2 -npc_snes_nasm_type restrict -npc_snes_nasm_combine average",
        20,
        1e-08,
    ),
}
CHANGES: dict[str, tuple[str, str]] = {}
