"""ml2hpc inside a PETSc program: problems that PETSc solves, and solver trees that PETSc runs.

attach(snes, problem)       makes a PETSc SNES or Tao minimise an ml2hpc Problem
SNES                        a PETSc SNES of type python that runs a tree of ml2hpc, alone or as a right NPC:

    -npc_snes_type python -npc_snes_python_type ml2hpc.petsc.SNES -npc_ml2hpc_snes_type nasm -npc_ml2hpc_dm_subdomains 4

The tree's options come from PETSc's database, with `ml2hpc_` behind the prefix of the PETSc solver. What the tree
minimises is the Problem that `attach` left in the application context, which preconditioners inherit; else PETSc's own
objective, with its function as the gradient and its Jacobian as the Hessian (`PetscProblem`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.errors import UnsupportedError, UserError
from ml2hpc.log import Log
from ml2hpc.options import Database
from ml2hpc.problem.interface import Cost, Problem, ShardedProblem
from ml2hpc.snes import Point, Reason, create, interface
from ml2hpc.vec import Replicated
from ml2hpc.vec.petsc import Evaluations, Owned, load, reading, share, writing

__all__ = ["SNES", "PetscProblem", "attach", "load", "reading", "share", "writing"]

_UNBOUNDED = 10**9
# What PETSc has no name for is the program's own stop.
_USER = -12


class Attached(Evaluations):
    """A Problem as PETSc sees it: slices of its vectors where the PETSc solver lives on several ranks.

    Attributes
    ----------
    problem
        The Problem, on whole vectors if it came with them.
    """

    def __init__(self, problem: Problem, ranks: int) -> None:
        self.problem = problem
        self.seen = problem
        if ranks > 1 and isinstance(problem.space, Replicated):
            self.seen = ShardedProblem(problem)
        if ranks != problem.comm.size and (ranks > 1 or not isinstance(problem.space, Replicated)):
            raise UserError(
                f"the PETSc solver lives on {ranks} ranks, the problem on {problem.comm.size}: create it on the "
                f"problem's communicator, or on COMM_SELF for a problem with whole vectors"
            )
        seen = self.seen
        super().__init__(seen.space, seen.comm, seen.objective, seen.value_and_gradient, seen.hessian_action)

    def whole(self, x: Tensor) -> Tensor:
        """Return a vector of the problem from the slice that PETSc has. Collective if sliced."""
        return x if self.seen is self.problem else self.space.gather(x)

    def part(self, x: Tensor) -> Tensor:
        """Return what PETSc has of a vector of the problem. Not collective."""
        return x if self.seen is self.problem else self.space.local(x)


def attach(native: Any, problem: Problem) -> Any:
    """Make a PETSc SNES or Tao minimise a Problem; return a zero Vec for x. Collective on the solver's ranks.

    Objective, gradient, the Hessian's action and the application context are set. A solver on several ranks has slices
    of the vectors, and its inner products are PETSc's; one on COMM_SELF has whole ones.

    Raises
    ------
    UserError
        If the solver lives on other ranks than the problem, or the vectors are not float64 on the host.
    """
    attached = Attached(problem, native.getComm().size)
    x = attached.attach(native)
    native.setApplicationContext(attached) if isinstance(native, load().SNES) else native.setAppCtx(attached)
    return x


class PetscProblem(Problem):
    """What a PETSc SNES minimises: its objective less <b, x>, with its function as the gradient.

    Parameters
    ----------
    snes
        The PETSc SNES, with setObjective and setFunction; with setJacobian for methods that need Hessian actions.
    x
        A Vec of its unknowns, for their layout.
    """

    samples = 1

    def __init__(self, snes: Any, x: Any, comm: Communicator) -> None:
        self.snes = snes
        self.comm = comm
        self.space = Owned(comm, [int(n) for n in torch.tensor(x.getOwnershipRanges()).diff()])
        self.layers = self.tensors = (slice(0, self.space.n),)
        self._x, self._out = x.duplicate(), x.duplicate()
        self._jacobian_at: Tensor | None = None

    def _at(self, x: Tensor) -> Any:
        with writing(self._x) as values:
            values.copy_(x)
        return self._x

    def objective(self, x: Tensor) -> float:
        try:
            return float(self.snes.computeObjective(self._at(x)))  # PETSc subtracts <b, x>
        except load().Error as error:
            if "SNESSetObjective" not in str(error):
                raise
            raise UserError(
                "ml2hpc minimises: give the PETSc SNES an objective (setObjective) besides its function"
            ) from error

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        self.snes.computeFunction(self._at(x), self._out)  # PETSc subtracts b
        gradient = reading(self._out).clone()
        return self.objective(x), gradient

    def hessian_action(self, x: Tensor, v: Tensor) -> Tensor:
        matrix, preconditioner = self.snes.getJacobian()[:2]
        if not matrix:
            raise UnsupportedError("the PETSc SNES has no Jacobian for Hessian actions: setJacobian, or use qn")
        changed = self._jacobian_at is None or not torch.equal(self._jacobian_at, x)
        if self.comm.largest(torch.tensor([float(changed)]).numpy())[0]:  # together: PETSc's callback is collective
            self.snes.computeJacobian(self._at(x), matrix, preconditioner)
            self._jacobian_at = x.clone()
        matrix.mult(self._at(v), self._out)
        return reading(self._out).clone()

    @property
    def cost(self) -> Cost:
        """Return nominal costs: PETSc does not know those of the program's functions."""
        return Cost(1.0, 3.0)

    def on(self, comm: Communicator) -> Problem:
        if comm.size == self.comm.size:
            return self
        raise UnsupportedError("a PETSc program's functions run on all its ranks: use -snes_nasm_type multiplicative")

    def sample(self, rows: Tensor) -> Problem:
        raise UnsupportedError("a PETSc program's objective has no samples to choose from")


