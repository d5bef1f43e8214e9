"""What every solver type has to do: solve, stay, stop, restart, mind its options, refuse bad input.

The checks take a tree, or an option with its change, so that they can be called for any type from anywhere: `CHECKS`
are those that take a tree.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from ml2hpc.errors import UserError
from ml2hpc.io.tree import from_image, to_image
from ml2hpc.options import Database
from ml2hpc.snes import TYPES, Reason, create
from ml2hpc.snes.interface import Point
from tests.snes.contracts import CHANGES, TREES, needs
from tests.snes.problems import (
    Analytic,
    double_well,
    least_squares,
    quadratic,
    rosenbrock,
    tree,
    world,
)

COMMON = "-snes_stol 0 -snes_max_funcs 100000"
EVERY_TREE = pytest.mark.parametrize("case", [pytest.param(t, id=name, marks=needs(name)) for name, t in TREES.items()])
EVERY_OPTION = [
    pytest.param(kind, option, *change, id=f"{kind}-{option}", marks=needs(kind))
    for kind, options in CHANGES.items()
    for option, change in options.items()
    if (kind, option) != ("shell", "step")
]


def start(n: int = 8) -> torch.Tensor:
    return torch.linspace(-1.0, 1.5, n, dtype=torch.float64)


def test_every_type_has_a_tree_here():
    named = {options.split()[1] for options, _, _ in TREES.values()}
    assert named == set(TYPES)


@pytest.mark.parallel(1, 3)
@EVERY_TREE
def test_solves_a_quadratic(comm, case):
    options, iterations, factor = case
    solver = tree(f"{options} {COMMON} -snes_rtol {factor} -snes_max_it {iterations}", quadratic(world(comm)))
    point = solver.solve(start())
    assert solver.reason == Reason.CONVERGED_FNORM_RELATIVE, solver.failure
    assert point.g.norm() <= factor * quadratic(world(comm)).gradient(start()).norm()


@EVERY_TREE
def test_a_stationary_point_stays(comm, case):
    solver = tree(case[0], quadratic(world(comm)))
    point = solver.solve(torch.zeros(8, dtype=torch.float64))
    assert solver.reason == Reason.CONVERGED_FNORM_ABS
    assert solver.iteration == 0
    assert torch.equal(point.x, torch.zeros(8, dtype=torch.float64))


@EVERY_TREE
def test_no_iterations_return_the_start(comm, case):
    solver = tree(f"{case[0]} -snes_max_it 0", quadratic(world(comm)))
    point = solver.solve(start())
    assert solver.reason == Reason.DIVERGED_MAX_IT
    assert torch.equal(point.x, start())


@EVERY_TREE
def test_a_nonconvex_solve_ends_below_its_start_and_at_no_maximum(comm, case):
    problem = double_well(world(comm))
    x = torch.full((4,), 0.2, dtype=torch.float64)
    solver = tree(f"{case[0]} -snes_max_it 300", problem)
    point = solver.solve(x)
    assert point.f < problem.objective(x) - 1.0
    # At the maximum every curvature is negative; at a minimum found to some accuracy it is not.
    v = torch.ones(4, dtype=torch.float64)
    assert v @ problem.hessian_action(point.x, v) > 0


@pytest.mark.parallel(1, 2)
@EVERY_TREE
def test_a_restarted_solve_goes_on_bitwise(comm, case):
    options = f"{case[0]} {COMMON} -snes_rtol 0"
    straight = tree(f"{options} -snes_max_it 6", rosenbrock(world(comm)))
    x = torch.linspace(0.6, 1.0, 6, dtype=torch.float64)
    expected = straight.solve(x)

    first = tree(f"{options} -snes_max_it 3", rosenbrock(world(comm)))
    half = first.solve(x)
    state = first.state()
    image = to_image(state, "state") if comm.rank == 0 else None
    loaded = from_image(comm.bcast(image), "state")
    second = tree(f"{options} -snes_max_it 6", rosenbrock(world(comm)))
    second.load(loaded)
    g = half.g.clone()
    point = second.resume(Point(half.x.clone(), half.f, g, g if half.r is half.g else half.r.clone()))
    assert second.iteration == straight.iteration
    assert torch.equal(point.x, expected.x)
    assert point.f == expected.f
    # A solve that had ended tries its last step again.
    assert first.failure or (second.work.counts == straight.work.counts).all()


@EVERY_TREE
def test_not_a_number_at_the_start_is_a_reason(comm, case):
    def nan(x, d):
        return x * float("nan")

    solver = tree(case[0], Analytic(world(comm), lambda x, d: nan(x, d).sum(), 4, residual=nan))
    solver.solve(torch.ones(4, dtype=torch.float64))
    assert solver.reason == Reason.DIVERGED_OBJECTIVE_NANORINF


@EVERY_TREE
def test_a_cliff_of_not_a_number_leaves_the_last_good_point(comm, case):
    """log(x) is no number beyond the cliff: searches back off, others end with a reason and the point before."""

    def f(x, d):
        return x - 3 * torch.log(x) - 50 * torch.sqrt(2.2 - x)

    problem = Analytic(world(comm), lambda x, d: f(x, d).sum(), 4, residual=lambda x, d: torch.sqrt(f(x, d) + 100))
    solver = tree(f"{case[0]} -snes_max_it 50", problem)
    point = solver.solve(torch.full((4,), 2.0, dtype=torch.float64))
    assert solver.reason != Reason.CONVERGED_ITERATING
    assert point.finite
    assert problem.objective(point.x) == point.f


@EVERY_TREE
def test_wrong_starts_are_refused(comm, case):
    solver = tree(case[0], quadratic(world(comm)))
    with pytest.raises(UserError, match=r"shape \(8,\)"):
        solver.solve(torch.zeros(7, dtype=torch.float64))
    with pytest.raises(UserError, match="float64"):
        solver.solve(torch.zeros(8, dtype=torch.float32))


def test_every_option_of_every_type_is_tried():
    tried = {kind: set(options) for kind, options in CHANGES.items()}
    assert tried == {name: {f.name for f in fields(kind.Options)} for name, kind in TYPES.items()}


@pytest.mark.parametrize(("kind", "option", "base", "value"), EVERY_OPTION)
def test_an_option_away_from_its_default_changes_the_result(comm, kind, option, base, value):
    stem = TYPES[kind].stem if kind in TYPES else kind
    changed = f"{base} {value}" if base.endswith(f"_{option}") else f"{base} -snes_{stem}_{option} {value}"
    base = base.rsplit(" ", 1)[0] if base.endswith(f"_{option}") else base

    def end(options: str) -> torch.Tensor:
        solver = tree(f"-snes_max_it 12 {options}", least_squares(world(comm)))
        return solver.solve(torch.linspace(-1, 2, 6, dtype=torch.float64)).x

    assert not torch.equal(end(base), end(changed))


@EVERY_TREE
def test_help_and_view_mention_the_type_and_all_its_options(comm, case):
    options = case[0]
    database = Database.from_string(options)
    solver = create(database)
    solver.set_up(quadratic(world(comm)))
    text = database.help_text()
    for field in fields(solver.method.Options):
        assert f"-snes_{solver.method.stem}_{field.name} <now " in text
    view = solver.view()
    assert view.startswith("SNES Object: 1 MPI process\n  type: " + solver.method.name)
    assert (solver.npc is None) == ("(npc_)" not in view)


CHECKS = (
    test_solves_a_quadratic,
    test_a_stationary_point_stays,
    test_no_iterations_return_the_start,
    test_a_nonconvex_solve_ends_below_its_start_and_at_no_maximum,
    test_a_restarted_solve_goes_on_bitwise,
    test_not_a_number_at_the_start_is_a_reason,
    test_a_cliff_of_not_a_number_leaves_the_last_good_point,
    test_wrong_starts_are_refused,
    test_help_and_view_mention_the_type_and_all_its_options,
)
