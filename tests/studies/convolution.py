"""A study without a learning rate: recursive trust regions on convolutional networks beside tuned SGD and Adam.

    python -m tests.studies.convolution [--sets digits mnist] [--mnist FOLDER] [--seeds 0 1 2] [--output convolution]

RMTR makes cycles on growing mini-batches, on levels with fewer blocks or fewer samples, or on one level only, or cycles
on all samples. Every run of a set gets the same core-seconds, start-up included, on one thread; all together take 15
minutes. SGD (momentum 0.9) and Adam run with each learning rate of a grid on the first seed, and with the best one, by
validation accuracy and then by L, on the others. Their mini-batches are those that RMTR starts with. L and the
accuracies are found after each epoch of RMTR, which costs as much as several of SGD's, and after every 8 epochs of SGD
and Adam: with each, about a sixth of the time.

Work counts evaluations of L with its gradient, those on a mini-batch or a coarse level by their share. MNIST comes from
the folder of its binary files, $ML2HPC_DATA/mnist unless given; there 1000 images are trained on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from tests.studies.runs import COLOURS, DASHES, OPTIONS, Job, Table, markdown

BATCH = 64
EPOCHS = 8  # of SGD and Adam between two evaluations of L and the accuracies


@dataclass(frozen=True)
class Set:
    """Images, of which `train` are trained on; `target` is a validation accuracy, core-seconds are a run's."""

    title: str
    options: str
    train: int
    target: float
    seconds: float


SETS = {
    "digits": Set("digits, 8 x 8", "-data_train 1078", 1078, 0.93, 12.0),
    "mnist": Set(
        "MNIST, 28 x 28",
        "-data_set mnist -data_train 1000 -data_validation 500 -data_test 500 -resnet_blocks 4 -resnet_final_time 4",
        1000,
        0.8,
        24.0,
    ),
}


@dataclass(frozen=True)
class Method:
    """A solver tree; {rate} in its options is one of `rates`, {steps} the number of steps of `EPOCHS` epochs."""

    title: str
    options: str
    rates: tuple[float, ...] = ()


RMTR = f"-options_file {OPTIONS / 'resnet_rmtr_images.opts'}"
SAMPLED = f"-snes_type torchoptim -snes_torchoptim_batch {BATCH} -snes_torchoptim_steps {{steps}}"
METHODS = {
    "depth": Method("RMTR in depth", RMTR),
    "whole": Method("RMTR in depth, all samples", f"{RMTR} -snes_rmtr_batch 0"),
    "samples": Method("RMTR in samples", f"{RMTR} -dm_hierarchy samples -dm_metric euclidean"),
    "level": Method("RMTR of one level", f"{RMTR} -dm_levels 1"),
    "sgd": Method(
        "SGD",
        f"{SAMPLED} -snes_torchoptim_name SGD -snes_torchoptim_arguments '{{{{momentum: 0.9}}}}' "
        "-snes_torchoptim_lr {rate}",
        (0.01, 0.03, 0.1, 0.3),
    ),
    "adam": Method(
        "Adam", f"{SAMPLED} -snes_torchoptim_name Adam -snes_torchoptim_lr {{rate}}", (0.001, 0.003, 0.01, 0.03)
    ),
}


