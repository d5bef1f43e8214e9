"""The batch script goes on from its output, however options are spelt; srun is a stub that prints its words."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "jobscripts" / "slurm.sh"


@pytest.mark.parametrize(
    ("words", "added"),
    [
        ("-seed 1", "-restart run.h5"),
        ("-seed -1 -output a.h5", "-restart a.h5"),
        ("--output a.h5", "-restart a.h5"),
        ("-Output=a.h5", "-restart a.h5"),
        ("-output b.h5", ""),
        ("-output b.h5 -output a.h5", "-restart a.h5"),
        ("-restart a.h5 -snes_max_it 3", ""),
        ("--restart=a.h5", ""),
        ("-npc_snes_view output", "-restart run.h5"),
    ],
)
def test_a_job_goes_on_from_its_output(tmp_path: Path, words: str, added: str) -> None:
    for name in ("python", "srun"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        stub = tmp_path / "bin" / name
        stub.write_text('#!/bin/sh\necho "$*"\n')
        stub.chmod(0o755)
    for name in ("run.h5", "a.h5"):
        (tmp_path / name).touch()
    environment = {"PATH": os.environ["PATH"], "ML2HPC_VENV": str(tmp_path)}
    command = ["bash", str(SCRIPT), *words.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.partition("ml2hpc.apps.pinn ")[2].strip() == f"{words} {added}".strip()
