"""Every solver type trains a network from the command line: as the outermost solver, and as a preconditioner."""

from __future__ import annotations

import math
import re
import shlex

import pytest

from ml2hpc.apps import pinn
from ml2hpc.io import store
from ml2hpc.snes import TYPES
from tests.snes.contracts import TREES, needs

SMALL = "-pinn_points 200 -pinn_face_points 20 -net_depth 2 -net_width 5 -pinn_error_interval 1 -snes_view"

# The first tree of each type in its contract.
FIRST = {name: next(options for options, _, _ in TREES.values() if options.split()[1] == name) for name in TYPES}
FIRST["aspin"] += " -ksp_max_it 5 -npc_sub_snes_max_it 2 -npc_sub_ksp_max_it 5"
EVERY_TYPE = pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in FIRST])


def below(prefix: str, options: str) -> str:
    """The options of a tree as those of a child with a prefix."""
    return re.sub(r"(^| )-(?=[a-z])", rf"\g<1>-{prefix}", options)


def trained(folder, monkeypatch, options: str) -> dict[str, list[float]]:
    """Run the app in a folder; return the history of the outermost solver."""
    monkeypatch.chdir(folder)
    pinn.main(shlex.split(f"{options} {SMALL}"))
    return store.read(folder / "run.h5", "run")["history"]["outer"]


@EVERY_TYPE
def test_as_outermost_solver(comm, tmp_path, monkeypatch, capsys, name):
    history = trained(tmp_path, monkeypatch, f"{FIRST[name]} -snes_max_it 3")
    assert history["objective"][-1] < history["objective"][0]
    assert all(math.isfinite(e) for e in history["error"])
    shown = "averaged" if name == "python" else name  # the user's type has a name of its own
    assert f"type: {shown}" in capsys.readouterr().out


@pytest.mark.parametrize("side", ["left", "right"])
@EVERY_TYPE
def test_as_preconditioner(comm, tmp_path, monkeypatch, capsys, name, side):
    npc = below("npc_", FIRST[name])
    history = trained(tmp_path, monkeypatch, f"-snes_type qn -snes_npc_side {side} {npc} -snes_max_it 2")
    assert history["objective"][-1] < history["objective"][0]
    assert f"nonlinear preconditioner on the {side}" in capsys.readouterr().out


def test_the_rewriting_of_options_spares_values():
    assert below("npc_", "-snes_type qn -snes_rtol -1e-3") == "-npc_snes_type qn -npc_snes_rtol -1e-3"
