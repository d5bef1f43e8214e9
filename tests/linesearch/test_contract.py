"""What every line search keeps: descent, bounds, the sign of the step, agreement of all ranks."""

from __future__ import annotations

import math
import random
from dataclasses import fields
from typing import Any, get_args

import pytest
import torch

from ml2hpc.comm import Communicator
from ml2hpc.linesearch import Line, Options, create
from ml2hpc.linesearch.factory import TYPES
from ml2hpc.linesearch.interface import Type, secant_step
from ml2hpc.log import Log
from ml2hpc.options import Database
from ml2hpc.vec import Replicated, Sharded
from tests.linesearch.lines import Counted, Function, make, parabola, quintic, rational, search, walled, wavy

KINDS = list(TYPES)
SEARCHES = [kind for kind in KINDS if kind != "none"]


def steep(step: float) -> tuple[float, float]:
    """Rise by thirteen decades at the full step; the minimum is at about 1e-3."""
    return math.exp(30 * step) - 31 * step, 30 * math.exp(30 * step) - 31


def gentle(step: float) -> tuple[float, float]:
    """Have the minimum at ln 3."""
    return math.exp(step) - 3 * step, math.exp(step) - 3


def wild(dice: random.Random) -> Function:
    """Return values and slopes of any size, and some that are no numbers; the slope at 0 is negative."""
    values = [-1e300, -1.0, -1e-300, 0.0, 1e-300, 1.0, 1e300, math.inf, math.nan]
    known = {0.0: (dice.choice(values[:7]), dice.choice([-1e-300, -1.0, -1e300]))}
    return lambda step: known.setdefault(step, (dice.choice(values) * dice.random(), dice.choice(values)))


def bound(kind: str, max_it: int | None = None) -> int:
    """Evaluations at most: trials, and 40 halvings where L need not have fallen."""
    trials = make(kind).max_it if max_it is None else max_it
    tried = {"none": 1, "bt": trials, "wolfe": trials, "secant": 2 * trials, "ncglinear": 0}.get(kind, trials)
    return tried + 40 * (kind in ("cp", "secant", "bisection", "ncglinear"))


