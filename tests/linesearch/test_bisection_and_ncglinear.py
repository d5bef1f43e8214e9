"""Bisection of the slope, and the step of linear conjugate gradients."""

from __future__ import annotations

import math

import pytest

from tests.linesearch.lines import parabola, quintic, search


def test_each_bisection_halves_the_interval() -> None:
    """Slopes at 1, then at midpoints: after k more the root is known to 2^-k."""
    for trials in range(1, 12):
        result, line = search(parabola(1 / 3), "bisection", max_it=trials, ltol=0.0)
        assert abs(result.step - 1 / 3) <= 0.5**trials
        assert len(line.gradients) == trials
        assert line.gradients[:3] == [1.0, 0.5, 0.25][:trials]


def test_bisection_takes_the_interval_where_the_slope_keeps_its_sign() -> None:
    result, line = search(parabola(3.0), "bisection", damping=0.7)
    assert (result.step, line.gradients) == (0.7, [0.7])


def test_bisection_stops_at_the_change_of_step() -> None:
    result, line = search(parabola(1 / 3), "bisection")
    assert abs(result.step - 1 / 3) < 1e-6
    assert len(line.gradients) == 20  # 2^-20 is the first change below 1e-6


def test_bisection_does_not_mind_a_jump_of_the_slope() -> None:
    """|l - 0.3| has no curvature for a secant to use."""
    phi = lambda step: (abs(step - 0.3), -1.0 if step < 0.3 else 1.0)  # noqa: E731
    assert search(phi, "bisection")[0].step == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("minimiser", [1e-3, 0.7, 40.0])
def test_the_linear_step_is_the_minimiser_of_a_parabola(minimiser: float) -> None:
    result, line = search(parabola(minimiser), "ncglinear")
    assert result.step == pytest.approx(minimiser, rel=1e-11)
    assert (line.actions, len(line.gradients), len(line.objectives)) == (1, 0, 1)


def test_without_positive_curvature_the_linear_step_is_damping() -> None:
    assert search(quintic, "ncglinear", damping=0.25)[0].step == 0.25
    assert search(lambda step: (-math.sin(step), -math.cos(step)), "ncglinear")[0].step == 1.0
