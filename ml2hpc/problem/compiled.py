"""Engine `compiled`: jets of dense networks by the kernels built with the package (`ml2hpc/kernels/network.h`).

A chunk of points is cut into strips that go through all layers while they are in the cache; products, activation and
its derivatives are fused layer by layer, for the processor's own vectors. The reverse pass keeps one set of jets per
layer and forms the rest again.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from ml2hpc import kernels
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.engine import Batch, Engine, Features, Window
from ml2hpc.problem.interface import Cost
from ml2hpc.problem.jet import Carried, Index, Operator, partitions
from ml2hpc.problem.jets import JetsEngine
from ml2hpc.problem.network import SLOPE, DenseNetwork
from ml2hpc.vec import Layout

_ACTIVATIONS = ("tanh", "sin", "silu", "gelu")  # numbered as in native.c
_HIGHEST_ORDER = 4
_GENERAL, _CURVED, _DIAGONAL = range(3)  # sets of jets, as in native.c
_MOST_DIAGONAL, _MOST_CURVED = 5, 16  # jets
_TILE_BYTES = 48 * 1024  # jets of one layer and strip: two or three tiles stay in the second-level cache
_ALIGNMENT = 64


class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("inputs", "outputs", "residual", "weight", "bias")]


class _Term(ctypes.Structure):
    _fields_ = [
        ("jet", ctypes.c_int64),
        ("degree", ctypes.c_int64),
        ("of", ctypes.c_int64 * _HIGHEST_ORDER),
        ("factor", ctypes.c_double),
    ]


class _Plan(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("hidden", "jets", "kind", "activation", "residual")),
        *((name, ctypes.c_int64) for name in ("first", "last", "start", "stop", "strip", "threads", "terms")),
        ("layer", ctypes.POINTER(_Layer)),
        ("term", ctypes.POINTER(_Term)),
        ("diagonal", ctypes.c_double * _MOST_DIAGONAL),
    ]


def terms_of(carried: tuple[Carried, ...]) -> list[tuple[int, tuple[int, ...], float]]:
    """Return the nonlinear part of a jet through sigma: (place, places of the factors, multiplicity) per term.

    >>> terms_of(((), (0,), (0, 0)))
    [(2, (1, 1), 1.0)]
    """
    place = {c: j for j, c in enumerate(carried)}
    found: list[tuple[int, tuple[int, ...], float]] = []

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


class CompiledBatch(Batch):
    """Points with the jets that enter the window, packed as the kernels take them."""

    def __init__(self, x: Tensor, features: Tensor) -> None:
        super().__init__(x)
        self.features = features
        self.below: Tensor | None = None  # once frozen


class _Arena:
    """Memory that grows on demand, shared by all engines of a type: only one batch is under way at a time."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, n: int, dtype: torch.dtype) -> int:
        """Return the address of n numbers."""
        block = self._blocks.get((name, dtype))
        if block is None or block.numel() < n:
            block = self._blocks[name, dtype] = aligned(n, dtype)
        return block.data_ptr()


_ARENA = _Arena()


def aligned(n: int, dtype: torch.dtype) -> Tensor:
    """Return n zeros that start at a multiple of the longest vector."""
    extra = _ALIGNMENT // dtype.itemsize
    block = torch.zeros(n + extra, dtype=dtype)
    start = -block.data_ptr() // dtype.itemsize % extra
    return block[start : start + n]


