"""Linear systems with known answers, and a linear solver by its options."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ml2hpc.ksp import KSP, Operator, create
from ml2hpc.log import Log
from ml2hpc.options import Database
from ml2hpc.vec import Replicated, VectorSpace


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(eigenvalues: Tensor, seed: int = 1) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    q, _ = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed))
    return q @ torch.diag(eigenvalues) @ q.T


def linear_solver(options: str, a: Tensor, space: VectorSpace | None = None) -> KSP:
    """Return the solver that the options describe, set up for the matrix; every option must be used."""
    database = Database.from_string(options)

    def read(schema: Any, stem: str, title: str, weaker: Any = None) -> Any:
        return database.read(schema, stem=stem, title=title, defaults=weaker)

    solver = create(read, "", 0)
    database.check_unused()
    solver.set_up(operator(a, space), Log(), talks=True)
    return solver


def operator(a: Tensor, space: VectorSpace | None = None) -> Operator:
    """The matrix as an operator on a space."""
    where = space or Replicated(len(a), a.dtype)
    return Operator(where, lambda v: where.local(a @ where.gather(v)).clone())
