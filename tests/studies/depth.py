"""A study of depth: residual networks whose blocks have to train, trained on one level, by nested iteration, by cycles.

    python -m tests.studies.depth [--only nested metric] [--problems disk] [--blocks 64 256 1024] [--seeds 0 1 2 3 4]

Every tree has the same core-seconds, start-up included. The table has the median core-seconds, from the first
evaluation on, over the seeds to a validation accuracy, and to a loss of 10 % and of 2 % above the least that any tree
finds for that seed; a seed that does not get there counts as infinite. Work is in gradients of the finest
level. In brackets: seeds that got there. beta is 0.01 / blocks, so that networks of any depth discretise one problem.
Accuracies are measured every 5 steps on the finest level, or after each cycle. A run that is done is not run again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.studies.runs import Job, Table, markdown, style

ENDLESS = "-snes_max_it 1000000 -snes_rtol 0 -data_test 0"
COARSEST = 16  # blocks of three levels, of which -blocks has a square number: below, the time is Python's
DENSE = 64  # blocks at most for a dense inverse
TIMES = ("to the accuracy", "to 1.1 L*", "to 1.02 L*")


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes
    ----------
    accuracy
        On the validation samples, that trees are timed to.
    """

    title: str
    options: str
    accuracy: float


PROBLEMS = {
    "disk": Training("disk without gap, width 3", "-data_set disk", 0.99),
    "spirals": Training("spirals, width 3", "-data_set spirals", 0.999),
    "long": Training("spirals, width 2, T = 20", "-data_set spirals -resnet_width 2 -resnet_final_time 20", 0.99),
    "mnist": Training(
        "MNIST, 4000 digits, width 10",
        "-data_set mnist -data_train 4000 -data_validation 2000 -resnet_width 10 -dtype float32",
        0.90,
    ),
}

M = "-fas_coarse_snes_qn_m 100 -fas_levels_snes_qn_m 100"
LEVELS = "-dm_hierarchy depth -dm_metric function -dm_levels 3 -dm_coarsening {factor}"
NESTED = f"-snes_type fas -snes_fas_type nested {LEVELS} {M} -snes_fas_smoothing [5,40,{{{{1200}}}}]"
QUICK = "-snes_fas_smoothing [5,10,{{300}}]"
CYCLES = f"{NESTED} -snes_fas_smoothing [5,10,{{{{100}}}}] -snes_fas_type"
STEPS = "-snes_type torchoptim -snes_torchoptim_lr 0.01"
EVERY = "-resnet_accuracy_interval 5"


def below(text: str) -> str:
    """Return the options of a tree for the same tree as an NPC."""
    return " ".join(f"-npc_{word[1:]}" if word.startswith("-") else word for word in text.split())