class CompiledEngine(Engine[CompiledBatch]):
    """Jets of a `DenseNetwork` up to order 4, for any number of coordinates.

    Attributes
    ----------
    description
        The engine with its instruction set, for views.
    """

    network: DenseNetwork

    def __init__(
        self,
        network: nn.Module,
        layout: Layout,
        features: Features,
        indices: tuple[Carried, ...],
        window: Window | None = None,
    ) -> None:
        super().__init__(network, layout, features, indices, window)
        library = kernels.load()
        if library is None:
            raise UnsupportedError(
                "-pinn_engine compiled: the package was built without a C compiler; install one and run "
                "pip install again, or use -pinn_engine jets"
            )
        if not isinstance(network, DenseNetwork):
            raise UnsupportedError("the compiled engine propagates dense networks only; use -pinn_engine autograd")
        if any(len(i) > _HIGHEST_ORDER for i in self.indices if not isinstance(i, Operator)):
            raise UnsupportedError(
                f"the compiled engine carries derivatives up to order {_HIGHEST_ORDER}; use -pinn_engine autograd"
            )
        self.description = f"compiled ({library.instruction_set})"
        self._dtype = layout.flatten(network).dtype
        self._functions(library)
        self._twin = JetsEngine(network, layout, features, indices, window)  # for higher derivatives and costs
        self._plain = _Plain(network, layout, self.window)
        self._plan = self._describe()
        self._address = ctypes.addressof(self._plan)
        self._plan.strip = 1
        self._plan.strip = self._strip(self._address, _TILE_BYTES)
        self._sizes: dict[int, tuple[int, int]] = {}

    def _functions(self, library: kernels.Library) -> None:
        long, pointer = ctypes.c_long, ctypes.c_void_p

        def take(name: str, arguments: list[Any], result: Any = None) -> Any:
            function = library.function(f"jets_{name}", self._dtype, result)
            function.argtypes = arguments
            return function

        self._strip = take("strip", [pointer, long], long)
        self._packed = take("packed", [pointer, long, long], long)
        self._state = take("state", [pointer, long, long], long)
        self._scratch = take("scratch", [pointer], long)
        self._pack = take("pack", [pointer, long, long, pointer, pointer])
        self._forward = take("forward", [pointer, pointer, pointer, pointer, long, pointer, pointer, pointer])
        self._prefix = take("prefix", [pointer, pointer, pointer, long, long, pointer, pointer])
        self._reverse = take("reverse", [pointer] * 4 + [long] + [pointer] * 5)
        self._rows = take("rows", [pointer, pointer, pointer, long, pointer, pointer, pointer, pointer])

    def _describe(self) -> _Plan:
        stack, plain = self.network.stack, self._plain
        self._layer_table = (_Layer * len(stack))(
            *(
                _Layer(m.weight.shape[1], m.weight.shape[0], m.residual, w, b)
                for m, (w, b) in zip(stack, plain.places, strict=True)
            )
        )
        found = terms_of(self.indices)
        self._term_table = (_Term * max(len(found), 1))(
            *(_Term(j, len(of), (ctypes.c_int64 * _HIGHEST_ORDER)(*of), factor) for j, of, factor in found)
        )
        order = max(2 if isinstance(i, Operator) else len(i) for i in self.indices)
        diagonal = diagonal_of(self.indices)
        kind = _CURVED if order <= 2 and len(self.indices) <= _MOST_CURVED else _GENERAL
        if diagonal is not None:
            kind = _DIAGONAL + len(self.indices)
        return _Plan(
            len(stack) - 1,
            len(self.indices),
            kind,
            _ACTIVATIONS.index(self.network.options.activation),
            any(m.residual for m in stack),
            self.window.first,
            self.window.last,
            plain.start,
            plain.stop,
            0,
            torch.get_num_threads(),
            len(found),
            self._layer_table,
            self._term_table,
            (ctypes.c_double * _MOST_DIAGONAL)(*(diagonal or ())),
        )

    def batch(self, x: Tensor) -> CompiledBatch:
        jets = self.feature_jets(x).to(self._dtype).contiguous()
        packed = aligned(self._packed(self._address, len(jets), x.shape[1]), self._dtype)
        self._pack(self._address, len(jets), x.shape[1], jets.data_ptr(), packed.data_ptr())
        return CompiledBatch(x, packed)

    def freeze(self, parameters: Tensor, batch: CompiledBatch) -> None:
        first, n = self.window.first, batch.x.shape[1]
        if first == 0:
            return
        if batch.below is None:
            width = self.network.stack[first - 1].weight.shape[0]
            batch.below = aligned(self._packed(self._address, width, n), self._dtype)
        plan = self._plan
        plan.first = 0
        self._prefix(
            self._address,
            self._plain.take(parameters).data_ptr(),
            batch.features.data_ptr(),
            n,
            first,
            self._scratch_at(),
            batch.below.data_ptr(),
        )
        plan.first = first

    def forward(self, parameters: Tensor, batch: CompiledBatch, *, reverse: bool) -> Tensor:
        return self._jets(parameters, None, batch, self._state_at(batch, 0) if reverse else None)

    def reverse(self, parameters: Tensor, batch: CompiledBatch, cotangent: Tensor, out: Tensor) -> None:
        plain = self._plain
        gradient = plain.gradient(out)
        self._reverse(
            self._address,
            plain.take(parameters).data_ptr(),
            None,
            self._entering(batch),
            batch.x.shape[1],
            self._state_at(batch, 0),
            self._scratch_at(),
            cotangent.contiguous().data_ptr(),
            None,
            gradient.data_ptr(),
        )
        plain.give(parameters, gradient, out)

    def tangent(self, parameters: Tensor, direction: Tensor, batch: CompiledBatch) -> Tensor:
        moved = self._plain.push(parameters, direction)
        return self._jets(parameters, moved, batch, self._state_at(batch, 1))

    def reverse_tangent(
        self,
        parameters: Tensor,
        direction: Tensor,
        batch: CompiledBatch,
        cotangent: Tensor,
        cotangent_tangent: Tensor,
        out: Tensor,
    ) -> None:
        plain = self._plain
        moved = plain.push(parameters, direction)
        action = torch.empty(plain.stop - plain.start, dtype=self._dtype)
        address, entering, state = self._address, self._entering(batch), self._state_at(batch, 1)
        arguments = (plain.take(parameters).data_ptr(), moved.data_ptr(), entering, batch.x.shape[1], state)
        pair = cotangent.contiguous(), cotangent_tangent.contiguous()
        scratch = self._scratch_at()
        self._reverse(address, *arguments, scratch, pair[0].data_ptr(), pair[1].data_ptr(), action.data_ptr())
        if not plain.folded:
            out.copy_(action)
            return
        gradient = torch.empty_like(action)
        zeros = torch.zeros_like(pair[0])
        still = torch.zeros_like(moved)
        self._jets(parameters, still, batch, state)
        self._reverse(
            address,
            arguments[0],
            still.data_ptr(),
            *arguments[2:],
            scratch,
            zeros.data_ptr(),
            pair[0].data_ptr(),
            gradient.data_ptr(),
        )
        plain.give_tangent(parameters, direction, gradient, action, out)

    def rows(self, parameters: Tensor, batch: CompiledBatch, cotangent: Tensor, out: Tensor) -> None:
        plain, n = self._plain, batch.x.shape[1]
        found = torch.empty(plain.stop - plain.start, n, dtype=self._dtype) if plain.folded else out
        self._rows(
            self._address,
            plain.take(parameters).data_ptr(),
            self._entering(batch),
            n,
            self._state_at(batch, 0),
            self._scratch_at(),
            cotangent.contiguous().data_ptr(),
            found.data_ptr(),
        )
        plain.give(parameters, found, out)

    def differentiable(self, parameters: Tensor, batch: CompiledBatch) -> Tensor:
        return self._twin.differentiable(parameters, self._twin.batch(batch.x))

    def cost(self) -> Cost:
        return self._twin.cost()

    # ------------------------------------------------------------------------------------------------------------

    def _jets(self, parameters: Tensor, direction: Tensor | None, batch: CompiledBatch, state: int | None) -> Tensor:
        n = batch.x.shape[1]
        out = torch.empty(self.network.stack[-1].weight.shape[0], len(self.indices), n, dtype=self._dtype)
        self._forward(
            self._address,
            self._plain.take(parameters).data_ptr(),
            None if direction is None else direction.data_ptr(),
            self._entering(batch),
            n,
            state,
            self._scratch_at(),
            out.data_ptr(),
        )
        return out

    def _entering(self, batch: CompiledBatch) -> int:
        if self.window.first == 0:
            return batch.features.data_ptr()
        assert batch.below is not None, "freeze comes first"
        return batch.below.data_ptr()

    def _state_at(self, batch: CompiledBatch, tangent: int) -> int:
        n = batch.x.shape[1]
        if n not in self._sizes:
            self._sizes[n] = (self._state(self._address, n, 0), self._state(self._address, n, 1))
        return _ARENA.take("state", self._sizes[n][tangent] + 1, self._dtype)

    def _scratch_at(self) -> int:
        return _ARENA.take("scratch", self._scratch(self._address), self._dtype)


