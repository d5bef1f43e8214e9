"""Floor 3: linear solvers. `create` makes a Krylov method with its preconditioner; `Forcing` chooses its tolerance."""

from ml2hpc.ksp.cg import conjugate_gradients
from ml2hpc.ksp.factory import KSP, create
from ml2hpc.ksp.forcing import Forcing
from ml2hpc.ksp.forcing import Options as ForcingOptions
from ml2hpc.ksp.interface import Action, Operator, Reason, Solution, System, Tolerances

__all__ = [
    "KSP",
    "Action",
    "Forcing",
    "ForcingOptions",
    "Operator",
    "Reason",
    "Solution",
    "System",
    "Tolerances",
    "conjugate_gradients",
    "create",
]
