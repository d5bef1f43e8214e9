"""Linear solvers by name: a Krylov method with its preconditioner, PETSc's KSP and PC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from ml2hpc.errors import OptionsError
from ml2hpc.ksp.cg import conjugate_gradients
from ml2hpc.ksp.cholesky import Cholesky
from ml2hpc.ksp.gmres import generalised_minimum_residuals
from ml2hpc.ksp.interface import Operator, Options, Preconditioner, Solution, System, Tolerances, Tree
from ml2hpc.ksp.minres import minimum_residuals
from ml2hpc.ksp.nystrom import Nystrom
from ml2hpc.ksp.preonly import precondition_only
from ml2hpc.log import Log
from ml2hpc.monitor import Viewer
from ml2hpc.options import option
from ml2hpc.vec import VectorSpace

TYPES: dict[str, Callable[[System, Tensor], Solution]] = {
    "cg": conjugate_gradients,
    "minres": minimum_residuals,
    "gmres": generalised_minimum_residuals,
    "preonly": precondition_only,
}


@dataclass(frozen=True)
class PreconditionerOptions:
    """Options `-pc_*`."""

    type: Literal["none", "nystrom", "cholesky"] = option(
        "none", "preconditioner: a low-rank sketch, or the matrix itself, factored", aliases={"lu": "cholesky"}
    )
    # Rathore et al. take 60 for PINNs; more captures more of the spectrum, an action each.
    nystrom_rank: int = option(60, "actions in a sketch, the rank that it captures", at_least=1)
    nystrom_seed: int = option(0, "seed of the test matrix of a sketch", at_least=0)
    # Rathore et al. make a sketch every 20 iterations; the leading eigenvectors hardly turn from one to the next.
    nystrom_lag: int = option(20, "linear systems that share a sketch", at_least=1)


class KSP:
    """A linear solver of the tree: `set_up` with an operator, then `solve` for right-hand sides.

    Attributes
    ----------
    iterations
        Of all solves.
    """

    def __init__(self, options: Options, pc: PreconditionerOptions, prefix: str, level: int) -> None:
        self.options, self.prefix, self._level = options, prefix, level
        if options.type == "preonly" and pc.type != "cholesky":
            raise OptionsError(
                f"-{prefix}ksp_type preonly: one application of -{prefix}pc_type {pc.type} solves nothing; "
                f"use -{prefix}pc_type cholesky"
            )
        self._pc = self._preconditioner(pc)
        self._monitor = _viewer(options.monitor, f"-{prefix}ksp_monitor")
        self._reason = _viewer(options.converged_reason, f"-{prefix}ksp_converged_reason")
        self._tolerances = Tolerances(options.rtol, options.atol, options.max_it, options.gmres_restart)
        self.iterations = 0

    @property
    def preconditioned(self) -> bool:
        """Whether there is a preconditioner."""
        return self._pc is not None

    def brief(self) -> str:
        """Return method and preconditioner in a few words. Not collective."""
        return self.options.type + ("" if self._pc is None else f", {self._pc.name}")

    def _preconditioner(self, pc: PreconditionerOptions) -> Preconditioner | None:
        if pc.type == "cholesky":
            return Cholesky(f"{self.prefix}pc_type cholesky")
        return Nystrom(pc.nystrom_rank, pc.nystrom_seed, pc.nystrom_lag) if pc.type == "nystrom" else None

    def set_up(self, operator: Operator, log: Log, *, talks: bool) -> None:
        """Take the operator of the following solves and prepare the preconditioner. Collective.

        Parameters
        ----------
        talks
            Whether this rank prints.

        Raises
        ------
        UnsupportedError
            If its matrix is to be factored and has more than `cholesky.LARGEST` rows.
        """
        self._operator, self._log, self._talks = operator, log, talks
        if self._pc is not None:
            with log.event("PCSetUp", self.prefix):
                self._pc.set_up(operator)

    def solve(self, b: Tensor, rtol: float | None = None, *, definite: bool = True) -> Solution:
        """Solve B x = b. Collective.

        Parameters
        ----------
        rtol
            Relative tolerance instead of `-ksp_rtol`.
        definite
            Whether a symmetric B should be positive definite: then the first direction of nonpositive curvature ends
            the solve. Conjugate gradients end there always.
        """
        tolerances = self._tolerances if rtol is None else replace(self._tolerances, rtol=rtol)
        precondition = None if self._pc is None else self._pc.apply
        system = System(self._operator.space, self._operator.action, precondition, tolerances, definite, self._show)
        with self._log.event("KSPSolve", self.prefix):
            solution = TYPES[self.options.type](system, b)
        self.iterations += solution.iterations
        self._tell(solution)
        return solution

    def _show(self, iteration: int, norm: float) -> None:
        if self._monitor is not None and self._talks:
            self._monitor.write(f"{'  ' * (self._level + 1)}{iteration:3d} KSP Residual norm {norm:14.12e}")

    def _tell(self, solution: Solution) -> None:
        if self._reason is not None and self._talks:
            verb = "converged" if solution.reason > 0 else "did not converge"
            whose = f"{self.prefix} " if self.prefix else ""
            self._reason.write(
                f"{'  ' * (self._level + 2)}Linear {whose}solve {verb} due to {solution.reason.name} "
                f"iterations {solution.iterations}"
            )

    def reset(self) -> bool:
        """Forget what the preconditioner keeps of earlier operators; return whether it did. Not collective."""
        return self._pc is not None and self._pc.reset()

    def state(self) -> Tree:
        """Return what a restart needs, on rank 0. Collective."""
        tree: Tree = {"iterations": self.iterations}
        return tree if self._pc is None else tree | {"pc": self._pc.state()}

    def load(self, space: VectorSpace, state: Tree) -> None:
        """Take over a state that every rank has. Not collective."""
        self.iterations = int(state["iterations"])
        if self._pc is not None:
            self._pc.load(space, state.get("pc", {}))

    def view(self) -> list[str]:
        """Return lines for -snes_view. Not collective."""
        o = self.options
        restart = f", restart={o.gmres_restart}" if o.type == "gmres" else ""
        lines = [f"KSP type: {o.type}, maximum iterations={o.max_it}, tolerances: relative={o.rtol:g}, "]
        lines[0] += f"absolute={o.atol:g}{restart}"
        lines.append(f"total number of linear solver iterations={self.iterations}")
        if self._pc is None:
            return [*lines, "PC type: none"]
        return [*lines, f"PC type: {self._pc.name}, {', '.join(self._pc.view())}"]


def create(read: Callable[..., Any], prefix: str, level: int, **defaults: Any) -> KSP:
    """Return the linear solver that the options `-<prefix>ksp_*` and `-<prefix>pc_*` describe. Not collective.

    Parameters
    ----------
    read
        Reads options under the prefix: `read(schema, stem, title, defaults)`.
    defaults
        Of `-ksp_*`.

    Raises
    ------
    OptionsError
        If nothing would be solved.
    """
    options = read(Options, "ksp_", "Krylov method (KSP)", defaults)
    return KSP(options, read(PreconditionerOptions, "pc_", "Preconditioner (PC)"), prefix, level)


def _viewer(text: str | None, name: str) -> Viewer | None:
    return None if text is None else Viewer.parse(text, name)
