"""Limited-memory BFGS in compact form."""

from __future__ import annotations

import torch
from torch import Tensor

from ml2hpc.kernels import Library
from ml2hpc.snes.secant import Inverse, Tree
from ml2hpc.vec import Rows, VectorSpace


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
        self._inverse = torch.zeros(memory, memory, dtype=space.dtype, device=space.device)  # R^-1, zero without pairs
        self._yy = torch.zeros_like(self._inverse)  # Y'Y
        self._sy = torch.zeros_like(self._inverse[0])  # the diagonal of D
        self._learnt = 0
        self._known: tuple[Tensor, Tensor] | None = None  # g and its products with the rows, (2, memory)

    @property
    def pairs(self) -> int:
        return self._learnt

    def apply(self, g: Tensor) -> Tensor:
        if not self._learnt:
            return g.clone()
        if self._known is None or self._known[0] is not g:
            self._known = (g, self._products(g, g)[1])
        sg, yg = self._known[1]
        last = (self._learnt - 1) % self.memory
        gamma = float(self._sy[last]) / float(self._yy[last, last]) if self.scaled else 1.0
        q = self._inverse @ sg
        p = self._inverse.T @ (self._sy * q + gamma * (self._yy @ q - yg))
        return self._rows.combination(torch.cat([p, -gamma * q]), gamma, g)

    def _products(self, x: Tensor, y: Tensor) -> Tensor:
        """Return S'x, Y'x, S'y, Y'y, shape (2, 2, memory). Collective if sharded."""
        return self._rows.products(x, y).view(2, 2, self.memory)

    def update(self, s: Tensor, y: Tensor, g: Tensor, g_new: Tensor, step: float | None) -> None:
        place = self._learnt % self.memory
        self._rows.values[place] = s
        self._rows.values[self.memory + place] = y
        (sy, yy), with_g = self._products(y, g_new)
        self._sy[place] = sy[place]
        self._yy[place] = self._yy[:, place] = yy
        self._inverse[place] = self._inverse[:, place] = 0.0
        self._inverse[:, place] = (self._inverse @ sy) / -sy[place]
        self._inverse[place, place] = 1.0 / sy[place]
        self._known = (g_new, with_g)
        self._learnt += 1

    def reset(self) -> None:
        self._inverse.zero_()
        self._learnt, self._known = 0, None

    def retarget(self) -> None:
        self._known = None

    def state(self) -> Tree:
        rows = self.space.gather(self._rows.values.T.contiguous()).T.contiguous()
        tree: Tree = {
            "rows": rows.cpu().numpy(),
            "inverse": self._inverse.cpu().numpy(),
            "yy": self._yy.cpu().numpy(),
            "sy": self._sy.cpu().numpy(),
            "learnt": self._learnt,
        }
        if self._known is not None:
            tree |= {"g": self.space.gather(self._known[0]).cpu().numpy(), "along": self._known[1].cpu().numpy()}
        return tree

    def load(self, state: Tree) -> None:
        self._rows.values.copy_(torch.from_numpy(state["rows"])[:, self.space.rows])
        for own, name in ((self._inverse, "inverse"), (self._yy, "yy"), (self._sy, "sy")):
            own.copy_(torch.from_numpy(state[name]))
        self._learnt = int(state["learnt"])
        self._known = None
        if "g" in state:
            along = torch.from_numpy(state["along"]).to(self.space.device, copy=True)
            self._known = (self.space.restored(state["g"]), along)

    def recognise(self, g: Tensor) -> None:
        if self._known is not None and self.space.norm(self._known[0] - g) == 0.0:
            self._known = (g, self._known[1])
