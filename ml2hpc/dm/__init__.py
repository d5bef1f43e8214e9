"""Floor 2: how unknowns and samples are divided, and coarsened."""

from ml2hpc.dm.decomposition import Decomposition, Options, decompose
from ml2hpc.dm.exchange import Exchange, Solved, Start, Weighting
from ml2hpc.dm.hierarchy import HierarchyOptions, Level, Levels, coarsen, in_metric
from ml2hpc.dm.subdomain import Local, Subdomain
from ml2hpc.problem.transfer import Transfer

__all__ = [
    "Decomposition",
    "Exchange",
    "HierarchyOptions",
    "Level",
    "Levels",
    "Local",
    "Options",
    "Solved",
    "Start",
    "Subdomain",
    "Transfer",
    "Weighting",
    "coarsen",
    "decompose",
    "in_metric",
]
