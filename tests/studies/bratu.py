"""A study of every solver type against PETSc on the Bratu problem: the same options, gradient norms side by side.

    python -m tests.studies.bratu [--grid 17] [--only ncg qn ...] [--iterations 20] [--output bratu]

A row is a tree. It runs once here and once as a SNES of PETSc on a DMDA, which has the objective, the residual and the
assembled Jacobian in numpy and cuts its own subdomains. The norm is |grad L| at every iterate, whatever a solver
monitors, down to 1e-8 of the start. Rows that are declared equal must agree in it to 1e-6 at every iteration, else the
exit status is 1; the others say what differs and why. Symmetric iterates have few modes on small grids: mixing over
longer windows is rounding there, so that iterations have to be few.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.options import Database
from ml2hpc.problem.energies import Bratu
from ml2hpc.problem.grid import GridProblem
from ml2hpc.snes import SNES, Point, Reason, create
from ml2hpc.vec.petsc import load
from tests.studies.runs import markdown

LAMBDA = 6.0
AGREE = 1e-6  # relative difference of gradient norms
FLOOR = 1e-8  # of the first norm: below it L, which searches compare, is rounding
Array = NDArray[np.float64]
Damping = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """A tree, as ml2hpc and as PETSc read it.

    Attributes
    ----------
    differs
        Why the histories are not the same; empty for a row that is declared equal.
    """

    tree: str
    ours: str
    petsc: str
    differs: str = ""
    lift: float = 0.0  # a constant added to L, which is negative here


STEP = "-{p}snes_linesearch_type none -{p}snes_linesearch_damping 0.2"  # Hessians here have no eigenvalue above 8
RICHARDSON = f"-npc_snes_type nrichardson {STEP.format(p='npc_')}"
RIGHT, LEFT = f"-snes_npc_side right {RICHARDSON}", f"-snes_npc_side left {RICHARDSON}"
FULL = "-{p}snes_linesearch_type none"
HALVING = "-snes_linesearch_type bt -snes_linesearch_order 1"
TIGHT = "-ksp_rtol 1e-12 -ksp_max_it 1000"
GMRES = "-ksp_type gmres -ksp_gmres_restart 400"
UNPRECONDITIONED = "-pc_type none"  # PETSc's default is ILU(0)
# PETSc factors local matrices; here conjugate gradients solve as exactly.
LOCAL = "-{p}sub_snes_type newtonls -{p}sub_ksp_type cg -{p}sub_ksp_rtol 1e-13 -{p}sub_snes_ksp_ew 0"
BOXES = "-{p}dm_decomposition boxes -{p}dm_subdomains 4 -{p}dm_overlap 1"
DMDA = "-da_local_subdomains 4 -da_overlap 1"
POSITIVE = 7.5  # L + 7.5 > 0 on any grid


def both(tree: str, options: str, differs: str = "", *, ours: str = "", petsc: str = "") -> Row:
    """Return a row of common options, and some that only one side has."""
    return Row(tree, f"{options} {ours}".rstrip(), f"{options} {petsc}".rstrip(), differs)


def newton() -> list[Row]:
    """Return the rows of Newton's methods."""
    ls = "-snes_type newtonls -snes_linesearch_type bt"
    exact = f"{ls} -snes_ksp_ew 0 {GMRES} {TIGHT}"
    forced = f"{ls} -snes_ksp_ew 1 -snes_ksp_ew_version 2 {GMRES}"
    tr, inner = "-snes_type newtontr", "-snes_tr_cg_rtol 1e-12 -snes_tr_cg_max_it 1000"
    stcg, lu = f"-ksp_type stcg {TIGHT} {UNPRECONDITIONED}", "-ksp_type preonly -pc_type lu"
    fixed = "-snes_tr_eta3 1e9"  # PETSc's radius grows only where a Krylov method met it, which has no whole step then
    unjudged = "PETSc takes the preconditioner's step as it is; here it is cut at the radius and judged by the ratio"
    scaled = "PETSc scales Newton's step into the box; here the model is minimised in the box"
    return [
        both("newtonls, gmres, bt", exact, petsc=UNPRECONDITIONED),
        both("newtonls, cg, bt", f"{ls} -snes_ksp_ew 0 -ksp_type cg {TIGHT}", petsc=UNPRECONDITIONED),
        both("newtonls, Eisenstat-Walker", forced, petsc=UNPRECONDITIONED),
        both("newtonls, right nrichardson", f"{exact} {RIGHT}", petsc=UNPRECONDITIONED),
        both("newtontr", tr, ours=inner, petsc=stcg),
        both("newtontr, cauchy", f"{tr} -snes_tr_fallback_type cauchy", ours=inner, petsc=stcg),
        both("newtontr, dogleg, fixed radius", f"{tr} -snes_tr_fallback_type dogleg {fixed}", ours=inner, petsc=lu),
        both("newtontr, box", f"{tr} -snes_tr_norm_type infinity", scaled, ours=inner, petsc=stcg),
        both("newtontr, right nrichardson", f"{tr} {RIGHT}", unjudged, ours=inner, petsc=stcg),
    ]


