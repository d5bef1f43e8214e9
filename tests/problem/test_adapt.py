"""Points drawn by the residual and weights that follow gradients: laws, formulas, bits over ranks and restarts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ml2hpc.errors import OptionsError, UserError
from ml2hpc.io.tree import from_image, to_image
from ml2hpc.problem.adapt import (
    AdaptivePinn,
    Balancing,
    Resampling,
    draw,
    resample,
    residual_density,
    squares,
    weighted,
)
from ml2hpc.problem.pinn import PinnProblem
from tests.problem.small import Pair, alone, everyone, pinn

HOW = Resampling(interval=3, power=1.0, offset=1.0, candidates=6, sampler="sobol", seed=5)


def test_the_density_is_the_published_one():
    r = np.array([0.0, 1.0, 2.0, 5.0])
    for power, offset in ((1.0, 1.0), (2.0, 0.0), (0.5, 3.0)):
        p = r**power / (r**power).mean() + offset
        np.testing.assert_allclose(residual_density(r**2, power, offset), p / p.sum(), rtol=1e-14)
    np.testing.assert_allclose(residual_density(1e-200 * r**2, 4.0, 1.0), residual_density(r**2, 4.0, 1.0), rtol=1e-13)
    assert (residual_density(np.zeros(4), 1.0, 0.0) == 0.25).all()


def soft() -> Pair:
    """Both conditions in the loss."""
    pde = Pair()
    pde.hard = False
    return pde


def chi_square(chosen: np.ndarray, region: np.ndarray, p: np.ndarray) -> float:
    """The distance of the counts by region from those that drawing without replacement has on average.

    With n of many candidates drawn, candidate i is among them with probability 1 - exp(-t p_i), where t gives n in all.
    """
    low, high = 0.0, 1e9
    for _ in range(200):
        t = 0.5 * (low + high)
        low, high = (t, high) if (1 - np.exp(-t * p)).sum() < len(chosen) else (low, t)
    inside = 1 - np.exp(-low * p)
    total = 0.0
    for k in np.unique(region):
        here = region == k
        variance = (inside * (1 - inside))[here].sum()
        total += (np.isin(np.flatnonzero(here), chosen).sum() - inside[here].sum()) ** 2 / variance
    return float(total)


def test_draws_follow_the_density():
    """Four regions with residuals 1, 3, 10, 30; one chi-square of 3 degrees in a thousand exceeds 16.3."""
    region = np.arange(20000) % 4
    p = residual_density(np.array([1.0, 3.0, 10.0, 30.0])[region] ** 2, 1.0, 1.0)
    chosen = draw(p, 2000, np.random.default_rng(1))
    assert len(set(chosen.tolist())) == 2000
    assert (np.diff(chosen) > 0).all()
    assert chi_square(chosen, region, p) < 16.3
    assert chi_square(draw(np.full(20000, 5e-5), 2000, np.random.default_rng(1)), region, p) > 400


def test_squares_are_what_the_loss_is_the_sum_of():
    problem, x = pinn()  # two fields, two residuals; a condition; a periodic one
    losses = problem.terms(x)
    for term in problem.loss_terms:
        found = squares(alone(), problem.model, term, x)
        assert found.shape == (term.n,)
        assert term.factor * found.sum() == pytest.approx(losses[term.name], rel=1e-12)


def test_resampling_raises_the_loss_of_the_residual_and_leaves_the_conditions():
    problem, x = pinn(n=200)
    first = resample(problem.comm, problem.model, problem.loss_terms[0], x, HOW, 1)
    new = PinnProblem(problem.comm, problem.model, (first, *problem.loss_terms[1:]))
    old, now = problem.terms(x), new.terms(x)
    assert now["residual"] > 1.2 * old["residual"]
    assert {k: v for k, v in old.items() if k != "residual"} == {k: v for k, v in now.items() if k != "residual"}
    again, other = (resample(problem.comm, problem.model, first, x, HOW, number) for number in (1, 2))
    assert torch.equal(again.points, first.points)  # a function of iterate, seed and number alone
    assert len(np.intersect1d(other.points[0].numpy(), first.points[0].numpy())) == 0


@pytest.mark.parallel(1, 2, 3, 4)
def test_any_number_of_ranks_adapts_to_the_same_bits(comm):
    both = [pinn(comm=on, n=150, chunk=29, width=20) for on in (everyone(comm), alone())]
    found = []
    for problem, x in both:
        adaptive = AdaptivePinn(problem, HOW, Balancing(3, 0.5))
        adaptive.refresh(3, x)
        r2 = squares(problem.comm, problem.model, problem.loss_terms[0], x)
        found.append((adaptive.state(), r2, adaptive.problem.value_and_gradient(x)))
    (here, r2, (f, g)), (single, r2_single, (f_single, g_single)) = found
    assert (r2 == r2_single).all()
    assert f == f_single
    assert torch.equal(g, g_single)
    assert (here["points"] == single["points"]).all()
    assert (here["factors"] == single["factors"]).all()


def test_a_loaded_state_goes_on_bitwise():
    problem, x = pinn(n=90)
    first = AdaptivePinn(problem, HOW, Balancing(2, 0.9))
    for iteration in (2, 3):
        first.refresh(iteration, x)
    second = AdaptivePinn(pinn(n=90)[0], HOW, Balancing(2, 0.9))
    problem = second.load(from_image(to_image(first.state(), "run"), "run"))
    assert problem.value_and_gradient(x)[0] == first.problem.value_and_gradient(x)[0]
    assert not second.due(3)  # it has been done
    for adaptive in (first, second):
        assert adaptive.due(6)
        adaptive.refresh(6, x)
    assert torch.equal(first.problem.gradient(x), second.problem.gradient(x))
    assert first.columns() == second.columns()
    assert first.columns()["resampling"] == 2
    assert first.view() == [
        "points drawn anew 2 times: every 3 iterations by |r|^1 / mean + 1 out of 6 times as many",
        "weights balanced every 2 iterations, average=0.9",
    ]
    with pytest.raises(ValueError, match="other terms or points"):
        AdaptivePinn(pinn(n=80)[0], HOW, None).load(first.state())


def test_weights_change_the_loss_as_stated():
    problem, x = pinn(soft())
    names = [t.name for t in problem.loss_terms]
    new = PinnProblem(problem.comm, problem.model, weighted(problem.loss_terms, f"{names[1]}=100, residual=0.25"))
    old, now = problem.terms(x), new.terms(x)
    means = {t.name: squares(alone(), problem.model, t, x).mean() for t in problem.loss_terms}
    assert now["residual"] == pytest.approx(0.25 * means["residual"], rel=1e-12)
    assert now[names[1]] == pytest.approx(100 * means[names[1]], rel=1e-12)
    assert now[names[2]] == old[names[2]]
    assert new.objective(x) == pytest.approx(sum(now.values()), rel=1e-14)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x_periodik=2", "-pinn_weights x_periodik=2: the loss has the terms .*; did you mean x_periodic?"),
        ("residual=1,residual=2", "each term at most once"),
        (",", "-pinn_weights ,: names no term; the loss has the terms residual"),
        ("residual", "as name=weight"),
        ("residual=ten", "as name=weight"),
        ("residual=0", "a weight above 0"),
        ("residual=inf", "a weight above 0"),
    ],
)
def test_impossible_weights_are_refused(text, message):
    with pytest.raises(OptionsError, match=message):
        weighted(pinn()[0].loss_terms, text)


def test_balanced_weights_are_the_stated_average_of_gradient_norms():
    """Norms from nested autograd; with no memory of the old weights all terms pull equally."""
    problem, x = pinn(soft())
    oracle = pinn(soft(), engine="autograd")[0]
    assert len(oracle.loss_terms) == 3
    norms = [
        float(PinnProblem(oracle.comm, oracle.model, [t]).gradient(x).norm()) / (t.factor * t.n)
        for t in oracle.loss_terms
    ]
    w = [t.factor * t.n for t in problem.loss_terms]
    adaptive = AdaptivePinn(problem, None, Balancing(1, 0.9))
    change = adaptive.refresh(1, x)
    expected = [w[0], *(0.9 * v + 0.1 * w[0] * norms[0] / norm for v, norm in zip(w[1:], norms[1:]))]
    assert list(adaptive.weights().values()) == pytest.approx(expected, rel=1e-10)
    assert change.problem is adaptive.problem
    adaptive = AdaptivePinn(problem, None, Balancing(1, 0.0))
    adaptive.refresh(1, x)
    pulls = [
        float(PinnProblem(problem.comm, problem.model, [t]).gradient(x).norm()) for t in adaptive.problem.loss_terms
    ]
    assert pulls == pytest.approx([pulls[0]] * len(pulls), rel=1e-12)


class Holed(Pair):
    """No number in a corner that few candidates reach."""

    def residual(self, p, u, v):
        first, second = super().residual(p, u, v)
        return first + 0 * torch.sqrt(p.x - 0.002), second


def test_what_cannot_be_adapted_is_refused():
    problem, x = pinn(Holed(), n=40)
    with pytest.raises(UserError, match=r"Holed.residual is not a number at \d+ of 4000 candidates"):
        resample(
            problem.comm, problem.model, problem.loss_terms[0], x, Resampling(1, 1.0, 1.0, 100, "hammersley", 1), 1
        )
    single = PinnProblem(problem.comm, problem.model, problem.loss_terms[:1])
    with pytest.raises(UserError, match="residual is the only term of the loss"):
        AdaptivePinn(single, None, Balancing(1, 0.9))
