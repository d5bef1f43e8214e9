"""Solves on a device: nothing is left on the host, nothing is copied in an iteration, the iterates are the same."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc import run as run_module
from ml2hpc.apps import evaluate
from ml2hpc.apps import pinn as pinn_app
from ml2hpc.comm import Communicator
from ml2hpc.errors import OptionsError
from ml2hpc.io import store
from ml2hpc.options import Database
from ml2hpc.problem.interface import Problem, ShardedProblem
from ml2hpc.problem.pinn import PinnProblem
from ml2hpc.run import Run
from ml2hpc.snes import SNES, Point
from ml2hpc.vec import Layout
from tests.problem.small import everyone, pinn
from tests.simulated import DEVICE, Simulation
from tests.snes.problems import tree

NASM = "-snes_type qn -npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_max_it 2"
TREES = {
    "lbfgs": "-snes_type qn -snes_qn_m 3",
    "powell": "-snes_type qn -snes_qn_restart_type powell -snes_qn_momentum 0.9",
    "ssbroyden": "-snes_type qn -snes_qn_type ssbroyden",
    "blocks": "-snes_type qn -snes_qn_type ssbfgs -snes_qn_blocks layers",
    "bt": "-snes_type qn -snes_linesearch_type bt",
    "aspqn": f"{NASM} -npc_sub_snes_qn_type ssbroyden",
    "mspqn": f"{NASM} -npc_snes_nasm_type multiplicative",
    "subspace": f"{NASM} -npc_snes_nasm_combine subspace",
    "restrict": f"{NASM} -npc_snes_nasm_type restrict -npc_dm_decomposition blocks -npc_dm_overlap 3",
    "samples": f"{NASM} -npc_dm_decomposition samples -npc_snes_nasm_combine average",
    "gn": "-snes_type gn",
    "gn_diagonal": "-snes_type gn -snes_gn_scaling diagonal",
    "gn_none": "-snes_type gn -snes_gn_regularization none",
    "gn_cg": "-snes_type gn -snes_gn_linear cg",
    "newton": "-snes_type newtonls -ksp_max_it 4",
    "newton_minres": "-snes_type newtonls -ksp_type minres -snes_newtonls_model gn -ksp_max_it 4",
    "newton_nystrom": "-snes_type newtonls -pc_type nystrom -pc_nystrom_rank 5 -ksp_max_it 4",
    "adam": "-snes_type torchoptim",
    "torch_lbfgs": '-snes_type torchoptim -snes_torchoptim_name LBFGS -snes_torchoptim_arguments "{max_iter: 3}"',
}
HOST = torch.device("cpu")
FEW = " -snes_max_it 2 -snes_stol 0 -snes_rtol 0"


def problem_on(device: torch.device, comm: Communicator | None = None, **net: Any) -> tuple[PinnProblem, torch.Tensor]:
    """A problem with hard, soft and periodic conditions whose network, points and parameters are on a device."""
    problem, x = pinn(comm=comm, n=24, depth=2, width=4, **net)
    model = problem.model
    network = model.network.to(device)
    moved = type(model)(model.pde, network, Layout(network), model.engine_name, model.dtype, model.chunk, device=device)
    return PinnProblem(problem.comm, moved, [t.to(device) for t in problem.loss_terms]), x.to(device)


def solved(solver: SNES, x: torch.Tensor) -> Point:
    return solver.solve(solver.problem.space.local(x).clone())


@pytest.fixture(autouse=True)
def in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host takes the device's code: the kernels of dense matrices are its own."""
    monkeypatch.setattr(kernels, "load", lambda: None)


@pytest.mark.parametrize("name", TREES)
def test_a_device_gives_the_iterates_of_the_host(name: str) -> None:
    problem, x = problem_on(HOST)
    want = solved(tree(TREES[name] + FEW, problem), x)
    with Simulation():
        problem, x = problem_on(DEVICE)
        got = solved(tree(TREES[name] + FEW, problem), x)
        assert got.x.device == got.g.device == DEVICE
        found = got.x.cpu()
    # The host has a symmetric product of its own, and without damping its rounding is amplified.
    tolerance = 0.0 if not name.startswith("gn") else 1e-5 if name == "gn_none" else 1e-9
    assert float((found - want.x).abs().max()) <= tolerance
    assert abs(got.f - want.f) <= tolerance * want.f


@pytest.mark.parametrize("name", [n for n in TREES if n != "torch_lbfgs"])
def test_an_iteration_copies_nothing(name: str) -> None:
    """Apart from single numbers, which steer the loops."""
    with Simulation() as simulation:
        problem, x = problem_on(DEVICE)
        solver = tree(TREES[name] + FEW, problem)
        solved(solver, x)
        solver.solve(solver.problem.space.local(x).clone())
        before = simulation.moved
        solver.solve(solver.problem.space.local(x).clone())
        assert simulation.moved - before == 0


