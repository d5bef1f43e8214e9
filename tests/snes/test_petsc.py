"""The type petsc: PETSc's options, budgets, errors, acceptance, work, ranks. The contract is elsewhere."""

from __future__ import annotations

import pytest
import torch

from ml2hpc.errors import OptionsError, UnsupportedError, UserError
from ml2hpc.problem.interface import ShardedProblem
from ml2hpc.snes import Reason
from ml2hpc.vec.petsc import load
from tests.problem.small import alone, pinn
from tests.snes.problems import Analytic, double_well, quadratic, rosenbrock, tree, world

pytest.importorskip("petsc4py")
SNES = "-snes_type petsc -snes_petsc_solver snes"
REGION = f"{SNES} -petsc_snes_type newtontr -petsc_ksp_type cg -petsc_ksp_max_it 10"


def start(n: int = 6) -> torch.Tensor:
    return torch.linspace(0.6, 1.0, n, dtype=torch.float64)


def norms(solver, x) -> list[float]:
    """Solve; return the gradient norms that an observer saw."""
    seen = []

    def observe(solver, point, norm, update):
        seen.append(norm)
        return Reason.CONVERGED_ITERATING

    solver.observe = observe
    solver.solve(x)
    return seen


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize(
    "options",
    ["-petsc_tao_typ lmvm", "-petsc_snes_type qn", "-petsc_tao_lmvm_mat_lmvm_hist_siz 3", "-petsc_ksp_rtol 1"],
)
def test_an_option_that_petsc_does_not_read_is_an_error(comm, options):
    with pytest.raises(OptionsError, match=options.split()[0]):
        tree(f"-snes_type petsc {options}", quadratic(world(comm)))


@pytest.mark.parallel(1, 2)
def test_so_is_one_that_would_print_for_another_solver(comm):
    solver = tree("-snes_type petsc -petsc_snes_view", quadratic(world(comm)))
    with pytest.raises(OptionsError, match="-petsc_snes_view: PETSc's tao lmvm"):
        solver.solve(start(8))


@pytest.mark.parallel(1, 2)
def test_a_type_that_petsc_has_not_is_an_error_in_one_line(comm):
    with pytest.raises(UserError, match=r"^-petsc_tao_type lmvn: Unable to find requested Tao type lmvn$"):
        tree("-snes_type petsc -petsc_tao_type lmvn", quadratic(world(comm)))


def test_a_type_that_needs_more_than_a_problem_has_says_so(comm):
    with pytest.raises(UserError, match="-petsc_snes_type composite: m must be > 0: m = 0"):
        tree(f"{SNES} -petsc_snes_type composite", quadratic(world(comm)))


def test_two_solvers_have_options_of_their_own_and_leave_none_behind(comm):
    three, nine = (
        tree(f"-snes_type petsc -petsc_tao_lmvm_mat_lmvm_hist_size {m} -snes_max_it 12", rosenbrock(world(comm)))
        for m in (1, 9)
    )
    assert norms(three, start())[-1] != norms(nine, start())[-1]
    assert not [name for name in load().Options().getAll() if "tao" in name]


def test_one_option_serves_all_subdomains(comm):
    nasm = "-snes_type nasm -snes_nasm_type multiplicative -dm_subdomains 2 -snes_max_it 2"
    nasm += " -sub_snes_type petsc -sub_snes_max_it 3"
    seen = [
        norms(tree(f"{nasm} {more}", rosenbrock(world(comm))), start())[-1]
        for more in ("-sub_petsc_tao_type ntr", "-sub_0_petsc_tao_type ntr -sub_1_petsc_tao_type ntr", "")
        if more
    ]
    plain = norms(tree(nasm, rosenbrock(world(comm))), start())[-1]
    assert seen[0] == seen[1] != plain


@pytest.mark.parallel(1, 3)
def test_petsc_prints_once_where_each_rank_runs_it_alone(comm, capfd):
    tree(
        "-snes_type petsc -petsc_tao_monitor -petsc_tao_view -snes_petsc_its 4 -snes_max_it 4", quadratic(world(comm))
    ).solve(start(8))
    load().Sys.syncFlush(comm)
    said = capfd.readouterr().out
    assert (said.count("  4 TAO"), said.count("Tao Object:")) == ((1, 1) if comm.rank == 0 else (0, 0))


# ---- iterations, budgets, work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("its", [0, 3, 100])
def test_every_iteration_of_petsc_is_seen(comm, its):
    solver = tree(f"-snes_type petsc -snes_petsc_its {its} -snes_max_it 7", rosenbrock(world(comm)))
    assert len(norms(solver, start())) == 8
    assert (solver.iteration, solver.reason) == (7, Reason.DIVERGED_MAX_IT)


def test_newton_steps_converge_quadratically_with_hessian_actions_counted(comm):
    solver = tree(
        f"{SNES} -petsc_snes_type newtonls -petsc_ksp_rtol 1e-12 -snes_rtol 0 -snes_atol 1e-13 -snes_max_it 30",
        rosenbrock(world(comm)),
    )
    seen = [n for n in norms(solver, start()) if n > 1e-10]
    assert seen[-1] < seen[-2] ** 1.7
    assert solver.work["hessians", "path"] >= 3 * solver.iteration


