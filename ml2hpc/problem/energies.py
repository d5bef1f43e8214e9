"""Energies on a rectangular grid with Dirichlet values: the Bratu problem and the minimal surface.

An energy is evaluated on arrays of nodes, shape (rows + 2, columns + 2): nodes that vary and one line of their
neighbours around, with the Dirichlet values in place. A box's energy is the sum over what touches its nodes; each rank
counts what lies to the left of and below its own, and on the last ones of the box also what lies beyond. So the
energies of two states of a box differ as the energies of the whole grid do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

Last = tuple[bool, bool]
"""Whether this rank's nodes are the last ones of the box upwards and to the right."""


class Energy(ABC):
    """An energy on a grid with the spacing (hx, hy).

    Attributes
    ----------
    name, title
        For options and figures.
    flops
        Floating-point operations per node of the energy and of its gradient.
    """

    name: str
    title: str
    flops: tuple[float, float]

    @abstractmethod
    def boundary(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the Dirichlet values at points, of their shape. Not collective."""

    @abstractmethod
    def guess(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the initial guess at points inside, of their shape. Not collective."""

    def exact(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the exact solution at points, if one is known. Not collective."""
        return None

    def source(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the right-hand side of the differential equation at points, if it has one. Not collective."""
        return None

    @abstractmethod
    def value(self, v: Tensor, h: tuple[float, float], last: Last) -> Tensor:
        """Return the energy that this rank counts, shape (), from v, shape (rows + 2, columns + 2). Not collective."""

    @abstractmethod
    def slope(self, v: Tensor, h: tuple[float, float]) -> Tensor:
        """Return the energy's derivatives by the nodes that vary, shape (rows, columns). Not collective."""

    @abstractmethod
    def action(self, v: Tensor, d: Tensor, h: tuple[float, float]) -> Tensor:
        """Return the Hessian at v times d, of v's shape; the result has shape (rows, columns). Not collective."""


class Bratu(Energy):
    """-laplace u - lambda e^u = f with u = 0 around: solid fuel ignition, PETSc's SNES example 5.

        L = sum over edges of (difference of u)^2 (hy/hx or hx/hy) / 2 - hx hy lambda sum over nodes of e^u

    With f = 0 there are two solutions below the fold lambda = 6.808, and none above it.

    Parameters
    ----------
    parameter
        lambda.
    manufactured
        Choose f such that u = x (1 - x) y (1 - y) is the solution, instead of 0.
    """

    name = "bratu"
    flops = (12.0, 23.0)  # 12 and 11 as PETSc counts them, the gradient coming with the energy
    fold = 6.808124423  # for the differential equation on the unit square

    def __init__(self, parameter: float, *, manufactured: bool = False) -> None:
        self.parameter = parameter
        self.manufactured = manufactured
        self.title = f"Bratu, lambda = {parameter:g}" + ", manufactured solution" * manufactured

    def boundary(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def guess(self, x: Tensor, y: Tensor) -> Tensor:
        distance = torch.minimum(torch.minimum(x, 1 - x), torch.minimum(y, 1 - y))
        return self.parameter / (self.parameter + 1) * distance.clamp(min=0).sqrt()

    def exact(self, x: Tensor, y: Tensor) -> Tensor | None:
        return x * (1 - x) * y * (1 - y) if self.manufactured else None

    def source(self, x: Tensor, y: Tensor) -> Tensor | None:
        u = self.exact(x, y)
        return None if u is None else 2 * x * (1 - x) + 2 * y * (1 - y) - self.parameter * u.exp()

    def value(self, v: Tensor, h: tuple[float, float], last: Last) -> Tensor:
        hx, hy = h
        c = v[1:-1, 1:-1]
        rows, columns = c.shape
        dx = v[1:-1, 1 : columns + 1 + last[1]] - v[1:-1, : columns + last[1]]
        dy = v[1 : rows + 1 + last[0], 1:-1] - v[: rows + last[0], 1:-1]
        squares = 0.5 * (hy / hx * (dx * dx).sum() + hx / hy * (dy * dy).sum())
        return squares - hx * hy * self.parameter * c.exp().sum()

    def slope(self, v: Tensor, h: tuple[float, float]) -> Tensor:
        return _laplacian(v, h) - h[0] * h[1] * self.parameter * v[1:-1, 1:-1].exp()

    def action(self, v: Tensor, d: Tensor, h: tuple[float, float]) -> Tensor:
        return _laplacian(d, h) - h[0] * h[1] * self.parameter * v[1:-1, 1:-1].exp() * d[1:-1, 1:-1]


def _laplacian(v: Tensor, h: tuple[float, float]) -> Tensor:
    """The 5-point operator times -hx hy."""
    hx, hy = h
    c = v[1:-1, 1:-1]
    across = (2 * c - v[1:-1, :-2] - v[1:-1, 2:]) * (hy / hx)
    return across + (2 * c - v[:-2, 1:-1] - v[2:, 1:-1]) * (hx / hy)


class MinimalSurface(Energy):
    """The area of the graph of u over the unit square, two triangles to a cell.

        L = sum over triangles of (hx hy / 2) (1 + u_x^2 + u_y^2)^1/2

    The boundary values are those of Scherk's surface u = ln(cos(a y') / cos(a x')) / a, a = 2, x' and y' counted from
    the middle of the square, which is the exact solution.
    """

    name = "minimal_surface"
    title = "Minimal surface"
    flops = (28.0, 56.0)
    bend = 2.0  # a: slopes up to tan 1 at the boundary, so that the problem is far from linear

    def boundary(self, x: Tensor, y: Tensor) -> Tensor:
        a = self.bend
        return (torch.cos(a * (y - 0.5)) / torch.cos(a * (x - 0.5))).log() / a

    def guess(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the mean of the linear interpolations between opposite sides."""
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        across = (1 - x) * self.boundary(zero, y) + x * self.boundary(one, y)
        up = (1 - y) * self.boundary(x, zero) + y * self.boundary(x, one)
        return 0.5 * (across + up)

    def exact(self, x: Tensor, y: Tensor) -> Tensor | None:
        return self.boundary(x, y)

    def value(self, v: Tensor, h: tuple[float, float], last: Last) -> Tensor:
        rows, columns = v.shape[0] - 2 + last[0], v.shape[1] - 2 + last[1]
        areas = [w[:rows, :columns].sum() for _, _, w in _triangles(v, h)]
        return 0.5 * h[0] * h[1] * (areas[0] + areas[1])

    def slope(self, v: Tensor, h: tuple[float, float]) -> Tensor:
        return _divergence([(ux / w, uy / w) for ux, uy, w in _triangles(v, h)], h)

    def action(self, v: Tensor, d: Tensor, h: tuple[float, float]) -> Tensor:
        fluxes = []
        for (ux, uy, w), (dx, dy, _) in zip(_triangles(v, h), _triangles(d, h), strict=True):
            along = (ux * dx + uy * dy) / (w * w)
            fluxes.append(((dx - along * ux) / w, (dy - along * uy) / w))
        return _divergence(fluxes, h)


def _triangles(v: Tensor, h: tuple[float, float]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """u_x, u_y and (1 + u_x^2 + u_y^2)^1/2 of the lower left and the upper right triangle of every cell."""
    dx, dy = (v[:, 1:] - v[:, :-1]) / h[0], (v[1:] - v[:-1]) / h[1]
    slopes = [(dx[:-1], dy[:, :-1]), (dx[1:], dy[:, 1:])]
    return [(ux, uy, (1 + ux * ux + uy * uy).sqrt()) for ux, uy in slopes]


def _divergence(fluxes: list[tuple[Tensor, Tensor]], h: tuple[float, float]) -> Tensor:
    """The derivative by the nodes that vary of (hx hy / 2) sum over triangles of <flux, grad u>."""
    (lower_x, lower_y), (upper_x, upper_y) = fluxes
    px = 0.5 * h[1] * (lower_x[1:] + upper_x[:-1])  # on the horizontal edges between the first and the last row
    py = 0.5 * h[0] * (lower_y[:, 1:] + upper_y[:, :-1])
    return px[:, :-1] - px[:, 1:] + py[:-1] - py[1:]
