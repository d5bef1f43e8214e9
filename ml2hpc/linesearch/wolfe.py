"""Strong Wolfe search: bracket, then zoom by safeguarded cubic interpolation (Nocedal and Wright 2006, ch. 3).

Near a minimum the decrease drowns in the round-off of L and the Armijo test fails at every step. There the approximate
Wolfe conditions of Hager and Zhang (SIAM J. Optim. 16, 2005) decide, on slopes, which keep their digits:

    (2 alpha - 1) phi'(0) >= phi'(l) >= c phi'(0)   and   phi(l) <= phi(0) + eps |phi(0)|,

and the bracket is cut by slopes. The first trial is the geometric mean of what would have been
the best steps of the last searches: a trial that is accepted at once costs one evaluation. Their number is bounded; the
best step seen is returned when the bound is met.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ml2hpc.linesearch.interface import Line, LineSearch, Result

_INSIDE = 0.1  # a trial stays this fraction of the bracket away from its ends
_GROWTH = 2.0  # factor of the step while no bracket is found
# Steps that are best a little below the full one are no reason to leave it: quasi-Newton methods converge
# superlinearly by full steps only.
_SHORT = 0.7
# Two trials must shrink the bracket to this, else it is halved (Moré and Thuente, ACM Trans. Math. Softw. 20, 1994).
_SHRINK = 0.66


@dataclass(frozen=True)
class _Trial:
    step: float
    value: float
    slope: float


class StrongWolfe(LineSearch):
    """phi(l) <= phi(0) + alpha l phi'(0) and |phi'(l)| <= c |phi'(0)|.

    `low` is the best point so far, the start at first, and phi descends from it towards `high`, the other end of the
    bracket, which may be on either side.
    """

    default_max_it = 25
    default_maxlambda = 1e6

    def _search(self, line: Line) -> Result:
        result = self._bracket(line, self._first())
        if result.step > 0.0 and self.options.memory > 0:
            self.recent = [*self.recent, self._best(line, result.step)][-self.options.memory :]
        return result

    def _best(self, line: Line, step: float) -> float:
        """Return the step that would have been the minimum by the secant through both slopes, at most `damping`."""
        _, slope = line.both(step)
        fall = line.slope - slope  # negative where the slope rises
        return min(step * line.slope / fall, self.options.damping) if fall < 0 else self.options.damping

    def _first(self) -> float:
        """Return the first trial."""
        first, memory = min(self.options.damping, self.maxlambda), self.options.memory
        recent = self.recent[-memory:] if memory else []  # a restart may bring more
        if not recent:
            return first
        mean = math.exp(sum(map(math.log, recent)) / len(recent))
        return mean if mean < _SHORT * first else first

    def _bracket(self, line: Line, step: float) -> Result:
        start = low = _Trial(0.0, line.f, line.slope)
        high: _Trial | None = None
        widths = [math.inf, math.inf]
        for _ in range(self.max_it):
            trial = _Trial(step, *line.both(step))
            if self._accepts(start, trial):
                return Result(step)
            low, high = self._cut(start, low, high, trial)
            if high is None:
                step = min(_GROWTH * step, self.maxlambda)
            else:
                width = abs(high.step - low.step)
                if width < self.options.minlambda:
                    break
                slow = width > _SHRINK * widths[0]
                widths = [widths[1], width]
                step = 0.5 * (low.step + high.step) if slow else _between(low, high)
            if step < self.options.minlambda or step in (low.step, start.step if high is None else high.step):
                break  # too short; or no number is left between the ends, or the largest step is reached
        flatter = self._drowned(start, low) and abs(low.slope) < abs(start.slope)
        if low.step > 0.0 and (low.value < start.value or flatter):
            return Result(low.step)
        return Result(0.0, "no step along the direction lowers the objective")

    def _cut(self, start: _Trial, low: _Trial, high: _Trial | None, trial: _Trial) -> tuple[_Trial, _Trial | None]:
        """Return the ends of the part of the bracket that holds a minimum."""
        passed = trial.slope * ((high.step if high else math.inf) - low.step) >= 0.0  # the minimum lies before trial
        if self._drowned(start, trial):
            return (low, trial) if passed else (trial, high)
        if not self._descends(start, trial) or trial.value >= low.value:
            return low, trial
        return (trial, low) if passed else (trial, high)

    def _descends(self, start: _Trial, trial: _Trial) -> bool:
        return trial.value <= start.value + self.options.alpha * trial.step * start.slope

    def _drowned(self, start: _Trial, trial: _Trial) -> bool:
        return self._hidden(start.value, start.slope, trial.step, trial.value)

    def _accepts(self, start: _Trial, trial: _Trial) -> bool:
        o = self.options
        if not math.isfinite(trial.value):
            return False
        if self._descends(start, trial) and abs(trial.slope) <= -o.curvature * start.slope:
            return True
        flat = (2 * o.alpha - 1) * start.slope >= trial.slope >= o.curvature * start.slope
        return flat and self._drowned(start, trial)

    def _details(self) -> list[str]:
        o = self.options
        return [
            f"alpha={o.alpha:e}, curvature={o.curvature:e}, roundoff={o.roundoff:e}",
            f"first step from the last {o.memory} searches",
        ]


def _between(low: _Trial, high: _Trial) -> float:
    """Minimiser of the cubic through values and slopes at both ends, kept inside, or the middle."""
    middle = 0.5 * (low.step + high.step)
    if not (math.isfinite(high.value) and math.isfinite(high.slope)):
        return middle
    d1 = low.slope + high.slope - 3 * (low.value - high.value) / (low.step - high.step)
    square = d1 * d1 - low.slope * high.slope
    if not 0.0 <= square < math.inf:
        return middle
    d2 = math.copysign(math.sqrt(square), high.step - low.step)
    denominator = high.slope - low.slope + 2 * d2
    if denominator == 0:
        return middle
    step = high.step - (high.step - low.step) * (high.slope + d2 - d1) / denominator
    left, right = sorted((low.step, high.step))
    margin = _INSIDE * (right - left)
    return min(max(step, left + margin), right - margin)