@pytest.mark.parametrize("name", ["lbfgs", "powell", "ssbroyden", "blocks", "aspqn", "torch_lbfgs", "adam"])
def test_a_restart_on_a_device_goes_on_bit_for_bit(name: str) -> None:
    with Simulation():
        problem, x = problem_on(DEVICE)
        straight = tree(TREES[name] + " -snes_max_it 4 -snes_stol 0 -snes_rtol 0", problem)
        want = solved(straight, x)
        first = tree(TREES[name] + " -snes_max_it 2 -snes_stol 0 -snes_rtol 0", problem)
        middle = solved(first, x)
        second = tree(TREES[name] + " -snes_max_it 4 -snes_stol 0 -snes_rtol 0", problem)
        second.load(first.state())
        got = second.resume(middle)
        assert torch.equal(got.x, want.x)


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", ["lbfgs", "ssbroyden", "aspqn"])
def test_ranks_exchange_through_the_host(comm: Any, name: str, sharded: bool) -> None:
    def stored(problem: Problem) -> Problem:
        return ShardedProblem(problem) if sharded else problem

    problem, x = problem_on(HOST, everyone(comm))
    want = solved(tree(TREES[name] + FEW, stored(problem)), x)
    with Simulation():
        problem, x = problem_on(DEVICE, everyone(comm))
        got = solved(tree(TREES[name] + FEW, stored(problem)), x)
        assert got.x.device == DEVICE
        assert torch.equal(got.x.cpu(), want.x)


@pytest.fixture
def on_the_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """-device cuda is the simulated device; signals and the hook for errors are as before afterwards."""
    monkeypatch.setattr(Run, "_take_device", lambda run: DEVICE)
    monkeypatch.setattr(signal, "signal", lambda number, action: None)
    monkeypatch.setattr(run_module, "end_all_on_error", lambda: None)


APP = (
    "-snes_type qn -snes_qn_type ssbroyden -pinn_engine jets -pinn_points 40 -pinn_chunk 30 -pinn_face_points 8 "
    "-net_depth 2 -net_width 4 -pinn_conditions soft -pinn_error_interval 0 "
    "-pinn_resample rad -pinn_resample_interval 2 -pinn_resample_candidates 2 "
    "-pinn_adaptive_weights gradient -pinn_adaptive_weights_interval 2"
)


def parameters(path: Path) -> Tensor:
    saved = store.read(path, "run")["checkpoint"]["parameters"]
    return torch.cat([torch.from_numpy(v).reshape(-1) for v in saved.values()])


def test_the_app_runs_and_restarts_on_a_device(
    on_the_simulated: None, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New points, new weights, output, evaluation on the CPU and restart, all bit for bit."""
    straight, first, host = (tmp_path / f"{name}.h5" for name in ("straight", "first", "host"))
    with Simulation():
        pinn_app.main(f"{APP} -snes_max_it 4 -snes_view -output {straight}".split())
        assert "engine jets on meta, chunks of 30 points, recorded" in capsys.readouterr().out
        pinn_app.main(f"{APP} -snes_max_it 3 -output {first}".split())
        pinn_app.main(f"-restart {first} -snes_max_it 4 -output {first}".split())
    assert torch.equal(parameters(first), parameters(straight))
    monkeypatch.setattr(evaluate, "FASTEST", "jets")  # without the kernels, as above
    points = tmp_path / "points.csv"
    points.write_text("x,t\n0.25,0.5\n")
    assert evaluate.main([str(straight), str(points), str(tmp_path / "values.csv")]) == 0
    monkeypatch.setattr(Run, "_take_device", lambda run: HOST)
    pinn_app.main(f"{APP} -snes_max_it 4 -output {host}".split())
    assert torch.equal(parameters(host), parameters(straight))


@pytest.mark.parallel(1, 2, 3)
def test_ranks_take_the_gpus_in_turn(comm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(run_module, "end_all_on_error", lambda: None)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    run = Run("pinn", ["-device", "cuda"])
    assert taken == [run.device] == [torch.device("cuda", comm.rank % 2)]


@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize(("built", "message"), [(False, "built without CUDA"), (True, "no GPU is visible")])
def test_without_a_gpu_every_rank_is_told(
    comm: Any, built: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "end_all_on_error", lambda: None)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionsError, match=f"-device cuda: .*{message}.*use -device cpu"):
        Run("pinn", ["-device", "cuda"])


def test_what_a_gpu_takes_by_default() -> None:
    """The engine device, all points at once; engines that compute on the CPU are refused."""
    with Simulation():
        options = Database.from_dict({"pinn_engine": "jets"})
        _, chosen, model, x = pinn_app.build(options, torch.float64, 0, DEVICE)
        assert (chosen.chunk, model.device, model.graph, x.device) == (2**17, DEVICE, True, DEVICE)
        with pytest.raises(OptionsError, match="-pinn_engine compiled: it computes on the CPU"):
            pinn_app.build(Database.from_dict({"pinn_engine": "compiled"}), torch.float64, 0, DEVICE)
    assert pinn_app.ON_GPU["engine"] == "device"
    assert not pinn_app.build(Database.from_dict({}), torch.float64, 0)[2].graph


@pytest.mark.parametrize("make", [torch.zeros, torch.ones, torch.empty])
def test_a_tensor_of_the_host_is_refused(make: Any) -> None:
    """The simulation itself: a factory without the device, a numpy view."""
    with Simulation() as simulation:
        x = make(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="on the host"):
            x + make(3)
        with pytest.raises(RuntimeError):
            x.numpy()
        assert simulation.moved == 0
        x.cpu()
        assert simulation.moved == 3
        assert float(x.sum() + make(())) is not None
