"""Communicators: process axes, buffer collectives that are counted, waiting that leaves the core to others.

MPI implementations spin while they wait. With more ranks than cores a spinning rank burns the core that the rank it
waits for needs, so there every collective is started without blocking and polled with pauses that grow to one
millisecond. The same polling lets a signal handler run.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ml2hpc.errors import UserError
from ml2hpc.log import Log

try:
    from mpi4py import MPI
except ImportError as error:  # pragma: no cover - a broken installation
    raise ImportError("ml2hpc needs MPI: pip install 'ml2hpc[mpi]', or mpi4py built on the site's MPI") from error

Wait = Literal["auto", "spin", "yield"]
Array = NDArray[Any]

_LONGEST_PAUSE = 1e-3  # seconds: long against a reduction, short against a subdomain solve
_FIRST_PAUSE = 2e-5  # seconds
_YIELDS = 20  # polls that only give the core away, before the first pause


class Communicator:
    """An MPI communicator with counted collectives on contiguous numpy arrays.

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

    @classmethod
    def world(cls, log: Log | None = None, wait: Wait = "auto") -> Communicator:
        """All ranks of the job. Collective."""
        return cls(MPI.COMM_WORLD, log or Log(), wait)

    def split(self, colour: int) -> Communicator:
        """Return the communicator of the ranks that give the same colour, in the same order. Collective."""
        return Communicator(self.mpi.Split(colour, self.rank), self.log, self.wait)

    def alone(self) -> Communicator:
        """Return the communicator that holds this rank only. Not collective."""
        return Communicator(MPI.COMM_SELF, self.log, self.wait)

    def allgather(self, send: Array) -> Array:
        """Return the arrays of all ranks, shape (size, *send.shape). Collective: equal shapes everywhere."""
        if self.size == 1:
            return send[None]
        send = np.ascontiguousarray(send)
        receive = np.empty((self.size, *send.shape), send.dtype)
        self._finish(self.mpi.Iallgather(send, receive), receive.nbytes)
        return receive

    def allgather_parts(self, send: Array, sizes: list[int]) -> Array:
        """Return the 1-D parts of all ranks end to end; `sizes` are the parts' lengths by rank. Collective."""
        if self.size == 1:
            return send
        send = np.ascontiguousarray(send)
        receive = np.empty(sum(sizes), send.dtype)
        self._finish(self.mpi.Iallgatherv(send, [receive, sizes]), receive.nbytes)
        return receive

    def largest(self, send: Array) -> Array:
        """Return the elementwise maximum over the ranks. Collective."""
        if self.size == 1:
            return send
        receive = np.empty_like(send)
        self._finish(self.mpi.Iallreduce(np.ascontiguousarray(send), receive, MPI.MAX), receive.nbytes)
        return receive

    def _finish(self, request: MPI.Request, size: int) -> None:
        """Wait for a reduction of `size` received bytes and charge it."""
        start = time.perf_counter()
        if self.wait == "spin":
            request.Wait()
        else:
            polls, pause = 0, _FIRST_PAUSE
            while not request.Test():
                polls += 1
                if polls <= _YIELDS:
                    os.sched_yield()
                else:
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        self.log.communicated(time.perf_counter() - start, size, reductions=1)

    # Set-up and files: pickled, rare.

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's object on every rank. Collective."""
        return self.mpi.bcast(value)

    def gather(self, value: Any) -> list[Any] | None:
        """Return every rank's object on rank 0, None elsewhere. Collective."""
        return self.mpi.gather(value)

    def agree(self, error: Exception | None) -> None:
        """Raise on every rank if any rank brings an error: the first rank's, so that one message tells it. Collective.

        Raises
        ------
        Exception
            The error of the lowest rank that has one.
        """
        errors = self.mpi.allgather(error)
        first = next((e for e in errors if e is not None), None)
        if first is not None:
            raise first


def _oversubscribed(mpi: MPI.Intracomm) -> Wait:
    """Return how to wait: `yield` on all ranks if any node has more ranks than cores. Collective."""
    node = mpi.Split_type(MPI.COMM_TYPE_SHARED)
    crowded = node.size > len(os.sched_getaffinity(0))
    node.Free()
    return "yield" if mpi.allreduce(int(crowded)) else "spin"


def end_all_on_error() -> None:
    """Install the hook that ends the whole job when one rank fails; without it the others wait until the time limit.

    A `UserError` is raised on every rank together: rank 0 prints its message and all exit with status 1. Anything
    else prints the rank's traceback and ends all ranks at once. Not collective.
    """
    sys.excepthook = _end_all


def _end_all(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    world = MPI.COMM_WORLD
    together = False
    if isinstance(error, UserError):
        together = _all_here(world)
        if world.rank == 0 or not together:
            where = "" if together or world.size == 1 else f" (on rank {world.rank} only)"
            print(f"ml2hpc: error{where}: {error}", file=sys.stderr, flush=True)
    elif isinstance(error, KeyboardInterrupt):
        print(f"ml2hpc: interrupted on rank {world.rank}", file=sys.stderr, flush=True)
    else:
        text = "".join(traceback.format_exception(kind, error, trace))
        print(
            f"ml2hpc: rank {world.rank} of {world.size} failed, ending all ranks\n{text}", file=sys.stderr, flush=True
        )
    sys.stdout.flush()
    if world.size > 1 and not together:
        world.Abort(1)


def _all_here(world: MPI.Intracomm, patience: float = 1.0) -> bool:
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
