"""What a line search sees: L along x - lambda y, and what it returns.

All numbers come from sums that are the same on every rank, so every rank takes every branch together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ml2hpc.options import option
from ml2hpc.vec import VectorSpace

Type = Literal["none", "bt", "secant", "cp", "bisection", "ncglinear", "wolfe"]


@dataclass(frozen=True)
class Options:
    """Options `-snes_linesearch_*`; fields that are None take the type's own default."""

    type: Type = option("wolfe", "line search", aliases={"basic": "none", "l2": "secant"})
    damping: float = option(1.0, "first step tried, at most; the end of the interval (bisection)", above=0.0)
    minlambda: float = option(1e-12, "smallest step", above=0.0)
    maxlambda: float | None = option(
        None, "largest step (1, or damping where that is larger; ncglinear and wolfe 1e6)", above=0.0
    )
    max_it: int | None = option(None, "most trial steps (secant and cp 1, bt 40, bisection 50, wolfe 25)", at_least=1)
    # Dense self-scaled updates give directions that are too long by about the same factor for many iterations: without
    # memory two thirds of the first trials raise L and are lost. From 3 on the length makes no difference.
    memory: int = option(
        3, "start from the mean of the best steps of this many searches; 0: from damping (wolfe)", at_least=0
    )
    alpha: float = option(1e-4, "sufficient decrease, as a fraction of the slope", above=0.0, below=0.5)
    curvature: float = option(0.9, "slope left over at most, as a fraction of the first (wolfe)", above=0.0, below=1.0)
    order: Literal["1", "2", "3"] | None = option(
        None, "order of the interpolation (bt 3), of the differences of slopes (cp 1)"
    )
    rtol: float = option(1e-8, "stop when the slope fell by this factor (cp, secant, bisection)", at_least=0.0)
    ltol: float | None = option(
        None, "stop when the step changes by less (cp and secant 1e-8, bisection 1e-6)", at_least=0.0
    )
    # A choice for float64: thousands of machine epsilons, above the rounding of a sum over 1e4 points.
    roundoff: float = option(
        1e-12,
        "relative noise of L, below which slopes decide instead of values (all but none)",
        at_least=0.0,
    )


@dataclass(frozen=True)
class Result:
    """The accepted step length; 0 when the search failed, with the reason."""

    step: float
    failure: str = ""


