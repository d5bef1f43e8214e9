"""Floor 2: how unknowns and samples are divided."""

from ml2hpc.dm.decomposition import Decomposition, Options, decompose
from ml2hpc.dm.subdomain import Local, Subdomain

__all__ = ["Decomposition", "Local", "Options", "Subdomain", "decompose"]
