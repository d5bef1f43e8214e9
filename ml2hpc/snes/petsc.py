"""PETSc's own solvers, SNES and TAO, as a solver type; needs petsc4py (jobscripts/petsc.sh).

L, its gradient and its Hessian's actions are PETSc's callbacks. Options of PETSc are written with `petsc_` behind the
solver's prefix; that is the prefix of PETSc's object:

    -snes_type petsc -petsc_tao_type ntr
    -snes_type petsc -snes_petsc_solver snes -petsc_snes_type ngmres -petsc_npc_snes_type ncg

A step is one run of PETSc's solver over at most -snes_petsc_its iterations. Each of them is counted, tested and shown
like any other: ml2hpc's tests and budgets end the run; PETSc's own tolerances are off unless they are set. A step that
ends at a larger L than it began with is not taken. Whole vectors live on each rank alone, and results have the same
bits on any number of ranks; sharded ones are PETSc's over all ranks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc.errors import OptionsError, UserError
from ml2hpc.options import option
from ml2hpc.snes.interface import SNES, Method, Point, Step, Tree
from ml2hpc.snes.reasons import Reason
from ml2hpc.vec import Replicated
from ml2hpc.vec.petsc import Evaluations, check, communicator, load, reading, writing

T = TypeVar("T")

_PRINTS = re.compile(r"(^|_)(monitor|view|converged_reason)(_|$)")
_LATE = re.compile(f"{_PRINTS.pattern}|(^|_)ml2hpc_")  # read when PETSc's solver has run, or while it runs
# PETSc gives the matrix of its lmvm no prefix of the solver's, so that two of them could not be told apart.
_UNPREFIXED = "tao_lmvm_mat_"
_DEFAULTS = {"tao": "lmvm", "snes": "newtonls"}  # PETSc's own
_STOP = {"tao": 8, "snes": 7}  # CONVERGED_USER
# PETSc's own tests passed, which they do only where the user set a tolerance of PETSc's.
_CONVERGED = {
    "snes": {2: Reason.CONVERGED_FNORM_ABS, 3: Reason.CONVERGED_FNORM_RELATIVE, 4: Reason.CONVERGED_SNORM_RELATIVE},
    "tao": {
        3: Reason.CONVERGED_FNORM_ABS,
        4: Reason.CONVERGED_FNORM_RELATIVE,
        5: Reason.CONVERGED_FNORM_RELATIVE,
        6: Reason.CONVERGED_SNORM_RELATIVE,
        7: Reason.CONVERGED_ITS,
    },
}
_NOT_A_NUMBER = -4


@dataclass
class _Run:
    """One run of PETSc's solver: where it began, its last iterate that was a number, and how many were shown."""

    start: Point
    last: Point
    passed: int = 0
    stopped: bool = False  # by a test or a budget
    replayed: int = 0  # iterations to repeat in silence: a restart interrupted the run after them
    work: NDArray[np.float64] | None = None  # counts at the interruption


