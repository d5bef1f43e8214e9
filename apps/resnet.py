"""Train a residual network as a control problem.

A residual network is the ODE y' = f(y, theta(t)) on [0, T], discretised in n steps. Its opening layer takes a sample to
y(0), its classification layer y(T) to one logit per class, and

    L(theta) = 1/n sum_i cross_entropy(logits(x_i; theta), c_i) + beta/2 |theta|^2

is minimised over all weights by a solver tree. With no options that is L-BFGS on concentric circles with a gap,

    mpirun -n 2 python -m ml2hpc.apps.resnet

Samples are dealt to the ranks. The iterates are the same, to the last bit, on any number of ranks.

The history (in run.h5) has the accuracies on training, validation and test samples, and how far the opening
layer, the blocks and the classification layer have moved since the start, against their norms there; `measuring` is the
processor time of both. On the circles the outer layers alone reach accuracy 1: a study of the blocks' training stands
beside its control, -resnet_freeze blocks.

Things to try
-------------
See the tree, its options and where the time goes:

    python -m ml2hpc.apps.resnet -help
    python -m ml2hpc.apps.resnet -snes_max_it 20 -snes_monitor -snes_view -log_view

The published setting: 2048 blocks, gradient descent until all validation samples are right; then the control:

    python -m ml2hpc.apps.resnet -options_file apps/options/resnet_published.opts
    python -m ml2hpc.apps.resnet -options_file apps/options/resnet_published.opts -resnet_freeze blocks

Other data, networks and solvers:

    python -m ml2hpc.apps.resnet -data_set spirals -resnet_width 8 -resnet_final_time 10 -resnet_scheme verlet
    python -m ml2hpc.apps.resnet -options_file apps/options/resnet_mnist.opts -data_path mnist
    python -m ml2hpc.apps.resnet -options_file apps/options/resnet_images.opts

Levels with half the blocks each: MG/OPT as published, nested iteration, multigrid cycles, recursive trust regions:

    python -m ml2hpc.apps.resnet -options_file apps/options/resnet_mgopt.opts      # _nested, _fas, _rmtr, _rmtr_images
    python -m ml2hpc.apps.resnet -options_file apps/options/resnet_mgopt_mnist.opts -data_path mnist    # _batches
    python -m ml2hpc.apps.resnet -data_set libsvm -data_path australian -resnet_blocks 8

Go on from a file on other numbers of ranks; draw loss, accuracies and movement:

    mpirun -n 4 python -m ml2hpc.apps.resnet -restart run.h5 -snes_max_it 200
    python -m ml2hpc.apps.plot run.h5

Classify samples of your own, one a line, features as in the files that the network was trained on:

    python -m ml2hpc.apps.evaluate run.h5 samples.csv classes.csv
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml2hpc.errors import OptionsError
from ml2hpc.log.work import MEASURES
from ml2hpc.options import Database, option
from ml2hpc.problem.control import Architecture, ArchitectureOptions, ResNet
from ml2hpc.problem.data import DataOptions, DataSet, Normalizer, load
from ml2hpc.problem.interface import Block, Problem, Restriction
from ml2hpc.problem.resnet import FASTEST, ResNetModel, ResNetProblem
from ml2hpc.run import Run
from ml2hpc.snes import SNES, Point
from ml2hpc.vec import Layout

Tree = dict[str, Any]
Part = Literal["train", "validation", "test"]

# Of what trains these networks at one level, the least work to accuracy 1 on the circles.
TREE: Tree = {"snes_type": "qn", "snes_qn_type": "lbfgs", "snes_max_it": 100}
ALWAYS: Tree = {"snes_stol": 0.0}  # a short step is no sign of a minimum here
ON_GPU: Tree = {"engine": "torch", "chunk": 2**16}
GRID = 101  # points along each axis of the picture of a network in the plane


@dataclass(frozen=True)
class TrainingOptions:
    """Options `-resnet_*` of the loss and its evaluation."""

    loss: Literal["cross_entropy", "least_squares"] = option(
        "cross_entropy",
        "softmax with cross-entropy, as published, or the squared distance of logits and one-hot target",
    )
    # As published for the circles; 1e-5 for MNIST.
    beta: float = option(1e-4, "factor of |theta|^2 / 2 in the loss", at_least=0.0)
    penalty: Literal["sum", "integral"] = option(
        "sum",
        "the blocks in |theta|^2: summed, as published, or integrated over [0, T]: the same for any number of them",
    )
    engine: Literal["compiled", "torch"] = option(
        FASTEST,
        "how samples are propagated; compiled where the package was built with a compiler, torch for convolutions and "
        "with -device cuda",
    )
    # Two chunks of the 2000 published samples; each is summed apart, at a price of some 20 microseconds.
    chunk: int = option(1024, "samples evaluated at a time, the grain of the split over ranks", at_least=1)
    freeze: Literal["none", "blocks"] = option(
        "none", "keep the residual blocks at their start: the control that shows what they contribute"
    )
    accuracy_interval: int = option(
        1,
        "iterations between two accuracies in the history, which cost about half a gradient; 0 is at the end only",
        at_least=0,
    )
    # All that a plot shows; where training takes batches, its whole set costs more than a step.
    accuracy_parts: tuple[Part, ...] = option(
        ("train", "validation", "test"), "parts of the data whose accuracies the history holds; at the end all are told"
    )
    stop_accuracy: float = option(
        float("inf"), "end the solve when this share of the validation samples is classified correctly", above=0.0
    )


@dataclass(frozen=True)
class Options:
    """All options of this app's own."""

    training: TrainingOptions
    network: ArchitectureOptions
    data: DataOptions

    @classmethod
    def read(cls, run: Run) -> Options:
        """Return them. Not collective.

        Raises
        ------
        OptionsError
            If they do not go together.
        """
        on_host = run.device.type == "cpu"
        title = "Training of a residual network"
        training = run.read(TrainingOptions, stem="resnet_", title=title, defaults={} if on_host else ON_GPU)
        network = run.read(ArchitectureOptions, stem="resnet_", title="Residual network")
        data = run.read(DataOptions, stem="data_", title="Data")
        if training.engine == "compiled" and not on_host:
            raise OptionsError("-resnet_engine compiled: it computes on the CPU; with -device cuda use torch")
        if training.engine == "compiled" and network.layers == "conv":
            raise OptionsError("-resnet_layers conv: the compiled engine has no convolutions; add -resnet_engine torch")
        measured = training.accuracy_interval > 0 and "validation" in training.accuracy_parts
        if 1 < training.stop_accuracy < math.inf:
            raise OptionsError(
                f"-resnet_stop_accuracy {training.stop_accuracy:g}: is a share, at most 1; write 0.99 for 99 %"
            )
        if training.stop_accuracy <= 1 and (data.validation == 0 or not measured):
            raise OptionsError(
                "-resnet_stop_accuracy needs validation samples, -resnet_accuracy_interval above 0 and validation in "
                "-resnet_accuracy_parts"
            )
        return cls(training, network, data)


