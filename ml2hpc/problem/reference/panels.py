"""Piecewise polynomials on an interval cut into panels, and their tensor products.

Short panels go where a solution has a layer or a singularity; inside a panel the degree does the work. Lagrange
basis functions are evaluated as Legendre polynomials times the inverse Vandermonde matrix of the nodes, which has no
special case when a point hits a node.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.polynomial import legendre
from scipy.special import roots_jacobi

_CHUNK = 4096  # points evaluated at once: 4096 blocks of 16 x 16 doubles are 8 MiB


def lobatto(degree: int) -> np.ndarray:  # (degree + 1,)
    """Return the Gauss-Lobatto-Legendre nodes on [-1, 1]: both ends and the roots of P'_degree."""
    return np.concatenate(([-1.0], roots_jacobi(degree - 1, 1.0, 1.0)[0], [1.0]))


def radau(stages: int) -> np.ndarray:  # (stages + 1,)
    """Return -1 followed by the right Gauss-Radau-Legendre nodes on [-1, 1], the last of which is 1."""
    return np.concatenate(([-1.0], roots_jacobi(stages - 1, 1.0, 0.0)[0], [1.0]))


class Panels:
    """Polynomials of one degree on each panel [breaks[i], breaks[i+1]], given by their values at mapped nodes."""

    def __init__(self, breaks: np.ndarray, reference: np.ndarray) -> None:
        """Take increasing breaks, (P + 1,), and increasing nodes of the reference panel [-1, 1], (q,)."""
        self.breaks = breaks
        self.reference = reference
        self.lengths = np.diff(breaks)
        self.nodes = breaks[:-1, None] + self.lengths[:, None] * (reference + 1.0) / 2.0  # (P, q)

    @cached_property
    def _to_legendre(self) -> np.ndarray:  # (q, q)
        inverse: np.ndarray = np.linalg.inv(legendre.legvander(self.reference, len(self.reference) - 1))
        return inverse

    @cached_property
    def derivative(self) -> np.ndarray:  # (q, q)
        """Differentiate on the reference panel, from values at its nodes to values at its nodes."""
        size = len(self.reference)
        columns = legendre.legder(np.eye(size))  # (q - 1, q): column j holds P_j'
        matrix: np.ndarray = legendre.legvander(self.reference, size - 2) @ columns @ self._to_legendre
        return matrix

    def basis(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the panel of each x, (n,), and its Lagrange basis functions there, (n, q)."""
        panel = np.clip(np.searchsorted(self.breaks, x, side="right") - 1, 0, len(self.lengths) - 1)
        local = 2.0 * (x - self.breaks[panel]) / self.lengths[panel] - 1.0
        return panel, legendre.legvander(local, len(self.reference) - 1) @ self._to_legendre


def interpolate(
    first: Panels,
    second: Panels,
    table: np.ndarray,  # (P1, q1, P2, q2): values at first.nodes x second.nodes
    x: np.ndarray,  # (n,)
    y: np.ndarray,  # (n,)
) -> np.ndarray:  # (n,)
    """Evaluate the tensor-product piecewise polynomial at the points (x, y)."""
    values = np.empty(len(x))
    for start in range(0, len(x), _CHUNK):
        part = slice(start, start + _CHUNK)
        i, a = first.basis(x[part])
        j, b = second.basis(y[part])
        rows = np.matmul(a[:, None, :], table[i, :, j, :])  # (n, 1, q2)
        values[part] = np.einsum("nb,nb->n", rows[:, 0, :], b)
    return values
