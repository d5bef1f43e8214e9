"""Forcing terms: Eisenstat and Walker's numbers."""

from __future__ import annotations

from typing import Any

import pytest

from ml2hpc.ksp import Forcing, ForcingOptions


def followed(norms: list[float], wanted: float = 0.0, linear: float = 0.0, **options: Any) -> list[float]:
    forcing, found = Forcing(ForcingOptions(**options)), []
    for norm in norms:
        forcing.follow(norm, wanted)
        forcing.linear = linear
        found.append(forcing.value)
    return found


def test_the_first_choice_measures_the_linear_model():
    """| |g_k| - |g_(k-1) - B s| | / |g_(k-1)|, then with the safeguard 0.3^alpha = 0.143 above 0.1."""
    found = followed([1.0, 0.3, 0.05], linear=0.1, ew_version="1", ew_threshold=0.5)
    assert found == pytest.approx([0.3, 0.2, 0.05 / 0.3])
    assert followed([1.0, 0.1], linear=0.1, ew_version="1")[-1] == pytest.approx(0.3 ** (0.5 + 0.5 * 5**0.5))


def test_the_second_choice_measures_the_fall():
    assert followed([1.0, 0.1], ew_version="2", ew_alpha=2.0, ew_gamma=0.9) == pytest.approx([0.3, 0.009])
    assert followed([1.0, 2.0], ew_version="2", ew_rtolmax=0.8) == pytest.approx([0.3, 0.8])


def test_the_safeguard_holds_above_its_threshold():
    """gamma eta^alpha = 0.49 is above 0.1 and keeps the term from falling to 1e-4; 0.0081 is not."""
    assert followed([1.0, 1e-2], ew_version="2", ew_alpha=2.0, ew_rtol0=0.7)[-1] == pytest.approx(0.49)
    assert followed([1.0, 1e-2], ew_version="2", ew_alpha=2.0, ew_rtol0=0.09)[-1] == pytest.approx(1e-4)
    assert followed([1.0, 1e-2], ew_version="2", ew_alpha=2.0, ew_rtol0=0.7, ew_threshold=0.5)[-1] == pytest.approx(
        1e-4
    )


def test_the_third_choice_does_not_solve_beyond_what_is_wanted():
    assert followed([1.0, 1e-4], 1e-5, ew_version="3", ew_alpha=2.0)[-1] == pytest.approx(0.1)
    assert followed([1.0, 1e-4], 1e-2, ew_version="3", ew_alpha=2.0)[-1] == pytest.approx(0.3)  # at most the first
    assert followed([1.0, 1e-4], ew_version="3", ew_alpha=2.0)[-1] == pytest.approx(0.09)  # the safeguard
