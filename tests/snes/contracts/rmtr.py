"""Recursive trust regions: the trees and options of its contract."""

from __future__ import annotations

RMTR = "-snes_type rmtr -dm_hierarchy width"
SAMPLED = "-snes_type rmtr -dm_hierarchy samples"
BOX = "-rmtr_coarse_snes_tr_norm_type infinity -rmtr_levels_snes_tr_norm_type infinity"

TREES = {
    "rmtr": (RMTR, 60, 1e-8),
    "rmtr W": (f"{RMTR} -snes_rmtr_cycles 2", 60, 1e-8),
    "rmtr F, in boxes": (f"{RMTR} -snes_rmtr_cycles f {BOX}", 60, 1e-8),
    "rmtr, Hessian on the coarsest level": (f"{RMTR} -rmtr_coarse_snes_tr_qn none", 60, 1e-8),
    "rmtr of one level": (f"{RMTR} -dm_levels 1 -snes_rmtr_smoothcoarse 2", 30, 1e-8),
}
CHANGES: dict[str, tuple[str, str]] = {
    "cycles": (f"{RMTR} -snes_rmtr_smoothcoarse 1", "2"),
    "eta": (SAMPLED, "0.99"),
    "smoothdown": (RMTR, "2"),
    "smoothup": (RMTR, "0"),
    "smoothcoarse": (f"{SAMPLED} -rmtr_levels_snes_tr_delta0 10", "1"),
    "smoothing": (RMTR, "[(1),1,{2}]"),
    "batch": (RMTR, "6"),
    "batch_growth": (f"{RMTR} -snes_rmtr_batch 2 -snes_rmtr_batch_threshold 100", "5"),
    "batch_threshold": (f"{RMTR} -snes_rmtr_batch 2", "100"),
    "seed": (f"{RMTR} -snes_rmtr_batch 6", "1"),
}
