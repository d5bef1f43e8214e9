"""A study of every solver type against PETSc on the Bratu problem: the same options, gradient norms side by side.

    python tests/studies/bratu.py [--grid 17] [--only ncg qn ...] [--iterations 20] [--output bratu]

A row is a tree. It runs once here and once as a SNES of PETSc on a DMDA, which has the objective, the residual and the
assembled Jacobian in numpy and cuts its own subdomains. The norm is |grad L| at every iterate, whatever a solver
monitors, down to 1e-9 of the start. Rows that are declared equal must agree in it to 1e-6 at every iteration, else the
exit status is 1; the others say what differs and why.
"""

from __future__ import annotations

import argparse
import math
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

LAMBDA = 6.0
AGREE = 1e-6  # relative difference of gradient norms
FLOOR = 1e-9  # of the first norm: what is below is rounding
Array = NDArray[np.float64]


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
TIGHT = "-snes_ksp_ew 0 -ksp_rtol 1e-12 -ksp_max_it 1000"
GMRES = f"-ksp_type gmres -ksp_gmres_restart 400 {TIGHT}"
# PETSc factors local matrices; here Krylov methods solve as exactly.
LOCAL = "-{p}sub_snes_type newtonls -{p}sub_ksp_type cg -{p}sub_ksp_rtol 1e-13 -{p}sub_snes_ksp_ew 0"
BOXES = "-{p}dm_decomposition boxes -{p}dm_subdomains 4 -{p}dm_overlap 1"
DMDA = "-da_local_subdomains 4 -da_overlap 1"
HALVING = "-snes_linesearch_type bt -snes_linesearch_order 1"
FULL = "-{p}snes_linesearch_type none"


def both(tree: str, options: str, differs: str = "", *, ours: str = "", petsc: str = "") -> Row:
    """Return a row of common options, and some that only one side has."""
    return Row(tree, f"{options} {ours}".rstrip(), f"{options} {petsc}".rstrip(), differs)


def schwarz(tree: str, p: str, kind: str, differs: str = "", *, around: str = "", d: tuple[float, float]) -> Row:
    """Return a row with nonlinear Schwarz at prefix p, with dampings here and there."""
    # Full steps: in the rounding of L PETSc's searches stall.
    inside = f"-{p}sub_snes_linesearch_type none -{p}sub_snes_rtol 1e-12 -{p}sub_snes_stol 0 -{p}sub_snes_max_it 8"
    common = f"{around} -{p}snes_type nasm -{p}snes_nasm_type {kind} {inside}".strip()
    here = f"-{p}snes_nasm_damping {d[0]} {FULL.format(p=p)} {BOXES.format(p=p)} {LOCAL.format(p=p)}"
    return both(tree, common, differs, ours=here, petsc=f"-{p}snes_nasm_damping {d[1]} {DMDA}")


def newton() -> list[Row]:
    """Return the rows of Newton's methods."""
    kind = "-snes_type newtonls -snes_linesearch_type bt"
    inner = "-snes_tr_cg_rtol 1e-10 -snes_tr_cg_max_it 1000"
    return [
        both("newtonls, gmres, bt", f"{kind} {GMRES}", petsc="-pc_type none"),
        both("newtonls, cg, bt", f"{kind} -ksp_type cg {TIGHT}", petsc="-pc_type none"),
        both("newtonls, right nrichardson", f"{kind} {GMRES} {RICHARDSON}", petsc="-pc_type none"),
        both("newtontr", "-snes_type newtontr", ours=inner, petsc=f"-ksp_type stcg {TIGHT} -pc_type none"),
    ]


