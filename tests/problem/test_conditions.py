"""Conditions: hard ones hold for any network, soft ones measure what they say, and which of them enter the loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ml2hpc.problem.ansatz import Term, collocate
from ml2hpc.problem.equations import EQUATIONS
from ml2hpc.problem.jet import Jet, Points
from ml2hpc.problem.pde import (
    PDE,
    Condition,
    dirichlet,
    neumann,
    periodic,
    periodic_feature,
    zero_flux_feature,
)
from ml2hpc.problem.pinn import Model, PinnProblem
from ml2hpc.vec import Layout
from tests.problem.small import Pair, alone, network_of, perturbed, pinn, table

CONDITIONS = {
    "burgers": 3,
    "klein_gordon": 4,
    "klein_gordon_leaking": 4,
    "diffusion_advection": 4,
    "allen_cahn": 3,
    "allen_cahn_periodic": 2,
}
X = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)


def terms_of(pde: PDE, sampler: str = "uniform", n: int = 30, weight: float = 1.0) -> list[Term]:
    return collocate(pde, n=n, n_face=20, sampler=sampler, seed=5, dtype=torch.float64, weight=weight)


def losses(pde: PDE, terms: list[Term], network: Any) -> dict[str, float]:
    layout = Layout(network)
    problem = PinnProblem(alone(), Model(pde, network, layout, "jets", torch.float64, 100), terms)
    return problem.terms(3 * perturbed(layout, network))


@pytest.mark.parametrize("name", EQUATIONS)
def test_hard_conditions_hold_for_any_network(name: str) -> None:
    pde = EQUATIONS[name]()
    network = network_of(pde)
    pde.hard = False
    soft = terms_of(pde)[1:]
    assert len(soft) == CONDITIONS[name]
    plain = losses(pde, soft, network_of(pde))
    assert min(plain.values()) > 1e-4  # an arbitrary network meets none of them
    pde.hard = True
    for term, loss in losses(pde, soft, network).items():
        assert loss < 1e-26, term  # mean squares of round-off, of jets of size 10
    assert [t.name for t in terms_of(pde)] == ["residual"]


def test_periodic_features_make_value_and_slopes_periodic() -> None:
    pde = EQUATIONS["allen_cahn_periodic"]()
    problem, x = pinn(pde)
    t = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    ends = [torch.stack([torch.full_like(t, end), t]) for end in (-1.0, 1.0)]
    left, right = (problem.model.solution(x, e) for e in ends)
    assert (left - right).abs().max() < 1e-14
    engine = problem.model.engine(((0,), (0, 0)))
    jets = [engine.forward(x, engine.batch(e), reverse=False) for e in ends]
    assert (jets[0] - jets[1]).abs().max() < 1e-12
    assert jets[0][:, 1].abs().max() > 1e-2


class Rod(PDE):
    """Mixed: a hard start, insulated ends by features on request, else soft."""

    coordinates = "xt"
    domain = {"x": (1.0, 3.0), "t": (0.0, 1.0)}
    insulated = False

    def residual(self, p: Points, u: Jet) -> Tensor:
        return u.t - u.xx

    def lifting(self, p: Points) -> Tensor:
        return torch.cos(math.pi * (p.x - 1) / 2)

    def distance(self, p: Points) -> Tensor:
        return p.t

    def features(self, x: Tensor) -> Tensor:
        if not self.insulated:
            return super().features(x)
        return torch.cat([zero_flux_feature(x[0], self.domain["x"]), x[1:]])

    def conditions(self) -> list[Condition]:
        return [dirichlet("t", 0, self.lifting), neumann("x", 0, 0.0), neumann("x", 1, 0.0)]


def test_only_conditions_that_the_trial_function_misses_enter_the_loss() -> None:
    pde = Rod()
    assert [t.name for t in terms_of(pde)] == ["residual", "x0_slope", "x1_slope"]
    pde.insulated = True
    assert [t.name for t in terms_of(pde)] == ["residual"]
    pde.hard = False
    pde.insulated = False
    assert [t.name for t in terms_of(pde)] == ["residual", "t0_value", "x0_slope", "x1_slope"]


def test_a_wrong_lifting_is_noticed() -> None:
    class Wrong(Rod):
        def conditions(self) -> list[Condition]:
            return [dirichlet("t", 0, lambda p: torch.cos(math.pi * (p.x - 1) / 2) + 1e-8)]

    assert [t.name for t in terms_of(Wrong())] == ["residual", "t0_value"]


def test_zero_flux_features() -> None:
    pde = Rod()
    pde.insulated = True
    network = network_of(pde)
    layout = Layout(network)
    slopes = [t for t in terms_of_soft(Rod()) if t.name.endswith("slope")]
    problem = PinnProblem(alone(), Model(pde, network, layout, "jets", torch.float64, 100), slopes)
    assert max(problem.terms(perturbed(layout, network)).values()) < 1e-28
    s = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(zero_flux_feature(s, (1.0, 3.0))[0], torch.tensor([1.0, 0.0, -1.0]).double())


def terms_of_soft(pde: PDE) -> list[Term]:
    pde.hard = False
    return terms_of(pde)


def test_periodic_feature() -> None:
    s = torch.tensor([2.0, 2.5, 3.0, 4.0], dtype=torch.float64)
    found = periodic_feature(s, (2.0, 4.0), modes=2)
    expected = [[1, 0, -1, 1], [0, 1, 0, 0], [1, -1, 1, 1], [0, 0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-15, rtol=0)


# ---- soft conditions on known functions ------------------------------------------------------------------------------


def test_dirichlet_on_known_functions() -> None:
    p = Points("xt", torch.stack([X, torch.zeros_like(X)]))
    u = table("xt", value=torch.sin(X))
    assert not dirichlet("t", 0, lambda q: torch.sin(q.x)).residual(p, u).any()
    assert torch.equal(dirichlet("t", 0, 0.25).residual(p, u), torch.sin(X) - 0.25)
    second = dirichlet("x", 1, 2.0, field=1, weight=3.0)
    assert (second.axis, second.end, second.weight, second.name) == ("x", 1, 3.0, "x1_value_1")
    assert torch.equal(second.residual(p, u, table("xt", value=X)), X - 2.0)


def test_neumann_on_known_functions() -> None:
    p = Points("xt", torch.stack([X, torch.zeros_like(X)]))
    u = table("xt", x=torch.cos(X), t=X)
    assert not neumann("x", 0, lambda q: torch.cos(q.x)).residual(p, u).any()
    assert torch.equal(neumann("t", 0, 0.5).residual(p, u), X - 0.5)
    assert neumann("t", 1, 0.5).name == "t1_slope"


def test_periodic_on_known_functions() -> None:
    p = Points("xt", torch.stack([X, X]))
    here, there = table("xt", value=X, x=2 * X), table("xt", value=X + 0.5, x=2 * X - 0.25)
    value, slope = periodic("x").residual(p, here, there)
    assert torch.equal(value, torch.full_like(X, -0.5))
    assert torch.equal(slope, torch.full_like(X, 0.25))
    value, slope = periodic("x", field=1).residual(p, here, here, there, here)
    assert not value.any()
    assert not slope.any()


def test_points_lie_on_the_faces() -> None:
    terms = terms_of_soft(Pair())
    assert [t.name for t in terms] == ["residual", "t0_value", "x_periodic"]
    inside, start, pairs = terms
    assert (inside.n, start.n, pairs.n) == (30, 20, 20)
    assert torch.equal(start.points[1], torch.full((20,), -1.0, dtype=torch.float64))
    assert len(start.points[0].unique()) == 20
    assert pairs.partner is not None
    assert torch.equal(pairs.points[0], torch.zeros(20, dtype=torch.float64))
    assert torch.equal(pairs.partner[0], torch.full((20,), 2.0, dtype=torch.float64))
    assert torch.equal(pairs.partner[1], pairs.points[1])
    assert torch.equal(pairs.all_points(), torch.cat([pairs.points, pairs.partner], 1))
    unit = [p.points[k] * 0.5 + s for p, k, s in ((start, 0, 0.0), (pairs, 1, 0.5))]  # both in [0, 1]
    assert not torch.isclose(unit[0], unit[1]).any()  # each face has its own points
    assert start.indices == ((),)
    assert pairs.indices == ((), (0,))
    assert inside.indices == ((), (0,), (1,), (0, 0), (0, 1), (1, 1))


def test_loss_is_the_weighted_sum_of_mean_squares() -> None:
    """Against the definition, by finite differences of the trained function."""
    problem, x = pinn(n=12)
    pde, h = Pair(), 1e-3
    inside, pairs = problem.loss_terms

    def u(points: Tensor) -> Tensor:
        return problem.model.solution(x, points)

    def shifted(points: Tensor, dx: float, dt: float) -> Tensor:
        return u(points + h * torch.tensor([[dx], [dt]], dtype=torch.float64))

    def jets(points: Tensor) -> list[Jet]:
        value, e, w, n, s = u(points), *(shifted(points, *d) for d in ((1, 0), (-1, 0), (0, 1), (0, -1)))
        mixed = sum(a * b * shifted(points, a, b) for a in (-1, 1) for b in (-1, 1)) / (4 * h * h)
        assert isinstance(mixed, Tensor)
        parts = {"value": value, "x": (e - w) / (2 * h), "t": (n - s) / (2 * h), "xt": mixed}
        parts |= {"xx": (e - 2 * value + w) / h**2, "tt": (n - 2 * value + s) / h**2}
        return [table("xt", **{k: v[f] for k, v in parts.items()}) for f in (0, 1)]

    found = problem.terms(x)
    parts = pde.residual(Points("xt", inside.points), *jets(inside.points))
    assert found["residual"] == pytest.approx(float(sum((r**2).mean() for r in parts)), rel=1e-4)
    assert pairs.partner is not None
    ends = jets(pairs.points) + jets(pairs.partner)
    parts = periodic("x").residual(Points("xt", pairs.points), *ends)
    expected = 2.0 * 0.5 * float(sum((r**2).mean() for r in parts))  # the problem's weight and the condition's
    assert found["x_periodic"] == pytest.approx(expected, rel=1e-4)
    assert problem.objective(x) == pytest.approx(sum(found.values()), rel=1e-14)


def test_names_are_unique() -> None:
    class Twice(Rod):
        def conditions(self) -> list[Condition]:
            return [dirichlet("x", 0, 1.0), dirichlet("x", 0, 2.0), dirichlet("x", 0, 2.0, field=0)]

    assert [t.name for t in terms_of(Twice())] == ["residual", "x0_value", "x0_value_2", "x0_value_3"]


@pytest.mark.parametrize("sampler", ["uniform", "sobol"])
def test_points_are_a_function_of_the_seed(sampler: str) -> None:
    first, again = terms_of_soft(Pair()), terms_of_soft(Pair())
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.all_points(), b.all_points())
    other = collocate(Pair(), n=30, n_face=20, sampler=sampler, seed=6, dtype=torch.float64, weight=1.0)
    assert not torch.equal(other[0].points, first[0].points)


@pytest.mark.parallel(1, 2, 3, 4)
def test_points_are_the_same_on_every_rank(comm) -> None:
    mine = np.concatenate([t.all_points().numpy().ravel() for t in terms_of_soft(Pair())])
    assert all(np.array_equal(mine, theirs) for theirs in comm.allgather(mine))


def test_one_coordinate_has_one_point_per_face() -> None:
    class Beam(PDE):
        coordinates, domain = "x", {"x": (0.0, 1.0)}

        def residual(self, p: Points, u: Jet) -> Tensor:
            return u.xx + 1

        def conditions(self) -> list[Condition]:
            return [dirichlet("x", 0, 0.0), periodic("x")]

    problem, x = pinn(Beam())
    assert [t.n for t in problem.loss_terms] == [40, 1, 1]
    assert problem.loss_terms[1].points.tolist() == [[0.0]]
    here, there = (float(problem.model.solution(x, torch.full((1, 1), e).double())) for e in (0.0, 1.0))
    found = problem.terms(x)
    assert found["x0_value"] == pytest.approx(2.0 * here**2, rel=1e-12)
    assert found["x_periodic"] > 2.0 * (here - there) ** 2
