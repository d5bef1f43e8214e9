"""Line searches by name."""

from __future__ import annotations

from ml2hpc.linesearch.bt import Backtracking
from ml2hpc.linesearch.cp import CriticalPoint
from ml2hpc.linesearch.interface import LineSearch, Options
from ml2hpc.linesearch.none import FullStep
from ml2hpc.linesearch.secant import Secant
from ml2hpc.linesearch.wolfe import StrongWolfe

TYPES: dict[str, type[LineSearch]] = {
    "none": FullStep,
    "bt": Backtracking,
    "secant": Secant,
    "cp": CriticalPoint,
    "wolfe": StrongWolfe,
}


def create(options: Options) -> LineSearch:
    """Return the line search that the options name. Not collective."""
    return TYPES[options.type](options)
