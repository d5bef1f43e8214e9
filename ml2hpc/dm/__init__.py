"""Floor 2: how unknowns and samples are divided."""

from ml2hpc.dm.decomposition import Decomposition, Options, decompose
from ml2hpc.dm.exchange import Exchange, Solved, Start, Weighting
from ml2hpc.dm.subdomain import Local, Subdomain

__all__ = ["Decomposition", "Exchange", "Local", "Options", "Solved", "Start", "Subdomain", "Weighting", "decompose"]
