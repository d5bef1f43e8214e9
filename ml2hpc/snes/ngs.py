"""Nonlinear Gauss-Seidel: sweeps over blocks of the unknowns, each solved for itself with the newest values elsewhere.

A block t is solved by a few steps along its gradient, t <- t - lambda a g with a line search, where 1/a is a curvature
of L along the block: by the secant method from the last two iterates, a = <s, s> / <s, y>, or by Newton's, a = <g, g> /
<g, H g>. For a single unknown these are the secant and Newton methods themselves, and a sweep on a quadratic is the
linear Gauss-Seidel sweep.

Blocks of one layer share its restriction, so that what lies below the layer is computed once for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ml2hpc import dm
from ml2hpc.errors import OptionsError
from ml2hpc.linesearch import Line
from ml2hpc.options import option
from ml2hpc.problem.interface import Block, Problem, Restriction, slices
from ml2hpc.snes.interface import SNES, Method, Point, Step, Tree


@dataclass(frozen=True)
class _Group:
    """Blocks that share a restriction, each a slice of its unknowns."""

    outer: Block
    inner: tuple[slice, ...]


class GaussSeidel(Method):
    """x_b <- argmin over x_b of L, approximately, for one block b after the other.

    References
    ----------
    Ortega, Rheinboldt: Iterative Solution of Nonlinear Equations in Several Variables (1970), ch. 7; Barzilai, Borwein:
    Two-point step size gradient methods, IMA J. Numer. Anal. 8 (1988), for blocks of several unknowns.
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_ngs_*`; the numbers are PETSc's."""

        # A sweep over single unknowns costs a gradient or more for each: fine for studies, dear for networks.
        blocks: Literal["layers", "tensors", "unknowns", "dm"] = option(
            "layers", "what is solved for at a time: a layer, a parameter tensor, an unknown, a subdomain of -dm_*"
        )
        sweeps: int = option(1, "sweeps in each iteration", at_least=1)
        max_it: int = option(50, "most steps on a block", at_least=1)
        rtol: float = option(1e-5, "stop on a block when its gradient fell by this factor", at_least=0.0)
        atol: float = option(2.220446e-16, "stop on a block when its gradient is below", at_least=0.0)
        stol: float = option(2.220446e-13, "stop on a block when its step is this small against it", at_least=0.0)
        # Its curvature costs nothing: the gradients are there.
        secant: bool = option(True, "take curvatures from the last two gradients, else from a Hessian action (Newton)")

    name = "ngs"
    title = "Nonlinear Gauss-Seidel (ngs)"
    # Steps have the length of the curvature's inverse, the same trial for every block.
    linesearch = {"type": "wolfe", "memory": 0}

    def configure(self, solver: SNES) -> None:
        self._dm = None
        if self.options.blocks == "dm":
            self._dm = solver.read(dm.Options, "dm_", "Decomposition (DM)")
            if self._dm.decomposition in ("samples", "boxes"):
                p = solver.prefix
                raise OptionsError(
                    f"-{p}dm_decomposition {self._dm.decomposition}: ngs sweeps over blocks of whole vectors; use "
                    f"layers, tensors, blocks or coarse, or -{p}snes_type nasm -{p}snes_nasm_type multiplicative"
                )

    def set_up(self, solver: SNES) -> None:
        self._groups = self._divide(solver)
        self._restrict(solver)
        # The a of each block, 0 before its first step.
        self._scales = [0.0] * sum(len(group.inner) for group in self._groups)

    def rebind(self, solver: SNES) -> None:
        self._restrict(solver)

    def _restrict(self, solver: SNES) -> None:
        self._restrictions = [solver.problem.restrict(group.outer) for group in self._groups]

    def _divide(self, solver: SNES) -> list[_Group]:
        problem, kind = solver.problem, self.options.blocks
        if self._dm is not None:
            blocks = [s.block for s in dm.decompose(problem, self._dm, solver.prefix).subdomains]
            return [_Group(block, (slice(0, block.n),)) for block in blocks]
        groups = []
        for k, layer in enumerate(problem.layers):
            outer = Block(layer, f"layers {k}")
            inside = [t for t in problem.tensors if layer.start <= t.start < layer.stop]
            lengths = {
                "layers": [outer.n],
                "tensors": [t.stop - t.start for t in inside],
                "unknowns": [1] * outer.n,
            }[kind]
            groups.append(_Group(outer, slices(lengths)))
        return groups

    def step(self, solver: SNES, point: Point) -> Step:
        space = solver.problem.space
        x = space.gather(point.x).clone()
        known: Tensor | None = space.gather(point.g)
        before = list(self._scales)
        with solver.log.event("SNESNGSEval", solver.label):
            for _ in range(self.options.sweeps):
                known = self._sweep(solver, x, point.f, known)
        if known is not None:
            return Step(point, "no block moves")
        x = space.local(x).clone()
        new = solver.point(x, *solver.gradient(x))
        if not new.finite:
            return Step.broken(point, "after the sweep")
        if new.f <= point.f:
            return Step(new)
        self._scales = before  # or the same sweep would be tried again for what it has learnt
        return Step(point, "after the sweep: the objective rises")

    def _sweep(self, solver: SNES, x: Tensor, f: float, known: Tensor | None) -> Tensor | None:
        """Sweep once over the whole vector x (n,), in place; `known` is the gradient at x. Collective."""
        firsts = [0, *accumulate(len(group.inner) for group in self._groups)]
        for group, outer, first in zip(self._groups, self._restrictions, firsts[:-1], strict=True):
            layer = outer.rebase(x)
            # The frozen prefix is part of an objective, not an evaluation of its own.
            solver.work.counts[0, 2] += (solver.problem.cost.objective - outer.cost.objective) / solver.unit.objective
            for k, indices in enumerate(group.inner):
                local = outer if layer[indices].shape == layer.shape else outer.restrict(Block(indices, ""))
                start = layer if local is outer else local.rebase(layer)
                g = None if known is None else known[group.outer.indices][indices].clone()
                end, f = self._solve(solver, local, start, (f, g), first + k)
                if not torch.equal(end, start):
                    known = None
                layer[indices] = end
            x[group.outer.indices] = layer
        return known

    def _solve(
        self, solver: SNES, local: Restriction, t: Tensor, known: tuple[float, Tensor | None], number: int
    ) -> tuple[Tensor, float]:
        """Step along a block's gradient from t, shape (block.n,); return where it ends, with L there. Collective."""
        o, space = self.options, local.space

        def value(t: Tensor) -> float:
            solver.work.add("objectives", local.cost.objective / solver.unit.objective)
            return local.objective(t)

        def both(t: Tensor) -> tuple[float, Tensor]:
            solver.work.add("gradients", local.cost.gradient / solver.unit.gradient)
            return local.value_and_gradient(t)

        f, g = (known[0], known[1]) if known[1] is not None else both(t)
        size = space.norm(g)
        enough = max(o.atol, o.rtol * size)
        assert solver.linesearch is not None
        for _ in range(o.max_it):
            if not size > enough:  # also catches not-a-number
                break
            line = Line(value, both, space, t, self._scale(solver, local, t, g, number) * g, f, g)
            result = solver.linesearch.search(line)
            if result.failure:
                break
            f_new, g_new = line.gradient(result.step)
            size = space.norm(g_new)
            if not math.isfinite(f_new + size):
                break
            s = line.at(result.step) - t
            self._learn(number, space.dot(s, s), space.dot(s, g_new - g))
            t, f, g = t + s, f_new, g_new
            if space.norm(s) <= o.stol * space.norm(t):
                break
        return t, f

    def _scale(self, solver: SNES, local: Problem, t: Tensor, g: Tensor, number: int) -> float:
        """Return the inverse of the curvature along g; without one, what makes a unit step in the 1-norm at most."""
        if not self.options.secant:
            solver.work.add("hessians", local.cost.hessian / solver.unit.hessian)
            curvature = local.space.dot(g, local.hessian_action(t, g))
            if curvature > 0:
                return local.space.dot(g, g) / curvature
        return self._scales[number] or min(1.0, 1.0 / float(g.abs().sum()))

    def _learn(self, number: int, ss: float, sy: float) -> None:
        if sy > 0 and math.isfinite(ss / sy):
            self._scales[number] = ss / sy

    def reset(self) -> bool:
        had = any(self._scales)
        self._scales = [0.0] * len(self._scales)
        return had

    def state(self, solver: SNES) -> Tree:
        return {"scales": np.array(self._scales)}

    def load(self, solver: SNES, state: Tree) -> None:
        self._scales = list(map(float, state["scales"]))

    def brief(self) -> str:
        return f"ngs({len(self._scales)} {self.options.blocks if self._dm is None else 'subdomains'})"

    def view(self) -> list[str]:
        o = self.options
        blocks = "subdomains" if self._dm is not None else o.blocks
        how = "secant" if o.secant else "Newton"
        return [
            f"{len(self._scales)} blocks ({blocks}), sweeps={o.sweeps}, {how} steps, at most {o.max_it} on a block",
            f"tolerances on a block: relative={o.rtol:g}, absolute={o.atol:g}, solution={o.stol:g}",
        ]
