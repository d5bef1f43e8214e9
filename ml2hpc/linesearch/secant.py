"""Secant search on the objective: slopes from values at both ends and the middle of an interval (PETSc's l2)."""

from __future__ import annotations

import math
import sys

from ml2hpc.linesearch.interface import Line, LineSearch, Result, secant_step

_NOISE = 16 * sys.float_info.epsilon  # relative, of a second difference of values of L


class Secant(LineSearch):
    """l <- l - phi'(l) (l - l_old) / (phi'(l) - phi'(l_old)), phi' by second-order one-sided differences of phi."""

    measures = True

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
            # Another step from differences that are round-off may lead anywhere; the first is the best there is.
            drowned = abs(value - 2 * middle + value_old) <= _NOISE * abs(value)
            if abs(slope) <= o.rtol * abs(line.slope) or (drowned and old > 0.0):
                break
            new = secant_step(old, slope_old, step, slope, o.minlambda, self.maxlambda)
            if abs(new - step) <= self.ltol * step:
                break
            old, value_old, step = step, value, new
        return self._decrease(line, step)
