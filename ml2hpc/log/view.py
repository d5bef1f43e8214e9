"""The -log_view table: where the time went, who waited for whom, what was sent and what was evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from ml2hpc.log.events import Event, Log
from ml2hpc.log.work import KINDS, MEASURES, Work

_NAME = 29  # characters of an event's name with its prefix; longer ones widen the column
_RULE = "-" * 120
_LEGEND = """\
Count: times started; Ratio: largest over smallest of the ranks, 0.0 where the smallest is 0
Time: wall clock, inclusive of events inside; Compute: the time without Wait; Wait: inside communication
Mess, Bytes: sent point to point, received at all, sums over the ranks; Reduct: collective operations of one rank
%T: share of the time of all ranks"""
_EVENT_HEAD = f"""\
 {"Count":>13s} {"Time (sec)":>15s} {"Compute (sec)":>15s} {"Wait (sec)":>15s}    Mess   Bytes  Reduct  %T
 {"Max":>7s} {"Ratio":>5s}{3 * f" {'Max':>9s} {'Ratio':>5s}"}"""
_EVALUATIONS = """\

Evaluations: path: on the critical path, total: summed over subdomains, work: weighted by the operations spent,
where one evaluation of the whole problem counts 1"""


def _ratio(values: Sequence[float]) -> float:
    """Largest over smallest; 0 when the smallest is 0, as PETSc prints it."""
    return max(values) / min(values) if min(values) > 0 else 0.0


def _summary(name: str, values: Sequence[float], *, total: bool) -> str:
    average = sum(values) / len(values)
    line = f"{name:<21s} {max(values):.3e} {_ratio(values):9.3f}   {average:.3e}"
    return f"{line}  {sum(values):.3e}" if total else line


def _timing(values: Sequence[float]) -> str:
    ratio = _ratio(values)
    return f" {max(values):9.3e} " + (f"{ratio:5.1f}" if ratio < 999.95 else f"{ratio:5.0e}")


def _row(ranks: Sequence[Event], run: float) -> str:
    counts = [e.count for e in ranks]
    seconds = [e.seconds for e in ranks]
    # An event that is still open may have waited, and has no time yet.
    computing = [max(e.seconds - e.waiting, 0.0) for e in ranks]
    waiting = [e.waiting for e in ranks]
    messages, size = sum(e.messages for e in ranks), sum(e.bytes for e in ranks)
    reductions = max(e.reductions for e in ranks)
    share = 100.0 * sum(seconds) / run if run > 0 else 0.0
    return (
        f" {max(counts):7d} {_ratio(counts):5.1f}{_timing(seconds)}{_timing(computing)}"
        f"{_timing(waiting)} {messages:7.1e} {size:7.1e} {reductions:7d} {share:3.0f}"
    )


def _evaluations(work: dict[str, Work]) -> list[str]:
    used = [kind for kind in KINDS if any(counts[kind, measure] for counts in work.values() for measure in MEASURES)]
    if not used:
        return []
    width = max(map(len, ("(outermost)", *work))) + 1
    heads = "".join(f" {kind.capitalize():>{12 * len(MEASURES) - 1}s}" for kind in used)
    columns = "".join(f" {measure:>11s}" for _ in used for measure in MEASURES)
    rows = [
        f"{prefix or '(outermost)':<{width}s}" + "".join(f" {counts[k, m]:11.1f}" for k in used for m in MEASURES)
        for prefix, counts in work.items()
    ]
    return [_EVALUATIONS, _RULE, f"{'Solver':<{width}s}{heads}", f"{'':{width}s}{columns}", _RULE, *rows, _RULE]


def view(logs: Sequence[Log], work: dict[str, Work], command: str) -> str:
    """Return the table of a finished run. Not collective.

    Parameters
    ----------
    logs
        The log of every rank, rank 0 first.
    work
        Evaluations by solver prefix.
    command
        What was run, for the heading.
    """
    names = list(dict.fromkeys(name for log in logs for name in log.events))
    width = max(_NAME, *map(len, names), 0)
    times = [log.seconds for log in logs]
    total = [log.total for log in logs]
    lines = [
        " ml2hpc Performance Summary ".center(len(_RULE), "-"),
        "",
        f"{command} with {len(logs)} MPI process{'es' if len(logs) > 1 else ''}",
        "",
        f"{'':25s}Max       Max/Min     Avg       Total",
        _summary("Time (sec):", times, total=False),
        _summary("Waiting (sec):", [e.waiting for e in total], total=False),
        _summary("MPI Msg Count:", [e.messages for e in total], total=True),
        _summary("MPI Bytes:", [e.bytes for e in total], total=True),
        _summary("MPI Reductions:", [e.reductions for e in total], total=False),
        "",
        _LEGEND,
        _RULE,
        *(f"{word:<{width}s}{head}" for word, head in zip(("Event", ""), _EVENT_HEAD.split("\n"), strict=True)),
        _RULE,
        *(f"{name:<{width}s}{_row([log.events.get(name, Event()) for log in logs], sum(times))}" for name in names),
        _RULE,
        *_evaluations(work),
    ]
    return "\n".join(line.rstrip() for line in lines)
