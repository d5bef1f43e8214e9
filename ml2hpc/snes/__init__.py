"""Floor 4: nonlinear solvers. `create` builds a solver tree from options; the loop is in `interface`."""

from ml2hpc.snes.factory import TYPES, create
from ml2hpc.snes.interface import SNES, After, Method, Point
from ml2hpc.snes.reasons import Reason

__all__ = ["SNES", "TYPES", "After", "Method", "Point", "Reason", "create"]
