"""Equations: exact and reference solutions have no residual, and what the lifting gives away."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ml2hpc.problem.equations import EQUATIONS, equation
from ml2hpc.problem.jet import Points
from ml2hpc.problem.pde import PDE
from tests.problem.small import pinn, table

# Where finite differences resolve the reference: away from the front, the layers, the start; and what is left there.
SMOOTH = {
    "burgers": ((0.2, 0.9), (0.1, 0.9), 1e-3, 1e-7),
    "klein_gordon": ((-0.9, 0.9), (0.5, 11.5), 1e-3, 1e-7),
    "klein_gordon_leaking": ((-0.9, 0.9), (0.5, 11.5), 1e-3, 1e-7),
    "diffusion_advection": ((0.2, 0.7), (0.2, 0.7), 1e-3, 1e-7),
    "allen_cahn": ((-0.7, 0.7), (0.2, 0.9), 5e-4, 2e-7),
    "allen_cahn_periodic": ((-0.7, 0.7), (0.2, 0.9), 5e-4, 2e-7),
}


def points_in(first: tuple[float, float], second: tuple[float, float], n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).uniform([first[0], second[0]], [first[1], second[1]], (n, 2)).T


def finite_differences(pde: PDE, at: np.ndarray, h: float) -> dict[str, Tensor]:
    """Fourth-order differences of the reference at points (2, n), by the letters of the jet."""

    def u(axis: int, k: int) -> np.ndarray:
        moved = at.copy()
        moved[axis] += k * h
        values = pde.reference(moved.T)
        assert values is not None
        return values

    found = {"value": torch.from_numpy(u(0, 0))}
    for axis, letter in enumerate(pde.coordinates):
        left2, left, middle, right, right2 = (u(axis, k) for k in (-2, -1, 0, 1, 2))
        found[letter] = torch.from_numpy((left2 - 8 * left + 8 * right - right2) / (12 * h))
        second = (-left2 + 16 * left - 30 * middle + 16 * right - right2) / (12 * h**2)
        found[2 * letter] = torch.from_numpy(second)
    return found


@pytest.mark.parametrize("name", EQUATIONS)
def test_reference_has_no_residual(name: str) -> None:
    pde = EQUATIONS[name]()
    first, second, h, small = SMOOTH[name]
    at = points_in(first, second)
    parts = finite_differences(pde, at, h)
    p = Points(pde.coordinates, torch.from_numpy(at))
    residual = pde.residual(p, table(pde.coordinates, **parts))
    assert residual.shape == (60,)
    assert residual.abs().max() < small
    wrong = parts | {pde.coordinates[0]: parts[pde.coordinates[0]] + 0.1, 2 * pde.coordinates[0]: parts["value"]}
    assert pde.residual(p, table(pde.coordinates, **wrong)).abs().max() > 1e-4


def test_exact_klein_gordon_solution() -> None:
    pde = EQUATIONS["klein_gordon"]()
    at = torch.from_numpy(points_in((-1.0, 1.0), (0.0, 12.0), 500))
    x, t = at
    u = table("xt", value=x * torch.cos(t), xx=torch.zeros_like(x), tt=-x * torch.cos(t))
    assert pde.residual(Points("xt", at), u).abs().max() < 1e-15


@pytest.mark.parametrize("name", EQUATIONS)
def test_reference_meets_the_conditions(name: str) -> None:
    """Data of equation and reference agree; slopes at the start of time are differences of first order."""
    pde = EQUATIONS[name]()
    rng = np.random.default_rng(1)
    for condition in pde.conditions():
        axis = pde.coordinates.index(condition.axis)
        at = np.stack([rng.uniform(*b, 30) for b in pde.bounds])
        at[axis] = pde.bounds[axis][condition.end]
        inward, h = at.copy(), 1e-4
        inward[axis] += h * (1 - 2 * condition.end)
        there = at.copy()
        there[axis] = pde.bounds[axis][1 - condition.end]
        jets = []
        for place in (at, there) if condition.periodic else (at,):
            value = pde.reference(place.T)
            near = pde.reference(inward.T)
            assert value is not None
            assert near is not None
            slope = np.zeros(30) if condition.periodic else (near - value) / h
            jets.append(table(pde.coordinates, value=value, **{condition.axis: slope}))
        values = condition.residual(Points(pde.coordinates, torch.from_numpy(at)), *jets)
        for value in values if isinstance(values, tuple) else (values,):
            assert value.abs().max() < (1e-3 if condition.name.endswith("slope") else 1e-12)


def test_the_lifting_that_is_the_solution() -> None:
    """A network that has learnt nothing solves Klein-Gordon with the published lifting, and not with ours."""
    at = torch.from_numpy(points_in((-1.0, 1.0), (0.0, 12.0), 300))
    errors, losses = {}, {}
    for name in ("klein_gordon", "klein_gordon_leaking"):
        problem, x = pinn(EQUATIONS[name]())
        u = problem.model.solution(torch.zeros_like(x), at)[0]
        exact = torch.from_numpy(problem.model.pde.reference(at.numpy().T))
        errors[name] = float((u - exact).norm() / exact.norm())
        losses[name] = problem.objective(torch.zeros_like(x))
        assert float((problem.model.solution(x, at)[0] - exact).norm() / exact.norm()) > 0.01
    assert errors["klein_gordon_leaking"] < 1e-15
    assert losses["klein_gordon_leaking"] < 1e-28
    assert errors["klein_gordon"] > 0.2
    assert losses["klein_gordon"] > 1.0


def test_the_network_that_ours_has_to_learn() -> None:
    """u = x cos t for N = x (cos t - 1) T^2 / t^2."""
    pde = EQUATIONS["klein_gordon"]()
    p = Points("xt", torch.from_numpy(points_in((-1.0, 1.0), (0.1, 12.0), 300)))
    network = p.x * (torch.cos(p.t) - 1) * 144 / p.t**2
    assert (pde.lifting(p) + pde.distance(p) * network - p.x * torch.cos(p.t)).abs().max() < 1e-14


@pytest.mark.parametrize("name", EQUATIONS)
def test_every_equation_by_its_name(name: str) -> None:
    pde = equation(name.upper(), "-pinn_problem")
    assert type(pde) is EQUATIONS[name]
    assert pde.title
    assert pde.bounds == [pde.domain[c] for c in pde.coordinates]
    assert pde is not equation(name, "-pinn_problem")
    problem, x = pinn(pde)
    assert 0 < problem.objective(x) < 1e6
