"""Engine `jets`: the network and its input derivatives propagated by hand, feature-major, in place, in plain torch.

All jets of a layer are one matrix (width, jets * n), so a layer is one matrix product. Through y = sigma(z):

    y = sigma(z),  y_i = sigma' z_i,  y_ik = sigma' z_ik + sigma'' z_i z_k,

and on the way back, with cotangents g of y,

    gz_ik = sigma' g_ik,
    gz_i  = sigma' g_i + sigma'' sum_k (1 + [i = k]) z_k g_ik,
    gz    = sigma' g + sigma'' (sum_i g_i z_i + sum_ik g_ik z_ik) + sigma''' sum_ik g_ik z_i z_k.

An operator L = sum_ik c_ik D_ik is one more jet, y_L = sigma' z_L + sigma'' sum_ik c_ik z_i z_k. Where third or fourth
derivatives are carried, and for derivatives along a direction of the parameters, `Chain` takes a layer's place.

An adaptive slope k is folded into the weights, k (W y + b) = (k W) y + (k b), which costs nothing per point.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ml2hpc.problem.chain import Chain
from ml2hpc.problem.engine import Batch, DenseEngine
from ml2hpc.problem.interface import Cost
from ml2hpc.problem.network import SLOPE

BLOCK = 2**18  # numbers written at a time in `rows`: 2 MiB, so that the sum over the jets stays in cache


class JetBatch(Batch):
    """Points with the jets that enter the window: the features', or the frozen prefix's."""

    def __init__(self, x: Tensor, features: Tensor) -> None:
        super().__init__(x)
        self.features = features  # (features, jets * n)
        self.below: Tensor | None = None  # (width, jets * n), once frozen


class JetBuffer:
    """A buffer of jets (width, jets, n) with its views: as one matrix, jet by jet, and all but the value."""

    def __init__(self, width: int, jets: int, n: int, like: Tensor) -> None:
        self.all = like.new_zeros(width, jets, n)
        self.matrix = self.all.view(width, jets * n)
        self.each = self.all.unbind(1)
        self.slopes = self.all[:, 1:]


class Hidden:
    """What a hidden layer keeps for the reverse pass: jets of z and y = sigma(z); sigma' and sigma'', (width, n)."""

    def __init__(self, width: int, jets: int, n: int, like: Tensor) -> None:
        self.z, self.y = (JetBuffer(width, jets, n, like) for _ in range(2))
        self.first, self.second = (like.new_zeros(width, n) for _ in range(2))
        self.first_of_all = self.first[:, None]  # broadcasts over the jets
        self.sigmas: list[Tensor] = []  # sigma, sigma', ..., where the order is above 2


class Workspace:
    """Buffers for one batch length, made once: on small networks a view costs as much as the work on it."""

    def __init__(self, hidden: Sequence[Hidden], width: int, jets: int, n: int, like: Tensor) -> None:
        self.hidden = hidden
        self.g, self.gz = (JetBuffer(width, jets, n, like) for _ in range(2))
        self.slopes, self.squares, self.part = (like.new_zeros(width, n) for _ in range(3))


