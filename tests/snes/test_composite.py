"""Composite: exact identities against its members, the optimal combination, two levels, parallel equals serial."""

from __future__ import annotations

import pytest
import torch

from ml2hpc.errors import OptionsError, UserError
from ml2hpc.problem.interface import ShardedProblem, slices
from tests.snes.problems import Analytic, matrix, quadratic, rosenbrock, tree, world

UPHILL = f"-snes_shell_step {__file__}:climb"
CHAIN = "-snes_type composite -snes_composite_type multiplicative -snes_composite_sneses"
OPTIMAL = "-snes_type composite -snes_composite_sneses"
ONCE = "-snes_max_it 1 -snes_rtol 0"


def climb(problem, x, r):
    """A member that goes uphill."""
    return x + 0.01 * r


def start(n: int) -> torch.Tensor:
    return torch.linspace(-1.0, 1.5, n, dtype=torch.float64)


@pytest.mark.parametrize("member", ["qn", "qn -{}snes_qn_type ssbroyden", "nrichardson", "gn", "nasm", "ngs"])
def test_a_composite_of_one_member_is_the_member(comm, member):
    many = "-snes_max_it 8 -snes_rtol 0"
    composed = tree(f"{CHAIN} {member.format('sub_0_')} {many}", rosenbrock(world(comm)))
    alone = tree(f"-snes_type {member.format('')} {many}", rosenbrock(world(comm)))
    found, expected = composed.solve(start(6)), alone.solve(start(6))
    assert torch.equal(found.x, expected.x)
    assert found.f == expected.f
    assert (composed.work.counts == alone.work.counts).all()


def test_multiplicative_is_one_after_the_other(comm):
    found = tree(f"{CHAIN} nrichardson,qn,gn -sub_1_snes_max_it 3 {ONCE}", rosenbrock(world(comm))).solve(start(6))
    x = start(6)
    for options in ("-snes_type nrichardson -snes_max_it 1", "-snes_type qn -snes_max_it 3", "-snes_type gn"):
        x = tree(f"-snes_max_it 1 {options}", rosenbrock(world(comm))).solve(x).x
    assert torch.equal(found.x, x)


def test_additive_adds_the_weighted_corrections(comm):
    problem, weights = quadratic(world(comm)), (0.5, 0.2)
    options = "-snes_type composite -snes_composite_type additive -snes_composite_sneses nrichardson,qn"
    options += f" -snes_composite_damping 0.5,0.2 -sub_1_snes_max_it 3 -snes_linesearch_type none {ONCE}"
    found = tree(options, problem).solve(start(8))
    expected = start(8)
    for weight, kind in zip(weights, ("nrichardson -snes_max_it 1", "qn -snes_max_it 3"), strict=True):
        expected += weight * (tree(f"-snes_type {kind}", problem).solve(start(8)).x - start(8))
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-14)


def test_the_optimal_combination_is_the_minimiser_over_the_span(comm):
    """On a quadratic: coefficients solve the projected system, with one evaluation beyond the members'."""
    members = ("nrichardson -{}snes_max_it 2", "qn -{}snes_max_it 4", "nasm -{}dm_subdomains 2")
    own = " ".join(m.format(f"sub_{k}_").partition(" ")[2] for k, m in enumerate(members))
    solver = tree(f"{OPTIMAL} nrichardson,qn,nasm {own} {ONCE}", quadratic(world(comm)))
    found = solver.solve(start(8))
    alone = [tree(f"-snes_max_it 1 -snes_type {m.format('')}", quadratic(world(comm))) for m in members]
    a, x = matrix(8), start(8)
    d = torch.stack([member.solve(x).x - x for member in alone])
    best = torch.linalg.solve(d @ a @ d.T, -d @ (a @ x))
    torch.testing.assert_close(found.x, x + d.T @ best, rtol=0, atol=1e-11)
    # The members need no gradient at the start: it is known.
    path = sum(member.work["gradients", "path"] - 1 for member in alone)
    assert solver.work["gradients", "path"] == 1 + path + 1
    assert solver.work["gradients", "total"] > solver.work["gradients", "path"]  # two subdomains of nasm


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_optimal_combination_is_never_above_the_best_member(comm, scale):
    """Anywhere on a nonconvex L, whatever its scale."""
    f = rosenbrock(world(comm)).f

    def problem() -> Analytic:
        return Analytic(world(comm), lambda x, d: scale * f(x, d), 6)

    won = 0
    for seed in range(8):
        x = 2 * torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        combined = tree(f"{OPTIMAL} nrichardson,nasm -sub_1_dm_subdomains 3 {ONCE}", problem()).solve(x).f
        alone = ("nrichardson", "nasm -dm_subdomains 3")
        best = min(tree(f"-snes_type {kind} -snes_max_it 1", problem()).solve(x).f for kind in alone)
        assert combined <= best
        won += combined < 0.99 * best
    assert won >= 3


