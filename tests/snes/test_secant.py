"""Secant matrices against five-line dense gold versions."""

from __future__ import annotations

import math

import pytest
import torch

from ml2hpc import kernels
from ml2hpc.comm import Communicator
from ml2hpc.log import Log
from ml2hpc.snes.dense import DenseInverse
from ml2hpc.snes.limited import CompactLBFGS
from ml2hpc.vec import Replicated
from tests.snes.problems import matrix, quadratic, rosenbrock, tree, world

N = 9


def pairs(count: int):
    """Secant pairs of a quadratic with gradients at both ends, along random steps."""
    generator = torch.Generator().manual_seed(4)
    a, x = matrix(N), torch.ones(N, dtype=torch.float64)
    for _ in range(count):
        s = torch.randn(N, generator=generator, dtype=torch.float64)
        yield s, a @ s, a @ x, a @ (x + s)
        x = x + s


def space() -> Replicated:
    return Replicated(N, torch.float64)


def dense(
    kind: str, blocks=None, n: int = N, library=None, curvature: float = 0.0, dtype=torch.float64
) -> DenseInverse:
    comm = Communicator.world(Log(), wait="spin").alone()
    return DenseInverse(Replicated(n, dtype), comm, kind, blocks or [slice(0, n)], curvature, library)


def entries(inverse: DenseInverse) -> torch.Tensor:
    """H by its columns."""
    n = inverse.space.n
    return torch.stack([inverse.apply(e) for e in torch.eye(n, dtype=inverse.space.dtype)])


def two_loop(stored, gamma, g):
    """Nocedal's recursion."""
    q, alphas = g.clone(), []
    for s, y in reversed(stored):
        alphas.append(s @ q / (s @ y))
        q = q - alphas[-1] * y
    q = gamma * q
    for (s, y), alpha in zip(stored, reversed(alphas), strict=True):
        q = q + (alpha - y @ q / (s @ y)) * s
    return q


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 11])
def test_compact_form_equals_the_recursion(scaled, count):
    inverse = CompactLBFGS(space(), 4, scaled=scaled)
    stored = []
    for s, y, g, g_new in pairs(count):
        inverse.update(s, y, g, g_new, None)
        stored.append((s, y))
    g = torch.linspace(1, 2, N, dtype=torch.float64)
    gamma = stored[-1][0] @ stored[-1][1] / (stored[-1][1] @ stored[-1][1]) if stored and scaled else 1.0
    torch.testing.assert_close(inverse.apply(g), two_loop(stored[-4:], gamma, g), rtol=1e-11, atol=1e-11)
    assert inverse.pairs == count
    inverse.reset()
    assert torch.equal(inverse.apply(g), g)


def gold(h, s, y, b, kind):
    """The update as Al-Baali, Spedicato and Maggioni write it, on a dense matrix."""
    sy, hy = s @ y, h @ y
    yhy = y @ hy
    c, a = yhy / sy, b * (yhy / sy) - 1
    tau = phi = 1.0
    if kind == "ssbfgs":
        tau = min(1.0, 1 / b)
    if kind == "ssbroyden" and a > 1e-14:
        rho = min(1.0, c * (1 - math.sqrt(a / (1 + a))))
        theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
        sigma = (1 + theta * a) ** (1 / (1 - N))
        tau = min(min(1, 1 / b) * sigma, 1 + theta * a) if theta <= 0 else min(1, 1 / b) * min(sigma, 1 / theta)
        phi = (1 - theta) / (1 + a * theta)
    v = math.sqrt(yhy) * (s / sy - hy / yhy)
    return (h - torch.outer(hy, hy) / yhy + phi * torch.outer(v, v)) / tau + torch.outer(s, s) / sy