def descent() -> list[Row]:
    """Return the rows of first-order methods."""
    sign = "PETSc's bt takes the slope of an objective with the wrong sign: it lets L rise and interpolates with it"
    hestenes = "PETSc's beta has the opposite sign: the directions are not conjugate"
    numerator = "PETSc's numerator is <F, F>, right for linear systems only; here it is <g, y>"
    searches = {
        "none": (STEP.format(p=""), ""),
        "secant": ("-snes_linesearch_type secant", ""),
        "cp": ("-snes_linesearch_type cp", ""),
        "bt, halving": (HALVING, ""),
        "bt, cubic": ("-snes_linesearch_type bt", sign),
    }
    ncg, cp, longer = "-snes_type ncg", "-snes_linesearch_type cp", "-snes_linesearch_maxlambda 10"
    halves = "-snes_linesearch_type bisection -snes_linesearch_ltol 1e-13 -snes_linesearch_rtol 1e-12"
    return [
        *(both(f"nrichardson, {k}", f"-snes_type nrichardson {o}", why) for k, (o, why) in searches.items()),
        both("nrichardson, cp, left nrichardson", f"-snes_type nrichardson {cp} {LEFT} {longer}"),
        *(both(f"ncg, {k}, cp", f"{ncg} -snes_ncg_type {k} {cp}") for k in ("prp", "fr", "dy", "cd")),
        both("ncg, hs, cp", f"{ncg} -snes_ncg_type hs {cp}", hestenes),
        both("ncg, secant", f"{ncg} -snes_linesearch_type secant"),
        both("ncg, cp of order 3", f"{ncg} {cp} -snes_linesearch_order 3 -snes_linesearch_max_it 3"),
        both("ncg, bisection", f"{ncg} {halves}", petsc="-snes_linesearch_atol 0"),
        both("ncg, ncglinear", f"{ncg} -snes_linesearch_type ncglinear", numerator),
        both("ncg, cp, left nrichardson", f"{ncg} {cp} {LEFT} {longer}"),
    ]


def secants() -> list[Row]:
    """Return the rows of quasi-Newton methods."""
    qn = "-snes_type qn -snes_qn_type lbfgs -snes_qn_m 10 -snes_qn_restart_type {restart} -snes_qn_scale_type {scale}"
    periodic = qn.format(restart="periodic", scale="scalar").replace("_m 10", "_m 4")
    scalar, plain = (qn.format(restart="none", scale=kind) for kind in ("scalar", "none"))
    cp = "-snes_linesearch_type cp"
    length = "before the first pair a search that measures no curvature starts here at a unit step in the 1-norm"
    restarts = "PETSc restarts an iteration later than the test asks for, and keeps a scaling"
    spans = "PETSc's pairs span the preconditioner's step and its own; here they are of the step alone, as published"
    return [
        both("qn, scalar, cp", f"{scalar} {cp}"),
        both("qn, scalar, secant", f"{scalar} -snes_linesearch_type secant"),
        both("qn, none, cp", f"{plain} {cp}"),
        both("qn, none, bt", f"{plain} {HALVING}"),
        both("qn, scalar, bt", f"{scalar} {HALVING}", length),
        both("qn, powell", f"{qn.format(restart='powell', scale='scalar')} {cp} -snes_qn_powell_gamma 0.2", restarts),
        both("qn, periodic", f"{periodic} {cp}", restarts, ours="-snes_qn_restart 4"),
        both("qn, left nrichardson", f"{scalar} {cp} {LEFT}"),
        both("qn, right nrichardson", f"{scalar} {cp} {RIGHT}", spans),
    ]


