"""Work counters: path, total and work of solvers one after the other and side by side."""

from __future__ import annotations

import numpy as np
import pytest

from ml2hpc.log import Work
from ml2hpc.log.work import KINDS, MEASURES


def work(*, gradients: int = 0, objectives: int = 0, hessians: int = 0, share: float = 1.0) -> Work:
    found = Work()
    for kind, count in (("gradients", gradients), ("objectives", objectives), ("hessians", hessians)):
        for _ in range(count):
            found.add(kind, share)
    return found


def test_an_evaluation_counts_once_and_weighs_its_share() -> None:
    found = work(gradients=3, objectives=1, hessians=2, share=0.25)
    np.testing.assert_array_equal(found.counts, [[1, 1, 0.25], [3, 3, 0.75], [2, 2, 0.5]])
    assert found["gradients", "work"] == 0.75
    with pytest.raises(ValueError, match="not in tuple"):
        found.add("gradient")


def test_sequential_parts_add_up() -> None:
    found = work(gradients=1)
    found.sequential([work(gradients=2, share=0.5), work(objectives=4)])
    np.testing.assert_array_equal(found.counts, [[4, 4, 4], [3, 3, 2], [0, 0, 0]])


def test_parallel_parts_count_the_longest_for_the_path() -> None:
    found = work(gradients=1)
    found.parallel([work(gradients=5, objectives=1, share=0.5), work(gradients=2, objectives=9), work(gradients=3)])
    # The path follows one part, the one with five gradients and one objective.
    np.testing.assert_array_equal(found.counts, [[1, 10, 9.5], [6, 11, 8.5], [0, 0, 0]])


def test_among_equal_gradients_hessians_and_then_objectives_decide() -> None:
    found = Work()
    found.parallel([work(objectives=2), work(objectives=7), work(objectives=3)])
    assert found["objectives", "path"] == 7
    found.clear()
    found.parallel([work(objectives=7), work(objectives=1, hessians=1)])
    assert (found["objectives", "path"], found["hessians", "path"]) == (1, 1)
    assert found["objectives", "total"] == 8


def test_counts_are_copied_and_named() -> None:
    counts = np.arange(9.0).reshape(len(KINDS), len(MEASURES))
    found = Work(counts.ravel())
    found.add("objectives")
    assert counts[0, 0] == 0.0
    assert list(found.columns().items())[:4] == [
        ("objectives_path", 1.0),
        ("objectives_total", 2.0),
        ("objectives_work", 3.0),
        ("gradients_path", 3.0),
    ]
    found.clear()
    assert not found.counts.any()
