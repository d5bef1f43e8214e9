"""How fast derivatives, optimisers and Schwarz parts are, beside nested autograd, DeepXDE and the processor's peak.

    python tests/benchmarks/engine.py [engine order4 deepxde overhead prefix ranks] [-rounds 7]

    engine     loss and gradient of three networks by every engine against nested reverse mode, float64 and float32
    order4     the same for an equation with u_xxxx
    deepxde    an L-BFGS iteration against DeepXDE's, which pip installs into a temporary folder
    overhead   what an iteration of L-BFGS and of self-scaled Broyden takes apart from loss and gradient
    prefix     a local evaluation on each layer against the whole one, beside the share of operations that is counted
    ranks      two ranks against one

One thread. Contenders take turns, so that a noisy machine slows all of them alike; figures are medians of process time,
minima in brackets (wall-clock time for `ranks`). Nothing is asserted: targets stand beside what was measured.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ml2hpc.apps.pinn import build
from ml2hpc.comm import Communicator
from ml2hpc.errors import UserError
from ml2hpc.options import Database
from ml2hpc.problem.ansatz import collocate
from ml2hpc.problem.interface import Block
from ml2hpc.problem.jet import Index, Jet, Points
from ml2hpc.problem.pde import PDE, periodic_feature
from ml2hpc.problem.pinn import ENGINES, PinnProblem
from ml2hpc.snes import Point, Reason, create

HERE = Path(__file__).resolve()
POINTS = 10000
DTYPES = {"float64": torch.float64, "float32": torch.float32}
CHUNKS = (250, 500, 1000, 2500, 5000)  # of the baseline; the best one counts


class KuramotoSivashinsky(PDE):
    """u_t + u u_x + u_xx + u_xxxx = 0 on 32 pi, periodic, started at cos(x / 16) (1 + sin(x / 16))."""

    coordinates = "xt"
    domain = {"x": (0.0, 32 * math.pi), "t": (0.0, 1.0)}
    title = "Kuramoto-Sivashinsky"

    def residual(self, p: Points, u: Jet) -> Tensor:
        return u.t + u * u.x + u.xx + u.xxxx

    def lifting(self, p: Points) -> Tensor:
        return torch.cos(p.x / 16) * (1 + torch.sin(p.x / 16))

    def distance(self, p: Points) -> Tensor:
        return p.t

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([periodic_feature(x[0], self.domain["x"]), x[1:]])


@dataclass(frozen=True)
class Case:
    """A network and its equation."""

    name: str
    problem: str
    depth: int
    width: int
    points: int = POINTS

    @property
    def flops(self) -> float:
        """Operations of loss and gradient in second order: products of four jets, once forward and twice back."""
        return 6.0 * 4 * self.points * self.width * (self.width * (self.depth - 1) + 1)


BURGERS = Case("Burgers 8x20", "burgers", 8, 20)
KLEIN_GORDON = Case("Klein-Gordon 6x50", "klein_gordon", 6, 50)
DIFFUSION_ADVECTION = Case("diffusion-advection 10x50", "diffusion_advection", 10, 50)
FOURTH_ORDER = Case("Kuramoto-Sivashinsky 4x50", f"{HERE}:KuramotoSivashinsky", 4, 50, 5000)


class Clocked(PinnProblem):
    """A problem that knows how long its evaluations took."""

    clock = staticmethod(time.process_time)
    seconds = 0.0
    evaluations = 0

    def objective(self, x: Tensor) -> float:
        start = self.clock()
        value = super().objective(x)
        self.seconds += self.clock() - start
        self.evaluations += 1
        return value

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        start = self.clock()
        found = super().value_and_gradient(x)
        self.seconds += self.clock() - start
        self.evaluations += 1
        return found


def make(
    case: Case, engine: str | None = None, dtype: str = "float64", points: int | None = None
) -> tuple[Clocked, Tensor]:
    """Return the app's problem on all ranks with hard conditions, and parameters a little off the app's start."""
    options = {"pinn_problem": case.problem, "net_depth": case.depth, "net_width": case.width}
    if engine is not None:
        options["pinn_engine"] = engine
    pde, chosen, model, x = build(Database.from_dict(options), DTYPES[dtype], 0)
    terms = collocate(
        pde,
        n=points or case.points,
        n_face=chosen.face_points,
        sampler=chosen.sampler,
        seed=0,
        dtype=DTYPES[dtype],
        weight=chosen.condition_weight,
    )
    off = 0.05 * torch.randn(len(x), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Clocked(Communicator.world(), model, terms), x + off.to(x.dtype)


class Nested:
    """The loss and its gradient as one writes them for DeepXDE: torch.nn.Linear layers on points (n, d), and
    derivatives in the coordinates by torch.autograd.grad with create_graph, each gradient formed once.
    """

    def __init__(self, problem: PinnProblem, x: Tensor, chunk: int) -> None:
        self.pde = problem.model.pde
        (term,) = problem.loss_terms
        self.points = term.points.T.contiguous().split(chunk)
        self.factor = term.factor
        views = problem.model.layout.views(x)
        stack: list[nn.Module] = []
        for k in range(len(problem.layers)):
            weight, bias = views[f"layers.{k}.weight"], views[f"layers.{k}.bias"]
            linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=x.dtype)
            linear.weight.data.copy_(weight)
            linear.bias.data.copy_(bias)
            stack += [linear, nn.Tanh()]
        self.network = nn.Sequential(*stack[:-1])

    def __call__(self) -> tuple[float, Tensor]:
        self.network.zero_grad()
        total = 0.0
        for few in self.points:
            loss = self._loss(few)
            loss.backward()
            total += loss.item()
        return total, torch.cat([p.grad.reshape(-1) for p in self.network.parameters() if p.grad is not None])

    def _loss(self, few: Tensor) -> Tensor:
        x = few.detach().requires_grad_()
        p = Points(self.pde.coordinates, x.T)
        u = self.network(self.pde.features(x.T).T)[:, 0] * self.pde.distance(p)
        lifting = self.pde.lifting(p)
        r = self.pde.residual(p, Jet(self.pde.coordinates, Derivatives(x, u if lifting is None else u + lifting)))
        return self.factor * torch.dot(r, r)


class Derivatives:
    """Derivatives of u by torch.autograd.grad, each gradient formed once."""

    def __init__(self, x: Tensor, u: Tensor) -> None:
        self.x, self.u = x, u
        self.gradients: dict[Index, Tensor] = {}

    def __call__(self, index: Index) -> Tensor:
        if not index:
            return self.u
        lower = index[:-1]
        if lower not in self.gradients:
            (self.gradients[lower],) = torch.autograd.grad(self(lower).sum(), self.x, create_graph=True)
        return self.gradients[lower][:, index[-1]]


# Measuring. -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """Seconds of one contender."""

    all: list[float]

    @property
    def median(self) -> float:
        """The median."""
        return median(self.all)

    def __str__(self) -> str:
        return f"{1e3 * self.median:8.1f} ms ({1e3 * min(self.all):7.1f})"


def interleave(
    contenders: dict[Any, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[Any, Times]:
    """Time contenders in turn, after one call each that does not count."""
    found: dict[Any, list[float]] = {name: [] for name in contenders}
    for function in contenders.values():
        function()
    for _ in range(rounds):
        for name, function in contenders.items():
            start = clock()
            function()
            found[name].append(clock() - start)
    return {name: Times(seconds) for name, seconds in found.items()}


PEAK_SOURCE = """
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef double V __attribute__((vector_size(BYTES)));
int lanes(void) { return BYTES / 8; }
double peak(long n, double c) {
    V a[12];
    for (int k = 0; k < 12; k++) a[k] = (V){0} + 1e-3 * k;
    for (long i = 0; i < n; i++)
        for (int k = 0; k < 12; k++) a[k] = a[k] * c + c;
    V s = a[0];
    for (int k = 1; k < 12; k++) s += a[k];
    return s[0];
}
"""


def fma_peak() -> float | None:
    """Return the operations per second of independent float64 multiply-adds in registers, None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "peak.c", Path(folder) / "peak.so"
        source.write_text(PEAK_SOURCE)
        flags = ["-O3", "-march=native", "-mprefer-vector-width=512", "-funroll-loops", "-w", "-shared", "-fPIC"]
        if subprocess.run([compiler, *flags, "-o", library, source], capture_output=True).returncode:
            return None
        handle = ctypes.CDLL(str(library))
    run = handle.peak
    run.argtypes, run.restype = [ctypes.c_long, ctypes.c_double], ctypes.c_double
    n = 500_000
    times = interleave({"peak": lambda: run(n, 0.5)}, 9)["peak"]
    return 2.0 * 12 * handle.lanes() * n / min(times.all)


