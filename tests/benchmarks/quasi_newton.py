"""Time a quasi-Newton iteration without its gradient: dense by one pass, dense in torch, L-BFGS, one rank and two.

    OMP_NUM_THREADS=1 mpirun -n 2 python tests/benchmarks/quasi_newton.py

An iteration is update and apply. What it is measured against is a plain sweep h <- h over the same triangle, in C. The
contenders take turns, so that noise falls on all of them; medians are printed. Rank 1 sleeps while rank 0 works alone.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from ml2hpc import kernels
from ml2hpc.comm import Communicator
from ml2hpc.snes.dense import DenseInverse
from ml2hpc.snes.limited import CompactLBFGS
from ml2hpc.snes.secant import Inverse
from ml2hpc.vec import Replicated

BURGERS, KLEIN_GORDON = 3021, 12951  # unknowns of networks 8 x 20 and 6 x 50
MEMORY = 100
Timer = Callable[[], float]


def dense(comm: Communicator, n: int, library: kernels.Library | None) -> DenseInverse:
    return DenseInverse(Replicated(n, torch.float64), comm, "ssbroyden", [slice(0, n)], 0.0, library)


def iterations(inverse: Inverse, clock: Timer) -> Iterator[float]:
    """Minimise a quadratic with the eigenvalues 1..1000 by short steps; yield the time of update and apply."""
    n = inverse.space.n
    a = torch.logspace(0, 3, n, dtype=torch.float64)
    x = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g, y = a * x, 1e-4 * a * x
    while True:
        new = x - 0.7 * y
        g_new = a * new
        start = clock()
        inverse.update(new - x, g_new - g, g, g_new, 0.7 if inverse.pairs else None)
        y = inverse.apply(g_new)
        yield clock() - start
        x, g = new, g_new


def sweeps(inverse: DenseInverse, clock: Timer) -> Iterator[float]:
    """Multiply every entry of the triangle by one."""
    library = kernels.load()
    assert library is not None, "built without a C compiler"
    scale = library.function("scale_rows", torch.float64)
    matrix = inverse._matrix
    calls = [
        (ctypes.c_void_p(rows.data_ptr()), *map(ctypes.c_long, (rows.stride(0), s.first, s.last)), ctypes.c_double(1.0))
        for rows, s in ((matrix._rows(i), matrix._segments[i]) for i in range(len(matrix._segments)))
    ]
    while True:
        start = clock()
        for call in calls:
            scale(*call)
        yield clock() - start


def medians(contenders: list[Iterator[float]], turns: int) -> list[float]:
    """Milliseconds of each, taking turns; the first three turns warm up."""
    times = [[next(c) for c in contenders] for _ in range(turns + 3)][3:]
    return [1e3 * statistics.median(column) for column in zip(*times, strict=True)]


def alone(comm: Communicator) -> None:
    """Print what one rank needs."""
    clock = time.process_time
    for n, turns in ((BURGERS, 100), (KLEIN_GORDON, 12)):
        for name, library in (("compiled", kernels.load()), ("in torch", None)):
            inverse = dense(comm, n, library)
            one, sweep = medians([iterations(inverse, clock), sweeps(inverse, clock)], turns)
            print(f"n = {n}, {name}: iteration {one:.2f} ms = {one / sweep:.2f} plain sweeps of {sweep:.2f} ms")
    limited = CompactLBFGS(Replicated(BURGERS, torch.float64), MEMORY, scaled=True, library=kernels.load())
    times = iterations(limited, clock)
    for _ in range(MEMORY):
        next(times)
    print(f"n = {BURGERS}: L-BFGS with {MEMORY} pairs {medians([times], 100)[0]:.3f} ms")


def together(comm: Communicator, turns: int = 25) -> None:
    """Print what several ranks gain: process time of the slowest, and wall time, which idle cores make the same."""
    for name, clock in (("process", time.process_time), ("wall", time.perf_counter)):
        one = iterations(dense(comm.alone(), KLEIN_GORDON, kernels.load()), clock)
        many = iterations(dense(comm, KLEIN_GORDON, kernels.load()), clock)
        times = []
        for _ in range(turns + 3):
            single = next(one) if comm.rank == 0 else 0.0
            meet(comm)
            times.append(comm.largest(np.array([single, next(many)])))
            meet(comm)
        for how, reduce in (("median", np.median), ("least", np.min)):
            single, shared = 1e3 * reduce(np.array(times[3:]), axis=0)
            if comm.rank == 0:
                gain = f"1 rank {single:.1f} ms, {comm.size} ranks {shared:.1f} ms: {single / shared:.2f} times"
                print(f"n = {KLEIN_GORDON}, {how} {name} time: {gain}")


def meet(comm: Communicator) -> None:
    """Wait for all ranks without a core of one's own. Collective."""
    request = comm.mpi.Ibarrier()
    while not request.Test():
        time.sleep(1e-3)


def main() -> None:
    torch.set_num_threads(1)
    comm = Communicator.world(wait="yield")  # waiting must not count as work
    if comm.rank == 0:
        alone(comm.alone())
    meet(comm)
    if comm.size > 1:
        together(comm)


if __name__ == "__main__":
    main()