@dataclass(frozen=True)
class Training:
    """What is trained, on what."""

    options: Options
    data: DataSet
    model: ResNetModel
    network: ResNet
    start: Tensor  # (n,)


def build(run: Run, options: Options) -> Training:
    """Return data, model and first parameters as the options say. Collective."""
    o, seed, dtype = options.training, run.options.seed, run.dtype
    data = load(run.comm, options.data, seed, dtype)
    architecture = Architecture.of(options.network, data.inputs, len(data.classes))
    network = ResNet(architecture, seed, dtype).to(run.device)
    scaling = architecture.step if o.penalty == "integral" else 1.0
    model = ResNetModel(architecture, o.engine, dtype, o.loss, o.beta, scaling, chunk=o.chunk, device=run.device)
    return Training(options, data, model, network, Layout(network).flatten(network))


class Progress:
    """Accuracies and movements along a run.

    Parameters
    ----------
    problem
        What is minimised: the whole problem, or its restriction.
    """

    def __init__(self, run: Run, training: Training, problem: Problem) -> None:
        self._training = training
        self._problem = problem
        self._parts = {name: ResNetProblem(run.comm, training.model, s) for name, s in training.data.parts.items()}
        self.validation = float("nan")

    def whole(self, x: Tensor) -> Tensor:
        """Return all parameters from those that are trained. Not collective."""
        return self._problem.embed(x) if isinstance(self._problem, Restriction) else x

    def columns(self, x: Tensor, due: bool) -> dict[str, float]:
        """Return what the history holds of the parameters x, shape (n,). Collective if it is due.

        `measuring` is the processor time that these columns took: no part of the training.
        """
        started = time.process_time()
        parts = self._training.options.training.accuracy_parts
        accuracies = self.accuracies(x, parts) if due else {}
        self.validation = accuracies.get("validation", (0.0, float("nan")))[1]
        found = {f"accuracy_{name}": accuracies.get(name, (0.0, float("nan")))[1] for name in self._parts}
        found |= self.movements(x)
        return found | {"measuring": time.process_time() - started}

    def accuracies(
        self, x: Tensor, parts: Sequence[str] = ("train", "validation", "test")
    ) -> dict[str, tuple[float, float]]:
        """Return the mean loss and the accuracy on parts of the data. Collective."""
        whole = self.whole(x)
        return {name: problem.loss_and_accuracy(whole) for name, problem in self._parts.items() if name in parts}

    def movements(self, x: Tensor) -> dict[str, float]:
        """Return |theta - theta_0| / |theta_0| for opening, blocks and classification. Not collective."""
        whole, start = self.whole(x), self._training.start
        return {
            f"movement_{name}": float(torch.linalg.norm(whole[s] - start[s]) / torch.linalg.norm(start[s]))
            for name, s in self._training.model.architecture.groups.items()
        }

    def picture(self, x: Tensor) -> Tree:
        """Return the probability of the second class on a grid in the plane, for plane data. Not collective."""
        training, whole = self._training, self.whole(x)
        if training.data.inputs != (2,) or len(training.data.classes) != 2:
            return {}
        samples = training.data.parts["train"].x
        low, high = (f(samples, 0).cpu().numpy() for f in (torch.amin, torch.amax))
        axes = [np.linspace(a, b, GRID) for a, b in zip(low, high, strict=True)]
        points = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], 1)
        grid = torch.as_tensor(points, dtype=whole.dtype, device=whole.device)
        p = torch.softmax(logits(training.model, whole, grid), 0)[1]
        return {"x": axes[0], "y": axes[1], "p": p.to(torch.float64).cpu().numpy().reshape(GRID, GRID)}


