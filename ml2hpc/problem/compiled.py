"""Engine `compiled`: jets of dense networks by the kernels built with the package (`ml2hpc/kernels/network.h`).

A chunk of points is cut into strips that go through all layers while they are in the cache; products, activation and
its derivatives are fused layer by layer, for the processor's own vectors. The reverse pass keeps one set of jets per
layer and forms the rest again.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ml2hpc import kernels
from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.engine import Batch, DenseEngine, Window
from ml2hpc.problem.interface import Cost
from ml2hpc.problem.jets import JetsEngine
from ml2hpc.problem.network import SLOPE, DenseNetwork
from ml2hpc.problem.plan import Layer, Plan, plan_of
from ml2hpc.vec import Layout

_TILE_BYTES = 48 * 1024  # jets of one layer and strip: two or three tiles stay in the second-level cache
_ALIGNMENT = 64


class CompiledBatch(Batch):
    """Points with the jets that enter the window, packed as the kernels take them."""

    def __init__(self, x: Tensor, features: Tensor) -> None:
        super().__init__(x)
        self.features = features
        self.below: Tensor | None = None  # once frozen


class Arena(threading.local):
    """Memory that grows on demand, shared by a thread's engines of a type: only one batch is under way at a time."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, n: int, dtype: torch.dtype) -> Tensor:
        """Return at least n numbers."""
        block = self._blocks.get((name, dtype))
        if block is None or block.numel() < n:
            block = self._blocks[name, dtype] = aligned(n, dtype)
        return block


ARENA = Arena()


def aligned(n: int, dtype: torch.dtype) -> Tensor:
    """Return n zeros that start at a multiple of the longest vector."""
    extra = _ALIGNMENT // dtype.itemsize
    block = torch.zeros(n + extra, dtype=dtype)
    start = -block.data_ptr() // dtype.itemsize % extra
    return block[start : start + n]


