"""Decompositions of a problem's unknowns by layers, tensors or blocks of the flat vector, or of its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

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
        return lines + [f"  {k}: {s.name}, {s.block.n} unknowns" for k, s in enumerate(self.subdomains)]


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
    units = {"layers": problem.layers, "tensors": problem.tensors}.get(kind) or [
        slice(i, i + 1) for i in range(problem.space.n)
    ]
    if n > len(units):
        raise OptionsError(
            f"-{prefix}dm_subdomains {n}: there are only {len(units)} {kind} to divide; choose at most {len(units)}"
        )
    # Equal counts; what is left over goes to the last ones, so an output layer joins the last hidden one.
    bounds = [k * (len(units) // n) + max(0, k - n + len(units) % n) for k in range(n + 1)]
    parts = [
        (max(a - options.overlap, 0), min(b + options.overlap, len(units)))
        for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    return Decomposition(options, _blocks(problem, kind, units, parts, bounds))


def _blocks(
    problem: Problem, kind: str, units: Sequence[slice], parts: Sequence[tuple[int, int]], bounds: Sequence[int]
) -> tuple[Subdomain, ...]:
    dtype = problem.space.dtype
    multiplicity = torch.zeros(problem.space.n, dtype=dtype)
    spans = [slice(units[a].start, units[b - 1].stop) for a, b in parts]
    for span in spans:
        multiplicity[span] += 1
    found = []
    for k, ((a, b), span) in enumerate(zip(parts, spans, strict=True)):
        name = f"{kind} {a}" if b - a == 1 else f"{kind} {a}-{b - 1}"
        own = torch.zeros(problem.space.n, dtype=dtype)
        own[units[bounds[k]].start : units[bounds[k + 1] - 1].stop] = 1
        found.append(Subdomain(name, Block(span, name), 1 / multiplicity[span], own[span]))
    return tuple(found)


def _samples(problem: Problem, options: Options, prefix: str) -> tuple[Subdomain, ...]:
    n = options.subdomains
    if n > problem.samples:
        raise OptionsError(f"-{prefix}dm_subdomains {n}: there are only {problem.samples} samples to divide")
    if options.overlap:
        raise OptionsError(f"-{prefix}dm_overlap {options.overlap}: sample subdomains do not overlap; use 0")
    whole = Block(slice(0, problem.space.n), "all")
    share = torch.full((problem.space.n,), 1.0 / n, dtype=problem.space.dtype)
    return tuple(
        Subdomain(f"samples {k}::{n}", whole, share, share, even_rows(problem.samples, k, n)) for k in range(n)
    )