@dataclass(frozen=True)
class Study:
    """Where files are, and how runs are made."""

    folder: Path
    mnist: str
    seconds: float | None  # of every run, instead of the set's

    def job(self, of: str, kind: str, seed: int, rate: float) -> Job:
        """Return the run of a method on a set."""
        images, method = SETS[of], METHODS[kind]
        steps = EPOCHS * -(-images.train // BATCH)
        path = f"-data_path {self.mnist}" if of == "mnist" else ""
        options = (
            f"-options_file {OPTIONS / 'resnet_images.opts'} {method.options.format(rate=rate, steps=steps)} "
            f"{images.options} {path} -seed {seed} -snes_max_it 1000000 -snes_rtol 0 -snes_max_funcs 1000000000"
        )
        name = f"{of}-{kind}-{rate:g}-{seed}" if method.rates else f"{of}-{kind}-{seed}"
        return Job("resnet", name, options, self.seconds or images.seconds, self.folder)

    def table(self, of: str, kind: str, seed: int, rate: float = 0.0) -> Table:
        """Return the history of a run, which is made if it is not there."""
        run = self.job(of, kind, seed, rate)
        fault = run.run()
        print(f"{run.name}: {fault or 'done'}", flush=True)
        if fault:
            raise SystemExit(f"{run.name} failed: {fault}")
        return run.table()

    def best(self, of: str, kind: str, seed: int) -> tuple[float, dict[float, Table]]:
        """Return the best learning rate on a seed, and the runs with all."""
        found = {rate: self.table(of, kind, seed, rate) for rate in METHODS[kind].rates}
        return max(found, key=lambda rate: (accuracy(found[rate]), -found[rate]["objective"][-1])), found


# Figures of a run. ----------------------------------------------------------------------------------------------------


def accuracy(table: Table, within: float = float("inf")) -> float:
    """Return the last validation accuracy within so many core-seconds."""
    known = np.flatnonzero(np.isfinite(table["accuracy_validation"]) & (table["cpu_seconds"] <= within))
    return float(table["accuracy_validation"][known[-1]]) if len(known) else float("nan")


def loss(table: Table, within: float) -> float:
    """Return the last L within so many core-seconds."""
    known = np.flatnonzero(table["cpu_seconds"] <= within)
    return float(table["objective"][known[-1]]) if len(known) else float("nan")


def reached(table: Table, target: float, column: str) -> float:
    """Return what a column shows where the validation accuracy first reaches a target; infinity if it does not."""
    there = np.flatnonzero(table["accuracy_validation"] >= target)
    return float(table[column][there[0]]) if len(there) else float("inf")


def rises(table: Table) -> int:
    """Return how many iterations raised L."""
    return int((np.diff(table["objective"]) > 0).sum())


def row(title: str, seed: int, table: Table, target: float, seconds: float) -> list[str]:
    """Return the cells of a run."""
    cells = [title, str(seed)]
    for share in (0.25, 0.5, 1.0):
        cells.append(f"{accuracy(table, share * seconds):.3f} / {loss(table, share * seconds):.3f}")
    needed = [reached(table, target, column) for column in ("cpu_seconds", "gradients_work")]
    cells += [f"{needed[0]:.1f}" if np.isfinite(needed[0]) else "-", f"{needed[1]:.0f}" if needed[1] < np.inf else "-"]
    return [*cells, f"{table['gradients_work'][-1]:.0f}", str(rises(table))]


# The study of a set. --------------------------------------------------------------------------------------------------


def runs(study: Study, of: str, seeds: Sequence[int]) -> dict[str, tuple[str, list[Table], list[Table]]]:
    """Return title and tables of each method, one a seed, and those of all learning rates on the first seed."""
    found: dict[str, tuple[str, list[Table], list[Table]]] = {}
    for kind, method in METHODS.items():
        if not method.rates:
            found[kind] = method.title, [study.table(of, kind, seed) for seed in seeds], []
            continue
        rate, tried = study.best(of, kind, seeds[0])
        rest = [study.table(of, kind, seed, rate) for seed in seeds[1:]]
        found[kind] = f"{method.title}, rate {rate:g}", [tried[rate], *rest], list(tried.values())
    return found


def verdicts(of: str, found: dict[str, tuple[str, list[Table], list[Table]]]) -> list[str]:
    """Return what the runs of a set say."""
    target, trusted = SETS[of].target, [kind for kind in found if not METHODS[kind].rates]
    tables = [table for kind in trusted for table in found[kind][1]]
    lines = [
        f"{of}: L of RMTR rose in {sum(map(rises, tables))} of {sum(len(t['objective']) - 1 for t in tables)} epochs"
    ]
    best = max(trusted, key=lambda kind: median(map(accuracy, found[kind][1])))
    name, ours, _ = found[best]
    mine = median(map(accuracy, ours))
    for kind, (title, tables, tried) in found.items():
        if kind == best:
            continue
        theirs = median(map(accuracy, tables))
        word = "above" if mine > theirs else "below" if mine < theirs else "equal to"
        times = [median(reached(t, target, "cpu_seconds") for t in group) for group in (ours, tables)]
        ratio = f"{times[0] / times[1]:.2f}" if np.isfinite(times).all() else f"{times[0]:.1f} s / {times[1]:.1f} s"
        lines.append(
            f"{of}: the median validation accuracy of {name}, {mine:.3f}, is {word} that of {title}, {theirs:.3f}; "
            f"core-seconds to {target:g}: {ratio}"
        )
        if tried:
            ends = sorted(map(accuracy, tried))
            beaten = sum(end < accuracy(ours[0]) for end in ends)
            lines.append(
                f"{of}: rates tried for {title.partition(',')[0]} end between {ends[0]:.3f} and {ends[-1]:.3f}, "
                f"{beaten} of {len(ends)} below {name} on that seed, which has none to try"
            )
    return lines


def draw(of: str, found: dict[str, tuple[str, list[Table], list[Table]]], path: Path) -> None:
    """Draw validation accuracy and L of all seeds against core-seconds and work."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(2, 2, figsize=(12, 8), sharex="col", sharey="row")
    axes = (("cpu_seconds", "core-seconds"), ("gradients_work", "evaluations of L with gradient, by share"))
    for column, (name, label) in enumerate(axes):
        for k, (title, tables, _) in enumerate(found.values()):
            for seed, table in enumerate(tables):
                style = {"color": COLOURS[k], "linestyle": DASHES[seed % len(DASHES)]}
                known = np.isfinite(table["accuracy_validation"])
                places[0][column].plot(
                    table[name][known],
                    table["accuracy_validation"][known],
                    label="" if seed else title,
                    **style,
                )
                places[1][column].semilogy(table[name], table["objective"], **style)
        places[1][column].set_xlabel(label)
    places[0][0].set_ylabel("validation accuracy")
    places[1][0].set_ylabel("L")
    for place in places.flat:
        place.grid(alpha=0.25)
    places[0][1].legend(frameon=False, loc="lower right")
    figure.suptitle(f"{SETS[of].title}, convolutional residual network")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Run what is asked for and is not there yet; write tables, verdicts and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--mnist", type=Path, default=Path(os.environ.get("ML2HPC_DATA", "data")) / "mnist")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, help="core-seconds of every run, for a trial")
    parser.add_argument("--output", type=Path, default=Path("convolution"))
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    study = Study(given.output, str(given.mnist), given.seconds)
    shares = [f"at {share:.0%}: accuracy / L" for share in (0.25, 0.5, 1.0)]
    text = []
    for of in given.sets:
        images, found = SETS[of], runs(study, of, given.seeds)
        seconds = study.seconds or images.seconds
        heads = ["method", "seed", *shares, f"core-s to {images.target:g}", "work to it", "work", "rises"]
        rows = [
            row(title, seed, table, images.target, seconds)
            for title, tables, _ in found.values()
            for seed, table in zip(given.seeds, tables, strict=True)
        ]
        text += [f"{images.title}, {seconds:g} core-seconds a run", "", markdown([heads, *rows]), ""]
        text += [*verdicts(of, found), ""]
        draw(of, found, given.output / f"{of}.png")
    (given.output / "convolution.md").write_text("\n".join(text))
    print("\n" + "\n".join(text))


if __name__ == "__main__":
    main(sys.argv[1:])