def mixing() -> list[Row]:
    """Return the rows of Anderson mixing and NGMRES."""
    anderson, ngmres = "-snes_type anderson -snes_anderson_m 30", f"-snes_type ngmres {RIGHT}"
    every = "-snes_{t}_restart_type periodic -snes_{t}_restart 4"
    uphill = "PETSc goes uphill; here the search damps a mixed step that raises L"
    negative = "PETSc's L_A < 2 L_min never holds where L < 0; here both factors count from L, whatever its sign"
    none = f"{ngmres} -snes_ngmres_select_type none"
    difference = both("ngmres, difference", f"{ngmres} -snes_ngmres_select_type difference", negative)
    return [
        both("anderson, beta 0.1", f"{anderson} -snes_anderson_beta 0.1"),
        both("anderson, beta 1", anderson, uphill),
        both("anderson, right nrichardson", f"{anderson} {RIGHT}"),
        both("anderson, periodic, right nrichardson", f"{anderson} {every.format(t='anderson')} {RIGHT}"),
        both("ngmres, none", none),
        both("ngmres, none, candidates", f"{none} -snes_ngmres_candidate 1"),
        both("ngmres, none, periodic", f"{none} {every.format(t='ngmres')}"),
        both("ngmres, linesearch", f"{ngmres} -snes_ngmres_select_type linesearch"),
        difference,
        replace(difference, tree="ngmres, difference, L > 0", differs="", lift=POSITIVE),
    ]


def schwarz(
    tree: str, kind: str, differs: str = "", *, p: str = "", around: str = "", damping: Damping = (1, 1)
) -> Row:
    """Return a row with nonlinear Schwarz at prefix p, with the dampings here and in PETSc."""
    # Full steps: in the rounding of L PETSc's searches stall.
    inside = f"{FULL.format(p=p + 'sub_')} -{p}sub_snes_rtol 1e-12 -{p}sub_snes_stol 0 -{p}sub_snes_max_it 8"
    common = f"{around} -{p}snes_type nasm -{p}snes_nasm_type {kind} {inside}".strip()
    here = f"-{p}snes_nasm_damping {damping[0]} {FULL.format(p=p)} {BOXES.format(p=p)} {LOCAL.format(p=p)}"
    return both(tree, common, differs, ours=here, petsc=f"-{p}snes_nasm_damping {damping[1]} {DMDA}")


def decomposed() -> list[Row]:
    """Return the rows of nonlinear Schwarz and of composites."""
    overlaps = "equal while L is a number, and no longer: without damping the sum counts overlaps twice and diverges"
    exact = "PETSc takes J and the local J_s at M(x); here the derivative of x - M(x) is exact"
    residuals = "PETSc minimises the norm of the linearised residual, here L on the span"
    aspin = f"-snes_ksp_ew 0 -npc_snes_nasm_type basic {BOXES.format(p='npc_')} {LOCAL.format(p='npc_')}"
    ngmres = "-snes_type ngmres -snes_npc_side right"
    nasm = schwarz("ngmres, right nasm, L > 0", "restrict", p="npc_", around=ngmres)
    members = "-snes_type composite -snes_composite_sneses nrichardson,newtonls -sub_1_snes_linesearch_type bt"
    members += f" {STEP.format(p='sub_0_')} -sub_1_snes_ksp_ew 0 {f'{GMRES} {TIGHT}'.replace('-ksp', '-sub_1_ksp')}"
    composite = f"{members} -snes_composite_type"
    other = f"-sub_1{UNPRECONDITIONED.replace('-', '_')}"
    half = f"{composite} additive -snes_composite_damping 0.5,0.5"
    return [
        schwarz("nasm, restrict", "restrict"),
        schwarz("nasm, basic", "basic", overlaps),
        schwarz("nasm, basic, 0.5 in both", "basic", "PETSc damps twice, here once", damping=(0.5, 0.5)),
        schwarz("nasm, basic, 0.25 and 0.5", "basic", damping=(0.25, 0.5)),
        replace(nasm, lift=POSITIVE),
        both("aspin", "-snes_type aspin -ksp_rtol 1e-12 -ksp_max_it 1000", exact, ours=aspin, petsc=DMDA),
        both("composite, additive", half, ours=FULL.format(p=""), petsc=other),
        both("composite, multiplicative", f"{composite} multiplicative", petsc=other),
        both("composite, additiveoptimal", f"{composite} additiveoptimal", residuals, petsc=other),
    ]


