"""Train a physics-informed neural network.

The equation is P(u) = 0 on a box in space and time. The trial function

    u(p) = lifting(p) + distance(p) N(features(p); theta)

meets the initial and boundary conditions by construction (hard), or they join the loss (soft):

    L(theta) = mean over points of P(u)^2  +  sum over conditions of w * mean over a face of (condition)^2.

where w is the condition's own weight times -pinn_condition_weight, or what -pinn_weights says.
L is minimised over the network's parameters theta by a solver tree. With no options that is ASPQN on Burgers' equation:
a quasi-Newton method preconditioned by nonlinear additive Schwarz, one subdomain per hidden layer,

    mpirun -n 8 python -m ml2hpc.apps.pinn

Each subdomain is solved by self-scaled Broyden steps whose matrix is carried from one outer iteration to the next; what
lies below its layers is computed once per outer iteration. Points are dealt to the ranks for everything global. The
iterates are the same, to the last bit, on any number of ranks.

Things to try
-------------
See the tree, its options and where the time goes:

    python -m ml2hpc.apps.pinn -help
    mpirun -n 8 python -m ml2hpc.apps.pinn -snes_max_it 20 -snes_monitor -snes_view -log_view

Other solvers, by options alone (each file holds a tree):

    python -m ml2hpc.apps.pinn -options_file apps/options/mspqn.opts
    python -m ml2hpc.apps.pinn -options_file apps/options/lbfgs.opts
    python -m ml2hpc.apps.pinn -options_file apps/options/ssbroyden.opts
    python -m ml2hpc.apps.pinn -options_file apps/options/ssbroyden_rad.opts
    python -m ml2hpc.apps.pinn -options_file apps/options/pinn_fas.opts
    python -m ml2hpc.apps.pinn -options_file apps/options/pinn_nested.opts
    python -m ml2hpc.apps.pinn -options_file apps/options/mspqn_fas.opts
    python -m ml2hpc.apps.pinn -options_file apps/options/mspqn_gn.opts
    python -m ml2hpc.apps.pinn -options_file apps/options/adam.opts

Other equations, or your own file with a class derived from `ml2hpc.problem.pde.PDE`:

    mpirun -n 6 python -m ml2hpc.apps.pinn -pinn_problem klein_gordon -net_depth 6 -net_width 50 -npc_dm_subdomains 6
    python -m ml2hpc.apps.pinn -pinn_problem apps/problems/heat.py:Heat -net_depth 3 -npc_dm_subdomains 3

Multilevel in depth: residual blocks of step length h, two of which are one of 2 h on the next coarser level:

    python -m ml2hpc.apps.pinn -net_type resnet -net_depth 9 -net_step 0.5 -snes_type fas -dm_hierarchy depth

Points that follow the residual, drawn anew every 500 iterations, while the solver keeps what it learnt; soft conditions
with weights of your own, or weights that balance the terms' gradients:

    python -m ml2hpc.apps.pinn -snes_type qn -snes_qn_type ssbroyden -pinn_resample rad -snes_max_it 2000
    python -m ml2hpc.apps.pinn -pinn_conditions soft -pinn_weights "t0_value=100,x0_value=10"
    python -m ml2hpc.apps.pinn -pinn_conditions soft -pinn_adaptive_weights gradient -pinn_adaptive_weights_interval 20

On a GPU, everything in its memory; ranks share the GPUs of a node in turn:

    python -m ml2hpc.apps.pinn -device cuda -snes_type qn -snes_qn_type ssbroyden -snes_view

Go on from a file, for twice as many iterations; look at the result:

    mpirun -n 4 python -m ml2hpc.apps.pinn -restart run.h5 -snes_max_it 200
    python -m ml2hpc.apps.plot run.h5
    python -m ml2hpc.apps.evaluate run.h5 points.csv values.csv
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc.errors import OptionsError, UserError
from ml2hpc.io import xdmf
from ml2hpc.log.work import MEASURES
from ml2hpc.options import Database, option
from ml2hpc.problem import guard
from ml2hpc.problem.adapt import AdaptivePinn, Balancing, Resampling, weighted
from ml2hpc.problem.ansatz import collocate
from ml2hpc.problem.equations import canonical, equation
from ml2hpc.problem.network import DenseNetwork, FourierFeatures, NetworkOptions
from ml2hpc.problem.pde import PDE
from ml2hpc.problem.pinn import FASTEST, Model, PinnProblem
from ml2hpc.run import Run
from ml2hpc.snes import SNES, Point
from ml2hpc.vec import CPU, Layout

Tree = dict[str, Any]
Array = NDArray[np.float64]

# The main job, by measurement (tests/studies/main_job.py): self-scaled Broyden inside, carried. 10 local steps reach
# the published accuracy with half the reductions of 5 and 20 % fewer evaluations; 20 save no further reductions.
# An explicit -snes_type replaces the whole tree.
TREE: dict[str, Any] = {
    "snes_type": "qn",
    "snes_max_it": 60,
    "npc_snes_type": "nasm",
    "npc_dm_subdomains": 8,
    "npc_sub_snes_qn_type": "ssbroyden",
    "npc_sub_snes_max_it": 10,
}
# A GPU wants all points at once: 2^17 of them on 20 neurons fill it, and the jets of 8 layers take some 2 GB.
ON_GPU: dict[str, Any] = {"engine": "device", "chunk": 2**17}
ALWAYS: dict[str, Any] = {"snes_stol": 0.0}  # a short step is no sign of a minimum here
GRID = {1: (1001,), 2: (256, 101), 3: (48, 48, 25), 4: (20, 20, 20, 11)}  # points of the solution in run.h5


@dataclass(frozen=True)
class PinnOptions:
    """Options `-pinn_*`."""

    problem: str = option("burgers", "a problem by name, or the user's own as file.py:Class")
    points: int = option(10000, "collocation points inside the domain", at_least=1)
    face_points: int = option(250, "points of each soft condition", at_least=1)
    sampler: Literal["uniform", "latin_hypercube", "halton", "hammersley", "sobol"] = option(
        "sobol", "how points are drawn, the same for any number of ranks"
    )
    conditions: Literal["hard", "soft"] = option("hard", "impose conditions by construction, or in the loss")
    condition_weight: float = option(1.0, "factor of all soft conditions in the loss", above=0.0)
    engine: Literal["compiled", "device", "jets", "autograd"] = option(
        FASTEST,
        "how derivatives in the coordinates are computed; compiled where the package was built with a compiler, device "
        "with -device cuda",
    )
    chunk: int | None = option(
        None,
        "points evaluated at a time, the grain of the split over ranks (1250, fewer for networks whose jets would "
        "leave the cache; 131072 with -device cuda)",
        at_least=1,
    )
    # Hundreds of small operations cost a GPU more to start than to do.
    graph: bool = option(True, "with -device cuda or the engine device, record a chunk's evaluation once and replay it")
    weights: str = option("", "weights of single terms of the loss in place of their own, as name=weight,name=weight")
    adaptive_weights: Literal["none", "gradient"] = option(
        "none", "balance the conditions' weights by the norms of the terms' gradients"
    )
    # Long enough for a quasi-Newton matrix to follow the loss.
    adaptive_weights_interval: int = option(100, "iterations between two changes of the weights", at_least=1)
    # As published (SIAM J. Sci. Comput. 43, 2021).
    adaptive_weights_average: float = option(0.9, "share of the old weight in the new", at_least=0.0, below=1.0)
    resample: Literal["none", "rad"] = option(
        "none", "draw the points inside anew where the residual is large (rad: residual-based adaptive distribution)"
    )
    # As published with self-scaled Broyden (CMAME 2025); power and offset as proposed with the method (CMAME 2023).
    resample_interval: int = option(500, "iterations of the outermost solver between two resamplings", at_least=1)
    resample_power: float = option(
        1.0, "k in p ~ |r|^k / mean |r|^k + c; a larger one draws nearer peaks", at_least=0.0, below=math.inf
    )
    resample_offset: float = option(
        1.0, "c there; a larger one spreads points more evenly", at_least=0.0, below=math.inf
    )
    # Costs about five gradients per resampling, one per cent of an interval.
    resample_candidates: int = option(10, "points to draw from, as a factor of -pinn_points", at_least=1)
    error_interval: int = option(10, "iterations between two errors in the history; 0 is at the end only", at_least=0)


def chunk_for(net: NetworkOptions, dtype: torch.dtype) -> int:
    """Return 1250 points, halved until the jets that a reverse pass needs take no more than 16 MiB. Not collective."""
    point = 4 * net.depth * net.width * dtype.itemsize  # of value, two slopes and one operator
    chunk = 1250
    while chunk * point > 2**24 and chunk > 100:
        chunk = -(-chunk // 2)
    return chunk


def build(
    database: Database, dtype: torch.dtype, seed: int, device: torch.device = CPU
) -> tuple[PDE, PinnOptions, Model, Tensor]:
    """Return equation, options, model and first parameters (n,) as the options say. Not collective."""
    on_host = device.type == "cpu"
    title = "Physics-informed network (PINN)"
    options = database.read(PinnOptions, stem="pinn_", title=title, defaults={} if on_host else ON_GPU)
    if options.engine == "compiled" and not on_host:
        raise OptionsError("-pinn_engine compiled: it computes on the CPU; with -device cuda use device or jets")
    net = database.read(NetworkOptions, stem="net_", title="Network")
    if net.type == "mlp" and net.step != 1.0:
        raise OptionsError(f"-net_step {net.step:g}: a plain stack has no residual blocks; use -net_type resnet")
    pde = equation(options.problem, "-pinn_problem")
    pde.hard = options.conditions == "hard"
    inputs = len(pde.features(torch.zeros(len(pde.coordinates), 1, dtype=dtype)))
    if net.fourier_modes:
        features = FourierFeatures(pde.features, inputs, net, seed, dtype)
        pde.features, inputs = features, 2 * net.fourier_modes  # type: ignore[method-assign]
    network = DenseNetwork(inputs, len(pde.fields), net, seed, dtype).to(device)
    layout = Layout(network)
    graph = options.graph and (options.engine == "device" or not on_host)
    model = Model(pde, network, layout, options.engine, dtype, options.chunk or chunk_for(net, dtype), device, graph)
    return pde, options, model, layout.flatten(network)


def reference_at(pde: PDE, points: Array) -> Array | None:
    """Return the reference solution at points (n, d), shape (n, fields), or None. Not collective.

    Raises
    ------
    UserError
        If the user's function fails or returns something of another shape.
    """
    name = f"{type(pde).__name__}.reference"
    values = guard.call(name, pde.reference, points)
    if values is None:
        return None
    found = np.asarray(values, dtype=np.float64)
    fields = len(pde.fields)
    if found.shape not in ((len(points), fields), (len(points),) if fields == 1 else ()):
        raise UserError(f"{name} must return shape (n,), or (n, {fields}); got {found.shape} for n = {len(points)}")
    return found.reshape(-1, fields)


class Solution:
    """The trained field on a grid, against the reference solution where there is one."""

    def __init__(self, run: Run, pde: PDE, model: Model) -> None:
        self.run = run
        self.pde = pde
        self.model = model
        counts = GRID[len(pde.coordinates)]
        self.axes = {c: np.linspace(*pde.domain[c], n) for c, n in zip(pde.coordinates, counts, strict=True)}
        self.shape = counts
        mesh = np.meshgrid(*self.axes.values(), indexing="ij")
        self.points = np.stack([m.ravel() for m in mesh])  # (d, n)
        size, rank = run.comm.size, run.comm.rank
        n = self.points.shape[1]
        self._mine = slice(rank * n // size, (rank + 1) * n // size)
        self._sizes = [((r + 1) * n // size - r * n // size) * len(pde.fields) for r in range(size)]
        self.reference = self._reference()

    def _reference(self) -> Array | None:
        """Return the reference on this rank's share of the grid, shape (n_mine, fields), or None. Collective."""
        found, error = None, None
        try:
            found = reference_at(self.pde, self.points[:, self._mine].T)
        except UserError as caught:
            error = caught
        self.run.comm.agree(error)
        return found

    def here(self, x: Tensor) -> Array:
        """Return the fields on this rank's share of the grid, shape (n_mine, fields). Not collective."""
        points = torch.as_tensor(self.points[:, self._mine].copy(), dtype=x.dtype, device=x.device)
        return self.model.solution(x, points).T.to(torch.float64).cpu().numpy()

    def errors(self, x: Tensor) -> tuple[float, float] | None:
        """Return relative L2 errors against the norms of the reference and of the network, or None. Collective."""
        if self.reference is None:
            return None
        u = self.here(x)
        parts = np.array([((u - self.reference) ** 2).sum(), (self.reference**2).sum(), (u**2).sum()])
        error, reference, network = self.run.comm.allgather(parts).sum(0)
        return float(np.sqrt(error / reference)), float(np.sqrt(error / network))

    def fields(self, x: Tensor) -> Tree:
        """Return axes, fields, references and errors on the whole grid. Collective."""
        tree: Tree = dict(self.axes)
        u = self._whole(self.here(x))
        reference = None if self.reference is None else self._whole(self.reference)
        many = len(self.pde.fields) > 1
        for k, name in enumerate(self.pde.fields):
            tree[name] = u[..., k]
            if reference is not None:
                suffix = str(k) if many else ""
                tree[f"reference{suffix}"] = reference[..., k]
                tree[f"error{suffix}"] = u[..., k] - reference[..., k]
        return tree

    def _whole(self, mine: Array) -> Array:
        gathered = self.run.comm.allgather_parts(np.ascontiguousarray(mine).ravel(), self._sizes)
        return np.ascontiguousarray(np.moveaxis(gathered.reshape(*self.shape, -1), -1, 0)).transpose(
            *range(1, len(self.shape) + 1), 0
        )


