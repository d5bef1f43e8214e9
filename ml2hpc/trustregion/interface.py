"""The quadratic model m(s) = <g, s> + <s, B s> / 2 of L(x + s) - L(x), and what minimises it in |s| <= Delta.

A subproblem belongs to one point and is solved for one radius after the other, each smaller than the one before, until
a step is taken; what it learns about B it keeps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ml2hpc.vec import VectorSpace


@dataclass(frozen=True)
class Trial:
    """A step, shape (n_local,), with the decrease -m(s) of the model, and whether the ball cut it short."""

    s: Tensor
    decrease: float
    boundary: bool


class Model:
    """The model of one point.

    Parameters
    ----------
    g
        The gradient, shape (n_local,).
    action
        v -> B v, shapes (n_local,). Collective.
    """

    def __init__(self, space: VectorSpace, g: Tensor, action: Callable[[Tensor], Tensor]) -> None:
        self.space, self.g, self.action = space, g, action

    def decrease(self, s: Tensor) -> float:
        """Return -m(s) = -<g, s> - <s, B s> / 2, for one action. Collective."""
        return -self.space.dot(self.g, s) - 0.5 * self.space.dot(s, self.action(s))

    def cauchy(self, longest: float) -> float:
        """Return the largest -m(-t g) for 0 <= t <= longest, for one action. Collective."""
        gg, curvature = self.space.dot(self.g, self.g), self.space.dot(self.g, self.action(self.g))
        t = min(longest, gg / curvature) if curvature > 0.0 else longest
        return t * gg - 0.5 * t * t * curvature


class Subproblem(ABC):
    """min m(s) over |s| <= Delta."""

    @abstractmethod
    def solve(self, radius: float) -> Trial:
        """Return the step for a radius. Collective."""
