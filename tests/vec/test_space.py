"""Vector spaces: inner products that all ranks agree on to the last bit, slices and whole vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.log import Log
from ml2hpc.vec import Replicated, Sharded

LENGTHS = (1, 2, 3, 10, 1003)


def whole(n: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same_everywhere(comm, value: Tensor) -> bool:
    return len(set(comm.allgather(value.contiguous().numpy().tobytes()))) == 1


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sharded_inner_products_are_the_whole_vectors(comm, dtype: torch.dtype) -> None:
    c = Communicator(comm, Log(), "spin")
    eps = torch.finfo(dtype).eps
    for n in LENGTHS:
        space = Sharded(c, n, dtype)
        x, y = whole(n, 1, dtype), whole(n, 2, dtype)
        left = torch.stack([whole(n, seed, dtype) for seed in range(5)])
        mine, local = left[:, space.rows].contiguous(), space.local(y)
        bound = 2 * n * eps
        found = space.mdot(mine, local)
        assert (found.shape, found.dtype) == ((5,), dtype)
        assert same_everywhere(comm, found)
        assert ((found - left @ y).abs() <= bound * (left.abs() @ y.abs())).all()
        block = space.mdot(mine, mine.T.contiguous())
        assert block.shape == (5, 5)
        assert same_everywhere(comm, block)
        assert ((block - left @ left.T).abs() <= bound * (left.abs() @ left.abs().T)).all()
        product = space.dot(space.local(x), local)
        assert set(comm.allgather(product)) == {product}
        assert abs(product - float(x @ y)) <= bound * float(x.abs() @ y.abs())
        assert space.norm(local) == math.sqrt(space.dot(local, local))


@pytest.mark.parallel(1, 2, 3, 4)
def test_slices_cover_the_vector_and_come_back_bitwise(comm) -> None:
    c = Communicator(comm, Log(), "yield")
    for n in (0, *LENGTHS):
        space = Sharded(c, n, torch.float64)
        x = whole(n, 3)
        assert space.local(x).shape == space.zeros().shape == (space.n_local,)
        assert space.zeros().dtype == torch.float64
        assert torch.equal(space.gather(space.local(x)), x)
        assert space.gather(space.local(x)).data_ptr() % 64 == 0
        rows = comm.allgather((space.rows.start, space.rows.stop))
        assert [i for start, stop in rows for i in range(start, stop)] == list(range(n))
        lengths = [stop - start for start, stop in rows]
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parallel(1, 2, 3)
def test_several_vectors_come_back_bitwise_in_one_exchange(comm) -> None:
    c = Communicator(comm, Log(), "spin")
    vectors = [whole(1003, seed) for seed in range(3)]
    space = Sharded(c, 1003, torch.float64)
    before = c.log.total.reductions
    found = space.wholes(*(space.local(v) for v in vectors))
    assert c.log.total.reductions - before == (c.size > 1)
    assert all(torch.equal(a, b) and a.data_ptr() % 64 == 0 for a, b in zip(found, vectors, strict=True))
    found = Replicated(1003, torch.float64).wholes(*vectors)
    assert all(a is b for a, b in zip(found, vectors, strict=True))


@pytest.mark.parallel(2, 3)
def test_a_batch_of_products_is_one_reduction(comm) -> None:
    c = Communicator(comm, Log(), "spin")
    space = Sharded(c, 100, torch.float64)
    space.mdot(torch.ones(7, space.n_local, dtype=torch.float64), torch.ones(space.n_local, dtype=torch.float64))
    assert (c.log.total.reductions, c.log.total.bytes) == (1, 7 * 8 * c.size)
    x, y = (space.local(torch.linspace(a, 2, 100, dtype=torch.float64)) for a in (0, 1))
    assert space.dots((x, x), (x, y)) == [space.dot(x, x), space.dot(x, y)]
    assert c.log.total.reductions == 1 + 1 + 2


@pytest.mark.parallel(1, 3)
def test_what_is_not_a_number_reaches_all_ranks(comm) -> None:
    c = Communicator(comm, Log(), "spin")
    space = Sharded(c, 9, torch.float64)
    x = torch.ones(9, dtype=torch.float64)
    x[0] = float("nan")
    assert math.isnan(space.norm(space.local(x)))


def test_replicated_products_need_nobody() -> None:
    space = Replicated(4, torch.float64)
    x, y = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64), torch.tensor([1.0, 0, -1, 2], dtype=torch.float64)
    assert space.dot(x, y) == 6.0
    assert space.dots((x, y), (x, x)) == [6.0, 30.0]
    assert space.norm(torch.tensor([3.0, 4.0])) == 5.0
    np.testing.assert_array_equal(space.mdot(torch.stack([x, y]), y), [6.0, 6.0])
    assert (space.n_local, space.rows) == (4, slice(0, 4))
    assert torch.equal(space.local(x), x)
    assert torch.equal(space.gather(x), x)
    assert torch.equal(space.zeros(), torch.zeros(4, dtype=torch.float64))