@dataclass(frozen=True)
class LayerMatrices:
    """A layer's matrices and where its parameters are in the flat vector."""

    weight: Tensor  # (out, in), k W
    bias: Tensor  # (out, 1), k b
    plain: tuple[Tensor, Tensor]  # W, b
    slope: Tensor | None  # (), k
    residual: bool
    step: float
    start: int

    def pieces(self, flat: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return its weight, bias and slope (empty if it has none) in `flat`, (parameters, ...) from number `start`."""
        rows, columns = self.weight.shape
        weight = flat[self.start - start :][: rows * columns].unflatten(0, (rows, columns))
        rest = flat[self.start - start + rows * columns :]
        return weight, rest[:rows], rest[rows] if self.slope is not None else rest[:0]


class JetsEngine(DenseEngine[JetBatch]):
    """Jets of a `DenseNetwork` up to order 4, for any number of coordinates."""

    name = "jets"

    def _set_up(self) -> None:
        self.chain = Chain(self.indices)
        # (place of the second derivative or operator, of the two first derivatives, factor of their product)
        self._seconds = [(p.place, i, k, c) for p in self.chain.parts if p.m == 2 for c, (i, k) in p.products]
        self._spaces: dict[int, Workspace] = {}
        self._layers: list[LayerMatrices] = []  # of the latest forward

    @property
    def _hidden(self) -> int:
        return len(self.network.stack) - 1

    def batch(self, x: Tensor) -> JetBatch:
        jets = self.feature_jets(x)
        return JetBatch(x, jets.reshape(len(jets), -1))

    def freeze(self, parameters: Tensor, batch: JetBatch) -> None:
        first = self.window.first
        if first > 0:
            y = self._propagate(self._matrices(parameters), batch.features, 0, first, self._space(batch))
            batch.below = y.clone() if batch.below is None else batch.below.copy_(y)

    def forward(self, parameters: Tensor, batch: JetBatch, *, reverse: bool) -> Tensor:
        self._layers = self._matrices(parameters)
        y = self._propagate(self._layers, self._entering(batch), self.window.first, self._hidden, self._space(batch))
        last = self._layers[-1]
        outputs = torch.mm(last.weight, y).view(len(last.weight), len(self.indices), -1)
        outputs[:, 0] += last.bias
        return outputs

    def reverse(self, parameters: Tensor, batch: JetBatch, cotangent: Tensor, out: Tensor) -> None:
        for k, gz in self._cotangents(batch, cotangent):
            if k < self.window.last:
                self._parameter_gradient(self._layers[k], gz, self._below(batch, k), out)

    def rows(self, parameters: Tensor, batch: JetBatch, cotangent: Tensor, out: Tensor) -> None:
        for k, gz in self._cotangents(batch, cotangent):
            if k < self.window.last:
                self._parameter_rows(self._layers[k], gz, self._below(batch, k), out)

    def _cotangents(self, batch: JetBatch, cotangent: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the layers' numbers, from the top down to the window, with the cotangents of their z's jets.

        Each has the shape (out, jets, n) and is valid until the next.
        """
        layers, space, hidden, first = self._layers, self._space(batch), self._hidden, self.window.first
        g, gz = space.g.matrix, space.gz
        yield hidden, cotangent
        if first < hidden:
            torch.mm(layers[hidden].weight.T, cotangent.reshape(len(cotangent), -1), out=g)
        for k in range(hidden - 1, first - 1, -1):
            self._neurons_reverse(space.hidden[k], space)
            if layers[k].step != 1.0:
                gz.all.mul_(layers[k].step)
            yield k, gz.all
            if k > first and layers[k].residual:
                g.addmm_(layers[k].weight.T, gz.matrix)
            elif k > first:
                torch.mm(layers[k].weight.T, gz.matrix, out=g)

    def tangent(self, parameters: Tensor, direction: Tensor, batch: JetBatch) -> Tensor:
        self.forward(parameters, batch, reverse=True)
        space, shape = self._space(batch), (-1, len(self.indices), batch.x.shape[1])
        dy: Tensor | None = None  # (width, jets * n), zero below the window
        for k in range(self.window.first, self._hidden):
            kept = space.hidden[k]
            dz = self._affine_tangent(k, self._below(batch, k), dy, direction).view(shape)
            change = self.chain.push_forward(self._sigmas(kept, space), kept.z.all, dz).flatten(1)
            change.mul_(self._layers[k].step)
            dy = change.add_(dy) if self._layers[k].residual and dy is not None else change
        return self._affine_tangent(self._hidden, self._below(batch, self._hidden), dy, direction).view(shape)

    def _affine_tangent(self, k: int, y: Tensor, dy: Tensor | None, direction: Tensor) -> Tensor:
        """The derivative of layer k's jets z = W y + b, (out, jets * n), along a direction of the window and dy."""
        layer = self._layers[k]
        dz = y.new_zeros(len(layer.weight), y.shape[1]) if dy is None else torch.mm(layer.weight, dy)
        if k < self.window.last:
            weight, bias, slope = layer.pieces(direction, self.window.start)
            if layer.slope is not None:  # of k W and k b
                weight = layer.slope * weight + SLOPE * slope * layer.plain[0]
                bias = layer.slope * bias + SLOPE * slope * layer.plain[1]
            dz.addmm_(weight, y)
            dz[:, : y.shape[1] // len(self.indices)] += bias[:, None]
        return dz

    def differentiable(self, parameters: Tensor, batch: JetBatch) -> Tensor:
        y = self._entering(batch)
        *hidden, last = self._matrices(parameters)[self.window.first :]
        for layer in hidden:
            new = self._activate(self._affine(layer, y)).view(len(layer.weight), -1)
            y = torch.add(y, new, alpha=layer.step) if layer.residual else new
        return self._affine(last, y)

    def cost(self) -> Cost:
        # Products only, as in reference figures of partial evaluation: forward from the window up, reverse down to
        # it, weight gradients inside it.
        def sweep(layers: range) -> float:
            return sum(2.0 * self.network.stack[k].weight.numel() * len(self.indices) for k in layers)

        depth, first, last = len(self.network.stack), self.window.first, self.window.last
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

    def _below(self, batch: JetBatch, k: int) -> Tensor:
        """The jets that enter layer k, (in, jets * n), as the latest forward left them."""
        return self._entering(batch) if k == self.window.first else self._space(batch).hidden[k - 1].y.matrix

    def _matrices(self, parameters: Tensor) -> list[LayerMatrices]:
        """The layers' matrices; views of `parameters` unless a slope is folded in."""
        views = self.layout.views(parameters)
        found = []
        for k, module in enumerate(self.network.stack):
            weight, bias = plain = views[f"layers.{k}.weight"], views[f"layers.{k}.bias"]
            slope = None
            if module.slope is not None:
                slope = SLOPE * views[f"layers.{k}.slope"]
                weight, bias = slope * weight, slope * bias
            found.append(
                LayerMatrices(
                    weight, bias[:, None], plain, slope, module.residual, module.step, self.layout.layers[k].start
                )
            )
        return found

    def _space(self, batch: JetBatch) -> Workspace:
        n = batch.x.shape[1]
        if n not in self._spaces:
            width, jets = self.network.options.width, len(self.indices)
            hidden = [self._memory(width, jets, n, batch.x) for _ in range(self._hidden)]
            self._spaces[n] = Workspace(hidden, width, jets, n, batch.x)
        return self._spaces[n]

    def _memory(self, width: int, jets: int, n: int, like: Tensor) -> Hidden:
        return Hidden(width, jets, n, like)

    def _propagate(self, layers: list[LayerMatrices], y: Tensor, first: int, last: int, space: Workspace) -> Tensor:
        """Carry jets y (features, jets * n) through hidden layers first..last-1; keep what the reverse pass needs."""
        for layer, kept in zip(layers[first:last], space.hidden[first:last], strict=True):
            torch.mm(layer.weight, y, out=kept.z.matrix)
            self._neurons(layer, kept, y, space)
            y = kept.y.matrix
        return y

    def _neurons(self, layer: LayerMatrices, kept: Hidden, y: Tensor, space: Workspace) -> None:
        """Turn W y into what is kept of a layer, its output included."""
        kept.z.each[0].add_(layer.bias)
        self._activation(kept, space)
        if layer.residual:
            torch.add(y, kept.y.matrix, alpha=layer.step, out=kept.y.matrix)

    def _activation(self, kept: Hidden, space: Workspace) -> None:
        z, y = kept.z.each, kept.y.each
        if self.chain.order > 2:
            kept.sigmas = self.network.activation.derivatives(z[0], self.chain.order + 1)
            kept.y.all.copy_(self.chain.jets(kept.sigmas, kept.z.all))
            return
        self.network.activation.fill(z[0], y[0], kept.first, kept.second if len(z) > 1 else None)
        if len(z) > 1:
            torch.mul(kept.z.slopes, kept.first_of_all, out=kept.y.slopes)
        for ik, i, k, c in self._seconds:
            y[ik].addcmul_(torch.mul(z[i], z[k], out=space.part), kept.second, value=c)

    def _sigmas(self, kept: Hidden, space: Workspace) -> list[Tensor]:
        """sigma, sigma', ... at a hidden layer, one order above the chain's; sigma itself is not used."""
        if self.chain.order > 2:
            return kept.sigmas
        if self._seconds:
            self.network.activation.third(kept.z.each[0], kept.first, space.part)
        return [kept.y.each[0], kept.first, kept.second, space.part]

    def _neurons_reverse(self, kept: Hidden, space: Workspace) -> None:
        """Write the cotangent of z, `space.gz`, from that of sigma(z), `space.g`."""
        if self.chain.order > 2:
            self.chain.pull_back(kept.sigmas, kept.z.all, space.g.all, space.gz.all)
            return
        z, g, gz = kept.z.each, space.g.each, space.gz.each
        torch.mul(space.g.all, kept.first_of_all, out=space.gz.all)
        if len(z) == 1:
            return
        torch.mul(g[1], z[1], out=space.slopes)
        for g_j, z_j in zip(g[2:], z[2:], strict=True):
            space.slopes.addcmul_(g_j, z_j)
        gz[0].addcmul_(space.slopes, kept.second)
        if self._seconds:
            self._curvature_reverse(kept, space)

    def _curvature_reverse(self, kept: Hidden, space: Workspace) -> None:
        """Add the parts that come from sigma'' z_i z_k to the cotangents of z and of its first derivatives."""
        z, g, gz, part = kept.z.each, space.g.each, space.gz.each, space.part
        space.squares.zero_()
        for ik, i, k, c in self._seconds:
            torch.mul(g[ik], z[k], out=part)
            space.squares.addcmul_(part, z[i], value=c)
            gz[i].addcmul_(part, kept.second, value=2.0 * c if i == k else c)
            if i != k:
                gz[k].addcmul_(torch.mul(g[ik], z[i], out=part), kept.second, value=c)
        self.network.activation.third(z[0], kept.first, part)
        gz[0].addcmul_(part, space.squares)

    def _parameter_gradient(self, layer: LayerMatrices, gz: Tensor, below: Tensor, out: Tensor) -> None:
        """Write dW, db and, with an adaptive slope, da into `out` from cotangents gz (out, jets, n)."""
        weight, bias, slope = layer.pieces(out, self.window.start)
        torch.mm(gz.reshape(len(gz), -1), below.T, out=weight)
        torch.sum(gz[:, 0], 1, out=bias)
        if layer.slope is not None:
            # Of z = k (W y + b): dL/dk from the derivatives with respect to kW and kb, before they turn into dW and db.
            change = torch.vdot(weight.reshape(-1), layer.plain[0].reshape(-1)) + torch.vdot(bias, layer.plain[1])
            slope.copy_(SLOPE * change)
            weight.mul_(layer.slope)
            bias.mul_(layer.slope)

    def _parameter_rows(self, layer: LayerMatrices, gz: Tensor, below: Tensor, out: Tensor) -> None:
        """Write the same point by point into `out` (window, n): dW = sum over jets of gz y."""
        weight, bias, slope = layer.pieces(out, self.window.start)
        y = below.view(len(below), gz.shape[1], -1).unbind(1)
        together = max(1, BLOCK // (len(below) * gz.shape[2]))
        for block, cotangents in zip(weight.split(together), gz.split(together), strict=True):
            for j, y_j in enumerate(y):
                g_j = cotangents[:, j, None]
                if j == 0:
                    torch.mul(g_j, y_j, out=block)
                else:
                    block.addcmul_(g_j, y_j)
        bias.copy_(gz[:, 0])
        if layer.slope is not None:
            torch.mm(layer.plain[0].reshape(1, -1), weight.flatten(0, 1), out=slope[None])
            slope.addmv_(bias.T, layer.plain[1]).mul_(SLOPE)
            weight.mul_(layer.slope)
            bias.mul_(layer.slope)

    # The same jets as a graph, for second derivatives in the parameters. ------------------------------------------

    def _affine(self, layer: LayerMatrices, y: Tensor) -> Tensor:
        """The jet of k (W y + b), (out, jets, n), from jets y (in, jets * n)."""
        z = torch.mm(layer.weight, y).view(len(layer.weight), len(self.indices), -1)
        return torch.cat([z[:, :1] + layer.bias[:, None], z[:, 1:]], 1)

    def _activate(self, z: Tensor) -> Tensor:
        """The jet of sigma at z (width, jets, n)."""
        return self.chain.jets(self.network.activation.derivatives(z[:, 0], self.chain.order), z)
