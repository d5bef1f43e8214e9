"""Strong Wolfe search: bracket, then zoom by safeguarded cubic interpolation (Nocedal and Wright 2006, alg. 3.5, 3.6).

Near a minimum the decrease drowns in the round-off of L and the Armijo test fails at every step. There the approximate
Wolfe conditions of Hager and Zhang (SIAM J. Optim. 16, 2005, eq. 4.1) decide, on slopes, which keep their digits:

    (2 alpha - 1) phi'(0) >= phi'(l) >= c phi'(0)   and   phi(l) <= phi(0) + eps |phi(0)|.

The number of evaluations is bounded; the best step seen is returned when the bound is met.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ml2hpc.linesearch.interface import Line, LineSearch, Result

_INSIDE = 0.05  # a trial stays this fraction of the bracket away from its ends
_GROWTH = 2.0  # factor of the step while no bracket is found


@dataclass(frozen=True)
class _Trial:
    step: float
    value: float
    slope: float


class StrongWolfe(LineSearch):
    """phi(l) <= phi(0) + alpha l phi'(0) and |phi'(l)| <= c |phi'(0)|."""

    default_max_it = 25
    default_maxlambda = 1e6

    def search(self, line: Line) -> Result:
        start = low = _Trial(0.0, line.f, line.slope)
        high: _Trial | None = None
        step = min(self.options.damping, self.maxlambda)
        for _ in range(self.max_it):
            trial = _Trial(step, *line.both(step))
            if self._accepts(start, trial):
                return Result(step)
            if self._fails(start, trial) or trial.value >= low.value:
                high = trial
            else:
                if trial.slope * ((high.step if high else math.inf) - step) >= 0:
                    high = low
                low = trial
            step = min(_GROWTH * step, self.maxlambda) if high is None else _between(low, high)
            if step == low.step or (high and abs(high.step - low.step) < self.options.minlambda):
                break
        if low.step > 0.0 and low.value < start.value:
            return Result(low.step)
        return Result(0.0, "no step along the direction lowers the objective")

    def _fails(self, start: _Trial, trial: _Trial) -> bool:
        return not trial.value <= start.value + self.options.alpha * trial.step * start.slope

    def _accepts(self, start: _Trial, trial: _Trial) -> bool:
        o = self.options
        if not math.isfinite(trial.value):
            return False
        if not self._fails(start, trial) and abs(trial.slope) <= -o.curvature * start.slope:
            return True
        noise = o.roundoff * abs(start.value)
        drowned = -o.alpha * trial.step * start.slope <= noise and trial.value <= start.value + noise
        return drowned and (2 * o.alpha - 1) * start.slope >= trial.slope >= o.curvature * start.slope


def _between(low: _Trial, high: _Trial) -> float:
    """Minimiser of the cubic through values and slopes at both ends (ibid. eq. 3.59), or the middle."""
    middle = 0.5 * (low.step + high.step)
    if not (math.isfinite(high.value) and math.isfinite(high.slope)):
        return middle
    d1 = low.slope + high.slope - 3 * (low.value - high.value) / (low.step - high.step)
    square = d1 * d1 - low.slope * high.slope
    if square < 0:
        return middle
    d2 = math.copysign(math.sqrt(square), high.step - low.step)
    denominator = high.slope - low.slope + 2 * d2
    if denominator == 0:
        return middle
    step = high.step - (high.step - low.step) * (high.slope + d2 - d1) / denominator
    left, right = sorted((low.step, high.step))
    margin = _INSIDE * (right - left)
    return step if left + margin <= step <= right - margin else middle
