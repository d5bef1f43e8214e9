"""ml2hpc inside PETSc programs: attached problems, PETSc's own problems, trees as solvers and as right NPCs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ml2hpc.errors import OptionsError, UnsupportedError, UserError
from ml2hpc.petsc import attach, load, reading, writing
from ml2hpc.problem.interface import ShardedProblem
from tests.problem.small import alone, pinn
from tests.snes.problems import Analytic, quadratic, rosenbrock, tree, world

pytest.importorskip("petsc4py")
PYTHON = "snes_type python -{0}snes_python_type ml2hpc.petsc.SNES"
OUTER = "-" + PYTHON.format("")
NPC = "-npc_" + PYTHON.format("npc_")


@pytest.fixture(autouse=True)
def _clean_database():
    """PETSc's options belong to the process."""
    yield
    clear()


def clear() -> None:
    for name in load().Options().getAll():
        if name != "vec_mdot_use_gemv":  # of load
            load().Options().delValue(name)


def program(options: str, comm, problem=None):
    """Return a PETSc SNES with options, and a Vec for x; the problem attached if there is one."""
    load().Options().insertString(options)
    snes = load().SNES().create(comm)
    x = attach(snes, problem) if problem is not None else own(snes, comm)
    snes.setFromOptions()
    return snes, x


def own(snes, comm, n: int = 10):
    """A PETSc program without ml2hpc: sum of x^4 / 4 + x^2 / 2 - k x over the unknowns k; return a Vec of ones."""

    def function(snes, x, f):
        low, high = x.getOwnershipRange()
        v = x.array_r
        f.setArray(v**3 + v - np.arange(low, high))

    def objective(snes, x):
        low, high = x.getOwnershipRange()
        v = x.array_r
        return float(comm.allreduce(float((v**4 / 4 + v**2 / 2 - np.arange(low, high) * v).sum())))

    def jacobian(snes, x, j, p):
        low, _ = x.getOwnershipRange()
        for k, v in enumerate(x.array_r):
            j.setValue(low + k, low + k, 3 * v**2 + 1)
        j.assemble()

    x = load().Vec().createMPI(n, comm=comm)
    matrix = load().Mat().createAIJ((x.getSizes(), x.getSizes()), nnz=1, comm=comm)
    matrix.setUp()
    x.set(1.0)
    snes.setFunction(function, x.duplicate())
    snes.setObjective(objective)
    snes.setJacobian(jacobian, matrix)
    return x


def set_to(x, values: torch.Tensor) -> None:
    low, high = x.getOwnershipRange()
    with writing(x) as out:
        out.copy_(values[low:high])


def solve(snes, x) -> list[float]:
    """Solve; return the history of norms."""
    snes.setConvergenceHistory()
    snes.solve(None, x)
    return [float(norm) for norm in snes.getConvergenceHistory()[0]]


def start(n: int = 6) -> torch.Tensor:
    return torch.linspace(0.6, 1.0, n, dtype=torch.float64)


def cause(failure) -> BaseException:
    """The error below PETSc's."""
    error = failure.value
    while isinstance(error, load().Error):
        error = error.__cause__
    return error


# ---- attached problems -----------------------------------------------------------------------------------------------


@pytest.mark.parallel(1, 2, 4)
@pytest.mark.parametrize("sharded", [False, True])
def test_petsc_solves_an_attached_problem(comm, sharded):
    problem, x0 = pinn(comm=world(comm))
    tao = load().TAO().create(comm)
    x = attach(tao, ShardedProblem(problem) if sharded else problem)
    assert x.getSize() == problem.space.n
    set_to(x, x0)
    tao.setType("lmvm")
    tao.setMaximumIterations(5)
    tao.solve(x)
    expected = tree("-snes_type petsc -snes_max_it 5", problem).solve(x0)
    assert tao.getObjectiveValue() == pytest.approx(expected.f, rel=1e-8)


@pytest.mark.parallel(2, 4)
def test_a_solver_on_one_rank_has_whole_vectors(comm):
    snes = load().SNES().create(load().COMM_SELF)
    assert attach(snes, quadratic(world(comm))).getSize() == attach(snes, quadratic(world(comm))).getLocalSize() == 8


@pytest.mark.parallel(2, 4)
def test_a_problem_on_other_ranks_is_refused(comm):
    problem, _ = pinn(comm=alone())
    with pytest.raises(UserError, match="the problem on 1"):
        attach(load().SNES().create(comm), problem)


def test_float32_is_refused(comm):
    problem, _ = pinn(comm=alone(), dtype=torch.float32)
    with pytest.raises(UnsupportedError, match="-dtype float64"):
        attach(load().SNES().create(comm), problem)


# ---- a tree as the solver --------------------------------------------------------------------------------------------


