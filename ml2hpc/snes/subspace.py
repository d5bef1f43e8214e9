"""Minimisation over the span of a few corrections: what Schwarz and composite solvers have in common.

    x <- x + sum_k a_k d_k,   a minimises L over the span

by an inner solver for the coefficients. Where L and its gradient are known at every x + d_k, they give a quadratic
model of L on the span without an evaluation: its minimiser is where the inner solver starts, its curvature is the unit
of length. On a quadratic L the model is L, and its minimiser the exact one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ml2hpc.problem.interface import Problem, Span
from ml2hpc.snes.interface import SNES, Point

# Curvatures on the span below this fraction of the largest are rounding: corrections are then nearly parallel.
_FLAT = 1e-10

# A predicted gain below this fraction of what the model gained is not worth an evaluation.
_NEGLIGIBLE = 1e-10


class Subspace:
    """The inner solver for the coefficients, with the prefix `subspace_`.

    References
    ----------
    Brune, Knepley, Smith, Tu: Composing scalable nonlinear algebraic solvers, SIAM Review 57 (2015), additive optimal
    composition, there of residuals.
    """

    def __init__(self, parent: SNES) -> None:
        small = {"snes_type": "qn", "snes_qn_type": "bfgs", "snes_max_it": 5, "snes_qn_recycle": False}
        self.solver = parent.spawn("subspace_", small)

    @staticmethod
    def pattern(problem: Problem, count: int) -> Problem:
        """Return a problem on the span of `count` corrections, to set the inner solver up with. Not collective."""
        zeros = problem.space.zeros()
        return Span(problem, zeros, [zeros] * count)

    def minimise(
        self, parent: SNES, point: Point, directions: Sequence[Tensor], ends: Sequence[Point] = ()
    ) -> Point | None:
        """Return where L is smallest on the span of the directions, None where that is not below `point`. Collective.

        Parameters
        ----------
        directions
            The d_k, shape (n_local,) each.
        ends
            The iterates at x + d_k, if they are known, all of them.
        """
        d = torch.stack(list(directions))
        if ends:
            values, vectors = self._curvature(parent, point, d, ends)
            if not values[-1] > 0:
                return None  # nothing moved
            units = vectors / values.sqrt()  # so that the Hessian of the model is the identity
            start = self._model_minimiser(parent, point, d, units, min([point, *ends], key=lambda p: p.f))
        else:
            start, units = point, _unit_steps(parent.problem.space.mdot(d, point.g))
        span = _Remembering(parent.problem, start.x, list(units.T @ d))
        found = self._solve(parent, span, start, point.f - start.f)
        return found if found.f < point.f else None

    @staticmethod
    def _curvature(parent: SNES, point: Point, directions: Tensor, ends: Sequence[Point]) -> tuple[Tensor, Tensor]:
        """Eigenvalues (k,), positive and rising, and eigenvectors (k, k) of d_i' (g(x + d_j) - g(x)), made symmetric.

        A negative curvature counts by its size: the model then has a minimiser, and a wrong one is not taken.
        """
        matrix = parent.problem.space.mdot(directions, torch.stack([end.g - point.g for end in ends], 1))
        values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T))
        order = values.abs().argsort(stable=True)
        sizes = values.abs()[order]
        return sizes.clamp(min=_FLAT * float(sizes[-1])), vectors[:, order]

    @staticmethod
    def _model_minimiser(parent: SNES, point: Point, directions: Tensor, units: Tensor, best: Point) -> Point:
        """The minimiser of the quadratic model, if L is below `best` there."""
        slopes = units.T @ parent.problem.space.mdot(directions, point.g)
        x = torch.addmv(point.x, directions.T, -(units @ slopes))
        f, g = parent.gradient(x)
        trial = Point(x, f, g, g)
        return trial if trial.f < best.f else best

    def _solve(self, parent: SNES, span: _Remembering, start: Point, gained: float) -> Point:
        """Go down from the origin of a span; `gained` is what its place has gained already."""
        slopes = span.project(start.g)
        # With unit curvature, half the squared norm of the gradient is what is left.
        if 0.5 * float(slopes @ slopes) > _NEGLIGIBLE * gained:
            self.solver.rebind(span, parent.unit)
            self.solver.work.clear()
            end = self.solver.solve(torch.zeros_like(slopes), (start.f, slopes))
            parent.work.sequential([self.solver.work])
            if end.f < start.f:
                x = span.at(end.x)
                return parent.point(x, *(span.known(end.x) or parent.gradient(x)))
        return parent.point(start.x, start.f, start.g)


def _unit_steps(slopes: Tensor) -> Tensor:
    """Coordinates (k, k) in which a step along the gradient has the 1-norm 1 in a, or less.

    A correction wants a coefficient of about one, whatever the size of L and so of its slopes.
    """
    size = float(slopes.abs().sum())
    scale = size**-0.5 if 0.0 < size < 1.0 else 1.0
    return scale * torch.eye(len(slopes), dtype=slopes.dtype, device=slopes.device)


class _Remembering(Span):
    """A span that keeps the whole gradient of its last evaluation, which the next step starts from."""

    _last: tuple[Tensor, float, Tensor] | None = None

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        value, gradient = self.parent.value_and_gradient(self.at(x))
        self._last = (x.clone(), value, gradient)
        return value, self.project(gradient)

    def known(self, x: Tensor) -> tuple[float, Tensor] | None:
        """Return L and its whole gradient, if x, shape (k,), is where it was evaluated last. Not collective."""
        if self._last is None or not torch.equal(self._last[0], x):
            return None
        return self._last[1:]
