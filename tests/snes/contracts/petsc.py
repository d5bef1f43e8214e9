"""PETSc's solvers: the trees and options of their contract."""

from __future__ import annotations

NEEDS = "petsc4py"
TREES = {
    "petsc": ("-snes_type petsc", 100, 1e-08),
    "petsc tao ntr": ("-snes_type petsc -petsc_tao_type ntr", 30, 1e-08),
    "petsc snes qn": ("-snes_type petsc -snes_petsc_solver snes -petsc_snes_type qn", 100, 1e-06),
    "petsc snes newtontr": ("-snes_type petsc -snes_petsc_solver snes -petsc_snes_type newtontr", 60, 1e-08),
    "petsc, right nasm": (
        "-snes_type petsc -snes_petsc_its 8 -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 5",
        100,
        1e-08,
    ),
    "nasm of petsc": ("-snes_type nasm -dm_subdomains 2 -sub_snes_type petsc -sub_snes_max_it 5", 1500, 1e-06),
}
CHANGES: dict[str, tuple[str, str]] = {
    "solver": ("-snes_type petsc", "snes"),
    "its": ("-snes_type petsc", "3"),
}
