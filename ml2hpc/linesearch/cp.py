"""Critical point search: the root of the directional derivative phi'(l) = -grad L(x - l y) . y by the secant method."""

from __future__ import annotations

import math

from ml2hpc.linesearch.interface import Line, LineSearch, Result, decrease, secant_step


class CriticalPoint(LineSearch):
    """Secant steps on phi', then halved until L falls: a critical point uphill is never taken."""

    def _search(self, line: Line) -> Result:
        o = self.options
        old, slope_old = 0.0, line.slope
        step = min(o.damping, self.maxlambda)
        for _ in range(self.max_it):
            _, slope = line.both(step)
            if not math.isfinite(slope):
                step = old + 0.5 * (step - old)
                if not abs(step - old) > o.minlambda:
                    break
                continue
            if abs(slope) <= o.rtol * abs(line.slope):
                break
            new = secant_step(old, slope_old, step, slope, o.minlambda, self.maxlambda)
            if abs(new - step) <= o.ltol * step:
                break
            old, slope_old, step = step, slope, new
        return decrease(line, step, o.minlambda)
