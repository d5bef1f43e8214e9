"""A study of depth: residual networks whose blocks have to train, trained on one level, by nested iteration, by cycles.

    python -m tests.studies.depth [--only nested metric] [--problems disk] [--blocks 64 256 1024] [--seeds 0 1 2 3 4]

Trees with numbers to choose, learning rates, batches, levels or steps on them, are tried with all that are listed on
seeds of their own, nested iterations of quasi-Newton solvers with the same ones, and measured on the others with what
was best there: the least mean time to the validation accuracy, twice the time given where it is not reached (PAR2);
where none reaches it, the best accuracy. What has taken more on some of those seeds than the best on all is not run on
the others.

Which tree of a kind the verdict compares is chosen there, too. Numbers are chosen for the accuracy; the columns of
losses say what is found on the way.

Every tree has the same core-seconds, start-up included. The table has the median core-seconds, from the first
evaluation on and without those that accuracies take, over the seeds to a validation accuracy, and to a loss of 10 % and
of 2 % above the least that any tree finds for that seed; a seed that does not get there counts as infinite. Work is in
gradients of the finest level. In brackets: seeds that got there. beta is such that networks of any depth discretise one
problem. Accuracies are measured every 5 steps on the finest level, or after each cycle. A run that is done is not run
again.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.studies.runs import Job, Table, markdown, style

ENDLESS = "-snes_max_it 1000000 -snes_rtol 0 -data_test 0"
TIMES = ("to the accuracy", "to 1.1 L*", "to 1.02 L*")


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes
    ----------
    accuracy
        On the validation samples, that trees are timed to.
    beta
        Of a penalty that is an integral; of a sum it is divided by the number of blocks.
    seconds
        Of a run.
    """

    title: str
    options: str
    accuracy: float
    beta: float
    seconds: float
    penalty: Literal["sum", "integral"] = "sum"


PROBLEMS = {
    "disk": Training("disk without gap, width 3", "-data_set disk", 0.99, 0.01, 9.0),
    "spirals": Training("spirals, width 3", "-data_set spirals", 0.999, 0.01, 9.0),
    "turns": Training(
        "spirals of 3 turns, width 3, T = 5, 8000 samples",
        "-data_set spirals -data_turns 3 -resnet_final_time 5 -data_train 8000 -data_validation 4000",
        0.99,
        0.003,
        16.0,
    ),
    "long": Training(
        "spirals, width 2, T = 20", "-data_set spirals -resnet_width 2 -resnet_final_time 20", 0.99, 0.01, 9.0
    ),
    "mnist": Training(
        "MNIST, 6000 digits, width 20",
        "-data_set mnist -data_train 6000 -data_validation 2000 -resnet_width 20 -dtype float32",
        0.92,  # with frozen blocks 0.918 at best
        1e-3,
        20.0,
        "integral",
    ),
}

Cost = tuple[float, float]
"""Sum of the times to the accuracy, and minus that of the best accuracies."""

Group = Literal["control", "one level", "plain nested iteration", "levels"]


@dataclass(frozen=True)
class Tree:
    """A solver tree.

    Attributes
    ----------
    options
        {coarsening} is the factor between three levels, the coarsest of 16 blocks.
    tried
        Options that are added, one after the other; of several the best are taken.
    """

    title: str
    group: Group
    options: str
    tried: tuple[str, ...] = ("",)


def rates(*values: float) -> tuple[str, ...]:
    """Return learning rates to try."""
    return tuple(f"-snes_torchoptim_lr {rate:g}" for rate in values)


EVERY = "-resnet_accuracy_interval 5"
FUNCTION = "-dm_metric function -fas_coarse_snes_qn_m 100 -fas_levels_snes_qn_m 100"
NESTED = f"-snes_type fas -snes_fas_type nested {FUNCTION}"
BROYDEN = "-fas_coarse_snes_qn_type ssbroyden"
BOTH = "-dm_hierarchy samples,depth"
ADAM = "-snes_type torchoptim"
ON_LEVELS = "-fas_coarse_snes_type torchoptim -fas_levels_snes_type torchoptim -snes_fas_type nested -snes_type fas"
LEVELS = tuple(f"-dm_levels 3 -dm_coarsening {{coarsening{blocks}}}" for blocks in (16, 64))


