"""Vectors shared with PETSc: one memory, what is refused, who keeps it alive, what PETSc hears of."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from ml2hpc.errors import UnsupportedError, UserError
from ml2hpc.vec import Replicated, Sharded
from ml2hpc.vec.petsc import Evaluations, Owned, check, communicator, load, reading, share, writing
from tests.snes.problems import world

pytest.importorskip("petsc4py")


def numbers(n: int = 6) -> torch.Tensor:
    return torch.arange(1.0, n + 1, dtype=torch.float64)


def test_a_shared_vector_is_the_same_memory():
    x = numbers()
    vec = share(x, load().COMM_SELF)
    vec.scale(2.0)
    assert torch.equal(x, 2 * numbers())
    assert reading(vec).data_ptr() == x.data_ptr()


def test_petsc_hears_of_what_torch_writes():
    x = numbers()
    vec = share(x, load().COMM_SELF)
    assert vec.norm() == pytest.approx(float(x.norm()), rel=1e-15)
    with writing(vec) as values:
        assert vec.norm() > 0.0  # kept by PETSc until the block ends
        values.zero_()
    assert vec.norm() == 0.0
    x.fill_(1.0)
    assert vec.norm() == 0.0, "PETSc keeps norms: without the block it would not have to be told"


def test_the_state_rises_even_if_the_block_fails():
    vec = share(numbers(), load().COMM_SELF)
    states = []

    def fail() -> None:
        with writing(vec):
            states.append(vec.stateGet())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert vec.stateGet() > states[0]


def test_inner_products_do_not_depend_on_where_vectors_lie():
    """Four vectors at equal distances, as a heap may place them, and apart."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 87, generator=generator, dtype=torch.float64)
    x = share(torch.randn(87, generator=generator, dtype=torch.float64), load().COMM_SELF)
    apart = torch.zeros(8, 1000, dtype=torch.float64)
    places = [apart[k * (k + 1) // 2, :87] for k in range(4)]
    for place, row in zip(places, values, strict=True):
        place.copy_(row)
    near, far = ([share(row, load().COMM_SELF) for row in rows] for rows in (values, places))
    assert x.mDot(near).tolist() == x.mDot(far).tolist()


def test_a_vec_keeps_the_tensor_alive_and_a_tensor_the_vec():
    vecs = [share(numbers(1000) + k, load().COMM_SELF) for k in range(20)]
    gc.collect()
    noise = [torch.full((1000,), -1.0, dtype=torch.float64) for _ in range(40)]
    assert [float(reading(v)[0]) for v in vecs] == [1.0 + k for k in range(20)]
    tensors = []
    for k in range(20):
        vec = load().Vec().createSeq(1000)
        vec.set(float(k))
        tensors.append(reading(vec))
        vec.destroy()
    gc.collect()
    noise += [torch.full((1000,), -1.0, dtype=torch.float64) for _ in range(40)]
    assert [float(t.sum()) for t in tensors] == [1000.0 * k for k in range(20)]
    assert len(noise) == 80


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (torch.arange(4), "must be float64"),
        (torch.ones(4), "must be float64"),
        (numbers()[::2], "contiguous"),
        (numbers().reshape(2, 3), "a vector"),
        (numbers().requires_grad_(), "without a gradient"),
        (numbers().to("meta"), "host's memory"),
    ],
)
def test_what_petsc_would_misread_is_refused(wrong, told):
    with pytest.raises(UserError, match=told):
        share(wrong, load().COMM_SELF)


def test_spaces_that_petsc_cannot_hold_are_refused():
    with pytest.raises(UnsupportedError, match="-dtype float64"):
        check(Replicated(3, torch.float32))
    with pytest.raises(UnsupportedError, match="-device cpu"):
        check(Replicated(3, torch.float64, torch.device("meta")))


@pytest.mark.parallel(1, 2, 4)
def test_slices_are_one_vec_and_whole_vectors_one_on_each_rank(comm):
    here = world(comm)
    sharded, whole = Sharded(here, 11, torch.float64), Replicated(11, torch.float64)
    x = numbers(11)
    vec = share(sharded.local(x).clone(), communicator(sharded, here))
    assert vec.getSize() == 11
    assert vec.norm() == pytest.approx(float(x.norm()), rel=1e-15)
    alone = share(x, communicator(whole, here))
    assert (alone.getSize(), alone.comm.size) == (11, 1)


@pytest.mark.parallel(1, 2, 4)
def test_owned_slices_lie_as_petsc_says(comm):
    vec = load().Vec().createMPI(10, comm=comm)  # its own ranges: the first ranks have one more
    low, high = vec.getOwnershipRange()
    vec.setArray(np.arange(low, high, dtype=np.float64))
    space = Owned(world(comm), [int(n) for n in np.diff(vec.getOwnershipRanges())])
    assert (space.rows.start, space.rows.stop) == (low, high)
    assert torch.equal(space.gather(reading(vec)), torch.arange(10, dtype=torch.float64))


@pytest.mark.parallel(1, 2)
def test_an_evaluation_is_made_once_for_a_point(comm):
    here = world(comm)
    space = Sharded(here, 4, torch.float64)
    calls = []

    def gradient(x):
        calls.append("gradient")
        return space.dot(x, x), 2 * x

    def objective(x):
        calls.append("objective")
        return space.dot(x, x)

    evaluations = Evaluations(space, here, objective, gradient, lambda x, v: v)
    x = space.local(numbers(4)).clone()
    assert evaluations.value(x) == 30.0
    assert evaluations.value(x) == 30.0
    assert evaluations.value_and_gradient(x)[0] == 30.0
    assert evaluations.value(x.clone()) == 30.0
    assert calls == ["objective", "gradient"]
    other = x.clone()
    other[-1] += 0.0 if comm.rank else 1.0  # a point that differs on one rank only is another point
    evaluations.value(other)
    assert calls == ["objective", "gradient", "objective"]