FAMILIES = {
    "Newton": newton(),
    "first order": descent(),
    "quasi-Newton": secants(),
    "mixing": mixing(),
    "Schwarz and composites": decomposed(),
}
ROWS = [row for rows in FAMILIES.values() for row in rows]


# ---- the two sides ---------------------------------------------------------------------------------------------------


class Lifted(GridProblem):
    """The Bratu problem with a constant added to L."""

    lift = 0.0

    def objective(self, x: Tensor) -> float:
        return super().objective(x) + self.lift

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        f, g = super().value_and_gradient(x)
        return f + self.lift, g


class Grid:
    """The Bratu problem on n x n nodes of the unit square, in numpy: what PETSc calls back.

    A vector belongs to a DMDA, the whole one's or a subdomain's; what is around a subdomain comes with its ghost
    values, which PETSc froze. Rows of nodes are lines of constant y.
    """

    def __init__(self, n: int, lift: float) -> None:
        self.n, self.lift = n, lift
        self.area = 1.0 / (n - 1) ** 2
        self.edge = np.ones((n, n), dtype=bool)
        self.edge[1:-1, 1:-1] = False

    @staticmethod
    def places(corners: Any) -> tuple[slice, slice]:
        """Return the part of an array of all nodes that corners and sizes name."""
        (x, y), (columns, rows) = corners
        return slice(max(y, 0), y + rows), slice(max(x, 0), x + columns)

    def whole(self, da: Any, x: Any) -> Array:
        """Return an array of all nodes with those that the DMDA knows, ghost values included, else 0."""
        local = da.getLocalVec()
        da.globalToLocal(x, local)
        (x0, y0), (columns, rows) = da.getGhostCorners()
        known = local.getArray(readonly=True).reshape(rows, columns)[max(-y0, 0) :, max(-x0, 0) :]
        u = np.zeros((self.n, self.n))
        part = u[self.places(da.getGhostCorners())]
        part[:] = known[: part.shape[0], : part.shape[1]]
        da.restoreLocalVec(local)
        return u

    def objective(self, snes: Any, x: Any) -> float:
        """Return L up to a constant."""
        u = self.whole(snes.getDM(), x)
        v = np.where(self.edge, 0.0, u)
        squares = 0.5 * ((v[:, 1:] - v[:, :-1]) ** 2).sum() + 0.5 * ((v[1:] - v[:-1]) ** 2).sum()
        source = LAMBDA * self.area * np.exp(v[1:-1, 1:-1]).sum()
        return float(self.lift + squares - source + 2.0 * (u[self.edge] ** 2).sum())

    def residual(self, u: Array) -> Array:
        """Return the gradient of L, shape (n, n)."""
        v, r = np.where(self.edge, 0.0, u), 4.0 * u
        r[1:-1, 1:-1] -= v[1:-1, 2:] + v[1:-1, :-2] + v[2:, 1:-1] + v[:-2, 1:-1]
        r[1:-1, 1:-1] -= LAMBDA * self.area * np.exp(v[1:-1, 1:-1])
        return r

    def function(self, snes: Any, x: Any, f: Any) -> None:
        """Set f to the residual of the DMDA's nodes."""
        da = snes.getDM()
        f.setArray(self.residual(self.whole(da, x))[self.places(da.getCorners())].ravel())

    def jacobian(self, snes: Any, x: Any, hessian: Any, preconditioner: Any) -> None:
        """Assemble the Jacobian of the DMDA's nodes."""
        da = snes.getDM()
        places = self.places(da.getCorners())
        u = self.whole(da, x)[places]
        inside = ~self.edge[places]
        number = np.arange(u.size, dtype=np.int32).reshape(u.shape)
        rows, columns = [number.ravel()], [number.ravel()]
        values = [(4.0 - LAMBDA * self.area * np.where(inside, np.exp(u), 0.0)).ravel()]
        for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
            coupled = inside[a] & inside[b]
            rows += [number[a][coupled], number[b][coupled]]
            columns += [number[b][coupled], number[a][coupled]]
            values += [np.full(2 * int(coupled.sum()), -1.0)]
        preconditioner.setPreallocationCOO(np.concatenate(rows), np.concatenate(columns))
        preconditioner.setValuesCOO(np.concatenate(values))
        preconditioner.assemble()
        hessian.assemble()  # where PETSc differences it: takes the iterate


