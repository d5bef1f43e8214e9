"""Communicators: the same arrays on all ranks, counted; waiting without burning a core; a failed rank ends the job."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike

from ml2hpc.comm import Communicator, Wait, _aligned, _portable, _quota
from ml2hpc.errors import FileError, UserError
from ml2hpc.log import Log

ROOT = Path(__file__).parents[1]
WAITS: list[Wait] = ["spin", "yield"]
DTYPES = [np.float64, np.float32, np.int64, np.uint8, np.bool_, np.complex128]


def filled(shape: tuple[int, ...], dtype: DTypeLike, rank: int) -> np.ndarray:
    return (np.arange(np.prod(shape)) * (rank + 1) % 101).reshape(shape).astype(dtype)


# ---- collectives -----------------------------------------------------------------------------------------------------


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_allgather_brings_all_arrays_to_all_ranks(comm, wait: Wait, dtype: DTypeLike) -> None:
    c = Communicator(comm, Log(), wait)
    for shape in [(), (1,), (7,), (3, 5), (0,), (2000,)]:
        found = c.allgather(filled(shape, dtype, c.rank))
        assert found.shape == (c.size, *shape)
        assert found.dtype == dtype
        for rank in range(c.size):
            np.testing.assert_array_equal(found[rank], filled(shape, dtype, rank))


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_allgather_parts_joins_parts_of_any_length(comm, wait: Wait, dtype: DTypeLike) -> None:
    c = Communicator(comm, Log(), wait)
    for sizes in (list(range(c.size)), [3] * c.size, [0] * c.size, [5] + [0] * (c.size - 1)):
        found = c.allgather_parts(filled((sizes[c.rank],), dtype, c.rank), sizes)
        expected = np.concatenate([filled((n,), dtype, rank) for rank, n in enumerate(sizes)])
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parallel(1, 2, 3, 4)
def test_what_is_not_contiguous_is_sent_as_it_reads(comm) -> None:
    c = Communicator(comm, Log(), "spin")
    table = np.arange(24.0).reshape(4, 6)
    np.testing.assert_array_equal(c.allgather(table.T)[c.size - 1], table.T)
    np.testing.assert_array_equal(c.allgather_parts(table[:, 2], [4] * c.size), np.tile(table[:, 2], c.size))


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("wait", WAITS)
def test_largest_is_elementwise_and_keeps_what_is_not_a_number(comm, wait: Wait) -> None:
    c = Communicator(comm, Log(), wait)
    found = c.largest(np.array([c.rank, -c.rank, np.nan if c.rank == 0 else 1.0]))
    np.testing.assert_array_equal(found, [c.size - 1, 0.0, np.nan])
    np.testing.assert_array_equal(c.largest(np.array([[c.rank, 7]])), [[c.size - 1, 7]])


@pytest.mark.parallel(1, 2, 3, 4)
def test_a_received_array_is_the_receivers_own(comm) -> None:
    c = Communicator(comm, Log(), "spin")
    send = np.zeros(5)
    c.allgather(send)[:] = 1.0
    c.allgather_parts(send, [5] * c.size)[:] = 1.0
    c.largest(send)[:] = 1.0
    assert not send.any()


@pytest.mark.parallel(1, 2, 3, 4)
def test_received_arrays_start_where_blas_adds_in_the_same_order(comm) -> None:
    c = Communicator(comm, Log(), "spin")
    starts = [c.allgather(np.zeros(n)).ctypes.data % 64 for n in range(1, 40)]
    starts += [c.allgather_parts(np.zeros(n), [n] * c.size).ctypes.data % 64 for n in range(1, 40)]
    assert starts == [0] * 78


def test_aligned_arrays_have_shape_and_type() -> None:
    for dtype in DTYPES:
        for shape in [(), (3,), (2, 3)]:
            array = _aligned(shape, dtype)
            assert (array.shape, array.dtype, array.ctypes.data % 64) == (shape, np.dtype(dtype), 0)


@pytest.mark.parallel(2, 3, 4)
@pytest.mark.parametrize("wait", WAITS)
def test_split_and_alone(comm, wait: Wait) -> None:
    world = Communicator(comm, Log(), wait)
    half = world.split(world.rank % 2)
    members = list(range(world.rank % 2, world.size, 2))
    assert (half.size, half.rank, half.wait) == (len(members), members.index(world.rank), wait)
    np.testing.assert_array_equal(half.allgather(np.array([world.rank]))[:, 0], members)
    np.testing.assert_array_equal(half.largest(np.array([world.rank])), [members[-1]])
    alone = world.alone()
    assert (alone.size, alone.rank, alone.log is world.log) == (1, 0, True)
    np.testing.assert_array_equal(alone.allgather(np.array([world.rank])), [[world.rank]])


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("wait", WAITS)
def test_bytes_reductions_and_waiting_are_counted(comm, wait: Wait) -> None:
    c = Communicator(comm, Log(), wait)
    with c.log.event("Inside"):
        c.allgather(np.zeros((2, 5)))
        c.allgather_parts(np.zeros(c.rank), list(range(c.size)))
    c.largest(np.zeros(3))
    # Set-up traffic is waited for and not counted.
    c.agree(None)
    c.broadcast("x")
    c.gather("x")
    sent = 0 if c.size == 1 else 1  # one rank receives nothing
    inside, total = c.log.events["Inside"], c.log.total
    assert (inside.reductions, inside.bytes) == (2 * sent, sent * 8 * (10 * c.size + c.size * (c.size - 1) // 2))
    assert (total.reductions, total.bytes) == (3 * sent, inside.bytes + sent * 8 * 3 * c.size)
    assert (total.waiting > inside.waiting > 0.0) == bool(sent)


@pytest.mark.parallel(2, 3)
@pytest.mark.parametrize("wait", WAITS)
def test_the_waiting_of_the_others_is_charged_to_them(comm, wait: Wait) -> None:
    c = Communicator(comm, Log(), wait)
    for meet in (lambda: c.allgather(np.zeros(1)), lambda: c.agree(None), lambda: c.gather(0), lambda: c.broadcast(0)):
        comm.Barrier()
        before = c.log.total.waiting
        if c.rank == 0:
            time.sleep(0.2)
        meet()
        waited = c.log.total.waiting - before
        assert waited > 0.15 if c.rank else waited < 0.1


@pytest.mark.parallel(1, 2, 3, 4)
def test_broadcast_and_gather_carry_objects(comm) -> None:
    c = Communicator(comm, Log(), "yield")
    assert c.broadcast({"rank": c.rank}) == {"rank": 0}
    assert c.gather(c.rank) == (list(range(c.size)) if c.rank == 0 else None)


def test_parts_of_the_wrong_length_are_refused() -> None:
    c = Communicator.world(wait="spin")
    with pytest.raises(AssertionError):
        c.allgather_parts(np.zeros(3), [2])


# ---- agreement on errors ---------------------------------------------------------------------------------------------


class TwoPartsError(UserError):
    """Cannot be unpickled: its arguments are not its message."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path}: {what}")


