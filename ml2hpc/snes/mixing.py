"""Affine combinations of iterates with the smallest residual: what Anderson mixing and NGMRES share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ml2hpc.snes.interface import SNES, Point
from ml2hpc.vec import VectorSpace

Tree = dict[str, Any]

# Both methods ask whether a combination is nearer to an iterate than this part of its way, and how much L fell:
# Oosterlee and Washio, SIAM J. Sci. Comput. 21 (2000), with the values of PETSc.
EPSILON_B, DELTA_B, GAMMA = 0.1, 0.9, 2.0


class Window:
    """The last m points with their residuals.

        x_A = x + sum_j c_j (x_j - x_{j+1}),    c = argmin |r + sum_j c_j (r_j - r_{j+1})|,

    with x, r behind the newest pair. Any affine combination of the points can be written like this; differences of
    neighbours keep the least squares problem better conditioned than differences with the newest point.
    """

    def __init__(self, space: VectorSpace, m: int) -> None:
        self.space = space
        self.m = m
        self._pairs: list[tuple[Tensor, Tensor]] = []  # oldest first

    def __len__(self) -> int:
        return len(self._pairs)

    def clear(self) -> None:
        """Forget all pairs. Not collective."""
        self._pairs.clear()

    def push(self, x: Tensor, r: Tensor) -> None:
        """Remember a pair, in the place of the oldest if there are m. Not collective."""
        self._pairs = [*self._pairs, (x, r)][-self.m :] if self.m else []

    def combine(self, x: Tensor, r: Tensor) -> Tensor:
        """Return x_A, shape (n_local,); x itself if the window is empty. One reduction. Collective if sharded."""
        if not self._pairs:
            return x
        steps, changes = (
            torch.stack([*old, new]).diff(dim=0).neg_()
            for old, new in zip(zip(*self._pairs, strict=True), (x, r), strict=True)
        )
        products = self.space.mdot(changes, torch.cat([changes, r[None]]).T)
        coefficients = _smallest(products[:, :-1], products[:, -1])
        return torch.addmv(x, steps.T, coefficients)

    def distances(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Return |x - y|, and the distance from x to the nearest point. Collective if sharded."""
        gaps = torch.stack([*(old for old, _ in self._pairs), y]) - x
        *squares, last = self.space.mdot(gaps * gaps, torch.ones_like(x)).tolist()
        return math.sqrt(last), math.sqrt(min(squares))

    def state(self) -> Tree:
        """Return whole vectors, complete on rank 0. Collective."""
        names = ("x", "r")
        return {
            name: self.space.gather(torch.stack(vectors, 1)).T.contiguous().cpu().numpy()
            for name, vectors in zip(names, zip(*self._pairs, strict=True), strict=False)
        }

    def load(self, state: Tree) -> None:
        """Take over a state that every rank has. Not collective."""
        restored = self.space.restored
        rows = zip(state.get("x", ()), state.get("r", ()), strict=True)
        self._pairs = [(restored(np.array(x)), restored(np.array(r))) for x, r in rows]


def _smallest(gram: Tensor, right: Tensor) -> Tensor:
    """Return c that minimises c'Gc / 2 + c'b, the shortest of all for rows of length one, shape (k,). Not collective.

    Residuals that fall by many digits leave rows of very different lengths: only scaled, the short ones survive the
    cut of what is round-off.
    """
    lengths = gram.diagonal().sqrt()
    scale = torch.where(lengths > 0, 1 / lengths, 0.0)
    values, vectors = torch.linalg.eigh(gram * scale * scale[:, None])
    cut = len(values) * torch.finfo(gram.dtype).eps * values[-1]
    inverse = torch.where(values > cut, 1 / values, 0.0)
    smallest: Tensor = -scale * (vectors @ (inverse * (vectors.T @ (scale * right))))
    return smallest


def lowers(solver: SNES, old: Point, new: Point) -> bool:
    """Tell whether L falls. Collective if sharded.

    Where round-off hides that, whether the gradient falls on a step that descends: towards a maximum it falls as well.
    """
    if not new.finite or new.f < old.f:
        return new.finite
    assert solver.linesearch is not None
    space, noise = solver.problem.space, solver.linesearch.options.roundoff * abs(old.f)
    if new.f > old.f + noise or not space.dot(old.g, new.x - old.x) < 0.0:
        return False
    return space.norm(new.g) < space.norm(old.g)


def above(f: float, factor: float) -> float:
    """Return factor * f where f is positive; as far from f where it is negative, as a value of L may be.

    >>> above(3.0, 2.0), above(-3.0, 2.0), above(-3.0, 0.5)
    (6.0, 0.0, -4.5)
    """
    return f + (factor - 1.0) * abs(f)
