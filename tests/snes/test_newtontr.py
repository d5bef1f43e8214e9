"""Trust regions: rates, radii, refused steps, rank-one models, the judged preconditioner, PINNs on several ranks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.problem.equations.burgers import Burgers
from ml2hpc.problem.interface import ShardedProblem
from ml2hpc.snes import SNES, Reason
from ml2hpc.snes.interface import Point
from ml2hpc.snes.newtontr import NewtonTR
from ml2hpc.snes.sr1 import SR1, DenseSR1, LimitedSR1
from ml2hpc.vec import Replicated
from tests.problem.small import everyone, pinn, relative
from tests.snes.problems import Analytic, double_well, matrix, quadratic, rosenbrock, tree, world

TR = "-snes_type newtontr -snes_rtol 0"
MODELS = [
    "",
    "-snes_tr_model gn",
    "-snes_tr_qn lsr1",
    "-snes_tr_qn sr1",
    "-snes_tr_norm_type infinity",
    "-snes_tr_norm_type infinity -snes_tr_qn lsr1",
    "-snes_tr_fallback_type dogleg",
]
APTS = "-npc_snes_type nasm -npc_dm_subdomains 2 -npc_sub_snes_type newtontr -npc_sub_snes_max_it 5"
VALLEY = torch.tensor([-1.2, 1.0, -1.2, 1.0, -1.2, 1.0], dtype=torch.float64)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def method_of(solver: SNES) -> NewtonTR:
    assert isinstance(solver.method, NewtonTR)
    return solver.method


def iterates(options: str, problem, x: Tensor) -> tuple[SNES, list[Point]]:
    found: list[Point] = []

    def observe(solver: SNES, point: Point, norm: float, update: float) -> Reason:
        found.append(point)
        return Reason.CONVERGED_ITERATING

    solver = tree(f"{TR} {options}", problem)
    solver.observe = observe
    solver.solve(x)
    return solver, found


# ---- rates and radii -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "-snes_tr_model gn", "-snes_tr_norm_type infinity"])
def test_convergence_is_quadratic(comm, options):
    """The Gauss-Newton matrix is the Hessian where all residuals vanish."""
    solver, points = iterates(f"-snes_max_it 60 -snes_atol 1e-11 {options}", rosenbrock(world(comm)), VALLEY)
    assert solver.reason == Reason.CONVERGED_FNORM_ABS
    errors = [e for e in (float((p.x - points[-1].x).norm()) for p in points) if 0 < e < 0.03]
    assert len(errors) >= 3
    assert errors[-1] < 1e-6
    assert all(b < 50 * a**2 for a, b in pairwise(errors))


@pytest.mark.parametrize("options", MODELS)
def test_every_step_lowers_the_objective(comm, options):
    _, points = iterates(f"-snes_max_it 30 {options}", rosenbrock(world(comm)), VALLEY)
    values = [p.f for p in points]
    assert all(b <= a * (1 + 1e-14) for a, b in pairwise(values))  # up to the rounding of L
    assert values[-1] < 0.1 * values[0]


@pytest.mark.parametrize(("norm", "order"), [("2", 2), ("infinity", math.inf)])
def test_steps_stay_in_the_region(comm, norm, order):
    """The first steps on the boundary: their lengths are the radii, which double with each success."""
    _, points = iterates(f"-snes_max_it 3 -snes_tr_norm_type {norm}", quadratic(world(comm)), 10 * normal(8, seed=1))
    lengths = [float(torch.linalg.vector_norm(b.x - a.x, order)) for a, b in pairwise(points)]
    assert lengths == pytest.approx([0.2, 0.4, 0.8], rel=1e-12)


def test_an_infinite_radius_is_newton(comm):
    problem = quadratic(world(comm))
    x = normal(8, seed=1)
    point = tree(f"{TR} -snes_max_it 1 -snes_tr_delta0 1e6 -snes_tr_cg_rtol 1e-14", problem).solve(x)
    assert float(point.x.norm()) < 1e-11 * float(x.norm())


def test_a_refused_step_costs_an_objective(comm):
    """Far out on exp the model is right in a small ball only; the path of conjugate gradients is used again."""
    problem = Analytic(world(comm), lambda x, d: (x.exp() - 5 * x).sum(), 4)
    solver = tree(f"{TR} -snes_max_it 1 -snes_tr_delta0 100", problem)
    x = torch.tensor([-3.0, -2.0, -1.0, 0.0], dtype=torch.float64)
    point = solver.solve(x)
    refused = solver.work["objectives", "path"] - 1
    assert refused >= 2
    assert point.f < problem.objective(x)
    assert solver.work["gradients", "path"] == 2  # at both ends
    assert solver.work["hessians", "path"] <= 4
    assert method_of(solver)._delta == 100 * 0.25**refused


class Wrong(Analytic):
    """A gradient of the wrong sign: no radius helps."""

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        value, gradient = super().value_and_gradient(x)
        return value, -gradient


def test_the_radius_that_collapses_is_a_reason(comm):
    problem = Wrong(world(comm), lambda x, d: (x * x).sum(), 4)
    solver = tree(f"{TR} -snes_max_it 50 -snes_tr_deltamin 1e-6", problem)
    x = torch.ones(4, dtype=torch.float64)
    point = solver.solve(x)
    assert solver.reason == Reason.DIVERGED_TR_DELTA
    assert "with a radius of" in solver.failure
    assert torch.equal(point.x, x)


def test_many_refusals_are_spread_over_iterations(comm):
    problem = Wrong(world(comm), lambda x, d: (x * x).sum(), 4)
    x = torch.ones(4, dtype=torch.float64)
    solver = tree(f"{TR} -snes_max_it 2 -snes_tr_t1 0.9", problem)
    point = solver.solve(x)
    assert solver.reason == Reason.DIVERGED_MAX_IT
    assert torch.equal(point.x, x)
    assert method_of(solver)._delta == pytest.approx(0.2 * 0.9**40)


def test_rounding_of_the_objective_does_not_stop_convergence(comm):
    """L = 1e6 + a quadratic: below |x| = 1e-5 no decrease is seen in L, but the gradients show it."""
    a = matrix(6)
    problem = Analytic(world(comm), lambda x, d: 1e6 + 0.5 * x @ (a @ x) + (x**4).sum(), 6)
    solver = tree(f"{TR} -snes_max_it 30 -snes_atol 1e-12", problem)
    point = solver.solve(normal(6, seed=2))
    assert solver.reason == Reason.CONVERGED_FNORM_ABS, solver.failure
    assert float(point.x.norm()) < 1e-12


@pytest.mark.parametrize("options", MODELS)
def test_a_saddle_is_left_along_negative_curvature(comm, options):
    """Both curvatures of the double well at 0.01 are -8 and the slope is small."""
    problem = double_well(world(comm), 2)
    _, points = iterates(f"-snes_max_it 40 -snes_atol 1e-6 {options}", problem, torch.full((2,), 0.03).double())
    assert points[-1].f < 0.2
    curvatures = torch.stack([problem.hessian_action(points[-1].x, e) for e in torch.eye(2).double()])
    assert float(torch.linalg.eigvalsh(curvatures)[0]) > 10


# ---- rank-one models -------------------------------------------------------------------------------------------------


def learnt(secant: SR1, a: Tensor, pairs: int) -> SR1:
    for k in range(pairs):
        s = 10.0 ** (-k) * normal(len(a), seed=k)
        secant.update(s, a @ s)
    return secant


def dense_of(secant: SR1, n: int) -> Tensor:
    model = secant.spectrum(normal(n, seed=9)).model
    return torch.stack([model.action(e) for e in torch.eye(n, dtype=torch.float64)])


@pytest.mark.parametrize("kind", ["limited", "dense"])
def test_n_pairs_recover_the_matrix_of_a_quadratic(kind):
    """The hereditary property, for an indefinite matrix and pairs of very different lengths."""
    n = 8
    a = matrix(n) - 30.0 * torch.eye(n, dtype=torch.float64)
    space = Replicated(n, torch.float64)
    secant = learnt(LimitedSR1(space, 1e-8, n) if kind == "limited" else DenseSR1(space, 1e-8), a, n)
    torch.testing.assert_close(dense_of(secant, n), a, rtol=0, atol=1e-9 * 70)


def test_limited_memory_is_the_dense_update_of_its_pairs():
    """From gamma I by w w' / <w, s>, also where the pairs belong to no symmetric matrix."""
    n, m = 10, 4
    secant = LimitedSR1(Replicated(n, torch.float64), 1e-8, m)
    pairs = [(normal(n, seed=k), normal(n, seed=50 + k)) for k in range(7)]
    for s, y in pairs:
        secant.update(s, y)
    b = secant._gamma * torch.eye(n, dtype=torch.float64)
    for s, y in pairs[-m:]:
        w = y - b @ s
        b += torch.outer(w, w) / (w @ s)
    torch.testing.assert_close(dense_of(secant, n), b, rtol=0, atol=1e-10 * float(b.abs().max()))
    s, y = next((s, y) for s, y in reversed(pairs) if s @ y > 0)
    assert secant._gamma == pytest.approx(0.03 * float((s @ y) / (s @ s)), rel=1e-14)