def test_a_member_that_goes_uphill_is_passed_over(comm):
    with_it = tree(f"{CHAIN} shell,qn -sub_0_{UPHILL[1:]} -snes_max_it 5", rosenbrock(world(comm))).solve(start(6))
    without = tree("-snes_type qn -snes_max_it 5", rosenbrock(world(comm))).solve(start(6))
    assert torch.equal(with_it.x, without.x)


@pytest.mark.parametrize("kind", ["additive -snes_linesearch_type none", "additive", "multiplicative"])
def test_members_that_go_uphill_together_move_nothing(comm, kind):
    options = f"-snes_type composite -snes_composite_type {kind} -snes_composite_sneses shell,shell -sub_{UPHILL[1:]}"
    solver = tree(f"{options} -snes_max_it 20", rosenbrock(world(comm)))
    found = solver.solve(start(6))
    assert torch.equal(found.x, start(6))
    assert solver.reason.name == "DIVERGED_LINE_SEARCH"
    assert solver.iteration == 0


def test_a_sum_that_overshoots_is_not_taken_without_a_search(comm):
    """Twice four times the way to the minimum: downhill at first, uphill in the end."""
    options = "-snes_type composite -snes_composite_type additive -snes_composite_sneses gn,gn"
    options += " -sub_snes_gn_regularization none -snes_composite_damping 4,4"
    solver = tree(f"{options} -snes_linesearch_type none", quadratic(world(comm)))
    assert torch.equal(solver.solve(start(8)).x, start(8))
    assert solver.failure == "after the sum of the corrections: the objective rises"
    searched = tree(f"{options} -snes_max_it 1", quadratic(world(comm))).solve(start(8))
    assert searched.f < 0.2 * quadratic(world(comm)).objective(start(8))


def test_an_uphill_correction_enters_the_span_backwards(comm):
    found = tree(f"{OPTIMAL} shell -sub_{UPHILL[1:]} {ONCE}", quadratic(world(comm))).solve(start(8))
    a, x = matrix(8), start(8)
    g = a @ x
    torch.testing.assert_close(found.x, x - (g @ g) / (g @ a @ g) * g, rtol=0, atol=1e-11)


def test_a_member_that_gave_up_its_memory_is_tried_again(comm):
    """At rounding level a memory is lost before the end: once more without it, and then the composite ends too."""
    many = "-snes_max_it 200 -snes_rtol 0 -snes_atol 0 -snes_stol 0"
    composed = tree(f"{CHAIN} qn {many}", rosenbrock(world(comm)))
    alone = tree(f"-snes_type qn {many}", rosenbrock(world(comm)))
    found, expected = composed.solve(start(6)), alone.solve(start(6))
    assert alone.resets > 0
    assert composed.reason == alone.reason
    assert composed.iteration == alone.iteration
    assert torch.equal(found.x, expected.x)


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("kind", ["additive", "multiplicative", "additiveoptimal"])
def test_any_number_of_ranks_gives_the_same_bits(comm, kind):
    options = (
        "-snes_type qn -snes_max_it 5 -snes_rtol 0 -npc_snes_type composite -npc_snes_composite_sneses nasm,nasm,ngs "
        f"-npc_snes_composite_type {kind} -npc_sub_0_dm_decomposition coarse -npc_sub_dm_subdomains 3 "
        "-npc_sub_sub_snes_max_it 4"
    )
    here = tree(options, rosenbrock(world(comm))).solve(start(6))
    alone = tree(options, rosenbrock(world(comm).alone())).solve(start(6))
    assert torch.equal(here.x, alone.x)
    assert here.f == alone.f


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("kind", ["additive", "multiplicative", "additiveoptimal"])
def test_sharded_vectors_give_the_same_iterates(comm, kind):
    options = (
        f"-snes_type composite -snes_composite_sneses qn,ngs -snes_composite_type {kind} -snes_max_it 4 -snes_rtol 0"
    )
    sharded = ShardedProblem(rosenbrock(world(comm)))
    point = tree(options, sharded).solve(sharded.space.local(start(6)).clone())
    whole = tree(options, rosenbrock(world(comm))).solve(start(6))
    torch.testing.assert_close(sharded.space.gather(point.x), whole.x, rtol=1e-9, atol=1e-9)