def matrix_product_rate(dtype: torch.dtype) -> float:
    """Return the operations per second of torch.mm on 1024 x 1024."""
    a = torch.randn(1024, 1024, dtype=dtype)
    out = torch.empty_like(a)
    return 2.0 * 1024**3 / min(interleave({"mm": lambda: torch.mm(a, a, out=out)}, 7)["mm"].all)


def peak_growth(case: Case, contender: str, dtype: str) -> float:
    """Return by how many MB evaluations raise the peak resident set, in a process of their own."""
    words = [sys.executable, str(HERE), "memory", "-case", case.name, "-contender", contender, "-dtype", dtype]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def memory(case: Case, contender: str, dtype: str) -> None:
    """Print the growth of the peak resident set. Code pages are touched by a small problem beforehand."""
    engine, _, chunk = contender.partition("/")

    def evaluate(points: int | None) -> float:
        problem, x = make(case, None if chunk else engine, dtype, points)
        run = Nested(problem, x, int(chunk)) if chunk else lambda: problem.value_and_gradient(x)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _resident("VmRSS")
        for _ in range(3):
            run()
        return (_resident("VmHWM") - before) / 1024

    evaluate(500)
    print(f"{evaluate(None):.1f}")


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1])


# Sections. ------------------------------------------------------------------------------------------------------------


