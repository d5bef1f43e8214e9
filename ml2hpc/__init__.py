"""Nonlinear solver trees, PETSc style, for training networks over MPI: Schwarz, quasi-Newton, multilevel."""

__version__ = "0.1.0"
