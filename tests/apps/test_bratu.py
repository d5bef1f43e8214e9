"""The bratu app as a user runs it: its solution against another method, restarts on other ranks, bad input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import diags, eye, kron
from scipy.sparse.linalg import spsolve

from ml2hpc.io import store

SMALL = "-da_grid_x 13 -da_grid_y 11"
SCHWARZ = "-npc_snes_type nasm -npc_sub_snes_max_it 4 -da_overlap 1 -snes_rtol 0 -snes_stol 0"


def bratu(folder: Path, arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [shutil.which("mpirun") or "mpirun", "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, "-m", "ml2hpc.apps.bratu", *arguments.split()]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "MPI"))}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)


def nodal_newton(columns: int, rows: int, parameter: float) -> np.ndarray:
    """Newton's method with a sparse factorisation on the interior nodes, u[j, i]."""

    def second(n: int) -> object:
        return diags([-1.0, 2.0, -1.0], [-1, 0, 1], (n - 2, n - 2)) * (n - 1) ** 2

    a = (kron(eye(rows - 2), second(columns)) + kron(second(rows), eye(columns - 2))).tocsc()
    u = np.zeros(a.shape[0])
    for _ in range(20):
        u -= spsolve(a - diags(parameter * np.exp(u)).tocsc(), a @ u - parameter * np.exp(u))
    return np.pad(u.reshape(rows - 2, columns - 2), 1)


@pytest.mark.parametrize("parameter", [1.0, 6.0])
def test_the_solution_is_newtons(tmp_path, parameter: float) -> None:
    done = bratu(tmp_path, f"{SMALL} -bratu_par {parameter} -snes_rtol 1e-11 -snes_stol 0")
    assert done.returncode == 0, done.stderr
    u = store.read(tmp_path / "run.h5", "run")["solution"]["u"]
    expected = nodal_newton(13, 11, parameter).T
    np.testing.assert_allclose(u, expected, rtol=0, atol=1e-9)
    told = float(done.stdout.partition("maximum of u ")[2].split()[0])
    assert told == pytest.approx(expected.max(), abs=2e-9)


def test_the_manufactured_solution_is_found(tmp_path) -> None:
    done = bratu(tmp_path, f"{SMALL} -bratu_mms 1 -snes_rtol 1e-10 -snes_stol 0")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("relative L2 error")]
    assert float(line.split()[-1]) < 1e-8


def test_a_run_goes_on_on_another_number_of_ranks(tmp_path) -> None:
    """Started on 4 ranks with 4 subdomains; the options of the file hold, and so does the number of subdomains."""
    for name, legs in (("straight", [(4, 4)]), ("broken", [(4, 2), (1, 3), (2, 4)])):
        folder = tmp_path / name
        folder.mkdir()
        first, *rest = legs
        done = bratu(folder, f"{SMALL} {SCHWARZ} -snes_max_it {first[1]}", ranks=first[0])
        assert done.returncode == 0, done.stderr
        for ranks, iterations in rest:
            done = bratu(folder, f"-restart run.h5 -snes_max_it {iterations}", ranks=ranks)
            assert done.returncode == 0, done.stderr
    straight, broken = (store.read(tmp_path / name / "run.h5", "run") for name in ("straight", "broken"))
    assert "4 boxes, overlap 1" in straight["configuration"]["solver"] == broken["configuration"]["solver"]
    np.testing.assert_allclose(broken["solution"]["u"], straight["solution"]["u"], rtol=0, atol=1e-10)
    norms = [tree["history"]["outer"]["gradient_norm"] for tree in (straight, broken)]
    assert len(norms[0]) == 5
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-8)


def test_on_one_rank_a_restart_continues_bit_for_bit(tmp_path) -> None:
    for name, legs in (("straight", [4]), ("broken", [2, 4])):
        folder = tmp_path / name
        folder.mkdir()
        for k, iterations in enumerate(legs):
            arguments = "-restart run.h5" if k else f"{SMALL} {SCHWARZ} -npc_dm_subdomains 4"
            assert bratu(folder, f"{arguments} -snes_max_it {iterations}").returncode == 0
    u = [store.read(tmp_path / name / "run.h5", "run")["solution"]["u"] for name in ("straight", "broken")]
    assert u[0].tobytes() == u[1].tobytes()


def test_above_the_fold_the_energy_falls_for_ever(tmp_path) -> None:
    done = bratu(tmp_path, f"{SMALL} -bratu_par 7")
    assert done.returncode == 1
    assert "warning: there is no solution above the fold, lambda = 6.808" in done.stdout
    assert done.stderr.startswith("ml2hpc: error: the solve ended with DIVERGED_OBJECTIVE_NANORINF after")
    assert "the last good state is in run.h5" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("-da_grid_x 2", "-da_grid_x: '2' is out of range, must be at least 3"),
        ("-vec_type sharded", "-vec_type sharded: vectors on a grid are partitioned already; leave it out"),
        ("-npc_snes_type nasm -npc_dm_subdomains 4 -da_overlap 9", "-npc_dm_overlap 9: the narrowest subdomain has 5"),
        ("-bratu_problem plateau", "-bratu_problem: 'plateau' is not available"),
        ("-snes_type gn", "not a sum of squares: Gauss-Newton needs residuals; use qn"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments: str, told: str) -> None:
    done = bratu(tmp_path, f"{SMALL} {arguments}")
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_more_ranks_than_grid_lines_is_one_line(tmp_path) -> None:
    done = bratu(tmp_path, "-da_grid_x 3 -da_grid_y 3", ranks=5)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("ml2hpc")]
    what = "a grid of 3 x 3 nodes cannot be cut into 1 x 5 boxes: use fewer ranks or subdomains, or a finer grid"
    assert told == [f"ml2hpc: error: {what}"]


def test_help_shows_the_options(tmp_path) -> None:
    text = bratu(tmp_path, "-help").stdout
    assert all(f"-{name}" in text for name in ("bratu_problem", "bratu_par", "bratu_mms", "da_grid_x", "da_overlap"))
