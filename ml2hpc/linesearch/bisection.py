"""Bisection for a critical point: the root of the directional derivative phi'(l) = -grad L(x - l y) . y."""

from __future__ import annotations

from ml2hpc.linesearch.interface import Line, LineSearch, Result


class Bisection(LineSearch):
    """Halve [0, damping] around a change of sign of phi'; take damping where there is none.

    The step is halved on until L falls. Robust where slopes jump, and never longer than damping.
    """

    default_max_it = 50
    default_ltol = 1e-6

    def _search(self, line: Line) -> Result:
        o = self.options
        left, right = 0.0, min(o.damping, self.maxlambda)
        step = right
        for _ in range(self.max_it):
            _, slope = line.both(step)
            if abs(slope) <= o.rtol * abs(line.slope):
                break
            # What is not a number counts as a rise: the interval's end beyond a wall.
            left, right = (step, right) if slope < 0 else (left, step)
            old, step = step, 0.5 * (left + right)
            if abs(step - old) < self.ltol:
                break
        return self._decrease(line, step)