@pytest.mark.parallel(1, 2, 4)
@pytest.mark.parametrize(
    "options",
    ["-{0}snes_type qn", "-{0}snes_type qn -{0}npc_snes_type nasm -{0}npc_dm_subdomains 2 -{0}npc_sub_snes_max_it 3"],
)
def test_a_tree_in_petsc_is_the_tree_bit_by_bit(comm, options):
    problem, x0 = pinn(comm=world(comm))
    seen = []

    def observe(solver, point, norm, update):
        seen.append(norm)
        return solver.reason

    alone = tree(options.format("") + " -snes_max_it 6", problem)
    alone.observe = observe
    expected = alone.solve(x0)
    snes, x = program(f"{OUTER} {options.format('ml2hpc_')} -snes_max_it 6", comm, problem)
    set_to(x, x0)
    assert solve(snes, x) == seen
    low, high = x.getOwnershipRange()
    assert torch.equal(reading(x), expected.x[low:high])
    assert torch.equal(reading(snes.getFunction()[0]), expected.g[low:high])
    assert (snes.getIterationNumber(), snes.getConvergedReason()) == (6, load().SNES.ConvergedReason.DIVERGED_MAX_IT)


@pytest.mark.parallel(1, 2, 4)
@pytest.mark.parametrize(
    "kind", ["qn", "nrichardson", "nasm -ml2hpc_snes_nasm_type multiplicative -ml2hpc_dm_decomposition blocks"]
)
def test_a_tree_solves_a_petsc_program(comm, kind):
    snes, x = program(f"{OUTER} -ml2hpc_snes_type {kind} -snes_rtol 1e-8 -snes_stol 0 -snes_max_it 500", comm)
    history = solve(snes, x)
    assert snes.getConvergedReason() == load().SNES.ConvergedReason.CONVERGED_FNORM_RELATIVE
    assert history[-1] <= 1e-8 * history[0]
    low, high = x.getOwnershipRange()
    roots = reading(x)
    assert torch.allclose(roots**3 + roots, torch.arange(low, high, dtype=torch.float64), atol=1e-5)


@pytest.mark.parallel(1, 2)
def test_a_right_hand_side_shifts_the_problem(comm):
    for problem in (None, Analytic(world(comm), lambda x, d: (x**4 / 4 + x**2 / 2).sum(), 10)):
        snes, x = program(f"{OUTER} -ml2hpc_snes_type qn -snes_rtol 1e-10", comm, problem)
        x.set(1.0)
        b, f = x.duplicate(), x.duplicate()
        b.set(2.0)
        snes.solve(b, x)
        assert snes.getFunction()[0].norm() < 1e-7
        low, high = x.getOwnershipRange()
        f = reading(x) ** 3 + reading(x) - (torch.arange(low, high, dtype=torch.float64) if problem is None else 0)
        assert torch.allclose(f, torch.full_like(f, 2.0), atol=1e-7)


# ---- a tree as right NPC ---------------------------------------------------------------------------------------------


@pytest.mark.parallel(1, 2, 4)
@pytest.mark.parametrize("attached", [True, False])
def test_as_npc_it_is_what_petscs_own_richardson_is(comm, attached):
    """x - 0.05 F(x), by PETSc and by the tree: NGMRES makes the same iterates, so the residual left is the new one."""

    def problem():
        return Analytic(world(comm), lambda x, d: (x**4 / 4 + x**2 / 2 - x).sum(), 10) if attached else None

    outer = "-snes_type ngmres -snes_max_it 6 -snes_rtol 0 -snes_stol 0"
    theirs, x = program(
        f"{outer} -npc_snes_type nrichardson -npc_snes_linesearch_type none -npc_snes_linesearch_damping 0.05",
        comm,
        problem(),
    )
    x.set(0.3)
    expected = solve(theirs, x)
    clear()
    tree_options = "-npc_ml2hpc_snes_type nrichardson -npc_ml2hpc_snes_linesearch_type none"
    tree_options += " -npc_ml2hpc_snes_linesearch_damping 0.05"
    ours, x = program(f"{outer} {NPC} {tree_options}", comm, problem())
    x.set(0.3)
    found = solve(ours, x)
    assert len(found) == len(expected) == 7
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parallel(1, 4)
def test_the_residual_is_fresh_at_every_iterate(comm):
    problem, x0 = pinn(comm=world(comm))
    options = f"-snes_type ngmres {NPC} -snes_max_it 4 -npc_snes_max_it 2 -npc_ml2hpc_snes_type qn"
    snes, x = program(
        f"{options} -npc_ml2hpc_npc_snes_type nasm -npc_ml2hpc_npc_dm_subdomains 2 -npc_ml2hpc_npc_sub_snes_max_it 2",
        comm,
        problem,
    )
    set_to(x, x0)
    true, told = [], []

    def monitor(snes, it, norm):
        f = x.duplicate()
        snes.computeFunction(snes.getSolution(), f)
        true.append(f.norm())
        told.append(norm)

    snes.setMonitor(monitor)
    snes.solve(None, x)
    assert len(told) == 5
    assert told == pytest.approx(true, rel=1e-12)
    assert told[-1] < 0.5 * told[0]
    assert snes.getNPC().getConvergedReason() == load().SNES.ConvergedReason.CONVERGED_ITS


