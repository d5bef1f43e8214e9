"""Subproblems against dense linear algebra: secular equation, hard case, conjugate gradients, dogleg, boxes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml2hpc.trustregion import Box, Model, Spectrum, SteihaugToint, Trial
from ml2hpc.vec import Replicated, Sharded
from tests.problem.small import everyone

N = 12
SPACE = Replicated(N, torch.float64)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed))[0]


def symmetric(values: Tensor, seed: int = 1) -> Tensor:
    q = orthogonal(len(values), seed)
    return q @ torch.diag(values) @ q.T


DEFINITE = symmetric(torch.logspace(-1, 1, N, dtype=torch.float64))
INDEFINITE = symmetric(torch.linspace(-2, 5, N, dtype=torch.float64))


class Counted:
    """A matrix that counts its products."""

    def __init__(self, b: Tensor) -> None:
        self.b, self.products = b, 0

    def __call__(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.b @ v


def spectrum(b: Tensor, g: Tensor) -> Spectrum:
    values, vectors = torch.linalg.eigh(b)
    return Spectrum(Replicated(len(g), g.dtype), g, vectors, values, 0.0)


def steihaug(b: Tensor, g: Tensor, fallback="newton") -> SteihaugToint:
    return SteihaugToint(Model(SPACE, g, Counted(b)), 4 * N, 1e-14, fallback)


def decrease(b: Tensor, g: Tensor, s: Tensor) -> float:
    return float(-(g @ s) - 0.5 * s @ b @ s)


def assert_global_minimiser(b: Tensor, g: Tensor, trial: Trial, radius: float) -> None:
    """(B + sigma I) s = -g with B + sigma I semidefinite and sigma (radius - |s|) = 0."""
    s = trial.s
    sigma = float(-(s @ (b @ s + g)) / (s @ s))
    assert float((b @ s + sigma * s + g).norm()) < 1e-10 * float(g.norm())
    assert sigma > max(0.0, -float(torch.linalg.eigvalsh(b)[0])) - 1e-10
    assert float(s.norm()) <= radius * (1 + 1e-14)
    assert trial.boundary == (abs(float(s.norm()) - radius) < 1e-12 * radius)
    assert trial.boundary or sigma < 1e-10
    assert trial.decrease == pytest.approx(decrease(b, g, s), rel=1e-10)


@pytest.mark.parametrize("b", [DEFINITE, INDEFINITE])
@pytest.mark.parametrize("radius", [1e-6, 0.1, 1.0, 30.0, 1e4])
def test_the_secular_equation_gives_the_global_minimiser(b, radius):
    g = normal(N, seed=2)
    assert_global_minimiser(b, g, spectrum(b, g).solve(radius), radius)


@pytest.mark.parametrize("radius", [1.0, 30.0])
@pytest.mark.parametrize("leak", [0.0, 1e-17, 1e-13])
def test_the_hard_case(radius, leak):
    """The gradient has (next to) no part along the leftmost eigenvector, and the rest ends inside the ball."""
    values = torch.linspace(-2, 5, N, dtype=torch.float64)
    a = normal(N, seed=3)
    a[0] = leak
    trial = Spectrum(SPACE, a, torch.eye(N, dtype=torch.float64), values, 0.0).solve(radius)
    assert_global_minimiser(torch.diag(values), a, trial, radius)
    assert trial.s[0].abs() > 0.01 * radius


def test_a_singular_semidefinite_model_takes_the_shortest_step():
    values = torch.arange(-1.0, N - 1, dtype=torch.float64).clamp(min=0.0)
    g = torch.where(values > 0, normal(N, seed=4), 0.0)
    trial = Spectrum(SPACE, g, torch.eye(N, dtype=torch.float64), values, 0.0).solve(100.0)
    torch.testing.assert_close(trial.s, -torch.linalg.pinv(torch.diag(values)) @ g, rtol=0, atol=1e-12)
    assert not trial.boundary


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("radius", [1e-3, 1.0, 1e3])
def test_the_basis_of_a_few_columns_is_the_whole_spectrum(k, radius):
    """OBS against More and Sorensen: gamma I outside the basis."""
    p, values, gamma = orthogonal(N, 5)[:, :k], torch.tensor([-3.0, 0.5, 20.0], dtype=torch.float64)[:k], 1.5
    g = normal(N, seed=6)
    obs = Spectrum(SPACE, g, p, values, gamma)
    b = gamma * torch.eye(N, dtype=torch.float64) + p @ torch.diag(values - gamma) @ p.T
    here, dense = obs.solve(radius), spectrum(b, g).solve(radius)
    torch.testing.assert_close(here.s, dense.s, rtol=0, atol=1e-10 * radius)
    assert_global_minimiser(b, g, here, radius)
    torch.testing.assert_close(obs.model.action(g), b @ g, rtol=0, atol=1e-13)


def test_the_basis_in_the_hard_case():
    p, values = orthogonal(N, 5)[:, :3], torch.tensor([-3.0, 0.5, 20.0], dtype=torch.float64)
    g = normal(N, seed=6)
    g -= p[:, 0] * (p[:, 0] @ g)
    b = 1.5 * torch.eye(N, dtype=torch.float64) + p @ torch.diag(values - 1.5) @ p.T
    trial = Spectrum(SPACE, g, p, values, 1.5).solve(10.0)
    assert_global_minimiser(b, g, trial, 10.0)
    assert abs(float(p[:, 0] @ trial.s)) > 9.0


def test_conjugate_gradients_inside_the_ball_are_newton():
    g = normal(N, seed=2)
    newton = -torch.linalg.solve(DEFINITE, g)
    trial = steihaug(DEFINITE, g).solve(2.0 * float(newton.norm()))
    torch.testing.assert_close(trial.s, newton, rtol=0, atol=1e-12)
    assert not trial.boundary
    assert trial.decrease == pytest.approx(decrease(DEFINITE, g, newton), rel=1e-12)


@pytest.mark.parametrize("fallback", ["newton", "cauchy", "dogleg"])
@pytest.mark.parametrize("b", [DEFINITE, INDEFINITE])
def test_a_second_radius_costs_no_product(b, fallback):
    g = normal(N, seed=2)
    kept = steihaug(b, g, fallback)
    kept.solve(3.0)
    counted = kept._model.action
    assert isinstance(counted, Counted)
    before = counted.products
    for radius in (1.0, 0.2, 1e-3):
        again, fresh = kept.solve(radius), steihaug(b, g, fallback).solve(radius)
        assert again.boundary
        assert torch.equal(again.s, fresh.s)
        assert float(again.s.norm()) == pytest.approx(radius, rel=1e-12)
        assert again.decrease == pytest.approx(decrease(b, g, again.s), rel=1e-12)
    assert counted.products == before


def test_a_cauchy_point_inside_is_forced_by_the_ball_where_the_path_leaves_it():
    """So its radius may grow; else Newton's step would stay out of reach."""
    g = normal(N, seed=2)
    radius = 0.99 * float(torch.linalg.solve(DEFINITE, g).norm())
    trial = steihaug(DEFINITE, g, "cauchy").solve(radius)
    assert float(trial.s.norm()) < 0.9 * radius
    assert trial.boundary
    assert not steihaug(DEFINITE, g, "cauchy").solve(1.02 * radius).boundary