def available(case: Case, dtype: str) -> dict[str, tuple[Clocked, Tensor]]:
    """Return the problem by every engine that can do it; say which cannot, and why."""
    found = {}
    for engine in ENGINES:
        try:
            problem, x = make(case, engine, dtype)
            problem.value_and_gradient(x)
        except UserError as error:  # noqa: PERF203 - an engine says so when it is asked
            print(f"  {engine}: {error}")
        else:
            found[engine] = problem, x
    return found


def compare(case: Case, dtype: str, rounds: int, target: str, rate: float | None) -> None:
    """Print loss and gradient by every engine against the best nested autograd."""
    engines = available(case, dtype)
    problem, x = next(iter(engines.values()))
    nested = {f"nested/{chunk}": Nested(problem, x, chunk) for chunk in (*CHUNKS, case.points)}
    quick = interleave(dict(nested), 2)
    best = min(nested, key=lambda name: min(quick[name].all))
    chosen = {name: nested[name] for name in dict.fromkeys([f"nested/{case.points}", best])}
    run = {name: partial(p.value_and_gradient, x) for name, (p, x) in engines.items()}
    times = interleave({**chosen, **run}, rounds)
    exact = nested[best]()[1]
    print(f"{case.name}, {dtype}: best nested autograd takes {best.partition('/')[2]} points at a time")
    for name, seconds in times.items():
        gradient = chosen[name]()[1] if name in chosen else engines[name][0].value_and_gradient(engines[name][1])[1]
        difference = float((gradient - exact).abs().max() / exact.abs().max())
        ratio = times[best].median / seconds.median
        share = f" {case.flops / seconds.median / rate:6.0%} of peak" if rate else ""
        grown = f"{peak_growth(case, name, dtype):7.1f} MB" if dtype == "float64" else ""
        print(f"  {name:14s} {seconds} {ratio:6.2f}x{share}   {grown:10s}   gradient differs by {difference:.1e}")
    print(f"  {'target':14s} {'':>21s} {target}")


def section_engine(rounds: int) -> None:
    """Three networks, two precisions."""
    peak, product = fma_peak(), {d: matrix_product_rate(t) for d, t in DTYPES.items()}
    told = f"{peak / 1e9:.0f} GF/s" if peak else "not measured, there is no C compiler"
    print(f"peak of multiply-adds, float64: {told}; torch.mm {product['float64'] / 1e9:.0f} GF/s", end="")
    print(f", float32 {product['float32'] / 1e9:.0f} GF/s; shares count the products of four jets only\n")
    for case in (BURGERS, KLEIN_GORDON, DIFFUSION_ADVECTION):
        rate = peak or product["float64"]
        compare(case, "float64", rounds, "  5.50x                  20.0 MB", rate)
        compare(case, "float32", rounds, "  4.40x", 2 * rate)


def section_order4(rounds: int) -> None:
    """Compare on a fourth-order equation."""
    compare(FOURTH_ORDER, "float64", rounds, "  5.00x", None)


@dataclass(frozen=True)
class Iteration:
    """What an iteration took, in seconds, and its evaluations."""

    all: float
    evaluating: float
    evaluations: int
    reading: float  # the clock, apart from what is in `evaluating`


