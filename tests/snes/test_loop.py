"""The loop: tests of convergence, preconditioning on both sides, counting, monitors, the tree's options."""

from __future__ import annotations

import pytest
import torch

from ml2hpc.errors import OptionsError, UnsupportedError
from ml2hpc.snes import SNES, Reason
from ml2hpc.snes.nasm import Nasm
from ml2hpc.snes.qn import QuasiNewton
from tests.snes.problems import quadratic, rosenbrock, tree, world


def ones(n: int) -> torch.Tensor:
    return torch.linspace(-1, 1.5, n, dtype=torch.float64)


def subdomain_solvers(solver: SNES) -> list[SNES]:
    assert isinstance(solver.method, Nasm)
    return solver.method._subs


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("-snes_rtol 1e-3", Reason.CONVERGED_FNORM_RELATIVE),
        ("-snes_atol 1e-3 -snes_rtol 0", Reason.CONVERGED_FNORM_ABS),
        ("-snes_stol 0.9 -snes_rtol 0", Reason.CONVERGED_SNORM_RELATIVE),
        ("-snes_max_it 2", Reason.DIVERGED_MAX_IT),
        ("-snes_max_funcs 3", Reason.DIVERGED_FUNCTION_COUNT),
        ("-snes_linesearch_type none -snes_linesearch_damping 1e6 -snes_type nrichardson", Reason.DIVERGED_DTOL),
    ],
)
def test_each_test_gives_its_reason(comm, options, reason):
    solver = tree(options, quadratic(world(comm)))
    solver.solve(ones(8))
    assert solver.reason == reason


def test_a_right_preconditioner_is_applied_before_the_step(comm):
    """With max_it 1 and no step to take after it, the result is the preconditioner's.

    Each has a line search of its own, so neither may learn from steps before.
    """
    options = "-npc_snes_type nrichardson -npc_snes_linesearch_memory 0 -npc_snes_max_it 3 -snes_max_it 1"
    composed = tree(f"-snes_type nrichardson -snes_npc_side right {options}", quadratic(world(comm))).solve(ones(8))
    alone = tree("-snes_type nrichardson -snes_linesearch_memory 0 -snes_max_it 4", quadratic(world(comm))).solve(
        ones(8)
    )
    assert torch.equal(composed.x, alone.x)


def test_a_left_preconditioned_richardson_step_is_the_preconditioner(comm):
    """x + lambda (M(x) - x) with lambda = 1 is M(x)."""
    options = "-npc_snes_type qn -npc_snes_max_it 4 -snes_linesearch_type none -snes_max_it 1"
    composed = tree(f"-snes_type nrichardson {options}", rosenbrock(world(comm))).solve(ones(6))
    alone = tree("-snes_type qn -snes_max_it 4", rosenbrock(world(comm))).solve(ones(6))
    torch.testing.assert_close(composed.x, alone.x, rtol=0, atol=1e-14)


def test_a_preconditioner_that_raises_the_objective_is_rejected(comm):
    options = "-npc_snes_type nrichardson -npc_snes_linesearch_type none -npc_snes_linesearch_damping 1.0"
    solver = tree(f"-snes_type qn {options} -snes_max_it 5 -snes_rtol 0", quadratic(world(comm)))
    point = solver.solve(ones(8))
    plain = tree("-snes_type qn -snes_max_it 5 -snes_rtol 0", quadratic(world(comm))).solve(ones(8))
    assert solver.rejected == 5
    assert torch.equal(point.x, plain.x)


def test_the_lag_skips_preconditioning(comm):
    options = "-npc_snes_type nrichardson -npc_snes_max_it 2 -snes_max_it 6 -snes_rtol 0"
    often = tree(f"-snes_type qn {options}", quadratic(world(comm)))
    seldom = tree(f"-snes_type qn {options} -snes_npc_lag 3", quadratic(world(comm)))
    for solver, times in ((often, 6), (seldom, 2)):
        solver.solve(ones(8))
        assert solver.log.events["SNESNPCSolve (npc_)"].count == times


def test_evaluations_are_counted_as_they_are_made(comm):
    problem = rosenbrock(world(comm))
    solver = tree("-snes_type qn -npc_snes_type nrichardson -npc_snes_max_it 2 -snes_max_it 4", problem)
    solver.solve(ones(6))
    made = solver.work["gradients", "total"] + solver.work["objectives", "total"]
    assert made == problem.evaluations
    assert solver.work["gradients", "path"] == solver.work["gradients", "work"]
    assert solver.npc is not None
    assert solver.work["gradients", "path"] > solver.npc.work["gradients", "path"] > 0


def test_monitor_lines_nest_as_petsc_prints_them(comm, capsys):
    options = "-snes_monitor -npc_snes_monitor -snes_converged_reason -npc_snes_converged_reason -snes_max_it 1"
    solver = tree(f"-snes_type qn -npc_snes_type nrichardson {options}", quadratic(world(comm)))
    start = quadratic(world(comm)).gradient(ones(8)).norm()
    solver.solve(ones(8))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"  0 SNES Function norm {start:14.12e}"
    assert lines[1] == f"    0 SNES Function norm {start:14.12e}"
    assert lines[2].startswith("    1 SNES Function norm ")
    assert lines[3] == "    Nonlinear npc_ solve converged due to CONVERGED_ITS iterations 1"
    assert lines[4].startswith("  1 SNES Function norm ")
    assert lines[5] == "  Nonlinear solve did not converge due to DIVERGED_MAX_IT iterations 1"
    assert len(lines) == 6