def steps(fine: int, middle: int, coarse: int) -> str:
    """Return how many steps nested iteration makes on three levels."""
    return f"-snes_fas_smoothing [{fine},{middle},{{{{{coarse}}}}}]"


SHORT = tuple(steps(1, max(2, k // 10), k) for k in (800, 400, 200, 100, 50, 25))
STEPS = (*(steps(2, k // 5, k) for k in (400, 200, 100, 50)), *SHORT)
SCHEDULES = tuple(" ".join(pair) for pair in product(LEVELS, STEPS))
OF_ADAM = tuple(
    f"{levels} {made} -fas_coarse_snes_torchoptim_lr {rate} -fas_levels_snes_torchoptim_lr {rate}"
    for levels, made, rate in product(LEVELS, (steps(2, 200, 1000), steps(2, 40, 200)), (0.01, 0.03))
)
# A step on batches is an epoch.
BATCHES = "-fas_coarse_snes_torchoptim_batch 64"
EPOCHS = tuple(
    f"{levels} {made} -fas_coarse_snes_torchoptim_lr {rate}"
    for levels, made, rate in product(LEVELS, (steps(1, 20, 30), steps(1, 10, 10), steps(1, 5, 3)), (0.003, 0.01))
)
OF_BATCHES = tuple(
    f"{levels} {made} -fas_coarse_snes_torchoptim_lr {rate} -fas_levels_snes_torchoptim_lr {rate}"
    for levels, made, rate in product(LEVELS, (steps(1, 3, 30), steps(1, 1, 10), steps(1, 1, 3)), (0.003, 0.01))
)
CYCLES = f"{NESTED} {BROYDEN} {BOTH} -snes_fas_type full -snes_fas_nested_steps 200"
TREES = {
    "frozen": Tree("blocks frozen, L-BFGS", "control", f"-snes_type qn -snes_qn_m 100 -resnet_freeze blocks {EVERY}"),
    "adam": Tree("Adam", "one level", f"{ADAM} {EVERY}", rates(0.001, 0.003, 0.01, 0.03, 0.1)),
    "adam_batches": Tree(
        "Adam, batches of 64",
        "one level",
        f"{ADAM} -snes_torchoptim_batch 64 -resnet_accuracy_interval 1",
        rates(0.0003, 0.001, 0.003, 0.01),
    ),
    "lbfgs": Tree("L-BFGS, m = 100", "one level", f"-snes_type qn -snes_qn_m 100 {EVERY}"),
    "metric": Tree(
        "L-BFGS, metric of functions",
        "one level",
        "-snes_type fas -dm_levels 1 -dm_metric function -snes_fas_smoothcoarse 5",
        ("-fas_coarse_snes_qn_m 10", "-fas_coarse_snes_qn_m 100"),
    ),
    "ssbroyden": Tree(
        "SS-Broyden, metric of functions",
        "one level",
        f"-snes_type fas -dm_levels 1 -dm_metric function -snes_fas_smoothcoarse 5 {BROYDEN}",
    ),
    "plain": Tree("nested iteration, L-BFGS", "plain nested iteration", f"{NESTED} -snes_fas_lift false", SCHEDULES),
    "plain_adam": Tree("nested iteration, Adam", "plain nested iteration", ON_LEVELS, OF_ADAM),
    "plain_batches": Tree(
        "nested iteration, Adam, batches of 64",
        "plain nested iteration",
        f"{ON_LEVELS} {BATCHES} -fas_levels_snes_torchoptim_batch 64",
        OF_BATCHES,
    ),
    "batches": Tree(
        "nested, Adam on batches of 64 on the coarsest level, then L-BFGS",
        "levels",
        f"{NESTED} -fas_coarse_snes_type torchoptim {BATCHES}",
        EPOCHS,
    ),
    "pairs": Tree("nested, L-BFGS, pairs lifted", "levels", NESTED, SCHEDULES),
    "inverse": Tree("nested, SS-Broyden, its inverse lifted", "levels", f"{NESTED} {BROYDEN}", SCHEDULES),
    "both_plain": Tree(
        "nested in depth and samples, L-BFGS",
        "plain nested iteration",
        f"{NESTED} {BOTH} -snes_fas_lift false",
        SCHEDULES,
    ),
    "both_pairs": Tree("nested in depth and samples, L-BFGS, pairs lifted", "levels", f"{NESTED} {BOTH}", SCHEDULES),
    "both": Tree(
        "nested in depth and samples, SS-Broyden, its inverse lifted", "levels", f"{NESTED} {BOTH} {BROYDEN}", SCHEDULES
    ),
    "both_kept": Tree(
        "nested in depth and samples, SS-Broyden, nothing lifted",
        "levels",
        f"{NESTED} {BOTH} {BROYDEN} -snes_fas_lift false",
        SCHEDULES,
    ),
    "full": Tree(
        "the last but one with 200 steps on each level, then V-cycles",
        "levels",
        CYCLES,
        tuple(f"{of} -snes_fas_smoothing [2,5,{{{{10}}}}]" for of in LEVELS),
    ),
    "rmtr": Tree("RMTR", "levels", "-snes_type rmtr -dm_metric function", LEVELS),
}


@dataclass(frozen=True)
class Study:
    """Where files are, and what runs are given."""

    folder: Path
    mnist: Path
    seconds: float | None  # of every run, instead of the problem's
    tuning: Sequence[int]  # seeds

    def budget(self, problem: str) -> float:
        """Return the core-seconds of a run."""
        return self.seconds or PROBLEMS[problem].seconds

    def table(self, tree: str, added: str, problem: str, blocks: int, seed: int) -> Table | None:
        """Return the history of a run, which is made if it is not there; None if it failed."""
        training = PROBLEMS[problem]
        text = f"{TREES[tree].options} {added}".format(**coarsenings(blocks))
        data = f"-data_path {self.mnist}" if problem == "mnist" else ""
        beta = training.beta / (blocks if training.penalty == "sum" else 1)
        network = f"{training.options} {data} -resnet_penalty {training.penalty} -resnet_beta {beta}"
        network += f" -resnet_blocks {blocks} -seed {seed}"
        name = f"{problem}-{blocks}-{tree}-{zlib.crc32(f'{training} {text}'.encode()):08x}-{seed}"
        if seed in self.tuning:
            network += f" -resnet_stop_accuracy {training.accuracy}"
            name += "-tuning"
        run = Job("resnet", name, f"{network} {text} {ENDLESS}", self.budget(problem), self.folder)
        fault = run.run()
        print(f"{run.name}: {fault or 'done'}", flush=True)
        if fault:
            return None
        whole = run.table()
        inside = whole["cpu_seconds"] <= self.budget(problem)  # what is there may have had more; start-up aside
        table = {column: values[inside] for column, values in whole.items()}
        table["cpu_seconds"] -= table["cpu_seconds"][0] + np.cumsum(table["measuring"]) - table["measuring"][0]
        return table

    def best(self, tree: str, problem: str, blocks: int) -> tuple[str, Cost]:
        """Return the options that a tree is fastest with on the seeds for tuning, and what it costs there."""
        # Three levels of 16 or more blocks.
        tried = [t for t in TREES[tree].tried if not ("coarsening64" in t and blocks < 256)]
        best, least = tried[0], (np.inf, 0.0)
        for added in tried:
            cost = self._cost(tree, added, problem, blocks, least[0])
            if cost < least:
                best, least = added, cost
        return best, least

    def _cost(self, tree: str, added: str, problem: str, blocks: int, limit: float) -> Cost:
        """Return what options cost, or a part of it that is above the limit."""
        accuracy, late = PROBLEMS[problem].accuracy, 2 * self.budget(problem)
        total = best = 0.0
        for seed in self.tuning:
            table = self.table(tree, added, problem, blocks, seed)
            if table is None:
                total += late
            else:
                total += min(first(table, "cpu_seconds", table["accuracy_validation"] >= accuracy), late)
                best += float(np.nanmax(table["accuracy_validation"]))
            if total > limit:
                break
        return total, -best


def coarsenings(blocks: int) -> dict[str, int]:
    """Return the factors from three levels to the next, by the coarsest of 16 or 64 blocks."""
    return {f"coarsening{coarsest}": math.isqrt(blocks // coarsest) for coarsest in (16, 64)}


def first(table: Table, column: str, reached: np.ndarray) -> float:
    """Return a column where something is reached for the first time, else infinity."""
    found = np.flatnonzero(reached)
    return float(table[column][found[0]]) if len(found) else np.inf


def milestones(table: Table, accuracy: float, least: float, column: str) -> list[float]:
    """Return what it took to the accuracy and to both losses."""
    loss = table["objective"]
    reached = [table["accuracy_validation"] >= accuracy, loss <= 1.1 * least, loss <= 1.02 * least]
    return [first(table, column, there) for there in reached]


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Return the median over the seeds, and how many are finite."""
    median, there = float(np.median(values)), int(np.isfinite(values).sum())
    return f"{median:.{digits}f} ({there})" if np.isfinite(median) else f"- ({there})"


def rows(
    problem: str, blocks: int, found: dict[str, dict[int, Table]], chosen: dict[str, str], seeds: int
) -> tuple[list[list[str]], dict[str, float]]:
    """Return a row a tree, and the median times to the accuracy; a run that failed counts as infinite.

    The control has no part in the least loss: it minimises another one.
    """
    trained = {tree: tables for tree, tables in found.items() if TREES[tree].group != "control"}
    least = {
        seed: min(float(np.nanmin(tables[seed]["objective"])) for tables in trained.values() if seed in tables)
        for seed in {seed for tables in trained.values() for seed in tables}
    }
    lines, medians = [], {}
    for tree, tables in found.items():
        taken = {
            c: np.array(
                [milestones(t, PROBLEMS[problem].accuracy, least.get(s, -np.inf), c) for s, t in tables.items()]
                + [[np.inf] * len(TIMES)] * (seeds - len(tables))
            )
            for c in ("cpu_seconds", "gradients_work")
        }
        medians[tree] = float(np.median(taken["cpu_seconds"][:, 0]))
        best, loss = (
            np.median(values) if values else np.nan
            for values in (
                [np.nanmax(t["accuracy_validation"]) for t in tables.values()],
                [np.nanmin(t["objective"]) / least.get(s, np.nan) for s, t in tables.items()],
            )
        )
        lines.append(
            [TREES[tree].title]
            + [cell(x) for x in taken["cpu_seconds"].T]
            + [cell(x, 0) for x in taken["gradients_work"].T]
            + [f"{best:.4f}", f"{loss:.3f}", chosen[tree].format(**coarsenings(blocks))]
        )
    return lines, medians


def verdict(medians: dict[str, float], costs: dict[str, Cost]) -> str:
    """Say how the tree with levels that tuning prefers compares with those that it prefers of other kinds."""

    def preferred(group: Group) -> str | None:
        return min((tree for tree in medians if TREES[tree].group == group), key=lambda tree: costs[tree], default=None)

    ours = preferred("levels")
    others: tuple[Group, Group] = ("one level", "plain nested iteration")
    said = []
    for group in others:
        theirs = preferred(group)
        if ours is None or theirs is None:
            continue
        us, them = (f"{TREES[tree].title} {medians[tree]:.2f} s" for tree in (ours, theirs))
        both = np.isfinite(medians[ours]) and np.isfinite(medians[theirs])
        ratio = f": {medians[theirs] / medians[ours]:.1f} times" if both else ""
        said.append(f"- to the accuracy: {us}; {them}, preferred of {group}{ratio}")
    return "\n".join(said)


def draw(everything: dict[tuple[str, int], dict[str, dict[int, Table]]], path: Path) -> None:
    """Draw the loss of each tree's first seed against core-seconds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    size = (4.4 + 4.2 * len(everything), 4.8)
    figure, places = pyplot.subplots(1, len(everything), figsize=size, squeeze=False, layout="constrained")
    shown = list(dict.fromkeys(tree for found in everything.values() for tree in found))
    lines: dict[str, Any] = {}
    for place, ((problem, blocks), found) in zip(places[0], everything.items(), strict=True):
        for tree, tables in found.items():
            if not tables:
                continue
            table, k = next(iter(tables.values())), shown.index(tree)
            (lines[tree],) = place.loglog(table["cpu_seconds"][1:], table["objective"][1:], **style(k))
        place.set_title(f"{PROBLEMS[problem].title}, {blocks} blocks", fontsize=9)
        place.set_xlabel("core-seconds")
        place.grid(alpha=0.25)
    places[0][0].set_ylabel("loss")
    labels = [TREES[tree].title for tree in lines]
    figure.legend(list(lines.values()), labels, loc="outside right center", fontsize=7, frameon=False, handlelength=3.5)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Run what is asked for and is not there yet; write tables, verdicts and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TREES, default=list(TREES), metavar="TREE")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=["disk", "spirals", "turns"])
    parser.add_argument("--blocks", nargs="+", type=int, default=[1024])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--tuning", nargs="+", type=int, default=[5, 6, 7], help="other seeds, to choose numbers on")
    parser.add_argument("--seconds", type=float, help="core-seconds of every run, start-up included")
    parser.add_argument("--mnist", type=Path, default=Path("mnist"), help="folder of its files")
    parser.add_argument("--output", type=Path, default=Path("depth"))
    given = parser.parse_args(arguments)
    if set(given.seeds) & set(given.tuning):
        parser.error("--seeds and --tuning: a seed that numbers are chosen on measures nothing")
    if any(16 * math.isqrt(blocks // 16) ** 2 != blocks for blocks in given.blocks):
        parser.error("--blocks: 16 times a square, such as 64, 256, 1024")
    given.output.mkdir(parents=True, exist_ok=True)
    study = Study(given.output, given.mnist, given.seconds, given.tuning)
    heads = ["tree", *(f"s {t}" for t in TIMES), *(f"work {t}" for t in TIMES), "best accuracy", "loss / L*", "chosen"]
    texts: list[str] = []
    everything: dict[tuple[str, int], dict[str, dict[int, Table]]] = {}
    for problem in given.problems:
        for blocks in given.blocks:
            # For images a matrix of SS-Broyden has 5e8 numbers even on 16 blocks.
            trees = [tree for tree in given.only if problem != "mnist" or "ssbroyden" not in TREES[tree].options]
            best = {tree: study.best(tree, problem, blocks) for tree in trees}
            chosen = {tree: added for tree, (added, _) in best.items()}
            found: dict[str, dict[int, Table]] = {tree: {} for tree in trees}
            for seed in given.seeds:
                for tree, added in chosen.items():
                    table = study.table(tree, added, problem, blocks, seed)
                    if table is not None:
                        found[tree][seed] = table
            lines, medians = rows(problem, blocks, found, chosen, len(given.seeds))
            title = f"{PROBLEMS[problem].title}, {blocks} blocks, to accuracy {PROBLEMS[problem].accuracy}"
            said = verdict(medians, {tree: cost for tree, (_, cost) in best.items()})
            texts.append(f"## {title}\n\n{markdown([heads, *lines])}\n\n{said}")
            everything[problem, blocks] = found
    text = "\n\n".join(texts)
    (given.output / "depth.md").write_text(text + "\n")
    draw(everything, given.output / "depth.png")
    print("\n" + text)


if __name__ == "__main__":
    main(sys.argv[1:])