def iterations(problem: Clocked, x: Tensor, count: int, **options: object) -> list[Iteration]:
    """Run a solver and return what each of its iterations took."""
    options = {"snes_type": "qn", "snes_max_it": count, "snes_stol": 0.0} | options
    solver = create(Database.from_dict(options), defaults={})
    solver.set_up(problem)
    seen: list[tuple[float, float, int]] = []

    def observe(solver: object, point: Point, norm: float, update: float) -> Reason:
        seen.append((problem.clock(), problem.seconds, problem.evaluations))
        return Reason.CONVERGED_ITERATING

    solver.observe = observe
    solver.solve(x)
    reading = clock_reading(problem.clock)
    return [Iteration(b[0] - a[0], b[1] - a[1], b[2] - a[2], (1 + b[2] - a[2]) * reading) for a, b in pairwise(seen)]


def clock_reading(clock: Callable[[], float]) -> float:
    """Return how long a reading of a clock takes: tens of microseconds on a virtual machine."""
    times = [clock() for _ in range(201)]
    return median(b - a for a, b in pairwise(times))


def section_overhead(rounds: int) -> None:
    """What is not loss and gradient, with the memory full."""
    for case, name, options, skip in (
        (BURGERS, "L-BFGS, m = 100", {"snes_qn_m": 100}, 110),
        (KLEIN_GORDON, "L-BFGS, m = 100", {"snes_qn_m": 100}, 110),
        (BURGERS, "SS-Broyden", {"snes_qn_type": "ssbroyden"}, 5),
        (KLEIN_GORDON, "SS-Broyden", {"snes_qn_type": "ssbroyden"}, 5),
        (BURGERS, "SS-Broyden, by layers", {"snes_qn_type": "ssbroyden", "snes_qn_blocks": "layers"}, 5),
        (KLEIN_GORDON, "SS-Broyden, by layers", {"snes_qn_type": "ssbroyden", "snes_qn_blocks": "layers"}, 5),
    ):
        problem, x = make(case)
        try:
            found = iterations(problem, x, skip + 2 * rounds, **options)[skip:]
        except UserError as error:
            print(f"{case.name}, {name}: {error}")
            continue
        rest = Times([i.all - i.evaluating - i.reading for i in found])
        one = median(i.evaluating / i.evaluations for i in found)
        print(f"{case.name:20s} {name:22s} apart from evaluations {rest}, an evaluation {1e3 * one:6.1f} ms, ", end="")
        print(f"share of an iteration with one {rest.median / (rest.median + one):6.1%}")
    print("target: 5 % for L-BFGS")


def section_prefix(rounds: int) -> None:
    """Local evaluations against the whole one."""
    for case in (BURGERS, KLEIN_GORDON):
        problem, x = make(case)
        run: dict[str, Callable[[], object]] = {"whole": partial(problem.value_and_gradient, x)}
        predicted = {"whole": 1.0}
        for k, layer in enumerate(problem.layers):
            local = problem.restrict(Block(layer, f"layer {k}"))
            start = local.rebase(x)
            run[f"layer {k}"] = partial(local.value_and_gradient, start)
            predicted[f"layer {k}"] = local.cost.gradient / problem.cost.gradient
        times = interleave(run, rounds)
        print(f"{case.name}, engine {problem.model.engine_name}")
        for name, seconds in times.items():
            share = seconds.median / times["whole"].median
            print(f"  {name:8s} {seconds}  measured share {share:5.2f}, counted {predicted[name]:5.2f}", end="")
            print(f", difference {share - predicted[name]:+5.2f}")


DEEPXDE = """
import sys, time
sys.path.append(sys.argv[1])
import numpy as np, torch
torch.set_num_threads(1)
import deepxde as dde
dde.config.set_default_float("float64"); dde.config.set_random_seed(0)
def pde(x, y):
    dy_x, dy_t = dde.grad.jacobian(y, x, i=0, j=0), dde.grad.jacobian(y, x, i=0, j=1)
    return dy_t + y * dy_x - 0.01 / np.pi * dde.grad.hessian(y, x, i=0, j=0)
geometry = dde.geometry.GeometryXTime(dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1))
data = dde.data.TimePDE(geometry, pde, [], num_domain=10000, train_distribution="Sobol")
net = dde.nn.FNN([2] + [20] * 8 + [1], "tanh", "Glorot uniform")
net.apply_output_transform(lambda x, y: -torch.sin(np.pi * x[:, :1]) + x[:, 1:] * (1 - x[:, :1] ** 2) * y)
n = int(sys.argv[2])
dde.optimizers.set_LBFGS_options(maxcor=100, ftol=0, gtol=0, maxiter=n, maxfun=100 * n)
model = dde.Model(data, net)
model.compile("L-BFGS")
start = time.process_time()
model.train(display_every=10**9, verbose=0)
state = model.opt.state_dict()["state"][0]
print(f"{state['n_iter']} {state['func_evals']} {time.process_time() - start}")
"""


