"""Trust regions: the trees and options of its contract."""

from __future__ import annotations

TR = "-snes_type newtontr"
FAR = f"{TR} -snes_tr_qn sr1 -snes_tr_delta0 3"  # the first two steps have rho = 0.35 and rho < 0
NASM = "-npc_snes_type nasm -npc_dm_subdomains 2"

TREES = {
    "newtontr": (TR, 30, 1e-08),
    "newtontr cauchy": (f"{TR} -snes_tr_fallback_type cauchy", 100, 1e-08),
    "newtontr dogleg": (f"{TR} -snes_tr_fallback_type dogleg", 30, 1e-08),
    "newtontr gn": (f"{TR} -snes_tr_model gn", 30, 1e-08),
    "newtontr lsr1": (f"{TR} -snes_tr_qn lsr1", 60, 1e-08),
    "newtontr sr1": (f"{TR} -snes_tr_qn sr1", 60, 1e-08),
    "newtontr box": (f"{TR} -snes_tr_norm_type infinity", 30, 1e-08),
    "newtontr lsr1 box": (f"{TR} -snes_tr_norm_type infinity -snes_tr_qn lsr1", 60, 1e-08),
    "newtontr, right nasm of newtontr": (f"{TR} {NASM} -npc_sub_snes_type newtontr", 30, 1e-08),
    "newtontr lsr1, right nasm of qn": (f"{TR} -snes_tr_qn lsr1 {NASM} -npc_sub_snes_max_it 5", 60, 1e-08),
}
CHANGES: dict[str, tuple[str, str]] = {
    "delta0": (TR, "0.1"),
    "deltamin": (FAR, "2.9"),
    "deltamax": (TR, "0.3"),
    "eta1": (f"{FAR} -snes_tr_eta2 0.9 -snes_tr_eta3 0.9", "0.9"),
    "eta2": (FAR, "0.5"),
    "eta3": (FAR, "0.3"),
    "t1": (FAR, "0.5"),
    "t2": (TR, "3"),
    "norm_type": (TR, "infinity"),
    "kmdc": (TR, "0.99"),
    "fallback_type": (TR, "cauchy"),
    "model": (TR, "gn"),
    "qn": (TR, "lsr1"),
    "qn_m": (f"{TR} -snes_tr_qn lsr1", "2"),
    "qn_tol": (f"{TR} -snes_tr_qn lsr1", "0.5"),
    "cg_max_it": (TR, "2"),
    "cg_rtol": (TR, "0.9"),
    "recycle": ("-snes_type nrichardson -npc_snes_type newtontr -npc_snes_max_it 2 -npc_snes_tr_recycle", "false"),
}
