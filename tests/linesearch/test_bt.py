"""Backtracking: Armijo's condition, and the polynomials' minimisers."""

from __future__ import annotations

import math

import pytest

from tests.linesearch.lines import Function, parabola, search


def quartic(step: float) -> tuple[float, float]:
    """With slope -1 at 0 and values above the tangent that no cubic fits."""
    return 5 * step**4 - step, 20 * step**3 - 1


def cubic(a: float, b: float) -> Function:
    """Return a l^3 + b l^2 - l."""
    return lambda l: (a * l**3 + b * l * l - l, 3 * a * l * l + 2 * b * l - 1)  # noqa: E741


@pytest.mark.parametrize("order", ["1", "2", "3"])
@pytest.mark.parametrize("alpha", [1e-4, 0.1, 0.4])
@pytest.mark.parametrize("phi", [parabola(0.3), parabola(1e-3), quartic, cubic(40.0, -3.0), cubic(1.0, 30.0)])
def test_armijo_holds_and_failed_before(phi: Function, alpha: float, order: str) -> None:
    result, line = search(phi, "bt", alpha=alpha, order=order)
    *failed, accepted = line.objectives
    assert accepted == result.step
    assert not line.gradients
    assert phi(accepted)[0] <= line.f + alpha * accepted * line.slope
    assert failed
    for step in failed:
        assert phi(step)[0] > line.f + alpha * step * line.slope
    for long, short in zip(line.objectives[:-1], line.objectives[1:], strict=True):
        assert 0.1 * long * (1 - 1e-15) <= short <= 0.5 * long


def test_the_full_step_is_kept_when_it_is_good() -> None:
    result, line = search(parabola(0.9), "bt")
    assert (result.step, line.evaluations) == (1.0, 1)


@pytest.mark.parametrize("minimiser", [0.49, 0.3, 0.11])
def test_the_quadratic_is_exact_on_a_parabola(minimiser: float) -> None:
    for order in ("2", "3"):  # the first interpolation of both is quadratic
        result, line = search(parabola(minimiser), "bt", order=order)
        assert result.step == pytest.approx(minimiser, rel=1e-14)
        assert line.evaluations == 2


@pytest.mark.parametrize(("a", "b"), [(30.0, 20.0), (300.0, -3.0), (-1.0, 30.0), (1e-9, 30.0), (0.0, 30.0)])
def test_the_cubic_is_exact_on_a_cubic(a: float, b: float) -> None:
    """Both signs of a and b, and a cubic that is hardly one, where the textbook root loses its digits."""
    phi = cubic(a, b)
    _, line = search(phi, "bt", alpha=0.49)
    first, second, third = line.objectives[:3]
    minimiser = 1.0 / (b + math.sqrt(b * b + 3 * a))
    assert first == 1.0
    assert 0.1 * second < third < 0.5 * second
    assert third == pytest.approx(minimiser, rel=1e-12)


def test_halving() -> None:
    _, line = search(parabola(1e-2), "bt", order="1")
    assert line.objectives == [2.0**-k for k in range(len(line.objectives))]


def test_no_sufficient_decrease_ends_with_the_smallest_step() -> None:
    result, line = search(lambda step: (abs(step - 1e-6), -1.0), "bt", minlambda=1e-3)
    assert (result.step, result.failure) == (0.0, "backtracking found no sufficient decrease")
    assert min(line.objectives) >= 1e-3
