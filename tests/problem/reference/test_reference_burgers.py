"""Burgers: another quadrature, the equation by finite differences, symmetry and data."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ml2hpc.errors import UserError
from ml2hpc.problem.reference import burgers as room
from ml2hpc.problem.reference.burgers import NU, burgers


def at(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    return burgers(np.stack(np.broadcast_arrays(x, t), axis=1))


def trapezoid(x: np.ndarray, t: np.ndarray, nodes: int = 1200) -> np.ndarray:
    """Cole-Hopf with the trapezoidal rule: exponentially accurate, z = 12 covers the e^100 between max and min of F."""
    z = np.linspace(-12.0, 12.0, nodes)
    y = x[:, None] - np.sqrt(4.0 * NU * t)[:, None] * z
    exponent = -np.cos(np.pi * y) / (2.0 * np.pi * NU) - z**2
    f = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    u: np.ndarray = -(np.sin(np.pi * y) * f).sum(axis=1) / f.sum(axis=1)
    return u


def test_agrees_with_another_quadrature() -> None:
    x, t = np.random.default_rng(0).uniform([-1.0, 0.0], [1.0, 1.0], (1500, 2)).T
    x[:750] *= 0.02  # the shock, of width nu, at x = 0
    assert np.abs(at(x, t) - trapezoid(x, t)).max() < 1e-13


def test_twenty_nodes_are_not_enough() -> None:
    x, t = np.linspace(-1.0, 1.0, 256), np.full(256, 0.8)
    assert np.abs(room._cole_hopf(x, t, 20) - at(x, t)).max() > 1e-3


def test_solves_the_equation() -> None:
    x, t = np.random.default_rng(1).uniform([-0.9, 0.1], [0.9, 0.9], (300, 2)).T
    x = np.where(np.abs(x) < 0.1, x + 0.2, x)  # keeps h small against the scales of the solution
    h = 1e-3
    u = at(x, t)
    u_t = (at(x, t - 2 * h) - 8 * at(x, t - h) + 8 * at(x, t + h) - at(x, t + 2 * h)) / (12 * h)
    left2, left, right, right2 = (at(x + k * h, t) for k in (-2, -1, 1, 2))
    u_x = (left2 - 8 * left + 8 * right - right2) / (12 * h)
    u_xx = (-left2 + 16 * left - 30 * u + 16 * right - right2) / (12 * h**2)
    assert np.abs(u_t).max() > 0.5
    assert np.abs(u_t + u * u_x - NU * u_xx).max() < 1e-7


def test_data_and_symmetry() -> None:
    x, t = np.linspace(-1.0, 1.0, 101), np.linspace(0.0, 1.0, 101)
    np.testing.assert_allclose(at(x, np.zeros(101)), -np.sin(np.pi * x), atol=1e-15)
    for wall in (-1.0, 0.0, 1.0):
        assert np.abs(at(np.array(wall), t)).max() < 1e-14
    np.testing.assert_allclose(at(-x, t), -at(x, t), atol=1e-14)


def test_many_points_are_fast_and_independent_of_chunks() -> None:
    points = np.random.default_rng(2).random((30000, 2))
    start = time.perf_counter()
    u = burgers(points)
    assert time.perf_counter() - start < 4.0
    np.testing.assert_allclose(u[9000:9010], burgers(points[9000:9010]), rtol=0.0, atol=1e-15)


def test_later_times_are_refused() -> None:
    with pytest.raises(UserError, match="coordinate 1"):
        burgers(np.array([[0.0, 1.5]]))