class Petsc(Method):
    """x <- PETSc's solver (L, x), at most `its` iterations of it; not taken if L rises.

    References
    ----------
    PETSc/TAO Users Manual, ANL-21/39, for the solvers and their options.
    """

    @dataclass(frozen=True)
    class Options:
        """Options `-snes_petsc_*`."""

        # TAO knows that it minimises; SNES stops at any point where the gradient vanishes.
        solver: Literal["tao", "snes"] = option(
            "tao", "family of PETSc's solver, whose type and options are -petsc_tao_type ... or -petsc_snes_type ..."
        )
        # What PETSc's solver learnt is in no checkpoint: a restart repeats the step that it interrupts.
        its: int = option(
            100, "most iterations of PETSc's solver in a step; each step begins it anew; 0 takes all", at_least=0
        )

    name = "petsc"
    title = "PETSc's SNES or TAO (petsc)"
    sides = ("right",)

    def configure(self, solver: SNES) -> None:
        load()
        self._prefix = f"{solver.prefix}petsc_"
        self._given = solver.foreign("petsc_")
        kind = self.options.solver
        self._type = self._given.get(f"{kind}_type") or _DEFAULTS[kind]
        self._who = f"PETSc's {kind} {self._type}"
        self._begun: tuple[Tensor, int] | None = None  # where the step under way began, and iterations shown since
        self._printed = False  # whether options that are read late were checked

    def set_up(self, solver: SNES) -> None:
        check(solver.problem.space)
        evaluations = self._evaluations(solver)
        with self._in_force(solver):
            native, x = self._create(evaluations, 1)
            native.setSolution(x)
            self._guarded(evaluations, native.setUp)
            self._complain([name for name in self._given if not _LATE.search(name) and not self._used(name)])
            native.destroy()

    def begin(self, solver: SNES) -> None:
        self._begun, self.interrupted = None, False

    # The step. ---------------------------------------------------------------------------------------------------

    def step(self, solver: SNES, point: Point) -> Step:
        evaluations = self._evaluations(solver)
        run = self._run(solver, point, evaluations)
        self._begun = (solver.problem.space.gather(run.start.x), run.replayed)
        its = solver.options.max_it - solver.iteration + run.replayed
        with self._in_force(solver), solver.log.event("PETScSolve", solver.label):
            native, x = self._create(evaluations, min(self.options.its or its, its))
            native.setMonitor(lambda *_: self._pass(solver, run, evaluations, native))
            with writing(x) as out:
                out.copy_(run.start.x)
            reason = self._solve(evaluations, native, x)
            self._check_printed(solver)
            native.destroy()
        if not run.stopped:
            self._begun = None
        return self._end(solver, run, reason)

    @staticmethod
    def _evaluations(solver: SNES) -> Evaluations:
        def action(x: Tensor, v: Tensor) -> Tensor:
            solver.work.add("hessians", solver.problem.cost.hessian / solver.unit.hessian)
            with solver.log.event("SNESJacobianEval", solver.label):
                return solver.problem.hessian_action(x, v)

        return Evaluations(solver.problem.space, solver.problem.comm, solver.objective, solver.gradient, action)

    def _run(self, solver: SNES, point: Point, evaluations: Evaluations) -> _Run:
        """Begin at the point, or again where the step began that a restart interrupted. Collective."""
        if not self.interrupted:
            evaluations.remember(point.x, point.f, point.g)
            return _Run(point, point)
        assert self._begun is not None
        self.interrupted = False
        whole, replayed = self._begun
        work = solver.work.counts.copy()
        x = solver.problem.space.local(whole).clone()
        start = solver.point(x, *solver.gradient(x))
        evaluations.remember(start.x, start.f, start.g)
        return _Run(start, start, replayed=replayed, work=work)

    def _create(self, evaluations: Evaluations, its: int) -> tuple[Any, Any]:
        """Return PETSc's solver with its options, and a Vec for x. Collective."""
        petsc = load()
        where = communicator(evaluations.space, evaluations.comm)
        if self.options.solver == "tao":
            native = petsc.TAO().create(where)
            native.setTolerances(gatol=0.0, grtol=0.0, gttol=0.0)
            native.setMaximumIterations(its)
            native.setMaximumFunctionEvaluations(petsc.UNLIMITED)
        else:
            native = petsc.SNES().create(where)
            native.setTolerances(rtol=0.0, atol=0.0, stol=0.0, max_it=its)
            native.setMaxFunctionEvaluations(petsc.UNLIMITED)
            native.setDivergenceTolerance(petsc.UNLIMITED)
        native.setOptionsPrefix(self._prefix)
        x = evaluations.attach(native)
        self._guarded(evaluations, native.setFromOptions)
        return native, x

    def _solve(self, evaluations: Evaluations, native: Any, x: Any) -> int:
        """Run PETSc's solver; return its reason. Collective."""
        try:
            native.solve(*((x,) if self.options.solver == "tao" else (None, x)))
        except load().Error as error:
            if evaluations.error is None and not evaluations.finite:
                return _NOT_A_NUMBER
            self._explain(evaluations, error)
        return int(native.getConvergedReason())

    def _pass(self, solver: SNES, run: _Run, evaluations: Evaluations, native: Any) -> None:
        """Show an iterate of PETSc's; end its run where a test or a budget says so. Collective."""
        number = native.getIterationNumber()
        if number <= run.passed:  # the start
            return
        run.passed = number
        with evaluations.watched():
            x = reading(native.getSolution()).clone()
            new = solver.point(x, *evaluations.value_and_gradient(x))
            if number <= run.replayed:
                run.last = new
                if number == run.replayed:
                    solver.work.counts[:] = run.work
                return
            assert self._begun is not None
            self._begun = (self._begun[0], number)
            goes_on = solver.passed(new, run.last)
        if new.finite:
            run.last = new
        if not goes_on:
            run.stopped = True
            native.setConvergedReason(_STOP[self.options.solver])

    def _end(self, solver: SNES, run: _Run, reason: int) -> Step:
        """Return PETSc's last iterate, or the start where L is larger there. Collective if sharded."""
        start, last = run.start, run.last
        if last.f > start.f:
            if solver.reason < 0:  # a budget ended the run on its way
                return Step(start, reported=True)
            return Step(start, f"{self._who} ended at a larger objective, {last.f:g}: the step is not taken")
        if run.stopped or solver.problem.space.norm(last.x - start.x) > 0.0:
            if not run.stopped and reason in _CONVERGED[self.options.solver]:
                solver.reason = _CONVERGED[self.options.solver][reason]
            return Step(last, reported=True)
        if reason in _CONVERGED[self.options.solver]:
            solver.reason = _CONVERGED[self.options.solver][reason]
            return Step(start, reported=True)
        if reason == _NOT_A_NUMBER:
            return Step.broken(start, self._who)
        return Step(start, f"{self._who} found no smaller objective ({self._name_of(reason)})")

    def _name_of(self, reason: int) -> str:
        petsc = load()
        names = vars((petsc.TAO if self.options.solver == "tao" else petsc.SNES).ConvergedReason)
        return next((name for name, value in names.items() if value == reason and "VERGED" in name), str(reason))

    # PETSc's options database and errors. ------------------------------------------------------------------------

    def _full(self, name: str) -> list[str]:
        return [self._prefix + name, *([name] if name.startswith(_UNPREFIXED) else [])]

    def _used(self, name: str) -> bool:
        return any(load().Options().used(full) for full in self._full(name))

    @contextmanager
    def _in_force(self, solver: SNES) -> Iterator[None]:
        """Put the options in PETSc's database for a while: another solver of the same name may have others."""
        database = load().Options()
        # Where each rank runs PETSc alone, one of them prints.
        silent = isinstance(solver.problem.space, Replicated) and solver.problem.comm.rank != 0
        given = {n: v for n, v in self._given.items() if not (silent and _PRINTS.search(n))}
        names = [(full, value) for name, value in given.items() for full in self._full(name)]
        for full, value in names:
            database.setValue(full, value or None)
        try:
            yield
        finally:
            for full, _ in names:
                database.delValue(full)

    def _check_printed(self, solver: SNES) -> None:
        """Complain about options that the first run did not read either. Collective at the first run."""
        if self._printed:
            return
        self._printed = True
        error: Exception | None = None
        if solver.problem.comm.rank == 0:
            try:
                self._complain([name for name in self._given if not self._used(name)])
            except OptionsError as caught:
                error = caught
        solver.problem.comm.agree(error)

    def _complain(self, left: list[str]) -> None:
        if left:
            names = ", ".join(f"-{self._prefix}{name}" for name in left)
            raise OptionsError(f"unknown option {names}: {self._who} does not read it")

    def _guarded(self, evaluations: Evaluations, call: Callable[[], T]) -> T:
        """Call PETSc; an error of PETSc's is the user's, a callback's stays what it was."""
        try:
            return call()
        except load().Error as error:
            self._explain(evaluations, error)

    def _explain(self, evaluations: Evaluations, error: Exception) -> NoReturn:
        cause: BaseException | None = evaluations.error or error
        while isinstance(cause, load().Error):
            cause = cause.__cause__
        if cause is not None:
            raise cause
        told = re.sub(r"^\[\d+\] ", "", str(error).splitlines()[-1])
        raise UserError(f"-{self._prefix}{self.options.solver}_type {self._type}: {told}") from error

    # State and views. --------------------------------------------------------------------------------------------

    def state(self, solver: SNES) -> Tree:
        if self._begun is None:
            return {}
        start, passed = self._begun
        return {"start": start.cpu().numpy(), "passed": passed}

    def load(self, solver: SNES, state: Tree) -> None:
        self._begun = None
        if state:
            self._begun = (torch.from_numpy(np.array(state["start"])), int(state["passed"]))

    def resume(self, solver: SNES, point: Point) -> None:
        self.interrupted = self._begun is not None

    def brief(self) -> str:
        return f"petsc({self.options.solver} {self._type})"

    def view(self) -> list[str]:
        its = f"at most {self.options.its}" if self.options.its else "all"
        return [f"{self._who}, {its} iterations in a step, options prefix {self._prefix}"]
