"""Line searches by name, PETSc's where it has one.

PETSc's nleqerr is not here: it measures the error of Newton's method by simplified Newton corrections, which only a
type that factors its matrix can compute, and takes steps on which L may rise.
"""

from __future__ import annotations

from ml2hpc.linesearch.bisection import Bisection
from ml2hpc.linesearch.bt import Backtracking
from ml2hpc.linesearch.cp import CriticalPoint
from ml2hpc.linesearch.interface import LineSearch, Options
from ml2hpc.linesearch.ncglinear import LinearCG
from ml2hpc.linesearch.none import FullStep
from ml2hpc.linesearch.secant import Secant
from ml2hpc.linesearch.wolfe import StrongWolfe

TYPES: dict[str, type[LineSearch]] = {
    "none": FullStep,
    "bt": Backtracking,
    "secant": Secant,
    "cp": CriticalPoint,
    "bisection": Bisection,
    "ncglinear": LinearCG,
    "wolfe": StrongWolfe,
}


def create(options: Options) -> LineSearch:
    """Return the line search that the options name. Not collective."""
    return TYPES[options.type](options)
