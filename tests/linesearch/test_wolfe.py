"""Strong Wolfe: both inequalities, few evaluations, and sense near round-off."""

from __future__ import annotations

import math

import pytest
import torch

from ml2hpc.linesearch import Line, LineSearch
from ml2hpc.vec import Replicated
from tests.linesearch.lines import MORE_THUENTE, STARTS, Counted, Function, make, parabola, search, walled

# Evaluations from the four starts; a search that takes more has lost something.
EVALUATIONS = {
    "rational": (13, 5, 1, 4),
    "quintic": (19, 8, 14, 14),
    "wavy": (15, 12, 2, 4),
    "roots a": (6, 1, 3, 5),
    "roots b": (9, 3, 7, 9),
    "roots c": (15, 8, 7, 9),
}


def holds(phi: Function, step: float, alpha: float, curvature: float) -> bool:
    (f, slope), (value, end) = phi(0.0), phi(step)
    return value <= f + alpha * step * slope and abs(end) <= curvature * abs(slope)


@pytest.mark.parametrize("name", MORE_THUENTE)
def test_more_and_thuente(name: str) -> None:
    phi, alpha, curvature = MORE_THUENTE[name]
    for start, most in zip(STARTS, EVALUATIONS[name], strict=True):
        result, line = search(phi, "wolfe", damping=start, alpha=alpha, curvature=curvature)
        assert holds(phi, result.step, alpha, curvature)
        assert line.evaluations == len(line.gradients) <= most


@pytest.mark.parametrize("name", MORE_THUENTE)
def test_loose_conditions_take_few_evaluations(name: str) -> None:
    phi = MORE_THUENTE[name][0]
    for start in (0.1, 1.0, 10.0):
        result, line = search(phi, "wolfe", damping=start)
        assert holds(phi, result.step, 1e-4, 0.9)
        assert line.evaluations <= (17 if name in ("quintic", "wavy") else 8)


def test_a_parabola_is_interpolated_exactly() -> None:
    for minimiser in (0.3, 1.7, 3.1):
        result, line = search(parabola(minimiser), "wolfe", curvature=1e-6, alpha=1e-7)
        assert result.step == pytest.approx(minimiser, rel=1e-12)
        assert line.evaluations <= 4


def test_the_full_step_is_kept_when_it_is_good() -> None:
    result, line = search(parabola(0.9), "wolfe")
    assert (result.step, line.gradients) == (1.0, [1.0])


