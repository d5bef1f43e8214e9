"""What Newton's methods have in common: the linear systems B y = r of the iterates, and their solutions.

    right or no NPC     B the Hessian of L, or its Gauss-Newton part, damped by mu I;  r = grad L(x)
    left NPC            B the derivative of the residual,  r = x - M(x)

The derivative of x - M(x) comes from the NPC where that knows it, else from differences, each of them an NPC's solve.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ml2hpc import ksp
from ml2hpc.errors import OptionsError
from ml2hpc.ksp import Action, Forcing, ForcingOptions, Operator, Reason, Solution
from ml2hpc.snes.interface import SNES, DirectionMethod, Point, Tree


class Newton(DirectionMethod):
    """Solve B y = r, exactly or as far as the forcing term asks.

    Where B is symmetric and the solver meets a direction d with <d, B d> <= 0, y is the iterate before; if d is the
    first direction, y is its multiple d <d, g> / <d, d>, which without a preconditioner is the gradient. A direct
    solver takes |B|. So every y descends, and none leads to a maximum.

    References
    ----------
    Dembo, Eisenstat, Steihaug: Inexact Newton methods, SIAM J. Numer. Anal. 19 (1982). Nocedal, Wright: Numerical
    Optimization (2006), algorithm 7.1.
    """

    forces: ClassVar[bool] = True  # whether forcing terms replace -ksp_rtol
    inverts = True
    model = "hessian"
    damping = 0.0

    solved = False  # whether the last linear solve converged

    def configure(self, solver: SNES) -> None:
        self._is_left = left = solver.side == "left"
        self._forcing_options = ForcingOptions(ew=False)
        if self.forces:
            self._forcing_options = solver.read(ForcingOptions, "snes_ksp_", "Forcing terms (Eisenstat-Walker)")
        # The derivative of x - M(x) is not symmetric.
        defaults = {"type": "gmres"} if left else {}
        self.ksp = ksp.create(solver.read, solver.prefix, solver.level, **defaults)
        if left:
            self._check_left(solver)
            assert solver.npc is not None
            solver.npc.method.track(solver.npc)

    def _check_left(self, solver: SNES) -> None:
        """Refuse options that a left NPC leaves without effect or makes wrong."""
        p = solver.prefix
        if self.ksp.options.type != "gmres":
            raise OptionsError(
                f"-{p}ksp_type {self.ksp.options.type}: the derivative of a left preconditioner is not symmetric; "
                f"use -{p}ksp_type gmres"
            )
        if self.ksp.preconditioned:
            raise OptionsError(
                f"-{p}pc_type: the nonlinear preconditioner on the left preconditions already; use -{p}pc_type none"
            )
        if self.model != "hessian" or self.damping > 0.0:
            raise OptionsError(
                f"-{p}snes_{self.name}_model, -{p}snes_{self.name}_damping: a left preconditioner has a derivative of "
                f"its own; leave them away, or use -{p}snes_npc_side right"
            )

    def set_up(self, solver: SNES) -> None:
        if self.model == "gn":
            solver.problem.linearize(solver.problem.space.zeros())  # refuses what is no sum of squares
        self._begin()

    def _begin(self) -> None:
        self._forcing = Forcing(self._forcing_options)
        self._first: float | None = None  # norm of the residual at the start
        self._followed: Point | None = None  # where the forcing term was chosen

    def begin(self, solver: SNES) -> None:
        self._begin()

    def rebind(self, solver: SNES) -> None:
        self.ksp.reset()

    def reset(self) -> bool:
        return self.ksp.reset()

    def direction(self, solver: SNES, point: Point) -> Tensor:
        norm = solver.problem.space.norm(point.r)
        if norm == 0.0:
            return point.g  # at a minimum, or the NPC made no step
        rtol = self._tolerance(solver, point, norm)
        if solver.side == "left":
            return self._left(solver, point, rtol)
        self._prepare(solver, self._operator(solver, point.x))
        solution = self.ksp.solve(point.g, rtol)
        self.solved = solution.reason > 0 and solution.reason is not Reason.CONVERGED_NEG_CURVE
        self._forcing.linear = solution.norm if math.isfinite(solution.norm) else norm
        return self._descent(solver, solution, point.g)

    def _tolerance(self, solver: SNES, point: Point, norm: float) -> float | None:
        """Return the relative tolerance of the next linear solve, None for the linear solver's own."""
        if not self._forcing_options.ew:
            return None
        if self._first is None:
            self._first = norm
        if point is not self._followed:  # another direction from the same point says nothing of the last one's decrease
            o = solver.options
            self._forcing.follow(norm, max(o.rtol * self._first, o.atol))
            self._followed = point
        return self._forcing.value

    def _prepare(self, solver: SNES, operator: Operator) -> None:
        self.ksp.set_up(operator, solver.log, talks=solver.problem.comm.rank == 0)

    def _operator(self, solver: SNES, x: Tensor, *, exact: bool = False) -> Operator:
        """Return B at x, or the Hessian itself; its actions are counted. Collective."""
        problem, work, unit = solver.problem, solver.work, solver.unit
        mu = 0.0 if exact else self.damping
        linear = problem.linearize(x) if self.model == "gn" and not exact else None
        share = (problem.cost.hessian if linear is None else linear.cost.action) / unit.hessian

        def action(v: Tensor) -> Tensor:
            work.add("hessians", share)
            with solver.log.event("SNESJacobianEval", solver.label):
                product = problem.hessian_action(x, v) if linear is None else linear.action(v)
            return product if mu == 0.0 else product + mu * v

        def matrix() -> Tensor:
            assert linear is not None
            # A matrix counts as the actions that cost as many operations.
            work.add("hessians", share, times=linear.cost.matrix / linear.cost.action)
            with solver.log.event("SNESJacobianEval", solver.label):
                whole = linear.matrix().clone()
            whole.diagonal().add_(mu)
            return whole

        return Operator(problem.space, action, None if linear is None else matrix)

    @staticmethod
    def _descent(solver: SNES, solution: Solution, g: Tensor) -> Tensor:
        """Return a direction y with <g, y> > 0 from what the linear solver found. Collective if sharded."""
        if solution.reason is Reason.DIVERGED_NANORINF:
            return g
        if solution.reason is not Reason.CONVERGED_NEG_CURVE:
            return solution.x
        d = solution.curvature
        assert d is not None
        xx, dg, dd = solver.problem.space.mdot(
            torch.stack([solution.x, d, d]), torch.stack([solution.x, g, d]).T
        ).diagonal()
        return solution.x if float(xx) > 0.0 else d * (float(dg) / float(dd))

    def _left(self, solver: SNES, point: Point, rtol: float | None) -> Tensor:
        """Return y of B y = x - M(x), or x - M(x) itself where y does not descend. Collective."""
        space = solver.problem.space
        action = solver.residual_action(point)
        operator = Operator(space, self._differences(solver, point) if action is None else action)
        self._prepare(solver, operator)
        solution = self.ksp.solve(point.r, rtol, definite=False)
        self._forcing.linear = solution.norm if math.isfinite(solution.norm) else space.norm(point.r)
        if solution.reason is Reason.DIVERGED_NANORINF or not space.dot(point.g, solution.x) > 0.0:
            return point.r
        return solution.x

    @staticmethod
    def _differences(solver: SNES, point: Point) -> Action:
        """Return v -> (r(x + h v) - r(x)) / h. Collective."""
        space = solver.problem.space
        size = math.sqrt(torch.finfo(space.dtype).eps) * (1.0 + space.norm(point.x))

        def action(v: Tensor) -> Tensor:
            norm = space.norm(v)
            if not 0.0 < norm < math.inf:
                return v.clone()
            h = size / norm
            x = point.x + h * v
            there = solver.point(x, *solver.gradient(x))
            return (there.r - point.r) / h if there.finite else torch.full_like(v, math.nan)

        return action

    def linear_solver(self, solver: SNES, x: Tensor) -> Action:
        """Return b -> H(x)^-1 b, as exactly as -ksp_rtol says; an indefinite H too, but for cg and cholesky."""
        operator = self._operator(solver, x, exact=True)

        def solve(b: Tensor) -> Tensor:
            return self.ksp.solve(b, definite=False).x

        self._prepare(solver, operator)
        return solve

    def state(self, solver: SNES) -> Tree:
        f = self._forcing
        tree: Tree = {"forcing": f.value, "norm": f.norm, "linear": f.linear, "ksp": self.ksp.state()}
        return tree if self._first is None else tree | {"first": self._first}

    def load(self, solver: SNES, state: Tree) -> None:
        f = self._forcing
        f.value, f.norm, f.linear = (float(state[key]) for key in ("forcing", "norm", "linear"))
        self._first = float(state["first"]) if "first" in state else None
        self.ksp.load(solver.problem.space, state["ksp"])

    def brief(self) -> str:
        return f"{self.name}({self.ksp.brief()})"

    def view(self) -> list[str]:
        o = self._forcing_options
        lines = ["model is the derivative of x - M(x)"]
        if not self._is_left:
            lines = [f"model is {self.model.upper()}, damping={self.damping:g}"]
        if o.ew:
            lines.append(
                f"forcing terms by Eisenstat and Walker, version {o.ew_version}: rtol_0={o.ew_rtol0:g}, "
                f"rtolmax={o.ew_rtolmax:g}, gamma={o.ew_gamma:g}, alpha={o.ew_alpha:g}, threshold={o.ew_threshold:g}"
            )
        return [*lines, *self.ksp.view()]
