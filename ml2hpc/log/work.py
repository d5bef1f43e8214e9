"""Evaluations of the loss and its derivatives, counted three ways, because one number alone misleads.

`total`: summed over all subdomains. `path`: on the critical path, what runs at the same time counted once (the #g_e of
the SPQN papers). `work`: weighted by the share of the full problem's floating-point operations really spent (frozen
prefixes, sampled points).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

KINDS = ("objectives", "gradients", "hessians")
MEASURES = ("path", "total", "work")


class Work:
    """A table of counts, one row per kind of evaluation, one column per measure. Not collective.

    >>> a = Work(); a.add("gradients"); a.add("gradients", share=0.5)
    >>> a["gradients", "path"], a["gradients", "work"]
    (2.0, 1.5)
    >>> b = Work(); b.parallel([a, a])
    >>> b["gradients", "path"], b["gradients", "total"], b["gradients", "work"]
    (2.0, 4.0, 3.0)
    """

    def __init__(self, counts: NDArray[np.float64] | None = None) -> None:
        self.counts = np.zeros((len(KINDS), len(MEASURES))) if counts is None else counts.reshape(len(KINDS), -1).copy()

    def __getitem__(self, key: tuple[str, str]) -> float:
        return float(self.counts[KINDS.index(key[0]), MEASURES.index(key[1])])

    def add(self, kind: str, share: float = 1.0, times: float = 1.0) -> None:
        """Count `times` evaluations, each of which costs `share` of the same evaluation of the full problem."""
        self.counts[KINDS.index(kind)] += (times, times, times * share)

    def sequential(self, parts: Iterable[Work]) -> None:
        """Add parts that ran one after the other."""
        for part in parts:
            self.counts += part.counts

    def parallel(self, parts: Iterable[Work]) -> None:
        """Add parts that ran at the same time: the longest counts for the path, all count for the totals.

        The longest has the most gradients; among equals, the most Hessian actions, then objectives.
        """
        parts = list(parts)
        self.counts[:, 1:] += sum(part.counts[:, 1:] for part in parts)
        longest = max(parts, key=lambda part: [part[kind, "path"] for kind in ("gradients", "hessians", "objectives")])
        self.counts[:, 0] += longest.counts[:, 0]

    def clear(self) -> None:
        """Start again from zero."""
        self.counts[:] = 0.0

    def columns(self) -> dict[str, float]:
        """Names and figures for a history table: `gradients_path`, `gradients_total`, ..."""
        return {f"{k}_{m}": float(self.counts[i, j]) for i, k in enumerate(KINDS) for j, m in enumerate(MEASURES)}
