"""Armijo backtracking by polynomial interpolation (Dennis and Schnabel 1983, algorithm A6.3.1)."""

from __future__ import annotations

import math

from ml2hpc.linesearch.interface import Line, LineSearch, Result


class Backtracking(LineSearch):
    """Accept phi(l) <= phi(0) + alpha l phi'(0); else the minimiser of the interpolating polynomial, in [0.1, 0.5] l."""

    default_max_it = 40

    def search(self, line: Line) -> Result:
        o = self.options
        step = min(o.damping, self.maxlambda)
        before: tuple[float, float] | None = None
        for _ in range(self.max_it):
            value = line.value(step)
            if value <= line.f + o.alpha * step * line.slope:
                return Result(step)
            if not math.isfinite(value):
                step, before = 0.5 * step, None
            else:
                shorter = self._interpolate(line, step, value, before)
                step, before = min(max(shorter, 0.1 * step), 0.5 * step), (step, value)
            if step < o.minlambda:
                break
        return Result(0.0, "backtracking found no sufficient decrease")

    def _interpolate(self, line: Line, step: float, value: float, before: tuple[float, float] | None) -> float:
        slope = line.slope
        if self.options.order == "1":
            return 0.5 * step
        excess = value - line.f - step * slope
        if before is None or self.options.order == "2":
            return -slope * step * step / (2 * excess)
        last, value_last = before
        excess_last = value_last - line.f - last * slope
        a = (excess / step**2 - excess_last / last**2) / (step - last)
        b = (-last * excess / step**2 + step * excess_last / last**2) / (step - last)
        discriminant = b * b - 3 * a * slope
        if a == 0.0:
            return -slope / (2 * b)
        return (-b + math.sqrt(discriminant)) / (3 * a) if discriminant > 0 else 0.5 * step
