"""Communicators: process axes, buffer collectives that are counted, waiting that leaves the core to others.

MPI implementations spin while they wait. With more ranks than cores a spinning rank burns the core that the rank it
waits for needs, so there every collective is started without blocking and polled with pauses that grow with the time
waited. The same polling lets a signal handler run.

Received arrays start at a multiple of 64 bytes. The sums inside BLAS depend on where a vector starts, and ranks that
compute with the same numbers must get the same last bit to take the same branch.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
import os
import pickle
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ml2hpc.errors import UserError
from ml2hpc.log import Log

try:
    from mpi4py import MPI
except ImportError as error:  # pragma: no cover - a broken installation
    raise ImportError("ml2hpc needs MPI: pip install 'ml2hpc[mpi]', or mpi4py built on the site's MPI") from error

Wait = Literal["auto", "spin", "yield"]
Array = NDArray[Any]

_ALIGNMENT = 64  # bytes: what torch gives its own tensors, and the longest vector register
# How to wait, measured with 8 ranks on 2 cores: a collective has several rounds, and each may oversleep once.
_YIELDS = 100  # polls that only give the core away, before the first pause
_FIRST_PAUSE = 2e-5  # seconds
_OVERSLEEP = 0.03  # a pause is at most this part of the time waited so far
_LONGEST_PAUSE = 2e-4  # seconds: 5000 polls a second take 2 % to 5 % of a core
_PATIENCE = 1.0  # seconds that a rank with bad input waits for the others to find the same
_LAST_PATIENCE = 20.0  # seconds that a rank at its end waits for the others: rank 0 may still print and write
_NEIGHBOUR = 1  # tag of messages between neighbours
_FORWARDING = 0.4  # seconds for the launcher to pass the message on; what it has not when the job ends may be lost


class Communicator:
    """An MPI communicator with counted collectives on numpy arrays.

    Parameters
    ----------
    mpi
        The mpi4py communicator.
    log
        Where communication is charged.
    wait
        `spin` (blocking MPI calls), `yield` (poll and pause) or `auto`: yield where a node has more ranks than cores.
    """

    def __init__(self, mpi: MPI.Intracomm, log: Log, wait: Wait = "auto") -> None:
        self.mpi = mpi
        self.log = log
        self.rank: int = mpi.rank
        self.size: int = mpi.size
        self.wait: Wait = _oversubscribed(mpi) if wait == "auto" else wait
        self._groups: dict[int, Communicator] = {}

    @classmethod
    def world(cls, log: Log | None = None, wait: Wait = "auto") -> Communicator:
        """All ranks of the job. Collective."""
        return cls(MPI.COMM_WORLD, log or Log(), wait)

    def split(self, colour: int) -> Communicator:
        """Return the communicator of the ranks that give the same colour, in the same order. Collective."""
        part = self.mpi.Split(colour, self.rank)
        assert isinstance(part, MPI.Intracomm)
        return Communicator(part, self.log, self.wait)

    def groups(self, ranks: int) -> Communicator:
        """Return the communicator of this rank's group of consecutive ranks, made once. Collective: the same number.

        MPI has few communicators to give, and a problem may be replaced thousands of times.
        """
        if ranks not in self._groups:
            self._groups[ranks] = self.split(self.rank // ranks)
        return self._groups[ranks]

    def alone(self) -> Communicator:
        """Return the communicator that holds this rank only. Not collective."""
        return Communicator(MPI.COMM_SELF, self.log, self.wait)

    def allgather(self, send: Array, receive: Array | None = None) -> Array:
        """Return the arrays of all ranks, shape (size, *send.shape). Collective: equal shapes everywhere.

        Parameters
        ----------
        receive
            Where to write them, if memory is reused.
        """
        send = np.asarray(send, order="C")
        if receive is None:
            receive = _aligned((self.size, *send.shape), send.dtype)
        if self.size == 1:
            receive[0] = send
        else:
            self._finish([self.mpi.Iallgather(send, receive)], receive.nbytes, reductions=1)
        return receive

    def allgather_parts(self, send: Array, sizes: Sequence[int]) -> Array:
        """Return the 1-D parts of all ranks end to end; `sizes` are the parts' lengths by rank. Collective."""
        assert send.shape == (sizes[self.rank],) and len(sizes) == self.size
        send = np.asarray(send, order="C")
        receive = _aligned((sum(sizes),), send.dtype)
        if self.size == 1:
            receive[:] = send
        else:
            self._finish([self.mpi.Iallgatherv(send, [receive, list(sizes)])], receive.nbytes, reductions=1)
        return receive

    def largest(self, send: Array) -> Array:
        """Return the elementwise maximum over the ranks, not-a-number where any rank has it. Collective."""
        # Not MPI.MAX: whether that returns not-a-number depends on the order, which differs between ranks.
        return np.asarray(self.allgather(send).max(axis=0))

    def exchange(self, send: Mapping[int, Array], receive: Mapping[int, Array]) -> None:
        """Send arrays to some ranks and fill arrays with what some ranks send, by rank. Collective among these ranks.

        Arrays are contiguous; what rank r gives for rank s has the size and type of what s receives from r.
        """
        requests = [self.mpi.Irecv(array, rank, _NEIGHBOUR) for rank, array in receive.items()]
        requests += [self.mpi.Isend(array, rank, _NEIGHBOUR) for rank, array in send.items()]
        if requests:
            self._finish(requests, sum(array.nbytes for array in receive.values()), messages=len(send))

    def _finish(self, requests: list[MPI.Request], size: int, *, reductions: int = 0, messages: int = 0) -> None:
        """Wait for a collective, or for messages, of `size` received bytes and charge it."""
        start = time.perf_counter()
        if self.wait == "spin":
            MPI.Request.Waitall(requests)
        else:
            polls = 0
            while not MPI.Request.Testall(requests):
                polls += 1
                if polls <= _YIELDS:
                    os.sched_yield()
                else:
                    time.sleep(min(max(_FIRST_PAUSE, _OVERSLEEP * (time.perf_counter() - start)), _LONGEST_PAUSE))
        self.log.communicated(time.perf_counter() - start, size, reductions=reductions, messages=messages)

    # Set-up and files: pickled, rare; only their waiting is charged.

    def _meet(self) -> None:
        """Wait for all ranks, since pickled calls spin while they wait. Collective."""
        if self.size > 1:
            self._finish([self.mpi.Ibarrier()], 0)

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's object on every rank. Collective."""
        self._meet()
        return self.mpi.bcast(value)

    def gather(self, value: Any) -> list[Any] | None:
        """Return every rank's object on rank 0, None elsewhere. Collective."""
        self._meet()
        return self.mpi.gather(value)

    def alltoall(self, values: Sequence[Any]) -> list[Any]:
        """Give each rank one object, in the order of ranks, and return what the ranks give this one. Collective."""
        self._meet()
        return list(self.mpi.alltoall(values))

    def agree(self, error: Exception | None) -> None:
        """Raise on every rank if any rank brings an error: the first rank's, so that one message tells it. Collective.

        Raises
        ------
        Exception
            The error of the lowest rank that has one; in words, as UserError or RuntimeError, if it cannot be pickled.
        """
        told = None if error is None else _portable(error)
        self._meet()
        for rank, first in enumerate(self.mpi.allgather(told)):
            if first is not None:
                # The rank that had it shows where it comes from.
                raise first from error if rank == self.rank else None