def adapted(problem: PinnProblem, options: PinnOptions, seed: int) -> AdaptivePinn | None:
    """Return what adapts the problem while it is solved, as the options say. Not collective."""
    o = options
    resampling = Resampling(
        o.resample_interval, o.resample_power, o.resample_offset, o.resample_candidates, o.sampler, seed
    )
    balancing = Balancing(o.adaptive_weights_interval, o.adaptive_weights_average)
    resamples, balances = o.resample == "rad", o.adaptive_weights == "gradient"
    if not (resamples or balances):
        return None
    return AdaptivePinn(problem, resampling if resamples else None, balancing if balances else None)


def _resampling(o: PinnOptions) -> str:
    """Return what a restart has to agree on."""
    if o.resample == "none":
        return ""
    law = f"|r|^{o.resample_power:g} + {o.resample_offset:g}"
    return f", every {o.resample_interval} {o.resample} {law} of {o.resample_candidates} times as many"


def _weights(o: PinnOptions) -> str:
    fixed = f", {o.weights}" if o.weights else ""
    if o.adaptive_weights == "none":
        return fixed
    every, average = o.adaptive_weights_interval, o.adaptive_weights_average
    return f"{fixed}, every {every} balanced by {o.adaptive_weights}, average {average:g}"


def main(argv: list[str]) -> None:
    """Run the app on all ranks."""
    run = Run("pinn", argv)
    pde, options, model, x = build(run.database, run.dtype, run.options.seed, run.device)
    solver = run.solver(TREE, ALWAYS)
    run.ready(solver)
    run.canonical["pinn_problem"] = canonical(options.problem)

    terms = collocate(
        pde,
        n=options.points,
        n_face=options.face_points,
        sampler=options.sampler,
        seed=run.options.seed,
        dtype=run.dtype,
        weight=options.condition_weight,
    )
    terms = [term.to(run.device) for term in weighted(terms, options.weights)]
    problem = PinnProblem(run.comm, model, terms)
    adaptation = adapted(problem, options, run.options.seed)
    solution = Solution(run, pde, model)
    network = model.network
    assert isinstance(network, DenseNetwork)
    net = network.options
    identity = {
        "problem": canonical(options.problem),
        "network": (
            f"{net.type} {net.depth} x {net.width} {'adaptive ' * net.adaptive}{net.activation}, {len(x)} parameters"
            + (f", steps of {net.step:g}" if net.type == "resnet" and net.step != 1.0 else "")
            + (f", {net.fourier_modes} Fourier modes of scale {net.fourier_scale:g}" if net.fourier_modes else "")
        ),
        "dtype": run.options.dtype,
        "points": f"{options.points} {options.sampler}, seed {run.options.seed}{_resampling(options)}",
        "conditions": (
            f"{options.conditions}, weight {options.condition_weight:g}, {options.face_points} points a face"
            f"{_weights(options)}"
        ),
    }
    title = pde.title or type(pde).__name__
    counted = ", ".join(f"{t.n} {t.name}" for t in terms)
    run.print(f"{title}: {identity['network']}; points: {counted}; engine {options.engine}; {run.comm.size} rank(s)")

    def measure(solver: SNES, point: Point) -> dict[str, float]:
        every = options.error_interval
        wanted = every > 0 and solver.iteration % every == 0 and point.finite
        errors = solution.errors(solver.problem.space.gather(point.x)) if wanted else None
        return {"error": errors[0] if errors else float("nan")}

    def describe(point: Point, last: bool) -> Tree:
        whole = solver.problem.space.gather(point.x)
        fields = solution.fields(whole)
        return {
            "configuration": {
                "problem": canonical(options.problem),
                "title": title,
                "coordinates": " ".join(pde.coordinates),
                "fields": " ".join(pde.fields),
            },
            "solution": {**fields, "points": xdmf.points(solution.axes)},
        }

    point = run.solve(
        solver,
        problem,
        x,
        layout=model.layout,
        identity=identity,
        describe=describe,
        measure=measure,
        adaptation=adaptation,
    )
    report(run, solver, problem if adaptation is None else adaptation.problem, solution, point)