def logits(model: ResNetModel, x: Tensor, samples: Tensor) -> Tensor:
    """Return one logit per class of normalised samples (n, *inputs), shape (classes, n). Not collective."""
    engine = model.engine()
    batch = engine.batch(samples, torch.zeros(len(samples), dtype=torch.int64), 1.0)
    return engine.logits(x, batch)[:, : len(samples)]


@dataclass(frozen=True)
class Trained:
    """A network from a file."""

    model: ResNetModel
    x: Tensor  # (n,)
    normalizer: Normalizer
    classes: tuple[str, ...]

    @classmethod
    def of(cls, tree: Tree) -> Trained:
        """Return the network of the contents of run.h5, on the CPU. Not collective."""
        configuration, normal = tree["configuration"], tree["normalization"]
        database = Database.from_dict(configuration["options"])
        dtype = getattr(torch, configuration["options"]["dtype"])
        options = database.read(ArchitectureOptions, stem="resnet_", title="")
        classes = tuple(configuration["classes"].split())
        normalizer = Normalizer(float(normal["unit"]), normal["shift"], normal["deviation"])
        architecture = Architecture.of(options, normalizer.shift.shape, len(classes))
        # What was frozen is in no file: it is where the seed put it.
        network = ResNet(architecture, int(configuration["options"]["seed"]), dtype)
        parameters = network.state_dict()
        for name, values in tree["checkpoint"]["parameters"].items():
            parameters[name].copy_(torch.from_numpy(values))
        # Any engine has logits, and the run's own may not be at hand here.
        engine = "torch" if architecture.layers == "conv" else FASTEST
        return cls(ResNetModel(architecture, engine, dtype), Layout(network).flatten(network), normalizer, classes)

    def logits(self, samples: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one logit per class of samples (n, features) as they were read, shape (n, classes). Not collective."""
        normal = self.normalizer(samples.reshape(-1, *self.normalizer.shift.shape))
        chunks = torch.from_numpy(normal).to(self.model.dtype).split(self.model.chunk)
        return torch.cat([logits(self.model, self.x, chunk) for chunk in chunks], 1).T.to(torch.float64).numpy()


def restricted(training: Training, problem: ResNetProblem) -> tuple[Problem, Tensor, Layout]:
    """Return what is minimised, its start and its layout, as -resnet_freeze says. Collective."""
    network, x = training.network, training.start
    if training.options.training.freeze == "none":
        return problem, x, Layout(network)
    groups = training.model.architecture.groups
    outer = [torch.arange(s.start, s.stop, device=x.device) for s in (groups["opening"], groups["classification"])]
    restriction = problem.restrict(Block(torch.cat(outer), "opening and classification"))
    outer_layers = nn.ModuleDict({"opening": network.opening, "classification": network.classification})
    return restriction, restriction.rebase(x), Layout(outer_layers)


def identity_of(run: Run, training: Training) -> Tree:
    """Return what has to agree for a restart."""
    o, data, model = training.options.training, training.options.data, training.model
    seed = run.options.seed if data.seed is None else data.seed
    turns = f"{data.turns:g} turns, " if data.set == "spirals" else ""
    content = f", checksum {training.data.checksum}" if training.data.checksum else ""
    frozen = "nothing" if o.freeze == "none" else f"{o.freeze} of seed {run.options.seed}"
    sizes = ", ".join(f"{len(s)} {name}" for name, s in training.data.parts.items())
    return {
        "problem": f"resnet on {data.set}",
        "network": f"{model.architecture.view()}, {len(training.start)} parameters",
        "dtype": run.options.dtype,
        "data": f"{turns}{sizes}, normalize {data.normalize}, seed {seed}{content}",
        "loss": f"{o.loss}, beta {o.beta:g}, {o.penalty} over blocks, chunks of {o.chunk}",
        "start": f"seed {run.options.seed}",
        "frozen": frozen,
    }


def main(argv: list[str]) -> None:
    """Run the app on all ranks."""
    run = Run("resnet", argv)
    everything = Options.read(run)
    solver = run.solver(TREE, ALWAYS)
    run.ready(solver)
    if everything.data.path:
        run.canonical["data_path"] = str(Path(everything.data.path).resolve())
    training = build(run, everything)
    options, model = everything.training, training.model
    whole = ResNetProblem(run.comm, model, training.data.parts["train"])
    problem, x, layout = restricted(training, whole)
    progress = Progress(run, training, problem)
    identity = identity_of(run, training)
    trained = f", {options.freeze} frozen, {problem.space.n} trained" if options.freeze != "none" else ""
    features = " x ".join(map(str, training.data.inputs))
    run.print(
        f"{identity['problem']}: {identity['network']}{trained}; {features} features, {len(training.data.classes)} "
        f"classes; {identity['data']}; engine {options.engine}; {run.comm.size} rank(s)"
    )

    def measure(solver: SNES, point: Point) -> dict[str, float]:
        every = options.accuracy_interval
        due = every > 0 and solver.iteration % every == 0 and point.finite
        return progress.columns(solver.problem.space.gather(point.x), due)

    def describe(point: Point, last: bool) -> Tree:
        gathered = solver.problem.space.gather(point.x)
        found = progress.accuracies(gathered)
        results = {name: {"loss": loss, "accuracy": accuracy} for name, (loss, accuracy) in found.items()}
        picture = progress.picture(gathered)
        return {
            "configuration": {
                "problem": identity["problem"],
                "title": f"{identity['problem']}, {model.architecture.blocks} x {model.architecture.width}"
                + (f", {options.freeze} frozen" if options.freeze != "none" else ""),
                "classes": " ".join(training.data.classes),
                "coordinates": "x y",
                "fields": "p",
            },
            "results": results | {"movement": progress.movements(gathered)},
            "normalization": asdict(training.data.normalizer),
            **({"solution": picture} if picture else {}),
        }

    point = run.solve(
        solver,
        problem,
        x,
        layout=layout,
        identity=identity,
        describe=describe,
        measure=measure,
        reached=lambda: progress.validation >= options.stop_accuracy,
    )
    report(run, solver, progress, point)


def report(run: Run, solver: SNES, progress: Progress, point: Point) -> None:
    """Print how the run ended. Collective."""
    x = solver.problem.space.gather(point.x)
    counts = ", ".join(f"{solver.work['gradients', m]:.0f} {m}" for m in MEASURES)
    run.print(f"{solver.ending()}, {run.seconds:.1f} s; gradients: {counts}")
    found = ", ".join(f"{name} {loss:.6e} ({a:.4%})" for name, (loss, a) in progress.accuracies(x).items())
    run.print(f"objective {point.f:.6e}; loss and accuracy: {found}")
    moved = ", ".join(f"{k.removeprefix('movement_')} {v:.3e}" for k, v in progress.movements(x).items())
    run.print(f"relative movement: {moved}")
    run.print(f"results in {run.options.output}")


# test: mpirun -n 1 python -m ml2hpc.apps.resnet -snes_max_it 3 -data_train 300 -data_validation 100 -resnet_blocks 8
# test: mpirun -n 2 python -m ml2hpc.apps.resnet -restart run.h5 -snes_max_it 6 -snes_view -log_view -snes_monitor
# test: python -m ml2hpc.apps.resnet -snes_max_it 3 -resnet_freeze blocks -resnet_scheme verlet -data_set spirals
# test: python -m ml2hpc.apps.resnet -options_file $CHECKOUT/apps/options/resnet_published.opts -snes_max_it 2
# test: python -m ml2hpc.apps.resnet -options_file $CHECKOUT/apps/options/resnet_adam.opts -snes_max_it 2
# test: python -m ml2hpc.apps.resnet -options_file $CHECKOUT/apps/options/resnet_ssbroyden.opts -snes_max_it 2
# test: python -m ml2hpc.apps.resnet -options_file $CHECKOUT/apps/options/resnet_mgopt.opts -snes_max_it 2
# test: python -m ml2hpc.apps.resnet -options_file $CHECKOUT/apps/options/resnet_nested.opts -snes_max_it 2
# test: echo "-options_file $CHECKOUT/apps/options/resnet_batches.opts -data_set disk -data_train 640" > batches.opts
# test: python -m ml2hpc.apps.resnet -options_file batches.opts -snes_max_it 2
# test: python -m ml2hpc.apps.resnet -options_file $CHECKOUT/apps/options/resnet_rmtr.opts -snes_max_it 2
# test: python -m ml2hpc.apps.resnet -options_file $CHECKOUT/apps/options/resnet_fas.opts -snes_max_it 2
# test: mpirun -n 2 python -m ml2hpc.apps.resnet -restart run.h5 -snes_max_it 3 -snes_view -log_view
# test: python -m ml2hpc.apps.resnet -snes_type gn -snes_max_it 2 -resnet_blocks 4 -data_train 100
# test: python -m ml2hpc.apps.resnet -snes_max_it 3 -data_train 300 -resnet_blocks 8
# test: python -m ml2hpc.apps.plot run.h5
# test: test -s run_convergence.png -a -s run_solution.png
if __name__ == "__main__":
    main(sys.argv[1:])
