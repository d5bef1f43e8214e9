"""Symmetric rank-one models of the Hessian, which may be indefinite: B from secant pairs s, y with B s = y."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ml2hpc.trustregion import Spectrum
from ml2hpc.vec import VectorSpace

Tree = dict[str, Any]

# A w that is this small against what it is the difference of is rounding: the pair is in the model already. In units of
# the last digit, and, as norms from a Gram matrix have half the digits only, of its root.
_ROUNDING = 450.0
_ROUNDING_OF_GRAM = 6.7
# Outside the pairs the curvature is this share of <s, y> / <s, s>: not all of it, or <w, s> = 0 for the first pair. The
# region bounds the step there; on Burgers, after 300 steps, the loss is a quarter of what it is with the whole.
_SHARE = 0.03
# Eigenvalues of a Gram matrix of unit columns below which columns depend on each other to rounding, in the same units.
_DEPENDENT = 450.0


class SR1(ABC):
    """B+ = B + w w' / <w, s>,  w = y - B s,  left out where |<w, s>| < tol |w| |s|.

    Parameters
    ----------
    tol
        The skipping tolerance, relative.

    References
    ----------
    Byrd, Khalfan, Schnabel: Analysis of a symmetric rank-one trust region method, SIAM J. Optim. 6 (1996).
    """

    def __init__(self, space: VectorSpace, tol: float) -> None:
        self.space, self.tol = space, tol
        self._eps = torch.finfo(space.dtype).eps
        self.pairs = 0  # learnt since the last reset
        self._known: tuple[Tensor, Tensor] | None = None  # eigenvectors (n_local, k), eigenvalues (k,) on the host
        self._gamma = 0.0

    def update(self, s: Tensor, y: Tensor) -> None:
        """Take a pair, shapes (n_local,), of any curvature. Collective."""
        ss, sy, yy = self.space.dot(s, s), self.space.dot(s, y), self.space.dot(y, y)
        if not (0.0 < ss < math.inf and 0.0 < yy < math.inf):
            return
        curvature = _SHARE * (sy / ss if sy > 0.0 else math.sqrt(yy / ss))
        self._learn(s / math.sqrt(ss), y / math.sqrt(ss), curvature)
        self.pairs += 1

    def spectrum(self, g: Tensor) -> Spectrum:
        """Return the subproblem of the model with gradient g, shape (n_local,). Collective."""
        if self._known is None:
            self._known = self._decompose()
        return Spectrum(self.space, g, *self._known, self._gamma)

    def reset(self) -> None:
        """Forget all pairs: the model is linear. Not collective."""
        self.pairs, self._gamma, self._known = 0, 0.0, None

    @abstractmethod
    def _learn(self, s: Tensor, y: Tensor, curvature: float) -> None:
        """Take a pair with |s| = 1. Collective."""

    @abstractmethod
    def _decompose(self) -> tuple[Tensor, Tensor]:
        """Return orthonormal eigenvectors and eigenvalues; outside of them B is gamma I. Collective."""

    @abstractmethod
    def state(self) -> Tree:
        """Return whole vectors and matrices, complete on rank 0. Collective."""

    @abstractmethod
    def load(self, state: Tree) -> None:
        """Take over a state that every rank has. Not collective."""


class LimitedSR1(SR1):
    """B = gamma I + sum_i w_i w_i' / d_i over the last m pairs, w_i = y_i - B_(i-1) s_i, d_i = <w_i, s_i>.

    The w_i are combinations of the pairs, found from the Gram matrix of [S Y]; gamma is a share of <s, y> / <s, s> for
    the last pair with positive curvature, so that the w_i, and which pairs are left out, are found anew with every
    pair. The columns are made orthonormal twice through their Gram matrix, and the small matrix in that basis has the
    other eigenvalues.

    References
    ----------
    Byrd, Nocedal, Schnabel: Representations of quasi-Newton matrices, Math. Programming 63 (1994). Brust, Erway,
    Marcia, Comput. Optim. Appl. 66 (2017).
    """

    def __init__(self, space: VectorSpace, tol: float, memory: int) -> None:
        super().__init__(space, tol)
        self.memory = memory
        self._s = self._y = torch.zeros(0, space.n_local, dtype=space.dtype, device=space.device)  # oldest first

    def _learn(self, s: Tensor, y: Tensor, curvature: float) -> None:
        if self._gamma == 0.0 or self.space.dot(s, y) > 0.0:
            self._gamma = curvature
        self._s = torch.cat([self._s, s[None]])[-self.memory :]
        self._y = torch.cat([self._y, y[None]])[-self.memory :]
        self._known = None

    def reset(self) -> None:
        super().reset()
        self._s, self._y = self._s[:0], self._y[:0]

    def _decompose(self) -> tuple[Tensor, Tensor]:
        rows = torch.cat([self._s, self._y])
        columns, pivots = self._combine(self.space.mdot(rows, rows.T).cpu().double())
        w = rows.T @ columns.to(rows)
        if not len(pivots):
            return w, pivots
        values, vectors = torch.linalg.eigh(self.space.mdot(w.T, w).cpu().double())
        kept = values > _DEPENDENT * self._eps * values[-1]
        root, vectors = values[kept].sqrt(), vectors[:, kept]
        q = w @ (vectors / root).to(w)
        factor = torch.linalg.cholesky(self.space.mdot(q.T, q).cpu().double(), upper=True)
        q = q @ torch.linalg.inv(factor).to(w)
        r = factor @ (root[:, None] * vectors.T)  # w = q r
        values, vectors = torch.linalg.eigh((r / pivots) @ r.T)
        return q @ vectors.to(w), self._gamma + values

    def _combine(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Return coefficients of the unit columns w_i in [S Y], shape (2 k, used), and the d_i of these, (used,)."""
        count = len(self._s)
        columns: list[Tensor] = []
        pivots: list[float] = []
        for i in range(count):
            c = gram.new_zeros(2 * count)
            c[i], c[count + i] = -self._gamma, 1.0
            for w, d in zip(columns, pivots, strict=True):
                c -= float(w @ gram[:, i]) / d * w
            norm = math.sqrt(max(float(c @ gram @ c), 0.0))
            pivot = float(c @ gram[:, i])
            terms = float(c.abs() @ gram.diagonal().sqrt())
            rounding = self._eps * terms
            if abs(pivot) > max(self.tol * norm, rounding) and norm > _ROUNDING_OF_GRAM * math.sqrt(self._eps) * terms:
                columns.append(c / norm)
                pivots.append(pivot / (norm * norm))
        found = torch.stack(columns, 1) if columns else gram.new_zeros(2 * count, 0)
        return found, gram.new_tensor(pivots)

    def state(self) -> Tree:
        rows = torch.cat([self._s, self._y])
        whole = self.space.gather(rows.T.contiguous()).T.contiguous()
        return {"pairs": self.pairs, "gamma": repr(self._gamma), "rows": whole.cpu().numpy()}

    def load(self, state: Tree) -> None:
        self.pairs, self._gamma, self._known = int(state["pairs"]), float(state["gamma"]), None
        rows = torch.from_numpy(state["rows"])[:, self.space.rows].to(self.space.device, copy=True)
        self._s, self._y = rows[: len(rows) // 2], rows[len(rows) // 2 :]


class DenseSR1(SR1):
    """The whole matrix on every rank, started from the scale of the first pair, with its eigenvalues: O(n^3) a step."""

    def __init__(self, space: VectorSpace, tol: float) -> None:
        super().__init__(space, tol)
        self._matrix: Tensor | None = None  # (n, n)

    def _learn(self, s: Tensor, y: Tensor, curvature: float) -> None:
        s, y = self.space.wholes(s, y)
        if self._matrix is None:
            self._matrix = curvature * torch.eye(self.space.n, dtype=s.dtype, device=s.device)
        bs = self._matrix @ s
        w = y - bs
        norm, pivot = float(w.norm()), float(torch.dot(w, s))
        if abs(pivot) > self.tol * norm and norm > _ROUNDING * self._eps * float(y.norm() + bs.norm()):
            self._matrix.addr_(w, w, alpha=1.0 / pivot)
            self._known = None

    def reset(self) -> None:
        super().reset()
        self._matrix = None

    def _decompose(self) -> tuple[Tensor, Tensor]:
        if self._matrix is None:
            return self.space.zeros()[:, None][:, :0], torch.zeros(0, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(self._matrix)
        return vectors[self.space.rows], values.cpu().double()

    def state(self) -> Tree:
        tree: Tree = {"pairs": self.pairs}
        return tree if self._matrix is None else tree | {"matrix": self._matrix.cpu().numpy().copy()}

    def load(self, state: Tree) -> None:
        self.reset()
        self.pairs = int(state["pairs"])
        if "matrix" in state:
            self._matrix = torch.from_numpy(state["matrix"]).to(self.space.device, copy=True)
