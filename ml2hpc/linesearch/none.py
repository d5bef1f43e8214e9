"""No search: the damped full step."""

from __future__ import annotations

from ml2hpc.linesearch.interface import Line, LineSearch, Result


class FullStep(LineSearch):
    """lambda = damping. The only search that may raise L; a value that is not a number fails."""

    def search(self, line: Line) -> Result:
        step = self.options.damping
        value, _ = line.both(step)
        return Result(step) if value < float("inf") else Result(0.0, "the objective is not a number at the full step")
