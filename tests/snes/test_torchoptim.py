"""Optimisers of torch on mini-batches: their steps by hand, what an epoch costs, restarts."""

from __future__ import annotations

import pytest
import torch

from tests.snes.problems import least_squares, tree, world

SGD = "-snes_type torchoptim -snes_torchoptim_name SGD -snes_torchoptim_lr 0.05 -snes_torchoptim_batch 5"
MOMENTUM = f"{SGD} -snes_torchoptim_arguments '{{momentum: 0.9}}'"


def start() -> torch.Tensor:
    return torch.linspace(-1, 2, 6, dtype=torch.float64)


@pytest.mark.parametrize(("steps", "expected"), [(0, 3), (1, 1), (7, 7)])
def test_an_iteration_makes_its_steps_each_on_a_batch(comm, steps, expected):
    """x <- x - lr v, v <- 0.9 v + grad L_batch; 12 samples are batches of 5, 5 and 2, in an order drawn anew."""
    problem, x = least_squares(world(comm)), start()
    found = tree(f"{MOMENTUM} -snes_torchoptim_steps {steps} -snes_max_it 2", problem).solve(x)
    generator, v = torch.Generator().manual_seed(0), torch.zeros_like(x)
    for step in (k for _ in range(2) for k in range(expected)):
        if step % 3 == 0:
            order = torch.randperm(12, generator=generator)
        rows = order[step % 3 * 5 :][:5].sort().values
        v = 0.9 * v + problem.sample(rows).gradient(x)
        x = x - 0.05 * v
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-13)
    assert found.f == problem.objective(found.x)


@pytest.mark.parametrize(("steps", "work"), [(0, 2.0), (1, 5 / 12 + 1), (11, 3 + 10 / 12 + 1)])
def test_a_step_costs_its_batch_and_an_iteration_one_evaluation_of_all(comm, steps, work):
    problem = least_squares(world(comm))
    solver = tree(f"{SGD} -snes_torchoptim_steps {steps} -snes_max_it 4", problem)
    solver.solve(start())
    assert solver.work["gradients", "work"] == pytest.approx(1 + 4 * work, rel=1e-14)
    assert problem.evaluations == 5


def test_steps_on_all_samples_are_iterations_without_names(comm):
    """Four steps an iteration end where four iterations do, at the same cost."""
    problem, adam = least_squares(world(comm)), "-snes_type torchoptim -snes_torchoptim_lr 0.1 -snes_max_it"
    a, b = tree(f"{adam} 8", problem), tree(f"{adam} 2 -snes_torchoptim_steps 4", problem)
    assert torch.equal(a.solve(start()).x, b.solve(start()).x)
    assert (a.work.counts == b.work.counts).all()


def test_a_restart_draws_the_batches_of_the_straight_run(comm):
    problem = least_squares(world(comm))
    straight, first, second = (tree(f"{MOMENTUM} -snes_max_it {n}", problem) for n in (6, 2, 6))
    expected, half = straight.solve(start()), first.solve(start())
    second.load(first.state())
    assert torch.equal(second.resume(half).x, expected.x)