@pytest.mark.parametrize("b", [DEFINITE, INDEFINITE])
@pytest.mark.parametrize("radius", [0.05, 0.5, 3.0])
def test_the_fallbacks_lie_between_cauchy_and_the_minimum(b, radius):
    g = normal(N, seed=2)
    best = spectrum(b, g).solve(radius).decrease
    cut, cauchy, dogleg = (steihaug(b, g, k).solve(radius).decrease for k in ("newton", "cauchy", "dogleg"))
    along = Model(SPACE, g, Counted(b)).cauchy(radius / float(g.norm()))
    assert cauchy == pytest.approx(along, rel=1e-12)
    assert cauchy <= dogleg * (1 + 1e-14) <= best * (1 + 1e-12)
    assert cauchy <= cut * (1 + 1e-14) <= best * (1 + 1e-12)


def test_the_dogleg_goes_from_the_cauchy_point_to_newton():
    g = normal(N, seed=2)
    newton = -torch.linalg.solve(DEFINITE, g)
    cauchy = -(g @ g) / (g @ DEFINITE @ g) * g
    radius = 0.5 * float(cauchy.norm() + newton.norm())
    trial = steihaug(DEFINITE, g, "dogleg").solve(radius)
    s = trial.s
    assert trial.decrease == pytest.approx(decrease(DEFINITE, g, s), rel=1e-12)
    share = (s - cauchy).norm() / (newton - cauchy).norm()
    torch.testing.assert_close(s, cauchy + share * (newton - cauchy), rtol=0, atol=1e-10)
    assert float(s.norm()) == pytest.approx(radius, rel=1e-12)


