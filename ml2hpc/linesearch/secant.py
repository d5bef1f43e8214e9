"""Secant search on the objective: slopes from values at both ends and the middle of an interval (PETSc's l2)."""

from __future__ import annotations

import math

from ml2hpc.linesearch.interface import Line, LineSearch, Result, decrease, secant_step


class Secant(LineSearch):
    """l <- l - phi'(l) (l - l_old) / (phi'(l) - phi'(l_old)), phi' by second-order one-sided differences of phi."""

    def _search(self, line: Line) -> Result:
        o = self.options
        old, value_old = 0.0, line.f
        step = min(o.damping, self.maxlambda)
        for _ in range(self.max_it):
            value = line.value(step)
            middle = line.value(0.5 * (old + step))
            width = step - old
            slope = (3 * value - 4 * middle + value_old) / width
            slope_old = (-3 * value_old + 4 * middle - value) / width
            if not math.isfinite(slope - slope_old):
                step = old + 0.5 * width
                if not abs(step - old) > o.minlambda:
                    break
                continue
            if abs(slope) <= o.rtol * abs(line.slope):
                break
            new = secant_step(old, slope_old, step, slope, o.minlambda, self.maxlambda)
            if abs(new - step) <= o.ltol * step:
                break
            old, value_old, step = step, value, new
        return decrease(line, step, o.minlambda)