class SNES:
    """A PETSc SNES of type python that runs a solver tree of ml2hpc.

    Its tolerances and -snes_max_it are the tree's defaults. As a right NPC it leaves F(x) of its last iterate in the
    function vector, as the outer solver expects. It counts as converged unless the numbers broke down: an NPC is asked
    for its steps, not for a solution.
    """

    def create(self, snes: Any) -> None:
        """Say that there is no linear solver. Not collective."""
        snes.setUseKSP(False)
        self._tree: interface.SNES | None = None

    def setUp(self, snes: Any) -> None:
        """Find the problem and build the tree. Collective.

        Raises
        ------
        UserError
            If there is nothing to minimise, or an option of the tree is wrong.
        """
        if snes.hasNPC():
            prefix = snes.getOptionsPrefix() or ""
            raise UnsupportedError(f"-{prefix}npc_snes_type: the tree has its own, -{prefix}ml2hpc_npc_snes_type")
        context = snes.getApplicationContext()
        if isinstance(context, Problem):
            context = Attached(context, snes.getComm().size)
        if isinstance(context, Attached):
            self._attached: Attached = context
        else:
            comm = Communicator(snes.getComm().tompi4py(), Log())
            self._attached = Attached(PetscProblem(snes, snes.getSolution(), comm), comm.size)
        self._is_npc = snes.getNormSchedule() != snes.NormSchedule.NORM_ALWAYS
        self._tree = self._build(snes)
        self._tree.set_up(self._attached.problem)

    def _build(self, snes: Any) -> interface.SNES:
        prefix = f"{snes.getOptionsPrefix() or ''}ml2hpc_"
        options = load().Options()
        given = {name: value for name, value in options.getAll().items() if name.startswith(prefix)}
        for name in given:
            options.hasName(name)  # or PETSc would say that nothing read it
        database = Database.from_dict({name: "true" if value is None else value for name, value in given.items()})
        rtol, atol, stol, max_it = snes.getTolerances()
        count = _UNBOUNDED if self._is_npc else snes.getMaxFunctionEvaluations()
        defaults = {"snes_rtol": rtol, "snes_atol": atol, "snes_stol": stol}
        defaults |= {"snes_max_it": _bound(max_it), "snes_max_funcs": _bound(count)}
        tree = create(database, prefix, snes.getTabLevel(), defaults)
        if database.flag("help", prefix=prefix) and snes.getComm().rank == 0:
            print(database.help_text(), flush=True)
        database.check_unused()
        tree.is_inner = self._is_npc
        return tree

    def solve(self, snes: Any, b: Any, x: Any) -> None:
        """Run the tree from x; leave its last iterate, the residual there and a reason. Collective."""
        attached, tree = self._attached, self._tree
        assert tree is not None
        shifted = b is not None and not isinstance(attached.problem, PetscProblem)
        problem = attached.problem
        if shifted:
            problem = problem.shift(-attached.whole(reading(b).clone()))
        if problem is not tree.problem:
            tree.rebind(problem)
        tree.observe = lambda solver, point, norm, update: self._show(snes, solver, norm)
        start = reading(x).clone()
        known = None
        if not shifted:
            f, g = attached.value_and_gradient(start)
            known = f, attached.whole(g)
        end = tree.solve(attached.whole(start), known)
        self._leave(snes, x, end)
        if not shifted:
            attached.remember(attached.part(end.x).clone(), end.f, attached.part(end.g).clone())

    def _show(self, snes: Any, tree: interface.SNES, norm: float) -> Reason:
        """Tell PETSc's monitors and histories of an iterate. Collective."""
        snes.setIterationNumber(tree.iteration)
        snes.setFunctionNorm(norm)
        snes.logConvergenceHistory(norm, 0)
        if not self._is_npc:
            snes.monitor(tree.iteration, norm)
        return Reason.CONVERGED_ITERATING

    def _leave(self, snes: Any, x: Any, end: Point) -> None:
        attached, tree = self._attached, self._tree
        assert tree is not None
        with writing(x) as values:
            values.copy_(attached.part(end.x))
        residual = snes.getFunction()[0]
        if residual:
            with writing(residual) as values:
                values.copy_(attached.part(end.g))
        snes.setFunctionNorm(attached.problem.space.norm(end.g))
        reason = tree.reason
        if self._is_npc and not reason.is_failure:
            reason = Reason.CONVERGED_ITS
        known = {int(v) for k, v in vars(type(snes).ConvergedReason).items() if "VERGED" in k}
        snes.setConvergedReason(int(reason) if int(reason) in known else _USER)

    def view(self, snes: Any, viewer: Any) -> None:
        """Show the tree in PETSc's view of the solver. Collective."""
        if self._tree is not None and viewer.getType() == "ascii":
            for line in ("tree of ml2hpc:", *self._tree.view().split("\n")):
                viewer.printfASCII(line + "\n")


def _bound(count: int) -> int:
    """Return a limit of PETSc's, where a negative one stands for none."""
    return count if count >= 0 else _UNBOUNDED
