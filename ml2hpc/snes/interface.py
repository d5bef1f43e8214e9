"""What a solver type sees: the loop that calls it, and what it supplies."""

from ml2hpc.snes.loop import SNES, After, Observer, Refresh
from ml2hpc.snes.method import DirectionMethod, Method, Options, Point, Region, Side, Step, Tree

__all__ = [
    "SNES",
    "After",
    "DirectionMethod",
    "Method",
    "Observer",
    "Options",
    "Point",
    "Refresh",
    "Region",
    "Side",
    "Step",
    "Tree",
]
