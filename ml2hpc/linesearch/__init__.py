"""Floor 3: line searches. `create` makes one from options; types are registered by PETSc's names."""

from ml2hpc.linesearch.factory import create
from ml2hpc.linesearch.interface import Line, LineSearch, Options, Result

__all__ = ["Line", "LineSearch", "Options", "Result", "create"]
