"""Models whose eigenvalues are known: the global minimiser in the 2-norm ball by the secular equation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ml2hpc.trustregion.interface import Model, Subproblem, Trial
from ml2hpc.vec import VectorSpace

_NEWTON = 100  # iterations on the secular equation: it converges monotonically, in about five


class Spectrum(Subproblem):
    """B = P diag(lambda) P' + gamma (I - P P') with orthonormal columns P: the orthonormal basis method (OBS).

    In the basis, with a = P'g and the rest of g as one more coordinate of eigenvalue gamma, the minimiser is

        v_i = -a_i / (lambda_i + sigma),   sigma >= max(0, -lambda_min),   sigma (Delta - |v|) = 0,

    and in the hard case, where a has no part along the leftmost eigenvector, that eigenvector is added up to the
    boundary. For P with n columns this is the method of More and Sorensen.

    Parameters
    ----------
    basis
        P, shape (n_local, k).
    values
        lambda, shape (k,), on the host.
    gamma
        At least 0: what is outside the basis has no negative curvature.

    References
    ----------
    Brust, Erway, Marcia: On solving L-SR1 trust-region subproblems, Comput. Optim. Appl. 66 (2017). More, Sorensen:
    Computing a trust region step, SIAM J. Sci. Stat. Comput. 4 (1983).
    """

    def __init__(self, space: VectorSpace, g: Tensor, basis: Tensor, values: Tensor, gamma: float) -> None:
        assert gamma >= 0.0
        self.model = Model(space, g, self._action)
        self._space, self._basis, self._gamma = space, basis, gamma
        self._shift = (values - gamma).to(basis)
        along = space.mdot(basis.T, g)
        self._rest = g - basis @ along if basis.shape[1] < space.n else torch.zeros_like(g)
        self._outside = space.norm(self._rest)
        extra = values.new_tensor([self._outside])
        self._a = torch.cat([along.to(values), extra])
        # Where the basis is whole nothing is outside it, and the last coordinate must not be the leftmost.
        last = gamma if basis.shape[1] < space.n else math.inf
        self._values = torch.cat([values, values.new_tensor([last])])

    def _action(self, v: Tensor) -> Tensor:
        part = self._shift * self._space.mdot(self._basis.T, v)
        return torch.addmv(v, self._basis, part, beta=self._gamma)

    def solve(self, radius: float) -> Trial:
        v, boundary = solve_secular(self._values, self._a, radius)
        s = self._basis @ v[:-1].to(self._basis)
        if self._outside > 0.0:
            s.add_(self._rest, alpha=float(v[-1]) / self._outside)
        finite = self._values < math.inf
        lam, a, w = self._values[finite], self._a[finite], v[finite]
        return Trial(s, -float(a @ w) - 0.5 * float(w @ (lam * w)), boundary)


def solve_secular(values: Tensor, a: Tensor, radius: float) -> tuple[Tensor, bool]:
    """Return the global minimiser v of <a, v> + sum_i lambda_i v_i^2 / 2 over |v| <= radius. Not collective.

        1 / radius - 1 / |v(sigma)| = 0   by Newton's method from the left, where it converges monotonically

    Parameters
    ----------
    values, a
        Shapes (k,); values may be infinite, where v is 0.

    Returns
    -------
    v, boundary
        v has shape (k,); whether it is on the sphere.
    """
    low = max(0.0, -float(values.min()))
    gap = values + low  # exactly 0 at the leftmost, so that sigma - low may be tiny
    t = max(0.0, float((a.abs() / radius - gap).max()))  # |a_i| / (lambda_i + sigma) = radius for one i: |v| >= radius
    v = _step(a, gap, t)
    length = float(v.norm())
    if t == 0.0 and length <= radius:
        if low == 0.0:
            return v, False
        v[int(gap.argmin())] += math.sqrt(max(radius * radius - length * length, 0.0))  # the hard case
        return v, True
    for _ in range(_NEWTON):
        cube = float((v * v / torch.where(v == 0.0, 1.0, gap + t)).sum())
        longer = t + (length * length / cube) * (length - radius) / radius
        if not longer > t:
            break
        t = longer
        v = _step(a, gap, t)
        length = float(v.norm())
    return v * (radius / length), True


def _step(a: Tensor, gap: Tensor, t: float) -> Tensor:
    """-a / (gap + t), and 0 for 0 / 0."""
    return torch.where(a == 0.0, 0.0, -a / (gap + t))
