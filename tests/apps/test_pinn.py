"""The pinn app as a user runs it: the same result on any number of ranks, restarts, bad input, signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ml2hpc.apps.pinn import PinnOptions, chunk_for
from ml2hpc.errors import OptionsError
from ml2hpc.io import store
from ml2hpc.options import Database
from ml2hpc.problem.network import NetworkOptions

SMALL = "-pinn_points 400 -pinn_chunk 50 -net_depth 3 -net_width 8 -npc_dm_subdomains 3 -pinn_error_interval 0"
PROBLEMS = """
import time
import torch
from ml2hpc.problem.pde import PDE

class Base(PDE):
    coordinates, domain = "xt", {"x": (0.0, 1.0), "t": (0.0, 1.0)}

class Bug(Base):
    def residual(self, p, u):
        return u.t - undefined_name

class Nowhere(Base):
    def residual(self, p, u):
        return u.t - torch.log(u.value - 1e3)

class Late(Base):
    calls = 0
    def residual(self, p, u):
        Late.calls += 1
        return u.t - u.xx - 1 if Late.calls < 400 else u.t * float("nan")

class Named(Base):
    fields = ("u", "x")
    def residual(self, p, u, v):
        return u.t - v.x

class Nothing(Base):
    def residual(self, p, u):
        return u.t - u.xx

class Two(Base):
    fields = ("v", "w")
    def residual(self, p, v, w):
        return v.t - w.x, w.t - v.x
    def distance(self, p):
        return p.t
    def lifting(self, p):
        return torch.sin(p.x), torch.cos(p.x)

class Leaves(Base):
    calls = 0
    def residual(self, p, u):
        from mpi4py import MPI
        Leaves.calls += 1
        if Leaves.calls > 100 and MPI.COMM_WORLD.rank == 1:
            raise SystemExit(3)
        return u.t - u.xx - 1

class Slow(Base):
    def residual(self, p, u):
        if len(p.x) == 60:
            time.sleep(1.0)
        return u.t - u.xx - 1

class OneRank(Base):
    calls = 0
    def residual(self, p, u):
        from mpi4py import MPI
        OneRank.calls += 1
        if OneRank.calls > 100 and MPI.COMM_WORLD.rank == 1:
            raise RuntimeError("only here")
        return u.t - u.xx - 1
"""


def command(ranks: int, arguments: list[str]) -> list[str]:
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert mpirun is not None, "mpirun is not installed"
    return [mpirun, "-n", str(ranks), sys.executable, "-m", "ml2hpc.apps.pinn", *arguments]


def launch(folder: Path, ranks: int, arguments: str, small: bool = True) -> subprocess.CompletedProcess[str]:
    words = f"{SMALL if small else ''} {arguments}".split()
    return subprocess.run(
        command(ranks, words), cwd=folder, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL
    )


def succeed(folder: Path, ranks: int, arguments: str, small: bool = True) -> str:
    done = launch(folder, ranks, arguments, small)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def parameters(path: Path) -> np.ndarray:
    tree = store.read(path, "run")["checkpoint"]["parameters"]
    return np.concatenate([np.ravel(v) for v in tree.values()])


def rank_process(word: str) -> int:
    """Return the process of the last rank whose command line holds a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(Path(sys.executable).name.encode()) and word.encode() in words:
            found.append(int(path.parent.name))
    return max(found)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with 20 outer iterations of ASPQN in one go, and 10 to go on from, on two ranks."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "problems.py").write_text(PROBLEMS)
    succeed(folder, 2, "-snes_max_it 20 -output straight.h5")
    succeed(folder, 2, "-snes_max_it 10 -output half.h5")
    return folder


