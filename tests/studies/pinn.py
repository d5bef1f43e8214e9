"""A study of methods: error against evaluations, core-seconds, reductions and bytes, on the published problems.

    python -m tests.studies.pinn [--problems burgers klein_gordon] [--only ssb mspqn] [--seeds 0 1 2] [--seconds 150]
    python -m tests.studies.pinn --reductions 4      Burgers on 4 ranks: how often ASPQN synchronises

Every run of a problem gets the same processor time, start-up included, on one thread and with the same engine (RAD on
Burgers gets more, to see how far it goes); on several ranks the limit is wall-clock time. Figures count processor time
from the first option read, that for the errors included, and reductions without those for the errors. A run that is
done is kept in the output folder and not run again; a stopped study goes on where it was. Table (study.md) and one
figure per problem show all runs that were asked for.

"To e" is where the relative L2 error first stays below e. Evaluations: path counts subdomains that run side by side
once, total counts each, work weights each by its share of the operations of a whole evaluation. Published figures: SIAM
J. Sci. Comput. 46 (2024), where L-BFGS, ASPQN and MSPQN took the minutes given on one, 6 or 8, and one GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from tests.studies.runs import OPTIONS, Job, Table, markdown, style

FINE = 1e-6  # what is asked for beyond the published accuracy
FINE_SECONDS = 150.0  # and within how many core-seconds
AXES = {
    "gradients_path": "gradient evaluations, critical path",
    "gradients_total": "gradient evaluations, total",
    "gradients_work": "gradient evaluations, by operations",
    "core_seconds": "core-seconds",
    "reductions": "reductions",
    "bytes": "bytes received",
}


@dataclass(frozen=True)
class Problem:
    """An equation and its network; `target` is the published relative L2 error."""

    title: str
    depth: int
    width: int
    target: float
    published: str  # minutes to the target
    local_steps: int  # of the published Schwarz methods
    multiplicative: int  # subdomains of MSPQN with carried matrices, by experiment
    steps: int  # their local steps
    seconds: float
    seeds: tuple[int, ...]


PROBLEMS = {
    "burgers": Problem(
        "Burgers", 8, 20, 4.6e-4, "L-BFGS 558.5, ASPQN 14.4 (8 GPUs), MSPQN 40.7", 50, 2, 20, 40, (0, 1, 2)
    ),
    "klein_gordon": Problem(
        "Klein-Gordon", 6, 50, 6.1e-4, "L-BFGS 236.5, ASPQN 6.8 (6 GPUs), MSPQN 26.9", 50, 2, 10, 50, (0, 1, 2)
    ),
    "diffusion_advection": Problem(
        "Diffusion-advection", 10, 50, 1e-2, "L-BFGS stagnates, ASPQN and MSPQN end near 1e-2", 10, 3, 10, 50, (0,)
    ),
    "allen_cahn": Problem(
        "Allen-Cahn", 6, 64, 6.0e-4, "L-BFGS 1001.6, ASPQN 79.2 (6 GPUs), MSPQN 117.5", 50, 3, 10, 50, (0,)
    ),
}


@dataclass(frozen=True)
class Method:
    """A solver tree. In its options, {S} is a subdomain per hidden layer, {M} few, {k} and {j} local steps.

    `seconds` is given where the budget of the problem is too short to show what it is for.
    """

    title: str
    options: str
    schwarz: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()  # where it can be run at all; everywhere if empty


QN = "-snes_type qn -snes_max_it 1000000 -snes_max_funcs 100000000 "
NPC = QN + "-npc_snes_type nasm -pinn_error_interval 1 "
RAD = " -pinn_resample rad -pinn_resample_interval "
LEVELS = f"-options_file {OPTIONS}/{{}}.opts -snes_max_it 1000000 -snes_max_funcs 100000000 -pinn_error_interval 1"
SSB = "-npc_sub_snes_type qn -npc_sub_snes_qn_type ssbroyden "
GN = "-npc_sub_snes_type gn -npc_sub_snes_max_it 2 "
PUBLISHED = (
    " -snes_max_it 1000000 -snes_max_funcs 100000000 -pinn_error_interval 1 -npc_dm_subdomains {S} "
    "-npc_sub_snes_max_it {k}"
)
METHODS = {
    "adam": Method("Adam", f"-options_file {OPTIONS / 'adam.opts'} -snes_max_it 1000000 -snes_max_funcs 100000000"),
    "lbfgs3": Method("L-BFGS, m = 3", QN + "-snes_qn_m 3"),
    "lbfgs10": Method("L-BFGS, m = 10", QN + "-snes_qn_m 10"),
    "lbfgs100": Method("L-BFGS, m = 100", QN + "-snes_qn_m 100"),
    "ssb": Method("SS-Broyden", QN + "-snes_qn_type ssbroyden"),
    "ssb_rad": Method(
        "SS-Broyden, RAD", QN + "-snes_qn_type ssbroyden" + RAD + "500", seconds={"burgers": FINE_SECONDS}
    ),
    "ssb_blocks": Method("SS-Broyden by layers", QN + "-snes_qn_type ssbroyden -snes_qn_blocks layers"),
    "nested": Method("nested iteration in points, SS-Broyden", LEVELS.format("pinn_nested")),
    "fas": Method("FAS in points, SS-Broyden", LEVELS.format("pinn_fas")),
    "lm": Method(  # one matrix of the other networks takes the whole budget
        "Levenberg-Marquardt",
        "-snes_type gn -snes_max_it 1000000 -pinn_error_interval 1",
        problems=("burgers",),
    ),
    "lm_cg": Method(
        "Levenberg-Marquardt, CG", "-snes_type gn -snes_gn_linear cg -snes_max_it 1000000 -pinn_error_interval 1"
    ),
    "mspqn_published": Method(
        "MSPQN, published", f"-options_file {OPTIONS / 'mspqn_published.opts'}" + PUBLISHED, schwarz=True
    ),
    "aspqn_published": Method(
        "ASPQN, published", f"-options_file {OPTIONS / 'aspqn_published.opts'}" + PUBLISHED, schwarz=True
    ),
    "mspqn_ssb": Method(
        "MSPQN, SS-Broyden",
        NPC + "-npc_snes_nasm_type multiplicative -npc_dm_subdomains {M} -npc_sub_snes_max_it {j} " + SSB,
        schwarz=True,
    ),
    "mspqn_ssb_rad": Method(
        "MSPQN, SS-Broyden, RAD",
        NPC + "-npc_snes_nasm_type multiplicative -npc_dm_subdomains {M} -npc_sub_snes_max_it {j} " + SSB + RAD + "20",
        schwarz=True,
    ),
    "mspqn_fas": Method("MSPQN, FAS in points inside", LEVELS.format("mspqn_fas"), schwarz=True),
    "mspqn_gn": Method(
        "MSPQN, Gauss-Newton",
        NPC + "-npc_snes_nasm_type multiplicative -npc_dm_subdomains {S} " + GN,
        schwarz=True,
    ),
    "aspqn_ssb": Method(
        "ASPQN, SS-Broyden", NPC + "-npc_dm_subdomains {S} -npc_sub_snes_max_it 10 " + SSB, schwarz=True
    ),
    "aspqn_long": Method(
        "ASPQN, SS-Broyden, 20 steps", NPC + "-npc_dm_subdomains {S} -npc_sub_snes_max_it 20 " + SSB, schwarz=True
    ),
    "aspqn_gn": Method("ASPQN, Gauss-Newton", NPC + "-npc_dm_subdomains {S} " + GN, schwarz=True),
}


# Runs. ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A method on a problem."""

    problem: str
    method: str
    seed: int
    seconds: float
    ranks: int
    folder: Path

    def job(self) -> Job:
        """Return its run."""
        p = PROBLEMS[self.problem]
        tree = METHODS[self.method].options.format(S=p.depth, M=p.multiplicative, j=p.steps, k=p.local_steps)
        options = f"-pinn_problem {self.problem} -net_depth {p.depth} -net_width {p.width} -seed {self.seed} {tree}"
        name = f"{self.problem}-{self.method}-{self.seed}-{self.ranks}"
        return Job("pinn", name, f"{options} -snes_rtol 0", self.seconds, self.folder, self.ranks)


