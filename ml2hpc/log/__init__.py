"""Floor 0: what a run did and what it cost: timed events and work counters."""

from ml2hpc.log.events import Event, Log
from ml2hpc.log.view import view
from ml2hpc.log.work import Work

__all__ = ["Event", "Log", "Work", "view"]
