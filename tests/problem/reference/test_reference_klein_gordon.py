"""Klein-Gordon: the equation by finite differences, initial and boundary data."""

from __future__ import annotations

import numpy as np
import pytest

from ml2hpc.errors import UserError
from ml2hpc.problem.reference.klein_gordon import klein_gordon


def test_solves_the_equation() -> None:
    x, t = np.random.default_rng(0).uniform([-0.9, 0.1], [0.9, 11.9], (200, 2)).T
    h = 1e-3

    def u(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return klein_gordon(np.stack((x, t), axis=1))

    u_tt = (u(x, t + h) - 2.0 * u(x, t) + u(x, t - h)) / h**2
    u_xx = (u(x + h, t) - 2.0 * u(x, t) + u(x - h, t)) / h**2
    residual = u_tt - u_xx + u(x, t) ** 2 - ((x * np.cos(t)) ** 2 - x * np.cos(t))
    assert np.abs(residual).max() < 1e-6  # h^2/12 |u_tttt|


def test_initial_and_boundary_data() -> None:
    x, t = np.linspace(-1.0, 1.0, 11), np.linspace(0.0, 12.0, 11)
    assert np.array_equal(klein_gordon(np.stack((x, 0.0 * x), axis=1)), x)
    assert np.array_equal(klein_gordon(np.stack((0.0 * t - 1.0, t), axis=1)), -np.cos(t))


def test_later_times_are_refused() -> None:
    with pytest.raises(UserError, match="coordinate 1"):
        klein_gordon(np.array([[0.0, 12.5]]))