@dataclass(frozen=True)
class History:
    """Gradient norms by iteration, and why the solve ended."""

    norms: list[float]
    reason: str


def bratu(n: int, lift: float = 0.0) -> GridProblem:
    """Return the problem on n x n nodes."""
    problem = Lifted(Communicator.world().alone(), Bratu(LAMBDA), (n, n))
    problem.lift = lift
    return problem


def ours(row: Row, n: int, iterations: int) -> History:
    """Return the history of the row's tree."""
    norms: list[float] = []

    def observe(solver: SNES, point: Point, norm: float, update: float) -> Reason:
        norms.append(norm)
        return Reason.CONVERGED_ITERATING

    problem = bratu(n, row.lift)
    ends = f"-snes_max_it {iterations} -snes_rtol {0.1 * FLOOR} -snes_stol 0"
    database = Database.from_string(f"{row.ours} {ends}")
    solver = create(database)
    solver.set_up(problem)
    solver.observe = observe
    solver.solve(problem.guess())
    return History(norms, solver.reason.name)


def theirs(row: Row, n: int, iterations: int) -> History:
    """Return the history of PETSc's solver.

    Raises
    ------
    ValueError
        If PETSc does not read an option of the row.
    """
    petsc, grid, norms = load(), Grid(n, row.lift), []
    prefix = "bratu_"
    ends = f"-snes_max_it {iterations} -snes_rtol {0.1 * FLOOR} -snes_stol 0 -snes_divergence_tolerance -1"
    words = shlex.split(f"{row.petsc} {ends}")
    names = [word[1:] for word in words[::2]]
    options = petsc.Options(prefix)
    for name, value in zip(names, words[1::2], strict=True):
        options[name] = value
    da = petsc.DMDA().create(
        sizes=(n, n), dof=1, stencil_width=1, stencil_type="star", comm=petsc.COMM_SELF, setup=False
    )
    snes = petsc.SNES().create(petsc.COMM_SELF)
    for item in (da, snes):
        item.setOptionsPrefix(prefix)
    da.setFromOptions()
    da.setUp()
    snes.setDM(da)
    snes.setObjective(grid.objective)
    snes.setFunction(grid.function)
    snes.setJacobian(grid.jacobian)

    def monitor(snes: Any, iteration: int, norm: float) -> None:
        # Solvers with a preconditioner on the left monitor |x - M(x)|.
        residual = grid.residual(grid.whole(da, snes.getSolution()))
        norms.append(float(np.linalg.norm(residual)))

    snes.setMonitor(monitor)
    snes.setFromOptions()
    if snes.getType() == "composite":  # which would colour and difference its members' Jacobian
        snes.setUp()
        for k in range(snes.getCompositeNumber()):
            snes.getCompositeSNES(k).setJacobian(grid.jacobian)
    x = da.createGlobalVec()
    x.setArray(bratu(n).guess().numpy())
    snes.solve(None, x)
    reason = snes.getConvergedReason()
    unread = [name for name in names if not petsc.Options().used(prefix + name)]
    for name in names:
        options.delValue(name)
    if unread:
        raise ValueError(f"{row.tree}: PETSc does not read {', '.join(unread)}")
    return History(norms, next(k for k, v in vars(petsc.SNES.ConvergedReason).items() if v == reason))


