"""Approximate inverse Hessians built from secant pairs s = x+ - x, y = r+ - r: what limited memory and dense share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from ml2hpc.vec import VectorSpace

Tree = dict[str, Any]


class Inverse(ABC):
    """An approximation H of the inverse Hessian. Vectors are local parts of the solver's space."""

    def __init__(self, space: VectorSpace) -> None:
        self.space = space

    @abstractmethod
    def apply(self, g: Tensor) -> Tensor:
        """Return H g, shape (n_local,). Collective."""

    @abstractmethod
    def update(self, s: Tensor, y: Tensor, g: Tensor, g_new: Tensor, step: float | None) -> None:
        """Take a pair with positive curvature. Collective.

        Parameters
        ----------
        s, y
            The pair.
        g, g_new
            Residuals at both ends, y = g_new - g.
        step
            lambda if s = -lambda H g exactly, else None.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget all pairs. Not collective."""

    @abstractmethod
    def retarget(self) -> None:
        """Forget products with old residuals and keep H: the objective has changed. Not collective."""

    @property
    @abstractmethod
    def pairs(self) -> int:
        """Number of pairs learnt since the last reset."""

    @property
    def blank(self) -> bool:
        """Whether H is the identity still."""
        return self.pairs == 0

    @property
    @abstractmethod
    def scale(self) -> float:
        """The inverse curvature where nothing else is known: s'y / y'y of the newest pair, 1 without any."""

    @abstractmethod
    def state(self) -> Tree:
        """Return whole vectors and matrices, complete on rank 0. Collective."""

    @abstractmethod
    def load(self, state: Tree) -> None:
        """Take over a state that every rank has. Not collective."""

    @abstractmethod
    def recognise(self, g: Tensor) -> None:
        """After `load`: tell that the solve goes on from the residual g. Collective if the space is sharded."""