def test_dependent_pairs_are_left_out():
    n = 6
    a, s = matrix(n), normal(6, seed=1)
    secant = LimitedSR1(Replicated(n, torch.float64), 1e-8, 5)
    for factor in (1.0, -0.5, 1e-3):
        secant.update(factor * s, factor * (a @ s))
    torch.testing.assert_close(secant.spectrum(s).model.action(s), a @ s, rtol=0, atol=1e-11)
    assert secant._known is not None
    assert secant._known[0].shape == (n, 1)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-4])
@pytest.mark.parametrize("seed", [1, 3, 4])
def test_nearly_dependent_columns_in_float32_leave_orthonormal_eigenvectors(seed, noise):
    """All y along one direction, as pairs of different samples have them: so are all w, to the digits of float32."""
    n = 400
    secant = LimitedSR1(Replicated(n, torch.float32), 1e-8, 10)
    for k in range(14):
        factor = float(normal(1, seed=100 * seed + k))
        secant.update(
            normal(n, seed=200 * seed + k).float(), (factor * normal(n, seed=seed) + noise * normal(n, seed=k)).float()
        )
        secant.spectrum(normal(n, seed=50).float()).solve(1.0)
        assert secant._known is not None
        q = secant._known[0].double()
        torch.testing.assert_close(q.T @ q, torch.eye(q.shape[1], dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("radius", [0.01, 1.0, 100.0])
def test_obs_is_more_and_sorensen_on_the_dense_matrix(radius):
    n = 10
    a = matrix(n) - 20.0 * torch.eye(n, dtype=torch.float64)
    secant = learnt(LimitedSR1(Replicated(n, torch.float64), 1e-8, 5), a, 8)
    g = normal(n, seed=20)
    b = dense_of(secant, n)
    trial = secant.spectrum(g).solve(radius)
    sigma = float(-(trial.s @ (b @ trial.s + g)) / (trial.s @ trial.s))
    assert float((b @ trial.s + sigma * trial.s + g).norm()) < 1e-10 * float(g.norm())
    assert sigma > -float(torch.linalg.eigvalsh(0.5 * (b + b.T))[0]) - 1e-10


def test_a_refused_trial_teaches_the_secant_model(comm):
    problem = Analytic(world(comm), lambda x, d: (x**4).sum(), 3)
    solver = tree(f"{TR} -snes_max_it 1 -snes_tr_qn lsr1 -snes_tr_delta0 10", problem)
    solver.solve(torch.ones(3, dtype=torch.float64))
    secant = method_of(solver)._secant
    assert secant is not None
    assert secant.pairs == solver.work["gradients", "path"] - 1 >= 2


# ---- the preconditioner ----------------------------------------------------------------------------------------------


def test_a_solve_stays_in_the_ball_of_its_parent(comm):
    solver = tree(f"{TR} -snes_max_it 30 -snes_tr_delta0 0.2", quadratic(world(comm)))
    solver.method.confine(0.5)
    x = 5 + normal(8, seed=1)
    point = solver.solve(x)
    assert solver.reason == Reason.DIVERGED_TR_DELTA
    assert "used up" in solver.failure
    assert 0.3 < float((point.x - x).norm()) <= 0.5


def test_schwarz_hands_the_ball_to_its_local_solves(comm):
    """Each block of a sweep moves by the whole radius, far from the minimum."""
    options = "-snes_nasm_type multiplicative -dm_decomposition blocks -dm_subdomains 2 -sub_snes_type newtontr"
    solver = tree(f"-snes_type nasm -snes_max_it 1 {options}", quadratic(world(comm)))
    solver.method.confine(0.3)
    x = 10 * normal(8, seed=1)
    moved = solver.solve(x).x - x
    assert [float(part.norm()) for part in (moved[:4], moved[4:])] == pytest.approx([0.3, 0.3], rel=1e-6)


@pytest.mark.parametrize("inner", ["newtontr", "qn"])
@pytest.mark.parametrize("options", ["", "-snes_tr_norm_type infinity -npc_sub_snes_tr_norm_type infinity"])
def test_the_preconditioner_stays_in_the_region(comm, inner, options):
    if inner == "qn":
        options = options.split(" -npc")[0]
    order = math.inf if "infinity" in options else 2
    problem = rosenbrock(world(comm))
    options = f"-snes_max_it 8 {options} {APTS.replace('newtontr', inner)}"
    solver = tree(f"{TR} {options}", problem)
    method, moved = method_of(solver), []
    judge = method.precondition

    def watched(solver, point, apply):
        radius = method._delta
        half = judge(solver, point, apply)
        moved.append((float(torch.linalg.vector_norm(half.x - point.x, order)), radius))
        return half

    method.precondition = watched  # type: ignore[method-assign]
    solver.solve(VALLEY)
    assert all(length <= radius * (1 + 1e-12) for length, radius in moved)
    assert sum(length > 0 for length, _ in moved) >= 4


@pytest.mark.parametrize(("step", "radius"), [("creep", 0.4), ("climb", 0.1)])
def test_a_bad_preconditioner_is_refused(comm, step, radius):
    """A step that lowers L by less than eta1 of the Cauchy step, and one that raises it, which shrinks the region.

    The step of the type itself, on the boundary of the exact model, doubles the radius.
    """
    shell = f"-npc_snes_type shell -npc_snes_shell_step {__file__}:{step}"
    solver, points = iterates(f"-snes_max_it 1 {shell}", quadratic(world(comm)), 10 * normal(8, seed=1))
    alone = iterates(f"-snes_max_it 1 -snes_tr_delta0 {radius / 2}", quadratic(world(comm)), points[0].x)[1]
    assert solver.rejected == 1
    assert method_of(solver)._delta == radius
    assert torch.equal(points[1].x, alone[1].x)


def creep(problem, x, g):
    """Lower L, by next to nothing."""
    return x - 1e-9 * g


def climb(problem, x, g):
    """Raise L."""
    return x + g / g.norm()


def test_schwarz_in_the_region_beats_the_region_alone(comm):
    """The same outer iterations of APTS in the weights and of its outer method, on a small network for Burgers."""
    problem, x = pinn(Burgers(), n=64, chunk=64, depth=3, width=6)
    _, single = iterates("-snes_max_it 12", problem, x)
    both, points = iterates(f"-snes_max_it 12 {APTS}", problem, x)
    values = [p.f for p in points]
    assert all(b < a for a, b in pairwise(values))
    assert values[-1] < 0.75 * single[-1].f  # 0.26 against 0.39
    assert values[1] < single[2].f
    assert both.rejected == 0


# ---- networks, ranks, restarts, errors -------------------------------------------------------------------------------


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("options", [*MODELS, f"{APTS} -npc_sub_snes_max_it 2 -npc_sub_snes_tr_cg_max_it 3"])
def test_a_pinn_has_the_same_iterates_on_any_number_of_ranks(comm, options):
    problem, x = pinn(comm=everyone(comm), n=20, chunk=8, depth=2, width=4)
    options = f"{TR} -snes_max_it 2 -snes_tr_delta0 1 -snes_tr_cg_max_it 5 {options}"
    here = tree(options, problem).solve(x)
    alone = tree(options, problem.on(problem.comm.alone())).solve(x)
    assert torch.equal(here.x, alone.x)
    assert here.f < problem.objective(x)


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("options", [*MODELS, f"{APTS} -npc_sub_snes_max_it 2 -npc_sub_snes_tr_cg_max_it 3"])
def test_sharded_vectors(comm, options):
    problem, x = pinn(comm=everyone(comm), n=20, chunk=8, depth=2, width=4)
    sharded = ShardedProblem(problem)
    options = f"{TR} -snes_max_it 2 -snes_tr_cg_max_it 5 {options}"  # many steps amplify the rounding of inner products
    here = tree(options, problem).solve(x)
    point = tree(options, sharded).solve(sharded.space.local(x).clone())
    assert relative(sharded.space.gather(point.x), here.x) < 1e-6


def test_the_radius_and_pairs_are_carried_to_the_next_solve(comm):
    kept, fresh = (
        tree(f"{TR} -snes_max_it 4 -snes_tr_qn lsr1 -snes_tr_recycle {r}", rosenbrock(world(comm))) for r in (1, 0)
    )
    for solver in (kept, fresh):
        solver.solve(VALLEY)
    carried = method_of(kept)._delta
    assert carried != 0.2
    for solver in (kept, fresh):
        solver.method.begin(solver)
    assert method_of(kept)._delta == carried
    assert method_of(fresh)._delta == 0.2
    secants = [method_of(solver)._secant for solver in (kept, fresh)]
    assert [s.pairs > 0 for s in secants if s is not None] == [True, False]


def test_what_is_no_sum_of_squares_is_refused(comm):
    problem = Analytic(world(comm), lambda x, d: x.exp().sum(), 4)
    with pytest.raises(UnsupportedError, match="is not a sum of squares"):
        tree("-snes_type newtontr -snes_tr_model gn", problem)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-snes_tr_fallback_type dogleg -snes_tr_qn lsr1", "use -snes_tr_qn none and -snes_tr_norm_type 2"),
        ("-snes_tr_fallback_type cauchy -snes_tr_norm_type infinity", "needs conjugate gradients in a ball"),
        ("-snes_tr_model gn -snes_tr_qn sr1", "use one of both"),
        ("-snes_tr_eta2 0.9", "must not fall, got 0.001, 0.9, 0.75"),
        ("-snes_tr_delta0 1e-13", r"must be in \[1e-12, 1e\+10\]"),
        ("-snes_npc_side left -npc_snes_type nasm", "newtontr supports right only"),
    ],
)
def test_options_that_contradict_each_other(comm, options, message):
    with pytest.raises((OptionsError, UnsupportedError), match=message):
        tree(f"-snes_type newtontr {options}", rosenbrock(world(comm)))


