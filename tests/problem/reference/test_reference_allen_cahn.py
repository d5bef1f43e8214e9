"""Allen-Cahn: a Fourier and a Chebyshev solver, refinement, finite differences, symmetry and data."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ml2hpc.errors import UserError
from ml2hpc.problem.reference import allen_cahn as room
from ml2hpc.problem.reference.allen_cahn import EPS, allen_cahn, initial
from ml2hpc.problem.reference.panels import interpolate

VARIANTS = tuple(EPS)


def at(x: np.ndarray, t: np.ndarray | float, variant: str) -> np.ndarray:
    return allen_cahn(np.stack(np.broadcast_arrays(x, t), axis=1), variant)


def fourier(modes: int, steps: int, t_end: float) -> tuple[np.ndarray, np.ndarray]:
    """Solve the periodic variant by ETDRK4 with contour averages (Kassam and Trefethen 2005)."""
    dt = t_end / steps
    x = -1.0 + 2.0 * np.arange(modes) / modes
    linear = dt * (5.0 - EPS["periodic"] * (np.pi * np.arange(modes // 2 + 1)) ** 2)
    z = linear[:, None] + np.exp(1j * np.pi * (np.arange(1, 33) - 0.5) / 32)
    e, e2 = np.exp(linear), np.exp(linear / 2.0)
    q, f1, f2, f3 = (
        dt * np.mean(phi, axis=1).real
        for phi in (
            (np.exp(z / 2) - 1) / z,
            (-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3,
            (2 + z + np.exp(z) * (z - 2)) / z**3,
            (-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3,
        )
    )

    def cubic(v: np.ndarray) -> np.ndarray:
        return np.fft.rfft(-5.0 * np.fft.irfft(v, modes) ** 3)

    v = np.fft.rfft(initial(x))
    for _ in range(steps):
        nv = cubic(v)
        a = e2 * v + q * nv
        na = cubic(a)
        nb = cubic(e2 * v + q * na)
        nc = cubic(e2 * a + q * (2 * nb - nv))
        v = e * v + f1 * nv + 2 * f2 * (na + nb) + f3 * nc
    return x, np.fft.irfft(v, modes)


def test_periodic_agrees_with_fourier_etdrk4() -> None:
    x, u = fourier(1024, 400, 1.0)
    assert np.linalg.norm(at(x, 1.0, "periodic") - u) < 1e-9 * np.linalg.norm(u)
    # Early, the kink limits the Fourier solver to N^-2; extrapolating that error away must lead to the reference.
    x, coarse = fourier(1024, 100, 0.05)
    fine = fourier(2048, 100, 0.05)[1][::2]
    reference = at(x, 0.05, "periodic")
    gaps = [np.linalg.norm(u - reference) / np.linalg.norm(u) for u in (coarse, fine, (4.0 * fine - coarse) / 3.0)]
    assert 3.8 < gaps[0] / gaps[1] < 4.2
    assert gaps[2] < 2e-7


def chebyshev_radau(order: int, t_end: float) -> tuple[np.ndarray, np.ndarray]:
    """Solve the Dirichlet variant by Chebyshev collocation on [0, 1] and the Radau method of scipy."""
    k = np.arange(order + 1)
    x = (1.0 - np.cos(np.pi * k / order)) / 2.0
    c = np.where((k == 0) | (k == order), 2.0, 1.0) * (-1.0) ** k
    d = np.outer(c, 1.0 / c) / (x[:, None] - x + np.eye(order + 1))
    d -= np.diag(d.sum(axis=1))
    d2 = EPS["dirichlet"] * d @ d
    d2 = d2[1:-1, 1:] - np.outer(d2[1:-1, 0], d[0, 1:] / d[0, 0])  # u_x(0) = 0 gives u(0)
    diffusion, wall = d2[:, :-1], -d2[:, -1]  # u(1) = -1
    u = solve_ivp(
        lambda _, u: diffusion @ u + wall + 5.0 * (u - u**3),
        (0.0, t_end),
        initial(x[1:-1]),
        method="Radau",
        jac=lambda _, u: diffusion + np.diag(5.0 - 15.0 * u**2),
        rtol=1e-9,
        atol=1e-11,
    ).y[:, -1]
    return x[1:-1], u


@pytest.mark.parametrize(("t_end", "order"), [(0.1, 96), (1.0, 300)])  # the interface needs the order at t = 1
def test_dirichlet_agrees_with_chebyshev_collocation(t_end: float, order: int) -> None:
    x, u = chebyshev_radau(order, t_end)
    assert np.abs(at(x, t_end, "dirichlet") - u).max() < 1e-9


@pytest.mark.parametrize("variant", VARIANTS)
def test_refinement_changes_less_than_the_stated_accuracy(variant: str) -> None:
    x, t, near = np.random.default_rng(0).random((3, 4000))
    x = np.concatenate((x, 1.0 - near**6))
    t = np.concatenate((t, t**4))
    coarse = at(x, t, variant)
    for degree, stages in ((20, 8), (16, 11)):
        space, time_, table = room._solve(variant, degree, stages)
        fine = interpolate(space, time_, table, x, t) + room._lift(variant, x, t)
        assert np.abs(fine - coarse).max() < 1e-9
        assert np.linalg.norm(fine - coarse) < 1e-10 * np.linalg.norm(coarse)


@pytest.mark.parametrize("variant", VARIANTS)
def test_solves_the_equation(variant: str) -> None:
    x, t = np.random.default_rng(1).uniform([-0.97, 0.05], [0.97, 0.95], (400, 2)).T
    h = 5e-4
    u = at(x, t, variant)
    u_t = (at(x, t - 2 * h, variant) - at(x, t + 2 * h, variant)) / (12 * h)
    u_t += (at(x, t + h, variant) - at(x, t - h, variant)) * 8 / (12 * h)
    left2, left, right, right2 = (at(x + k * h, t, variant) for k in (-2, -1, 1, 2))
    u_xx = (-left2 + 16 * left - 30 * u + 16 * right - right2) / (12 * h**2)
    assert np.abs(u_t).max() > 1.0
    assert np.abs(EPS[variant] * u_xx).max() > 0.1
    assert np.abs(u_t - EPS[variant] * u_xx - 5.0 * (u - u**3)).max() < 2e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_initial_data_symmetry_and_jumps_between_panels(variant: str) -> None:
    x = np.linspace(-1.0, 1.0, 401)
    assert np.abs(at(x, 0.0, variant) - initial(x)).max() < 1e-13
    assert np.abs(at(x, 1e-12, variant) - initial(x)).max() < 1e-7  # the kink rounds off like sqrt(eps t)
    assert np.array_equal(at(x, 0.7, variant), at(-x, 0.7, variant))
    space, time_, table = room._solve(variant, 16, 8)
    assert np.abs(table[1:, 0] - table[:-1, -1]).max() == 0.0
    assert np.abs(table[:, :, 1:, 0] - table[:, :, :-1, -1]).max() == 0.0
    assert table.shape == (*space.nodes.shape, *time_.nodes.shape)


def test_boundary_conditions() -> None:
    t = np.linspace(0.04, 1.0, 50)
    h = 1e-4
    for wall in (0.0, 1.0):
        near = [at(np.full(50, wall - k * h), t, "periodic") for k in range(4)]
        slope = (11 * near[0] - 18 * near[1] + 9 * near[2] - 2 * near[3]) / (6 * h)
        assert np.abs(slope).max() < 1e-4
    assert np.abs(at(np.ones(50), t, "dirichlet") + 1.0).max() < 1e-13
    assert np.abs(at(np.ones(50), t, "periodic") + 1.0).max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_many_points_are_fast(variant: str) -> None:
    points = np.random.default_rng(2).random((30000, 2))
    room._solve.cache_clear()
    start = time.perf_counter()
    allen_cahn(points, variant)
    assert time.perf_counter() - start < 6.0


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="variant 'neumann' is unknown; choose one of periodic, dirichlet"):
        allen_cahn(np.zeros((1, 2)), "neumann")
    with pytest.raises(UserError, match="coordinate 1"):
        allen_cahn(np.array([[0.0, 1.5]]))
