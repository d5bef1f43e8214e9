"""The whole inverse Hessian, or a diagonal block of it for each layer, by self-scaled updates of Broyden's family."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.errors import UserError
from ml2hpc.kernels import Library
from ml2hpc.snes.secant import Inverse, Tree
from ml2hpc.vec import SymmetricMatrix, VectorSpace
from ml2hpc.vec.symmetric import Update


@dataclass
class _Block:
    """What a diagonal block remembers beside its entries."""

    part: slice
    start: float = 1.0  # it began as start I
    pairs: int = 0


class DenseInverse(Inverse):
    """The matrix H, or its diagonal blocks, by BFGS, self-scaled BFGS or self-scaled Broyden updates.

        H+ = (H - Hy (Hy)' / y'Hy + phi y'Hy v v') / tau + s s' / s'y,   v = s / s'y - Hy / y'Hy.

    With u = s / (s'y)^1/2, w = Hy / (y'Hy)^1/2 and c = (y'Hy / s'y)^1/2 this is an update in the plane of u and w,

        H+ = H / tau + (1 + phi c^2 / tau) u u' - (phi c / tau) (u w' + w u') + ((phi - 1) / tau) w w',

    and waits for the next product: H g+ is formed once per step, in the pass that makes the update of the step before.
    H y and H+ g+ follow from it without touching the matrix again. The factors depend on b = s'Bs / s'y with
    B = H^-1: s'Bs = lambda^2 g'Hg where s = -lambda H g; for other pairs b = 1 is taken.

    With several blocks every one has its own slices of s, y and g, its own factors, and leaves out pairs that have no
    positive curvature in it. Every rank has whole vectors and its share of the matrix.

    Parameters
    ----------
    comm
        The ranks that share the matrix.
    blocks
        Consecutive slices that cover the unknowns.
    curvature
        A block takes a pair when s'y exceeds this times |s| |y|.
    library
        The compiled kernels, or None.

    References
    ----------
    Al-Baali, Spedicato, Maggioni: Broyden's quasi-Newton methods for a nonlinear system of equations and unconstrained
    optimization: a review and open problems, Optim. Methods Softw. 29 (2014). For PINNs: arXiv 2405.04230; Kiyani et
    al., Comput. Methods Appl. Mech. Engrg. (2025).
    """

    def __init__(
        self,
        space: VectorSpace,
        comm: Communicator,
        kind: str,
        blocks: Sequence[slice],
        curvature: float,
        library: Library | None,
    ) -> None:
        super().__init__(space)
        self.kind = kind
        self.curvature = curvature
        self._blocks = [_Block(b) for b in blocks]
        self._matrix = SymmetricMatrix(comm, blocks, space.dtype, library, space.device)
        self._pairs = 0
        self._scale = 1.0
        self._known: tuple[Tensor, Tensor, Tensor] | None = None  # local g, whole g and whole H g

    @property
    def pairs(self) -> int:
        return self._pairs

    @property
    def scale(self) -> float:
        return self._scale

    def apply(self, g: Tensor) -> Tensor:
        return self.space.local(self._product(g)[1]).clone() if self._pairs else g.clone()

    def _product(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return the whole of g and of H g."""
        if self._known is None or not self._knows(g):
            (whole,) = self.space.wholes(g)
            self._known = (g, whole, self._matrix.product(whole))
        return self._known[1], self._known[2]

    def _knows(self, g: Tensor) -> bool:
        """Whether H g is known; by value, as a loaded state has copies."""
        assert self._known is not None
        return self._known[0] is g or self.space.norm(self._known[0] - g) == 0.0

    def update(self, s: Tensor, y: Tensor, g: Tensor, g_new: Tensor, step: float | None) -> None:
        if self._pairs == 0:
            s, old, new = self.space.wholes(s, g, g_new)
            scale = self._begin(s, new - old)
            hg, hg_new = scale * old, scale * new
        else:
            old, hg = self._product(g)  # from the direction: s = -lambda H g would carry the rounding of x + s
            s, new = self.space.wholes(s, g_new)
            hg_new = self._matrix.product(new)
        u, w, known = torch.zeros_like(s), torch.zeros_like(s), hg_new.clone()
        updates: list[Update | None] = []
        for k, block in enumerate(self._blocks):
            p = block.part
            found = self._learn(k, s[p], new[p] - old[p], old[p], new[p], hg[p], hg_new[p], step)
            updates.append(found[0])
            if found[0] is not None:
                block.pairs += 1
                u[p], w[p] = found[1], found[2]
            known[p] = found[3]
        if not any(block.pairs for block in self._blocks):
            self.reset()
            return
        self._matrix.update(u, w, updates)
        self._known = (g_new, new, known)
        change = new - old
        self._scale = float(torch.dot(s, change)) / float(torch.dot(change, change))
        self._pairs += any(update is not None for update in updates)

    def _begin(self, s: Tensor, y: Tensor) -> Tensor:
        """Start every block from the scale of the first pair, (s'y / y'y) I; return these scales, shape (n,)."""
        whole = float(torch.dot(s, y)) / float(torch.dot(y, y))
        scales = torch.empty_like(s)
        for k, block in enumerate(self._blocks):
            p = block.part
            sy, yy = float(torch.dot(s[p], y[p])), float(torch.dot(y[p], y[p]))
            self._restart(k, sy / yy if sy > 0 else whole)
            scales[p] = block.start
        return scales

    def _restart(self, k: int, start: float) -> None:
        self._blocks[k].start, self._blocks[k].pairs = start, 0
        self._matrix.set_identity(k, start)

    def _learn(
        self, k: int, s: Tensor, y: Tensor, g: Tensor, g_new: Tensor, hg: Tensor, hg_new: Tensor, step: float | None
    ) -> tuple[Update | None, Tensor, Tensor, Tensor]:
        """Return a block's update (None if it learns nothing) with u, w and the product H+ g_new."""
        block = self._blocks[k]
        sy, yy = float(torch.dot(s, y)), float(torch.dot(y, y))
        if not sy > self.curvature * math.sqrt(float(torch.dot(s, s)) * yy):
            return None, s, y, hg_new
        rescale = 1.0
        if block.pairs == 0:
            # The first pair sets the scale of the start matrix, (s'y / y'y) I, and needs no scaling beyond it.
            rescale, step = sy / yy / block.start, None
        hg_new = rescale * hg_new
        hy = hg_new - rescale * hg
        yhy = float(torch.dot(y, hy))
        sbs = sy if step is None else step * step * float(torch.dot(hg, g))
        if not (0 < yhy < math.inf and 0 < sbs < math.inf):  # round-off has cost H its definiteness
            self._restart(k, sy / yy)
            return None, s, y, block.start * g_new
        tau, phi = _factors(self.kind, len(s), sy, yhy, sbs)
        u, w, c = s / math.sqrt(sy), hy / math.sqrt(yhy), math.sqrt(yhy / sy)
        m11, m12, m22 = 1 + phi * c * c / tau, -phi * c / tau, (phi - 1) / tau
        ug, wg = float(torch.dot(u, g_new)), float(torch.dot(w, g_new))
        product = hg_new / tau + (m11 * ug + m12 * wg) * u + (m12 * ug + m22 * wg) * w
        return (rescale / tau, m11, m12, m22), u, w, product

    def reset(self) -> None:
        self._known, self._pairs, self._scale = None, 0, 1.0

    def retarget(self) -> None:
        self._known = None

    def state(self) -> Tree:
        tree: Tree = {"pairs": self._pairs, "blocks": np.array([b.part.stop for b in self._blocks])}
        if self._pairs == 0:
            return tree
        tree["starts"] = np.array([b.start for b in self._blocks])
        tree["block_pairs"] = np.array([b.pairs for b in self._blocks])
        tree["matrix"] = self._matrix.state()
        tree["scale"] = repr(self._scale)
        if self._known is not None:
            tree |= {"g": self._known[1].cpu().numpy(), "hg": self._known[2].cpu().numpy()}
        return tree

    def load(self, state: Tree) -> None:
        if state["blocks"].tolist() != [b.part.stop for b in self._blocks]:
            raise UserError(f"the state's inverse has {len(state['blocks'])} other blocks; use its -snes_qn_blocks")
        self.reset()
        self._pairs = int(state["pairs"])
        if self._pairs == 0:
            return
        for block, start, pairs in zip(self._blocks, state["starts"], state["block_pairs"], strict=True):
            block.start, block.pairs = float(start), int(pairs)
        self._matrix.load(state["matrix"])
        self._scale = float(state.get("scale", 1.0))
        if "g" in state:
            whole, product = (torch.from_numpy(state[k]).to(self.space.device, copy=True) for k in ("g", "hg"))
            self._known = (self.space.local(whole), whole, product)

    def recognise(self, g: Tensor) -> None:
        if self._known is not None and self._knows(g):
            self._known = (g, *self._known[1:])


def _factors(kind: str, n: int, sy: float, yhy: float, sbs: float) -> tuple[float, float]:
    """Return tau and phi."""
    if kind == "bfgs":
        return 1.0, 1.0
    b, h = max(sbs / sy, 1e-16), yhy / sy
    if kind == "ssbfgs":
        return min(1.0, 1 / b), 1.0
    a = b * h - 1
    if a <= 1e-14:  # y and B s are parallel: every update of the family is the same
        return 1.0, 1.0
    rho = min(1.0, h * (1 - math.sqrt(a / (1 + a))))
    theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
    sigma = 1 + theta * a
    power = abs(sigma) ** (1.0 / (1 - n)) if n > 1 else 1.0
    tau = min(min(1.0, 1 / b) * power, sigma) if theta <= 0 else min(1.0, 1 / b) * min(power, 1 / theta)
    return tau, (1 - theta) / (1 + a * theta)
