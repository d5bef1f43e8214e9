"""Second derivatives carried as one operator: done where it is exact, with the same loss; elsewhere not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ml2hpc.errors import UserError
from ml2hpc.problem.ansatz import Term, Trial, collocate
from ml2hpc.problem.equations import EQUATIONS
from ml2hpc.problem.jet import Carried, Jet, Operator, Points, closure, derivatives
from ml2hpc.problem.pde import PDE, Condition, periodic
from ml2hpc.problem.pinn import PinnProblem
from tests.problem.small import Pair, pinn, random, relative


class Flow(PDE):
    """Three fields, the first two with multiples of one mixed operator, in two components each."""

    coordinates = "xyt"
    domain = {"x": (0.0, 2.0), "y": (0.0, 1.0), "t": (0.0, 1.0)}
    fields = ("u", "v", "q")

    def residual(self, p: Points, u: Jet, v: Jet, q: Jet) -> tuple[Tensor, ...]:
        return (
            u.t + u * u.x + q.x - 0.3 * self.stress(u) + 0.1 * self.stress(v) - torch.sin(p.x),
            v.t + u * v.x + q.y + 0.7 * self.stress(v),
            u.x + v.y,
        )

    def stress(self, w: Jet) -> Tensor:
        return 0.5 * w.xx - 2.0 * w.yy + 0.25 * w.xy

    def lifting(self, p: Points) -> tuple[Tensor, Tensor, float]:
        return torch.sin(p.x) * p.t, p.x * p.y**2, 0.5

    def distance(self, p: Points) -> tuple[Tensor, Tensor, float]:
        return (p.t + 1) * (1 + p.x**2) * (1 + p.y), 1 + p.t * p.x * p.y, 1.0

    def conditions(self) -> list[Condition]:
        return [replace(periodic("x"), residual=self.bent)]

    def bent(self, p: Points, *fields: Jet) -> Tensor:
        return self.stress(fields[0]) - self.stress(fields[3])


def terms_of(pde: PDE) -> list[Term]:
    return collocate(pde, n=30, n_face=9, sampler="sobol", seed=3, dtype=torch.float64, weight=1.0)


def separate(term: Term) -> Term:
    """Return the term with single second derivatives."""
    parts: list[Carried] = []
    for index in term.indices:
        parts += [i for i, _ in index.terms] if isinstance(index, Operator) else [index]
    return replace(term, indices=closure(parts))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("klein_gordon", ((), (0,), (1,), Operator((((0, 0), 1.0), ((1, 1), -1.0))))),
        ("diffusion_advection", ((), (0,), (1,), Operator((((0, 0), 1.0), ((1, 1), 1.0))))),
        ("burgers", ((), (0,), (1,), (0, 0))),
        ("allen_cahn", ((), (0,), (1,), (0, 0))),
    ],
)
def test_what_the_equations_carry(name: str, expected: tuple[Carried, ...]) -> None:
    assert terms_of(EQUATIONS[name]())[0].indices == expected


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("engine", ["jets", "autograd"])
@pytest.mark.parametrize("kind", [EQUATIONS["klein_gordon"], EQUATIONS["diffusion_advection"], Flow])
def test_a_collapsed_loss_is_the_same(kind: Any, engine: str, hard: bool) -> None:
    pde = kind()
    pde.hard = hard
    problem, x = pinn(pde, engine=engine, n=20, depth=2)
    assert any(isinstance(i, Operator) for i in problem.loss_terms[0].indices)
    plain = PinnProblem(problem.comm, problem.model, [separate(t) for t in problem.loss_terms])
    assert plain.cost.gradient > problem.cost.gradient
    f, g = problem.value_and_gradient(x)
    f_plain, g_plain = plain.value_and_gradient(x)
    assert f > 1e-2
    assert f == pytest.approx(f_plain, rel=1e-12)
    assert relative(g, g_plain) < 1e-12
    v = random(len(x), 4)
    assert relative(problem.hessian_action(x, v), plain.hessian_action(x, v)) < 1e-12


def test_pairs_collapse_too() -> None:
    inside, pairs = terms_of(Flow())
    expected = Operator((((0, 0), 1.0), ((0, 1), 0.5), ((1, 1), -4.0)))
    assert inside.indices == ((), (0,), (1,), (2,), expected)
    assert pairs.partner is not None
    assert pairs.indices == ((), (0,), (1,), expected)


class Plate(PDE):
    """One residual after another that reads u_xx and u_yy."""

    coordinates = "xy"
    domain = {"x": (0.0, 1.0), "y": (0.0, 1.0)}

    def __init__(self, residual: Any) -> None:
        self._residual = residual

    def residual(self, p: Points, u: Jet) -> Any:
        return self._residual(p, u)


REFUSED = {
    "varies in space": lambda p, u: u.xx + (1 + 1e-9 * p.x) * u.yy,
    "depends on u": lambda p, u: u.xx + u.yy + u * u.xx,
    "is quadratic": lambda p, u: u.xx * u.yy - 1.0,
    "depends on a slope's size": lambda p, u: torch.where(u.x > 5.0, 2 * u.xx, u.xx) + u.yy,
    "differs by component": lambda p, u: (u.xx + u.yy, u.xx - u.yy),
    "with a third derivative": lambda p, u: u.xx + u.yy + u.xxy,
    "depends on a large slope's size": lambda p, u: torch.where(u.x > 200.0, 2 * u.xx, u.xx) + u.yy,
    "depends on a small slope's size": lambda p, u: torch.where((500 * u.x).abs() < 1.0, 2 * u.xx, u.xx) + u.yy,
    "reads and does not use": lambda p, u: u.xx + 0.0 * u.yy,
    "has steps": lambda p, u: u.xx + u.yy + torch.floor(u.yy),
    "has a part without slope": lambda p, u: u.xx + u.yy - 0.5 * u.yy.detach(),
    "chooses by a second derivative": lambda p, u: u.xx + u.yy + torch.where(u.xx > 0, 1.0, 2.0) * p.x,
}


@pytest.mark.parametrize("why", REFUSED)
def test_not_collapsed_where_the_combination(why: str) -> None:
    (term,) = terms_of(Plate(REFUSED[why]))
    assert {(0, 0), (1, 1)} <= set(term.indices)
    assert not any(isinstance(i, Operator) for i in term.indices)
    accepted = Plate(lambda p, u: (torch.sin(u) * u.x + 2 * u.xx - 4 * u.yy + p.x, u.y, u.yy - 0.5 * u.xx))
    assert terms_of(accepted)[0].indices[-1] == Operator((((0, 0), 1.0), ((1, 1), -2.0)))


def test_a_large_nonlinear_part_does_not_hinder() -> None:
    (term,) = terms_of(Plate(lambda p, u: u.xx + u.yy - torch.exp(u) + u**5 * u.x))
    assert term.indices[-1] == Operator((((0, 0), 1.0), ((1, 1), 1.0)))


def test_a_derivative_read_by_chance_is_named() -> None:
    def residual(p: Points, u: Jet) -> Tensor:
        return u.xx + u.yy + (u.xy if float(u.value.detach().max()) > 1.5 else 0.0)

    with pytest.raises(UserError, match=r"Plate reads the derivative 'xy' at some points only; read it outside"):
        terms_of(Plate(residual))


def test_fields_with_different_second_derivatives_stay() -> None:
    assert terms_of(Pair())[0].indices == ((), (0,), (1,), (0, 0), (0, 1), (1, 1))


LAPLACE = Operator((((0, 0), 1.5), ((0, 1), -0.5), ((1, 1), -1.0)))


@pytest.mark.parametrize(
    "wanted", [((),), ((0, 0), (1, 1)), (LAPLACE,), ((0, 1), LAPLACE), ((0, 0, 1), (1, 1, 1, 1)), ((0, 0, 0), LAPLACE)]
)
def test_trial_function_against_differentiation(wanted: tuple[Carried, ...]) -> None:
    """u = lifting + distance N by nested reverse mode; `push_forward` and `pull_back` are its linear part, adjoint."""
    pde, indices, x = Pair(), closure(wanted), random(2 * 9, 3).view(2, 9)

    def network(y: Tensor) -> Tensor:
        return torch.stack([torch.sin(y[0] + 2 * y[1]), torch.cos(y[0] * y[1])])

    def u(y: Tensor) -> Tensor:
        p = Points("xt", y)
        n = network(y)
        lifting, distance = pde.lifting(p), pde.distance(p)
        return torch.stack([lifting[0] + distance[0] * n[0], lifting[1] + distance[1] * n[1]])

    expected = derivatives(u, x, indices)
    n = torch.stack([value.detach() for value in derivatives(network, x, indices).values()], 1)
    trial = Trial(pde, x, indices)
    mine = trial.jets(n)
    for j, index in enumerate(indices):
        assert relative(mine[:, j], expected[index]) < 1e-13
    v, c = random(2 * n.numel(), 5).view(2, *n.shape)
    assert relative(trial.push_forward(v), trial.jets(n + v) - trial.jets(n)) < 1e-13
    assert float((c * trial.push_forward(v)).sum()) == pytest.approx(float((trial.pull_back(c) * v).sum()), rel=1e-12)
    pde.hard = False
    assert torch.equal(Trial(pde, x, indices).push_forward(v), v)
