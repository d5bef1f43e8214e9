"""A study of solver trees: Burgers 8 x 20 on 10,000 points, one tree a row, error against path evaluations.

    python -m tests.studies.trees [--only qn ngmres] [--seeds 0 1 2] [--measure work] [--output trees]

Every tree starts from the same network and points and stops after so many path evaluations, or core-seconds. A path
evaluation is a loss with its gradient, what subdomains do side by side counted once; a loss alone counts as a third, a
Hessian action, exact or Gauss-Newton, as two. An evaluation on a few points is a whole one on the path: trees with
levels are compared by `--measure work`, where it is its share, and runs end by core-seconds alone. The table has the
relative L2 error at several counts, and what it took to 4.6e-4, the published accuracy of L-BFGS (SIAM J. Sci. Comput.
46, 2024), with the gradients among it on the path, in total and in work. Core-seconds include the error after each
outer iteration. A run that is done is not run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ml2hpc.log.work import MEASURES
from tests.studies.runs import OPTIONS, Job, Table, markdown, style

TARGET = 4.6e-4
ENDLESS = "-snes_max_it 1000000 -snes_rtol 0 -snes_stol 0 -pinn_error_interval 1"

MSPQN = "-npc_snes_type nasm -npc_snes_nasm_type multiplicative -npc_dm_subdomains 2 -npc_sub_snes_max_it 20"
ASPQN = "-npc_snes_type nasm -npc_dm_subdomains 8 -npc_sub_snes_max_it 10"
SSB = "-snes_qn_type ssbroyden"
LOCAL = "-npc_sub_snes_type qn -npc_sub_snes_qn_type ssbroyden"
TWO = "-dm_hierarchy samples -dm_levels 2 -dm_coarsening 4 -snes_fas_smoothing [2,{10}] -snes_fas_nested_steps 250"
THREE = "-dm_hierarchy samples -dm_levels 3 -dm_coarsening 4 -snes_fas_smoothing [2,5,{20}] -snes_fas_share"
OF_SSB = " ".join(f"-fas_{k}_snes_type qn -fas_{k}_snes_qn_type ssbroyden" for k in ("coarse", "levels"))
FAS = f"-snes_type fas -snes_fas_type full {OF_SSB}"
IN_FRONT = " ".join(f"-npc_{word[1:]}" if word[0] == "-" else word for word in f"{FAS} {TWO} -snes_fas_share".split())
TREES = {
    "adam": ("Adam", f"-options_file {OPTIONS / 'adam.opts'}"),
    "nrichardson": ("Richardson, wolfe", "-snes_type nrichardson -snes_linesearch_type wolfe"),
    "ncg": ("NCG, prp", "-snes_type ncg"),
    "anderson": ("Anderson", "-snes_type anderson"),
    "ngmres": ("NGMRES", "-snes_type ngmres"),
    "ngs": ("Gauss-Seidel by layers", "-snes_type ngs"),
    "lbfgs": ("L-BFGS, m = 100", "-snes_type qn -snes_qn_m 100"),
    "ssbroyden": ("SS-Broyden", f"-snes_type qn {SSB}"),
    "gn": ("Levenberg-Marquardt, CG", "-snes_type gn -snes_gn_linear cg"),
    "newtonls": ("Newton, line search", f"-options_file {OPTIONS / 'newtonls.opts'}"),
    "newtontr": ("Newton, trust region", "-snes_type newtontr"),
    "lsr1": ("L-SR1, trust region", "-snes_type newtontr -snes_tr_qn lsr1"),
    "sr1": ("SR1, trust region", "-snes_type newtontr -snes_tr_qn sr1"),
    "aspin": ("ASPIN", f"-options_file {OPTIONS / 'aspin.opts'}"),
    "aspqn": ("ASPQN: L-BFGS + nasm 8", f"-snes_type qn {ASPQN} {LOCAL}"),
    "mspqn": ("MSPQN: L-BFGS + nasm 2", f"-snes_type qn {MSPQN} {LOCAL}"),
    "mspqn_ssb": ("SS-Broyden + multiplicative nasm 2", f"-snes_type qn {SSB} {MSPQN} {LOCAL}"),
    "mspqn_gn": ("MSPQN, Gauss-Newton inside", f"-options_file {OPTIONS / 'mspqn_gn.opts'}"),
    "ngmres_aspqn": ("NGMRES + nasm 8", f"-snes_type ngmres {ASPQN} {LOCAL}"),
    "ngmres_mspqn": ("NGMRES + multiplicative nasm 2", f"-snes_type ngmres {MSPQN} {LOCAL}"),
    "anderson_mspqn": ("Anderson + multiplicative nasm 2", f"-snes_type anderson {MSPQN} {LOCAL}"),
    "ngmres_ssb": (
        "NGMRES + SS-Broyden",
        "-snes_type ngmres -npc_snes_type qn -npc_snes_qn_type ssbroyden -npc_snes_max_it 10",
    ),
    "newtontr_mspqn": (
        "SR1 trust region + multiplicative nasm 2",
        f"-snes_type newtontr -snes_tr_qn sr1 {MSPQN} {LOCAL}",
    ),
    "composite": (
        "SS-Broyden + composite of nasm 8 and SS-Broyden",
        (
            f"-snes_type qn {SSB} -npc_snes_type composite -npc_snes_composite_sneses nasm,qn "
            "-npc_sub_0_dm_subdomains 8 -npc_sub_0_sub_snes_type qn -npc_sub_0_sub_snes_qn_type ssbroyden "
            "-npc_sub_0_sub_snes_max_it 10 -npc_sub_1_snes_qn_type ssbroyden -npc_sub_1_snes_max_it 10"
        ),
    ),
    "fas": ("FAS in points, a matrix on each level", f"{FAS} {TWO}"),
    "fas_share": ("FAS in points, one matrix", f"-options_file {OPTIONS / 'pinn_fas.opts'}"),
    "fas_three": ("FAS in points, one matrix, three levels", f"{FAS} {THREE}"),
    "fas_nested": ("nested iteration in points, then SS-Broyden", f"-options_file {OPTIONS / 'pinn_nested.opts'}"),
    "fas_npc": ("SS-Broyden + FAS in points, one matrix", f"-snes_type qn {SSB} -snes_qn_share {IN_FRONT}"),
    "ngmres_fas": ("NGMRES + FAS in points, one matrix", f"-snes_type ngmres {IN_FRONT}"),
    "two_level": ("two-level Schwarz", f"-options_file {OPTIONS / 'two_level.opts'}"),
    "mp_lbfgs": ("MP-LBFGS", f"-options_file {OPTIONS / 'mp_lbfgs.opts'}"),
}


def job(tree: str, seed: int, evaluations: int | None, seconds: float, folder: Path) -> Job:
    """Return the run of a tree, which ends after so many path evaluations, by its time alone if None."""
    options = f"{TREES[tree][1]} {ENDLESS} -seed {seed} -snes_max_funcs {evaluations or 10**9}"
    return Job("pinn", f"{tree}-{seed}-{evaluations or 'time'}", options, seconds, folder)


def history(run: Job, measure: str) -> Table:
    """Return its history with the column `evaluations`."""
    table = run.table()
    gradients, hessians, objectives = (table[f"{what}_{measure}"] for what in ("gradients", "hessians", "objectives"))
    table["evaluations"] = gradients + 2 * hessians + objectives / 3
    return table


def row(title: str, seed: int, table: Table, counts: Sequence[int], target: float) -> list[str]:
    """Return the cells of a tree: error at each count, then what it took to the target."""
    evaluations, error = table["evaluations"], table["error"]
    cells = [title, str(seed)]
    for count in counts:
        within = np.flatnonzero(evaluations <= count)
        reached = evaluations[-1] >= 0.9 * count
        cells.append(f"{error[within[-1]]:.1e}" if len(within) and reached else "-")
    above = np.flatnonzero(error > target)
    first = int(above[-1]) + 1 if len(above) else 0
    found = first < len(error)
    if found:
        gradients = " / ".join(f"{table[f'gradients_{measure}'][first]:.0f}" for measure in MEASURES)
        cells += [f"{evaluations[first]:.0f}", gradients, f"{table['cpu_seconds'][first]:.1f}"]
    else:
        cells += ["-"] * 3
    return [*cells, f"{np.nanmin(error):.1e}", f"{table['objective'][-1]:.1e}", f"{table['cpu_seconds'][-1]:.0f}"]


def draw(tables: dict[str, Table], measure: str, path: Path) -> None:
    """Draw the error of every tree's first seed against evaluations and core-seconds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(1, 2, figsize=(13, 6.5), sharey=True)
    axes = (("evaluations", f"evaluations by {measure}, a Hessian action counts 2"), ("cpu_seconds", "core-seconds"))
    for place, (name, label) in zip(places, axes, strict=True):
        for k, (tree, table) in enumerate(tables.items()):
            place.loglog(table[name][1:], table["error"][1:], label=TREES[tree][0], **style(k))
        place.axhline(TARGET, color="0.6", linewidth=0.8, zorder=0)
        place.set_xlabel(label)
        place.grid(alpha=0.25)
    places[0].set_ylabel("relative $L_2$ error")
    figure.suptitle("Burgers, 8 x 20; grey: 4.6e-4, published for L-BFGS")
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="center left", bbox_to_anchor=(0.75, 0.5), frameon=False, fontsize=8, handlelength=3.5
    )
    figure.tight_layout(rect=(0, 0, 0.75, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Run what is asked for and is not there yet; write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TREES, default=list(TREES), metavar="TREE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--evaluations", type=int, default=2000, help="path evaluations of every run")
    parser.add_argument("--measure", choices=("path", "work"), default="path", help="what is counted in the table")
    parser.add_argument("--target", type=float, default=TARGET, help="relative error whose costs are told")
    parser.add_argument("--seconds", type=float, default=60.0, help="core-seconds that it may take at most")
    parser.add_argument("--output", type=Path, default=Path("trees"))
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    by_path = given.measure == "path"
    counts = [given.evaluations >> k for k in (4, 3, 2, 1, 0)]
    heads = [
        "tree",
        "seed",
        *(f"at {count}" for count in counts),
        f"to {given.target:.1e}".replace("e-0", "e-"),
        " / ".join(MEASURES),
        "core-s",
        "best error",
        "loss",
        "in all",
    ]
    rows: list[list[str]] = []
    first: dict[str, Table] = {}
    for tree in given.only:
        for seed in given.seeds:
            run = job(tree, seed, given.evaluations if by_path else None, given.seconds, given.output)
            fault = run.run()
            print(f"{TREES[tree][0]}, seed {seed}: {fault or 'done'}", flush=True)
            if not fault:
                table = history(run, given.measure)
                rows.append(row(TREES[tree][0], seed, table, counts, given.target))
                first.setdefault(tree, table)
    text = markdown([heads, *rows])
    (given.output / "trees.md").write_text(text + "\n")
    draw(first, given.measure, given.output / "trees.png")
    print("\n" + text)


if __name__ == "__main__":
    main(sys.argv[1:])
