"""A study of MG/OPT as published: residual networks of 2048 blocks, gradient descent, half the blocks on each level.

    python -m tests.studies.mgopt [--mnist FOLDER] [--sets circles mnist] [--seeds 10] [--output mgopt]

Circles, full batch, until all validation samples are right: 1 to 8 levels (Table 1 of the paper), smoothing steps
(Table 2), and depth. With --mnist, the first again on its digits, in mini-batches of 1000, until 80 % are right: that
is what the 10,000 digits of the test set alone allow at the published rate, where the paper has 93 %. Beside each run
stands its control with all residual blocks frozen at their start: gradients of blocks are as small as their step in
time, so that what trains at these rates are the layers that all levels share, and a coarse step is worth a fine one.

A run ends with the cycle that reaches its accuracy. What is counted lies between the first iterate and that one:

    U            gradients, in those of the finest level on what a step sees: cycles times the published formula, in
                 which a level costs half the next finer one. By operations, opening and classification layer cost the
                 same on all levels, which is little on circles, but a tenth on MNIST
    core-s       processor time of the solver: that of the accuracies and movements is measured and taken off, as it
                 grows with the number of cycles and would flatter those who make few
    steps        of gradient descent, on all levels together

Figures are medians over the seeds, which draw samples, weights and mini-batches. A run that is done is not run again.

Published: Gaedke-Merzhaeuser, Kopanicakova, Krause: Multilevel minimization for deep residual networks, ESAIM Proc. 71
(2021).
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from tests.studies.runs import COLOURS, DASHES, OPTIONS, Job, Table, markdown

SCHEDULES = {
    1: "[{1}]",
    2: "[(1),{2}]",
    4: "[(1),1,2,{2}]",
    6: "[(1),1,1,2,2,{2}]",
    8: "[(1),1,1,1,2,2,2,{2}]",
}
SMOOTHING = {  # of 8 levels, with the published cycles and U
    "[1,1,1,1,1,1,1,{1}]": (7, 42),
    "[1,1,1,1,1,1,1,{2}]": (7, 42),
    "[1,1,1,1,1,1,1,{5}]": (6, 36),
    "[1,1,1,1,1,1,1,{10}]": (5, 31),
    "[1,1,1,1,2,2,2,{2}]": (5, 31),
    SCHEDULES[8]: (5, 26),
}
DEPTHS = {  # 16 blocks on the coarsest level of each
    512: "[(1),1,2,2,2,{2}]",
    1024: "[(1),1,1,2,2,2,{2}]",
    2048: SCHEDULES[8],
    4096: "[(1),1,1,1,1,2,2,2,{2}]",
}
MOVED = ("opening", "blocks", "classification")


@dataclass(frozen=True)
class Data:
    """A data set as published.

    Attributes
    ----------
    published
        Cycles and U for each number of levels.
    samples, batch
        In training, and of them in a step; 0 takes all.
    work, seconds
        One level against eight that is asked for, in U and in core-seconds.
    """

    title: str
    accuracy: float
    published: dict[int, tuple[int, int]]
    samples: int
    batch: int
    work: float
    seconds: float
    seeds: int
    budget: float  # core-seconds of a run

    @property
    def unit(self) -> float:
        """What a step sees, of all samples."""
        return self.batch / self.samples if self.batch else 1.0


DATA = {
    "circles": Data(
        "Circles, full batch, to validation accuracy 1",
        1.0,
        {1: (95, 95), 2: (32, 96), 4: (12, 60), 6: (7, 37), 8: (5, 26)},
        samples=2000,
        batch=0,
        work=3.65,
        seconds=3.0,
        seeds=10,
        budget=100.0,
    ),
    "mnist": Data(
        "MNIST, batches of 1000, to validation accuracy 0.8 (published: 0.93)",
        0.8,
        {1: (460, 460), 2: (152, 456), 4: (55, 275), 6: (33, 173), 8: (28, 145)},
        samples=8000,
        batch=1000,
        work=3.17,
        seconds=3.0,
        seeds=3,
        budget=400.0,
    ),
}


def numbers(schedule: str) -> list[int]:
    """Return the steps of a schedule, the finest level first."""
    return [int(n) for n in re.findall(r"\d+", schedule)]


def steps(schedule: str) -> int:
    """Return the gradient steps of a cycle: twice on a level, but once in ( ) and on the coarsest."""
    return sum(n * (1 if word[0] in "({" else 2) for n, word in zip(numbers(schedule), words(schedule), strict=True))


def words(schedule: str) -> list[str]:
    """Return the levels of a schedule as they are written."""
    return schedule[1:-1].split(",")


def formula(schedule: str) -> float:
    """Return the published work of a cycle: U = 2^(1-L) mu_0 + sum_l (mu_1 + mu_2 + 1) 2^(l-L)."""
    smoothed = words(schedule)[:-1]
    last = numbers(schedule)[-1] * 0.5 ** len(smoothed)
    return last + sum((steps(f"[{word}]") + 1) * 0.5**k for k, word in enumerate(smoothed))


@dataclass(frozen=True)
class Trial:
    """A run: MG/OPT with a schedule, or gradient descent where it has one level."""

    data: str
    schedule: str
    seed: int
    frozen: bool = False
    blocks: int = 2048

    def job(self, folder: Path, mnist: Path | None) -> Job:
        """Return its run."""
        levels = len(numbers(self.schedule))
        tree = f"-dm_levels {levels} -snes_fas_smoothing {self.schedule}"
        if self.data == "mnist":
            sizes = f"-data_path {mnist} -data_train {DATA['mnist'].samples} -data_validation 2000 -data_test 0"
            options = f"-options_file {OPTIONS / 'resnet_mgopt_mnist.opts'} {tree} {sizes} -snes_fas_seed {self.seed}"
        elif levels == 1:
            options = f"-options_file {OPTIONS / 'resnet_published.opts'}"
        else:
            options = f"-options_file {OPTIONS / 'resnet_mgopt.opts'} {tree}"
        options += (
            f" -resnet_accuracy_parts validation -snes_max_it 2000 -resnet_blocks {self.blocks} -seed {self.seed}"
        )
        steps = "-".join(word.strip("{}").replace("(", "").replace(")", "o") for word in words(self.schedule))
        name = f"{self.data}-{self.blocks}-{steps}-{'frozen' if self.frozen else 'free'}-{self.seed}"
        freeze = "blocks" if self.frozen else "none"
        return Job("resnet", name, f"{options} -resnet_freeze {freeze}", DATA[self.data].budget, folder)


@dataclass(frozen=True)
class Found:
    """What a run took to its accuracy; infinite where it did not get there."""

    cycles: float
    work: float
    seconds: float
    moved: tuple[float, ...]

    @classmethod
    def of(cls, data: Data, table: Table) -> Found:
        """Return it from the history of a run."""
        moved = tuple(float(table[f"movement_{name}"][-1]) for name in MOVED)
        if not table["accuracy_validation"][-1] >= data.accuracy:
            return cls(np.inf, np.inf, np.inf, moved)
        u, own = (float(f(data, table)[-1]) for f in (work, seconds))
        return cls(float(table["iteration"][-1]), u, own, moved)


def work(data: Data, table: Table) -> NDArray[np.float64]:
    """Return U at every iterate.

    The start's gradient over all samples is none of a cycle's; with mini-batches, nor is that over the first one, which
    stands for that over the one after the last.
    """
    gradients = (table["gradients_work"] - table["gradients_work"][0]) / data.unit
    return np.maximum(gradients - (data.batch > 0), 0.0)


def seconds(data: Data, table: Table) -> NDArray[np.float64]:
    """Return the solver's core-seconds at every iterate."""
    own = table["cpu_seconds"] - np.cumsum(table["measuring"])
    return own - own[0]


