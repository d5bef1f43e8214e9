"""Critical point search: the root of the directional derivative phi'(l) = -grad L(x - l y) . y by the secant method."""

from __future__ import annotations

import math

from ml2hpc.linesearch.interface import Line, LineSearch, Result, secant_step


class CriticalPoint(LineSearch):
    """Secant steps on phi', then halved until L falls: a critical point uphill is never taken."""

    measures = True
    default_order = "1"

    def _search(self, line: Line) -> Result:
        o = self.options
        old, slope_old = 0.0, line.slope
        step = min(o.damping, self.maxlambda)
        for _ in range(self.max_it):
            _, slope = line.both(step)
            behind = self._behind(line, old, slope_old, step, slope)
            if not math.isfinite(slope - behind):
                step = old + 0.5 * (step - old)
                if not abs(step - old) > o.minlambda:
                    break
                continue
            if abs(slope) <= o.rtol * abs(line.slope):
                break
            new = secant_step(old, behind, step, slope, o.minlambda, self.maxlambda)
            if abs(new - step) <= self.ltol * step:
                break
            old, slope_old, step = step, slope, new
        return self._decrease(line, step)

    def _behind(self, line: Line, old: float, slope_old: float, step: float, slope: float) -> float:
        """Return the slope at `old` on the line through the end with the curvature there.

        The curvature at `step` is a one-sided difference of slopes, h = (step - old) / 2: of order 1 from both ends, of
        order 2 also from the middle, of order 3 also from h beyond the end.
        """
        if self.order == "1":
            return slope_old
        h = 0.5 * (step - old)
        middle = line.both(old + h)[1]
        if self.order == "2":
            curvature = (3 * slope - 4 * middle + slope_old) / (2 * h)
        else:
            curvature = (2 * line.both(step + h)[1] + 3 * slope - 6 * middle + slope_old) / (6 * h)
        return slope - curvature * 2 * h

    def _details(self) -> list[str]:
        return [f"order of the differences: {self.order}"]
