"""Tests on several ranks: the marker `parallel`, the fixture `comm`, one report for all ranks.

`pytest` runs the unmarked tests and those marked `parallel(1, ...)`; `mpirun -n 3 pytest` runs those marked with a 3.
Under mpirun the ranks compare notes after each phase of each test, on a communicator of their own, so that all ranks
agree on the outcome and rank 0 reports for everyone. A rank that fails while another waits for it in a collective of
the test cannot agree with it: after `GRACE` seconds it prints its report and ends the job. Each rank has a folder of
its own for temporary files: in a common one, ranks that clean up at their end are in each other's way.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from mpi4py import MPI

GRACE = 20.0  # seconds that a failed rank waits for the others; below faulthandler_timeout, which would lose its report
PAUSE = 1e-3  # seconds between two looks at the other ranks: long against a message, short against a test
LAUNCHERS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PALS_RANKID")  # set by mpirun and srun for each rank
NOTES = pytest.StashKey["Notes"]()
WAITING = pytest.StashKey[list[tuple[int, ...]]]()

torch.set_num_threads(1)


class Notes:
    """What the ranks tell each other about a test, apart from the messages of the test itself."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm.Dup()
        self.rank = comm.rank
        self.size = comm.size

    def arrive(self, patience: float) -> bool:
        """Tell whether every rank comes here within `patience` seconds."""
        request = self.comm.Ibarrier()
        deadline = time.monotonic() + patience
        while not request.Test():
            if time.monotonic() > deadline:
                return False
            time.sleep(PAUSE)
        return True

    def exchange(self, note: tuple[str, str], patience: float = float("inf")) -> list[tuple[str, str]]:
        """Return the notes of all ranks, or nothing where a rank stays away."""
        return self.comm.allgather(note) if self.arrive(patience) else []


@pytest.hookimpl(trylast=True)  # after the terminal reporter exists
def pytest_configure(config: pytest.Config) -> None:
    """Under mpirun, open the ranks' line to each other and silence all but rank 0."""
    if not any(name in os.environ for name in LAUNCHERS):
        return
    from mpi4py import MPI

    if MPI.COMM_WORLD.size > 1:
        config.stash[NOTES] = Notes(MPI.COMM_WORLD)
        root = tempfile.mkdtemp(prefix=f"pytest-rank-{MPI.COMM_WORLD.rank}-")
        config.add_cleanup(lambda: shutil.rmtree(root))
        os.environ["PYTEST_DEBUG_TEMPROOT"] = root  # read when the first test asks for a folder
        if MPI.COMM_WORLD.rank != 0:
            config.pluginmanager.unregister(name="terminalreporter")


@pytest.fixture(scope="session")
def comm() -> MPI.Intracomm:
    """Return the communicator of all ranks of this run."""
    from mpi4py import MPI

    return MPI.COMM_WORLD


# ---- which tests run -------------------------------------------------------------------------------------------------


def sizes_of(item: pytest.Item) -> tuple[int, ...]:
    """Return the numbers of ranks a test runs on; a test without the marker runs on one."""
    marker = item.get_closest_marker("parallel")
    if marker is None:
        return (1,)
    sizes = marker.args
    if not sizes or marker.kwargs or any(type(size) is not int or size < 1 for size in sizes):
        raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.parallel(2, 3, 4), with the numbers of ranks")
    return sizes


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests for this number of ranks."""
    notes = config.stash.get(NOTES, None)
    size = notes.size if notes else 1
    others = [item for item in items if size not in sizes_of(item)]
    config.stash[WAITING] = [sizes_of(item) for item in others]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if size in sizes_of(item)]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop all ranks when they do not agree on the tests to run."""
    notes = session.config.stash.get(NOTES, None)
    if notes is None:
        return
    mine = str(session.testsfailed), "\n".join(item.nodeid for item in session.items)
    if len(set(notes.exchange(mine))) != 1:
        pytest.exit("the ranks collected different tests", returncode=pytest.ExitCode.INTERNAL_ERROR)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many tests need mpirun."""
    waiting = config.stash.get(WAITING, [])
    if NOTES in config.stash or not waiting:
        return
    counts = sorted(Counter(size for sizes in waiting for size in sizes).items())
    text = ", ".join(f"{count} for mpirun -n {size}" for size, count in counts)
    terminalreporter.write_line(f"{len(waiting)} parallel tests wait: {text}")


# ---- one outcome for all ranks ---------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give a phase of a test the same outcome on every rank: failed where one rank failed."""
    report = yield
    notes = item.config.stash.get(NOTES, None)
    if notes is None:
        return report
    failed = report.outcome == "failed"
    note = report.outcome, report.longreprtext if failed else ""
    everyone = notes.exchange(note, GRACE if failed else float("inf"))
    if not everyone:
        end_the_job(item, report, notes)
    outcomes = [outcome for outcome, _ in everyone]
    if len(set(outcomes)) == 1 and not failed:
        return report
    if not failed:
        report.outcome = "failed"
        report.longrepr = "not the same outcome on every rank: " + ", ".join(outcomes)
    texts = [text for _, text in everyone]
    report.sections += [
        (f"rank {rank}", text) for rank, text in enumerate(texts) if text and rank != notes.rank and text != texts[0]
    ]
    return report


def end_the_job(item: pytest.Item, report: pytest.TestReport, notes: Notes) -> None:
    """Print the report of a rank that the others do not hear, and end all ranks."""
    capture = item.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        last = f"rank {notes.rank} failed in {item.nodeid} while another waits for it: the job ends"
        os.write(2, f"\n{report.longreprtext}\n{last}\n".encode())
    notes.comm.Abort(1)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Exit with the worst status of all ranks."""
    notes = session.config.stash.get(NOTES, None)
    if notes is not None and notes.arrive(GRACE):
        session.exitstatus = max(notes.comm.allgather(int(exitstatus)))
