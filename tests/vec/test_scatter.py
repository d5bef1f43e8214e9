"""Partitioned vectors and scatters: what is wanted arrives, and the way back is the transpose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.log import Log
from ml2hpc.vec import Partitioned, Scatter

SIZES = (7, 0, 12, 5)  # by rank; one rank of three owns nothing
N = sum(SIZES)


def whole(seed: int, *columns: int) -> Tensor:
    return torch.randn(N, *columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def space_on(comm) -> tuple[Partitioned, Tensor]:
    """A space whose order differs from that of whole vectors; the places of all numbers in whole vectors."""
    c = Communicator(comm, Log(), "yield")
    sizes = [*SIZES[: c.size - 1], N - sum(SIZES[: c.size - 1])]
    places = torch.randperm(N, generator=torch.Generator().manual_seed(c.size))
    start = sum(sizes[: c.rank])
    return Partitioned(c, sizes, places[start : start + sizes[c.rank]], torch.float64), places


def wanted_by(rank: int) -> Tensor:
    """Numbers in no order, some twice; the last rank wants none."""
    count = 0 if rank == 3 else 9 + rank
    return torch.randint(0, N, (count,), generator=torch.Generator().manual_seed(10 + rank))


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("columns", [(), (3,)])
def test_forward_brings_what_is_wanted(comm, columns: tuple[int, ...]) -> None:
    space, places = space_on(comm)
    wanted = wanted_by(comm.rank)
    x = whole(1, *columns)
    assert torch.equal(Scatter(space, wanted).forward(space.local(x)), x[places][wanted])


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("columns", [(), (2,)])
def test_reverse_is_the_transpose_of_forward(comm, columns: tuple[int, ...]) -> None:
    """With whole numbers every sum is exact, whatever its order."""
    space, places = space_on(comm)
    expected = torch.zeros(N, *columns, dtype=torch.float64)
    for rank in range(comm.size):
        y = torch.round(100 * whole(20 + rank, *columns))[: len(wanted_by(rank))]
        expected.index_add_(0, wanted_by(rank), y)
    mine = torch.round(100 * whole(20 + comm.rank, *columns))[: len(wanted_by(comm.rank))]
    scatter = Scatter(space, wanted_by(comm.rank))
    found = scatter.reverse(mine)
    start = space.bounds[comm.rank]
    assert torch.equal(found, expected[start : start + space.n_local])
    x = torch.round(100 * whole(2, *columns))
    left = float((scatter.forward(space.local(x)) * mine).sum())
    assert sum(comm.allgather(left)) == float((x[places] * expected).sum())


@pytest.mark.parallel(1, 2, 3, 4)
def test_only_the_ranks_concerned_send_and_messages_are_counted(comm) -> None:
    """Each rank wants the first two numbers of the next one that owns some."""
    c = Communicator(comm, Log(), "spin")
    space = Partitioned(c, [5] * c.size, torch.arange(5) + 5 * c.rank, torch.float64)
    neighbour = (c.rank + 1) % c.size
    scatter = Scatter(space, torch.tensor([5 * neighbour, 5 * neighbour + 1]))
    before = c.log.total.messages, c.log.total.bytes, c.log.total.reductions
    for _ in range(3):
        scatter.forward(space.zeros())
    total = c.log.total
    found = total.messages - before[0], total.bytes - before[1], total.reductions - before[2]
    assert found == ((3, 3 * 2 * 8, 0) if c.size > 1 else (0, 0, 0))


@pytest.mark.parallel(1, 2, 3, 4)
def test_whole_vectors_do_not_depend_on_the_ranks(comm) -> None:
    space, _ = space_on(comm)
    x, y = whole(3), whole(4, 2)
    assert torch.equal(space.gather(space.local(x)), x)
    assert torch.equal(space.gather(space.local(y)), y)
    assert all(torch.equal(a, b) for a, b in zip(space.wholes(*space.local(y).unbind(1)), y.unbind(1), strict=True))
    assert torch.equal(space.restored(x.numpy()), x[space.rows])


@pytest.mark.parallel(1, 2, 3, 4)
def test_products_and_norms_are_the_whole_vectors_on_every_rank(comm) -> None:
    space, _ = space_on(comm)
    x, y = whole(5), whole(6)
    found = space.dot(space.local(x), space.local(y)), space.one_norm(space.local(x))
    assert found == pytest.approx((float(x @ y), float(x.abs().sum())), rel=1e-14, abs=1e-14)
    assert len(set(comm.allgather(found))) == 1
    pair = torch.stack([space.local(x), space.local(y)])
    both = torch.stack([x, y])
    torch.testing.assert_close(space.mdot(pair, pair.T), both @ both.T, rtol=1e-14, atol=1e-14)