def descent() -> list[Row]:
    """Return the rows of first-order and quasi-Newton methods."""
    rows = [
        both(f"nrichardson, {name}", f"-snes_type nrichardson {search}")
        for name, search in (
            ("none", STEP.format(p="")),
            ("secant", "-snes_linesearch_type secant"),
            ("bt, cubic", "-snes_linesearch_type bt"),
            ("bt, halving", HALVING),
            ("cp", "-snes_linesearch_type cp"),
        )
    ]
    rows += [
        both(f"ncg, {kind}, cp", f"-snes_type ncg -snes_ncg_type {kind} -snes_linesearch_type cp")
        for kind in ("prp", "fr", "hs", "dy", "cd")
    ]
    left = f"-snes_npc_side left {RICHARDSON}"
    qn = "-snes_type qn -snes_qn_type lbfgs -snes_qn_m 10 -snes_qn_restart_type none"
    rows += [
        both("ncg, left nrichardson, cp", f"-snes_type ncg -snes_linesearch_type cp {left}"),
        both("nrichardson, left nrichardson, cp", f"-snes_type nrichardson -snes_linesearch_type cp {left}"),
        both("qn, scalar, cp", f"{qn} -snes_qn_scale_type scalar -snes_linesearch_type cp"),
        both("qn, none, cp", f"{qn} -snes_qn_scale_type none -snes_linesearch_type cp"),
        both("qn, scalar, bt", f"{qn} -snes_qn_scale_type scalar {HALVING}"),
        both("qn, none, bt", f"{qn} -snes_qn_scale_type none {HALVING}"),
    ]
    return rows


def mixing() -> list[Row]:
    """Return the rows of Anderson mixing and NGMRES."""
    anderson, ngmres = "-snes_type anderson -snes_anderson_m 30", "-snes_type ngmres -snes_npc_side right"
    rows = [
        both("anderson, beta 0.1", f"{anderson} -snes_anderson_beta 0.1"),
        both("anderson, right nrichardson", f"{anderson} -snes_npc_side right {RICHARDSON}"),
    ]
    rows += [
        both(f"ngmres, {kind}, right nrichardson", f"{ngmres} {RICHARDSON} -snes_ngmres_select_type {kind}")
        for kind in ("none", "difference", "linesearch")
    ]
    rows.append(replace(rows[-2], tree="ngmres, difference, right nrichardson, L > 0", lift=6.5))
    return rows


def decomposed() -> list[Row]:
    """Return the rows of nonlinear Schwarz and of composites."""
    right = "-snes_type ngmres -snes_npc_side right"
    nasm = schwarz("ngmres, right nasm", "npc_", "restrict", around=right, d=(1, 1))
    rows = [schwarz(f"nasm, {kind}", "", kind, d=(1, 1)) for kind in ("restrict", "basic")]
    rows += [
        schwarz("nasm, basic, damping 0.5", "", "basic", d=(0.5, 0.5)),
        schwarz("nasm, basic, damping 0.25", "", "basic", d=(0.25, 0.5)),
        nasm,
        replace(nasm, tree="ngmres, right nasm, L > 0", lift=6.5),
        both(
            "aspin",
            "-snes_type aspin",
            ours=f"-snes_linesearch_type bt -snes_ksp_ew 0 -npc_snes_nasm_type basic {BOXES.format(p='npc_')}"
            f" {LOCAL.format(p='npc_')} -ksp_rtol 1e-10",
            petsc=f"{DMDA} -ksp_rtol 1e-10",
        ),
    ]
    composite = "-snes_type composite -snes_composite_sneses nrichardson,newtonls"
    composite += f" {STEP.format(p='sub_0_')} -sub_1_ksp_type gmres -sub_1_ksp_rtol 1e-12 -sub_1_ksp_max_it 400"
    composite += " -sub_1_snes_ksp_ew 0 -sub_1_ksp_gmres_restart 400"
    halves = "-snes_composite_damping 0.5,0.5"
    for kind, extra, here in (
        ("additive", halves, FULL.format(p="")),
        ("multiplicative", "", ""),
        ("additiveoptimal", "", ""),
    ):
        options = f"{composite} -snes_composite_type {kind} {extra}".rstrip()
        rows.append(both(f"composite, {kind}", options, ours=here, petsc="-sub_1_pc_type none"))
    return rows


ROWS = [*newton(), *descent(), *mixing(), *decomposed()]


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
        return [abs(a - b) / b for a, b in pairs if min(a, b) > FLOOR * pairs[0][1]]

    @property
    def first(self) -> int | None:
        """The first iteration at which the norms differ, or at which only one side goes on; None if there is none."""
        found = next((k for k, d in enumerate(self.differences) if not d <= AGREE), None)
        a, b = self.ours.norms, self.petsc.norms
        unpaired = [*a[len(b) :], *b[len(a) :]]
        ends = any(norm > 10 * FLOOR * a[0] for norm in unpaired)
        return min(len(a), len(b)) if found is None and ends else found
