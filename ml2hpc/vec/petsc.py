"""Vectors shared with PETSc without copying: a tensor's memory as a Vec, a Vec's memory as a tensor.

PETSc keeps norms until it is told that a vector changed, trusts what it is given and does not keep it alive. Here
types, strides and devices are checked, memory lives as long as either side holds it, writing raises the Vec's state:

    v = share(x, comm)              a Vec on the memory of the tensor x
    reading(v)                      a tensor on the memory of v, for reading
    with writing(v) as t: ...       a tensor on the memory of v, for writing; PETSc hears of it at the end of the block
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ml2hpc.comm import Communicator
from ml2hpc.errors import UnsupportedError, UserError
from ml2hpc.vec.space import CPU, Replicated, Sharded, VectorSpace

_REMEMBERED = 4  # points: a solver comes back to the iterate and to the two candidates that it chose from
_GEMV = "vec_mdot_use_gemv"  # an option of PETSc's for vectors made from then on
_ON_THE_HOST = ("seq", "mpi", "standard")


@cache
def load() -> Any:
    """Return the module petsc4py.PETSc, initialised. Collective over all ranks of the job at its first call.

    Raises
    ------
    UserError
        If petsc4py is not installed, or PETSc computes with other numbers than float64.
    """
    try:
        # Signals belong to the run, which writes a checkpoint; PETSc's own handler would end the job.
        importlib.import_module("petsc4py").init(["ml2hpc", "-no_signal_handler"])
        petsc: Any = importlib.import_module("petsc4py.PETSc")
    except ImportError as error:
        raise UserError(f"PETSc for Python is not installed ({error}): bash jobscripts/petsc.sh installs it") from error
    if petsc.ScalarType is not np.float64:
        raise UnsupportedError(
            f"PETSc computes with {petsc.ScalarType.__name__}: build it for real numbers in double precision, as "
            f"jobscripts/petsc.sh does"
        )
    # Several inner products at once are a gemv where vectors happen to lie at equal distances in memory, else loops,
    # which add in another order: bits would depend on what the heap looks like.
    options = petsc.Options()
    if not options.hasName(_GEMV):
        options.setValue(_GEMV, "0")
    options.getBool(_GEMV)  # or PETSc warns that nothing has read it, where no vector is made
    return petsc


def check(space: VectorSpace) -> None:
    """See that PETSc can hold the vectors of a space. Not collective.

    Raises
    ------
    UnsupportedError
        If they are not float64 in the host's memory.
    """
    if space.dtype != torch.float64:
        raise UnsupportedError(f"PETSc computes in float64, the vectors are {space.dtype}: use -dtype float64")
    if space.device.type != "cpu":
        raise UnsupportedError(
            f"PETSc shares vectors in the host's memory, they are on {space.device}: use -device cpu"
        )


def share(x: Tensor, comm: Any) -> Any:
    """Return a PETSc Vec on the memory of x, shape (n_local,); it keeps x alive. Collective on `comm`.

    Parameters
    ----------
    comm
        The Vec's communicator, mpi4py's or PETSc's; each rank brings its slice.

    Raises
    ------
    UserError
        If x is no contiguous float64 vector of the host without a gradient.
    """
    wrong = _fault(x)
    if wrong:
        raise UserError(f"a tensor shared with PETSc must be {wrong}; got {x.dtype}, shape {tuple(x.shape)}")
    return load().Vec().createWithArray(x.numpy(), comm=comm)


def _fault(x: Tensor) -> str:
    """Return what x would have to be, empty if it is."""
    rules = (
        (x.dtype == torch.float64, "float64, PETSc's scalar: x.to(torch.float64)"),
        (x.device.type == "cpu", f"in the host's memory, not on {x.device}: x.cpu()"),
        (x.dim() == 1, "a vector: x.reshape(-1)"),
        (x.is_contiguous(), "contiguous, since PETSc knows no strides: x.contiguous()"),
        (not x.requires_grad, "without a gradient of its own: x.detach()"),
    )
    return next((what for holds, what in rules if not holds), "")


def reading(vec: Any) -> Tensor:
    """Return a tensor on a Vec's memory, shape (n_local,), for reading; it keeps the Vec alive. Not collective.

    Raises
    ------
    UnsupportedError
        If the Vec is not stored as one array in the host's memory.
    """
    return _tensor(vec, "r")


@contextmanager
def writing(vec: Any) -> Iterator[Tensor]:
    """Give a tensor on a Vec's memory for writing; afterwards PETSc knows that the Vec changed. Logically collective.

    Raises
    ------
    UnsupportedError
        If the Vec is not stored as one array in the host's memory.
    """
    try:
        yield _tensor(vec, "rw")
    finally:
        vec.stateIncrease()


def _tensor(vec: Any, mode: str) -> Tensor:
    if vec.getType() not in _ON_THE_HOST:
        raise UnsupportedError(f"a PETSc Vec of type {vec.getType()} has no array in the host's memory: use standard")
    found: Tensor = from_dlpack(vec.toDLPack(mode))
    return found


class Owned(Sharded):
    """Slices of given lengths, as a PETSc Vec has them.

    Parameters
    ----------
    sizes
        Length by rank.
    """

    def __init__(self, comm: Communicator, sizes: list[int]) -> None:
        super().__init__(comm, sum(sizes), torch.float64, CPU)
        self._sizes = sizes
        first = sum(sizes[: comm.rank])
        self._rows = slice(first, first + sizes[comm.rank])


def communicator(space: VectorSpace, comm: Communicator) -> Any:
    """Return where PETSc's vectors of a space live. Not collective.

    Whole vectors live on every rank alone (COMM_SELF): PETSc then adds in the same order on any number of ranks. Slices
    make one Vec over all ranks, whose inner products are PETSc's.
    """
    return load().COMM_SELF if isinstance(space, Replicated) else comm.mpi


class Evaluations:
    """L, gradient and Hessian for PETSc, which asks for them one by one at the same few points.

    Parameters
    ----------
    objective, gradient, hessian
        L(x); L(x) with its gradient; the Hessian at x times v.
    """

    def __init__(
        self,
        space: VectorSpace,
        comm: Communicator,
        objective: Callable[[Tensor], float],
        gradient: Callable[[Tensor], tuple[float, Tensor]],
        hessian: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        check(space)
        self.space, self.comm = space, comm
        self._objective, self._gradient, self._hessian = objective, gradient, hessian
        self._known: list[tuple[Tensor, float, Tensor | None]] = []  # the last points, the newest first
        self._at: Tensor | None = None  # where the Hessian is
        self.error: BaseException | None = None  # raised in a callback
        self.finite = True  # whether all values and gradients were numbers, on this rank

    def remember(self, x: Tensor, f: float, g: Tensor | None) -> None:
        """Take over what is known at x. Not collective."""
        self.finite &= math.isfinite(f) and (g is None or math.isfinite(float(g.sum())))
        self._known = [(x, f, g), *self._known[: _REMEMBERED - 1]]

    def _recall(self, x: Tensor) -> tuple[float, Tensor | None] | None:
        """Return L and, if it is known, its gradient at a point seen before. Collective if sharded."""
        differ = np.array([float(not torch.equal(x, known)) for known, _, _ in self._known])
        if len(differ) and not isinstance(self.space, Replicated):
            differ = self.comm.largest(differ)  # the same answer on every rank
        found = [entry for entry, no in zip(self._known, differ, strict=True) if not no]
        best = next((entry for entry in found if entry[2] is not None), found[0] if found else None)
        return None if best is None else best[1:]

    def value(self, x: Tensor) -> float:
        """Return L(x). Collective."""
        known = self._recall(x)
        if known is not None:
            return known[0]
        f = self._objective(x)
        self.remember(x, f, None)
        return f

    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Return L(x) and its gradient. Collective."""
        known = self._recall(x)
        if known is not None and known[1] is not None:
            return known[0], known[1]
        f, g = self._gradient(x)
        self.remember(x, f, g)
        return f, g

    def attach(self, native: Any) -> Any:
        """Make L what a PETSc SNES or Tao minimises; return a zero Vec for x. Collective."""
        petsc = load()
        where = communicator(self.space, self.comm)
        sizes = (self.space.n_local, self.space.n)
        x = petsc.Vec().createMPI(sizes, comm=where) if where.size > 1 else petsc.Vec().createSeq(sizes[1], comm=where)
        hessian = petsc.Mat().createPython((sizes, sizes), self, comm=where)
        hessian.setOption(petsc.Mat.Option.SYMMETRIC, True)
        hessian.setUp()
        if isinstance(native, petsc.TAO):
            native.setObjective(self.objective)
            native.setGradient(self.gradient, x.duplicate())
            native.setObjectiveGradient(self.objective_and_gradient, None)
            native.setHessian(self.set_hessian, hessian)
        else:
            native.setObjective(self.objective)
            native.setFunction(self.gradient, x.duplicate())
            native.setJacobian(self.set_hessian, hessian)
            native.getKSP().getPC().setType("none")  # a matrix known by its action has no entries
        return x

    # PETSc's callbacks. ------------------------------------------------------------------------------------------

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep an error of the block: PETSc passes on a number only."""
        try:
            yield
        except BaseException as error:
            self.error = error
            raise

    def objective(self, native: Any, x: Any) -> float:
        """Return L(x)."""
        with self.watched():
            return self.value(reading(x).clone())

    def gradient(self, native: Any, x: Any, g: Any) -> None:
        """Set g to the gradient at x."""
        self.objective_and_gradient(native, x, g)

    def objective_and_gradient(self, native: Any, x: Any, g: Any) -> float:
        """Return L(x); set g to the gradient."""
        with self.watched(), writing(g) as out:
            f, gradient = self.value_and_gradient(reading(x).clone())
            out.copy_(gradient)
            return f

    def set_hessian(self, native: Any, x: Any, hessian: Any, preconditioner: Any) -> None:
        """Attach the Hessian to x."""
        self._at = reading(x).clone()

    def mult(self, matrix: Any, v: Any, out: Any) -> None:
        """Set out to the Hessian times v."""
        assert self._at is not None, "PETSc attaches the Hessian before it multiplies"
        with self.watched(), writing(out) as action:
            action.copy_(self._hessian(self._at, reading(v).clone()))

    multTranspose = mult  # noqa: N815 - PETSc's name; the Hessian is symmetric
