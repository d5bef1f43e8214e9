"""Engine `jets`: the network and its input derivatives propagated by hand, feature-major, in place, in plain torch.

All jets of a layer are one matrix (width, jets * n), so a layer is one matrix product. Through y = sigma(z):

    y = sigma(z),  y_i = sigma' z_i,  y_ik = sigma' z_ik + sigma'' z_i z_k,

and on the way back, with cotangents g of y,

    gz_ik = sigma' g_ik,
    gz_i  = sigma' g_i + sigma'' sum_k (1 + [i = k]) z_k g_ik,
    gz    = sigma' g + sigma'' (sum_i g_i z_i + sum_ik g_ik z_ik) + sigma''' sum_ik g_ik z_i z_k.

An adaptive slope k is folded into the weights, k (W y + b) = (k W) y + (k b), which costs nothing per point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ml2hpc.errors import UnsupportedError
from ml2hpc.problem.engine import Batch, Cost, Engine, Features, Window
from ml2hpc.problem.jet import Index
from ml2hpc.problem.network import SLOPE, DenseLayer, DenseNetwork
from ml2hpc.vec import Layout


class JetBatch(Batch):
    """Points with the jets that enter the window: the features', or the frozen prefix's."""

    def __init__(self, x: Tensor, features: Tensor) -> None:
        super().__init__(x)
        self.features = features  # (features, jets * n)
        self.below: Tensor | None = None  # (width, jets * n), once frozen


@dataclass
class _Workspace:
    """Buffers for one batch length; lists by hidden layer."""

    z: list[Tensor]  # (width, jets, n)
    y: list[Tensor]
    first: list[Tensor]  # (width, n)
    second: list[Tensor]
    g: Tensor  # (width, jets, n)
    gz: Tensor
    a: Tensor  # (width, n), scratch
    b: Tensor
    c: Tensor


@dataclass(frozen=True)
class _Layer:
    """A layer's matrices with the slope folded in, and where its parameters are in the flat vector."""

    weight: Tensor  # (out, in), k W
    bias: Tensor  # (out,), k b
    slope: float | None  # k
    residual: bool
    start: int


