"""Composite: several solvers as one. Each member makes its own correction; they are added, chained or combined.

    additive         x <- x + lambda sum_k w_k (M_k(x) - x), lambda by the line search
    multiplicative   x <- M_k(x) for k = 0, 1, ...; a member that raises L is passed over
    additiveoptimal  x <- x + sum_k a_k (M_k(x) - x), a minimises L over the span, never above the best member

A two-level Schwarz method is a multiplicative composite of a coarse and a fine nasm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ml2hpc.errors import OptionsError, UserError
from ml2hpc.log import Work
from ml2hpc.options import option
from ml2hpc.snes.interface import SNES, Method, Point, Step, Tree
from ml2hpc.snes.subspace import Subspace

# A member makes one step and tests nothing, as in PETSc.
_MEMBER = {"snes_max_it": 1, "snes_rtol": 0.0, "snes_atol": 0.0, "snes_stol": 0.0, "snes_max_funcs": 10**9}


class Composite(Method):
    """Members that solve the same problem, with the prefixes `sub_0_`, `sub_1_`, ...; `sub_` names all of them.

    L decides: PETSc's tolerances of additiveoptimal compare residual norms and have no meaning here, where the
    combination is taken exactly when it is below the best member.

    References
    ----------
    Brune, Knepley, Smith, Tu: Composing scalable nonlinear algebraic solvers, SIAM Review 57 (2015).
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_composite_*`."""

        # The default is PETSc's, and the only one that cannot lose to its best member.
        type: Literal["additive", "multiplicative", "additiveoptimal"] = option(
            "additiveoptimal", "how the members' corrections are composed: added, one after the other, over their span"
        )
        sneses: tuple[str, ...] = option((), "types of the members, in order; more of each under -sub_0_, -sub_1_, ...")
        damping: tuple[float, ...] = option(
            (), "a factor for each member's correction, 1 where none is given (additive)"
        )

    name = "composite"
    title = "Composite solver (composite)"
    linesearch = {"type": "wolfe"}

    def configure(self, solver: SNES) -> None:
        o, prefix = self.options, solver.prefix
        if not o.sneses:
            raise UserError(f"-{prefix}snes_type composite needs -{prefix}snes_composite_sneses type,type,...")
        if o.damping and o.type != "additive":
            raise OptionsError(
                f"-{prefix}snes_composite_damping: only additive weights its members; {o.type} finds its own steps"
            )
        if o.damping and len(o.damping) != len(o.sneses):
            raise OptionsError(
                f"-{prefix}snes_composite_damping: {len(o.damping)} factors for {len(o.sneses)} members; give each one"
            )
        self._members = [solver.spawn(f"sub_{k}_", {"snes_type": kind, **_MEMBER}) for k, kind in enumerate(o.sneses)]
        for member in self._members:
            member.is_inner = True
        self._subspace = Subspace(solver) if o.type == "additiveoptimal" else None
        self._failures = 0  # steps in a row that failed
        self._gave_up = False  # whether a member lost its memory in the last step

    def set_up(self, solver: SNES) -> None:
        for member in self._members:
            member.set_up(solver.problem, solver.unit)
        if self._subspace is not None:
            self._subspace.solver.set_up(self._subspace.pattern(solver.problem, len(self._members)), solver.unit)

    def rebind(self, solver: SNES) -> None:
        for member in self._members:
            member.rebind(solver.problem, solver.unit)
        if self._subspace is not None:
            self._subspace.solver.rebind(self._subspace.pattern(solver.problem, len(self._members)), solver.unit)

    def step(self, solver: SNES, point: Point) -> Step:
        compose = {
            "additive": self._add,
            "multiplicative": self._chain,
            "additiveoptimal": self._combine,
        }[self.options.type]
        before = sum(member.resets for member in self._members)
        step = compose(solver, point)
        self._gave_up = sum(member.resets for member in self._members) > before
        self._failures = self._failures + 1 if step.failure else 0
        return step

    def _run(self, solver: SNES, member: SNES, point: Point) -> Point:
        """Let a member go on from a point; return its end, or the point where it has no number. Collective."""
        before = Work(member.work.counts)
        end = member.solve(point.x, (point.f, point.g))
        solver.work.counts += member.work.counts - before.counts
        # What the member took for its residual is its own affair.
        return solver.point(end.x, end.f, end.g) if end.finite else point

    def _ends(self, solver: SNES, point: Point) -> list[Point]:
        return [self._run(solver, member, point) for member in self._members]

    def _chain(self, solver: SNES, point: Point) -> Step:
        start = point
        for member in self._members:
            end = self._run(solver, member, point)
            point = end if end.f <= point.f else point
        moved = solver.problem.space.norm(point.x - start.x) > 0.0
        return Step(point) if moved else Step(start, "no member lowers the objective")

    def _add(self, solver: SNES, point: Point) -> Step:
        weights = self.options.damping or (1.0,) * len(self._members)
        ends = self._ends(solver, point)
        y = torch.stack([w * (point.x - end.x) for w, end in zip(weights, ends, strict=True)]).sum(0)
        line = solver.line(point, y)
        if not line.slope < 0:
            return Step(point, "the sum of the corrections is not a descent direction")
        step, _ = solver.search(point, line)
        if step.point.f > point.f:  # the search `none` takes any step
            return Step(point, "after the sum of the corrections: the objective rises")
        return step

    def _combine(self, solver: SNES, point: Point) -> Step:
        assert self._subspace is not None
        ends = self._ends(solver, point)
        new = self._subspace.minimise(solver, point, [end.x - point.x for end in ends], ends)
        return Step(new) if new is not None else Step(point, "no combination of the members lowers the objective")

    def reset(self) -> bool:
        had = [member.forget() for member in self._members]
        # Where members without a memory have failed too, another try changes nothing.
        return (any(had) or self._gave_up) and self._failures < 2

    def state(self, solver: SNES) -> Tree:
        tree: Tree = {f"sub_{k}": member.state() for k, member in enumerate(self._members)}
        tree["failures"] = self._failures
        if self._subspace is not None:
            tree["subspace"] = self._subspace.solver.state()
        return tree

    def load(self, solver: SNES, state: Tree) -> None:
        self._failures = int(state["failures"])
        for k, member in enumerate(self._members):
            member.load(state[f"sub_{k}"])
        if self._subspace is not None:
            self._subspace.solver.load(state["subspace"])

    def inner(self) -> list[tuple[str, SNES]]:
        found = [(f"Member {k} of the composite:", member) for k, member in enumerate(self._members)]
        if self._subspace is not None:
            found.append(("Solver for the coefficients of the members:", self._subspace.solver))
        return found

    def brief(self) -> str:
        return f"composite({self.options.type}, {len(self._members)} members)"

    def view(self) -> list[str]:
        o = self.options
        damping = f", damping {', '.join(f'{w:g}' for w in o.damping)}" if o.damping else ""
        return [f"type - {o.type.upper()}{damping}", "SNESes on composite preconditioner follow"]