def _aligned(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return an uninitialised array whose first entry lies at a multiple of _ALIGNMENT bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _portable(error: Exception) -> Exception:
    """Return the error if its copy on another rank says the same, else one that says it in words."""
    try:
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is type(error) and str(copy) == str(error):
            return error
    except Exception:  # noqa: BLE001 - whatever the error's own methods raise
        pass
    return UserError(str(error)) if isinstance(error, UserError) else RuntimeError(f"{type(error).__name__}: {error}")


# ---- ranks and cores -------------------------------------------------------------------------------------------------


def _oversubscribed(mpi: MPI.Intracomm) -> Wait:
    """Return how to wait: `yield` on all ranks if any node has more ranks than cores. Collective."""
    if mpi.size == 1:
        return "spin"
    node = mpi.Split_type(MPI.COMM_TYPE_SHARED)
    # Launchers bind ranks: each may see one core only, and all of them together the whole node.
    cores = set().union(*node.allgather(os.sched_getaffinity(0)))
    crowded = node.size > min(len(cores), _quota())
    node.Free()
    return "yield" if mpi.allreduce(int(crowded)) else "spin"


def _quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how many cores' time the control groups of this process allow, as containers are limited."""
    allowed = math.inf
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        mount = root / kinds if kinds else root
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            allowed = min(allowed, _quota_of(mount / str(group).lstrip("/")))
    return allowed


def _quota_of(group: Path) -> float:
    """Return the cores of one control group: version 2 in one file, version 1 in two, -1 for no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


# ---- the end of a failed job -----------------------------------------------------------------------------------------


def end_all_on_error() -> None:
    """Install the hook that ends the whole job when one rank fails; without it the others wait until the time limit.

    A `UserError` is raised on every rank together: rank 0 prints its message and all exit with status 1. Anything
    else prints the rank's traceback and ends all ranks at once. Collective.
    """
    # A communicator of its own: on another one the last barrier would be taken for what the others wait in.
    world = MPI.COMM_WORLD.Dup()
    sys.excepthook = functools.partial(_end_all, world)
    atexit.register(_leave_together, world)


def _leave_together(world: MPI.Intracomm) -> None:
    """End the job if only some ranks leave, by sys.exit in user code; MPI would wait for the others for ever."""
    if not _all_here(world, _LAST_PATIENCE):
        _say(f"ml2hpc: rank {world.rank} of {world.size} left, not all, ending all ranks")
        MPI.COMM_WORLD.Abort(1)


def _end_all(
    world: MPI.Intracomm, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    together = False
    try:
        if _out_of_memory(error):
            if not _all_here(world) or world.rank == 0:
                told = str(error).partition("\n")[0]
                rank = f"rank {world.rank} of {world.size}"
                _say(f"ml2hpc: error: {rank} has too little memory, ask for smaller sizes: {told}")
            return
        if not isinstance(error, UserError | KeyboardInterrupt):
            text = "".join(traceback.format_exception(kind, error, trace))
            _say(f"ml2hpc: rank {world.rank} of {world.size} failed, ending all ranks\n{text.rstrip()}")
            return
        met = _all_here(world)
        what = f"error: {error}" if isinstance(error, UserError) else "interrupted"
        if not met:
            cause = error.__cause__
            told = "".join(traceback.format_exception(cause)).rstrip() if cause is not None else ""
            _say(f"ml2hpc: rank {world.rank} of {world.size}, not all, ended with: {what}\n{told}".rstrip())
        elif world.rank == 0:
            _say(f"ml2hpc: {what}")
        together = met and isinstance(error, UserError)  # an interrupt leaves messages on their way
    finally:
        if world.size > 1 and not together:
            time.sleep(_FORWARDING)
            MPI.COMM_WORLD.Abort(1)


def _out_of_memory(error: BaseException) -> bool:
    """Tell whether numpy, torch or CUDA got no memory: sizes are the user's, a traceback tells nothing of them."""
    told = not isinstance(error, UserError) and any(w in str(error) for w in ("can't allocate memory", "out of memory"))
    return isinstance(error, MemoryError) or told


def _say(text: str) -> None:
    """Print on standard error, after all that was printed; a closed pipe must not keep the job from ending."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _all_here(world: MPI.Intracomm, patience: float = _PATIENCE) -> bool:
    """Return whether every rank reaches this point within `patience` seconds. Collective if it can be."""
    if world.size == 1:
        return True
    request = world.Ibarrier()
    end = time.monotonic() + patience
    while not request.Test():
        if time.monotonic() > end:
            return False
        time.sleep(1e-3)
    return True