class ChangedError(Exception):
    """Says something else after unpickling."""

    def __reduce__(self) -> Any:
        return ChangedError, ("changed",)


def unpicklable() -> Exception:
    error = ValueError("with a lock")
    error.lock = __import__("threading").Lock()  # type: ignore[attr-defined]
    return error


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("wait", WAITS)
def test_all_ranks_raise_the_error_of_the_lowest_rank_that_has_one(comm, wait: Wait) -> None:
    c = Communicator(comm, Log(), wait)
    c.agree(None)
    last = c.size - 1
    with pytest.raises(FileError, match=rf"^on {last}$"):
        c.agree(FileError(f"on {last}") if c.rank == last else None)
    with pytest.raises(ZeroDivisionError, match=r"^on 0$"):
        c.agree(ZeroDivisionError("on 0") if c.rank == 0 else FileError("not this"))
    c.agree(None)


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (unpicklable(), RuntimeError, "ValueError: with a lock"),
        (TwoPartsError("run.h5", "is empty"), UserError, "run.h5: is empty"),
        (ChangedError("as it was"), RuntimeError, "ChangedError: as it was"),
    ],
)
def test_errors_that_cannot_travel_are_told_in_words(
    comm, error: Exception, kind: type[Exception], message: str
) -> None:
    c = Communicator(comm, Log(), "spin")
    with pytest.raises(kind) as caught:
        c.agree(error if c.rank == c.size - 1 else None)
    assert (type(caught.value), str(caught.value)) == (kind, message)
    # The rank that had it shows the original.
    assert caught.value.__cause__ is (error if c.rank == c.size - 1 else None)


def test_an_error_that_travels_stays_itself() -> None:
    error = FileError("run.h5: is empty")
    assert _portable(error) is error
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(TwoPartsError("run.h5", "is empty")))


# ---- ranks and cores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/job/step", {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "400000 100000\n"}, 4.0),
        ("0::/job", {}, float("inf")),
        ("0::/job", {"job/cpu.max": "nonsense\n"}, float("inf")),
        (
            "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1",
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            2.0,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
    ],
)
def test_quota_of_control_groups(tmp_path: Path, groups: str, files: dict[str, str], cores: float) -> None:
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert _quota(tmp_path / "groups", tmp_path / "root") == cores
    assert _quota(tmp_path / "missing", tmp_path / "root") == float("inf")


# ---- whole jobs ------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, resource, signal, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from ml2hpc.comm import Communicator, end_all_on_error
from ml2hpc.errors import UserError
end_all_on_error()
comm = Communicator.world()
os.write(2, f"started {{time.time()}}\\n".encode())
comm.mpi.Barrier()
"""


def mpirun(size: int, code: str) -> tuple[int, str, str, float]:
    """Run a program on some ranks; return status, output, errors and its seconds after all ranks had started."""
    beside = Path(sys.executable).with_name("mpirun")
    launcher = os.environ.get("MPIRUN") or (str(beside) if beside.exists() else shutil.which("mpirun"))
    if launcher is None:
        pytest.skip("no mpirun")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "MPI_", "MPIEXEC", "HYDRA", "OMPI_"))}
    program = PROGRAM.format(root=str(ROOT)) + code
    end = subprocess.run(
        [launcher, "-n", str(size), sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean,
    )
    starts = [float(word) for word in re.findall(r"started (\S+)", end.stderr)]
    assert len(starts) == size, end.stderr
    seconds = time.time() - max(starts)
    return end.returncode, end.stdout, re.sub(r"started \S+\n", "", end.stderr), seconds


def test_bad_input_on_all_ranks_is_one_line_and_status_1() -> None:
    code = """
