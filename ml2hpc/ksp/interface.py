"""What a Krylov method sees: an operator, a preconditioner, a right-hand side; and what it returns.

Operators are callables on tensors of shape (n_local,); inner products go through the vector space, so that replicated
and sharded vectors are solved alike. All numbers that steer a solve are the same on every rank.

A Newton method minimises, and wants to know where its matrix is not positive definite: a solve returns the first
direction d with <d, B d> <= 0 that it meets, and the iterate before it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ml2hpc.options import option
from ml2hpc.vec import VectorSpace

Action = Callable[[Tensor], Tensor]
"""A linear map of vectors (n_local,); collective."""

Monitor = Callable[[int, float], None]
"""Called with the iteration and the residual norm."""

Tree = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Options `-ksp_*`."""

    # Hessians are symmetric, and conjugate gradients need the least memory and see negative curvature at once.
    type: Literal["cg", "minres", "gmres", "preonly"] = option(
        "cg", "Krylov method; gmres where the operator is not symmetric, preonly applies the preconditioner once"
    )
    # PETSc's; Newton's method asks for less while it is far away, by -snes_ksp_ew.
    rtol: float = option(
        1e-5,
        "stop when the residual norm fell by this factor (newtonls, aspin: with -snes_ksp_ew false)",
        at_least=0.0,
        below=1.0,
    )
    atol: float = option(1e-50, "stop when the residual norm is below", at_least=0.0)
    # PETSc's 10000 would cost as much as 20000 gradients; Hessians of networks are so ill-conditioned that long solves
    # gain nothing, and a truncated one descends as well.
    max_it: int = option(200, "most iterations of one linear solve", at_least=1)
    # PETSc's: 60 vectors at most, with a preconditioner.
    gmres_restart: int = option(30, "iterations between two restarts (gmres)", at_least=1)
    monitor: str | None = option(None, "print the residual norm at every iteration, [ascii][:file]", alone="")
    converged_reason: str | None = option(None, "print why each linear solve ended, [ascii][:file]", alone="")


@dataclass(frozen=True)
class Tolerances:
    """When a solve ends: |r| <= max(rtol |b|, atol), or after max_it iterations."""

    rtol: float = 1e-5
    atol: float = 1e-50
    max_it: int = 200
    restart: int = 30

    def wanted(self, norm: float) -> float:
        """Return the residual norm to reach from |b|. Not collective."""
        return max(self.rtol * norm, self.atol)


class Reason(IntEnum):
    """Why a linear solve ended: PETSc's names and numbers."""

    CONVERGED_RTOL = 2
    CONVERGED_ATOL = 3
    CONVERGED_ITS = 4
    CONVERGED_NEG_CURVE = 5
    DIVERGED_ITS = -3
    DIVERGED_BREAKDOWN = -5
    DIVERGED_NANORINF = -9


@dataclass(frozen=True)
class Solution:
    """What a solve found.

    Attributes
    ----------
    x
        Shape (n_local,); after CONVERGED_NEG_CURVE the iterate before, which is zero at the first iteration.
    norm
        Residual norm in which convergence was tested.
    curvature
        A direction d with <d, B d> <= 0 and <d, b> > 0, if one was met.
    """

    x: Tensor
    reason: Reason
    iterations: int
    norm: float
    curvature: Tensor | None = None


class Operator:
    """A linear map with, where one is known, a cheap way to its matrix.

    Parameters
    ----------
    action
        v -> B v, both of shape (n_local,).
    matrix
        Makes B as a whole, shape (n, n); None: by n actions.
    """

    def __init__(self, space: VectorSpace, action: Action, matrix: Callable[[], Tensor] | None = None) -> None:
        self.space = space
        self.action = action
        self._matrix = matrix

    def matrix(self) -> Tensor:
        """Return B, shape (n, n), whole on every rank. Collective."""
        if self._matrix is not None:
            return self._matrix()
        columns = []
        for k in range(self.space.n):
            unit = torch.zeros(self.space.n, dtype=self.space.dtype, device=self.space.device)
            unit[k] = 1.0
            columns.append(self.action(self.space.local(unit).clone()))
        return self.space.gather(torch.stack(columns, 1))


class Preconditioner(ABC):
    """P^-1, symmetric positive definite, made from the operator."""

    name: ClassVar[str]

    @abstractmethod
    def set_up(self, operator: Operator) -> None:
        """Prepare for an operator; may keep what an earlier one gave. Collective."""

    @abstractmethod
    def apply(self, r: Tensor) -> Tensor:
        """Return P^-1 r, shape (n_local,). Collective if sharded."""

    def reset(self) -> bool:
        """Forget what an earlier operator gave; return whether it differs from what is now made. Not collective."""
        return False

    def state(self) -> Tree:
        """Return what a restart needs, whole, on rank 0. Collective."""
        return {}

    def load(self, space: VectorSpace, state: Tree) -> None:  # noqa: B027 - most are made anew for each operator
        """Take over a state that every rank has. Not collective."""

    @abstractmethod
    def view(self) -> list[str]:
        """Return lines for -snes_view. Not collective."""


@dataclass(frozen=True)
class System:
    """B x = b as a Krylov method sees it.

    Attributes
    ----------
    precondition
        P^-1; None for the identity.
    definite
        Whether a direction of nonpositive curvature ends the solve: B is symmetric and should be positive definite.
    """

    space: VectorSpace
    action: Action
    precondition: Action | None
    tolerances: Tolerances
    definite: bool
    monitor: Monitor


def ending(norm: float, start: float, iterations: int, tolerances: Tolerances) -> Reason | None:
    """Return why a solve ends at a residual norm, None if it goes on. Not collective."""
    if not math.isfinite(norm):
        return Reason.DIVERGED_NANORINF
    if norm <= tolerances.wanted(start):
        return Reason.CONVERGED_RTOL if norm <= tolerances.rtol * start and norm > 0.0 else Reason.CONVERGED_ATOL
    return Reason.DIVERGED_ITS if iterations >= tolerances.max_it else None
