"""Jets: names, arithmetic, Leibniz splittings, and the activations' derivatives."""

from __future__ import annotations

import doctest
import math
from typing import Any

import pytest
import torch

from ml2hpc.problem import jet as room
from ml2hpc.problem.activation import ACTIVATIONS
from ml2hpc.problem.jet import Points, RecordingJet, closure, derivatives, splits
from tests.problem.small import relative, table

U, V = torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0])


def test_doctests() -> None:
    outcome = doctest.testmod(room, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted >= 3
    assert outcome.failed == 0


def test_arithmetic_is_that_of_the_value() -> None:
    u, v = table("xt", value=U, x=V), table("xt", value=V)
    a: Any = u  # torch functions take jets, which their annotations do not know
    pairs = [
        (u + v, U + V),
        (1 + u, 1 + U),
        (u - v, U - V),
        (1 - u, 1 - U),
        (V - u, V - U),
        (u * v, U * V),
        (2 * u, 2 * U),
        (V * u, V * U),
        (u / v, U / V),
        (1 / u, 1 / U),
        (u**2, U**2),
        (2**u, 2**U),
        (u**v, U**V),
        (-u, -U),
        (torch.sin(a), torch.sin(U)),
        (torch.maximum(a, V), V),
        (torch.stack([a, 2 * a]), torch.stack([U, 2 * U])),
        (torch.clamp(a, max=2.5), torch.tensor([2.0, 2.5])),
        (u.value, U),
        (u.x, V),
        (u.derivative(0), V),
    ]
    for mine, expected in pairs:
        assert torch.equal(mine, expected)


def test_mixed_derivatives_have_one_name_in_any_order() -> None:
    u = table("xyt", xt=U)
    assert torch.equal(u.xt, u.tx)
    assert torch.equal(u.derivative(2, 0), U)


@pytest.mark.parametrize("name", ["z", "xz", "X"])
def test_unknown_derivatives_are_named(name: str) -> None:
    with pytest.raises(AttributeError, match=f"no derivative '{name}': the coordinates are x, t"):
        getattr(table("xt", value=U), name)


def test_points_by_letter() -> None:
    p = Points("xt", torch.stack([U, V]))
    assert torch.equal(p.x, U)
    assert torch.equal(p.t, V)
    for name in ("y", "xt"):
        with pytest.raises(AttributeError, match=f"no coordinate '{name}'"):
            getattr(p, name)


def test_recording() -> None:
    u = RecordingJet("xt", U)
    assert (u * u.x + u.xx - u.tx).shape == U.shape
    assert u.read == {(), (0,), (0, 0), (0, 1)}
    assert closure(u.read) == ((), (0,), (1,), (0, 0), (0, 1))


@pytest.mark.parametrize("index", [(), (0,), (0, 1), (1, 1), (0, 0, 1), (0, 1, 1)])
def test_splits_are_the_product_rule(index: tuple[int, ...]) -> None:
    x = torch.rand(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = closure([index])

    def f(y: torch.Tensor) -> torch.Tensor:
        return torch.sin(2 * y[0] + y[1])

    def g(y: torch.Tensor) -> torch.Tensor:
        return torch.exp(y[0] * y[1])

    left, right = derivatives(f, x, every), derivatives(g, x, every)
    whole = derivatives(lambda y: f(y) * g(y), x, every)[index]
    total = torch.zeros_like(whole)
    for a, b, times in splits(index):
        total += times * left[a] * right[b]
    assert relative(total, whole) < 1e-14


def test_derivatives_of_functions_that_do_not_depend_on_a_coordinate() -> None:
    x = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = derivatives(lambda y: y[1] * 3.0, x, closure([(0, 0), (1, 1)]))
    assert torch.equal(found[1,], torch.full((4,), 3.0, dtype=torch.float64))
    for index in [(0,), (0, 0), (1, 1)]:
        assert not found[index].any()
    constant = derivatives(lambda y: torch.ones(4), x, closure([(0, 0)]))
    assert not constant[0, 0].any()


@pytest.mark.parametrize("name", ["tanh", "sin", "silu", "gelu"])
def test_activation_and_its_derivatives(name: str) -> None:
    activation = ACTIVATIONS[name]()
    z = torch.linspace(-4.0, 4.0, 41, dtype=torch.float64).requires_grad_()
    expected = [activation.value(z)]
    for _ in range(3):
        (slope,) = torch.autograd.grad(expected[-1].sum(), z, create_graph=True)
        expected.append(slope)
    y, first, second, third = (torch.full_like(z, math.nan, requires_grad=False) for _ in range(4))
    activation.fill(z.detach(), y, first, second)
    activation.third(z.detach(), first, third)
    for mine, theirs in zip((y, first, second, third), expected, strict=True):
        assert relative(mine, theirs.detach()) < 1e-14
    for m in range(7):  # autograd loses digits with every order
        if m > 3:
            (slope,) = torch.autograd.grad(expected[-1].sum(), z, create_graph=True)
            expected.append(slope)
        found = activation.derivatives(z.detach(), m)
        assert len(found) == m + 1
        assert relative(found[m], expected[m].detach()) < 1e-13
        assert not found[m].requires_grad
    (bend,) = torch.autograd.grad(activation.derivatives(z, 4)[4].sum(), z)
    assert relative(bend, expected[5]) < 1e-13
    again = torch.full_like(first, math.nan)
    activation.fill(z.detach(), y, again, None)
    assert torch.equal(again, first)


@pytest.mark.parametrize(
    ("name", "at_one"),
    [("tanh", math.tanh(1)), ("sin", math.sin(1)), ("silu", 1 / (1 + math.exp(-1))), ("gelu", 0.8413447460685429)],
)
def test_activation_at_one(name: str, at_one: float) -> None:
    assert abs(float(ACTIVATIONS[name]().value(torch.ones((), dtype=torch.float64))) - at_one) < 1e-15
