"""Piecewise polynomials: exact for polynomials, and points outside the domain are refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from ml2hpc.errors import UserError
from ml2hpc.problem.reference.domain import coordinates
from ml2hpc.problem.reference.panels import Panels, interpolate, lobatto, radau

BREAKS = np.array([-1.0, -0.9, 0.2, 1.0])


@pytest.mark.parametrize("reference", [lobatto(6), radau(6)], ids=["lobatto", "radau"])
def test_nodes_and_derivative_are_exact_for_the_degree(reference: np.ndarray) -> None:
    panels = Panels(BREAKS, reference)
    assert np.all(np.diff(panels.nodes, axis=1) > 0.0)
    np.testing.assert_allclose(panels.nodes[:, [0, -1]], np.stack((BREAKS[:-1], BREAKS[1:]), axis=1), atol=1e-15)
    np.testing.assert_allclose(panels.derivative @ reference**6, 6.0 * reference**5, atol=1e-13)
    assert np.abs(panels.derivative @ reference**7 - 7.0 * reference**6).max() > 1e-3


def test_nodes_are_those_of_the_quadrature_rules() -> None:
    np.testing.assert_allclose(lobatto(4), [-1.0, -np.sqrt(3 / 7), 0.0, np.sqrt(3 / 7), 1.0], atol=1e-15)
    np.testing.assert_allclose(radau(2), [-1.0, -1 / 3, 1.0], atol=1e-15)


def test_interpolate_reproduces_a_tensor_polynomial_over_several_chunks() -> None:
    first, second = Panels(BREAKS, lobatto(5)), Panels(np.array([0.0, 0.5, 4.0]), radau(3))

    def f(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        values: np.ndarray = (x**5 - x) * (y**3 + 2.0) + np.floor(y > 0.5)
        return values

    table = f(first.nodes[:, :, None, None], second.nodes[None, None])
    table[:, :, 1, 0] += 1.0  # the jump belongs to the second panel from its left end on
    x, y = np.random.default_rng(0).random((2, 9000)) * [[2.0], [4.0]] - [[1.0], [0.0]]
    np.testing.assert_allclose(interpolate(first, second, table, x, y), f(x, y), atol=1e-12)


def test_coordinates_clip_rounding_and_keep_the_input() -> None:
    points = np.asfortranarray([[1.0 + 1e-15, 0.0], [0.5, -1e-15]])  # whose rows-first view is contiguous
    kept = points.copy()
    x, t = coordinates(points, ((-1.0, 1.0), (0.0, 1.0)))
    assert x.tolist() == [1.0, 0.5]
    assert t.tolist() == [0.0, 0.0]
    assert np.array_equal(points, kept)


def test_no_points_give_no_rows() -> None:
    assert coordinates(np.zeros((0, 2)), ((-1.0, 1.0), (0.0, 1.0))).shape == (2, 0)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros(2), r"shape \(2,\)"),
        (np.zeros((2, 3)), r"shape \(2, 3\)"),
        (np.zeros((2, 2), dtype=complex), "complex128"),
        (np.array([[0.0, 0.5], [0.0, 1.1]]), r"coordinate 1 in \[0.0, 1.0\]; point \[0.0, 1.1\]"),
        (np.array([[-1.1, 0.5]]), r"coordinate 0 in \[-1.0, 1.0\]"),
        (np.array([[np.nan, 0.5]]), "coordinate 0"),
    ],
)
def test_bad_points_are_named(points: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        coordinates(points, ((-1.0, 1.0), (0.0, 1.0)))