class JetsEngine(Engine[JetBatch]):
    """Second-order jets of a `DenseNetwork`, for any number of coordinates."""

    network: DenseNetwork

    def __init__(
        self,
        network: nn.Module,
        layout: Layout,
        features: Features,
        indices: tuple[Index, ...],
        window: Window | None = None,
    ) -> None:
        super().__init__(network, layout, features, indices, window)
        if not isinstance(network, DenseNetwork):
            raise UnsupportedError("the jets engine propagates dense networks only; use -pinn_engine autograd")
        if any(len(i) > 2 for i in self.indices):
            raise UnsupportedError("the jets engine carries derivatives up to order 2; use -pinn_engine autograd")
        self._place = {index: j for j, index in enumerate(self.indices)}
        self._firsts = sum(len(i) == 1 for i in self.indices)
        self._seconds = [(self._place[i], self._place[i[:1]], self._place[i[1:]]) for i in self.indices if len(i) == 2]
        self._spaces: dict[int, _Workspace] = {}

    @property
    def _jets(self) -> int:
        return len(self.indices)

    @property
    def _hidden(self) -> int:
        return len(self.network.layers) - 1

    def batch(self, x: Tensor) -> JetBatch:
        jets = self.feature_jets(x)
        return JetBatch(x, jets.reshape(len(jets), -1))

    def freeze(self, parameters: Tensor, batch: JetBatch) -> None:
        first = self.window.first
        if first == 0:
            return
        space = self._space(batch.x.shape[1])
        y = self._propagate(self._matrices(parameters), batch.features, 0, min(first, self._hidden), space)
        batch.below = y.clone() if batch.below is None else batch.below.copy_(y)

    def forward(self, parameters: Tensor, batch: JetBatch, *, reverse: bool) -> Tensor:
        layers = self._matrices(parameters)
        space = self._space(batch.x.shape[1])
        y = self._propagate(layers, self._entering(batch), self.window.first, self._hidden, space)
        outputs = (layers[-1].weight @ y).view(-1, self._jets, batch.x.shape[1])
        outputs[:, 0] += layers[-1].bias[:, None]
        return outputs

    def reverse(self, parameters: Tensor, batch: JetBatch, cotangent: Tensor, out: Tensor) -> None:
        layers = self._matrices(parameters)
        space = self._space(batch.x.shape[1])
        first, last = self.window.first, self.window.last
        hidden = self._hidden
        flat = (self.network.options.width, -1)
        rows = cotangent.reshape(len(cotangent), -1)
        top = space.y[hidden - 1].view(flat) if first < hidden else self._entering(batch)
        if last > hidden:
            self._parameter_gradient(layers[hidden], rows, cotangent[:, 0], top, out)
        if first == hidden:
            return
        g, gz = space.g.view(flat), space.gz.view(flat)
        torch.mm(layers[hidden].weight.T, rows, out=g)
        for k in range(hidden - 1, first - 1, -1):
            self._activation_reverse(space, k)
            if k < last:
                below = self._entering(batch) if k == first else space.y[k - 1].view(flat)
                self._parameter_gradient(layers[k], gz, space.gz[:, 0], below, out)
            if k > first:
                if layers[k].residual:
                    g.addmm_(layers[k].weight.T, gz)
                else:
                    torch.mm(layers[k].weight.T, gz, out=g)

    def differentiable(self, parameters: Tensor, batch: JetBatch) -> Tensor:
        n = batch.x.shape[1]
        y = batch.features
        *hidden, last = self._matrices(parameters, fold=False)
        for layer in hidden:
            z = (layer.weight @ y).view(-1, self._jets, n)
            z = torch.cat([z[:, :1] + layer.bias[:, None, None], z[:, 1:]], 1)
            new = self._activate(z).view(len(z), -1)
            y = y + new if layer.residual else new
        outputs = (last.weight @ y).view(-1, self._jets, n)
        return torch.cat([outputs[:, :1] + last.bias[:, None, None], outputs[:, 1:]], 1)

    def cost(self) -> Cost:
        # Products only, as in reference figures of partial evaluation: forward from the window up, reverse down to
        # it, weight gradients inside it.
        def sweep(layers: range) -> float:
            return sum(2.0 * self.network.layers[k].weight.numel() * self._jets for k in layers)

        depth, first, last = len(self.network.layers), self.window.first, self.window.last
        forward = sweep(range(first, depth))
        backward = sweep(range(first + 1, depth))
        weights = sweep(range(first, last))
        return Cost(objective=forward, gradient=forward + backward + weights)

    # ------------------------------------------------------------------------------------------------------------

    def _entering(self, batch: JetBatch) -> Tensor:
        if self.window.first == 0:
            return batch.features
        assert batch.below is not None, "freeze comes first"
        return batch.below

    def _matrices(self, parameters: Tensor, *, fold: bool = True) -> list[_Layer]:
        """The layers' matrices; views of `parameters` unless a slope is folded in."""
        views = self.layout.views(parameters)
        found = []
        for k, module in enumerate(self.network.layers):
            assert isinstance(module, DenseLayer)
            weight, bias = views[f"layers.{k}.weight"], views[f"layers.{k}.bias"]
            slope = None
            if module.slope is not None:
                factor = SLOPE * views[f"layers.{k}.slope"]
                weight, bias = factor * weight, factor * bias
                slope = float(factor.detach()) if fold else None
            found.append(_Layer(weight, bias, slope, module.residual, self.layout.layers[k].start))
        return found

    def _space(self, n: int) -> _Workspace:
        if n not in self._spaces:
            width, dtype = self.network.options.width, self.network.layers[0].weight.dtype

            def jets() -> Tensor:
                return torch.zeros(width, self._jets, n, dtype=dtype)

            def plain() -> Tensor:
                return torch.zeros(width, n, dtype=dtype)

            layers = range(self._hidden)
            self._spaces[n] = _Workspace(
                z=[jets() for _ in layers],
                y=[jets() for _ in layers],
                first=[plain() for _ in layers],
                second=[plain() for _ in layers],
                g=jets(),
                gz=jets(),
                a=plain(),
                b=plain(),
                c=plain(),
            )
        return self._spaces[n]

    def _propagate(self, layers: list[_Layer], y: Tensor, first: int, last: int, space: _Workspace) -> Tensor:
        """Carry jets y (features, jets * n) through hidden layers first..last-1; keep what the reverse pass needs."""
        for k in range(first, last):
            layer, z, new = layers[k], space.z[k], space.y[k]
            flat = z.view(len(z), -1)
            torch.mm(layer.weight, y, out=flat)
            z[:, 0].add_(layer.bias[:, None])
            self._activation(space, k)
            new_flat = new.view(len(z), -1)
            if layer.residual:
                new_flat.add_(y)
            y = new_flat
        return y

    def _activation(self, space: _Workspace, k: int) -> None:
        z, y, first = space.z[k], space.y[k], space.first[k]
        self.network.activation.fill(z[:, 0], y[:, 0], first, space.second[k] if self._jets > 1 else None)
        if self._jets > 1:
            torch.mul(z[:, 1:], first[:, None], out=y[:, 1:])
        for ik, i, j in self._seconds:
            torch.mul(z[:, i], z[:, j], out=space.a)
            y[:, ik].addcmul_(space.a, space.second[k])

    def _activation_reverse(self, space: _Workspace, k: int) -> None:
        z, first, second, g, gz = space.z[k], space.first[k], space.second[k], space.g, space.gz
        torch.mul(g, first[:, None], out=gz)
        if self._jets == 1:
            return
        slopes = torch.mul(g[:, 1], z[:, 1], out=space.a)
        for j in range(2, self._jets):
            slopes.addcmul_(g[:, j], z[:, j])
        slopes.mul_(second)
        if self._seconds:
            self._curvature_reverse(space, k, slopes)
        gz[:, 0].add_(slopes)

    def _curvature_reverse(self, space: _Workspace, k: int, slopes: Tensor) -> None:
        """Add the parts that come from sigma'' z_i z_k: to the first jets' cotangents and to `slopes`."""
        z, g, gz, second = space.z[k], space.g, space.gz, space.second[k]
        squares, part = space.b, space.c
        for number, (ik, i, j) in enumerate(self._seconds):
            torch.mul(g[:, ik], second, out=part)
            if i == j:
                gz[:, i].addcmul_(part, z[:, i], value=2.0)
            else:
                gz[:, i].addcmul_(part, z[:, j])
                gz[:, j].addcmul_(part, z[:, i])
            torch.mul(z[:, i], z[:, j], out=part)
            if number == 0:
                torch.mul(part, g[:, ik], out=squares)
            else:
                squares.addcmul_(part, g[:, ik])
        self.network.activation.third(z[:, 0], space.first[k], part)
        slopes.addcmul_(part, squares)

    def _parameter_gradient(self, layer: _Layer, gz: Tensor, gz_value: Tensor, below: Tensor, out: Tensor) -> None:
        """Write dW, db and, with an adaptive slope, da into `out` from cotangents gz (out, jets * n)."""
        start = layer.start - self.window.start
        rows, columns = layer.weight.shape
        weight = out[start : start + rows * columns].view(rows, columns)
        bias = out[start + rows * columns : start + rows * columns + rows]
        torch.mm(gz, below.T, out=weight)
        torch.sum(gz_value, 1, out=bias)
        if layer.slope is not None:
            # d/dk of k (W y + b), through the folded matrices kW and kb.
            change = ((weight * layer.weight).sum() + (bias * layer.bias).sum()) / layer.slope
            out[start + rows * columns + rows] = SLOPE * change
            weight.mul_(layer.slope)
            bias.mul_(layer.slope)

    def _activate(self, z: Tensor) -> Tensor:
        """The jet of sigma at z (width, jets, n), differentiable."""
        value = self.network.activation.value(z[:, 0])
        first, second = value, value
        if self._jets > 1:
            (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), z, create_graph=True, materialize_grads=True)
            first, second = first[:, 0], second[:, 0]
        parts = [value]
        for j in range(1, 1 + self._firsts):
            parts.append(first * z[:, j])
        for ik, i, j in self._seconds:
            parts.append(first * z[:, ik] + second * z[:, i] * z[:, j])
        return torch.stack(parts, 1)