def test_negative_curvature_goes_to_the_boundary():
    """The first direction already: along -g, however large the ball."""
    g = torch.linalg.eigh(INDEFINITE)[1][:, 0]
    trial = steihaug(INDEFINITE, g).solve(50.0)
    torch.testing.assert_close(trial.s, -50.0 * g, rtol=0, atol=1e-10)
    assert trial.decrease == pytest.approx(50 + 50**2, rel=1e-12)


@pytest.mark.parametrize("b", [DEFINITE, INDEFINITE])
@pytest.mark.parametrize("radius", [1e-3, 0.1, 0.5, 2.0, 100.0])
def test_a_box_satisfies_kkt(b, radius):
    """The gradient of the model is 0 inside, and points outwards on the boundary."""
    g = normal(N, seed=2)
    trial = Box(Model(SPACE, g, Counted(b)), 500, 1e-12).solve(radius)
    s, slope = trial.s, g + b @ trial.s
    at = s.abs() == radius
    assert float(s.abs().max()) <= radius
    assert float(slope[~at].abs().max() if (~at).any() else 0.0) < 1e-9 * float(g.norm())
    assert bool((slope[at] * s[at] <= 0).all())
    assert trial.boundary == bool(at.any())
    assert trial.decrease == pytest.approx(decrease(b, g, s), rel=1e-9)
    assert trial.decrease >= Model(SPACE, g, Counted(b)).cauchy(radius / float(g.abs().max()))


def test_a_large_box_holds_newton():
    g = normal(N, seed=2)
    trial = Box(Model(SPACE, g, Counted(DEFINITE)), 200, 1e-12).solve(1e3)
    torch.testing.assert_close(trial.s, -torch.linalg.solve(DEFINITE, g), rtol=0, atol=1e-9)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_box_minds_its_actions(most):
    counted = Counted(INDEFINITE)
    trial = Box(Model(SPACE, normal(N, seed=2), counted), most, 1e-12).solve(0.5)
    assert counted.products <= most
    assert trial.decrease >= 0.0


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("kind", ["newton", "dogleg", "box", "spectrum"])
def test_sharded_vectors(comm, kind):
    space = Sharded(everyone(comm), N, torch.float64)
    g = normal(N, seed=2)

    def solve(space, b: Tensor) -> Tensor:
        part = space.local(g).clone()
        values, vectors = torch.linalg.eigh(b)
        if kind == "spectrum":
            return Spectrum(space, part, vectors[space.rows], values, 0.0).solve(0.7).s
        model = Model(space, part, lambda v: space.local(b @ space.gather(v)).clone())
        return (Box(model, 90, 1e-12) if kind == "box" else SteihaugToint(model, 40, 1e-12, kind)).solve(0.7).s

    for b in (DEFINITE, INDEFINITE):
        torch.testing.assert_close(space.gather(solve(space, b)), solve(SPACE, b), rtol=0, atol=1e-10)