def load(job: Job) -> Table | None:
    """Return the rows of a finished run that have an error, with its core-seconds, None if there are none."""
    if not job.result.exists():
        return None
    table = job.table()
    # The clock is rank 0's; the ranks share all points evenly.
    table["core_seconds"] = table["cpu_seconds"] * job.ranks
    known = np.isfinite(table["error"])
    if not known.any():
        return None
    table = {name: column[known] for name, column in table.items()}
    table["reductions_all"] = table["reductions"]
    if job.ranks > 1:  # each error took one
        table["reductions"] = table["reductions"] - np.arange(1, len(table["error"]) + 1)
    return table


def reached(table: Table, error: float) -> dict[str, float] | None:
    """Return the row where the error first stays below, None where it does not."""
    above = np.flatnonzero(table["error"] > error)
    first = int(above[-1]) + 1 if len(above) else 0
    return {name: float(column[first]) for name, column in table.items()} if first < len(table["error"]) else None


# Results. -------------------------------------------------------------------------------------------------------------


HEADS = ("path / total / work", "core-s", "reductions", "MB")


def short(error: float) -> str:
    """Return an error in few characters."""
    return f"{error:.1e}".replace("e-0", "e-").replace(".0e", "e")


def cells(table: Table, error: float) -> list[str]:
    """Return what it took to an error, one cell per column of HEADS."""
    row = reached(table, error)
    if row is None:
        return ["-"] * len(HEADS)
    counts = " / ".join(f"{row[name]:.0f}" for name in list(AXES)[:3])
    return [counts, f"{row['core_seconds']:.1f}", f"{row['reductions']:.0f}", f"{row['bytes'] / 1e6:.1f}"]


