"""Decompositions of a problem's unknowns by layers, tensors, blocks of the vector or boxes, or of its samples.

The coarse space of a two-level method is a decomposition too: one subdomain, made of some of the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ml2hpc.dm.boxes import BoxLocal, BoxSubdomain, Scattered, cut
from ml2hpc.dm.exchange import Exchange, Gathered
from ml2hpc.dm.subdomain import Local, Subdomain
from ml2hpc.errors import OptionsError
from ml2hpc.options import option
from ml2hpc.problem.grid import GridProblem
from ml2hpc.problem.interface import Block, Problem
from ml2hpc.vec import Partitioned, VectorSpace


@dataclass(frozen=True)
class Options:
    """Options `-dm_*` of the solver that decomposes."""

    decomposition: Literal["layers", "tensors", "blocks", "boxes", "samples", "coarse"] = option(
        "layers",
        "what is divided: consecutive layers, parameter tensors, equal blocks of the flat vector, boxes of a grid, "
        "or samples; coarse: one subdomain of some layers, the coarse space of a two-level method",
    )
    subdomains: int = option(2, "number of subdomains", at_least=1)
    overlap: int = option(0, "layers, tensors, unknowns or grid lines shared with each neighbour", at_least=0)
    cut: Literal["count", "cost"] = option(
        "count",
        "give each subdomain as many layers or tensors, as the published decompositions do, or as equal a cost of a "
        "local evaluation as can be: a low block's gradient costs up to 7 times a high one's",
    )
    # One coarse point for each subdomain, as published: arXiv 2406.10997.
    coarse: tuple[int, ...] = option(
        (), "layers of the coarse space; none given: the first one of each of the subdomains by layers", at_least=0
    )

    @property
    def count(self) -> int:
        """Number of subdomains of the decomposition: one, where it is a coarse space."""
        return 1 if self.decomposition == "coarse" else self.subdomains

    def brief(self) -> str:
        """Return the decomposition in a few words, such as "4 layers, overlap 1". Not collective."""
        if self.decomposition == "coarse":
            return f"coarse {','.join(map(str, self.coarse))}" if self.coarse else f"coarse of {self.subdomains}"
        return f"{self.subdomains} {self.decomposition}" + (f", overlap {self.overlap}" if self.overlap else "")


@dataclass(frozen=True)
class Decomposition:
    """The subdomains in order.

    Attributes
    ----------
    shares
        Cost of a local gradient over that of a whole one, by subdomain.
    """

    options: Options
    subdomains: tuple[Subdomain, ...]
    shares: tuple[float, ...]

    def exchange(self, problem: Problem, owners: Sequence[int], here: Mapping[int, Local]) -> Exchange:
        """Return how vectors come to some subdomains and how corrections come back. Not collective.

        Parameters
        ----------
        owners
            The rank that speaks for each subdomain.
        here
            The local problems that this rank solves.
        """
        boxes = [s for s in self.subdomains if isinstance(s, BoxSubdomain)]
        if not boxes:
            return Gathered(problem, owners, list(here), self.subdomains)
        assert isinstance(problem, GridProblem)
        parts = {k: local.restriction.part for k, local in here.items() if isinstance(local, BoxLocal)}
        return Scattered(problem, owners, boxes, parts)

    def view(self) -> list[str]:
        """Return lines for -snes_view: each subdomain with its cost against a whole gradient's. Not collective."""
        o = self.options
        cut = ", cut by cost" if o.cut == "cost" else ""
        lines = [f"decomposition by {o.decomposition}, {o.subdomains} subdomains, overlap {o.overlap}{cut}"]
        if o.decomposition == "coarse":
            lines = ["coarse space of whole layers"]
        shares = zip(self.subdomains, self.shares, strict=True)
        return lines + [f"  {k}: {s.describe()}, {share:.0%} of a gradient" for k, (s, share) in enumerate(shares)]


def decompose(problem: Problem, options: Options, prefix: str) -> Decomposition:
    """Return the decomposition of a problem. Not collective.

    Raises
    ------
    OptionsError
        If there are more subdomains than things to divide, or samples are asked to overlap, or blocks, boxes or
        samples to be cut by cost, or a problem on a grid to be cut otherwise than in boxes, or a coarse layer does not
        exist or is named without a coarse space.
    """
    kind = options.decomposition
    if options.coarse and kind != "coarse":
        raise OptionsError(f"-{prefix}dm_coarse: needs -{prefix}dm_decomposition coarse")
    if isinstance(problem.space, Partitioned) and kind != "boxes":
        raise OptionsError(f"-{prefix}dm_decomposition {kind}: vectors on a grid are partitioned; use boxes")
    if options.cut == "cost" and kind in ("blocks", "boxes", "samples"):
        raise OptionsError(f"-{prefix}dm_cut cost: {kind} are cut by count; use -{prefix}dm_decomposition layers")
    if kind == "samples":
        subdomains = _samples(problem, options, prefix)
        shares = tuple(len(s.rows) / problem.samples for s in subdomains if s.rows is not None)
        return Decomposition(options, subdomains, shares)
    if kind == "boxes":
        boxes = cut(problem, options.subdomains, options.overlap, prefix)
        return Decomposition(options, boxes, _shares(problem, boxes))
    if kind == "coarse":
        subdomains = (_coarse(problem, options, prefix),)
    else:
        edges = _edges(problem, kind)
        subdomains = _blocks(problem, options, edges, _bounds(problem, options, edges, prefix))
    return Decomposition(options, subdomains, _shares(problem, subdomains))


