"""Nonlinear Schwarz: the trees and options of its contract."""

from __future__ import annotations

TREES = {
    "nasm": ("-snes_type nasm -dm_subdomains 2 -sub_snes_type qn -sub_snes_max_it 5", 1500, 1e-06),
    "nasm multiplicative": (
        "-snes_type nasm -snes_nasm_type multiplicative -dm_subdomains 2 -sub_snes_type qn -sub_snes_max_it 5",
        1500,
        1e-06,
    ),
    "nasm layerwise": (
        "-snes_type nasm -snes_nasm_combine layerwise -dm_subdomains 2 -sub_snes_type qn -sub_snes_max_it 5",
        1500,
        1e-06,
    ),
    "nasm subspace": (
        "-snes_type nasm -snes_nasm_combine subspace -dm_subdomains 2 -sub_snes_type qn -sub_snes_max_it 5",
        1500,
        1e-06,
    ),
    "nasm average": (
        "-snes_type nasm -snes_nasm_combine average -dm_subdomains 2 -sub_snes_type qn -sub_snes_max_it 5",
        1500,
        1e-06,
    ),
}
CHANGES: dict[str, tuple[str, str]] = {
    "type": ("-snes_type nasm -dm_subdomains 2 -sub_snes_max_it 3", "multiplicative"),
    "damping": ("-snes_type nasm -dm_subdomains 2 -sub_snes_max_it 3 -snes_linesearch_type none", "0.7"),
    "combine": ("-snes_type nasm -dm_subdomains 2 -sub_snes_max_it 3", "average"),
}