@pytest.mark.parametrize("ranks", [1, 3, 4, 8])
def test_any_number_of_ranks_gives_the_same_bits(runs, ranks):
    succeed(runs, ranks, f"-snes_max_it 20 -output on{ranks}.h5")
    assert (parameters(runs / f"on{ranks}.h5") == parameters(runs / "straight.h5")).all()


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_restart_continues_exactly_with_the_options_of_the_file(runs, ranks):
    succeed(runs, ranks, f"-restart half.h5 -snes_max_it 20 -output again{ranks}.h5", small=False)
    again, straight = (store.read(runs / name, "run") for name in (f"again{ranks}.h5", "straight.h5"))
    assert (parameters(runs / f"again{ranks}.h5") == parameters(runs / "straight.h5")).all()
    for column in ("iteration", "objective", "gradients_total"):
        assert (again["history"]["outer"][column] == straight["history"]["outer"][column]).all()
    for clock in ("seconds", "cpu_seconds"):
        assert (np.diff(again["history"]["outer"][clock]) > 0).all()


ADAPTIVE = (
    "-pinn_conditions soft -pinn_weights t0_value=20 -pinn_resample rad -pinn_resample_interval 4 "
    "-pinn_adaptive_weights gradient -pinn_adaptive_weights_interval 3"
)


