"""Approximate inverse Hessians built from secant pairs s = x+ - x, y = r+ - r: limited memory and dense.

Vectors are local parts of the solver's space. A dense matrix holds this rank's rows, so it is split with the vectors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ml2hpc.vec import VectorSpace

Tree = dict[str, Any]


class Inverse(ABC):
    """An approximation H of the inverse Hessian."""

    def __init__(self, space: VectorSpace) -> None:
        self.space = space

    @abstractmethod
    def apply(self, g: Tensor) -> Tensor:
        """Return H g, shape (n_local,). Collective if the space is sharded."""

    @abstractmethod
    def update(self, s: Tensor, y: Tensor, g: Tensor, g_new: Tensor, step: float | None) -> None:
        """Take a pair with positive curvature. Collective if the space is sharded.

        Parameters
        ----------
        s, y
            The pair.
        g, g_new
            Residuals at both ends, y = g_new - g.
        step
            lambda if s = -lambda H g exactly, else None.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget all pairs."""

    @property
    @abstractmethod
    def pairs(self) -> int:
        """Number of pairs learnt since the last reset."""

    @abstractmethod
    def state(self) -> Tree:
        """Return whole vectors and matrices. Collective if the space is sharded."""

    @abstractmethod
    def load(self, state: Tree) -> None:
        """Take over a state. Not collective."""

    def recognise(self, g: Tensor) -> None:  # noqa: B027 - only a dense matrix keeps a product
        """After `load`: tell that the solve goes on from the residual g. Collective if the space is sharded."""


class CompactLBFGS(Inverse):
    """Limited-memory BFGS in compact form: two products with the stored pairs instead of a recursion.

    With S, Y the pairs as columns, R the upper triangle of S'Y, D its diagonal, gamma = s'y / y'y of the last pair,

        H g = gamma g + S p + gamma Y q,   q = -R^-1 S'g,   p = R^-T ((D + gamma Y'Y) R^-1 S'g - gamma Y'g).

    References
    ----------
    Byrd, Nocedal, Schnabel: Representations of quasi-Newton matrices, Math. Programming 63 (1994).
    """

    def __init__(self, space: VectorSpace, memory: int, *, scaled: bool) -> None:
        super().__init__(space)
        self.memory = memory
        self.scaled = scaled
        self._rows = torch.zeros(2 * memory, space.n_local, dtype=space.dtype)  # S' above Y'
        self._products = torch.zeros(2 * memory, 2 * memory, dtype=space.dtype)  # all inner products of the rows
        self._order: list[int] = []  # places of the pairs, oldest first
        self._learnt = 0

    @property
    def pairs(self) -> int:
        return self._learnt

    def apply(self, g: Tensor) -> Tensor:
        if not self._order:
            return g.clone()
        k = torch.tensor(self._order)
        m = self.memory
        products = self.space.mdot(self._rows, g)
        sg, yg = products[k], products[m + k]
        sy = self._products[k][:, m + k]
        yy = self._products[m + k][:, m + k]
        gamma = float(sy[-1, -1] / yy[-1, -1]) if self.scaled else 1.0
        upper = torch.triu(sy)
        q = torch.linalg.solve_triangular(upper, sg[:, None], upper=True)[:, 0]
        middle = torch.diagonal(sy) * q + gamma * (yy @ q - yg)
        p = torch.linalg.solve_triangular(upper.T, middle[:, None], upper=False)[:, 0]
        weights = torch.zeros(2 * m, dtype=g.dtype)
        weights[k] = p
        weights[m + k] = -gamma * q
        return torch.addmv(g, self._rows.T, weights, beta=gamma)

    def update(self, s: Tensor, y: Tensor, g: Tensor, g_new: Tensor, step: float | None) -> None:
        m = self.memory
        place = self._order.pop(0) if len(self._order) == m else len(self._order)
        self._rows[place] = s
        self._rows[m + place] = y
        columns = self.space.mdot(self._rows, torch.stack([s, y], 1))
        for column, row in ((columns[:, 0], place), (columns[:, 1], m + place)):
            self._products[row] = column
            self._products[:, row] = column
        self._order.append(place)
        self._learnt += 1

    def reset(self) -> None:
        self._order.clear()
        self._learnt = 0

    def state(self) -> Tree:
        rows = self.space.gather(self._rows.T.contiguous()).T.contiguous()
        return {
            "rows": rows.numpy(),
            "products": self._products.numpy(),
            "order": list(map(str, self._order)),
            "learnt": self._learnt,
        }

    def load(self, state: Tree) -> None:
        self._rows = torch.from_numpy(state["rows"])[:, self.space.rows].clone()
        self._products = torch.from_numpy(state["products"]).clone()
        self._order = [int(i) for i in state["order"]]
        self._learnt = int(state["learnt"])


class DenseInverse(Inverse):
    """The whole matrix H, by BFGS, self-scaled BFGS or self-scaled Broyden updates.

        H+ = (H - Hy (Hy)' / y'Hy + phi y'Hy v v') / tau + s s' / s'y,   v = s / s'y - Hy / y'Hy.

    H g_new is formed once per step; H y and H+ g_new follow from it without touching the matrix again. The factors
    depend on b = s'Bs / s'y with B = H^-1: s'Bs = lambda^2 g'Hg where s = -lambda H g; for other pairs b = 1 is taken.

    References
    ----------
    Al-Baali, Spedicato, Maggioni: Broyden's quasi-Newton methods for a nonlinear system of equations and unconstrained
    optimization: a review and open problems, Optim. Methods Softw. 29 (2014). For PINNs: arXiv 2405.04230; Kiyani et
    al., Comput. Methods Appl. Mech. Engrg. (2025).
    """

    def __init__(self, space: VectorSpace, kind: str) -> None:
        super().__init__(space)
        self.kind = kind
        self._matrix: Tensor | None = None  # (n_local, n)
        self._pairs = 0
        self._known: tuple[Tensor, Tensor] | None = None  # g and H g, local parts

    @property
    def pairs(self) -> int:
        return self._pairs

    def apply(self, g: Tensor) -> Tensor:
        if self._matrix is None:
            return g.clone()
        if self._known is None or self._known[0] is not g:
            self._known = (g, torch.mv(self._matrix, self.space.gather(g)))
        return self._known[1].clone()

    def update(self, s: Tensor, y: Tensor, g: Tensor, g_new: Tensor, step: float | None) -> None:
        space = self.space
        sy, yy = space.mdot(torch.stack([s, y]), y).tolist()
        if self._matrix is None:
            # The first pair sets the scale of the start matrix, (s'y / y'y) I, and needs no scaling beyond it.
            self._matrix = torch.zeros(space.n_local, space.n, dtype=space.dtype)
            self._matrix[torch.arange(space.n_local), torch.arange(space.n)[space.rows]] = sy / yy
            self._known, step = None, None
        hg = self.apply(g)  # known from the direction; s = -lambda H g would carry the rounding of x + s
        hg_new = self.apply(g_new)
        hy = hg_new - hg
        ghg, yhy = space.mdot(torch.stack([hg, hy]), torch.stack([g, y], 1)).diagonal().tolist()
        sbs = sy if step is None else step * step * ghg
        if not (yhy > 0 and sbs > 0):  # round-off has cost H its definiteness
            self.reset()
            return
        tau, phi = self._factors(sy, yhy, sbs)
        v = s / sy - hy / yhy
        columns = torch.stack([hy, v, s], 1)
        weights = torch.tensor([-1 / (yhy * tau), phi * yhy / tau, 1 / sy], dtype=space.dtype)
        whole = space.gather(columns)
        torch.addmm(self._matrix, columns * weights, whole.T, beta=1 / tau, out=self._matrix)
        along = space.mdot(columns.T.contiguous(), g_new)
        self._known = (g_new, hg_new / tau + columns @ (weights * along))
        self._pairs += 1

    def _factors(self, sy: float, yhy: float, sbs: float) -> tuple[float, float]:
        """Return tau and phi."""
        if self.kind == "bfgs":
            return 1.0, 1.0
        b, h = max(sbs / sy, 1e-16), yhy / sy
        if self.kind == "ssbfgs":
            return min(1.0, 1 / b), 1.0
        a = b * h - 1
        if a <= 1e-14:  # y and B s are parallel: every update of the family is the same
            return 1.0, 1.0
        rho = min(1.0, h * (1 - math.sqrt(a / (1 + a))))
        theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
        sigma = 1 + theta * a
        power = abs(sigma) ** (1.0 / (1 - self.space.n)) if self.space.n > 1 else 1.0
        tau = min(min(1.0, 1 / b) * power, sigma) if theta <= 0 else min(1.0, 1 / b) * min(power, 1 / theta)
        return tau, (1 - theta) / (1 + a * theta)

    def reset(self) -> None:
        self._matrix, self._known, self._pairs = None, None, 0

    def state(self) -> Tree:
        if self._matrix is None:
            return {"pairs": 0}
        whole = self.space.gather(self._matrix)
        tree: Tree = {"pairs": self._pairs, "matrix": whole.numpy()}
        if self._known is not None:
            tree |= {"g": self.space.gather(self._known[0]).numpy(), "hg": self.space.gather(self._known[1]).numpy()}
        return tree

    def load(self, state: Tree) -> None:
        self.reset()
        self._pairs = int(state["pairs"])
        if "matrix" in state:
            self._matrix = torch.from_numpy(state["matrix"])[self.space.rows].clone()
        if "g" in state:
            local = [self.space.local(torch.from_numpy(state[k])).clone() for k in ("g", "hg")]
            self._known = (local[0], local[1])

    def recognise(self, g: Tensor) -> None:
        if self._known is not None and self.space.norm(self._known[0] - g) == 0.0:
            self._known = (g, self._known[1])
