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
        self._upper = torch.zeros(memory, memory, dtype=space.dtype, device=space.device)  # R, oldest pair first
        self._yy = torch.zeros_like(self._upper)  # Y'Y, oldest pair first
        self._order: list[int] = []  # places of the pairs in the rows, oldest first
        self._places = torch.empty(0, dtype=torch.int64, device=space.device)  # the same where the rows are
        self._learnt = 0
        self._known: tuple[Tensor, Tensor] | None = None  # g and its products with the rows, (2 memory,)

    @property
    def pairs(self) -> int:
        return self._learnt

    def apply(self, g: Tensor) -> Tensor:
        if not self._order:
            return g.clone()
        if self._known is None or self._known[0] is not g:
            self._known = (g, self._rows.products(g, g)[1])
        k, m, count = self._places, self.memory, len(self._order)
        sg, yg = self._known[1][k], self._known[1][m + k]
        upper, yy = self._upper[:count, :count], self._yy[:count, :count]
        gamma = float(upper[-1, -1]) / float(yy[-1, -1]) if self.scaled else 1.0
        q = torch.linalg.solve_triangular(upper, sg[:, None], upper=True)[:, 0]
        middle = upper.diagonal() * q + gamma * (yy @ q - yg)
        p = torch.linalg.solve_triangular(upper.T, middle[:, None], upper=False)[:, 0]
        weights = g.new_zeros(2 * m)
        weights[k] = p
        weights[m + k] = -gamma * q
        return self._rows.combination(weights, gamma, g)

    def update(self, s: Tensor, y: Tensor, g: Tensor, g_new: Tensor, step: float | None) -> None:
        m = self.memory
        if len(self._order) == m:
            for products in (self._upper, self._yy):
                products[:-1, :-1] = products[1:, 1:].clone()
            place = self._order.pop(0)
            self._places = self._places.roll(-1)
        else:
            place = len(self._order)
            self._places = torch.cat([self._places, self._places.new_full((1,), place)])
        self._order.append(place)
        self._rows.values[place] = s
        self._rows.values[m + place] = y
        with_y, with_g = self._rows.products(y, g_new)
        k, count = self._places, len(self._order)
        self._upper[:count, count - 1] = with_y[k]
        self._yy[:count, count - 1] = self._yy[count - 1, :count] = with_y[m + k]
        self._known = (g_new, with_g)
        self._learnt += 1

    def reset(self) -> None:
        self._order.clear()
        self._places = self._places[:0]
        self._learnt, self._known = 0, None

    def retarget(self) -> None:
        self._known = None

    def state(self) -> Tree:
        rows = self.space.gather(self._rows.values.T.contiguous()).T.contiguous()
        tree: Tree = {
            "rows": rows.cpu().numpy(),
            "upper": self._upper.cpu().numpy(),
            "yy": self._yy.cpu().numpy(),
            "order": list(map(str, self._order)),
            "learnt": self._learnt,
        }
        if self._known is not None:
            tree |= {"g": self.space.gather(self._known[0]).cpu().numpy(), "along": self._known[1].cpu().numpy()}
        return tree

    def load(self, state: Tree) -> None:
        self._rows.values.copy_(torch.from_numpy(state["rows"])[:, self.space.rows])
        self._upper, self._yy = (torch.from_numpy(state[k]).to(self.space.device, copy=True) for k in ("upper", "yy"))
        self._order = [int(i) for i in state["order"]]
        self._places = torch.tensor(self._order, dtype=torch.int64, device=self.space.device)
        self._learnt = int(state["learnt"])
        self._known = None
        if "g" in state:
            along = torch.from_numpy(state["along"]).to(self.space.device, copy=True)
            self._known = (self.space.restored(state["g"]), along)

    def recognise(self, g: Tensor) -> None:
        if self._known is not None and self.space.norm(self._known[0] - g) == 0.0:
            self._known = (g, self._known[1])