def _call(kernel: Callable[..., None], *arguments: Tensor | int | None) -> None:
    """Call a kernel with the tensors' addresses; `arguments` keeps the tensors alive until it returns."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    assert all(t.is_contiguous() for t in tensors), "kernels read consecutive numbers"
    kernel(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


class CompiledEngine(DenseEngine[CompiledBatch]):
    """Jets of a `DenseNetwork` up to order 4, for any number of coordinates.

    An engine is for one thread at a time; engines of different threads do not meet.

    Attributes
    ----------
    description
        The engine with its instruction set, for views.
    """

    name = "compiled"

    def _set_up(self) -> None:
        library = kernels.load()
        if library is None:
            raise UnsupportedError(
                "-pinn_engine compiled: the package was built without a C compiler; install one and run "
                "pip install again, or use -pinn_engine jets"
            )
        self.description = f"compiled ({library.instruction_set})"
        self._dtype = self.layout.flatten(self.network).dtype
        self._functions(library)
        self._plain = _Plain(self.network, self.layout, self.window)
        self._plan = self._describe()
        # For higher derivatives and costs.
        self._twin = JetsEngine(self.network, self.layout, self.features, self.indices, self.window)
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

    def _describe(self) -> Plan:
        stack, plain = self.network.stack, self._plain
        table = (Layer * len(stack))(
            *(
                Layer(m.weight.shape[1], m.weight.shape[0], m.residual, w, b, m.step)
                for m, (w, b) in zip(stack, plain.places, strict=True)
            )
        )
        plan = plan_of(
            self.indices,
            self.network.options.activation,
            hidden=len(stack) - 1,
            residual=any(m.residual for m in stack),
            first=self.window.first,
            last=self.window.last,
            start=plain.start,
            stop=plain.stop,
            threads=torch.get_num_threads(),
        )
        plan.layer = table
        return plan

    def batch(self, x: Tensor) -> CompiledBatch:
        jets = self.feature_jets(x).to(self._dtype).contiguous()
        packed = aligned(self._packed(self._address, len(jets), x.shape[1]), self._dtype)
        _call(self._pack, self._address, len(jets), x.shape[1], jets, packed)
        return CompiledBatch(x, packed)

    def freeze(self, parameters: Tensor, batch: CompiledBatch) -> None:
        first, n = self.window.first, batch.x.shape[1]
        if first == 0:
            return
        if batch.below is None:
            width = self.network.stack[first - 1].weight.shape[0]
            batch.below = aligned(self._packed(self._address, width, n), self._dtype)
        plain = self._plain.take(parameters)
        self._plan.first = 0
        _call(self._prefix, self._address, plain, batch.features, n, first, self._scratch_of(), batch.below)
        self._plan.first = first

    def forward(self, parameters: Tensor, batch: CompiledBatch, *, reverse: bool) -> Tensor:
        return self._jets(self._plain.take(parameters), None, batch, self._state_of(batch, 0) if reverse else None)

    def reverse(self, parameters: Tensor, batch: CompiledBatch, cotangent: Tensor, out: Tensor) -> None:
        gradient = self._plain.gradient(out)
        self._pull(self._plain.take(parameters), None, batch, cotangent, None, gradient)
        self._plain.give(parameters, gradient, out)

    def tangent(self, parameters: Tensor, direction: Tensor, batch: CompiledBatch) -> Tensor:
        moved = self._plain.push(parameters, direction)
        return self._jets(self._plain.take(parameters), moved, batch, self._state_of(batch, 1))

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
        point, moved = plain.take(parameters), plain.push(parameters, direction)
        action = plain.gradient(out)
        self._pull(point, moved, batch, cotangent, cotangent_tangent, action)
        if not plain.folded:
            return
        # The plain gradient is the action of no movement on a cotangent that changes by the cotangent itself.
        gradient, still = torch.empty_like(action), torch.zeros_like(moved)
        self._jets(point, still, batch, self._state_of(batch, 1))
        self._pull(point, still, batch, torch.zeros_like(cotangent), cotangent, gradient)
        plain.give_tangent(parameters, direction, gradient, action, out)

    def rows(self, parameters: Tensor, batch: CompiledBatch, cotangent: Tensor, out: Tensor) -> None:
        plain, n = self._plain, batch.x.shape[1]
        found = torch.empty(plain.stop - plain.start, n, dtype=self._dtype) if plain.folded else out
        point, entering, cotangent = plain.take(parameters), self._entering(batch), cotangent.contiguous()
        state, scratch = self._state_of(batch, 0), self._scratch_of()
        _call(self._rows, self._address, point, entering, n, state, scratch, cotangent, found)
        plain.give(parameters, found, out)

    def differentiable(self, parameters: Tensor, batch: CompiledBatch) -> Tensor:
        return self._twin.differentiable(parameters, self._twin.batch(batch.x))

    def cost(self) -> Cost:
        return self._twin.cost()

    # ------------------------------------------------------------------------------------------------------------

    def _jets(self, plain: Tensor, direction: Tensor | None, batch: CompiledBatch, state: Tensor | None) -> Tensor:
        n = batch.x.shape[1]
        out = torch.empty(self.network.stack[-1].weight.shape[0], len(self.indices), n, dtype=self._dtype)
        entering, scratch = self._entering(batch), self._scratch_of()
        _call(self._forward, self._address, plain, direction, entering, n, state, scratch, out)
        return out

    def _pull(
        self,
        plain: Tensor,
        direction: Tensor | None,
        batch: CompiledBatch,
        cotangent: Tensor,
        change: Tensor | None,
        out: Tensor,
    ) -> None:
        """Write the gradient in the plain parameters over `out`; with a direction and a change, its tangent."""
        state = self._state_of(batch, 0 if direction is None else 1)
        call, n = (self._reverse, self._address), batch.x.shape[1]
        where = (plain, direction, self._entering(batch), n, state, self._scratch_of())
        _call(*call, *where, cotangent.contiguous(), None if change is None else change.contiguous(), out)

    def _entering(self, batch: CompiledBatch) -> Tensor:
        if self.window.first == 0:
            return batch.features
        assert batch.below is not None, "freeze comes first"
        return batch.below

    def _state_of(self, batch: CompiledBatch, tangent: int) -> Tensor:
        n = batch.x.shape[1]
        if n not in self._sizes:
            self._sizes[n] = (self._state(self._address, n, 0), self._state(self._address, n, 1))
        return ARENA.take("state", self._sizes[n][tangent] + 1, self._dtype)

    def _scratch_of(self) -> Tensor:
        return ARENA.take("scratch", self._scratch(self._address), self._dtype)


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

    def take(self, parameters: Tensor) -> Tensor:
        """Return the plain parameters."""
        if not self.folded:
            return parameters
        out = torch.empty(self._layers[-1][0].stop, dtype=parameters.dtype)
        for plain, flat, slope in self._layers:
            k = 1.0 if slope is None else SLOPE * parameters[slope]
            torch.mul(parameters[flat], k, out=out[plain])
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