@pytest.mark.parametrize(
    "options", ["-snes_type petsc", f"{SNES} -petsc_snes_type ngmres", f"{SNES} -petsc_snes_type qn"]
)
def test_work_is_what_was_evaluated(comm, options):
    problem = rosenbrock(world(comm))
    solver = tree(f"{options} -snes_max_it 9", problem)
    solver.solve(start())
    counted = solver.work["gradients", "total"] + solver.work["objectives", "total"]
    assert counted == problem.evaluations


def test_max_funcs_ends_petsc_in_the_middle(comm):
    solver = tree("-snes_type petsc -snes_max_funcs 5", rosenbrock(world(comm)))
    solver.solve(start())
    assert solver.reason == Reason.DIVERGED_FUNCTION_COUNT
    assert 5 <= solver.work["gradients", "path"] <= 7


@pytest.mark.parametrize("options", ["-snes_type petsc", f"{SNES} -petsc_snes_type ngmres -petsc_npc_snes_type ncg"])
def test_the_run_may_end_petsc_after_any_iteration(comm, options):
    solver = tree(options, rosenbrock(world(comm)))
    seen = []

    def observe(solver, point, norm, update):
        seen.append(point.f)
        return Reason.DIVERGED_MAX_TIME if len(seen) == 4 else Reason.CONVERGED_ITERATING

    solver.observe = observe
    point = solver.solve(start())
    assert (solver.reason, len(seen), solver.iteration) == (Reason.DIVERGED_MAX_TIME, 4, 3)
    assert point.f == min(seen[0], seen[-1])


def test_a_tolerance_of_petscs_own_ends_the_solve(comm):
    solver = tree("-snes_type petsc -petsc_tao_gatol 0.1", rosenbrock(world(comm)))
    point = solver.solve(start())
    assert solver.reason == Reason.CONVERGED_FNORM_ABS
    assert 1e-6 < point.g.norm() <= 0.1
    assert solver.solve(point.x).f == point.f
    assert (solver.reason, solver.iteration) == (Reason.CONVERGED_FNORM_ABS, 0)


def test_an_npc_makes_as_many_iterations_as_it_is_told(comm):
    solver = tree(
        "-snes_type nrichardson -npc_snes_type petsc -npc_snes_max_it 4 -snes_max_it 2", rosenbrock(world(comm))
    )
    seen = []

    def observe(solver, point, norm, update):
        seen.append(solver.iteration)
        return Reason.CONVERGED_ITERATING

    assert solver.npc is not None
    solver.npc.observe = observe
    solver.solve(start())
    assert seen[:5] == [0, 1, 2, 3, 4]
    assert solver.npc.reason == Reason.CONVERGED_ITS


# ---- acceptance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["anderson", "ngmres", "newtontrdc"])
def test_petsc_at_the_maximum_is_not_believed(comm, kind):
    problem = double_well(world(comm))
    x = torch.full((4,), 0.2, dtype=torch.float64)
    solver = tree(f"{SNES} -petsc_snes_type {kind} -snes_max_it 200", problem)
    point = solver.solve(x)
    assert point.f <= problem.objective(x)
    v = torch.ones(4, dtype=torch.float64)
    if not torch.equal(point.x, x):
        assert v @ problem.hessian_action(point.x, v) > 0
    else:
        assert solver.reason < 0


def test_a_step_that_rises_is_not_taken(comm):
    problem = quadratic(world(comm))
    solver = tree(f"{SNES} -petsc_snes_type nrichardson -petsc_snes_linesearch_type none -snes_max_it 3", problem)
    point = solver.solve(start(8))
    assert torch.equal(point.x, start(8))
    assert solver.reason < 0


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize("options", ["-snes_type petsc", f"{SNES} -petsc_snes_type ngmres", SNES])
@pytest.mark.parametrize("error", [ValueError("mine"), UserError("theirs")])
def test_an_error_of_the_problem_stays_what_it_is(comm, options, error):
    def f(x, d):
        calls.append(1)
        if len(calls) > 4:
            raise error
        return (x**4).sum() + (x**2).sum()

    calls: list[int] = []
    solver = tree(options, Analytic(world(comm), f, 4))
    with pytest.raises(type(error), match=str(error)):
        solver.solve(start(4))


@pytest.mark.parallel(1, 2)
def test_other_numbers_than_petscs_are_refused(comm):
    problem, _ = pinn(comm=world(comm), dtype=torch.float32)
    with pytest.raises(UnsupportedError, match="-dtype float64"):
        tree("-snes_type petsc", problem)


# ---- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parallel(2, 4)
@pytest.mark.parametrize(
    "options", ["-snes_type petsc", "-snes_type petsc -petsc_tao_type bncg", f"{SNES} -petsc_snes_type ngmres", REGION]
)
def test_bits_do_not_depend_on_ranks(comm, options):
    options += " -snes_max_it 4"
    problem, x = pinn(comm=world(comm))
    single, _ = pinn(comm=alone())
    here, there = tree(options, problem), tree(options, single)
    assert norms(here, x) == norms(there, x)
    assert (here.work.counts == there.work.counts).all()


@pytest.mark.parallel(1, 2, 4)
@pytest.mark.parametrize("options", ["-snes_type petsc", "-snes_type petsc -petsc_tao_type bncg", REGION])
def test_slices_make_one_vector_over_the_ranks(comm, options):
    options += " -snes_max_it 3"
    problem, x = pinn(comm=world(comm))
    sharded = ShardedProblem(problem)
    expected = norms(tree(options, problem), x)
    found = norms(tree(options, sharded), sharded.space.local(x).clone())
    assert found == pytest.approx(expected, rel=1e-6)