class Line:
    """phi(lambda) = L(x - lambda y), with the points where the gradient was computed.

    What is not a number, -infinity included, is returned as infinity: every comparison then says "worse".

    Parameters
    ----------
    value, both
        Evaluate L, and L with its gradient, at a vector.
    x, y
        Shape (n_local,); y is the negative of a step.
    f, g
        L and its gradient at x.
    action
        The Hessian of L at a vector times another, where a search may ask for it.
    """

    def __init__(
        self,
        value: Callable[[Tensor], float],
        both: Callable[[Tensor], tuple[float, Tensor]],
        space: VectorSpace,
        x: Tensor,
        y: Tensor,
        f: float,
        g: Tensor,
        action: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self._value = value
        self._action = action
        self._both = both
        self._space = space
        self.x = x
        self.y = y
        self.f = f
        self.slope = -space.dot(g, y)
        self._gradients: dict[float, tuple[float, Tensor]] = {0.0: (f, g)}
        self.seen_finite = False  # whether all that was asked for was a number at any trial
        self.eager = False  # whether the next value is to bring its gradient: where the first trial is most often taken

    def at(self, step: float) -> Tensor:
        """Return x - step y. Not collective."""
        return self.x - step * self.y

    def value(self, step: float) -> float:
        """Return phi(step). Collective."""
        if self.eager:
            self.eager = False
            self.gradient(step)
        known = self._gradients.get(step)
        value = self._value(self.at(step)) if known is None else known[0]
        if not math.isfinite(value):
            return math.inf
        self.seen_finite = True
        return value

    def both(self, step: float) -> tuple[float, float]:
        """Return phi(step) and phi'(step), infinity and not-a-number unless both are numbers. Collective."""
        value, gradient = self.gradient(step)
        slope = -self._space.dot(gradient, self.y)
        if not (math.isfinite(value) and math.isfinite(slope)):
            return math.inf, math.nan
        self.seen_finite = True
        return value, slope

    def curvature(self) -> float:
        """Return phi''(0) = <y, H y>, which may be no number. Collective."""
        assert self._action is not None, "the line was made without the Hessian's action"
        return self._space.dot(self.y, self._action(self.x, self.y))

    def gradient(self, step: float) -> tuple[float, Tensor]:
        """Return L and its gradient at x - step y, computed once per step. Collective."""
        if step not in self._gradients:
            self._gradients[step] = self._both(self.at(step))
        return self._gradients[step]


class LineSearch(ABC):
    """Chooses lambda > 0 such that L(x - lambda y) < L(x), up to the round-off of L; except for `none`."""

    measures: ClassVar[bool] = False  # whether the step comes from the curvature along y, whatever the length of y
    default_max_it: ClassVar[int] = 1
    default_maxlambda: ClassVar[float] = 1.0
    default_ltol: ClassVar[float] = 1e-8
    default_order: ClassVar[str] = "3"

    def __init__(self, options: Options) -> None:
        self.options = options
        self.max_it = self.default_max_it if options.max_it is None else options.max_it
        largest = max(self.default_maxlambda, options.damping)
        self.maxlambda = largest if options.maxlambda is None else options.maxlambda
        self.ltol = self.default_ltol if options.ltol is None else options.ltol
        self.order = self.default_order if options.order is None else options.order
        self.recent: list[float] = []  # best steps of the last searches, which the next one starts from, oldest first

    def search(self, line: Line) -> Result:
        """Return the step, 0 with a reason if none was found; the number of evaluations is bounded. Collective."""
        if not line.slope < 0:  # not-a-number included
            return Result(0.0, "the direction does not descend")
        return self._search(line)

    def _hidden(self, f: float, slope: float, step: float, value: float) -> bool:
        """Whether round-off hides the decrease that is asked for, and L rose from f by no more than round-off."""
        o = self.options
        noise = o.roundoff * abs(f)
        return -o.alpha * step * slope <= noise and value <= f + noise

    def _flatter(self, line: Line, step: float, value: float) -> bool:
        """Whether the slope shrinks where round-off hides the decrease. Collective."""
        return self._hidden(line.f, line.slope, step, value) and abs(line.both(step)[1]) < abs(line.slope)

    def _decrease(self, line: Line, step: float, tries: int = 40) -> Result:
        """Halve a step until L falls below L(x). Collective."""
        for _ in range(tries):
            if step < self.options.minlambda:
                break
            value = line.value(step)
            if value < line.f or self._flatter(line, step, value):
                return Result(step)
            step *= 0.5
        return Result(0.0, "no step along the direction lowers the objective")

    def forget(self) -> None:
        """Take the steps so far for no guide to the next: the direction comes from elsewhere. Not collective."""
        self.recent.clear()

    @abstractmethod
    def _search(self, line: Line) -> Result:
        """Return the step; `line.slope` is negative. Collective."""

    def _details(self) -> list[str]:
        """Return lines for the options that only this type has. Not collective."""
        return []

    def view(self) -> list[str]:
        """Return lines for -snes_view. Not collective."""
        o = self.options
        return [
            f"type: {o.type}",
            *(f"  {line}" for line in self._details()),
            f"damping={o.damping:e}, maxlambda={self.maxlambda:e}, minlambda={o.minlambda:e}",
            f"tolerances: relative={o.rtol:e}, lambda={self.ltol:e}",
            f"maximum iterations={self.max_it}",
        ]


def secant_step(old: float, slope_old: float, step: float, slope: float, minlambda: float, maxlambda: float) -> float:
    """Return the root of the line through two slopes; where that is no minimum ahead, twice or half the step.

    >>> secant_step(0.0, -1.0, 1.0, 3.0, 1e-12, 1.0)
    0.25
    """
    curvature = (slope - slope_old) / (step - old)
    new = step - slope / curvature if curvature > 0 else math.nan
    if not minlambda < new < math.inf:
        new = 2 * step if slope < 0 else 0.5 * step
    return min(new, maxlambda)
