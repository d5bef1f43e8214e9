"""Diffusion-advection: Chebyshev collocation, the exit-time integral, finite differences, symmetry and boundary."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import solve_sylvester
from scipy.special import ndtr

from ml2hpc.errors import UserError
from ml2hpc.problem.reference import diffusion_advection as room
from ml2hpc.problem.reference.diffusion_advection import MU, diffusion_advection


def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return diffusion_advection(np.stack((x.ravel(), y.ravel()), axis=1)).reshape(x.shape)


def chebyshev(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Collocate on the tensor Chebyshev grid: A U + U A^T = 1 with A = -mu D^2 + D on the interior nodes of [0, 1]."""
    k = np.arange(order + 1)
    x = (1.0 - np.cos(np.pi * k / order)) / 2.0
    c = np.where((k == 0) | (k == order), 2.0, 1.0) * (-1.0) ** k
    d = np.outer(c, 1.0 / c) / (x[:, None] - x + np.eye(order + 1))
    d -= np.diag(d.sum(axis=1))
    a = (d - MU * d @ d)[1:-1, 1:-1]
    return x[1:-1], solve_sylvester(a, a.T, np.ones_like(a))


def test_agrees_with_chebyshev_collocation() -> None:
    errors = []
    for order in (48, 96):
        x, u = chebyshev(order)
        errors.append(np.abs(at(*np.meshgrid(x, x, indexing="ij")) - u).max())
    assert errors[1] < 5e-8  # the corner singularities leave collocation with order^-4
    assert errors[1] < errors[0] / 10.0


def test_agrees_with_adaptive_quadrature_of_the_image_series() -> None:
    def survival(x: float, t: float) -> float:
        """Integrate the transition density over [0, 1], images k = -2..2, each term as it comes."""
        s = np.sqrt(2.0 * MU * t)
        total = 0.0
        for k in range(-2, 3):
            for image, sign in ((x + 2 * k, 1.0), (2 * k - x, -1.0)):
                factor = np.exp((x - image) / (2.0 * MU))
                upper, lower = (1.0 - image + t) / s, (t - image) / s
                total += sign * factor * (ndtr(-lower) - ndtr(-upper) if lower > 0.0 else ndtr(upper) - ndtr(lower))
        return float(total)

    for x, y in np.random.default_rng(0).random((8, 2)):
        value = quad(lambda t, x=x, y=y: survival(x, t) * survival(y, t), 1e-12, 4.0, epsabs=1e-12, limit=400)[0]
        assert abs(at(np.array([x]), np.array([y]))[0] - value) < 1e-11


def test_table_and_integral_agree_up_to_the_corners() -> None:
    inner, corner = np.random.default_rng(1).random((2, 800, 2))
    points = np.concatenate(
        (inner, corner**8, 1.0 - corner**8, np.stack((corner[:, 0] ** 8, 1 - corner[:, 1] ** 8), 1))
    )
    t, w = room._time_rule(24)
    direct = (room._survival(points[:, :1], t) * room._survival(points[:, 1:], t)) @ w
    assert np.abs(diffusion_advection(points) - direct).max() < 1e-12


def test_solves_the_equation() -> None:
    x, y = np.random.default_rng(2).uniform(0.05, 0.9, (2, 300))
    h = 2e-3
    u = at(x, y)
    residual = np.full(300, -1.0)
    for dx, dy in ((h, 0.0), (0.0, h)):
        left2, left, right, right2 = (at(x + k * dx, y + k * dy) for k in (-2, -1, 1, 2))
        residual += (left2 - 8 * left + 8 * right - right2) / (12 * h)
        residual -= MU * (-left2 + 16 * left - 30 * u + 16 * right - right2) / (12 * h**2)
    assert np.abs(residual).max() < 2e-6


def test_boundary_symmetry_and_size() -> None:
    s, one = np.linspace(0.0, 1.0, 201), np.ones(201)
    for x, y in ((s, 0 * s), (s, one), (0 * s, s), (one, s)):
        assert np.abs(at(x, y)).max() < 1e-15
    x, y = np.random.default_rng(3).random((2, 500))
    np.testing.assert_allclose(at(x, y), at(y, x), atol=1e-14)
    assert np.all(at(x, y) > 0.0)
    # Far from the outflow and off the diagonal, advection alone: u = min(x, y).
    np.testing.assert_allclose(at(np.array([0.2]), np.array([0.8])), [0.2], atol=1e-4)


def test_many_points_are_fast() -> None:
    points = np.random.default_rng(4).random((30000, 2))
    room._solve.cache_clear()
    start = time.perf_counter()
    diffusion_advection(points)
    assert time.perf_counter() - start < 4.0


def test_points_outside_are_refused() -> None:
    with pytest.raises(UserError, match="coordinate 0"):
        diffusion_advection(np.array([[-0.1, 0.5]]))