def test_a_monitor_with_detail_prints_the_objective(comm, capsys):
    problem = quadratic(world(comm))
    tree("-snes_monitor ::ascii_info_detail -snes_max_it 0", problem).solve(ones(8))
    line = capsys.readouterr().out.splitlines()[0]
    assert line.endswith(f", Update norm {0:14.12e}, Objective {problem.objective(ones(8)):14.12e}")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            "-snes_type nasm -npc_snes_type qn",
            UnsupportedError,
            "nasm cannot use a nonlinear preconditioner; newtonls, newtontr",
        ),
        ("-snes_type torchoptim -npc_snes_type qn -snes_npc_side left", UnsupportedError, "torchoptim supports right"),
        ("-snes_type qn -snes_npc_side right", OptionsError, "there is no -npc_snes_type"),
        (
            "-snes_type qn -snes_npc_lag 2",
            OptionsError,
            "-snes_npc_lag 2: needs a nonlinear precond",
        ),
        ("-snes_type nrichardson -npc_snes_type qn -snes_npc_lag 2", OptionsError, "preconditioner on the right"),
        ("-snes_type qn -snes_qn_type ssbfgs -snes_qn_momentum 0.5", OptionsError, "self-scaling needs steps along"),
        ("-snes_type qm", OptionsError, "-snes_type.*newtonls newtontr .*torchoptim shell"),
        (
            "-snes_type qn -npc_snes_type nasm -npc_snes_error_if_not_converged",
            OptionsError,
            "npc_snes_error_if_not_converged: an inner solver",
        ),
        ("-snes_type qn -npc_snes_typ nasm", OptionsError, "did you mean -.*snes_type"),
        ("-snes_type qn -snes_nasm_damping 0.5", OptionsError, "unknown option -snes_nasm_damping"),
        ("-snes_type nasm -dm_subdomains 5", OptionsError, "-dm_subdomains 5: there are only 4 layers"),
        ("-snes_type nasm -snes_nasm_type multiplicative -dm_decomposition samples", OptionsError, "are additive"),
        ("-snes_type torchoptim -snes_torchoptim_name Adamm", OptionsError, "torch.optim has .*Adam"),
        ("-snes_type torchoptim -snes_torchoptim_arguments {bets: 1}", OptionsError, "bets"),
        ("-snes_type torchoptim -snes_torchoptim_batch 2", OptionsError, "there are 1 samples"),
        ("-snes_monitor binary:x", OptionsError, "-snes_monitor binary:x: expected"),
    ],
)
def test_impossible_trees_are_refused_with_what_is_possible(comm, options, error, message):
    options = options.replace("{bets: 1}", "'{bets: 1}'")
    with pytest.raises(error, match=message):
        tree(options, quadratic(world(comm)))


def test_subdomain_options_reach_all_or_one(comm):
    options = "-snes_type nasm -dm_subdomains 3 -sub_snes_max_it 7 -sub_1_snes_max_it 9"
    solver = tree(options, quadratic(world(comm)))
    assert [sub.options.max_it for sub in subdomain_solvers(solver)] == [7, 9, 7]


def test_defaults_of_the_caller_reach_numbered_children_and_give_way_to_the_user(comm):
    defaults = {"snes_type": "nasm", "dm_subdomains": 2, "sub_snes_max_it": 3, "sub_snes_qn_type": "bfgs"}
    solver = tree("-sub_1_snes_max_it 4", quadratic(world(comm)), **defaults)
    assert [sub.options.max_it for sub in subdomain_solvers(solver)] == [3, 4]
    assert {sub.method.options.type for sub in subdomain_solvers(solver)} == {"bfgs"}


def test_a_failed_search_without_memory_ends_the_solve(comm):
    """With momentum too: a velocity of the failed direction is no memory worth another try."""
    search = (
        "-snes_linesearch_type bt -snes_linesearch_max_it 1 -snes_linesearch_damping 1e6 -snes_linesearch_maxlambda 1e9"
    )
    solver = tree(f"-snes_type qn -snes_qn_momentum 0.9 -snes_max_it 50 {search}", rosenbrock(world(comm)))
    solver.solve(ones(6))
    assert solver.reason == Reason.DIVERGED_LINE_SEARCH
    assert solver.iteration <= 1


def test_periodic_restarts_count_learnt_pairs_not_stored_ones(comm):
    solver = tree(
        "-snes_type qn -snes_qn_m 3 -snes_qn_restart_type periodic -snes_qn_restart 5", rosenbrock(world(comm))
    )
    assert isinstance(solver.method, QuasiNewton)
    seen = []

    def note(s, point, norm, update):
        seen.append(s.method.inverse.pairs)
        return s.reason

    solver.observe = note
    solver.solve(ones(6))
    assert max(seen) == 5
    assert seen.count(5) > 1
