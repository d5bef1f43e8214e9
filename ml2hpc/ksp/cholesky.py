"""Direct solver: the operator as a matrix, factored on every rank; an indefinite one is made definite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ml2hpc.errors import UnsupportedError
from ml2hpc.ksp.interface import Operator, Preconditioner

LARGEST = 4096  # unknowns: a matrix of 128 MiB on every rank, made by as many actions


class Cholesky(Preconditioner):
    """P = B where B is positive definite; else P = |B|, its eigenvalues' absolute values, none below sqrt(eps) of them.

    With |B| a Newton step descends, and goes away from maxima and saddles along directions of negative curvature.

    References
    ----------
    Nocedal, Wright: Numerical Optimization (2006), section 3.4; Dauphin, Pascanu, Gulcehre, Cho, Ganguli, Bengio:
    Identifying and attacking the saddle point problem in high-dimensional non-convex optimization, NeurIPS (2014).
    """

    name = "cholesky"

    def __init__(self, where: str) -> None:
        self._where = where
        self._modified = 0  # indefinite matrices so far

    def set_up(self, operator: Operator) -> None:
        self._space = operator.space
        if self._space.n > LARGEST:
            raise UnsupportedError(
                f"-{self._where}: a matrix of {self._space.n} x {self._space.n} numbers, more than {LARGEST} x "
                f"{LARGEST}; use -{self._where.replace('pc_type cholesky', 'ksp_type cg')} with the preconditioner "
                "none or nystrom"
            )
        matrix = operator.matrix()
        matrix = 0.5 * (matrix + matrix.T)
        self._finite = math.isfinite(float(matrix.sum()))
        if not self._finite:
            return
        self._factor, info = torch.linalg.cholesky_ex(matrix)
        self._vectors: Tensor | None = None
        if int(info) != 0:
            values, self._vectors = torch.linalg.eigh(matrix)
            values = values.abs()
            floor = math.sqrt(torch.finfo(values.dtype).eps) * values.max()
            self._values = torch.maximum(values, floor.clamp(min=torch.finfo(values.dtype).tiny))
            self._modified += 1

    def apply(self, r: Tensor) -> Tensor:
        if not self._finite:
            return torch.full_like(r, math.nan)
        whole = self._space.gather(r)
        if self._vectors is None:
            solved = torch.cholesky_solve(whole[:, None], self._factor)[:, 0]
        else:
            solved = torch.mv(self._vectors, torch.mv(self._vectors.T, whole) / self._values)
        return self._space.local(solved).clone()

    def view(self) -> list[str]:
        return [f"indefinite matrices so far, made definite: {self._modified}"]