# Results. -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """All runs that were asked for."""

    folder: Path
    mnist: Path | None
    seeds: int | None

    def of(self, data: str) -> range:
        """Return the seeds of a data set."""
        return range(self.seeds or DATA[data].seeds)

    def make(self, data: str, runs: Sequence[tuple[str, bool, int]]) -> None:
        """Make runs (schedule, frozen, blocks) of all seeds unless they are there.

        Seed by seed: a machine that gets slower does so for all alike.
        """
        for seed in self.of(data):
            for run in runs:
                job = Trial(data, run[0], seed, *run[1:]).job(self.folder, self.mnist)
                if job.done():
                    continue
                if fault := job.run():
                    raise RuntimeError(f"{job.name}: {fault}")
                print(f"{job.name}: {Found.of(DATA[data], job.table())}", flush=True)

    def found(self, data: str, schedule: str, *, frozen: bool = False, blocks: int = 2048) -> list[Found]:
        """Return what the runs of all seeds took."""
        trials = [Trial(data, schedule, seed, frozen, blocks) for seed in self.of(data)]
        return [Found.of(DATA[data], trial.job(self.folder, self.mnist).table()) for trial in trials]

    def first(self, data: str, schedule: str, *, frozen: bool = False) -> Table:
        """Return the history of the first seed."""
        return Trial(data, schedule, 0, frozen).job(self.folder, self.mnist).table()