import atexit
atexit.register(lambda: os.write(1, b"left\\n"))
raise UserError("-net_depth 0: must be at least 1")
"""
    status, output, errors, seconds = mpirun(3, code)
    assert errors == "ml2hpc: error: -net_depth 0: must be at least 1\n"
    assert output == "left\n" * 3  # every rank ended by itself
    assert status == 1
    assert seconds < 2.0


def test_bad_input_on_one_rank_says_so_and_ends_the_job() -> None:
    code = """
if comm.rank == 1:
    raise UserError("no such file")
comm.allgather(np.zeros(9))
"""
    status, _, errors, seconds = mpirun(3, code)
    assert "ml2hpc: rank 1 of 3, not all, ended with: error: no such file\n" in errors
    assert "Traceback" not in errors
    assert status != 0
    assert 1.0 < seconds < 2.0  # it waits for the others to say the same


def test_a_bug_on_one_rank_shows_its_traceback_and_ends_the_job() -> None:
    for wait in WAITS:
        code = f"""
comm.wait = {wait!r}
if comm.rank == 2:
    1 / 0
comm.allgather(np.zeros(9))
"""
        status, _, errors, seconds = mpirun(3, code)
        assert "ml2hpc: rank 2 of 3 failed, ending all ranks\nTraceback" in errors
        assert "ZeroDivisionError: division by zero\n" in errors
        assert status != 0
        assert seconds < 2.0


def test_a_closed_pipe_does_not_keep_a_failed_job_alive() -> None:
    code = """
if comm.rank == 0:
    sys.stdout.close()
    raise ValueError("told on standard error")
comm.allgather(np.zeros(9))
"""
    status, _, errors, seconds = mpirun(3, code)
    assert "ValueError: told on standard error\n" in errors
    assert status != 0
    assert seconds < 2.0


def test_an_interrupt_of_one_rank_ends_the_job() -> None:
    code = """
if comm.rank == 1:
    raise KeyboardInterrupt
comm.allgather(np.zeros(9))
"""
    status, _, errors, seconds = mpirun(2, code)
    assert "ml2hpc: rank 1 of 2, not all, ended with: interrupted\n" in errors
    assert "Traceback" not in errors
    assert status != 0
    assert seconds < 2.0


def test_a_killed_rank_ends_the_job() -> None:
    code = """
if comm.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
comm.allgather(np.zeros(9))
"""
    status, _, _, seconds = mpirun(3, code)
    assert status != 0
    assert seconds < 2.0


def test_more_ranks_than_cores_yield_and_a_waiting_rank_leaves_its_core() -> None:
    size = len(os.sched_getaffinity(0)) + 2
    code = """
spent = []
calls = lambda: comm.allgather(np.zeros(9)), lambda: comm.agree(None), lambda: comm.gather(0), lambda: comm.broadcast(0)
for meet in calls:
    comm.mpi.Barrier()
    if comm.rank == 0:
        time.sleep(1.0)
    start = time.process_time()
    meet()
    spent.append(time.process_time() - start)
for line in comm.mpi.gather(f"{comm.wait} {max(spent)}") or []:
    print(line)
"""
    status, output, errors, _ = mpirun(size, code)
    assert (status, errors) == (0, "")
    modes = [line.split() for line in output.splitlines()]
    assert [mode for mode, _ in modes] == ["yield"] * size
    assert max(float(spent) for _, spent in modes) < 0.2  # seconds of a core, of 1 s waited; 0.03 to 0.05 measured


def test_one_rank_spins_and_so_do_as_many_as_cores() -> None:
    assert Communicator.world().wait == "spin"
    size = len(os.sched_getaffinity(0))
    if size > 1 and _quota() >= size:
        assert mpirun(min(size, 4), "os.write(1, f'{comm.wait}\\n'.encode())")[1] == "spin\n" * min(size, 4)


def test_ranks_bound_to_one_core_each_are_not_too_many() -> None:
    """A launcher that binds leaves each rank one core; together they have enough."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2 or _quota() < 2:
        pytest.skip("one core")
    code = f"""
os.sched_setaffinity(0, {{{cores}[comm.rank]}})
apart = Communicator.world().wait
comm.mpi.Barrier()
os.sched_setaffinity(0, {{{cores[0]}}})
together = Communicator.world().wait
os.write(1, f"{{apart}} {{together}}\\n".encode())
"""
    assert mpirun(2, code)[1] == "spin yield\n" * 2
