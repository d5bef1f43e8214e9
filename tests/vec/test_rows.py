"""Rows against torch for every instruction set and type; the same bits on any number of threads; sharded rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.comm import Communicator
from ml2hpc.log import Log
from ml2hpc.vec import Replicated, Rows, Sharded
from tests.kernels.test_symmetric import SETS, TYPES, library

SHAPES = [(1, 1), (7, 3), (8, 64), (20, 101), (24, 4096), (3, 4099), (17, 9000)]


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def filled(count: int, n: int, found: kernels.Library | None, dtype: torch.dtype = torch.float64) -> Rows:
    rows = Rows(Replicated(n, dtype), count, found)
    rows.values.copy_(numbers(count, n))
    return rows


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", [*SETS, None])
def test_both_passes_equal_those_in_double_precision(
    name: str | None, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    """To the round-off of sums of as many numbers."""
    count, n = shape
    rows = filled(count, n, library(name) if name else None, dtype)
    a, eps = rows.values.double(), torch.finfo(dtype).eps
    x, y, weights = (numbers(length, dtype=dtype) for length in (n, n + 1, count))
    y = y[1:]  # starts between two whole vectors
    for found, v in zip(rows.products(x, y), (x, y), strict=True):
        assert found.dtype == dtype
        assert ((found - a @ v.double()).abs() <= n * eps * (a.abs() @ v.double().abs())).all()
    found = rows.combination(weights, -0.25, y)
    bound = count * eps * (a.abs().T @ weights.double().abs() + y.double().abs())
    assert ((found - (a.T @ weights.double() - 0.25 * y.double())).abs() <= bound).all()


@pytest.mark.parametrize("found", [kernels.load(), None], ids=["compiled", "torch"])
def test_a_part_is_some_of_the_rows_in_the_same_memory(found: kernels.Library | None) -> None:
    rows = filled(9, 101, found)
    part, x, weights = rows.part(2, 6), numbers(101), torch.zeros(9, dtype=torch.float64)
    weights[2:6] = numbers(4)
    torch.testing.assert_close(part.products(x, 2 * x), rows.products(x, 2 * x)[:, 2:6], rtol=1e-14, atol=1e-13)
    expected = rows.combination(weights, 0.5, x)
    torch.testing.assert_close(part.combination(weights[2:6], 0.5, x), expected, rtol=1e-14, atol=1e-13)
    rows.values[3] = 0.0
    assert not part.values[1].any() and len(rows.values) == 9


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", SETS)
def test_bits_depend_on_neither_threads_nor_other_rows(name: str, dtype: torch.dtype) -> None:
    count, n = 21, 9001
    rows = filled(count, n, library(name), dtype)
    x, y, weights = (numbers(length, dtype=dtype) for length in (n, n, count))
    products, combination = rows.products(x, y), rows.combination(weights, 0.5, y)
    for many in (2, 3):
        torch.set_num_threads(many)
        assert torch.equal(rows.products(x, y), products)
        assert torch.equal(rows.combination(weights, 0.5, y), combination)
    for i in (0, 7, 20):  # in whole tiles and apart
        alone = Rows(Replicated(n, dtype), 1, library(name))
        alone.values.copy_(rows.values[i : i + 1])
        assert torch.equal(alone.products(x, y)[:, 0], products[:, i])


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("found", [kernels.load(), None], ids=["compiled", "torch"])
def test_slices_are_summed_in_one_reduction(comm, found: kernels.Library | None) -> None:
    c = Communicator(comm, Log(), "spin")
    whole, space = filled(20, 101, found), Sharded(c, 101, torch.float64)
    rows = Rows(space, 20, found)
    rows.values.copy_(whole.values[:, space.rows])
    x, y, weights = (numbers(length) for length in (101, 102, 20))
    y, before = y[1:], c.log.total.reductions
    products = rows.products(space.local(x), space.local(y))
    assert c.log.total.reductions == before + (c.size > 1)
    torch.testing.assert_close(products, whole.products(x, y), rtol=1e-12, atol=1e-12)
    assert torch.equal(space.gather(products[0, :1].expand(space.n_local).contiguous()), products[0, :1].expand(101))
    combination = space.gather(rows.combination(weights, 0.5, space.local(y)))
    torch.testing.assert_close(combination, whole.combination(weights, 0.5, y), rtol=1e-12, atol=1e-12)
