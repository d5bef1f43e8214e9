"""Searches for a critical point, by values and by slopes."""

from __future__ import annotations

import math

import pytest

from tests.linesearch.lines import parabola, search


@pytest.mark.parametrize("kind", ["secant", "cp"])
@pytest.mark.parametrize("minimiser", [0.7, 0.25, 1e-3])
@pytest.mark.parametrize("damping", [1.0, 0.1])
def test_one_iteration_finds_the_minimiser_of_a_parabola(kind: str, minimiser: float, damping: float) -> None:
    result, line = search(parabola(minimiser), kind, damping=damping)
    assert result.step == pytest.approx(minimiser, rel=1e-11)
    # secant: the end, the middle, the new step; cp: slope at the end, value at the new step
    assert (len(line.objectives), len(line.gradients)) == ((3, 0) if kind == "secant" else (1, 1))


@pytest.mark.parametrize("kind", ["secant", "cp"])
def test_the_largest_step_bounds_the_minimiser(kind: str) -> None:
    assert search(parabola(7.0), kind)[0].step == 1.0
    assert search(parabola(7.0), kind, maxlambda=100.0)[0].step == pytest.approx(7.0, rel=1e-12)


@pytest.mark.parametrize("kind", ["secant", "cp"])
def test_more_iterations_converge_superlinearly(kind: str) -> None:
    """Exp(l) - 3 l has its minimum at ln 3."""
    phi = lambda step: (math.exp(step) - 3 * step, math.exp(step) - 3)  # noqa: E731
    errors = []
    for max_it in range(1, 7):
        result, _ = search(phi, kind, max_it=max_it, maxlambda=10.0, rtol=0.0, ltol=0.0)
        errors.append(abs(result.step - math.log(3)))
    assert errors[0] < 0.2
    assert errors[3] < 1e-4 * errors[0]
    assert errors[5] < (1e-7 if kind == "secant" else 1e-15)  # values give half the digits


@pytest.mark.parametrize("kind", ["secant", "cp"])
def test_a_step_back_is_followed(kind: str) -> None:
    """The first secant step goes backwards, and curvature is positive all the way."""
    phi = lambda step: (math.cosh(3 * (step - 0.2)), 3 * math.sinh(3 * (step - 0.2)))  # noqa: E731
    result, line = search(phi, kind, max_it=12)
    assert result.step == pytest.approx(0.2, abs=1e-6)
    tried = line.objectives + line.gradients
    assert max(tried) == 1.0


@pytest.mark.parametrize("kind", ["secant", "cp"])
def test_a_maximum_is_not_taken(kind: str) -> None:
    """A cosine from just past its top: the first slopes point to the top behind the start, the minimum is at 0.9."""

    def phi(step: float) -> tuple[float, float]:
        t = math.pi * (step + 0.1)
        return math.cos(t), -math.pi * math.sin(t)

    result, line = search(phi, kind, damping=0.1, maxlambda=10.0, max_it=20)
    assert line.phi(result.step)[0] == pytest.approx(-1.0, abs=1e-9)


@pytest.mark.parametrize("kind", ["secant", "cp"])
def test_a_critical_point_uphill_is_halved_away(kind: str) -> None:
    """A dip at 0.95 that lies above the start: slopes lead into it, values do not."""

    def phi(step: float) -> tuple[float, float]:
        dip = 40.0 * (step - 0.95) ** 2 + 3.0
        return (dip, 80.0 * (step - 0.95)) if step > 0.8 else (-step, -1.0)

    result, line = search(phi, kind, max_it=1 if kind == "secant" else 8)
    assert result.failure == ""
    assert line.phi(result.step)[0] < line.f
    assert result.step <= 0.8


@pytest.mark.parametrize(("order", "power"), [("1", 1), ("2", 2), ("3", 3)])
def test_differences_of_slopes_are_exact_up_to_their_order(order: str, power: int) -> None:
    """With phi' = (l + 1)^p - 1.5^p, a Newton step from 1 that is exact up to the power of the order."""

    def phi(step: float) -> tuple[float, float]:
        return (step + 1) ** (power + 1) / (power + 1) - 1.5**power * step, (step + 1) ** power - 1.5**power

    newton = 1 - phi(1.0)[1] / (power * 2 ** (power - 1))
    assert search(phi, "cp", order=order)[0].step == pytest.approx(newton, rel=1e-12)
    if power > 1:
        assert search(phi, "cp", order=str(power - 1))[0].step != pytest.approx(newton, rel=1e-3)


@pytest.mark.parametrize(("offset", "minimiser"), [(0.5, 0.7), (10.0, 1.3), (1e4, 0.7)])
def test_secant_stops_where_differences_are_round_off(offset: float, minimiser: float) -> None:
    """However many steps are allowed: close to the minimum the curvature of exp(l) - e^c l has any sign and size."""
    slope = math.exp(minimiser)
    phi = lambda step: (math.exp(step) - slope * step + offset, math.exp(step) - slope)  # noqa: E731
    for max_it in range(4, 25):
        result, _ = search(phi, "secant", max_it=max_it, maxlambda=10.0, rtol=0.0, ltol=0.0)
        assert result.step == pytest.approx(minimiser, abs=1e-4)
