"""No search: the damped full step."""

from __future__ import annotations

import math

from ml2hpc.linesearch.interface import Line, LineSearch, Result


class FullStep(LineSearch):
    """lambda = damping. The only search that may go uphill and raise L; a value that is not a number fails."""

    def search(self, line: Line) -> Result:
        return self._search(line)

    def _search(self, line: Line) -> Result:
        step = self.options.damping
        value, _ = line.both(step)
        return Result(step) if value < math.inf else Result(0.0, "the objective is not a number at the full step")