@dataclass(frozen=True)
class Comparison:
    """A row's two histories."""

    row: Row
    ours: History
    petsc: History

    @cached_property
    def differences(self) -> list[float]:
        """Relative differences of the norms, as long as both are above the floor."""
        pairs = list(zip(self.ours.norms, self.petsc.norms, strict=False))
        return [abs(a - b) / b for a, b in pairs if not min(a, b) <= FLOOR * pairs[0][1]]

    @property
    def first(self) -> int | None:
        """The first iteration at which the norms differ, or at which only one side goes on; None if there is none."""
        found = next((k for k, d in enumerate(self.differences) if not d <= AGREE), None)
        a, b = self.ours.norms, self.petsc.norms
        unpaired = [*a[len(b) :], *b[len(a) :]]
        ends = any(norm > 10 * FLOOR * a[0] for norm in unpaired)
        return min(len(a), len(b)) if found is None and ends else found

    @property
    def equal(self) -> bool:
        """Whether both sides agree to the end."""
        return self.first is None

    @property
    def fails(self) -> bool:
        """Whether they do not, though they should."""
        return not (self.row.differs or self.equal)

    def cells(self) -> list[str]:
        """Return the row of the table."""
        a, b = self.ours.norms, self.petsc.norms
        verdict = "equal" if self.equal else f"from {self.first}"
        why = self.row.differs or "NOT EQUAL" * self.fails
        return [
            self.row.tree,
            f"{len(a) - 1} / {len(b) - 1}",
            verdict,
            f"{max(self.differences):.0e}",
            shown(a),
            shown(b),
            why,
        ]


def shown(norms: Sequence[float]) -> str:
    """Return the norms of iterations 1 to 3 and of the last."""
    return ", ".join(f"{norm:.4e}" for norm in norms[1:4]) + f"; {norms[-1]:.1e}"


def compare(row: Row, n: int, iterations: int) -> Comparison:
    """Run a row both ways on n x n nodes."""
    return Comparison(row, ours(row, n, iterations), theirs(row, n, iterations))


# ---- table and figure ------------------------------------------------------------------------------------------------

HEADS = [
    "tree",
    "its",
    "norms",
    "largest diff.",
    "here: 1, 2, 3; last",
    "PETSc: 1, 2, 3; last",
    "what differs, and why",
]


def document(found: Sequence[Comparison], n: int) -> str:
    """Return the table, and below it the options of both sides."""
    equal = sum(c.equal for c in found)
    title = f"Bratu, lambda = {LAMBDA:g}, {n} x {n} nodes: {equal} of {len(found)} histories are equal to {AGREE:g}"
    options = [["tree", "here", "PETSc"], *([c.row.tree, f"`{c.row.ours}`", f"`{c.row.petsc}`"] for c in found)]
    return "\n\n".join([title, markdown([HEADS, *(c.cells() for c in found)]), markdown(options)]) + "\n"


def draw(found: Sequence[Comparison], path: Path) -> None:
    """Draw all histories, a panel for each family: lines are ours, markers PETSc's."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    by_tree = {c.row.tree: c for c in found}
    figure, panels = pyplot.subplots(2, 3, figsize=(19, 11), sharey=True)
    for panel, (family, rows) in zip(panels.flat, FAMILIES.items(), strict=False):
        for k, c in enumerate(by_tree[row.tree] for row in rows if row.tree in by_tree):
            colour = f"C{k % 10}"
            label = c.row.tree if c.equal else f"{c.row.tree} (differs)"
            panel.semilogy(c.ours.norms, color=colour, linestyle="-" if k < 10 else "--", label=label)
            panel.semilogy(
                c.petsc.norms, color=colour, linestyle="none", marker="o" if k < 10 else "s", fillstyle="none"
            )
        panel.set_title(family)
        panel.set_xlabel("iteration")
        panel.grid(alpha=0.25)
        if panel.lines:
            panel.legend(frameon=False, fontsize=7)
    panels[0, 0].set_ylabel("|grad L|")
    panels[0, 0].set_ylim(1e-11, 1e2)
    panels[1, 2].axis("off")
    panels[1, 2].text(0.1, 0.6, "lines: ml2hpc\nmarkers: PETSc", fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> int:
    """Run the rows, write table and figure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, default=17, help="nodes in either direction")
    parser.add_argument("--iterations", type=int, default=20, help="most iterations")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TREE", help="rows whose name has one of these words"
    )
    parser.add_argument("--output", type=Path, default=Path("bratu"), help="folder")
    given = parser.parse_args(arguments)
    rows = [row for row in ROWS if any(word in row.tree for word in given.only)]
    if not rows:
        parser.error(f"--only: no row has any of {', '.join(given.only)} in its name")
    found = [compare(row, given.grid, given.iterations) for row in rows]
    given.output.mkdir(parents=True, exist_ok=True)
    text = document(found, given.grid)
    (given.output / "bratu.md").write_text(text)
    draw(found, given.output / "bratu.png")
    print(text, end="")
    wrong = [c.row.tree for c in found if c.fails]
    if wrong:
        print(f"not equal: {'; '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
