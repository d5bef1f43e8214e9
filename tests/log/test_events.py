"""Events: nested and recursive times, and who is charged for communication."""

from __future__ import annotations

import pickle
import time

import pytest

from ml2hpc.log import Event, Log


class Clock:
    """A clock that tests move by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_times_are_inclusive(clock: Clock) -> None:
    log = Log()
    with log.event("Outer"):
        clock.now += 1.0
        for _ in range(2):
            with log.event("Inner"):
                clock.now += 4.0
        clock.now += 0.5
    clock.now += 8.0
    assert log.events == {"Outer": Event(1, 9.5), "Inner": Event(2, 8.0)}
    assert log.seconds == 17.5
    assert log.total == Event()


def test_recursion_counts_every_call_and_the_outermost_time(clock: Clock) -> None:
    log = Log()

    def solve(depth: int) -> None:
        with log.event("SNESSolve"):
            clock.now += 1.0
            log.communicated(0.25, 8, messages=1, reductions=1)
            if depth:
                solve(depth - 1)

    solve(2)
    assert log.events["SNESSolve"] == Event(3, 3.0, 0.75, 3, 24, 3)


def test_communication_is_charged_to_all_open_events_and_the_total(clock: Clock) -> None:
    log = Log()
    log.communicated(1.0, 1000, reductions=1)
    with log.event("Outer"):
        with log.event("Before"):
            pass
        with log.event("Inner"):
            log.communicated(2.0, 64, messages=3, reductions=1)
        log.communicated(0.5, 8)
    assert log.events["Before"] == Event(1)
    assert log.events["Inner"] == Event(1, 0.0, 2.0, 3, 64, 1)
    assert log.events["Outer"] == Event(1, 0.0, 2.5, 3, 72, 1)
    assert log.total == Event(0, 0.0, 3.5, 3, 1072, 2)


def test_a_prefix_names_an_event_of_its_own(clock: Clock) -> None:
    log = Log()
    with log.event("SNESSolve"), log.event("SNESSolve", "npc_"):
        clock.now += 1.0
    assert log.events == {"SNESSolve": Event(1, 1.0), "SNESSolve (npc_)": Event(1, 1.0)}


def test_an_exception_closes_its_events(clock: Clock) -> None:
    log = Log()

    def fail() -> None:
        with log.event("Outer"), log.event("Inner"):
            clock.now += 2.0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    log.communicated(1.0, 1)
    assert log.events == {"Outer": Event(1, 2.0), "Inner": Event(1, 2.0)}


def test_a_log_from_another_clock_keeps_its_seconds(clock: Clock) -> None:
    log = Log()
    with log.event("Solve"):
        clock.now += 3.0
    log.communicated(1.0, 2)
    sent = pickle.dumps(log)
    clock.now = 5e6  # another node started long before
    received = pickle.loads(sent)
    assert received.seconds == 3.0
    assert (received.events, received.total) == (log.events, log.total)
    with received.event("Solve"):
        received.communicated(0.5, 1)
    assert received.events["Solve"] == Event(2, 3.0, 0.5, 0, 1, 0)


def test_the_real_clock_is_in_seconds() -> None:
    log = Log()
    with log.event("Sleep"):
        time.sleep(0.05)
    assert 0.05 <= log.events["Sleep"].seconds <= log.seconds < 1.0
