"""The -log_view table, to the letter."""

from __future__ import annotations

import pytest

from ml2hpc.log import Event, Log, Work, view


class Still(Log):
    """A log whose run took a given time."""

    def __init__(self, seconds: float, total: Event, **events: Event) -> None:
        super().__init__()
        self._seconds = seconds
        self.total = total
        self.events = {name.replace("_of_", " (").replace("_end", "_)"): e for name, e in events.items()}

    @property
    def seconds(self) -> float:
        return self._seconds


def logs() -> list[Log]:
    fast = Still(
        10.0,
        Event(0, 0.0, 4.0, 2, 6_000_000, 130),
        SNESSetUp=Event(1, 0.5),
        SNESSolve=Event(1, 9.0, 4.0, 0, 6_000_000, 120),
        SNESSolve_of_npc_sub_end=Event(400, 3.0),
    )
    slow = Still(
        10.0,
        Event(0, 0.0, 1.0, 0, 6_000_000, 130),
        SNESSetUp=Event(1, 0.00004),
        SNESSolve=Event(1, 9.0, 1.0, 0, 6_000_000, 120),
        SNESSolve_of_npc_sub_end=Event(400, 6.0),
        Checkpoint=Event(2, 0.25),
    )
    return [fast, slow]


def work() -> dict[str, Work]:
    outer, inner = Work(), Work()
    for _ in range(12):
        outer.add("gradients")
        inner.add("gradients", share=0.5)
    outer.add("objectives")
    outer.sequential([inner])
    return {"": outer, "npc_sub_": inner}


GOLDEN = """\
---------------------------------------------- ml2hpc Performance Summary ----------------------------------------------

pinn -snes_max_it 12 with 2 MPI processes

                         Max       Max/Min     Avg       Total
Time (sec):           1.000e+01     1.000   1.000e+01
Waiting (sec):        4.000e+00     4.000   2.500e+00
MPI Msg Count:        2.000e+00     0.000   1.000e+00  2.000e+00
MPI Bytes:            6.000e+06     1.000   6.000e+06  1.200e+07
MPI Reductions:       1.300e+02     1.000   1.300e+02

Count: times started; Ratio: largest over smallest of the ranks, 0.0 where the smallest is 0
Time: wall clock, inclusive of events inside; Compute: the time without Wait; Wait: inside communication
Mess, Bytes: sent point to point, received at all, sums over the ranks; Reduct: collective operations of one rank
%T: share of the time of all ranks
------------------------------------------------------------------------------------------------------------------------
Event                                 Count      Time (sec)   Compute (sec)      Wait (sec)    Mess   Bytes  Reduct  %T
                                  Max Ratio       Max Ratio       Max Ratio       Max Ratio
------------------------------------------------------------------------------------------------------------------------
SNESSetUp                           1   1.0 5.000e-01 1e+04 5.000e-01 1e+04 0.000e+00   0.0 0.0e+00 0.0e+00       0   3
SNESSolve                           1   1.0 9.000e+00   1.0 8.000e+00   1.6 4.000e+00   4.0 0.0e+00 1.2e+07     120  90
SNESSolve (npc_sub_)              400   1.0 6.000e+00   2.0 6.000e+00   2.0 0.000e+00   0.0 0.0e+00 0.0e+00       0  45
Checkpoint                          2   0.0 2.500e-01   0.0 2.500e-01   0.0 0.000e+00   0.0 0.0e+00 0.0e+00       0   1
------------------------------------------------------------------------------------------------------------------------

Evaluations: path: on the critical path, total: summed over subdomains, work: weighted by the operations spent,
where one evaluation of the whole problem counts 1
------------------------------------------------------------------------------------------------------------------------
Solver                                Objectives                           Gradients
                    path       total        work        path       total        work
------------------------------------------------------------------------------------------------------------------------
(outermost)          1.0         1.0         1.0        24.0        24.0        18.0
npc_sub_             0.0         0.0         0.0        12.0        12.0         6.0
------------------------------------------------------------------------------------------------------------------------"""


def test_golden_table() -> None:
    assert view(logs(), work(), "pinn -snes_max_it 12") == GOLDEN


def test_one_rank_without_work() -> None:
    table = view(logs()[:1], {}, "pinn")
    assert "\npinn with 1 MPI process\n" in table
    assert "Objectives" not in table


def test_an_event_still_open_and_a_log_of_no_time_do_not_divide_by_zero() -> None:
    log = Still(0.0, Event(), SNESSolve=Event(1, 0.0, 2.0, 0, 8, 1))
    row = next(line for line in view([log], {}, "pinn").splitlines() if line.startswith("SNESSolve"))
    assert row.split()[1:] == [
        "1",
        "1.0",
        "0.000e+00",
        "0.0",
        "0.000e+00",
        "0.0",
        "2.000e+00",
        "1.0",
        "0.0e+00",
        "8.0e+00",
        "1",
        "0",
    ]


@pytest.mark.parametrize("seconds", [1e-9, 1.0, 9.9e5])
def test_columns_stay_aligned(seconds: float) -> None:
    log = Still(1e6, Event(), SNESSolve=Event(9_999_999, seconds, seconds / 2, 3, 10**15, 9_999_999))
    lines = view([log, log], {}, "pinn").splitlines()
    row = next(line for line in lines if line.startswith("SNESSolve"))
    head = next(line for line in lines if line.startswith("Event"))
    assert len(row) == len(head)
    assert row.split()[8:12] == ["1.0", "6.0e+00", "2.0e+15", "9999999"]
