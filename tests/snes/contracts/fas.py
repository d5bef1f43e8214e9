"""The full approximation scheme: the trees and options of its contract."""

from __future__ import annotations

FAS = "-snes_type fas -dm_hierarchy width"
SAMPLED = "-snes_type fas -dm_hierarchy samples"
FIXED = f"{FAS} -fas_levels_snes_type nrichardson -fas_coarse_snes_type nrichardson"

TREES = {
    "fas": (FAS, 60, 1e-8),
    "fas of gradient descent": (FIXED, 200, 1e-6),
    "fas W": (f"{FAS} -snes_fas_cycles 2", 60, 1e-8),
    "fas additive": (f"{FAS} -snes_fas_type additive", 60, 1e-8),
    "fas full": (f"{FAS} -snes_fas_type full -snes_fas_cycles f", 60, 1e-8),
    "fas kaskade": (f"{FAS} -snes_fas_type kaskade -fas_coarse_snes_max_it 3", 60, 1e-8),
    "fas nested": (f"{FAS} -snes_fas_type nested", 60, 1e-8),
    "fas of nasm": (
        f"{FAS} -dm_levels 2 -fas_levels_snes_type nasm -fas_levels_dm_subdomains 2 -fas_levels_sub_snes_max_it 5",
        300,
        1e-6,
    ),
    "fas of one level": (f"{FAS} -dm_levels 1", 30, 1e-8),
}
CHANGES: dict[str, tuple[str, str]] = {
    "type": (FAS, "additive"),
    "cycles": (f"{FAS} -snes_fas_smoothcoarse 1", "2"),
    "smoothdown": (FAS, "2"),
    "smoothup": (FAS, "0"),
    "smoothcoarse": (FAS, "1"),
    "smoothing": (FAS, "[(1),1,{2}]"),
    "use_coarse_correction_linesearch": (f"{FAS} -snes_linesearch_damping 0.5", "false"),
    "lift": (f"{FAS} -snes_fas_type full", "false"),
    "damping": (f"{FAS} -snes_fas_use_coarse_correction_linesearch false", "0.7"),
    "nested_steps": (f"{FAS} -snes_fas_type full", "7"),
    "share": (SAMPLED, "true"),
    "batch": (FAS, "6"),
    "seed": (f"{FAS} -snes_fas_batch 6", "1"),
    "batch_ahead": (f"{FAS} -snes_fas_batch 6 -snes_rtol 0.1", "true"),
}