SINGLE = ("lbfgs10", "lbfgs100", "metric", "adam.001", "adam.01", "adam.1", "ssbroyden", "frozen")
PLAIN = ("plain", "plain_quick", "plain_adam")  # nested iteration that hands over the unknowns only
TREES = {
    "lbfgs10": ("L-BFGS, m = 10", f"-snes_type qn {EVERY}"),
    "lbfgs100": ("L-BFGS, m = 100", f"-snes_type qn -snes_qn_m 100 {EVERY}"),
    "metric": (
        "L-BFGS, m = 100, metric of functions",
        f"-snes_type fas {LEVELS} -dm_levels 1 -snes_fas_smoothcoarse 5 -fas_coarse_snes_qn_m 100",
    ),
    "adam.001": ("Adam, lr = 0.001", f"-snes_type torchoptim -snes_torchoptim_lr 0.001 {EVERY}"),
    "adam.01": ("Adam, lr = 0.01", f"{STEPS} {EVERY}"),
    "adam.1": ("Adam, lr = 0.1", f"-snes_type torchoptim -snes_torchoptim_lr 0.1 {EVERY}"),
    "ssbroyden": ("SS-Broyden", f"-snes_type qn -snes_qn_type ssbroyden {EVERY}"),
    "frozen": ("control: blocks frozen, L-BFGS", f"-snes_type qn -snes_qn_m 100 -resnet_freeze blocks {EVERY}"),
    "plain": ("nested iteration", f"{NESTED} -snes_fas_lift_pairs false"),
    "plain_quick": ("nested iteration, quick", f"{NESTED} {QUICK} -snes_fas_lift_pairs false"),
    "plain_adam": (
        "nested iteration, quick, Adam, lr = 0.01",
        f"{STEPS} -snes_npc_lag 1000000 {below(f'{NESTED} {QUICK} -snes_fas_lift_pairs false')} {EVERY}",
    ),
    "nested": ("nested iteration, pairs lifted", NESTED),
    "nested_quick": ("nested iteration, quick, pairs lifted", f"{NESTED} {QUICK}"),
    "linear": ("nested, quick, pairs lifted, linear", f"{NESTED} {QUICK} -dm_prolongation linear"),
    "half": (
        "nested from half the blocks, pairs lifted",
        f"{NESTED} -dm_levels 2 -dm_coarsening 2 -snes_fas_smoothing [5,{{{{400}}}}]",
    ),
    "full": ("FAS full, pairs lifted", f"{CYCLES} full"),
    "vcycle": ("FAS V", f"{CYCLES} multiplicative"),
    "ngmres": ("NGMRES + FAS full", f"-snes_type ngmres {below(f'{CYCLES} full')}"),
    "qn": ("L-BFGS + FAS full", f"-snes_type qn -snes_qn_m 100 {below(f'{CYCLES} full')}"),
    "rmtr": ("RMTR", f"-snes_type rmtr {LEVELS}"),
}