def test_names() -> None:
    assert list(get_args(Type)) == KINDS
    for alias, kind in (("basic", "none"), ("l2", "secant"), ("BT", "bt")):
        options = Database.from_string(f"-npc_snes_linesearch_type {alias}").read(
            Options, prefix="npc_", stem="snes_linesearch_"
        )
        assert type(create(options)) is TYPES[kind]


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("phi", [parabola(0.7), parabola(0.01), parabola(1e4), rational, quintic, wavy, steep])
def test_l_falls(kind: str, phi: Function) -> None:
    result, line = search(phi, kind)
    assert result.failure == ""
    assert phi(result.step)[0] < line.f
    assert 0.0 < result.step <= make(kind).maxlambda
    assert line.seen_finite
    assert line.evaluations <= bound(kind)


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("noise", [-1e-12, 1e-12])
def test_slopes_decide_where_round_off_hides_the_decrease(kind: str, noise: float) -> None:
    """L = 1000 + (l - 0.8)^2 1e-14 / 2 up to noise: L says nothing, its slope shrinks."""

    def phi(step: float) -> tuple[float, float]:
        return 1e3 + noise * (step > 0), 1e-14 * (step - 0.8)

    result, line = search(phi, kind)
    assert not result.failure
    assert abs(phi(result.step)[1]) < abs(line.slope)

    def rising(step: float) -> tuple[float, float]:
        return 1e3 + 1e-6 * (step > 0), 1e-14 * (step - 0.8)

    assert search(rising, kind)[0].failure


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("beyond", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wall", [0.9, 0.3, 1e-3])
def test_a_wall_is_backed_off_from(kind: str, wall: float, beyond: float) -> None:
    result, line = search(walled(parabola(0.7), wall, beyond), kind)
    assert result.failure == ""
    assert 0.0 < result.step < wall
    assert line.f > line.phi(result.step)[0] > -math.inf
    assert line.seen_finite
    assert line.evaluations <= bound(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beyond", [math.nan, math.inf, -math.inf])
def test_no_number_anywhere_fails_and_says_so(kind: str, beyond: float) -> None:
    for max_it in (None, 2000):
        result, line = search(walled(parabola(0.7), 1e-300, beyond), kind, max_it=max_it)
        assert result.step == 0.0
        assert result.failure
        assert not line.seen_finite
        assert line.evaluations <= bound(kind, max_it)


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_gradient_that_is_no_number_is_not_taken(kind: str) -> None:
    """With L finite; only the searches that ask for slopes can see it."""
    phi = lambda step: (1.0 - step, -1.0 if step < 0.25 else math.nan)  # noqa: E731
    result, line = search(phi, kind)
    assert result.failure == ""
    if kind == "wolfe":
        assert 0.0 < result.step < 0.25
    assert line.seen_finite


@pytest.mark.parametrize("kind", SEARCHES)
@pytest.mark.parametrize("slope", [0.0, 1.0, math.nan, math.inf])
def test_a_direction_that_does_not_descend_is_refused(kind: str, slope: float) -> None:
    result, line = search(lambda step: (1.0 + (1.0 if slope == 0.0 else slope) * step, slope), kind)
    assert (result.step, result.failure) == (0.0, "the direction does not descend")
    assert line.evaluations == 0


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_false_slope_fails_in_bounded_time(kind: str) -> None:
    """L rises in every direction although the slope is negative: a wrong gradient."""
    for max_it in (None, 1, 7, 200):
        result, line = search(lambda step: (1.0 + step, -1.0), kind, max_it=max_it)
        assert result.step == 0.0
        assert "no" in result.failure
        assert line.evaluations <= bound(kind, max_it)


@pytest.mark.parametrize("kind", KINDS)
def test_wild_functions_take_bounded_time(kind: str) -> None:
    for seed in range(200):
        dice = random.Random(seed)
        phi = wild(dice)
        max_it = dice.choice([None, 1, 3, 60])
        result, line = search(phi, kind, max_it=max_it, minlambda=dice.choice([1e-12, 1e-300]))
        assert line.evaluations <= bound(kind, max_it)
        assert (result.step == 0.0) == bool(result.failure)
        assert math.isfinite(result.step)
        if result.step and kind != "none":
            noise = 1e-12 * abs(line.f) if kind == "wolfe" else 0.0
            assert phi(result.step)[0] <= line.f + noise


@pytest.mark.parametrize("kind", KINDS)
def test_the_new_point_is_x_minus_lambda_y(kind: str) -> None:
    """L = |x - c|^2 with y = x - c: lambda = 1 is the minimiser."""
    space = Replicated(3, torch.float64)
    centre = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x = torch.tensor([4.0, 4.0, 4.0], dtype=torch.float64)

    def both(z: torch.Tensor) -> tuple[float, torch.Tensor]:
        return space.dot(z - centre, z - centre), 2 * (z - centre)

    line = Line(lambda z: both(z)[0], both, space, x, x - centre, *both(x), lambda z, v: 2 * v)
    assert line.slope == -2 * line.f
    result = make(kind).search(line)
    assert result.step == 1.0
    assert torch.equal(line.at(result.step), centre)
    assert line.gradient(result.step)[0] == 0.0
    assert line.both(0.0) == (line.f, line.slope)


def test_a_gradient_is_computed_once_per_step() -> None:
    line = Counted(parabola(0.5))
    line.both(0.25)
    line.gradient(0.25)
    line.value(0.25)
    line.value(0.5)
    line.value(0.0)
    assert (line.gradients, line.objectives) == ([0.25], [0.5])


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_take_the_same_steps(comm, kind: str) -> None:
    """A sharded Rosenbrock function from its usual start, ten steps down the gradient."""
    c = Communicator(comm, Log(), "spin")
    n = 7
    space = Sharded(c, n, torch.float64)

    def rosenbrock(x: torch.Tensor) -> torch.Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    def action(local: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return space.local(torch.autograd.functional.hvp(rosenbrock, space.gather(local), space.gather(v))[1])

    def both(local: torch.Tensor) -> tuple[float, torch.Tensor]:
        x = space.gather(local).requires_grad_()
        value = rosenbrock(x)
        (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), space.local(gradient)

    start = torch.full((n,), -1.2, dtype=torch.float64)
    x = space.local(start).clone()
    f, g = both(x)
    steps = []
    for _ in range(10):
        line = Line(lambda z: both(z)[0], both, space, x, g, f, g, action)
        result = make(kind, damping=1e-3).search(line)
        steps.append((result.step, f))
        x = line.at(result.step)
        f, g = line.gradient(result.step)
    assert len(set(comm.allgather(tuple(steps)))) == 1
    assert f < both(space.local(start))[0]


# ---- options ---------------------------------------------------------------------------------------------------------

# type, option, another value, function, further options: where the result must change
CHANGES: list[tuple[str, str, Any, Function, dict[str, Any]]] = [
    *[(kind, "damping", 0.3, wavy, {}) for kind in KINDS],
    *[(kind, "maxlambda", 0.3, parabola(0.9), {}) for kind in SEARCHES],
    *[(kind, "minlambda", 0.4, walled(parabola(0.9), 0.3, math.nan), {}) for kind in SEARCHES],
    ("bt", "max_it", 1, parabola(0.1), {}),
    ("secant", "max_it", 6, quintic, {"maxlambda": 10.0}),
    ("cp", "max_it", 6, quintic, {"maxlambda": 10.0}),
    ("bisection", "max_it", 3, parabola(0.01), {}),
    ("wolfe", "max_it", 1, parabola(0.01), {}),
    ("bt", "alpha", 0.4, parabola(0.55), {}),
    ("wolfe", "alpha", 0.4, parabola(0.55), {}),
    ("wolfe", "curvature", 0.1, parabola(0.7), {}),
    ("bt", "order", "1", parabola(0.3), {}),
    ("bt", "order", "2", lambda l: (math.exp(9 * l) - 10 * l, 9 * math.exp(9 * l) - 10), {}),  # noqa: E741
    *[("cp", "order", order, quintic, {"max_it": 3, "maxlambda": 10.0}) for order in ("2", "3")],
    *[(kind, "rtol", 0.5, gentle, {"max_it": 6, "maxlambda": 10.0}) for kind in ("secant", "cp")],
    *[(kind, "ltol", 0.5, gentle, {"max_it": 6, "maxlambda": 10.0}) for kind in ("secant", "cp")],
    ("bisection", "rtol", 0.5, parabola(0.3), {}),
    ("bisection", "ltol", 0.2, parabola(0.3), {}),
    ("wolfe", "roundoff", 0.0, lambda l: (1e8 + 2e-8 * (l > 0), l - 0.7), {}),  # noqa: E741
]


@pytest.mark.parametrize(("kind", "name", "value", "phi", "others"), CHANGES)
def test_every_option_changes_the_result(
    kind: str, name: str, value: Any, phi: Function, others: dict[str, Any]
) -> None:
    usual, _ = search(phi, kind, **others)
    changed, _ = search(phi, kind, **{**others, name: value})
    assert usual != changed


# What a search learns from the one before is tested in test_wolfe.py.
def test_every_option_is_covered() -> None:
    assert {name for _, name, *_ in CHANGES} | {"type", "memory"} == {f.name for f in fields(Options)}


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("none", []),
        ("bt", ["  interpolation: cubic", "  alpha=1.000000e-04"]),
        ("secant", []),
        ("cp", ["  order of the differences: 1"]),
        ("bisection", []),
        ("ncglinear", []),
        (
            "wolfe",
            [
                "  alpha=1.000000e-04, curvature=9.000000e-01, roundoff=1.000000e-12",
                "  first step from the last 3 searches",
            ],
        ),
    ],
)
def test_view(kind: str, lines: list[str]) -> None:
    trials = {"wolfe": 25, "bt": 40, "bisection": 50}.get(kind, 1)
    largest = "1.000000e+06" if kind in ("wolfe", "ncglinear") else "1.000000e+00"
    shortest = "1.000000e-06" if kind == "bisection" else "1.000000e-08"
    assert make(kind).view() == [
        f"type: {kind}",
        *lines,
        f"damping=1.000000e+00, maxlambda={largest}, minlambda=1.000000e-12",
        f"tolerances: relative=1.000000e-08, lambda={shortest}",
        f"maximum iterations={trials}",
    ]


@pytest.mark.parametrize(
    ("old", "slope_old", "step", "slope", "new"),
    [
        (0.0, -1.0, 1.0, 1.0, 0.5),  # a minimum between
        (1.0, 1.0, 0.2, -0.6, 0.5),  # also backwards
        (0.0, -1.0, 1.0, -0.5, 2.0),  # ahead
        (0.0, -1.0, 1.0, -2.0, 2.0),  # a maximum behind: go on
        (3.0, 2.0, 1.0, 4.0, 0.5),  # a maximum, uphill: go back
        (0.0, -1.0, 1.0, -1.0, 2.0),  # straight
        (0.0, -1.0, 1.0, -0.999, 8.0),  # far ahead
        (1.0, -3.0, 2.0, 1e300, 1.0 + 3e-300),  # steep
    ],
)
def test_secant_step(old: float, slope_old: float, step: float, slope: float, new: float) -> None:
    assert secant_step(old, slope_old, step, slope, 1e-12, 8.0) == pytest.approx(new, rel=1e-12)
