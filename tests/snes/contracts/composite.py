"""Composite: the trees and options of its contract."""

from __future__ import annotations

MEMBERS = "-snes_type composite -snes_composite_sneses"
CHAIN = "-snes_type composite -snes_composite_type multiplicative -snes_composite_sneses"
PAIR = f"{MEMBERS} nasm,qn -sub_0_dm_subdomains 2 -sub_0_sub_snes_max_it 5"

TREES = {
    "composite": (PAIR, 100, 1e-6),
    "composite additive": (f"{PAIR} -snes_composite_type additive", 100, 1e-6),
    "composite multiplicative": (f"{PAIR} -snes_composite_type multiplicative", 60, 1e-6),
    "composite of dense inverses": (
        f"{CHAIN} qn,nrichardson -sub_0_snes_qn_type ssbroyden",
        100,
        1e-6,
    ),
    "composite, two levels": (
        f"{CHAIN} nasm,nasm -sub_0_dm_decomposition coarse -sub_dm_subdomains 2 -sub_sub_snes_max_it 5",
        1500,
        1e-6,
    ),
    "composite of preconditioned members": (
        f"{MEMBERS} qn,nrichardson -sub_0_npc_snes_type nasm -sub_0_npc_dm_subdomains 2 -sub_0_npc_sub_snes_max_it 5",
        100,
        1e-6,
    ),
}
CHANGES: dict[str, tuple[str, str]] = {
    "type": ("-snes_type composite -snes_composite_sneses nrichardson,qn", "multiplicative"),
    "sneses": ("-snes_type composite -snes_composite_sneses nrichardson,qn", "qn,qn"),
    "damping": ("-snes_type composite -snes_composite_sneses nrichardson,qn -snes_composite_type additive", "1,0.5"),
}