def middle(runs: Sequence[Found], of: Callable[[Found], float]) -> float:
    """Return a median over the seeds."""
    return median(of(run) for run in runs)


def cells(runs: Sequence[Found]) -> list[str]:
    """Return cycles, U, core-seconds and milliseconds per U."""
    each = middle(runs, lambda r: 1e3 * r.seconds / r.work if math.isfinite(r.work) else math.inf)
    cycles, u, s = (middle(runs, of) for of in (lambda r: r.cycles, lambda r: r.work, lambda r: r.seconds))
    return [f"{cycles:g}", f"{u:.1f}", f"{s:.3f}", f"{each:.2f}"]


def levels(study: Study, name: str) -> tuple[str, list[str]]:
    """Return Table 1 of a data set and its verdicts."""
    data = DATA[name]
    heads = ["L", "paper: cycles / U", "cycles / U", "by operations", "core-s", "ms / U", "steps", "cycles x steps"]
    heads += ["moved: opening / blocks / classification", "frozen: cycles", "core-s"]
    study.make(name, [(schedule, frozen, 2048) for schedule in SCHEDULES.values() for frozen in (False, True)])
    rows, ends = [heads], {}
    for count, schedule in SCHEDULES.items():
        free, frozen = (study.found(name, schedule, frozen=f) for f in (False, True))
        ends[count] = free
        moved = " / ".join(f"{median(run.moved[k] for run in free):.1e}" for k in range(len(MOVED)))
        cycles = middle(free, lambda r: r.cycles)
        control = cells(frozen)
        figures = ["{} / {}".format(*data.published[count]), f"{cycles:g} / {cycles * formula(schedule):.1f}"]
        figures += [*cells(free)[1:], str(steps(schedule)), f"{steps(schedule) * cycles:g}"]
        rows.append([str(count), *figures, moved, control[0], control[2]])
    one, eight = ends[1], ends[8]
    published = middle(one, lambda r: r.cycles) / middle(eight, lambda r: r.cycles * formula(SCHEDULES[8]))
    lines = [verdict(f"{name}, U of 1 level / 8 levels, by the formula", published, data.work, "")]
    measures: dict[str, tuple[float, Callable[[Found], float]]] = {
        "U by operations": (data.work, lambda r: r.work),
        "core-seconds": (data.seconds, lambda r: r.seconds),
    }
    for what, (target, of) in measures.items():
        ratio = middle(one, of) / middle(eight, of)
        each = sorted(of(a) / of(b) for a, b in zip(one, eight, strict=True))
        spread = f"(one seed: {each[0]:.2f} to {each[-1]:.2f})"
        lines.append(verdict(f"{name}, {what} of 1 level / 8 levels", ratio, target, spread))
    return f"## {data.title}\n\n{markdown(rows)}", lines


def smoothing(study: Study) -> str:
    """Return Table 2: the steps on 8 levels, on circles."""
    study.make("circles", [(schedule, False, 2048) for schedule in SMOOTHING])
    rows = [["steps", "paper: cycles / U", "cycles", "U", "core-s", "ms / U", "steps in a cycle", "cycles x steps"]]
    for schedule, (cycles, u) in SMOOTHING.items():
        runs = study.found("circles", schedule)
        in_all = f"{steps(schedule) * middle(runs, lambda r: r.cycles):g}"
        rows.append([schedule, f"{cycles} / {u}", *cells(runs), str(steps(schedule)), in_all])
    return f"## Circles, 8 levels: smoothing steps\n\n{markdown(rows)}"