class _Plain:
    """Parameters as the kernels take them: W and b layer after layer, slopes folded in.

    Without slopes that is the flat vector itself.

    Attributes
    ----------
    start, stop
        The window in the plain vector.
    places
        Where W and b of each layer are.
    """

    def __init__(self, network: DenseNetwork, layout: Layout, window: Window) -> None:
        self._layout = layout
        self._window = window
        self.folded = any(m.slope is not None for m in network.stack)
        sizes = [m.weight.numel() + m.bias.numel() for m in network.stack]
        bounds = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
        self.places = [(bounds[k], bounds[k] + m.weight.numel()) for k, m in enumerate(network.stack)]
        self.start, self.stop = bounds[window.first], bounds[window.last]
        # Per layer: its plain range, its range in the flat vector, the slope's place there.
        slopes = {e.layer: e.start for e in layout.entries if e.name.endswith(".slope")}
        self._layers = [
            (slice(a, a + n), slice(layout.layers[k].start, layout.layers[k].start + n), slopes.get(k))
            for k, (a, n) in enumerate(zip(bounds, sizes, strict=False))
        ]
        self._folded_vector = torch.empty(0)

    def take(self, parameters: Tensor) -> Tensor:
        """Return the plain parameters."""
        if not self.folded:
            return parameters
        out = torch.empty(self._layers[-1][0].stop, dtype=parameters.dtype)
        for plain, flat, slope in self._layers:
            k = 1.0 if slope is None else SLOPE * parameters[slope]
            torch.mul(parameters[flat], k, out=out[plain])
        self._folded_vector = out  # alive as long as a kernel may read it
        return out

    def push(self, parameters: Tensor, direction: Tensor) -> Tensor:
        """Return the tangent of `take` along a direction of the window, over the window."""
        if not self.folded:
            return direction.contiguous()
        out = torch.empty(self.stop - self.start, dtype=parameters.dtype)
        shift = self._window.start
        for plain, flat, slope in self._inside():
            moved = direction[flat.start - shift : flat.stop - shift]
            if slope is not None:
                moved = SLOPE * (parameters[slope] * moved + direction[slope - shift] * parameters[flat])
            out[plain.start - self.start : plain.stop - self.start] = moved
        return out

    def gradient(self, out: Tensor) -> Tensor:
        """Return a place for the plain gradient: `out` itself where nothing is folded."""
        return torch.empty(self.stop - self.start, dtype=out.dtype) if self.folded else out

    def give(self, parameters: Tensor, gradient: Tensor, out: Tensor) -> None:
        """Write the gradient in the flat parameters over `out`, from the plain one; columns point by point too."""
        if not self.folded:
            return
        shift = self._window.start
        for plain, flat, slope in self._inside():
            part = gradient[plain.start - self.start : plain.stop - self.start]
            k = 1.0 if slope is None else SLOPE * parameters[slope]
            out[flat.start - shift : flat.stop - shift] = k * part
            if slope is not None:
                out[slope - shift] = SLOPE * (parameters[flat] @ part)

    def give_tangent(
        self, parameters: Tensor, direction: Tensor, gradient: Tensor, action: Tensor, out: Tensor
    ) -> None:
        """Write the tangent of `give` over `out`; `action` is the plain gradient's tangent."""
        shift = self._window.start
        for plain, flat, slope in self._inside():
            rows, inside = (
                slice(plain.start - self.start, plain.stop - self.start),
                slice(flat.start - shift, flat.stop - shift),
            )
            if slope is None:
                out[inside] = action[rows]
                continue
            k, dk = SLOPE * parameters[slope], SLOPE * direction[slope - shift]
            out[inside] = k * action[rows] + dk * gradient[rows]
            out[slope - shift] = SLOPE * (
                torch.dot(parameters[flat], action[rows]) + torch.dot(direction[inside], gradient[rows])
            )

    def _inside(self) -> list[tuple[slice, slice, int | None]]:
        return self._layers[self._window.first : self._window.last]
