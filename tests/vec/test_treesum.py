"""Sums over parts: the same bits on any number of ranks, as a serial evaluation of the tree gives them."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.log import Log
from ml2hpc.vec import TreeSum, treesum
from ml2hpc.vec.treesum import _deal, _middle, _subtrees

NUMBERS = (1, 2, 3, 5, 8, 13, 64, 100)


def vector(i: int, length: int, dtype: torch.dtype) -> Tensor:
    """Part i: sizes over ten decades, so that the order of additions shows in the last digits."""
    generator = torch.Generator().manual_seed(i)
    x = torch.randn(length, generator=generator, dtype=torch.float64)
    return (x * 10.0 ** torch.randint(-5, 6, (length,), generator=generator)).to(dtype)


def serial(n: int, length: int, dtype: torch.dtype) -> Tensor:
    """The tree in its plainest form."""

    def tree(low: int, high: int) -> Tensor:
        if high - low == 1:
            return vector(low, length, dtype)
        middle = low + 2 ** (math.ceil(math.log2(high - low)) - 1)
        return tree(low, middle) + tree(middle, high)

    return tree(0, n)


def costs(kind: str, n: int) -> list[float]:
    return {"even": [1.0] * n, "rising": [1.0 + i for i in range(n)], "one": [1.0] * (n - 1) + [1e6]}[kind]


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["even", "rising", "one"])
def test_the_bits_do_not_depend_on_the_ranks(comm, kind: str, dtype: torch.dtype) -> None:
    c = Communicator(comm, Log(), "spin")
    for n in NUMBERS:
        for length in (1, 17):
            total = TreeSum(c, costs(kind, n))
            seen: list[int] = []

            def part(i: int, out: Tensor, seen: list[int] = seen, length: int = length) -> None:
                seen.append(i)
                assert out.data_ptr() % 64 == 0
                out.copy_(vector(i, length, dtype))

            for _ in range(2):  # the buffers of the first call must not show in the second
                found = total(part, length, dtype)
                assert found.dtype == dtype
                assert torch.equal(found, serial(n, length, dtype))
            assert seen == 2 * list(total.parts)
            owned = comm.allgather(list(total.parts))
            assert [i for parts in owned for i in parts] == list(range(n))


def test_the_order_of_additions_matters_here() -> None:
    """Without a fixed tree the test above could not fail."""
    straight = torch.zeros(17, dtype=torch.float64)
    for i in range(100):
        straight += vector(i, 17, torch.float64)
    assert not torch.equal(straight, serial(100, 17, torch.float64))


@pytest.mark.parallel(1, 3)
def test_the_sum_is_exact_to_round_off(comm) -> None:
    n, length = 100, 17

    def part(i: int, out: Tensor) -> None:
        out.copy_(vector(i, length, torch.float64))

    found = TreeSum(Communicator(comm, Log(), "spin"), [1.0] * n)(part, length, torch.float64)
    parts = torch.stack([vector(i, length, torch.float64) for i in range(n)])
    for k in range(length):
        exact = sum((Fraction(v) for v in parts[:, k].tolist()), Fraction(0))
        # A part passes at most ceil(log2 n) additions, and each rounds once.
        bound = math.ceil(math.log2(n)) * 2.0**-53 * 1.01 * float(parts[:, k].abs().sum())
        assert abs(float(Fraction(found[k].item()) - exact)) <= bound


@pytest.mark.parallel(1, 2, 3, 4)
def test_a_sum_is_one_reduction_and_the_callers_own(comm) -> None:
    c = Communicator(comm, Log(), "spin")

    def number(i: int, out: Tensor) -> None:
        out.fill_(i)

    def other(i: int, out: Tensor) -> None:
        out.fill_(-7)

    for n in (1, 12):
        total = TreeSum(c, [1.0] * n)
        before = c.log.total.reductions
        first = total(number, 3, torch.float64)
        assert c.log.total.reductions - before == (c.size > 1)
        assert first.data_ptr() % 64 == 0
        kept = first.clone()
        total(other, 3, torch.float64)
        assert torch.equal(first, kept)
        assert first.tolist() == [n * (n - 1) / 2] * 3


def test_a_sum_without_parts_is_refused() -> None:
    with pytest.raises(AssertionError, match="at least one part"):
        TreeSum(Communicator.world(wait="spin"), [])


@pytest.mark.parallel(2, 3)
def test_long_vectors_are_exchanged_in_slices_with_the_same_bits(comm, monkeypatch) -> None:
    monkeypatch.setattr(treesum, "_LONGEST", 4096)
    c = Communicator(comm, Log(), "spin")
    n, length = 13, 1003

    def part(i: int, out: Tensor) -> None:
        out.copy_(vector(i, length, torch.float64))

    found = TreeSum(c, [1.0] * n)(part, length, torch.float64)
    assert torch.equal(found, serial(n, length, torch.float64))
    assert c.log.total.reductions > 3
    assert c.log.total.bytes < 1.2 * 8 * length * comm.size * 4


@pytest.mark.parametrize("n", NUMBERS)
def test_subtrees_cover_a_range_once_and_are_few(n: int) -> None:
    for start in range(n + 1):
        for stop in range(start, n + 1):
            trees = _subtrees(0, n, start, stop)
            assert [i for low, high in trees for i in range(low, high)] == list(range(start, stop))
            assert len(trees) <= 2 * math.ceil(math.log2(n + 1))


def test_the_tree_splits_at_the_largest_power_of_two_below() -> None:
    assert [_middle(0, n) for n in range(2, 10)] == [1, 2, 2, 4, 4, 4, 4, 8]
    assert _middle(8, 13) == 12


@pytest.mark.parametrize("kind", ["even", "rising", "one"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_deal_balances(kind: str, size: int) -> None:
    for n in NUMBERS:
        price = costs(kind, n)
        bounds = _deal(price, size)
        assert len(bounds) == size + 1
        assert bounds == sorted(bounds)
        assert (bounds[0], bounds[-1]) == (0, n)
        loads = [sum(price[low:high]) for low, high in pairwise(bounds)]
        assert max(loads) <= sum(price) / size + max(price)
        if kind == "even":
            assert max(loads) - min(loads) <= 1.0


def test_a_part_goes_where_its_middle_falls() -> None:
    """From both ends alike, where no middle lies on a bound."""
    price = [3.1, 1.7, 2.3, 9.7, 1.3, 4.1, 0.7]
    for size in (2, 3, 4, 5):
        bounds, turned = _deal(price, size), _deal(price[::-1], size)
        assert turned == [len(price) - bound for bound in reversed(bounds)]
    assert _deal(price, 3) == [0, 3, 4, 7]
