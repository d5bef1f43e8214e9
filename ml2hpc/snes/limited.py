"""Limited-memory BFGS in compact form."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ml2hpc.kernels import Library
from ml2hpc.snes.coarse import CoarseStart
from ml2hpc.snes.secant import Inverse, Tree
from ml2hpc.vec import Rows, VectorSpace


class Middle:
    """The small matrices of the compact form, of m pairs; zero where there is none yet.

    Parameters
    ----------
    library
        The compiled kernels, for which torch's calls are long; None for the same mathematics in torch.

    Attributes
    ----------
    inverse, yy, sy
        R^-1 and Y'Y, shape (m, m), and the diagonal of D, shape (m,).
    """

    def __init__(self, space: VectorSpace, m: int, library: Library | None) -> None:
        self.inverse = torch.zeros(m, m, dtype=space.dtype, device=space.device)
        self.yy = torch.zeros_like(self.inverse)
        self.sy = torch.zeros_like(self.inverse[0])
        self._kernels: tuple[Any, Any] | None = None
        if library is not None and space.device.type == "cpu":
            pointer, long = ctypes.c_void_p, ctypes.c_long
            learn = library.function("limited_learn", space.dtype)
            learn.argtypes = [pointer, pointer, pointer, long, long, pointer]
            weights = library.function("limited_weights", space.dtype, ctypes.c_double)
            weights.argtypes = [pointer, pointer, pointer, long, long, pointer, pointer]
            self._kernels = learn, weights
            self._pointers = tuple(a.data_ptr() for a in (self.inverse, self.yy, self.sy))

    def learn(self, place: int, products: Tensor) -> None:
        """Take the pair whose S'y and Y'y are given, shape (2, m), in place of another. Not collective."""
        if self._kernels is not None:
            self._kernels[0](*self._pointers, len(self.sy), place, products.data_ptr())
            return
        sy, yy = products
        self.sy[place] = sy[place]
        self.yy[place] = self.yy[:, place] = yy
        self.inverse[place] = self.inverse[:, place] = 0.0
        self.inverse[:, place] = (self.inverse @ sy) / -sy[place]
        self.inverse[place, place] = 1.0 / sy[place]

    def weights(self, last: int, products: Tensor) -> tuple[Tensor, float]:
        """Return p above -gamma q, shape (2 m,), and gamma, from S'g and Y'g, shape (2, m). Not collective.

        Parameters
        ----------
        last
            The place of the pair that gamma is taken from, -1 for gamma = 1.
        """
        m = len(self.sy)
        if self._kernels is not None:
            out = products.new_empty(3 * m)
            gamma = self._kernels[1](*self._pointers, m, last, products.data_ptr(), out.data_ptr())
            return out[: 2 * m], gamma
        sg, yg = products
        gamma = 1.0 if last < 0 else float(self.sy[last]) / float(self.yy[last, last])
        q = self.inverse @ sg
        p = self.inverse.T @ (self.sy * q + gamma * (self.yy @ q - yg))
        return torch.cat([p, -gamma * q]), gamma


class CompactLBFGS(Inverse):
    """Limited-memory BFGS in compact form: two passes over the stored pairs for each step.

    With S, Y the pairs as columns, R the upper triangle of S'Y, D its diagonal, gamma = s'y / y'y of the last pair,

        H g = gamma g + S p + gamma Y q,   q = -R^-1 S'g,   p = R^-T ((D + gamma Y'Y) R^-1 S'g - gamma Y'g).

    One pass forms [S Y]' [y g_new] with a new pair, which are the new columns of R and Y'Y and all that the next
    direction needs; the other forms the direction.

    What is kept is R^-1. A new pair adds to it the column -R^-1 (S'y) / s'y; the oldest leaves with its row and column,
    as the rest of an upper triangle has the rest of its inverse. So pairs need no order, and take the oldest's place.
    With any matrix in place of R^-1 this H is symmetric and positive: rounding in it costs neither,

        H = gamma (I - Y R^-1 S')' (I - Y R^-1 S') + (R^-1 S')' D (R^-1 S').

    Parameters
    ----------
    memory
        Pairs at most.
    scaled
        gamma as above, else 1.
    library
        The compiled kernels, or None.

    References
    ----------
    Byrd, Nocedal, Schnabel: Representations of quasi-Newton matrices, Math. Programming 63 (1994).
    """

    def __init__(self, space: VectorSpace, memory: int, *, scaled: bool, library: Library | None) -> None:
        super().__init__(space)
        self.memory = memory
        self.scaled = scaled
        self._rows = Rows(space, 2 * memory, library)  # S' above Y'
        self._middle = Middle(space, memory, library)
        self._learnt = 0
        self._known: tuple[Tensor, Tensor] | None = None  # g and its products with the rows, (2, memory)
        self.start: CoarseStart | None = None  # in place of gamma

    @property
    def pairs(self) -> int:
        return self._learnt

    @property
    def blank(self) -> bool:
        return self._learnt == 0 and self.start is None

    def apply(self, g: Tensor) -> Tensor:
        if not self._learnt:
            return g.clone() if self.start is None else self.start.apply(g)
        if self._known is None or self._known[0] is not g:
            self._known = (g, self._products(g, g)[1])
        if self.start is not None:
            return self._from(self.start, g, self._known[1][0])
        last = (self._learnt - 1) % self.memory if self.scaled else -1
        weights, gamma = self._middle.weights(last, self._known[1])
        return self._rows.combination(weights, gamma, g)

    @property
    def scale(self) -> float:
        if not self._learnt:
            return 1.0 if self.start is None else self.start.gamma
        last = (self._learnt - 1) % self.memory
        return float(self._middle.sy[last]) / float(self._middle.yy[last, last])

    def _from(self, start: CoarseStart, g: Tensor, sg: Tensor) -> Tensor:
        """Return H g with a start matrix, which is read between two passes over the pairs: it may change. Collective.

        t = g - Y R^-1 S'g,   h = H_0 t,   H g = h + S R^-T (D R^-1 S'g - Y'h)
        """
        s, y = self._rows.part(0, self.memory), self._rows.part(self.memory, 2 * self.memory)
        q = self._middle.inverse @ sg
        h = start.apply(y.combination(-q, 1.0, g))
        p = self._middle.inverse.T @ (self._middle.sy * q - y.products(h, h)[0])
        return s.combination(p, 1.0, h)

    def _products(self, x: Tensor, y: Tensor) -> Tensor:
        """Return S'x, Y'x, S'y, Y'y, shape (2, 2, memory). Collective if sharded."""
        return self._rows.products(x, y).view(2, 2, self.memory)

    def update(self, s: Tensor, y: Tensor, g: Tensor, g_new: Tensor, step: float | None) -> None:
        place = self._learnt % self.memory
        self._rows.values[place] = s
        self._rows.values[self.memory + place] = y
        products = self._products(y, g_new)
        self._middle.learn(place, products[0])
        self._known = (g_new, products[1])
        self._learnt += 1
        if self.start is not None and self.scaled:
            self.start.learn(s, y)

    def lift(self, coarse: CompactLBFGS, prolong: Callable[[Tensor], Tensor], masses: Tensor) -> None:
        """Take over the newest pairs of a coarser level: s_f = I s, y_f = I M^-1 y, M = diag(masses). Collective.

        Where I' I = M, as for interpolation by constants, I' y_f = y and S_f' Y_f = S' Y: R^-1 and D stay, H is that of
        the coarser level on what it sees and gamma on the rest. Elsewhere H is still symmetric and positive.
        """
        count = min(coarse._learnt, coarse.memory, self.memory)
        places = torch.arange(coarse._learnt - count, coarse._learnt, device=coarse.space.device) % coarse.memory
        s, y = coarse._rows.values[places], coarse._rows.values[coarse.memory + places]
        light = y / masses
        self.reset()
        for k in range(count):
            self._rows.values[k] = prolong(s[k])
            self._rows.values[self.memory + k] = prolong(light[k])
        here, there = self._middle, coarse._middle
        here.inverse[:count, :count] = there.inverse[places][:, places]
        here.yy[:count, :count] = coarse.space.mdot(light, y.T)
        here.sy[:count] = there.sy[places]
        self._learnt = count

    def reset(self) -> None:
        self._middle.inverse.zero_()
        self._learnt, self._known, self.start = 0, None, None

    def retarget(self) -> None:
        self._known = None

    def state(self) -> Tree:
        rows = self.space.gather(self._rows.values.T.contiguous()).T.contiguous()
        tree: Tree = {
            "rows": rows.cpu().numpy(),
            "inverse": self._middle.inverse.cpu().numpy(),
            "yy": self._middle.yy.cpu().numpy(),
            "sy": self._middle.sy.cpu().numpy(),
            "learnt": self._learnt,
        }
        if self.start is not None:
            tree["start"] = repr(self.start.gamma)
        if self._known is not None:
            tree |= {"g": self.space.gather(self._known[0]).cpu().numpy(), "along": self._known[1].cpu().numpy()}
        return tree

    def load(self, state: Tree) -> None:
        self._rows.values.copy_(torch.from_numpy(state["rows"])[:, self.space.rows])
        for name in ("inverse", "yy", "sy"):
            getattr(self._middle, name).copy_(torch.from_numpy(state[name]))
        self._learnt = int(state["learnt"])
        self._known = None
        if "g" in state:
            along = torch.from_numpy(state["along"]).to(self.space.device, copy=True)
            self._known = (self.space.restored(state["g"]), along)

    def recognise(self, g: Tensor) -> None:
        if self._known is not None and self.space.norm(self._known[0] - g) == 0.0:
            self._known = (g, self._known[1])