def section_deepxde(rounds: int) -> None:
    """L-BFGS with 100 pairs on Burgers with hard conditions, theirs and ours, over as many iterations."""
    count = 30 * rounds
    with tempfile.TemporaryDirectory() as folder:
        # The folder comes last on the path: what ml2hpc runs on is the same for both.
        install = [sys.executable, "-m", "pip", "install", "-q", "--target", folder, "deepxde"]
        if subprocess.run(install, capture_output=True).returncode:
            print("DeepXDE could not be installed")
            return
        words = [sys.executable, "-W", "ignore", "-c", DEEPXDE, folder, str(count)]
        done = subprocess.run(words, env=os.environ | {"DDE_BACKEND": "pytorch"}, capture_output=True, text=True)
    if done.returncode:
        print(f"DeepXDE failed: {done.stderr.strip().splitlines()[-1]}")
        return
    their_count, their_calls, theirs = map(float, done.stdout.splitlines()[-1].split())
    problem, x = make(BURGERS)
    ours = iterations(problem, x, count, snes_qn_m=100)
    seconds, calls = sum(i.all for i in ours), sum(i.evaluations for i in ours)
    per = {"DeepXDE": theirs / their_count, "ml2hpc": seconds / len(ours)}
    print(f"DeepXDE {1e3 * per['DeepXDE']:7.1f} ms an iteration, {their_calls / their_count:.2f} evaluations each")
    print(f"ml2hpc  {1e3 * per['ml2hpc']:7.1f} ms an iteration, {calls / len(ours):.2f} evaluations each")
    print(f"ratio   {per['DeepXDE'] / per['ml2hpc']:7.2f}x, target 5x")


def section_ranks(rounds: int) -> None:
    """One and two ranks in turn, each twice: loss and gradient, and a whole step of self-scaled Broyden."""
    best: dict[int, list[float]] = {}
    for size in (1, 2, 1, 2):
        words = ["mpirun", "-n", str(size), sys.executable, str(HERE), "rank", "-rounds", str(rounds)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
        found = [float(word) for word in done.stdout.splitlines()[-1].split()]
        best[size] = [min(pair) for pair in zip(found, best.get(size, found), strict=True)]
    for k, (what, target) in enumerate((("loss and gradient", 1.8), ("SS-Broyden iteration", 1.7))):
        one, two = best[1][k], best[2][k]
        print(
            f"{DIFFUSION_ADVECTION.name}, {what:20s} {1e3 * one:7.1f} ms on one rank, {1e3 * two:7.1f} on two: ", end=""
        )
        print(f"{one / two:.2f}x, target {target}x")


def rank(rounds: int) -> None:
    """Print the least wall-clock seconds of an evaluation and of an iteration, the slowest rank's. Collective."""
    problem, x = make(DIFFUSION_ADVECTION)
    problem.clock = staticmethod(time.perf_counter)
    evaluation = interleave({"": lambda: problem.value_and_gradient(x)}, rounds, time.perf_counter)[""]
    found = iterations(problem, x, 4 + rounds, snes_qn_type="ssbroyden")[4:]
    step = min(i.all - i.evaluating + i.evaluating / i.evaluations for i in found)
    slowest = problem.comm.largest(torch.tensor([min(evaluation.all), step], dtype=torch.float64).numpy())
    if problem.comm.rank == 0:
        print(*slowest)


SECTIONS = {
    "engine": section_engine,
    "order4": section_order4,
    "deepxde": section_deepxde,
    "overhead": section_overhead,
    "prefix": section_prefix,
    "ranks": section_ranks,
}
CASES = {c.name: c for c in (BURGERS, KLEIN_GORDON, DIFFUSION_ADVECTION, FOURTH_ORDER)}


def main(arguments: Sequence[str]) -> None:
    """Run the sections that are named, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, "memory", "rank", []], metavar="section")
    parser.add_argument("-rounds", type=int, default=7, help="times that each contender runs")
    for name in ("-case", "-contender", "-dtype"):  # what `memory` measures
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.sections == ["memory"]:
        memory(CASES[given.case], given.contender, given.dtype)
    elif given.sections == ["rank"]:
        rank(given.rounds)
    else:
        for name in given.sections or SECTIONS:
            print(f"\n{name}: {SECTIONS[name].__doc__}\n", flush=True)
            SECTIONS[name](given.rounds)


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":  # read when the libraries start
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_NUM_THREADS": "1"})
    main(sys.argv[1:])
