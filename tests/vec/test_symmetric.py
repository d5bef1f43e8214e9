"""Symmetric matrices dealt to ranks: dense gold versions, the same bits on any number of ranks, states."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.comm import Communicator
from ml2hpc.log import Log
from ml2hpc.vec import SymmetricMatrix
from ml2hpc.vec.symmetric import Update, _segments

BLOCKS = {
    "one": [slice(0, 1)],
    "few": [slice(0, 7)],
    "whole": [slice(0, 700)],
    "layers": [slice(0, 301), slice(301, 310), slice(310, 700)],
}
LIBRARIES = [kernels.load(), None]


def run(comm: Communicator, kind: str, library, dtype: torch.dtype, steps: int = 4, gold: bool = False):
    """Yield the products of some updates, and the dense matrix beside them."""
    blocks = BLOCKS[kind]
    n = blocks[-1].stop
    matrix = SymmetricMatrix(comm, blocks, dtype, library)
    dense = torch.zeros(n, n, dtype=torch.float64)
    for k, b in enumerate(blocks):
        matrix.set_identity(k, k + 2.0)
        dense[b, b] = (k + 2.0) * torch.eye(b.stop - b.start, dtype=torch.float64)
    generator = torch.Generator().manual_seed(n)
    for step in range(steps):
        u, w, g = torch.randn(3, n, generator=generator, dtype=torch.float64).to(dtype)
        updates: list[Update | None] = [
            (0.9, 0.1 + k, -0.2, 0.3) if (step + k) % 3 else None for k in range(len(blocks))
        ]
        matrix.update(u, w, updates)
        for b, update in zip(blocks, updates, strict=True):
            if update is not None and gold:
                scale, m11, m12, m22 = update
                a = torch.stack([u, w], 1)[b].double()
                dense[b, b] = (
                    scale * dense[b, b] + a @ torch.tensor([[m11, m12], [m12, m22]], dtype=torch.float64) @ a.T
                )
        yield matrix, g, dense


@pytest.mark.parallel(1, 3)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("library", LIBRARIES, ids=["compiled", "torch"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_products_and_updates_equal_the_dense_version(comm, kind: str, library, dtype: torch.dtype) -> None:
    bound = 100 * torch.finfo(dtype).eps
    for matrix, g, dense in run(Communicator(comm, Log(), "spin"), kind, library, dtype, gold=True):
        expected = dense @ g.double()
        for _ in range(2):  # the second product finds nothing pending
            assert (matrix.product(g).double() - expected).norm() <= bound * expected.norm()


@pytest.mark.parallel(2, 3, 4)
@pytest.mark.parametrize("library", LIBRARIES, ids=["compiled", "torch"])
@pytest.mark.parametrize("kind", ["few", "whole", "layers"])
def test_ranks_share_the_matrix_and_find_the_same_bits(comm, kind: str, library) -> None:
    c = Communicator(comm, Log(), "spin")
    shared, single = (run(d, kind, library, torch.float64) for d in (c, c.alone()))
    for (mine, g, _), (whole, _, _) in zip(shared, single, strict=True):
        before = c.log.total.reductions
        product = mine.product(g)
        assert c.log.total.reductions == before + 1
        assert torch.equal(product, whole.product(g))
    stored = comm.allgather(memory(mine))
    if kind == "whole":
        assert max(stored) <= 1.6 * sum(stored) / c.size
        assert sum(stored) <= 1.4 * g.numel() ** 2 / 2


def memory(matrix: SymmetricMatrix) -> int:
    return sum(s.rows.numel() for s in matrix._segments if s.rows is not None)


@pytest.mark.parallel(2, 3)
@pytest.mark.parametrize("pending", [True, False])
@pytest.mark.parametrize("kind", ["few", "layers"])
def test_a_state_goes_on_bitwise_on_other_numbers_of_ranks(comm, kind: str, pending: bool) -> None:
    c = Communicator(comm, Log(), "spin")
    for matrix, g, _ in run(c, kind, kernels.load(), torch.float64):
        if not pending:
            matrix.product(g)
        state = matrix.state()
        assert (len(state["segments"]) > 0) == (c.rank == 0)  # only there is the whole of it
        state = comm.bcast(state)
        product = matrix.product(g)
        for other in (c, c.alone()):
            again = SymmetricMatrix(other, BLOCKS[kind], torch.float64, kernels.load())
            again.load(state)
            assert torch.equal(again.product(g), product)


@pytest.mark.parametrize("n", [1, 2, 9, 90, 91, 181, 182, 1000, 3021, 12951, 20000])
def test_segments_cover_the_rows_and_share_the_work(n: int) -> None:
    found = _segments(n)
    assert [row for first, last in found for row in range(first, last)] == list(range(n))
    assert len(found) == min(max(2 ** round(math.log2(n / 128)), 1), 64)
    areas = [last * (last + 1) / 2 - first * (first + 1) / 2 for first, last in found]
    assert max(areas) <= 1.4 * sum(areas) / len(areas)
    memory = sum((last - first) * last for first, last in found)
    assert len(found) < 16 or memory <= 1.15 * n * n / 2


def test_an_update_waits_for_one_product() -> None:
    matrix, _, _ = next(run(Communicator.world(wait="spin"), "layers", None, torch.float64))
    zero: Tensor = torch.zeros(700, dtype=torch.float64)
    with pytest.raises(AssertionError, match="waits for its product"):
        matrix.update(zero, zero, [None, None, None])