def test_an_npc_that_finds_no_smaller_objective_does_not_end_the_outer_solve(comm):
    """A step of a rising Richardson is not taken: for an NPC that is no failure."""
    rising = "-npc_ml2hpc_snes_type petsc -npc_ml2hpc_snes_petsc_solver snes -npc_ml2hpc_petsc_snes_type nrichardson"
    options = f"-snes_type nrichardson {NPC} {rising} -npc_ml2hpc_petsc_snes_linesearch_type none -snes_max_it 1"
    snes, x = program(options, comm, quadratic(world(comm)))
    x.set(1.0)
    snes.solve(None, x)
    assert snes.getNPC().getConvergedReason() == load().SNES.ConvergedReason.CONVERGED_ITS
    assert torch.equal(reading(x), torch.ones(8, dtype=torch.float64))


def test_nothing_is_evaluated_twice(comm):
    problem = rosenbrock(world(comm))
    snes, x = program(f"{OUTER} -ml2hpc_snes_type qn -snes_max_it 5", comm, problem)
    set_to(x, start())
    snes.solve(None, x)
    inside = problem.evaluations
    problem.evaluations = 0
    expected = tree("-snes_type qn -snes_max_it 5", problem)
    expected.solve(start())
    assert inside == problem.evaluations
    snes.computeFunction(x, x.duplicate())  # an outer solver asks for it next
    assert problem.evaluations == inside


def test_a_tree_in_petsc_in_a_tree(comm):
    options = (
        "-snes_type petsc -snes_petsc_solver snes -petsc_snes_type ngmres -petsc_npc_snes_type python "
        "-petsc_npc_snes_python_type ml2hpc.petsc.SNES -petsc_npc_ml2hpc_snes_type qn -petsc_npc_ml2hpc_snes_max_it 3"
    )
    problem = rosenbrock(world(comm))
    solver = tree(f"{options} -snes_rtol 1e-6", problem)
    solver.solve(start())
    assert solver.reason > 0
    assert solver.work["gradients", "total"] + solver.work["objectives", "total"] == problem.evaluations


# ---- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        (f"{OUTER} -ml2hpc_snes_typ qn", OptionsError, "did you mean -ml2hpc_snes_type"),
        (f"{OUTER} -ml2hpc_snes_type nix", OptionsError, "ml2hpc_snes_type"),
        (f"{OUTER} -ml2hpc_snes_type nasm -ml2hpc_dm_subdomains 40", OptionsError, "ml2hpc_dm_subdomains"),
    ],
)
def test_wrong_options_of_the_tree_are_errors(comm, options, kind, told):
    snes, x = program(options, comm, quadratic(world(comm)))
    with pytest.raises(load().Error) as failure:
        snes.solve(None, x)
    assert isinstance(cause(failure), kind)
    assert told in str(cause(failure))


def test_an_npc_of_the_python_solver_is_refused(comm):
    snes, x = program(OUTER, comm, quadratic(world(comm)))
    snes.getNPC().setType("nrichardson")
    with pytest.raises(load().Error) as failure:
        snes.solve(None, x)
    assert "the tree has its own, -ml2hpc_npc_snes_type" in str(cause(failure))


@pytest.mark.parallel(1, 2)
def test_a_program_without_objective_or_jacobian_is_told(comm):
    x = load().Vec().createMPI(4, comm=comm)
    for kind, told in (("qn", "setObjective"), ("petsc -ml2hpc_petsc_tao_type ntr", "setJacobian")):
        load().Options().insertString(f"{OUTER} -ml2hpc_snes_type {kind}")
        snes = load().SNES().create(comm)
        snes.setFunction(lambda snes, x, f: x.copy(f), x.duplicate())
        if kind != "qn":
            snes.setObjective(lambda snes, x: 0.5 * x.norm() ** 2)
        snes.setFromOptions()
        x.set(1.0)
        with pytest.raises(load().Error) as failure:
            snes.solve(None, x)
        assert told in str(cause(failure))
        x = load().Vec().createMPI(4, comm=comm)  # PETSc leaves the other one locked


def test_the_view_shows_the_tree(comm, capfd):
    options = (
        f"-snes_type ngmres {NPC} -npc_ml2hpc_snes_type nasm -npc_ml2hpc_dm_subdomains 2 -snes_view -snes_max_it 1"
    )
    snes, x = program(options, comm, rosenbrock(world(comm)))
    set_to(x, start())
    snes.solve(None, x)
    said = capfd.readouterr().out
    assert "tree of ml2hpc:" in said
    assert "SNES Object: (npc_ml2hpc_) 1 MPI process" in said
    assert "\n          1: layers 1-2, 4 unknowns, 100% of a gradient\n" in said
