"""Nonlinear Schwarz: solve on every subdomain, combine the corrections.

    additive         c = sum_s E_s W_s (x_s* - R_s x), all from the same x, on disjoint groups of ranks
    multiplicative   x <- x + E_s (x_s* - R_s x) one subdomain after the other, each on all ranks

As right NPC of quasi-Newton these are ASPQN and MSPQN. PETSc's `basic` adds the corrections without weights, `restrict`
only on each subdomain's own unknowns. Damping is applied once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ml2hpc import dm
from ml2hpc.errors import OptionsError
from ml2hpc.log import Work
from ml2hpc.options import option
from ml2hpc.problem.interface import Problem
from ml2hpc.snes.interface import SNES, Method, Point, Step, Tree
from ml2hpc.snes.subspace import Subspace

_WEIGHTINGS: dict[str, dm.Weighting] = {"additive": "unity", "restrict": "own", "basic": "all", "multiplicative": "all"}


class Nasm(Method):
    """Schwarz over a decomposition of the unknowns or of the samples.

    References
    ----------
    Kopaničáková, Kothari, Karniadakis, Krause, SIAM J. Sci. Comput. 46 (2024); Cai, Keyes: Nonlinearly preconditioned
    inexact Newton algorithms, SIAM J. Sci. Comput. 24 (2002).
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_nasm_*`."""

        type: Literal["additive", "multiplicative", "basic", "restrict"] = option(
            "additive", "additive with a partition of unity, multiplicative, additive unweighted, restricted additive"
        )
        damping: float = option(1.0, "factor of the combined correction", above=0.0)
        combine: Literal["linesearch", "layerwise", "subspace", "average"] = option(
            "linesearch",
            "of additive corrections: search along the sum, one search each, minimise over their span, or average",
        )

    name = "nasm"
    title = "Nonlinear Schwarz (nasm)"
    linesearch = {"type": "wolfe"}

    def configure(self, solver: SNES) -> None:
        self._dm = solver.read(dm.Options, "dm_", "Decomposition (DM)")
        # A sampled loss with a shift has no lower bound of its own: few steps, or the local solve runs away.
        steps = 3 if self._dm.decomposition == "samples" else 50
        local = {"snes_type": "qn", "snes_max_it": steps, "snes_stol": 0.0, "snes_max_funcs": 10**9}
        self._pattern = solver.spawn("sub_", local)
        self._subs = [solver.spawn(f"sub_{k}_", local, listed=False) for k in range(self._dm.count)]
        self._tracks = False
        self._corrections: dict[int, Tensor] = {}  # of this rank's subdomains in the last step, where tracked
        self._subspace = Subspace(solver) if self.options.combine == "subspace" else None
        if self.options.type == "multiplicative" and self.options.combine != "linesearch":
            raise OptionsError(
                f"-{solver.prefix}snes_nasm_combine {self.options.combine}: combines additive corrections; "
                f"with -{solver.prefix}snes_nasm_type multiplicative they come one after the other"
            )
        if self._dm.decomposition == "samples" and self.options.type == "multiplicative":
            raise OptionsError(
                f"-{solver.prefix}snes_nasm_type multiplicative: sample subdomains are additive; "
                f"use -{solver.prefix}dm_decomposition layers, tensors or blocks"
            )

    def set_up(self, solver: SNES) -> None:
        comm = solver.problem.comm
        count = self._dm.count
        self._decomposition = dm.decompose(solver.problem, self._dm, solver.prefix)
        if self.options.type == "multiplicative":
            self._group, self._mine, self._owners = comm, range(count), [0] * count
        elif comm.size >= count:
            # Groups of ranks, data-parallel inside; the first rank of a group speaks for it.
            colour = comm.rank * count // comm.size
            self._group, self._mine = comm.split(colour), range(colour, colour + 1)
            self._owners = [-(-k * comm.size // count) for k in range(count)]
        else:
            self._group = comm.alone()
            self._owners = [k * comm.size // count for k in range(count)]
            self._mine = range(
                self._owners.index(comm.rank), self._owners.index(comm.rank) + self._owners.count(comm.rank)
            )
        for child, problem in self._divide(solver):
            child.set_up(problem, solver.unit)

    def confine(self, radius: float) -> None:
        for child in self._subs:
            child.method.confine(radius)

    def rebind(self, solver: SNES) -> None:
        self._decomposition = dm.decompose(solver.problem, self._dm, solver.prefix)
        for child, problem in self._divide(solver):
            child.rebind(problem, solver.unit)

    def _divide(self, solver: SNES) -> list[tuple[SNES, Problem]]:
        """Make this rank's local problems; return all inner solvers with their problems. Collective."""
        problem = solver.problem
        subdomains = self._decomposition.subdomains
        here = problem if self._group is problem.comm else problem.on(self._group)
        self._locals = {k: subdomains[k].on(here) for k in self._mine}
        rounds = [[k] for k in self._mine] if self.options.type == "multiplicative" else [list(self._mine)]
        self._exchanges = [
            self._decomposition.exchange(problem, self._owners, {k: self._locals[k] for k in ks}) for ks in rounds
        ]
        children = []
        for k, local in self._locals.items():
            self._subs[k].label = self._pattern.prefix
            children.append((self._subs[k], local.problem))
        children.append((self._pattern, next(iter(self._locals.values())).problem))
        if self._subspace is not None:
            children.append((self._subspace.solver, self._subspace.pattern(problem, len(subdomains))))
        return children

    def step(self, solver: SNES, point: Point) -> Step:
        if self.options.type == "multiplicative":
            return self._sweep(solver, point)
        (exchange,) = self._exchanges
        starts = exchange.fetch(exchange.open(point.x), exchange.open(point.g))
        with solver.log.event("SNESNASMSubSolve", solver.label):
            solved = [self._solve(solver, k, start, point.f) for k, start in zip(self._mine, starts, strict=True)]
        with solver.log.event("SNESNASMRestrict", solver.label):
            apart = self.options.combine in ("layerwise", "subspace")
            corrections, works = exchange.collect(solved, _WEIGHTINGS[self.options.type], apart=apart)
        solver.work.parallel(works)
        self._pattern.work.parallel(works)
        if self._tracks:
            self._corrections = {k: s.correction for k, s in zip(self._mine, solved, strict=True)}
        return self._combine(solver, point, corrections)

    def _solve(self, solver: SNES, k: int, begin: dm.Start, f: float) -> dm.Solved:
        """Solve on subdomain k from what the exchange brought. Collective on its ranks."""
        local, sub = self._locals[k], self._subs[k]
        start, f_start, g_start = local.begin(begin[0], f, begin[1])
        if sub.problem is not local.problem:  # a sampled problem has another shift in every step
            sub.rebind(local.problem, solver.unit)
        sub.work.clear()
        sub.work.sequential([local.begin_work(solver.problem, solver.unit)])
        end = sub.solve(start, None if g_start is None else (f_start, g_start))
        if k == self._mine[0]:
            self._pattern.resets = sub.resets  # views show the first block
        return dm.Solved(end.x - start, Work(sub.work.counts))

    def _combine(self, solver: SNES, point: Point, corrections: list[Tensor]) -> Step:
        damping, how = self.options.damping, self.options.combine
        if how == "subspace":
            return self._minimise_over_span(solver, point, corrections)
        if how == "layerwise":
            for correction in corrections:
                step = self._search(solver, point, -damping * correction)
                point = step.point
            return step
        total = torch.stack(corrections).sum(0)
        if how == "average":
            x = point.x + (damping / self._dm.count) * total
            new = solver.point(x, *solver.gradient(x))
            return self._checked(point, new, "after the averaged correction")
        return self._search(solver, point, -damping * total)

    @staticmethod
    def _search(solver: SNES, point: Point, y: Tensor) -> Step:
        line = solver.line(point, y)
        if not line.slope < 0:
            return Step(point, "the combined correction is not a descent direction")
        return solver.search(point, line)[0]

    def _minimise_over_span(self, solver: SNES, point: Point, corrections: list[Tensor]) -> Step:
        assert self._subspace is not None
        new = self._subspace.minimise(solver, point, [self.options.damping * c for c in corrections])
        return Step(point, "no combination of the corrections lowers the objective") if new is None else Step(new)

    def _sweep(self, solver: SNES, point: Point) -> Step:
        """One multiplicative sweep; damping scales each correction."""
        opened = self._exchanges[0]
        x = opened.open(point.x)
        g: Tensor | None = opened.open(point.g)
        for k, exchange in zip(self._mine, self._exchanges, strict=True):
            (start,) = exchange.fetch(x, g)
            g = None  # known before the first correction only
            with solver.log.event("SNESNASMSubSolve", solver.label):
                solved = self._solve(solver, k, start, point.f)
            x = exchange.add(x, [self.options.damping * solved.correction])
            solver.work.sequential([solved.work])
            self._pattern.work.sequential([solved.work])
        x = opened.close(x)
        new = solver.point(x, *solver.gradient(x))
        return self._checked(point, new, "after the sweep")

    @staticmethod
    def _checked(old: Point, new: Point, when: str) -> Step:
        """Return the step unless it raises L."""
        if not new.finite:
            return Step.broken(old, when)
        return Step(new) if new.f <= old.f else Step(old, f"{when}: the objective rises")

    def track(self, solver: SNES) -> None:
        self._tracks = self._step_length(solver) is not None

    def _step_length(self, solver: SNES) -> float | None:
        """Return the fixed factor of the sum of corrections where M has a known derivative, else None."""
        o, search = self.options, solver.linesearch
        known = solver.options.max_it == 1 and o.type != "multiplicative" and self._dm.decomposition != "samples"
        if not known or not all(sub.method.inverts for sub in self._subs):
            return None
        factor: float = o.damping
        if o.combine == "average":
            return factor / len(self._subs)
        assert search is not None
        fixed = o.combine == "linesearch" and search.options.type == "none"
        return factor * search.options.damping if fixed else None

    def derivative(self, solver: SNES, point: Point) -> Callable[[Tensor], Tensor] | None:
        """Return v -> factor sum_s E_s W_s H_ss^-1 R_s H v, each Hessian H at the end of the local solve.

        Exact where the local gradients vanish there, whatever the distance from x.

        References
        ----------
        Dolean, Gander, Kheriji, Kwok, Masson: Nonlinear preconditioning: how to use a nonlinear Schwarz method to
        precondition Newton's method, SIAM J. Sci. Comput. 38 (2016).
        """
        factor = self._step_length(solver)
        if factor is None:
            return None
        (exchange,) = self._exchanges
        starts = exchange.fetch(exchange.open(point.x), None)
        locals_ = [self._linearize(solver, k, start, point.f) for k, start in zip(self._mine, starts, strict=True)]

        def action(v: Tensor) -> Tensor:
            directions = exchange.fetch(exchange.open(v), None)
            solved = [local(direction) for local, (direction, _) in zip(locals_, directions, strict=True)]
            corrections, works = exchange.collect(solved, _WEIGHTINGS[self.options.type], apart=False)
            solver.work.parallel(works)
            self._pattern.work.parallel(works)
            return factor * torch.stack(corrections).sum(0)

        return action

    def _linearize(self, solver: SNES, k: int, start: dm.Start, f: float) -> Callable[[Tensor], dm.Solved]:
        """Return v -> H_ss^-1 R_s H v at the end of the last local solve, which began at `start`.

        Collective on the subdomain's ranks.
        """
        local, sub = self._locals[k], self._subs[k]
        end = local.begin(start[0], f, None)[0] + self._corrections[k]
        if sub.problem is not local.problem:  # a sampled problem has another shift in every step
            sub.rebind(local.problem, solver.unit)
        inverse = sub.method.linear_solver(sub, end)

        def action(v: Tensor) -> dm.Solved:
            sub.work.clear()
            sub.work.add("hessians", local.rows_cost.hessian / solver.unit.hessian)
            return dm.Solved(inverse(local.hessian_rows(end, v)), Work(sub.work.counts))

        return action

    def state(self, solver: SNES) -> Tree:
        comm = solver.problem.comm
        mine = {f"sub_{k}": self._subs[k].state() for k in self._mine}
        for k, correction in self._corrections.items():
            mine[f"sub_{k}"]["correction"] = self._locals[k].problem.space.gather(correction).cpu().numpy()
        spoken = {
            name: tree for (name, tree), k in zip(mine.items(), self._mine, strict=True) if self._owners[k] == comm.rank
        }
        gathered = comm.gather(spoken)
        tree: Tree = {"pattern_work": self._pattern.work.counts.copy()}
        if self._subspace is not None:
            tree["subspace"] = self._subspace.solver.state()
        for part in gathered or []:
            tree |= part
        return tree

    def load(self, solver: SNES, state: Tree) -> None:
        self._pattern.work = Work(state["pattern_work"])
        if self._subspace is not None:
            self._subspace.solver.load(state["subspace"])
        for k in self._mine:
            part = state[f"sub_{k}"]
            self._subs[k].load(part)
            if "correction" in part:
                self._corrections[k] = self._locals[k].problem.space.restored(part["correction"])

    def inner(self) -> list[tuple[str, SNES]]:
        first = "all ranks" if self.options.type == "multiplicative" else "rank 0"
        found = [(f"Local solver information for first block on {first}:", self._pattern)]
        if self._subspace is not None:
            found.append(("Solver for the coefficients of the corrections:", self._subspace.solver))
        return found

    def brief(self) -> str:
        return f"nasm({self.options.type}, {self._dm.brief()})"

    def view(self) -> list[str]:
        o = self.options
        combined = "" if o.type == "multiplicative" else f", corrections combined by {o.combine}"
        lines = [f"type is {o.type.upper()}, damping={o.damping:g}{combined}"]
        return [*lines, f"total subdomain blocks = {self._dm.count}", *self._decomposition.view()]
