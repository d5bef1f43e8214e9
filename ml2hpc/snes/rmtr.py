"""Recursive trust regions: a trust region on every level, coarse corrections as steps of the finer level's region.

    smooth H_l in its region;   x_{l-1} <- argmin H_{l-1}, roughly, from P x_l, in |I (x_{l-1} - P x_l)| <= Delta_l
    rho = (H_l(x_l) - H_l(x_l + s)) / (H_{l-1}(P x_l) - H_{l-1}(x_{l-1})),   s = I (x_{l-1} - P x_l)
    x_l <- x_l + s if rho > eta;   Delta_l by rho;   smooth

Smoothing is by `newtontr`, whose radius is Delta_l. Its model learns from its own steps only: the coarse ones are
smooth, and their curvature takes the place of what smoothing needs.

With mini-batches an iteration is an epoch: all samples in an order that is drawn anew, cut in k parts, and a cycle on
each, which sees L_b, the loss over part b. Then L itself is evaluated:

    rho = k (L(x_0) - L(x_k)) / sum_b (L_b(x_{b-1}) - L_b(x_b)),   x_0 <- x_k if L falls;   k falls if rho <= threshold

Where batches no longer predict the whole they grow, until k is 1 and nothing is drawn any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ml2hpc.errors import OptionsError
from ml2hpc.options import option
from ml2hpc.snes.interface import SNES, Method, Point, Region, Step, Tree
from ml2hpc.snes.levels import Cycle, LevelSolvers, SmoothingOptions, visits

_SPENT = 1e-6  # of what the finer level allows: with less of it left, a level is done
_ON = 0.9  # of what a level allows: several steps inside end near the boundary, not on it
_ROUNDING = 1e-12  # of L: a decrease below is judged by gradients
# As in the published implementation for residual networks.
_REGION = {
    "snes_type": "newtontr",
    "snes_tr_qn": "lsr1",
    "snes_tr_delta0": 10.0,
    "snes_tr_eta2": 0.25,
    "snes_tr_eta3": 0.75,
    "snes_tr_t1": 0.5,
    "snes_tr_t2": 2.0,
}


_Step = tuple[Point, Point, Tensor]
"""Two points of a level, and the step between them."""


class RecursiveTrustRegion(Method):
    """Trust-region cycles over a hierarchy: L never rises, from any start, whatever the coarse levels are.

    A level's steps stay together in the region of the finer one: |I e| <= |I| |e|, where the bound of |I| is exact for
    interpolation by constants, in the maximum norm and, in the metric of functions, in the 2-norm.

    References
    ----------
    Gratton, Sartenaer, Toint: Recursive trust-region methods for multiscale nonlinear optimization, SIAM J. Optim. 19
    (2008); Kopaničáková, Krause: Globally convergent multilevel training of deep residual networks, SIAM J. Sci.
    Comput. 45 (2023).
    """

    @dataclass(frozen=True)
    class Options(SmoothingOptions):
        """Options `-snes_rmtr_*`."""

        cycles: Cycle = option("1", "1: V-cycles, 2: W-cycles, f: F-cycles", aliases={"v": "1", "w": "2"})
        # The published implementation accepts where it does not shrink the region.
        eta: float = option(
            0.25,
            "take a coarse step when L falls by more than this share of what the coarse level predicts",
            above=0.0,
            below=1.0,
        )
        batch: int = option(
            0,
            "samples in a mini-batch, at first; an iteration makes a cycle on each of an epoch; 0 takes all",
            at_least=0,
        )
        # All smaller batches together cost no more epochs than there are doublings: log2(samples / batch).
        batch_growth: float = option(
            2.0, "factor of a growing mini-batch: large ones are soon all samples, small ones stay cheap", above=1.0
        )
        # As eta: what would refuse a coarse level refuses a batch.
        batch_threshold: float = option(
            0.25,
            "mini-batches grow when L falls over an epoch by at most this share of what a cycle predicts",
            above=0.0,
        )

    name = "rmtr"
    title = "Recursive trust regions (rmtr)"
    defaults = {"stol": 0.0}  # short steps are the regions', not convergence

    def configure(self, solver: SNES) -> None:
        self._levels = LevelSolvers(solver, "rmtr", self.options, _REGION, {})
        self._norms: list[Literal["2", "infinity"]] = []
        for child in self._levels.children:
            if child.method.region is None:
                raise OptionsError(f"-{child.prefix}snes_type {child.method.name}: has no trust region; use newtontr")
            self._norms.append(child.method.region.norm)
        if len(set(self._norms)) > 1:
            raise OptionsError(
                f"-{solver.prefix}rmtr_levels_snes_tr_norm_type: regions of one norm bound those of the next coarser "
                f"level; choose the same on all levels"
            )
        self._failures = 0  # iterations in a row that failed
        self._parts = 0  # of the samples, each a mini-batch; found by the first iteration

    def set_up(self, solver: SNES) -> None:
        self._levels.set_up(solver)
        self._most = math.inf  # how far the parent allows
        self._bound()
        self.begin(solver)

    def rebind(self, solver: SNES) -> None:
        self._levels.rebind(solver)
        self._bound()

    def _bound(self) -> None:
        """Find bounds of |I| in the regions' norm. Collective."""
        levels = self._levels.levels
        place = ("2", "infinity").index(self._norms[0])
        self._bounds = [
            levels.transfer(k).norms(levels[k].problem.space, levels[k + 1].problem.space)[place]
            for k in range(self._levels.finest)
        ]

    def begin(self, solver: SNES) -> None:
        self._origin: Point | None = None  # where the parent's ball is centred

    def confine(self, radius: float) -> None:
        self._most = radius

    # Cycles. -----------------------------------------------------------------------------------------------------

    def step(self, solver: SNES, point: Point) -> Step:
        before = self._levels.work
        step = self._epoch(solver, point) if self._count(solver) > 1 else self._whole(solver, point)
        solver.work.counts += self._levels.work.counts - before.counts
        return step

    def _count(self, solver: SNES) -> int:
        """Return the number of mini-batches in an epoch. Not collective."""
        if not self._parts:
            self._parts = math.ceil(solver.problem.samples / self.options.batch) if self.options.batch else 1
        return min(self._parts, solver.problem.samples)

    def _whole(self, solver: SNES, point: Point) -> Step:
        """Make a cycle on L. Collective."""
        start, end = self._from(solver, point, None)
        moved = solver.problem.space.norm(end.x - start.x) > 0.0
        self._failures = 0 if moved else self._failures + 1
        return Step(self._levels.close(solver, end)) if moved else Step(point, "no level lowers the objective")

    def _epoch(self, solver: SNES, point: Point) -> Step:
        """Make a cycle on each mini-batch; go back if L has not fallen; grow batches by the ratio. Collective."""
        order, n, parts = self._levels.shuffled(solver.problem.samples), solver.problem.samples, self._count(solver)
        new, predicted = point, 0.0
        for k in range(parts):
            rows = order[k * n // parts : (k + 1) * n // parts]
            start, end = self._from(solver, new, rows.sort().values)
            if not start.finite:
                break
            predicted += (start.f - end.f) / parts
            new = self._levels.at(end)
        new = solver.point(new.x, *solver.gradient(new.x))
        decrease = point.f - new.f if new.finite else -math.inf
        if not (predicted > 0.0 and decrease > self.options.batch_threshold * predicted):
            self._parts = max(1, min(parts - 1, math.floor(parts / self.options.batch_growth)))
        return Step(new if decrease > 0.0 else point)

    def _from(self, solver: SNES, point: Point, rows: Tensor | None) -> tuple[Point, Point]:
        """Make a cycle over some samples; return where it starts and where it ends on the finest level. Collective."""
        levels = self._levels
        start = levels.over(solver, point, rows)
        if not start.finite:
            return start, start
        self._origin = self._origin or start
        return start, self._cycle(levels.finest, self._origin, start, self._most, self.options.cycles)

    def _cycle(self, level: int, origin: Point, point: Point, limit: float, kind: Cycle) -> Point:
        """Make a cycle on H_l from a point, not further than `limit` from the origin. Collective."""
        steps = self._levels.steps[level]
        point = self._smooth(level, point, steps.down, self._room(level, origin, point, limit))
        if level == 0:
            return point
        point = self._correct(level, point, self._room(level, origin, point, limit), kind)
        return self._smooth(level, point, steps.up, self._room(level, origin, point, limit))

    def _room(self, level: int, origin: Point, point: Point, limit: float) -> float:
        """How much of the way that the finer level allows is left."""
        if limit == math.inf:
            return limit
        left = limit - self._length(level, point.x - origin.x)
        return left if left > _SPENT * limit else 0.0

    def _length(self, level: int, s: Tensor) -> float:
        return Region(0.0, self._norms[level]).length(self._levels.levels[level].problem.space, s)

    def _smooth(self, level: int, point: Point, steps: int, room: float) -> Point:
        if room == 0.0:
            return point
        self._levels.children[level].method.confine(room)
        return self._levels.smooth(level, point, steps)

    def _correct(self, level: int, point: Point, room: float, kind: Cycle) -> Point:
        """Make a coarse step in the region of a level; return its end if it is taken, else the point. Collective."""
        levels, child = self._levels, self._levels.children[level]
        region = child.method.region
        assert region is not None
        start = levels.below(level, point) if room > 0.0 else None
        if start is None:
            return point
        radius = min(region.radius, room) / self._bounds[level - 1]
        end = start
        for visit in visits(level, kind):
            end = self._cycle(level - 1, start, end, radius, visit)
        e = end.x - start.x
        levels.tried += 1
        s = levels.levels.transfer(level - 1).prolong(e)
        if self._length(level, s) == 0.0:
            levels.rejected += 1
            return point
        new = levels.evaluated(level, point.x + s)
        rho = self._ratio(level, (point, new, s), (start, end, e)) if new.finite else -math.inf
        child.method.judge(child, s, rho, bound=self._length(level - 1, e) >= _ON * radius)
        if rho > self.options.eta:
            return new
        levels.rejected += 1
        return point

    def _ratio(self, level: int, fine: _Step, coarse: _Step) -> float:
        """Return the decrease of H_l over that of H_{l-1}; by gradients, where rounding hides one. Collective."""
        found = []
        hidden = any(abs(old.f - new.f) <= _ROUNDING * abs(old.f) for old, new, _ in (fine, coarse))
        for k, (old, new, s) in ((level, fine), (level - 1, coarse)):
            dot = self._levels.levels[k].problem.space.dot
            found.append(-0.5 * dot(old.g + new.g, s) if hidden else old.f - new.f)
        decrease, predicted = found
        return decrease / predicted if predicted > 0.0 else -math.inf

    # State and views. --------------------------------------------------------------------------------------------

    def reset(self) -> bool:
        # Where levels without a memory have failed too, another try changes nothing.
        return self._levels.forget() and self._failures < 2

    def state(self, solver: SNES) -> Tree:
        return {**self._levels.state(), "failures": self._failures, "parts": self._parts, "batch": self.options.batch}

    def load(self, solver: SNES, state: Tree) -> None:
        self._levels.load(state)
        self._failures = int(state["failures"])
        self._parts = int(state["parts"]) if int(state["batch"]) == self.options.batch else 0

    def inner(self) -> list[tuple[str, SNES]]:
        return self._levels.inner()

    def brief(self) -> str:
        return f"rmtr({self._levels.brief()})"

    def view(self) -> list[str]:
        o = self.options
        name = {"1": "V", "2": "W", "f": "F"}[o.cycles]
        lines = [
            f"{name}-cycles, eta={o.eta:g}, regions in the norm {self._norms[0]}",
            *self._levels.view(self._levels.steps),
        ]
        if o.batch:
            lines += [
                f"mini-batches: {self._parts} an epoch, growth={o.batch_growth:g}, threshold={o.batch_threshold:g}"
            ]
        return lines
