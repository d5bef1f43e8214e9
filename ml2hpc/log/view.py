"""The -log_view table: where the time went, who waited for whom, what was sent and what was evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from ml2hpc.log.events import Event, Log
from ml2hpc.log.work import KINDS, MEASURES, Work

_RULE = "-" * 120


def _ratio(values: Sequence[float]) -> float:
    """Largest over smallest; 0 when the smallest is 0, as PETSc prints it."""
    return max(values) / min(values) if min(values) > 0 else 0.0


def _row(name: str, ranks: Sequence[Event], run: float) -> str:
    seconds = [e.seconds for e in ranks]
    computing = [max(e.seconds - e.waiting, 0.0) for e in ranks]
    waiting = [e.waiting for e in ranks]
    counts = [e.count for e in ranks]
    messages, size = sum(e.messages for e in ranks), sum(e.bytes for e in ranks)
    reductions = max(e.reductions for e in ranks)
    share = 100.0 * max(seconds) / run if run > 0 else 0.0
    return (
        f"{name:<34s} {max(counts):7d} {_ratio(counts):4.1f} {max(seconds):10.4e} {_ratio(seconds):5.1f}"
        f" {max(computing):10.4e} {max(waiting):10.4e} {messages:8.1e} {size:8.1e} {reductions:8d} {share:4.0f}"
    )


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
    times = [log.seconds for log in logs]
    run = max(times)
    total = [log.total for log in logs]
    waiting = [e.waiting for e in total]
    lines = [
        _RULE,
        f"{command} on {len(logs)} {'rank' if len(logs) == 1 else 'ranks'}",
        "",
        f"{'':25s} {'Max':>10s} {'Max/Min':>9s} {'Avg':>10s}",
        f"{'Time (sec):':25s} {run:10.3e} {_ratio(times):9.3f} {sum(times) / len(times):10.3e}",
        f"{'Waiting (sec):':25s} {max(waiting):10.3e} {_ratio(waiting):9.3f} {sum(waiting) / len(waiting):10.3e}",
        f"{'MPI messages:':25s} {max(e.messages for e in total):10.3e}",
        f"{'MPI bytes:':25s} {max(e.bytes for e in total):10.3e}",
        f"{'MPI reductions:':25s} {max(e.reductions for e in total):10.3e}",
        "",
        f"{'Event':<34s} {'Count':>12s} {'Time (sec)':>16s} {'Compute':>10s} {'Wait':>10s}"
        f" {'Mess':>8s} {'Bytes':>8s} {'Reduct':>8s} {'%T':>4s}",
        f"{'':34s} {'Max':>7s} {'R':>4s} {'Max':>10s} {'Ratio':>5s} {'Max':>10s} {'Max':>10s}"
        f" {'Sum':>8s} {'Sum':>8s} {'Max':>8s}",
        _RULE,
    ]
    lines += [_row(name, [log.events.get(name, Event()) for log in logs], run) for name in names]
    lines += [
        _RULE,
        "Evaluations: path = critical path, total = summed over subdomains, work = weighted by the operations spent",
    ]
    used = [k for k in KINDS if any(counts[k, "total"] or counts[k, "work"] for counts in work.values())]
    lines.append(f"{'Solver':<16s}" + "".join(f"{k + ' ' + m:>17s}" for k in used for m in MEASURES))
    for prefix, counts in work.items():
        lines.append(f"{prefix or 'snes_':<16s}" + "".join(f"{counts[k, m]:17.1f}" for k in used for m in MEASURES))
    return "\n".join([*lines, _RULE])