def _shares(problem: Problem, subdomains: Sequence[Subdomain]) -> tuple[float, ...]:
    """Cost of a local gradient over that of a whole one."""
    whole = problem.cost.gradient
    return tuple(problem.block_cost(s.block).gradient / whole for s in subdomains)


def _bounds(problem: Problem, options: Options, edges: Sequence[int], prefix: str) -> list[int]:
    """Number of the first unit that each subdomain owns, and of units at the end."""
    kind, n, count = options.decomposition, options.subdomains, len(edges) - 1
    if n > count:
        units = "layers" if kind == "coarse" else kind
        raise OptionsError(
            f"-{prefix}dm_subdomains {n}: there are only {count} {units} to divide; choose at most {count}"
        )
    return _bounds_by_cost(problem, options, edges) if options.cut == "cost" else _bounds_by_count(count, n)


def _coarse(problem: Problem, options: Options, prefix: str) -> Subdomain:
    """The layers that the user named, or the first one that each subdomain owns."""
    layers, space = problem.layers, problem.space
    if options.coarse:
        wrong = [k for k in options.coarse if k >= len(layers)]
        if wrong:
            raise OptionsError(f"-{prefix}dm_coarse {wrong[0]}: the layers are 0 to {len(layers) - 1}")
        chosen = sorted(set(options.coarse))
    else:
        chosen = _bounds(problem, options, _edges(problem, "layers"), prefix)[:-1]
    parts = [torch.arange(layers[k].start, layers[k].stop, device=space.device) for k in chosen]
    block = Block(torch.cat(parts), f"layers {','.join(map(str, chosen))}")
    ones = torch.ones(block.n, dtype=space.dtype, device=space.device)
    return Subdomain(block.name, block, ones, ones)


def _bounds_by_count(count: int, n: int) -> list[int]:
    """Equal counts; what is left over goes to the last ones, so an output layer joins the last hidden one."""
    return [k * (count // n) + max(0, k - n + count % n) for k in range(n + 1)]


def _bounds_by_cost(problem: Problem, options: Options, edges: Sequence[int]) -> list[int]:
    """Minimise the largest cost w of a local gradient over all cuts, by dynamic programming.

    With the units 0..b-1 in k subdomains, best(k, b) = min over a of max(best(k-1, a), w(a, b)), w with the overlap;
    among equal ones the smaller sum.
    """
    count, n, overlap = len(edges) - 1, options.subdomains, options.overlap

    @cache
    def w(low: int, high: int) -> float:
        return problem.block_cost(Block(slice(edges[low], edges[high]), "")).gradient

    @cache
    def best(k: int, b: int) -> tuple[float, float, tuple[int, ...]]:
        if k == 0:
            return 0.0, 0.0, (0,)
        found = []
        for a in range(k - 1, b) if k > 1 else (0,):
            largest, total, bounds = best(k - 1, a)
            cost = w(max(a - overlap, 0), min(b + overlap, count))
            found.append((max(largest, cost), total + cost, (*bounds, b)))
        return min(found)

    return list(best(n, count)[2])


def _edges(problem: Problem, kind: str) -> Sequence[int]:
    """Where the units that are divided begin in the vector, and its length at the end."""
    if kind == "blocks":
        return range(problem.space.n + 1)
    units = problem.tensors if kind == "tensors" else problem.layers
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
    weights = _partition_of_unity([b.indices for b in blocks], problem.space)
    found = []
    for block, weight, (a, b) in zip(blocks, weights, owned, strict=True):
        own = torch.zeros(problem.space.n, dtype=dtype, device=problem.space.device)
        own[edges[a] : edges[b]] = 1
        found.append(Subdomain(block.name, block, weight, own[block.indices]))
    return tuple(found)


def _partition_of_unity(blocks: Sequence[slice | Tensor], space: VectorSpace) -> list[Tensor]:
    """One over the multiplicity; the last one to see an unknown takes what is left, so that the sum is 1 exactly."""
    multiplicity, given = torch.zeros(2, space.n, dtype=space.dtype, device=space.device)
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
    shares = _partition_of_unity([whole.indices] * n, problem.space)
    return tuple(
        Subdomain(f"samples, share {k} of {n}", whole, share, share, rows)
        for k, (share, rows) in enumerate(zip(shares, problem.shares(n), strict=True))
    )