def descend(search_: LineSearch, iterations: int) -> tuple[float, list[Line], list[float]]:
    """Minimise Rosenbrock's function from (-1.2, 1) by BFGS."""
    space = Replicated(2, torch.float64)

    def both(x: torch.Tensor) -> tuple[float, torch.Tensor]:
        a, b = x.tolist()
        t = b - a * a
        return 100 * t * t + (1 - a) ** 2, torch.tensor([-400 * a * t - 2 * (1 - a), 200 * t], dtype=torch.float64)

    x, inverse = torch.tensor([-1.2, 1.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    f, g = both(x)
    lines, steps = [], []
    for _ in range(iterations):
        line = Line(lambda z: both(z)[0], both, space, x, inverse @ g, f, g)
        result = search_.search(line)
        assert result.failure == ""
        lines.append(line)
        steps.append(result.step)
        old, x = x, line.at(result.step)
        f, new = line.gradient(result.step)
        s, y, g = x - old, new - g, new
        if float(s @ y) > 0:
            w = torch.eye(2, dtype=torch.float64) - torch.outer(s, y) / (s @ y)
            inverse = w @ inverse @ w.T + torch.outer(s, s) / (s @ y)
    return f, lines, steps


@pytest.mark.parametrize(("memory", "most"), [(0, 55), (3, 60)])
def test_rosenbrock(memory: int, most: int) -> None:
    """BFGS by hand. Its steps are full ones: there is nothing to learn, and a memory may cost little."""
    f, lines, steps = descend(make("wolfe", memory=memory), 36)
    assert f < 1e-15
    for line, step in zip(lines, steps, strict=True):
        value, slope = line.both(step)
        assert value <= line.f + 1e-4 * step * line.slope
        assert abs(slope) <= 0.9 * abs(line.slope)
    evaluations = sum(len(line._gradients) - 1 for line in lines)
    assert evaluations <= most


# ---- round-off -------------------------------------------------------------------------------------------------------


def drowned(minimiser: float, curvature: float, noise: float = 1.5e-8) -> Function:
    """Return a parabola of height 1e-10 on top of 1e8, where L is a multiple of 1.5e-8, and slopes are exact.

    The value wobbles by an ulp from step to step, as sums of many terms do.
    """

    def phi(step: float) -> tuple[float, float]:
        wobble = noise * (1 if math.sin(1e3 * step) > 0 else 0) if step else 0.0
        return 1e8 + wobble + 0.5 * curvature * (step * step - 2 * step * minimiser), curvature * (step - minimiser)

    return phi


@pytest.mark.parametrize("minimiser", [0.05, 0.3, 0.7, 1.0, 4.0, 37.0, 300.0])
def test_slopes_decide_where_values_drown(minimiser: float) -> None:
    phi = drowned(minimiser, 1e-10)
    result, line = search(phi, "wolfe")
    slope, end = phi(0.0)[1], phi(result.step)[1]
    assert result.failure == ""
    assert (2e-4 - 1) * slope >= end >= 0.9 * slope  # the approximate Wolfe conditions
    assert abs(end) < abs(slope)
    assert phi(result.step)[0] <= line.f + 1e-12 * abs(line.f)
    assert line.evaluations <= 8


def test_the_strong_test_alone_fails_there() -> None:
    """The value comes out one ulp above L(x) at every step."""
    phi = lambda step: (1e8 + (1.5e-8 if step else 0.0), 1e-10 * (step - 0.6))  # noqa: E731
    assert search(phi, "wolfe", roundoff=0.0)[0].failure
    result, line = search(phi, "wolfe")
    assert abs(phi(result.step)[1]) < 0.6e-10
    assert line.evaluations == 1


def test_the_flattest_step_is_returned_when_the_bound_is_met_there() -> None:
    phi = lambda step: (1e8 + (1.5e-8 if step else 0.0), 1e-10 * (step - 300.0))  # noqa: E731
    result, line = search(phi, "wolfe", max_it=3)
    assert (result.step, line.gradients) == (4.0, [1.0, 2.0, 4.0])


def test_a_rise_beyond_round_off_is_not_taken() -> None:
    phi = drowned(0.6, 1e-10, noise=1.0)  # 1e-8 of L
    result, line = search(phi, "wolfe")
    assert phi(result.step)[0] <= line.f + 1e-4


def test_round_off_is_no_excuse_where_values_count() -> None:
    """The same slopes on top of 0: the decrease is seen, so Armijo's condition must hold."""
    phi = lambda step: (0.5e-10 * step, 1e-10 * (step - 0.6))  # noqa: E731
    assert search(phi, "wolfe")[0].failure == "no step along the direction lowers the objective"


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_the_best_step_is_returned_when_the_bound_is_met() -> None:
    result, line = search(lambda step: (-step, -1.0), "wolfe", max_it=5)  # L falls for ever
    assert line.gradients == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert result.step == 16.0
    result, line = search(lambda step: (-step, -1.0), "wolfe", maxlambda=6.0)
    assert line.gradients == [1.0, 2.0, 4.0, 6.0]
    assert result.step == 6.0


def test_a_wall_is_approached_by_halving() -> None:
    result, line = search(walled(parabola(9.0), 0.06, math.nan), "wolfe", curvature=0.1)
    assert line.gradients[:5] == [1.0, 0.5, 0.25, 0.125, 0.0625]
    assert 0.059 < result.step < 0.06  # no point has a small slope, the best is next to the wall
    assert line.evaluations == 25


def test_the_bracket_shrinks_steadily() -> None:
    """A kink, and slopes that deceive the cubic: bisection alone takes 40 trials to the shortest bracket."""

    def phi(step: float) -> tuple[float, float]:
        if step < 0.9:
            return -(step**0.1), -0.1 * step**-0.9 if step else -1e4
        return -(0.9**0.1) + 1e3 * (step - 0.9), 1e3

    result, line = search(phi, "wolfe", max_it=100, curvature=1e-6)
    assert result.step == pytest.approx(0.9, abs=1e-12)
    assert line.evaluations <= 50


def long(factor: float) -> Function:
    """A parabola whose minimum is at `factor`."""
    return lambda step: ((step - factor) ** 2, 2 * (step - factor))


def test_first_trial_is_learnt_from_the_best_steps() -> None:
    learning = make("wolfe", memory=2)
    firsts = []
    for best in (0.1, 0.4, 0.4, 0.4, 1.0, 1.0, 1.0):
        line = Counted(long(best))
        learning.search(line)
        firsts.append(line.gradients[0])
    assert firsts == pytest.approx([1.0, 0.1, 0.2, 0.4, 0.4, math.sqrt(0.4), 1.0])
    learning.forget()
    line = Counted(long(0.4))
    learning.search(line)
    assert line.gradients[0] == 1.0


@pytest.mark.parametrize("options", [{"memory": 0}, {"damping": 0.05}])
def test_first_trial_is_at_most_damping(options: dict[str, float]) -> None:
    learning = make("wolfe", **options)
    for _ in range(4):
        line = Counted(long(0.2))
        learning.search(line)
        assert line.gradients[0] == options.get("damping", 1.0)


@pytest.mark.parametrize(("memory", "first"), [(0, 1.0), (1, 0.4), (2, 0.2)])
def test_steps_of_a_longer_memory_are_left_out(memory: int, first: float) -> None:
    """As after a restart with a smaller memory."""
    learning = make("wolfe", memory=memory)
    learning.recent = [0.01, 0.1, 0.4]
    line = Counted(long(0.4))
    learning.search(line)
    assert line.gradients[0] == pytest.approx(first)