def section(problem: str, runs: dict[tuple[str, int], Table]) -> str:
    """Return the table of a problem."""
    p = PROBLEMS[problem]
    wanted = [(short(e), h) for e in (p.target, FINE) for h in HEADS]
    heads = ["method", "seed", *(f"to {e}: {h}" if h == HEADS[0] else h for e, h in wanted), "best error", "loss"]
    rows = [heads]
    for (method, seed), table in runs.items():
        figures = [*cells(table, p.target), *cells(table, FINE)]
        last = [f"{table['error'].min():.1e}", f"{table['objective'][-1]:.1e}"]
        rows.append([METHODS[method].title, str(seed), *figures, *last])
    title = f"{p.title}, {p.depth} x {p.width}. Published minutes to {short(p.target)}: {p.published}"
    return f"## {title}\n\n{markdown(rows)}"


def draw(problem: str, runs: dict[tuple[str, int], Table], path: Path) -> None:
    """Draw error against each measure of work, one line per method; further seeds are thin."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    axes = {name: label for name, label in AXES.items() if any((t[name] > 0).any() for t in runs.values())}
    columns = 2 if len(axes) <= 4 else 3
    figure, grid = pyplot.subplots(2, columns, figsize=(4.6 * columns, 9.5), sharey=True, squeeze=False)
    methods = list(dict.fromkeys(method for method, _ in runs))
    for place, (name, label) in zip(grid.ravel(), axes.items(), strict=False):
        shown = set()
        for (method, seed), table in runs.items():
            k = list(METHODS).index(method)
            seen = table[name] > 0
            first = method not in shown
            shown.add(method)
            place.loglog(
                table[name][seen],
                table["error"][seen],
                linewidth=1.6 if first else 0.6,
                label=METHODS[method].title if first else f"_seed {seed}",
                **style(k),
            )
        for error in (PROBLEMS[problem].target, FINE):
            place.axhline(error, color="0.6", linewidth=0.8, zorder=0)
        place.set_xlim(left=max(t[name].max() for t in runs.values()) / 2000)
        place.set_xlabel(label)
        place.grid(alpha=0.25)
    for left in grid[:, 0]:
        left.set_ylabel("relative $L_2$ error")
    for empty in grid.ravel()[len(axes) :]:
        empty.set_visible(False)
    p = PROBLEMS[problem]
    figure.suptitle(f"{p.title}, {p.depth} x {p.width}; grey: {short(p.target)} (published) and {short(FINE)}")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    rows = -(-len(methods) // 3)
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, handlelength=3.5)
    figure.tight_layout(rect=(0, 0.012 + 0.021 * rows, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def fastest(runs: dict[tuple[str, int], Table], methods: Iterable[str], error: float) -> tuple[float, str]:
    """Return the least median core-seconds over the seeds that some method takes to an error, and that method."""
    found = [(float("inf"), "none")]
    for method in methods:
        rows = [reached(table, error) for (name, _), table in runs.items() if name == method]
        seconds = median([float("inf") if row is None else row["core_seconds"] for row in rows] or [float("inf")])
        if seconds < float("inf"):
            found.append((seconds, METHODS[method].title))
    return min(found)


def verdict(name: str, value: float, target: float, *, least: bool = False, by: str = "") -> str:
    """Return a line that compares a figure with its target."""
    passed = value >= target if least else value <= target
    return f"{'pass' if passed else 'FAIL'}  {name}: {value:.3g}, target {'>=' if least else '<='} {target:g} {by}"


def targets(runs: dict[str, dict[tuple[str, int], Table]]) -> list[str]:
    """Return the verdicts on what has been run."""
    lines = []
    if burgers := runs.get("burgers"):
        for error, limit in ((PROBLEMS["burgers"].target, 12.0), (FINE, FINE_SECONDS)):
            value, by = fastest(burgers, METHODS, error)
            lines.append(verdict(f"Burgers, core-seconds to {short(error)}", value, limit, by=f"({by})"))
    if klein_gordon := runs.get("klein_gordon"):
        error = PROBLEMS["klein_gordon"].target
        schwarz, by = fastest(klein_gordon, [m for m in METHODS if METHODS[m].schwarz], error)
        alone = [m for m in METHODS if not METHODS[m].schwarz and m not in ("fas", "nested")]
        single, other = fastest(klein_gordon, alone, error)
        lines.append(verdict(f"Klein-Gordon, core-seconds to {short(error)} by Schwarz", schwarz, 45.0, by=f"({by})"))
        if max(schwarz, single) < float("inf"):
            against = f"({by} against {other})"
            lines.append(verdict("Klein-Gordon, single level / Schwarz", single / schwarz, 1.4, least=True, by=against))
    return lines


def reductions(ranks: int, seconds: float, seed: int, folder: Path) -> str:
    """Run ASPQN and self-scaled Broyden on several ranks; return the verdict on their reductions.

    ASPQN's error is measured in every outer iteration, so its count depends most on whether those are left out: both.
    """
    error, found = PROBLEMS["burgers"].target, {}
    for method in ("ssb", "aspqn_ssb", "aspqn_long"):
        job = Trial("burgers", method, seed, seconds, ranks, folder).job()
        problem = job.run()
        table = load(job)
        row = None if table is None else reached(table, error)
        what = f"{METHODS[method].title}, {ranks} ranks, seed {seed}"
        if row is None:
            print(f"{what}: {problem or f'did not reach {short(error)}'}", flush=True)
            continue
        found[method] = row
        print(f"{what}: " + ", ".join(f"{row[a]:.0f} {a}" for a in AXES), flush=True)
    lines = []
    for method in set(found) - {"ssb"} if "ssb" in found else ():
        for count, what in (("reductions", "without the errors' own"), ("reductions_all", "with the errors' own")):
            ratio = found["ssb"][count] / found[method][count]
            name = f"Burgers, reductions to {short(error)}, {what}, SS-Broyden / {METHODS[method].title}"
            lines.append(verdict(name, ratio, 4.0, least=True))
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Run what is asked for and is not there yet; write table and figures of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, help="of every problem; three for the first two otherwise")
    parser.add_argument("--seconds", type=float, help="core-seconds of every run, in place of the problem's own")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--reductions", type=int, metavar="RANKS", help="only count reductions, on so many ranks")
    parser.add_argument("--output", type=Path, default=Path("study"))
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    if given.reductions:
        for seed in given.seeds or PROBLEMS["burgers"].seeds:
            print(reductions(given.reductions, given.seconds or FINE_SECONDS, seed, given.output))
        return
    every: dict[str, dict[tuple[str, int], Table]] = {}
    for problem in given.problems:
        p, runs = PROBLEMS[problem], {}
        for method in given.only:
            if METHODS[method].problems and problem not in METHODS[method].problems:
                continue
            seconds = given.seconds or METHODS[method].seconds.get(problem, p.seconds)
            for seed in given.seeds or p.seeds:
                job = Trial(problem, method, seed, seconds, given.ranks, given.output).job()
                fault = job.run()
                table = load(job)
                best = "no error known" if table is None else f"best error {table['error'].min():.1e}"
                print(f"{problem}, {METHODS[method].title}, seed {seed}: {fault or best}", flush=True)
                if table is not None:
                    runs[method, seed] = table
        if runs:
            every[problem] = runs
            draw(problem, runs, given.output / f"{problem}.png")
    text = "\n\n".join([*(section(problem, runs) for problem, runs in every.items()), "\n".join(targets(every))])
    (given.output / "study.md").write_text(text + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main(sys.argv[1:])
