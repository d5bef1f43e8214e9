"""Subproblems of trust regions: minimise a quadratic model of L in a ball or a box."""

from ml2hpc.trustregion.box import Box
from ml2hpc.trustregion.interface import Model, Subproblem, Trial
from ml2hpc.trustregion.spectrum import Spectrum
from ml2hpc.trustregion.steihaug import Fallback, SteihaugToint

__all__ = ["Box", "Fallback", "Model", "Spectrum", "SteihaugToint", "Subproblem", "Trial"]
