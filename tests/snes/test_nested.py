"""A nested iteration that the run ends on its way, and a restart that goes on there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ml2hpc.io.tree import from_image, to_image
from ml2hpc.snes import SNES, After, Point, Reason
from tests.snes.problems import tree
from tests.snes.test_fas import MANY, network, parameters

NESTED = f"-snes_type fas -snes_fas_type nested -dm_levels 3 -snes_fas_smoothing [2,3,{{4}}] {MANY}"
TREES = (
    "-dm_metric function",
    "-dm_metric function -fas_coarse_snes_qn_type ssbroyden -dm_hierarchy samples,depth",
    "-snes_fas_type kaskade -fas_coarse_snes_type torchoptim -fas_coarse_snes_torchoptim_batch 7",
    "-snes_fas_type full -snes_fas_nested_steps 3",
    "-dm_metric function -fas_levels_snes_qn_type ssbroyden",
    "-dm_metric function -fas_levels_snes_qn_restart_type powell -fas_levels_snes_qn_powell_gamma 0.01",
    "-fas_coarse_snes_max_funcs 4",
)


def asked(solver: SNES, end: int) -> list[str]:
    """What it tells when it asks whether to go on, filled while it solves; at question number `end` it hears no."""
    told: list[str] = []

    def ask(solver: SNES, point: Point, text: str, after: After) -> Reason:
        told.append(text)
        return Reason.DIVERGED_SIGNAL if len(told) == end else Reason.CONVERGED_ITERATING

    solver.ask = ask
    return told


def through_a_file(comm: Any, state: dict[str, Any]) -> Any:
    image = to_image(state, "state") if comm.rank == 0 else None
    return from_image(comm.bcast(image), "state")


def test_it_asks_after_every_step_but_a_level_s_last_and_between_levels(comm):
    problem = network(comm, 16)
    solver = tree(f"{NESTED} -snes_max_it 2", problem)
    told = asked(solver, 0)
    solver.solve(parameters(problem))
    steps = [
        f"level {k} of nested iteration, step {j} of {n}" for k, n in ((0, 4), (1, 3), (2, 2)) for j in range(1, n)
    ]
    done = [f"level {k} of nested iteration done" for k in (0, 1)]
    assert told == [*steps[:3], done[0], *steps[3:5], done[1], *steps[5:]]


@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize("more", TREES)
def test_a_restart_from_anywhere_in_it_is_the_straight_run(comm, more):
    """Iterate, work and memory have the same bits, whichever question hears no; a checkpoint has all work in it."""
    problem = network(comm, 16)
    options, x = f"{NESTED} {more} -snes_max_it 3", parameters(problem)
    straight = tree(options, problem)
    questions = asked(straight, 0)
    expected = straight.solve(x)
    assert len(questions) >= 5
    for end in range(1, len(questions) + 1):
        first, second = tree(options, problem), tree(options, problem)
        told = asked(first, end)
        half = first.solve(x)
        assert first.reason == Reason.DIVERGED_SIGNAL and first.iteration == 0 and first.failure == questions[end - 1]
        assert torch.equal(half.x, x)
        state = first.state()
        assert state["work"][1].sum() > 0
        second.load(through_a_file(comm, state))
        rest = asked(second, 0)
        point = second.resume(Point(half.x.clone(), half.f, half.g.clone(), half.g.clone()))
        assert [*told, *rest] == questions
        assert torch.equal(point.x, expected.x) and point.f == expected.f
        assert second.iteration == straight.iteration
        torch.testing.assert_close(
            torch.from_numpy(second.work.counts), torch.from_numpy(straight.work.counts), rtol=1e-13, atol=0
        )


def test_a_new_solve_begins_anew(comm):
    """Wherever an earlier one was ended."""
    problem = network(comm, 16)
    options, x = f"{NESTED} -snes_fas_lift false -snes_max_it 2", parameters(problem)
    expected = tree(options, problem).solve(x)
    for end in (2, 4):  # inside a level, between two
        solver = tree(options, problem)
        asked(solver, end)
        solver.solve(2 * x)
        solver.forget()
        solver.ask = None
        assert torch.equal(solver.solve(x).x, expected.x)
        assert not solver.failure


@pytest.mark.parallel(2)
def test_levels_on_fewer_ranks_are_asked_between_levels_only(comm):
    problem = network(comm, 16)
    solver = tree(f"{NESTED} -dm_coarse_ranks 1 -snes_max_it 1", problem)
    told = asked(solver, 0)
    solver.solve(parameters(problem))
    assert [text for text in told if "done" in text] == [f"level {k} of nested iteration done" for k in (0, 1)]
    assert not [text for text in told if text.startswith("level 0") and "step" in text]


def test_batches_are_not_interrupted(comm):
    problem = network(comm, 16)
    solver = tree(f"{NESTED} -snes_fas_batch 20 -snes_max_it 2", problem)
    told = asked(solver, 1)
    solver.solve(parameters(problem))
    assert told == [] and solver.iteration == 2
