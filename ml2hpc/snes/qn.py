"""Quasi-Newton: y = H r with H from secant pairs, limited memory or dense. With a right NPC: ASPQN, MSPQN.

With a right NPC the pair spans the type's own step only, from the preconditioned point to the new one (the SPQN papers'
half-step pair); `-snes_qn_pairs both` also learns from the preconditioner's step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ml2hpc import kernels
from ml2hpc.dm import Transfer
from ml2hpc.errors import OptionsError
from ml2hpc.options import option
from ml2hpc.snes.coarse import CoarseStart
from ml2hpc.snes.dense import DenseInverse
from ml2hpc.snes.interface import SNES, DirectionMethod, Method, Point, Tree
from ml2hpc.snes.limited import CompactLBFGS
from ml2hpc.snes.secant import Inverse


class QuasiNewton(DirectionMethod):
    """x <- x - lambda v,  v = (1 - mu) v + mu H r.

    References
    ----------
    Kopaničáková, Kothari, Karniadakis, Krause: Enhancing training of physics-informed neural networks using domain
    decomposition based preconditioning strategies, SIAM J. Sci. Comput. 46 (2024).
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_qn_*`."""

        type: Literal["lbfgs", "bfgs", "ssbfgs", "ssbroyden"] = option(
            "lbfgs", "limited-memory BFGS, or a dense inverse by BFGS or its self-scaled relatives"
        )
        # The whole matrix takes the fewest iterations, while it fits: n^2 / 2 numbers over all ranks.
        blocks: Literal["none", "layers"] = option(
            "none", "keep a dense inverse of all unknowns, or only its diagonal blocks, one for each layer"
        )
        m: int = option(10, "stored pairs (lbfgs)", at_least=1)
        scale_type: Literal["scalar", "none"] = option(
            "scalar", "start matrix: a multiple of the identity by the last pair, or the identity (lbfgs)"
        )
        restart_type: Literal["none", "powell", "periodic"] = option("none", "when to forget all pairs")
        restart: int = option(30, "pairs between two restarts (periodic)", at_least=1)
        powell_gamma: float = option(
            0.9999, "restart when consecutive residuals are parallel to this degree (powell)", above=0.0
        )
        momentum: float = option(1.0, "weight mu of the new direction; 1 is no momentum", above=0.0, at_most=1.0)
        share: bool = option(
            False, "learn one matrix together with the right NPC: a qn of the same options, or fas of such"
        )
        recycle: bool = option(True, "keep the pairs from one solve to the next")
        pairs: Literal["step", "both"] = option("step", "learn from the step, or also from the right NPC's")
        # Relative, so that it does not depend on the scale of L; the published code asks for s'y > 1e-15.
        curvature: float = option(1e-12, "accept a pair when s'y exceeds this times |s| |y|", at_least=0.0)

    name = "qn"
    title = "Quasi-Newton (qn)"
    sides = ("right", "left")
    linesearch = {"type": "wolfe"}
    inverse: Inverse

    def set_up(self, solver: SNES) -> None:
        o, problem = self.options, solver.problem
        self._check(solver)
        self._parts = problem.layers if o.blocks == "layers" else (slice(0, problem.space.n),)
        self.inverse = (
            CompactLBFGS(problem.space, o.m, scaled=o.scale_type == "scalar", library=kernels.load())
            if o.type == "lbfgs"
            else DenseInverse(problem.space, problem.comm, o.type, self._parts, o.curvature, kernels.load())
        )
        self._of = (problem.space.n, problem.space.n_local, problem.comm.size, solver.side == "left")
        self._borrows = False  # the inverse of another solver, whose state holds it
        npc = solver.npc if solver.side == "right" else None
        if o.share and (npc is None or not self.share(npc.method.learner())):
            raise OptionsError(
                f"-{solver.prefix}snes_qn_share: there is no right NPC that learns the same matrix; use it with "
                f"-{solver.prefix}npc_snes_type qn, or fas of qn on samples, with the same -snes_qn_type"
            )
        self._velocity: Tensor | None = None
        self._previous: Tensor | None = None  # the residual of the step before, for Powell's test
        self._learnt: Point | None = None  # where the last step ended
        self._accepted = 0  # steps since the last reset
        self._lifted = False  # the memory comes from a coarser level, for the next solve
        self._gamma: float | None = None  # of a loaded state whose start matrix is a coarser level's

    def _check(self, solver: SNES) -> None:
        """Refuse options that contradict each other."""
        o = self.options
        if o.momentum < 1.0 and o.type.startswith("ss"):
            raise OptionsError(
                f"-{solver.prefix}snes_qn_momentum {o.momentum:g}: self-scaling needs steps along H r; "
                f"use 1, or -{solver.prefix}snes_qn_type lbfgs or bfgs"
            )
        if o.blocks != "none" and o.type == "lbfgs":
            raise OptionsError(
                f"-{solver.prefix}snes_qn_blocks {o.blocks}: lbfgs keeps no matrix; "
                f"use -{solver.prefix}snes_qn_type bfgs, ssbfgs or ssbroyden"
            )

    def share(self, other: Method) -> bool:
        alike = isinstance(other, QuasiNewton) and other._learns() == self._learns()
        if alike:
            assert isinstance(other, QuasiNewton)
            self.inverse, self._borrows = other.inverse, True
        return alike

    def _learns(self) -> tuple[Any, ...]:
        """What two that share a matrix have in common."""
        o = self.options
        return (*self._of, o.type, o.blocks, o.m, o.scale_type, o.curvature)

    def begin(self, solver: SNES) -> None:
        self._learnt = None
        self._previous = None
        lifted, self._lifted = self._lifted, False
        if not self.options.recycle and not lifted:
            self.reset()
            assert solver.linesearch is not None
            solver.linesearch.forget()

    def reset(self) -> bool:
        had = self._accepted > 0 or (self._borrows and self.inverse.pairs > 0)
        self.inverse.reset()
        self._velocity, self._learnt, self._accepted = None, None, 0
        return had

    def direction(self, solver: SNES, point: Point) -> Tensor:
        if self.options.pairs == "both" and self._learnt is not None and self._learnt is not point:
            self._learn(solver, self._learnt, point, None)
        if self._must_restart(solver, point):
            self.reset()
        self._previous = point.r
        y = self.inverse.apply(point.r)
        if self.inverse.blank and self._guesses(solver):
            # Without curvature the gradient's length means nothing: at most a unit step in the 1-norm.
            y *= min(1.0, 1.0 / max(solver.problem.space.one_norm(point.r), 1e-300))
        mu = self.options.momentum
        if mu < 1.0:
            self._velocity = mu * y if self._velocity is None else (1 - mu) * self._velocity + mu * y
            y = self._velocity
        return y

    def _guesses(self, solver: SNES) -> bool:
        """Whether the first step has to guess its length: the search does not measure it, and scaling is asked for."""
        assert solver.linesearch is not None
        unscaled = self.options.type == "lbfgs" and self.options.scale_type == "none"
        return not (solver.linesearch.measures or unscaled)

    def update(self, solver: SNES, old: Point, new: Point, step: float) -> None:
        exact = self.options.momentum == 1.0 and self.inverse.pairs > 0
        self._learn(solver, old, new, step if exact else None)
        self._learnt = new
        self._accepted += 1

    def _learn(self, solver: SNES, old: Point, new: Point, step: float | None) -> None:
        s, y = new.x - old.x, new.r - old.r
        sy, ss, yy = solver.problem.space.dots((s, y), (s, s), (y, y))
        if math.isfinite(sy) and sy > self.options.curvature * math.sqrt(ss * yy):
            with solver.log.event("SNESQNUpdate", solver.label):
                self.inverse.update(s, y, old.r, new.r, step)

    def _must_restart(self, solver: SNES, point: Point) -> bool:
        o = self.options
        if o.restart_type == "periodic":
            return bool(self.inverse.pairs >= o.restart)
        if o.restart_type == "powell" and self._previous is not None:
            old = self._previous
            space = solver.problem.space
            return bool(abs(space.dot(old, point.r)) >= o.powell_gamma * space.dot(old, old))
        return False

    def lift(self, coarse: Method, transfer: Transfer, masses: Tensor) -> None:
        here = self.inverse
        if not isinstance(coarse, QuasiNewton) or not isinstance(here, CompactLBFGS) or coarse.inverse is here:
            return
        there = coarse.inverse
        if coarse._of[-1] or self._of[-1]:
            return  # with a left NPC y is a change of x - M(x)
        self.reset()
        if isinstance(there, CompactLBFGS) and there.start is None:
            here.lift(there, transfer.prolong, masses)
        elif not there.blank:
            here.start = CoarseStart(here.space, there, transfer, masses, there.scale if here.scaled else 1.0)
        self._lifted = True
        self._accepted = coarse._accepted

    def relink(self, coarse: Method, transfer: Transfer, masses: Tensor) -> None:
        if self._gamma is not None:
            assert isinstance(coarse, QuasiNewton)
            assert isinstance(self.inverse, CompactLBFGS)
            self.inverse.start = CoarseStart(self.inverse.space, coarse.inverse, transfer, masses, self._gamma)

    def state(self, solver: SNES) -> Tree:
        gather = solver.problem.space.gather
        tree: Tree = {"accepted": self._accepted, "learns": self._learnt is not None}
        if not self._borrows:
            tree["inverse"] = self.inverse.state()
        for name, vector in (("velocity", self._velocity), ("previous", self._previous)):
            if vector is not None:
                tree[name] = gather(vector).cpu().numpy()
        return tree

    def load(self, solver: SNES, state: Tree) -> None:
        space = solver.problem.space
        if not self._borrows:
            self.inverse.load(state["inverse"])
            self._gamma = float(state["inverse"]["start"]) if "start" in state["inverse"] else None
        vectors = {k: space.restored(state[k]) for k in ("velocity", "previous") if k in state}
        self._accepted = int(state["accepted"])
        self._resumes = bool(state["learns"])
        self._velocity = vectors.get("velocity")
        self._previous = vectors.get("previous")

    def resume(self, solver: SNES, point: Point) -> None:
        self.inverse.recognise(point.r)
        self._learnt = point if self._resumes else None

    def rebind(self, solver: SNES) -> None:
        self.inverse.retarget()
        self._learnt, self._previous = None, None

    def brief(self) -> str:
        o = self.options
        detail = f" {o.m}" if o.type == "lbfgs" else f", {o.blocks}" if o.blocks != "none" else ""
        return f"qn({o.type}{detail}{', shared' if o.share else ''})"

    def view(self) -> list[str]:
        o = self.options
        lines = [f"type is {o.type.upper()}, restart type is {o.restart_type.upper()}, recycle is {o.recycle}"]
        if o.type == "lbfgs":
            lines.append(f"Stored subspace size: {o.m}, scale type is {o.scale_type.upper()}")
        else:
            blocks = f" in {len(self._parts)} diagonal blocks, by layers" if o.blocks == "layers" else ""
            numbers = sum(n * (n + 1) // 2 for n in (part.stop - part.start for part in self._parts))
            lines.append(f"dense inverse{blocks}: {numbers} numbers over all ranks")
        if isinstance(self.inverse, CompactLBFGS) and self.inverse.start is not None:
            lines.append("start matrix: the inverse of the next coarser level, and a multiple of the identity")
        if o.momentum < 1.0:
            lines.append(f"momentum: {o.momentum:g} of the new direction")
        return [*lines, f"secant pairs from: {o.pairs}"]
