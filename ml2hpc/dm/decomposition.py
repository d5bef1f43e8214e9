"""Decompositions of a problem's unknowns by layers, tensors or blocks of the flat vector, or of its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ml2hpc.dm.subdomain import Subdomain
from ml2hpc.errors import OptionsError
from ml2hpc.options import option
from ml2hpc.problem.interface import Block, Problem, even_rows


@dataclass(frozen=True)
class Options:
    """Options `-dm_*` of the solver that decomposes."""

    decomposition: Literal["layers", "tensors", "blocks", "samples"] = option(
        "layers",
        "what is divided: consecutive layers, parameter tensors, equal blocks of the flat vector, or samples",
    )
    subdomains: int = option(2, "number of subdomains", at_least=1)
    overlap: int = option(0, "layers, tensors or unknowns shared with each neighbour", at_least=0)


@dataclass(frozen=True)
class Decomposition:
    """The subdomains in order."""

    options: Options
    subdomains: tuple[Subdomain, ...]

    def view(self) -> list[str]:
        """Return lines for -snes_view. Not collective."""
        o = self.options
        lines = [f"decomposition by {o.decomposition}, {o.subdomains} subdomains, overlap {o.overlap}"]
        return lines + [f"  {k}: {s.describe()}" for k, s in enumerate(self.subdomains)]


def decompose(problem: Problem, options: Options, prefix: str) -> Decomposition:
    """Return the decomposition of a problem. Not collective.

    Raises
    ------
    OptionsError
        If there are more subdomains than things to divide, or samples are asked to overlap.
    """
    kind, n = options.decomposition, options.subdomains
    if kind == "samples":
        return Decomposition(options, _samples(problem, options, prefix))
    edges = _edges(problem, kind)
    count = len(edges) - 1
    if n > count:
        raise OptionsError(
            f"-{prefix}dm_subdomains {n}: there are only {count} {kind} to divide; choose at most {count}"
        )
    # Equal counts; what is left over goes to the last ones, so an output layer joins the last hidden one.
    bounds = [k * (count // n) + max(0, k - n + count % n) for k in range(n + 1)]
    return Decomposition(options, _blocks(problem, options, edges, bounds))


def _edges(problem: Problem, kind: str) -> Sequence[int]:
    """Where the units that are divided begin in the vector, and its length at the end."""
    if kind == "blocks":
        return range(problem.space.n + 1)
    units = problem.layers if kind == "layers" else problem.tensors
    return [0, *(unit.stop for unit in units)]


def _blocks(problem: Problem, options: Options, edges: Sequence[int], bounds: Sequence[int]) -> tuple[Subdomain, ...]:
    """Subdomain k owns the units bounds[k]..bounds[k+1]-1 and sees `overlap` more on either side."""
    kind, overlap, dtype = options.decomposition, options.overlap, problem.space.dtype
    owned = list(pairwise(bounds))
    seen = [(max(a - overlap, 0), min(b + overlap, len(edges) - 1)) for a, b in owned]
    blocks = []
    for a, b in seen:
        name = "unknowns" if kind == "blocks" else kind
        blocks.append(Block(slice(edges[a], edges[b]), f"{name} {a}" if b - a == 1 else f"{name} {a}-{b - 1}"))
    weights = _partition_of_unity([b.indices for b in blocks], problem.space.n, dtype)
    found = []
    for block, weight, (a, b) in zip(blocks, weights, owned, strict=True):
        own = torch.zeros(problem.space.n, dtype=dtype)
        own[edges[a] : edges[b]] = 1
        found.append(Subdomain(block.name, block, weight, own[block.indices]))
    return tuple(found)


def _partition_of_unity(blocks: Sequence[slice | Tensor], n: int, dtype: torch.dtype) -> list[Tensor]:
    """One over the multiplicity; the last one to see an unknown takes what is left, so that the sum is 1 exactly."""
    multiplicity, given = torch.zeros(2, n, dtype=dtype)
    for block in blocks:
        multiplicity[block] += 1
    left, weights = multiplicity.clone(), []
    for block in blocks:
        weights.append(torch.where(left[block] == 1, 1 - given[block], 1 / multiplicity[block]))
        left[block] -= 1
        given[block] += weights[-1]
    return weights


def _samples(problem: Problem, options: Options, prefix: str) -> tuple[Subdomain, ...]:
    n = options.subdomains
    if n > problem.samples:
        raise OptionsError(
            f"-{prefix}dm_subdomains {n}: there are only {problem.samples} samples to divide; "
            f"choose at most {problem.samples}"
        )
    if options.overlap:
        raise OptionsError(f"-{prefix}dm_overlap {options.overlap}: sample subdomains do not overlap; use 0")
    whole = Block(slice(0, problem.space.n), "all")
    shares = _partition_of_unity([whole.indices] * n, problem.space.n, problem.space.dtype)
    return tuple(
        Subdomain(f"samples {k}::{n}", whole, share, share, even_rows(problem.samples, k, n))
        for k, share in enumerate(shares)
    )