def depth(study: Study) -> str:
    """Return one level and 16 blocks on the coarsest level, for each depth, on circles."""
    study.make("circles", [(s, False, n) for n, schedule in DEPTHS.items() for s in (schedule, SCHEDULES[1])])
    rows = [["blocks", "L", "cycles", "U", "core-s", "ms / U", "1 level: cycles", "core-s", "1 level / L: U", "core-s"]]
    for blocks, schedule in DEPTHS.items():
        many, one = (study.found("circles", s, blocks=blocks) for s in (schedule, SCHEDULES[1]))
        alone = cells(one)
        ratios = [middle(one, of) / middle(many, of) for of in (lambda r: r.work, lambda r: r.seconds)]
        levels = str(len(numbers(schedule)))
        rows.append([str(blocks), levels, *cells(many), alone[0], alone[2], *(f"{r:.2f}" for r in ratios)])
    return f"## Circles: depth\n\n{markdown(rows)}"


def verdict(name: str, value: float, target: float, by: str) -> str:
    """Return a line that compares a figure with its target."""
    passed = target <= value < math.inf  # infinite where a run had not enough time
    return f"{'pass' if passed else 'FAIL'}  {name}: {value:.3g}, target >= {target:g} {by}"


def draw(study: Study, sets: Sequence[str], path: Path) -> None:
    """Draw validation accuracy against U and core-seconds, and against U with frozen blocks, of the first seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = (
        ("U by operations, blocks trained", work, False),
        ("core-seconds, blocks trained", seconds, False),
        ("U by operations, blocks frozen", work, True),
    )
    figure, grid = pyplot.subplots(len(sets), 3, figsize=(13, 4.1 * len(sets)), squeeze=False, sharey="row")
    for row, name in zip(grid, sets, strict=True):
        for place, (label, of, frozen) in zip(row, panels, strict=True):
            for k, (count, schedule) in enumerate(SCHEDULES.items()):
                table = study.first(name, schedule, frozen=frozen)
                x, y = of(DATA[name], table), table["accuracy_validation"]
                style = {"color": COLOURS[k], "linestyle": DASHES[k % len(DASHES)]}
                place.plot(x[1:], y[1:], linewidth=1.3, label=f"L = {count}", **style)
                place.plot(x[-1], y[-1], "o", color=COLOURS[k], markersize=7)
            place.set_xscale("log")
            place.axhline(DATA[name].accuracy, color="0.6", linewidth=0.8, zorder=0)
            place.set_xlabel(label)
            place.grid(alpha=0.25)
        row[0].set_ylabel(f"{name}: validation accuracy")
    grid[0, 0].legend(frameon=False)
    figure.suptitle("MG/OPT on residual networks of 2048 blocks, one seed; grey: the accuracy that ends a run")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Run what is asked for and is not there yet; write tables, verdicts and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder of its files; without it that data set is left out")
    parser.add_argument("--sets", nargs="+", choices=DATA, help="all that there are files for")
    parser.add_argument("--tables", nargs="+", choices=("levels", "smoothing", "depth"), help="all")
    parser.add_argument("--seeds", type=int, help="how many, of both sets; 10 of circles, 3 of MNIST otherwise")
    parser.add_argument("--output", type=Path, default=Path("mgopt"))
    given = parser.parse_args(arguments)
    sets = given.sets or [name for name in DATA if name != "mnist" or given.mnist]
    if "mnist" in sets and given.mnist is None:
        parser.error("--sets mnist needs --mnist FOLDER")
    given.output.mkdir(parents=True, exist_ok=True)
    study = Study(given.output, given.mnist and given.mnist.resolve(), given.seeds)
    wanted = given.tables or ["levels", "smoothing", "depth"]
    sections, lines = [], []
    for name in sets if "levels" in wanted else ():
        section, found = levels(study, name)
        sections.append(section)
        lines += found
    for title, table in (("smoothing", smoothing), ("depth", depth)):
        if title in wanted and "circles" in sets:
            sections.append(table(study))
    if "levels" in wanted:
        draw(study, sets, given.output / "mgopt.png")
    text = "\n\n".join([*sections, "\n".join(lines)])
    (given.output / "mgopt.md").write_text(text + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main(sys.argv[1:])