def chain(comm, n: int) -> Analytic:
    """A residual chain u_k = u_(k-1) + w_k, fitted at every k: |u - 1|^2 / 2n + |w|^2 / 200, each w_k a layer.

    A constant shift of u over a subdomain is one unknown: its first layer. So these are a coarse space.
    """

    def f(w: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        u = w.cumsum(0)
        return ((u - 1) @ (u - 1)) / (2 * n) + 0.005 * w @ w

    problem = _Chain(world(comm), f, n)
    problem.layers = slices([1] * n)
    return problem


class _Chain(Analytic):
    """On one rank, without autograd."""

    def value_and_gradient(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        n = len(x)
        rest = x.cumsum(0) - 1
        return float(self.f(x, x)), rest.flip(0).cumsum(0).flip(0) / n + 0.01 * x

    def on(self, comm) -> Analytic:
        return self


def test_two_levels_take_the_same_iterations_for_any_number_of_subdomains(comm):
    """A coarse space of first layers and overlapping subdomains; one level slows down with their number."""
    n = 48
    local = "snes_qn_type bfgs -{0}sub_snes_max_it 60 -{0}sub_snes_rtol 1e-10 -snes_rtol 1e-6 -snes_stol 0"
    two = f"{OPTIMAL} nasm,nasm -sub_0_dm_decomposition coarse -sub_1_dm_overlap 1 -sub_sub_{local.format('sub_')}"
    one = f"-snes_type nasm -dm_overlap 1 -sub_{local.format('')}"
    rough = torch.cos(1.7 * torch.arange(n, dtype=torch.float64)) + 0.5
    iterations = {}
    for count in (4, 16):
        for name, options, prefix in (("two", two, "sub_"), ("one", one, "")):
            solver = tree(f"{options} -{prefix}dm_subdomains {count}", chain(comm, n))
            solver.solve(rough)
            assert solver.reason.name == "CONVERGED_FNORM_RELATIVE"
            iterations[name, count] = solver.iteration
    assert max(iterations["two", k] for k in (4, 16)) <= 14
    assert iterations["one", 16] >= 2 * iterations["one", 4]
    assert iterations["one", 16] >= 3 * iterations["two", 16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "needs -snes_composite_sneses"),
        ("-snes_composite_sneses qn,newton", "must be one of newtonls newtontr gn"),
        ("-snes_composite_sneses qn -snes_composite_damping 0.5", "only additive weights"),
        ("-snes_composite_sneses qn,qn -snes_composite_type additive -snes_composite_damping 1", "1 factors for 2"),
    ],
)
def test_what_cannot_be_composed_is_refused(comm, options, message):
    with pytest.raises(UserError, match=message) as caught:
        tree(f"-snes_type composite {options}", quadratic(world(comm)))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, OptionsError) or not options


def test_the_view_shows_all_members_under_their_prefixes(comm):
    solver = tree(f"{OPTIMAL} nasm,qn -sub_1_snes_qn_m 4 -sub_0_sub_snes_type gn", quadratic(world(comm)))
    view = solver.view()
    for line in ("type - ADDITIVEOPTIMAL", "SNES Object: (sub_0_sub_)", "(sub_1_)", "(subspace_)", "subspace size: 4"):
        assert line in view
    assert solver.brief().startswith("composite(additiveoptimal, 2 members) of nasm(additive, 2 layers)")
