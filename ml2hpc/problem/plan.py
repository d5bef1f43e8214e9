"""What compiled kernels are told of a network: the structures of `ml2hpc/kernels/plan.h`, and the terms of a jet."""

from __future__ import annotations

import ctypes

from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.jet import Carried, Index, Operator, order, partitions

ACTIVATIONS = ("tanh", "sin", "silu", "gelu")  # numbered as in plan.h
HIGHEST_ORDER = 4  # of derivatives, by every engine but autograd: the kernels have room for it, the tests go up to it
_GENERAL, _CURVED, _DIAGONAL = range(3)  # sets of jets, as in plan.h
_MOST_DIAGONAL, _MOST_CURVED, _MOST_JETS = 5, 16, 70  # the first as in plan.h, the others as in neuron.h

JetTerm = tuple[int, tuple[int, ...], float]
"""Of a jet through sigma: its place, the places of the factors, their multiplicity."""


class Layer(ctypes.Structure):
    """Sizes and places of one layer."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "residual", "weight", "bias")),
        ("step", ctypes.c_double),
    ]


class Term(ctypes.Structure):
    """jet += factor * sigma^(degree) * product of the jets `of`."""

    _fields_ = [
        ("jet", ctypes.c_int64),
        ("degree", ctypes.c_int64),
        ("of", ctypes.c_int64 * HIGHEST_ORDER),
        ("factor", ctypes.c_double),
    ]


class Plan(ctypes.Structure):
    """A network, its jets and its window; fields that are not given are zero."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("hidden", "jets", "kind", "activation", "residual")),
        *((name, ctypes.c_int64) for name in ("first", "last", "start", "stop", "strip", "threads", "terms")),
        ("layer", ctypes.POINTER(Layer)),
        ("term", ctypes.POINTER(Term)),
        ("diagonal", ctypes.c_double * _MOST_DIAGONAL),
    ]


def terms_of(carried: tuple[Carried, ...]) -> list[JetTerm]:
    """Return the nonlinear part of a jet through sigma: (place, places of the factors, multiplicity) per term.

    >>> terms_of(((), (0,), (0, 0)))
    [(2, (1, 1), 1.0)]
    """
    place = {c: j for j, c in enumerate(carried)}
    found: list[JetTerm] = []

    def add(j: int, index: Index, factor: float) -> None:
        for blocks, times in partitions(index):
            if len(blocks) > 1:
                found.append((j, tuple(place[b] for b in blocks), factor * times))

    for c, j in place.items():
        if isinstance(c, Operator):
            for index, factor in c.terms:
                add(j, index, factor)
        else:
            add(j, c, 1.0)
    return found


def diagonal_of(carried: tuple[Carried, ...]) -> list[float] | None:
    """Return the factors c_j of y_last = sigma' z_last + sigma'' sum_j c_j z_j^2, or None if jets are of another kind.

    >>> diagonal_of(((), (0,), (1,), (1, 1)))
    [0.0, 0.0, 1.0, 0.0, 0.0]
    """
    n, found = len(carried), terms_of(carried)
    firsts = all(isinstance(c, tuple) and len(c) == 1 for c in carried[1 : n - 1])
    if not (3 <= n <= _MOST_DIAGONAL and firsts and found):
        return None
    if any(j != n - 1 or len(of) != 2 or of[0] != of[1] for j, of, _ in found):
        return None
    factors = [0.0] * _MOST_DIAGONAL
    for _, of, factor in found:
        factors[of[0]] += factor
    return factors


def plan_of(carried: tuple[Carried, ...], activation: str, **others: int) -> Plan:
    """Return the plan of jets up to the highest order through an activation; `others` are further fields by name.

    The structure keeps its table of terms alive.

    Raises
    ------
    UnsupportedError
        If there are more jets than the kernels have room for.
    """
    if len(carried) > _MOST_JETS:
        raise UnsupportedError(
            f"compiled kernels carry {_MOST_JETS} derivatives at most, and the equation needs {len(carried)}; "
            "use -pinn_engine jets"
        )
    found = terms_of(carried)
    table = (Term * max(len(found), 1))(
        *(Term(j, len(of), (ctypes.c_int64 * HIGHEST_ORDER)(*of), factor) for j, of, factor in found)
    )
    diagonal = diagonal_of(carried)
    kind = _CURVED if max(map(order, carried)) <= 2 and len(carried) <= _MOST_CURVED else _GENERAL
    if diagonal is not None:
        kind = _DIAGONAL + len(carried)
    return Plan(
        jets=len(carried),
        kind=kind,
        activation=ACTIVATIONS.index(activation),
        terms=len(found),
        term=table,
        diagonal=(ctypes.c_double * _MOST_DIAGONAL)(*(diagonal or ())),
        **others,
    )
