"""Gauss-Newton for sums of squares: s = -(A + mu D)^-1 g with A = 2 J' J, damped (Levenberg-Marquardt) or searched.

A sum of squares is known through its linearization: A as a dense matrix, factored, or by its action, inside conjugate
gradients. Where A is singular, as Jacobians of networks are, damping bounds the step; without damping, the step is the
shortest of those that solve the linearised problem.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ml2hpc.errors import OptionsError
from ml2hpc.ksp import Forcing, Tolerances, conjugate_gradients
from ml2hpc.ksp import System as LinearSystem
from ml2hpc.options import option
from ml2hpc.problem.interface import Linearization
from ml2hpc.snes.interface import SNES, DirectionMethod, Point, Step, Tree

_TRIALS = 10  # of one step; each multiplies the damping by twice the factor before, so that the last is 2^55 times it
_SUFFICIENT = 1e-4  # of the predicted decrease; Nielsen asks for more than none
_DEAD = 1e-8  # least entry of the scaling D against its largest: a parameter without influence has none of its own


class GaussNewton(DirectionMethod):
    """x <- x - (A + mu D)^-1 g, taken if L falls; else mu grows, and the linearization is used again.

    With rho the decrease of L over that of its linearised model, mu <- mu max(1/3, 1 - (2 rho - 1)^3) after a step,
    and mu <- 2 mu, 4 mu, 8 mu, ... after each failure.

    References
    ----------
    Nielsen: Damping parameter in Marquardt's method, IMM-REP-1999-05, DTU (1999). Marquardt, SIAM J. Appl. Math. 11
    (1963). Eisenstat, Walker: Choosing the forcing terms in an inexact Newton method, SIAM J. Sci. Comput. 17 (1996).
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_gn_*`."""

        # Jacobians of networks are nearly singular: undamped steps are long where the linearization says nothing.
        regularization: Literal["lm", "none"] = option(
            "lm", "damp the step (Levenberg-Marquardt), or search along the undamped one"
        )
        # Exact steps take the fewest iterations, while the matrix fits: 24 n^2 bytes on every rank with its factor.
        linear: Literal["dense", "cg"] = option(
            "dense", "factor the matrix, or conjugate gradients with its action where it is too large"
        )
        # Nielsen's choice for a start that may be far away; on PINNs 1e-5 fails more often, 0.1 ends at larger errors.
        damping: float = option(
            1e-3, "first damping, relative to the curvature along the gradient (lm)", above=0.0, below=math.inf
        )
        # The losses of PINNs fall alike with both; with the identity, parameters without influence stay.
        scaling: Literal["identity", "diagonal"] = option(
            "identity", "what is damped: all unknowns alike, or each by its own curvature (lm, dense)"
        )
        recycle: bool = option(True, "keep the damping from one solve to the next")
        # An inexact step is enough while the damping is large: bounded work, and a forcing term of 0.1 at most.
        cg_max_it: int = option(50, "most actions of the matrix in one linear solve (cg)", at_least=1)
        cg_rtol: float = option(
            0.1, "largest relative residual of a linear solve; it falls as the gradient does (cg)", above=0.0, below=1.0
        )

    name = "gn"
    title = "Gauss-Newton and Levenberg-Marquardt (gn)"
    sides = ("right",)
    linesearch = {"type": "bt"}  # the full step is the natural one; searched with -snes_gn_regularization none only

    def configure(self, solver: SNES) -> None:
        o = self.options
        if o.scaling == "diagonal" and o.regularization == "none":
            raise OptionsError(
                f"-{solver.prefix}snes_gn_scaling diagonal: scales the damping, and there is none; "
                f"use -{solver.prefix}snes_gn_regularization lm"
            )
        if o.scaling == "diagonal" and o.linear == "cg":
            raise OptionsError(
                f"-{solver.prefix}snes_gn_scaling diagonal: conjugate gradients see no diagonal; "
                f"use -{solver.prefix}snes_gn_linear dense, or the scaling identity"
            )

    def set_up(self, solver: SNES) -> None:
        solver.problem.linearize(solver.problem.space.zeros())  # refuses what is no sum of squares
        self._n = solver.problem.space.n
        self._damping: float | None = None
        self._forcing = Forcing.quadratic(self.options.cg_rtol)

    def begin(self, solver: SNES) -> None:
        self._forcing = Forcing.quadratic(self.options.cg_rtol)
        if not self.options.recycle:
            self._damping = None

    def step(self, solver: SNES, point: Point) -> Step:
        if self.options.regularization == "none":
            return super().step(solver, point)
        if solver.problem.space.norm(point.g) == 0.0:
            return Step(point, "the gradient is zero")
        system = self._system(solver, point)
        damping = self._damping
        if damping is None:
            damping = max(self.options.damping * system.scale(point.g), system.least)
        growth = 2.0
        for trial in range(_TRIALS):
            s = self._solve(solver, system, point.g, damping)
            if s is not None:
                decrease = system.decrease(point.g, s, damping)
                new = self._try(solver, point, s, decrease, first=trial == 0)
                if new is not None:
                    rho = (point.f - new.f) / decrease
                    damping *= max(1.0 / 3.0, 1.0 - (2.0 * rho - 1.0) ** 3)
                    self._damping = max(damping, system.least)
                    return Step(new)
            damping *= growth
            growth *= 2.0
        return Step(point, "no damping of the Gauss-Newton step lowers the objective")

    def direction(self, solver: SNES, point: Point) -> Tensor:
        s = self._solve(solver, self._system(solver, point), point.g, 0.0)
        assert s is not None, "an undamped step always exists"
        return -s

    def _system(self, solver: SNES, point: Point) -> System:
        linear = solver.problem.linearize(point.x)
        if self.options.linear == "cg":
            self._forcing.follow(solver.problem.space.norm(point.g))
            return Krylov(solver, linear, self.options.cg_max_it, self._forcing.value)
        with solver.log.event("SNESJacobianEval", solver.label):
            return Dense(solver, linear, diagonal=self.options.scaling == "diagonal")

    @staticmethod
    def _solve(solver: SNES, system: System, g: Tensor, damping: float) -> Tensor | None:
        with solver.log.event("KSPSolve", solver.label):
            return system.solve(g, damping)

    @staticmethod
    def _try(solver: SNES, point: Point, s: Tensor, decrease: float, *, first: bool) -> Point | None:
        """Return the point at x + s if L falls enough there, else None."""
        x = point.x + s
        least = point.f - _SUFFICIENT * decrease
        # Most first trials are taken, so that their gradient is not computed in vain; of the others few are.
        if not first and not solver.objective(x) < least:
            return None
        new = solver.point(x, *solver.gradient(x))
        return new if new.finite and new.f < least and new.f < point.f else None

    def state(self, solver: SNES) -> Tree:
        tree: Tree = {"forcing": self._forcing.value, "norm": self._forcing.norm}
        return tree if self._damping is None else tree | {"damping": self._damping}

    def load(self, solver: SNES, state: Tree) -> None:
        self._damping = float(state["damping"]) if "damping" in state else None
        self._forcing.value, self._forcing.norm = float(state["forcing"]), float(state["norm"])

    def brief(self) -> str:
        return f"gn({self.options.regularization} {self.options.linear})"

    def view(self) -> list[str]:
        o = self.options
        how = "the line search chooses the step"
        if o.regularization == "lm":
            how = f"first damping {o.damping:g}, scaling is {o.scaling.upper()}, recycle is {o.recycle}"
        inner = f", a matrix of {self._n} x {self._n} on every rank"
        if o.linear == "cg":
            inner = f", at most {o.cg_max_it} actions, relative residual {o.cg_rtol:g}"
        return [f"regularization is {o.regularization.upper()}: {how}", f"linear solver is {o.linear.upper()}{inner}"]


class System(ABC):
    """The linear systems (A + mu D) s = -g of one point."""

    least = 1e-300  # damping below which the matrix is singular to rounding

    @abstractmethod
    def solve(self, g: Tensor, damping: float) -> Tensor | None:
        """Return s, shape (n_local,), from g (n_local,); None where the damped matrix is not definite. Collective."""

    @abstractmethod
    def scale(self, g: Tensor) -> float:
        """Return y' A y / y' D y for y = D^-1 g, the curvature along the gradient. Collective."""

    @abstractmethod
    def decrease(self, g: Tensor, s: Tensor, damping: float) -> float:
        """Return how far the linearised loss falls, -g' s - s' A s / 2 = (mu s' D s - g' s) / 2. Collective."""


class Dense(System):
    """A as a matrix: Cholesky, or its pseudo-inverse where it is not damped."""

    def __init__(self, solver: SNES, linear: Linearization, *, diagonal: bool) -> None:
        self._space = solver.problem.space
        self._matrix = linear.matrix()
        cost = linear.cost
        # A matrix counts as the actions that cost as many operations.
        solver.work.add("hessians", cost.action / solver.unit.hessian, times=cost.matrix / cost.action)
        entries = self._matrix.diagonal()
        largest = float(entries.max())
        self._d = entries.clamp(min=_DEAD * largest) if diagonal else torch.ones_like(entries)
        self.least = max(torch.finfo(entries.dtype).eps * largest / float(self._d.max()), self.least)

    def solve(self, g: Tensor, damping: float) -> Tensor | None:
        whole = self._space.gather(g)
        if damping == 0.0:
            return self._space.local(-self._pseudo_inverse(whole)).clone()
        damped = self._matrix.clone()
        damped.diagonal().add_(self._d, alpha=damping)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info) != 0:
            return None
        return self._space.local(-torch.cholesky_solve(whole[:, None], factor)[:, 0]).clone()

    def _pseudo_inverse(self, g: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(self._matrix)
        kept = values > len(g) * torch.finfo(g.dtype).eps * values[-1]
        vectors = vectors[:, kept]
        return torch.mv(vectors, torch.mv(vectors.T, g) / values[kept])

    def scale(self, g: Tensor) -> float:
        whole = self._space.gather(g)
        y = whole / self._d
        return float(y @ (self._matrix @ y)) / float(y @ whole)

    def decrease(self, g: Tensor, s: Tensor, damping: float) -> float:
        whole = self._space.gather(s)
        return 0.5 * (damping * float(whole @ (self._d * whole)) - self._space.dot(g, s))


class Krylov(System):
    """A by its action: conjugate gradients from zero, stopped by the relative residual."""

    def __init__(self, solver: SNES, linear: Linearization, most: int, rtol: float) -> None:
        self._solver, self._linear = solver, linear
        self._space = solver.problem.space
        self._most, self._rtol = most, rtol

    def _action(self, v: Tensor) -> Tensor:
        self._solver.work.add("hessians", self._linear.cost.action / self._solver.unit.hessian)
        return self._linear.action(v)

    def solve(self, g: Tensor, damping: float) -> Tensor | None:
        tolerances = Tolerances(self._rtol, 0.0, self._most)
        system = LinearSystem(
            self._space, lambda p: self._action(p).add_(p, alpha=damping), None, tolerances, True, lambda k, norm: None
        )
        return -conjugate_gradients(system, g).x

    def scale(self, g: Tensor) -> float:
        return self._space.dot(g, self._action(g)) / self._space.dot(g, g)

    def decrease(self, g: Tensor, s: Tensor, damping: float) -> float:
        return 0.5 * (damping * self._space.dot(s, s) - self._space.dot(g, s))  # s is orthogonal to the residual
