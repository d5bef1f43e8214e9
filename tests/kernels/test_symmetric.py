"""The compiled sweep over a triangle against its five-line dense version, for every instruction set and type."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from ml2hpc import kernels

SETS = ["generic", "avx2", "avx512", "neon"]
TYPES = [torch.float64, torch.float32]
COEFFICIENTS = (0.9, 0.3, -0.2, 0.7)


def library(name: str) -> kernels.Library:
    best = kernels.load()
    if best is None:
        pytest.skip("built without a C compiler")
    able = {"avx512": SETS[:3], "avx2": SETS[:2], "neon": ["generic", "neon"], "generic": ["generic"]}
    if name not in able[best.instruction_set]:
        pytest.skip(f"this processor has {best.instruction_set}")
    found = kernels.load(name)
    assert found is not None
    return found


def aligned(*shape: int, dtype: torch.dtype) -> Tensor:
    """Random numbers whose rows start at multiples of 64 bytes."""
    generator = torch.Generator().manual_seed(sum(shape))
    lane = 64 // dtype.itemsize
    padded = torch.randn(*shape[:-1], -(-shape[-1] // lane) * lane, generator=generator, dtype=torch.float64)
    return padded.to(dtype)


def pointers(*vectors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(v.data_ptr()) for v in vectors]


@pytest.mark.parametrize("updates", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", SETS)
def test_a_sweep_equals_the_dense_version(name: str, dtype: torch.dtype, updates: bool) -> None:
    sweep = library(name).function("sweep", dtype)
    for first, last in ((0, 1), (0, 7), (0, 8), (0, 19), (5, 6), (8, 24), (13, 50), (96, 131)):
        shift = 16
        rows = aligned(last - first, last, dtype=dtype)
        before = rows.clone()
        u, w, g = (v[:last].clone() for v in aligned(3, 7 * last, dtype=dtype)[:, : rows.shape[1]].clone())
        u, w, g = (torch.cat([v, torch.zeros(rows.shape[1] - last, dtype=dtype)]) for v in (u, w, g))
        out = torch.full((shift + rows.shape[1] + 16,), 7.0, dtype=dtype)
        scale, m11, m12, m22 = COEFFICIENTS
        coefficients = torch.tensor(COEFFICIENTS, dtype=dtype)
        numbers = map(ctypes.c_long, (rows.stride(0), first, last))
        noted = pointers(coefficients)[0] if updates else None
        where = ctypes.c_long(shift), ctypes.c_long(len(out))
        sweep(*pointers(rows), *numbers, noted, *pointers(u, w, g, out), *where)

        h = before[:, :last].double()
        if updates:
            a = torch.stack([u, w], 1)[:last].double()
            middle = torch.tensor([[m11, m12], [m12, m22]], dtype=torch.float64)
            h = scale * h + a[first:] @ middle @ a.T
        lower = torch.zeros(last, last, dtype=torch.float64)
        lower[first:] = h
        lower = lower.tril()
        expected = (lower + lower.tril(-1).T) @ g[:last].double()
        bound = 50 * torch.finfo(dtype).eps
        torch.testing.assert_close(out[shift : shift + last].double(), expected, rtol=bound, atol=30 * bound)
        torch.testing.assert_close(rows[:, :last].double().tril(first), h.tril(first), rtol=bound, atol=bound)
        assert (out[:shift] == 0).all() and (out[shift + last :] == 0).all()
        if not updates:
            assert torch.equal(rows, before)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", SETS)
def test_entries_above_the_diagonal_do_not_matter(name: str, dtype: torch.dtype) -> None:
    """They may hold anything, even what is not a number."""
    sweep = library(name).function("sweep", dtype)
    n = 21
    rows = aligned(n, n, dtype=dtype)
    g = torch.ones(rows.shape[1], dtype=dtype)
    found = []
    for filling in (0.0, float("nan")):
        h = rows.clone()
        h[torch.triu(torch.ones(n, rows.shape[1], dtype=torch.bool), 1)] = filling
        out = torch.empty_like(g)
        coefficients = torch.tensor(COEFFICIENTS, dtype=dtype)
        numbers = map(ctypes.c_long, (h.stride(0), 0, n))
        where = ctypes.c_long(0), ctypes.c_long(len(out))
        sweep(*pointers(h), *numbers, *pointers(coefficients, g, g, g, out), *where)
        found.append(out[:n])
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", SETS)
def test_the_plain_sweep_scales_the_triangle(name: str, dtype: torch.dtype) -> None:
    rows = aligned(11, 30, dtype=dtype)
    expected = torch.where(torch.ones(11, 30).tril(19).bool(), 2 * rows[:, :30], rows[:, :30])
    number = (ctypes.c_double if dtype == torch.float64 else ctypes.c_float)(2.0)
    numbers = map(ctypes.c_long, (rows.stride(0), 19, 30))
    library(name).function("scale_rows", dtype)(*pointers(rows), *numbers, number)
    assert torch.equal(rows[:, :30].tril(19), expected.tril(19))