def job(tree: str, problem: str, blocks: int, seed: int, given: argparse.Namespace) -> Job:
    """Return the run of a tree."""
    text = TREES[tree][1].format(factor=math.isqrt(blocks // COARSEST))
    data = f"-data_path {given.mnist}" if problem == "mnist" else ""
    network = f"{PROBLEMS[problem].options} {data} -resnet_blocks {blocks} -resnet_beta {0.01 / blocks} -seed {seed}"
    return Job(
        "resnet", f"{problem}-{blocks}-{tree}-{seed}", f"{network} {text} {ENDLESS}", given.seconds, given.output
    )


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
    problem: str, found: dict[str, dict[int, Table]], seeds: int
) -> tuple[list[list[str]], dict[str, list[float]]]:
    """Return a row a tree, and the median times over all seeds; a run that failed counts as infinite."""
    least = {
        seed: min(float(np.nanmin(tables[seed]["objective"])) for tables in found.values() if seed in tables)
        for seed in {seed for tables in found.values() for seed in tables}
    }
    lines, medians = [], {}
    for tree, tables in found.items():
        taken = {
            c: np.array(
                [milestones(t, PROBLEMS[problem].accuracy, least[s], c) for s, t in tables.items()]
                + [[np.inf] * len(TIMES)] * (seeds - len(tables))
            )
            for c in ("cpu_seconds", "gradients_work")
        }
        medians[tree] = [float(x) for x in np.median(taken["cpu_seconds"], axis=0)]
        best = np.median([np.nanmax(t["accuracy_validation"]) for t in tables.values()])
        loss = np.median([np.nanmin(t["objective"]) / least[s] for s, t in tables.items()])
        lines.append(
            [TREES[tree][0]]
            + [cell(x) for x in taken["cpu_seconds"].T]
            + [cell(x, 0) for x in taken["gradients_work"].T]
            + [f"{best:.4f}", f"{loss:.3f}"]
        )
    return lines, medians


def verdict(medians: dict[str, list[float]]) -> str:
    """Say how the multilevel trees compare with the best that has no levels, and with plain nested iteration."""
    groups = {
        "one level": [t for t in medians if t in SINGLE and t != "frozen"],
        "plain nested iteration": [t for t in medians if t in PLAIN],
    }
    many = [t for t in medians if t not in SINGLE and t not in PLAIN]
    said = []
    for k, what in enumerate(TIMES):
        for name, trees in groups.items():
            if not many or not trees:
                continue
            (ours, us), (theirs, them) = (min((medians[t][k], t) for t in of) for of in (many, trees))
            if not np.isfinite(ours):
                said.append(f"- {what}: no tree of many levels gets there")
            elif not np.isfinite(theirs):
                said.append(f"- {what}: {TREES[us][0]} {ours:.2f} s; none of {name} gets there")
            else:
                pair = f"{TREES[us][0]} {ours:.2f} s; {TREES[them][0]}, the best of {name}, {theirs:.2f} s"
                said.append(f"- {what}: {pair}: {theirs / ours:.1f} times")
    return "\n".join(said)


def draw(everything: dict[tuple[str, int], dict[str, dict[int, Table]]], path: Path) -> None:
    """Draw the loss of each tree's first seed against core-seconds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(1, len(everything), figsize=(3 + 4.2 * len(everything), 4.8), squeeze=False)
    shown = list(dict.fromkeys(tree for found in everything.values() for tree in found))
    lines: dict[str, Any] = {}
    for place, ((problem, blocks), found) in zip(places[0], everything.items(), strict=True):
        for tree, tables in found.items():
            table, k = next(iter(tables.values())), shown.index(tree)
            (lines[tree],) = place.loglog(table["cpu_seconds"][1:], table["objective"][1:], **style(k))
        place.set_title(f"{PROBLEMS[problem].title}, {blocks} blocks", fontsize=9)
        place.set_xlabel("core-seconds")
        place.grid(alpha=0.25)
    places[0][0].set_ylabel("loss")
    labels = [TREES[tree][0] for tree in lines]
    figure.legend(list(lines.values()), labels, loc="center right", fontsize=7, frameon=False, handlelength=3.5)
    figure.tight_layout(rect=(0, 0, 1 - 2.8 / figure.get_figwidth(), 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Run what is asked for and is not there yet; write tables, verdicts and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TREES, default=list(TREES), metavar="TREE")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=["disk", "spirals", "long"])
    parser.add_argument("--blocks", nargs="+", type=int, default=[256])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, default=5.0, help="core-seconds of every run, start-up included")
    parser.add_argument("--mnist", type=Path, default=Path("mnist"), help="folder of its files")
    parser.add_argument("--output", type=Path, default=Path("depth"))
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    heads = ["tree", *(f"s {t}" for t in TIMES), *(f"work {t}" for t in TIMES), "best accuracy", "loss / L*"]
    texts: list[str] = []
    everything: dict[tuple[str, int], dict[str, dict[int, Table]]] = {}
    for problem in given.problems:
        for blocks in given.blocks:
            found: dict[str, dict[int, Table]] = {}
            for seed in given.seeds:
                for tree in [t for t in given.only if t != "ssbroyden" or blocks <= DENSE]:
                    run = job(tree, problem, blocks, seed, given)
                    fault = run.run()
                    print(f"{run.name}: {fault or 'done'}", flush=True)
                    if not fault:
                        table = run.table()
                        table["cpu_seconds"] -= table["cpu_seconds"][0]
                        found.setdefault(tree, {})[seed] = table
            lines, medians = rows(problem, found, len(given.seeds))
            title = f"{PROBLEMS[problem].title}, {blocks} blocks, to accuracy {PROBLEMS[problem].accuracy}"
            texts.append(f"## {title}\n\n{markdown([heads, *lines])}\n\n{verdict(medians)}")
            everything[problem, blocks] = found
    text = "\n\n".join(texts)
    (given.output / "depth.md").write_text(text + "\n")
    draw(everything, given.output / "depth.png")
    print("\n" + text)


if __name__ == "__main__":
    main(sys.argv[1:])