def test_a_restart_continues_exactly_while_points_and_weights_change(runs):
    """Files written before, at and after a change; each goes on, on other ranks, to the bits of the straight run."""
    text = succeed(runs, 2, f"{ADAPTIVE} -snes_max_it 13 -output moving.h5 -log_view -snes_view")
    told = [line for line in text.splitlines() if line.startswith("pinn: iteration")]
    assert [line.split()[2] for line in told] == ["3,", "4,", "6,", "8,", "9,", "12,"]
    assert "resampling 3; weights residual 1, t0_value" in told[-1]
    assert "  weights balanced every 3 iterations, average=0.9" in text.splitlines()
    assert any(line.startswith("Resample ") and line.split()[1] == "3" for line in text.splitlines())
    straight = store.read(runs / "moving.h5", "run")
    outer = straight["history"]["outer"]
    assert outer["resampling"].tolist() == [0] * 5 + [1] * 4 + [2] * 4 + [3]
    assert outer["weight_t0_value"][:4].tolist() == [20.0] * 4
    assert len(set(outer["weight_t0_value"])) == 5
    assert straight["history"]["npc_"]["outer"].tolist() == [k // 2 for k in range(26)]
    for ranks, half in ((3, 4), (1, 5)):
        succeed(runs, ranks, f"{ADAPTIVE} -snes_max_it {half} -output moved.h5")
        succeed(runs, ranks - 1 or 4, "-restart moved.h5 -snes_max_it 13 -output moved.h5", small=False)
        moved = store.read(runs / "moved.h5", "run")
        assert (parameters(runs / "moved.h5") == parameters(runs / "moving.h5")).all()
        for column in ("objective", "gradients_total", "objectives_work", "resampling", "weight_x1_value"):
            assert (moved["history"]["outer"][column] == outer[column]).all()
        for name in ("points", "factors"):
            assert (moved["checkpoint"]["problem"][name] == straight["checkpoint"]["problem"][name]).all()


def test_the_file_holds_what_it_should(runs):
    tree = store.read(runs / "straight.h5", "run")
    assert tree["configuration"]["solver"] == "qn(lbfgs 10) + right npc nasm(additive, 3 layers) of qn(ssbroyden)"
    assert tree["configuration"]["options"]["pinn_points"] == "400"
    history = tree["history"]["outer"]
    assert history["iteration"].tolist() == list(range(21))
    assert (np.diff(history["objective"]) <= 0).all()
    solution = tree["solution"]
    assert solution["u"].shape == (256, 101)
    np.testing.assert_allclose(solution["u"] - solution["reference"], solution["error"], atol=1e-15)
    # Hard conditions hold to round-off: the initial value and the walls.
    np.testing.assert_allclose(solution["u"][:, 0], -np.sin(np.pi * solution["x"]), atol=1e-15)
    np.testing.assert_allclose(solution["u"][[0, -1]], 0.0, atol=1e-15)
    assert (runs / "straight.xdmf").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-snes_typ qn", "unknown option -snes_typ qn (command line); did you mean -snes_type?"),
        ("-pinn_problem burger", "no such problem; did you mean burgers?"),
        ("-npc_dm_subdomains 9", "-npc_dm_subdomains 9: there are only 4 layers to divide; choose at most 4"),
        ("-pinn_problem problems.py:Bug", "Bug.residual failed: NameError: name 'undefined_name' is not defined"),
        ("-pinn_problem problems.py:Nowhere", "DIVERGED_OBJECTIVE_NANORINF after 0 iterations; nothing was written"),
        ("-restart truncated.h5", "truncated.h5 is truncated"),
        ("-restart flipped.h5", "flipped.h5 is damaged"),
        ("-restart problems.py", "problems.py is not an ml2hpc file"),
        ("-pinn_weights t0_valeu=2 -pinn_conditions soft", "the loss has the terms residual, t0_value, x0_value, x1_v"),
        ("-pinn_adaptive_weights gradient", "residual is the only term of the loss"),
        (
            "-restart half.h5 -pinn_resample rad",
            "points is '400 sobol, seed 0' there, '400 sobol, seed 0, every 500 rad",
        ),
        ("-restart half.h5 -net_width 9", "network is 'mlp 3 x 8 tanh, 177 parameters' there"),
        ("-net_step 0.5", "-net_step 0.5: a plain stack has no residual blocks"),
        ("-output nofolder/run.h5", "nofolder"),
        ("-output run.xdmf", "-output run.xdmf: the name must end in .h5"),
        ("-restart_state parameters", "-restart_state parameters: there is no -restart"),
        ("-snes_monitor :nofolder/monitor.txt", "nofolder/monitor.txt: cannot be written"),
        ("-pinn_problem problems.py:Named", "fields must be different names"),
        ("-pinn_problem problems.py:Nothing -pinn_conditions soft", "Nothing.conditions() lists none"),
    ],
)
def test_bad_input_is_one_clear_error_and_writes_nothing(runs, arguments, message):
    data = (runs / "half.h5").read_bytes()
    (runs / "truncated.h5").write_bytes(data[: len(data) // 2])
    (runs / "flipped.h5").write_bytes(data[:5000] + bytes([data[5000] ^ 8]) + data[5001:])
    before = {p: p.stat().st_mtime_ns for p in runs.iterdir() if p.name != "__pycache__"}
    small = "-restart" not in arguments
    done = launch(runs, 2, f"{arguments} -snes_max_it 3", small)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("ml2hpc: error: ")
    assert message in errors[0]
    assert {p: p.stat().st_mtime_ns for p in runs.iterdir() if p.name != "__pycache__"} == before


def test_a_late_not_a_number_keeps_the_last_good_state(runs):
    done = launch(runs, 2, "-pinn_problem problems.py:Late -snes_max_it 50 -output late.h5")
    assert done.returncode == 1
    assert "DIVERGED_OBJECTIVE_NANORINF" in done.stderr
    assert "the last good state is in late.h5" in done.stderr
    tree = store.read(runs / "late.h5", "run")
    assert np.isfinite(parameters(runs / "late.h5")).all()
    assert np.isfinite(tree["checkpoint"]["objective"])
    assert tree["checkpoint"]["objective"] < tree["history"]["outer"]["objective"][0]


def test_an_exception_on_one_rank_ends_the_job_with_its_traceback(runs):
    start = time.monotonic()
    done = launch(runs, 3, "-pinn_problem problems.py:OneRank -snes_max_it 5000 -output one.h5")
    assert done.returncode != 0
    assert "ml2hpc: rank 1 of 3, not all, ended with: error: OneRank.residual failed: RuntimeError: only" in done.stderr
    assert "Traceback (most recent call last)" in done.stderr
    assert 'raise RuntimeError("only here")' in done.stderr
    assert time.monotonic() - start < 60  # it does not hang


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 85), (signal.SIGUSR1, 85), (signal.SIGKILL, None)])
def test_a_signal_to_one_rank(runs, number, status):
    """SIGTERM and SIGUSR1: a checkpoint and exit 85; SIGKILL: the job ends and the last checkpoint is whole."""
    output = f"{signal.Signals(number).name}.h5"
    words = f"{SMALL} -snes_max_it 100000 -output {output} -checkpoint_interval 0 -snes_rtol 0".split()
    job = subprocess.Popen(
        command(2, words), cwd=runs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not (runs / output).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(rank_process(output), number)
        start = time.monotonic()
        out, _ = job.communicate(timeout=60)
        assert time.monotonic() - start < 10
    finally:
        job.kill()
        job.communicate()
    if status is None:
        assert job.returncode != 0
    else:
        assert job.returncode == status
        assert f"{signal.Signals(number).name}: checkpoint written" in out
    done = store.read(runs / output, "run")["checkpoint"]["solver"]["iteration"]
    if status is not None:
        text = succeed(runs, 1, f"-restart {output} -snes_max_it {done + 1} -output after.h5", small=False)
        assert f"after {done + 1} iterations" in text


def test_help_lists_the_live_tree_and_nothing_else(runs):
    text = succeed(runs, 2, "-help -snes_type torchoptim".replace("-snes_type", "-options_left no -snes_type"))
    assert "-snes_torchoptim_lr <now 0.001 : formerly 0.001>" in text
    assert "snes_qn_m" not in text
    default = succeed(runs, 1, "-help")
    for name in ("-npc_dm_subdomains <now 3 : formerly 2>", "-npc_sub_snes_qn_type <now ssbroyden : formerly lbfgs>"):
        assert name in default
    assert "sub_0_" not in default


def test_views_show_the_tree_the_events_and_the_reason(runs):
    text = succeed(runs, 2, "-snes_max_it 2 -snes_view -log_view -snes_converged_reason -snes_monitor -output v.h5")
    lines = text.splitlines()
    assert any(line.startswith("  0 SNES Function norm ") for line in lines)
    assert "  Nonlinear solve did not converge due to DIVERGED_MAX_IT iterations 2" in lines
    assert "SNES Object: 2 MPI processes" in lines
    assert "  SNES Object: (npc_) 2 MPI processes" in lines
    assert "        SNES Object: (npc_sub_) 1 MPI process" in lines
    assert any(line.startswith("        0: layers 0, 24 unknowns, ") for line in lines)
    for event in ("SNESSolve ", "SNESFunctionEval (npc_sub_)", "SNESNASMSubSolve (npc_)"):
        assert any(line.startswith(event) for line in lines), event


def test_time_is_a_budget_and_no_failure(runs):
    text = succeed(runs, 2, "-snes_max_it 100000 -snes_rtol 0 -max_time 3 -output time.h5")
    assert "DIVERGED_MAX_TIME after" in text
    assert store.read(runs / "time.h5", "run")["history"]["outer"]["seconds"][-1] < 10
    done = launch(runs, 1, "-snes_max_it 2 -snes_error_if_not_converged -output demanded.h5")
    assert done.returncode == 1
    assert (
        "the solve ended with DIVERGED_MAX_IT after 2 iterations; the last good state is in demanded.h5" in done.stderr
    )


def test_an_iteration_that_would_end_after_its_time_is_not_begun(runs):
    """Each takes a second: two evaluations end in 2.6 s, a third would not."""
    tree = "-snes_type nrichardson -snes_linesearch_type none -snes_linesearch_damping 1e-6 -snes_max_it 5"
    text = succeed(
        runs,
        1,
        f"-pinn_problem problems.py:Slow {tree} -net_depth 1 -pinn_points 60 -max_time 2.6 -output slow.h5",
        False,
    )
    assert "DIVERGED_MAX_TIME after" in text
    done = store.read(runs / "slow.h5", "run")["history"]["outer"]["iteration"][-1]
    assert done <= 1
    succeed(runs, 1, "-restart slow.h5 -max_time 1.7 -output slower.h5", False)  # has seen no iteration at its start
    assert store.read(runs / "slower.h5", "run")["history"]["outer"]["iteration"][-1] == done + 1


def test_sharded_vectors_agree_and_restart_on_other_ranks(runs):
    options = "-snes_type qn -snes_qn_type ssbroyden -snes_rtol 0 -options_left no"
    succeed(runs, 2, f"{options} -snes_max_it 8 -output whole.h5")
    succeed(runs, 3, f"{options} -snes_max_it 4 -vec_type sharded -output part.h5")
    succeed(runs, 2, "-restart part.h5 -snes_max_it 8 -output parts.h5", small=False)
    whole, parts = parameters(runs / "whole.h5"), parameters(runs / "parts.h5")
    assert np.linalg.norm(whole - parts) <= 1e-10 * np.linalg.norm(whole)


def test_options_come_from_files_and_the_environment_too(runs, monkeypatch):
    (runs / "tree.yaml").write_text("snes: {max_it: 7}\nnpc: {sub: {snes: {qn: {type: bfgs}}}}\n")
    monkeypatch.setenv("ML2HPC_OPTIONS", "-snes_max_it 2 -npc_sub_snes_max_it 3")
    text = succeed(runs, 1, "-options_file tree.yaml -npc_sub_snes_max_it 1 -options_view -output sources.h5")
    options = store.read(runs / "sources.h5", "run")["configuration"]["options"]
    assert (options["snes_max_it"], options["npc_sub_snes_max_it"]) == ("2", "1")
    assert options["npc_sub_snes_qn_type"] == "bfgs"
    assert "-npc_sub_snes_max_it 1 # (source: command line)" in text
    assert "-snes_max_it 2 # (source: environment)" in text


def test_a_rank_that_leaves_does_not_hang_the_others(runs):
    done = launch(runs, 2, "-pinn_problem problems.py:Leaves -snes_max_it 100000 -snes_rtol 0 -output leaves.h5")
    assert done.returncode != 0
    assert "ml2hpc: rank 1 of 2 left, not all, ending all ranks" in done.stderr


def test_another_tree_starts_from_the_network_of_a_file(runs):
    """Nothing of the old tree stays when -snes_type is given; the network is the file's."""
    options = "-restart half.h5 -restart_state parameters -snes_type qn -snes_max_it 0 -output network.h5"
    succeed(runs, 2, options, small=False)
    tree = store.read(runs / "network.h5", "run")
    assert tree["configuration"]["solver"] == "qn(lbfgs 10)"
    assert (parameters(runs / "network.h5") == parameters(runs / "half.h5")).all()


def test_a_run_of_the_users_problem_goes_on_from_another_folder(runs, tmp_path):
    small = SMALL.replace("-pinn_points 400", "-pinn_points 100")
    succeed(runs, 1, f"{small} -pinn_problem problems.py:Two -snes_max_it 1 -output two.h5", small=False)
    text = succeed(tmp_path, 1, f"-restart {runs / 'two.h5'} -snes_max_it 2", small=False)
    assert "after 2 iterations" in text
    solution = store.read(tmp_path / "run.h5", "run")["solution"]
    np.testing.assert_allclose(solution["v"][:, 0], np.sin(solution["x"]), atol=1e-15)
    np.testing.assert_allclose(solution["w"][:, 0], np.cos(solution["x"]), atol=1e-15)
    drawn = subprocess.run(
        [sys.executable, "-m", "ml2hpc.apps.plot", "run.h5"], cwd=tmp_path, capture_output=True, text=True
    )
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "run_solution.png").exists()


@pytest.mark.parametrize(("depth", "width", "chunk"), [(8, 20, 1250), (6, 50, 1250), (10, 50, 625), (8, 400, 157)])
def test_a_large_network_takes_fewer_points_at_a_time(depth, width, chunk):
    """So that one chunk's jets, 4 numbers of 8 bytes a neuron, take 16 MiB at most."""
    found = chunk_for(NetworkOptions(depth=depth, width=width), torch.float64)
    assert found == chunk
    assert found * 32 * depth * width <= 2**24


@pytest.mark.parametrize("name", ["power", "offset"])
def test_a_law_of_resampling_is_finite(name):
    database = Database.from_sources(argv=[f"-pinn_resample_{name}", "inf"], environment={})
    with pytest.raises(OptionsError, match="must be at least 0 and below inf"):
        database.read(PinnOptions, stem="pinn_")
