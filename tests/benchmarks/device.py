"""What a GPU makes of an evaluation and of a quasi-Newton iteration, beside one core of the CPU.

    python tests/benchmarks/device.py [-rounds 20]

    evaluation   loss and gradient of three networks on 10,000 points, float64 and float32: the compiled engine on the
                 CPU; jets and device on the GPU, recorded and not
    iteration    ten iterations of self-scaled Broyden with 3021 and 12,951 unknowns, the evaluations included
    agreement    the largest difference of the gradients on CPU and GPU, against the largest entry

Contenders take turns; figures are medians of wall-clock time in milliseconds, minima in brackets; the GPU has finished
when the clock is read. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ml2hpc.apps.pinn import build
from ml2hpc.comm import Communicator
from ml2hpc.options import Database
from ml2hpc.problem.ansatz import collocate
from ml2hpc.problem.pinn import FASTEST, PinnProblem
from ml2hpc.snes import create

HOST, GPU = torch.device("cpu"), torch.device("cuda", 0)
NETWORKS = {"8 x 20": (8, 20), "6 x 50": (6, 50), "4 x 200": (4, 200)}  # 3021, 12,951 and 121,401 parameters
CONTENDERS: dict[str, tuple[torch.device, dict[str, str]]] = {
    f"cpu {FASTEST}": (HOST, {"pinn_engine": FASTEST}),
    "gpu jets": (GPU, {"pinn_engine": "jets", "pinn_graph": "false"}),
    "gpu jets, recorded": (GPU, {"pinn_engine": "jets"}),
    "gpu device": (GPU, {"pinn_engine": "device", "pinn_graph": "false"}),
    "gpu device, recorded": (GPU, {"pinn_engine": "device"}),
}


def problem_on(
    device: torch.device, shape: tuple[int, int], dtype: torch.dtype, options: dict[str, str]
) -> tuple[PinnProblem, Tensor]:
    """Burgers' equation on 10,000 points."""
    settings = {"net_depth": str(shape[0]), "net_width": str(shape[1])} | options
    pde, chosen, model, x = build(Database.from_dict(settings), dtype, 0, device)
    terms = collocate(pde, n=10000, n_face=250, sampler=chosen.sampler, seed=0, dtype=dtype, weight=1.0)
    return PinnProblem(Communicator.world(), model, [t.to(device) for t in terms]), x


def clocked(action: Callable[[], object]) -> float:
    """Milliseconds until the GPU has finished."""
    start = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def compare(actions: dict[str, Callable[[], object]], rounds: int) -> None:
    """Print medians and minima, and the gain over the first."""
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(clocked(action))
    first = median(next(iter(times.values())))
    for name, found in times.items():
        middle = median(found)
        print(f"  {name:24} {middle:10.3f} ms ({min(found):.3f})  {first / middle:6.1f} x", flush=True)


def evaluations(rounds: int) -> None:
    """Loss and gradient."""
    for dtype in (torch.float64, torch.float32):
        for label, shape in NETWORKS.items():
            print(f"loss and gradient, {label}, {dtype}")
            actions: dict[str, Callable[[], object]] = {}
            gradients = {}
            for name, (device, options) in CONTENDERS.items():
                problem, x = problem_on(device, shape, dtype, options)
                gradients[name] = problem.gradient(x).cpu()
                actions[name] = partial(problem.value_and_gradient, x)
            compare(actions, rounds)
            want, *others = gradients.values()
            worst = max(float((g - want).abs().max() / want.abs().max()) for g in others)
            print(f"  largest difference from the CPU's gradient, relative: {worst:.1e}")


def iterations(rounds: int) -> None:
    """Self-scaled Broyden, ten iterations at a time."""
    for label, shape in list(NETWORKS.items())[:2]:
        print(f"self-scaled Broyden, ten iterations, {label}, float64")
        actions: dict[str, Callable[[], object]] = {}
        for name in (f"cpu {FASTEST}", "gpu device", "gpu device, recorded"):
            device, options = CONTENDERS[name]
            problem, x = problem_on(device, shape, torch.float64, options)
            tree: dict[str, Any] = {"snes_type": "qn", "snes_qn_type": "ssbroyden", "snes_max_it": 10}
            tree |= {"snes_qn_recycle": False}  # each solve starts anew
            solver = create(Database.from_dict({}), defaults=tree | {"snes_stol": 0.0, "snes_rtol": 0.0})
            solver.set_up(problem)
            actions[name] = partial(solver.solve, x)
        compare(actions, max(rounds // 4, 3))


def main() -> int:
    """Measure, or say that there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("-rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        print("no GPU here (or a torch without CUDA): there is nothing to measure")
        return 1
    torch.set_num_threads(1)
    print(f"{torch.cuda.get_device_name(GPU)}, torch {torch.__version__}")
    torch.cuda.set_device(GPU)
    evaluations(rounds)
    iterations(rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