def report(run: Run, solver: SNES, problem: PinnProblem, solution: Solution, point: Point) -> None:
    """Print how the run ended; write the XDMF file. Collective."""
    x = solver.problem.space.gather(point.x)
    if run.comm.rank == 0:
        names = [*solution.pde.fields]
        many = len(names) > 1
        if solution.reference is not None:
            names += [
                f"{w}{k if many else ''}" for k in range(len(solution.pde.fields)) for w in ("reference", "error")
            ]
        xdmf.write(run.options.output, solution.axes, names, points="points")
    losses = problem.terms(x)
    work = solver.work
    counts = ", ".join(f"{work['gradients', m]:.0f} {m}" for m in MEASURES)
    run.print(f"{solver.ending()}, {run.seconds:.1f} s; gradients: {counts}")
    run.print("loss " + f"{point.f:.6e}" + "".join(f", {k} {v:.3e}" for k, v in losses.items() if len(losses) > 1))
    errors = solution.errors(x)
    if errors is not None:
        run.print(f"relative L2 error {errors[0]:.6e} (against the network's norm {errors[1]:.6e})")
    run.print(f"results in {run.options.output}")


# test: mpirun -n 1 python -m ml2hpc.apps.pinn -snes_max_it 3 -pinn_points 400 -net_depth 3 -npc_dm_subdomains 3
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -restart run.h5 -snes_max_it 4 -snes_view -log_view -snes_monitor
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/mspqn.opts -snes_max_it 1
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/lbfgs.opts -snes_max_it 3
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/ssbroyden.opts -snes_max_it 3
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/ssbroyden_rad.opts -snes_max_it 3
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/mspqn_gn.opts -snes_max_it 1
# test: python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/aspqn_gn.opts -snes_max_it 1 -pinn_points 500
# test: python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/levenberg.opts -snes_max_it 1 -net_depth 3
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/adam.opts -snes_max_it 3
# test: python -m ml2hpc.apps.pinn -pinn_problem $CHECKOUT/apps/problems/heat.py:Heat -snes_type qn -snes_max_it 3
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -snes_type qn -pinn_resample rad -pinn_resample_interval 2 -snes_max_it 3
# test: python -m ml2hpc.apps.pinn -restart run.h5 -snes_max_it 5
# test: echo "-snes_type qn -snes_max_it 3 -pinn_conditions soft -pinn_weights t0_value=100" > soft.opts
# test: echo "-pinn_adaptive_weights gradient -pinn_adaptive_weights_interval 2" >> soft.opts
# test: python -m ml2hpc.apps.pinn -options_file soft.opts
# test: echo "-options_file $CHECKOUT/apps/options/pinn_nested.opts -npc_snes_fas_nested_steps 2" > nested.opts
# test: python -m ml2hpc.apps.pinn -options_file nested.opts -snes_max_it 1
# test: echo "-options_file $CHECKOUT/apps/options/pinn_fas.opts -snes_fas_nested_steps 2" > fas.opts
# test: python -m ml2hpc.apps.pinn -options_file fas.opts -snes_max_it 1
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -restart run.h5 -snes_max_it 2
# test: python -m ml2hpc.apps.pinn -net_type resnet -net_depth 5 -net_step .5 -snes_type fas -snes_max_it 1
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/mspqn_fas.opts -snes_max_it 1
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/ngmres_ssbroyden.opts -snes_max_it 1
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/newtontr.opts -snes_max_it 2
# test: mpirun -n 2 python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/newtontr_lsr1.opts -snes_max_it 3
# test: python -m ml2hpc.apps.pinn -options_file $CHECKOUT/apps/options/newtontr_apts.opts -snes_max_it 1 -pinn_points 9
if __name__ == "__main__":
    main(sys.argv[1:])
