"""Engine `device`: jets of dense networks by large products and one fused kernel per layer and direction.

What the engine `jets` does with many small operations on an activation and its derivatives, one kernel does in
registers. Products are torch's; buffers keep their places from one evaluation to the next, so that a chunk's
evaluation can be recorded once and replayed. On the CPU the same engine runs on the kernels of the C library.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ml2hpc.problem.engine import Batch, DenseEngine
from ml2hpc.problem.interface import Cost
from ml2hpc.problem.jets import Hidden, JetBatch, JetsEngine, LayerMatrices, Workspace
from ml2hpc.problem.neurons import WHOLE, neurons_on


class DeviceBatch(Batch):
    """Points, and the same filled up to whole vectors by copies of the last one, whose cotangents are zero."""

    def __init__(self, x: Tensor, filled: JetBatch) -> None:
        super().__init__(x)
        self.filled = filled


class _Kept(Hidden):
    """Jets of z with sigma's first plane in place of the value; its other planes, (width, planes, n)."""

    def __init__(self, width: int, jets: int, n: int, planes: int, like: Tensor) -> None:
        super().__init__(width, jets, n, like)
        self.more = like.new_zeros(width, planes, n)


class _FusedEngine(JetsEngine):
    """The engine `jets` with its neurons in kernels, for whole vectors of points; no tangents."""

    def _set_up(self) -> None:
        super()._set_up()
        parameter = next(self.network.parameters())
        activation = self.network.options.activation
        self.kernels = neurons_on(parameter.device, self.indices, activation, parameter.dtype)

    def _memory(self, width: int, jets: int, n: int, like: Tensor) -> Hidden:
        return _Kept(width, jets, n, self.kernels.planes, like)

    def _neurons(self, layer: LayerMatrices, kept: Hidden, y: Tensor, space: Workspace) -> None:
        assert isinstance(kept, _Kept)
        whole = layer.residual and layer.step == 1.0  # what the kernel adds itself
        self.kernels.forward(layer.bias, kept.z.all, kept.more, kept.y.all, y if whole else None)
        if layer.residual and not whole:
            torch.add(y, kept.y.matrix, alpha=layer.step, out=kept.y.matrix)

    def _neurons_reverse(self, kept: Hidden, space: Workspace) -> None:
        assert isinstance(kept, _Kept)
        self.kernels.reverse(kept.z.all, kept.more, space.g.all, space.gz.all)


class DeviceEngine(DenseEngine[DeviceBatch]):
    """Jets of a `DenseNetwork` up to order 4, where its parameters are.

    Attributes
    ----------
    description
        The engine with its device, for views.
    """

    name = "device"

    def _set_up(self) -> None:
        given = self.network, self.layout, self.features, self.indices, self.window
        self._fused = _FusedEngine(*given)
        self._jets = JetsEngine(*given)  # keeps z itself, which tangents need
        self.description = f"device ({self._fused.kernels.description})"

    def batch(self, x: Tensor) -> DeviceBatch:
        return DeviceBatch(x, self._fused.batch(torch.cat([x, x[:, -1:].expand(-1, -x.shape[1] % WHOLE)], 1)))

    def freeze(self, parameters: Tensor, batch: DeviceBatch) -> None:
        self._fused.freeze(parameters, batch.filled)

    def forward(self, parameters: Tensor, batch: DeviceBatch, *, reverse: bool) -> Tensor:
        return self._fused.forward(parameters, batch.filled, reverse=reverse)[:, :, : batch.x.shape[1]]

    def reverse(self, parameters: Tensor, batch: DeviceBatch, cotangent: Tensor, out: Tensor) -> None:
        self._fused.reverse(parameters, batch.filled, self._fill(batch, cotangent), out)

    def rows(self, parameters: Tensor, batch: DeviceBatch, cotangent: Tensor, out: Tensor) -> None:
        whole = out.new_empty(len(out), batch.filled.x.shape[1])
        self._fused.rows(parameters, batch.filled, self._fill(batch, cotangent), whole)
        out.copy_(whole[:, : batch.x.shape[1]])

    def tangent(self, parameters: Tensor, direction: Tensor, batch: DeviceBatch) -> Tensor:
        return self._jets.tangent(parameters, direction, batch.filled)[:, :, : batch.x.shape[1]]

    def differentiable(self, parameters: Tensor, batch: DeviceBatch) -> Tensor:
        return self._jets.differentiable(parameters, batch.filled)[:, :, : batch.x.shape[1]]

    def cost(self) -> Cost:
        return self._jets.cost()

    @staticmethod
    def _fill(batch: DeviceBatch, cotangent: Tensor) -> Tensor:
        return pad(cotangent, (0, batch.filled.x.shape[1] - batch.x.shape[1]))
