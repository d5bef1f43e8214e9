"""The subspace problem under its former place, see `interface`."""

from ml2hpc.problem.interface import Span

__all__ = ["Span"]