def test_the_view_is_petscs(comm):
    view = tree(TR, rosenbrock(world(comm))).view()
    assert "      eta1=0.001, eta2=0.25, eta3=0.75\n      t1=0.25, t2=2\n" in view
    assert "delta_min=1e-12, delta_0=0.2, delta_max=1e+10" in view


def test_a_gradient_that_is_no_number_shrinks_the_radius(comm):
    """Below 1/2 L is a number and its gradient is none: the steps end before."""

    def f(x: Tensor, d: Tensor) -> Tensor:
        return (x * x + 1e-3 * torch.sqrt((x - 0.5 + (x - 0.5).abs()).square())).sum()

    problem = Analytic(world(comm), f, 4)
    solver = tree("-snes_type newtontr -snes_max_it 60", problem)
    point = solver.solve(torch.full((4,), 2.0, dtype=torch.float64))
    assert point.finite
    assert 0.5 < float(point.x.min()) < 0.6
    assert problem.evaluations < 500


@pytest.mark.parametrize("actions", [2, 3])
def test_few_actions_a_step_reach_the_minimum_in_a_box(comm, actions):
    options = f"-snes_type newtontr -snes_tr_norm_type infinity -snes_tr_cg_max_it {actions} -snes_max_it 2000"
    solver = tree(options, quadratic(world(comm)))
    solver.solve(torch.linspace(-1.0, 1.5, 8, dtype=torch.float64))
    assert solver.reason == Reason.CONVERGED_FNORM_RELATIVE


def test_a_collapsed_radius_is_not_recycled(comm):
    solver = tree("-snes_type newtontr", rosenbrock(world(comm)))
    x = torch.linspace(0.6, 1.0, 6, dtype=torch.float64)
    solver.solve(x)
    fresh = solver.iteration
    assert isinstance(solver.method, NewtonTR)
    solver.method._delta = 1e-13
    solver.solve(x)
    assert solver.iteration <= fresh
