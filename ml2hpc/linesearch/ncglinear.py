"""The step of linear conjugate gradients: the minimiser of the quadratic model along the direction."""

from __future__ import annotations

import math

from ml2hpc.linesearch.interface import Line, LineSearch, Result


class LinearCG(LineSearch):
    """lambda = <g, y> / <y, H y>, from one action of the Hessian; damping where the curvature is not positive.

    In linear conjugate gradients <g, y> = <g, g>, the numerator of PETSc's ncglinear; this one is right for any
    direction. The step is halved until L falls.
    """

    measures = True
    default_maxlambda = 1e6  # the curvature knows the scale of the step, so none has to be assumed

    def _search(self, line: Line) -> Result:
        o = self.options
        curvature = line.curvature()
        step = -line.slope / curvature if 0.0 < curvature < math.inf else o.damping
        return self._decrease(line, min(step, self.maxlambda))
