"""Armijo backtracking by polynomial interpolation (Dennis and Schnabel 1983)."""

from __future__ import annotations

import math

from ml2hpc.linesearch.interface import Line, LineSearch, Result

_ORDERS = {"1": "none", "2": "quadratic", "3": "cubic"}


class Backtracking(LineSearch):
    """Accept phi(l) <= phi(0) + alpha l phi'(0); else take the interpolating polynomial's minimiser in [0.1, 0.5] l."""

    default_max_it = 40

    def _search(self, line: Line) -> Result:
        o = self.options
        step = min(o.damping, self.maxlambda)
        before: tuple[float, float] | None = None
        for _ in range(self.max_it):
            value = line.value(step)
            if value <= line.f + o.alpha * step * line.slope or self._flatter(line, step, value):
                return Result(step)
            if math.isfinite(value):
                factor = self._interpolate(line, step, value, before)
                factor, before = min(max(factor, 0.1), 0.5), (step, value)
            else:
                factor, before = 0.5, None
            step *= factor
            if step < o.minlambda:
                break
        return Result(0.0, "backtracking found no sufficient decrease")

    def _interpolate(self, line: Line, step: float, value: float, before: tuple[float, float] | None) -> float:
        """Return the minimiser of the interpolating polynomial, as a factor t of the step.

        phi(t step) = f + slope t + b t^2 + a t^3 with slope = step phi'(0); the excess over the tangent is positive.
        """
        slope = step * line.slope
        excess = value - line.f - slope
        if self.order == "1":
            return 0.5
        if before is None or self.order == "2":
            return -slope / (2 * excess)
        ratio = before[0] / step  # > 1
        excess_before = (before[1] - line.f - ratio * slope) / ratio**2
        a = (excess - excess_before) / (1 - ratio)
        b = (excess_before - ratio * excess) / (1 - ratio)
        square = b * b - 3 * a * slope
        if not 0.0 <= square < math.inf:
            return 0.5
        root = math.sqrt(square)
        # Twice the same root of the derivative; each avoids a difference of nearly equal numbers.
        return -slope / (b + root) if b > 0 else (root - b) / (3 * a)

    def _details(self) -> list[str]:
        return [f"interpolation: {_ORDERS[self.order]}", f"alpha={self.options.alpha:e}"]
