"""torch.optim: the trees and options of its contract."""

from __future__ import annotations

TREES = {
    "torchoptim": ("-snes_type torchoptim -snes_torchoptim_lr 0.03 -snes_torchoptim_decay 0.5", 3000, 0.0001),
    "torchoptim lbfgs": ("-snes_type torchoptim -snes_torchoptim_name lbfgs -snes_torchoptim_lr 0.1", 200, 1e-06),
}
CHANGES: dict[str, tuple[str, str]] = {
    "name": ("-snes_type torchoptim -snes_torchoptim_lr 0.1", "SGD"),
    "lr": ("-snes_type torchoptim", "0.2"),
    "arguments": ("-snes_type torchoptim -snes_torchoptim_lr 0.1", "'{betas: [0.5, 0.9]}'"),
    "decay": ("-snes_type torchoptim -snes_torchoptim_lr 0.1", "0.01"),
    "batch": ("-snes_type torchoptim -snes_torchoptim_lr 0.1", "4"),
    "steps": ("-snes_type torchoptim -snes_torchoptim_lr 0.1", "2"),
    "seed": ("-snes_type torchoptim -snes_torchoptim_lr 0.1 -snes_torchoptim_batch 4", "7"),
    "recycle": (
        "-snes_type nrichardson -npc_snes_type torchoptim -npc_snes_torchoptim_lr 0.1 -npc_snes_torchoptim_recycle",
        "false",
    ),
}
