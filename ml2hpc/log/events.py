"""Timed events of one rank: count, seconds, seconds waiting, messages, bytes, reductions.

Events nest; every figure is inclusive. Communication is charged to all events that are open, and its waiting time is
kept apart, so that a rank that waits for a slower one is seen to wait instead of to compute.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass
class Event:
    """Totals of one event on this rank."""

    count: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    messages: int = 0
    bytes: int = 0
    reductions: int = 0


class Timing:
    """A block that is timed as an event. It is entered some ten times an iteration: a generator would cost thrice."""

    __slots__ = ("_event", "_open", "_outermost", "_start")

    def __init__(self, event: Event, opened: list[Event]) -> None:
        self._event = event
        self._open = opened

    def __enter__(self) -> Event:
        event = self._event
        event.count += 1
        self._outermost = not any(event is other for other in self._open)  # inclusive figures count no other
        if self._outermost:
            self._open.append(event)
            self._start = time.perf_counter()
        return event

    def __exit__(self, *_: object) -> None:
        if self._outermost:
            self._event.seconds += time.perf_counter() - self._start
            self._open.pop()


class Log:
    """All events of one rank, by name; `total` holds what was communicated in or out of events.

    Not collective.

    >>> log = Log()
    >>> with log.event("SNESSolve", "npc_"):
    ...     log.communicated(0.25, 800, reductions=1)
    >>> log.events["SNESSolve (npc_)"].bytes, log.total.waiting
    (800, 0.25)
    """

    def __init__(self) -> None:
        self.events: dict[str, Event] = {}
        self.total = Event()
        self.started = time.perf_counter()
        self._open: list[Event] = []

    def event(self, name: str, prefix: str = "") -> Timing:
        """Return a context that times a block as event `name` of the solver with option prefix `prefix`."""
        return Timing(self.events.setdefault(f"{name} ({prefix})" if prefix else name, Event()), self._open)

    def communicated(self, seconds: float, size: int, *, messages: int = 0, reductions: int = 0) -> None:
        """Charge one finished communication of `size` bytes that this rank waited `seconds` for."""
        for event in (*self._open, self.total):
            event.waiting += seconds
            event.bytes += size
            event.messages += messages
            event.reductions += reductions

    @property
    def seconds(self) -> float:
        """Seconds since this log was made."""
        return time.perf_counter() - self.started

    def __getstate__(self) -> dict[str, Any]:
        # Clocks of different nodes start at different times: what travels is the time passed.
        return {"events": self.events, "total": self.total, "seconds": self.seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.events, self.total, self._open = state["events"], state["total"], []
        self.started = time.perf_counter() - state["seconds"]