@pytest.mark.parametrize("library", [kernels.load(), None], ids=["compiled", "torch"])
@pytest.mark.parametrize("kind", ["bfgs", "ssbfgs", "ssbroyden"])
def test_dense_updates_equal_the_gold_version(kind, library):
    """Steps s = -lambda H g on a quadratic, so that s'Bs = -lambda s'g."""
    inverse = dense(kind, library=library)
    a = matrix(N)
    x = torch.ones(N, dtype=torch.float64)
    h = None
    for step in (0.001, 0.7, 1.3, 0.4, 1.0, 0.9, 0.8):
        g = a @ x
        s = -step * inverse.apply(g)
        y = a @ s
        if h is None:
            h, b = torch.eye(N, dtype=torch.float64) * (s @ y) / (y @ y), 1.0
        else:
            b = float(-step * (s @ g) / (s @ y))
        inverse.update(s, y, g, a @ (x + s), step)
        h = gold(h, s, y, b, kind)
        x = x + s
        torch.testing.assert_close(entries(inverse), h, rtol=1e-9, atol=1e-9)
        g = a @ x
        torch.testing.assert_close(inverse.apply(g), h @ g, rtol=1e-9, atol=1e-9)
    assert torch.linalg.eigvalsh(h).min() > 0


@pytest.mark.parametrize("kind", ["bfgs", "ssbfgs", "ssbroyden"])
def test_the_last_secant_equation_holds(kind):
    """H y = s for every member of the family: the scaling does not touch the newest pair."""
    inverse = dense(kind)
    for s, y, g, g_new in pairs(5):
        inverse.update(s, y, g, g_new, None)
        torch.testing.assert_close(inverse.apply(y), s, rtol=1e-9, atol=1e-9)


def test_the_known_product_is_used_only_for_the_same_vector():
    inverse = dense("bfgs")
    for s, y, g, g_new in pairs(3):
        inverse.update(s, y, g, g_new, None)
    torch.testing.assert_close(inverse.apply(g_new), entries(inverse) @ g_new, rtol=1e-9, atol=1e-9)
    other = torch.ones(N, dtype=torch.float64)
    torch.testing.assert_close(inverse.apply(other), entries(inverse) @ other, rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", ["lbfgs", "bfgs", "ssbfgs", "ssbroyden"])
def test_quasi_newton_is_superlinear(comm, kind):
    """Once near the minimum the gradient falls by more than 10 per step on average, without exact searches."""
    m = "-snes_qn_m 30" if kind == "lbfgs" else ""
    solver = tree(f"-snes_type qn -snes_qn_type {kind} {m} -snes_rtol 1e-10 -snes_max_it 200", rosenbrock(world(comm)))
    norms = []

    def note(s, point, norm, update):
        norms.append(norm)
        return s.reason

    solver.observe = note
    solver.solve(torch.full((6,), 0.8, dtype=torch.float64))
    assert len(norms) < 60
    assert (norms[-1] / norms[-5]) ** 0.25 < 0.1


@pytest.mark.parametrize("kind", ["lbfgs", "bfgs", "ssbfgs", "ssbroyden"])
def test_exact_searches_on_a_quadratic_end_after_n_steps(comm, kind):
    """Every update of the Broyden family generates conjugate directions; the secant search is exact here."""
    search = "-snes_linesearch_type cp -snes_linesearch_max_it 3 -snes_linesearch_maxlambda 1e9"
    solver = tree(f"-snes_type qn -snes_qn_type {kind} {search} -snes_rtol 1e-9", quadratic(world(comm)))
    solver.solve(torch.linspace(-1, 1.5, 8, dtype=torch.float64))
    assert solver.iteration <= 9  # one more for the change of the start matrix after the first pair


def test_products_are_right_where_steps_are_short_against_the_iterate():
    """s = x+ - x carries the rounding of x: H g must not be rebuilt from it."""
    inverse = dense("ssbroyden")
    a, x = matrix(N), torch.full((N,), 1e6, dtype=torch.float64)
    minimum = x + 1e-3 * torch.linspace(1, 2, N, dtype=torch.float64)
    for _ in range(8):
        g = a @ (x - minimum)
        step = 0.5
        new = x - step * inverse.apply(g)
        s, y = new - x, a @ (new - minimum) - g
        inverse.update(s, y, g, g + y, step)
        assert (inverse.apply(y) - s).norm() < 1e-7 * s.norm()
        x = new


def test_a_pair_that_costs_definiteness_starts_anew():
    inverse = dense("bfgs")
    for s, y, g, g_new in pairs(3):
        inverse.update(s, y, g, g_new, None)
    inverse._matrix.set_identity(0, -1.0)
    s, y, g, g_new = next(pairs(1))
    inverse.update(s, y, g, g_new, None)
    assert inverse.pairs == 0
    assert torch.equal(inverse.apply(g), g)
