"""Randomised Nystrom preconditioner: the leading eigenvalues of B, from r of its actions, made equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ml2hpc.ksp.interface import Operator, Preconditioner, Tree
from ml2hpc.vec import CPU, VectorSpace


class Nystrom(Preconditioner):
    """P^-1 = I + U (l (max(Lambda, l))^-1 - I) U',  B ~ U Lambda U' of rank r.

    From an orthonormal test matrix Omega (n, r) and Y = B Omega,

        U Lambda U' = (Y + nu Omega) (Omega' (Y + nu Omega))^-1 (Y + nu Omega)' - nu I on its range,

    with a shift nu for stability, and as large as the core Omega' Y is indefinite. l is the least captured eigenvalue,
    at least the shift. A damped operator B + mu I brings its damping along.

    Parameters
    ----------
    rank
        Number r of test vectors, at most n.
    seed
        Of the test matrix, the same on any number of ranks.
    lag
        Operators that share one sketch.

    References
    ----------
    Frangella, Tropp, Udell: Randomized Nystrom preconditioning, SIAM J. Matrix Anal. Appl. 44 (2023); Rathore, Lei,
    Frangella, Lu, Udell: Challenges in training PINNs: a loss landscape perspective, ICML (2024).
    """

    name = "nystrom"

    def __init__(self, rank: int, seed: int, lag: int) -> None:
        self._rank, self._seed, self._lag = rank, seed, lag
        self._age = 0  # operators that the sketch has served
        self._u: Tensor | None = None  # (n_local, r)
        self._scale: Tensor | None = None  # l / max(Lambda, l) - 1, shape (r,)

    def set_up(self, operator: Operator) -> None:
        if self._u is None or self._age >= self._lag:
            self._space = operator.space
            self._sketch(operator)
            self._age = 0
        self._age += 1

    def _sketch(self, operator: Operator) -> None:
        space = operator.space
        rank = min(self._rank, space.n)
        normal = torch.randn(
            space.n, rank, generator=torch.Generator(CPU).manual_seed(self._seed), dtype=torch.float64, device=CPU
        )
        omega = torch.linalg.qr(normal)[0].to(space.device, space.dtype)
        mine = space.local(omega)
        images = [operator.action(column.clone()) for column in mine.unbind(1)]
        y = space.gather(torch.stack(images, 1))
        core = omega.T @ y
        size = float(y.norm())
        if not 0.0 < size < math.inf:
            self._u, self._scale = y[: space.n_local, :0], y[0, :0]  # nothing is captured: P is the identity
            return
        least = float(torch.linalg.eigvalsh(0.5 * (core + core.T))[0])
        shift = torch.finfo(y.dtype).eps * size + max(-least, 0.0)
        y = y + shift * omega
        core = omega.T @ y
        values, vectors = torch.linalg.eigh(0.5 * (core + core.T))
        # The core's own root instead of Cholesky's: where B has a smaller rank than r, rounding leaves no Cholesky.
        kept = values > torch.finfo(y.dtype).eps * len(values) * values[-1]
        u, sigma, _ = torch.linalg.svd(y @ (vectors[:, kept] / values[kept].sqrt()), full_matrices=False)
        eigenvalues = (sigma.square() - shift).clamp(min=0.0)
        smallest = eigenvalues[-1].clamp(min=shift)  # below the shift nothing is known
        self._u = space.local(u).clone()
        self._scale = smallest / torch.maximum(eigenvalues, smallest) - 1.0

    def apply(self, r: Tensor) -> Tensor:
        assert self._u is not None
        assert self._scale is not None
        return r + self._u @ (self._scale * self._space.mdot(self._u.T, r))

    def reset(self) -> bool:
        had = self._age > 1
        self._u, self._age = None, 0
        return had

    def state(self) -> Tree:
        # A sketch that serves no further operator is made anew by whoever restarts.
        if self._u is None or self._age >= self._lag:
            return {}
        assert self._scale is not None
        whole = self._space.gather(self._u)
        return {"age": self._age, "u": whole.cpu().numpy(), "scale": self._scale.cpu().numpy()}

    def load(self, space: VectorSpace, state: Tree) -> None:
        if state:
            self._space = space
            self._age = int(state["age"])
            self._u = space.restored(state["u"])
            self._scale = torch.from_numpy(state["scale"].copy()).to(space.device)

    def view(self) -> list[str]:
        every = f", every {self._lag} operators" if self._lag > 1 else ""
        return [f"rank={self._rank}, seed={self._seed}{every}"]
