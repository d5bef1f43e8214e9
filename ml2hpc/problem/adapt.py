"""A PINN's loss that adapts to the iterate: points where the residual is large, weights that balance the terms.

Both replace the problem by another one on the same parameters, between two iterations of a solver. They are functions
of the iterate, the seed and their own number, so that a restart and any number of ranks give the same bits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml2hpc.comm import Communicator
from ml2hpc.errors import OptionsError, UserError
from ml2hpc.options.closest import closest
from ml2hpc.problem.ansatz import Term
from ml2hpc.problem.interface import Problem
from ml2hpc.problem.pinn import Model, PinnProblem
from ml2hpc.problem.samplers import sample

Tree = dict[str, Any]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Resampling:
    """Residual-based adaptive distribution (RAD): p proportional to |r|^power / mean |r|^power + offset.

    Attributes
    ----------
    interval
        Iterations between two resamplings.
    candidates
        Points to draw from, as a factor of the points drawn.
    sampler, seed
        How candidates are drawn; each resampling has a stream of its own.
    """

    interval: int
    power: float
    offset: float
    candidates: int
    sampler: str
    seed: int


@dataclass(frozen=True)
class Balancing:
    """How weights follow the gradients of their terms.

    Attributes
    ----------
    interval
        Iterations between two changes of the weights.
    average
        Share of the old weight in the new one.
    """

    interval: int
    average: float


@dataclass(frozen=True)
class Change:
    """A problem that takes the place of another, a word on why, and what it cost in evaluations of the loss."""

    problem: Problem
    reason: str
    objectives: float
    gradients: float


class Adaptation(ABC):
    """What replaces the problem of a running solve by another on the same space."""

    @abstractmethod
    def due(self, iteration: int) -> bool:
        """Tell whether the problem changes before the iteration after this one. Not collective."""

    @abstractmethod
    def refresh(self, iteration: int, x: Tensor) -> Change:
        """Return the problem that the iterations after this one solve. Collective.

        Parameters
        ----------
        x
            The iterate, whole, shape (n,).

        Raises
        ------
        UserError
            If a residual or a gradient is not a number, on every rank.
        """

    @abstractmethod
    def columns(self) -> dict[str, float]:
        """Return what a history tells of the problem in force. Not collective."""

    @abstractmethod
    def view(self) -> list[str]:
        """Return lines that say how and how often the problem changes, for -snes_view. Not collective."""

    @abstractmethod
    def state(self) -> Tree:
        """Return what `load` needs for the problem in force, the same on every rank. Not collective."""

    @abstractmethod
    def load(self, state: Tree) -> Problem:
        """Take over a state that every rank has; return its problem. Not collective.

        Raises
        ------
        ValueError
            If it is another loss's.
        """


class AdaptivePinn(Adaptation):
    """A PINN's loss with its points and weights in force.

    Resampling draws the points of the first term, the residual inside; conditions keep theirs (`residual_density`).
    Balancing changes the weights of all other terms, with l_i the mean square of term i's residuals:

        w_i <- average w_i + (1 - average) w_0 |grad l_0| / |grad l_i|.

    Where the gradient of a term is zero, its weight stays.

    References
    ----------
    Wu, Zhu, Tan, Kartha, Lu, Comput. Methods Appl. Mech. Engrg. 403 (2023): RAD. Kiyani, Shukla, Urban, Darbon,
    Karniadakis, Comput. Methods Appl. Mech. Engrg. (2025): RAD with self-scaled Broyden. Wang, Teng, Perdikaris,
    SIAM J. Sci. Comput. 43 (2021): the weights, there with the largest entry of |grad l_0| over the mean entry of
    |grad l_i|; 2-norms here, by which the terms pull equally in the end.
    """

    def __init__(self, problem: PinnProblem, resampling: Resampling | None, balancing: Balancing | None) -> None:
        self.problem = problem
        self.resampling = resampling
        self.balancing = balancing
        self._drawn = problem.loss_terms[0]  # before the first resampling
        self.resampled = 0  # times
        self._iteration = 0  # of the last change
        if balancing is not None and len(problem.loss_terms) == 1:
            raise UserError(
                f"-pinn_adaptive_weights gradient: {problem.loss_terms[0].name} is the only term of the loss, "
                f"there is nothing to balance; use -pinn_conditions soft, or -pinn_adaptive_weights none"
            )

    def due(self, iteration: int) -> bool:
        methods = (self.resampling, self.balancing)
        # A change at the last iteration of a solve may have been made before a restart.
        return iteration != self._iteration and any(m is not None and iteration % m.interval == 0 for m in methods)

    def refresh(self, iteration: int, x: Tensor) -> Change:
        self._iteration = iteration
        reasons, objectives, gradients = [], 0.0, 0.0
        if self.resampling is not None and iteration % self.resampling.interval == 0:
            objectives = self._resample(x, self.resampling)
            reasons.append(f"resampling {self.resampled}")
        if self.balancing is not None and iteration % self.balancing.interval == 0:
            gradients = self._balance(x, self.balancing.average)
            weights = ", ".join(f"{name} {weight:.3g}" for name, weight in self.weights().items())
            reasons.append(f"weights {weights}")
        return Change(self.problem, "; ".join(reasons), objectives, gradients)

    def _resample(self, x: Tensor, how: Resampling) -> float:
        """Draw new points; return the cost in objectives. Collective."""
        comm, model, terms = self.problem.comm, self.problem.model, self.problem.loss_terms
        with comm.log.event("Resample"):
            self.resampled += 1
            first = resample(comm, model, terms[0], x, how, self.resampled)
            self.problem = PinnProblem(comm, model, (first, *terms[1:]))
        return how.candidates * first.n / self.problem.samples

    def _balance(self, x: Tensor, average: float) -> float:
        """Change the weights; return the cost in gradients. Collective."""
        comm, model, terms = self.problem.comm, self.problem.model, self.problem.loss_terms
        with comm.log.event("Balance"):
            norms = gradient_norms(comm, model, terms, x)
            weights = [_weight(term) for term in terms]
            balanced = [
                average * w + (1 - average) * weights[0] * norms[0] / norm if norm > 0 else w
                for w, norm in zip(weights[1:], norms[1:], strict=True)
            ]
            others = [replace(term, factor=w / term.n) for term, w in zip(terms[1:], balanced, strict=True)]
            self.problem = PinnProblem(comm, model, (terms[0], *others))
        return 1.0

    def weights(self) -> dict[str, float]:
        """Return the weight of each term by name. Not collective."""
        return {term.name: _weight(term) for term in self.problem.loss_terms}

    def columns(self) -> dict[str, float]:
        found = {} if self.resampling is None else {"resampling": float(self.resampled)}
        if self.balancing is not None:
            found |= {f"weight_{name}": weight for name, weight in self.weights().items()}
        return found

    def view(self) -> list[str]:
        lines = []
        if (r := self.resampling) is not None:
            law = f"|r|^{r.power:g} / mean + {r.offset:g}"
            lines.append(
                f"points drawn anew {self.resampled} times: every {r.interval} iterations by {law} "
                f"out of {r.candidates} times as many"
            )
        if (b := self.balancing) is not None:
            lines.append(f"weights balanced every {b.interval} iterations, average={b.average:g}")
        return lines

    def state(self) -> Tree:
        terms = self.problem.loss_terms
        return {
            "resampled": self.resampled,
            "iteration": self._iteration,
            "points": terms[0].points.cpu().numpy(),
            "terms": [term.name for term in terms],
            "factors": np.array([term.factor for term in terms]),
        }

    def load(self, state: Tree) -> PinnProblem:
        terms = self.problem.loss_terms
        points = torch.from_numpy(state["points"]).to(self.problem.model.device, copy=True)
        if state["terms"] != [term.name for term in terms] or points.shape != terms[0].points.shape:
            raise ValueError("its loss has other terms or points")
        self.resampled, self._iteration = int(state["resampled"]), int(state["iteration"])
        first = replace(self._drawn, points=points) if self.resampled else self._drawn
        new = [replace(term, factor=float(f)) for term, f in zip((first, *terms[1:]), state["factors"], strict=True)]
        self.problem = PinnProblem(self.problem.comm, self.problem.model, new)
        return self.problem


def _weight(term: Term) -> float:
    return term.factor * term.n


def resample(comm: Communicator, model: Model, term: Term, x: Tensor, how: Resampling, number: int) -> Term:
    """Return a term on points drawn by its residual: RAD's draw of this number. Collective."""
    streams = np.random.SeedSequence((how.seed, number)).spawn(2)
    seed = int(streams[0].generate_state(1)[0])
    drawn = sample(how.sampler, how.candidates * term.n, model.pde.bounds, seed)
    candidates = replace(term, points=torch.as_tensor(drawn.T.copy(), dtype=model.dtype, device=model.device))
    density = residual_density(squares(comm, model, candidates, x), how.power, how.offset)
    chosen = draw(density, term.n, np.random.default_rng(streams[1]))
    return replace(term, points=candidates.points[:, torch.from_numpy(chosen).to(model.device)].contiguous())


def squares(comm: Communicator, model: Model, term: Term, x: Tensor) -> Array:
    """Return the squared residual at each point of a term, shape (n,), computed by all ranks. Collective.

    Raises
    ------
    UserError
        If one is not a number, on every rank.
    """
    # The cuts depend on the number of points alone: where a chunk begins decides the last digits of its products.
    pieces = math.ceil(term.n / model.chunk)
    cuts = [slice(k * term.n // pieces, (k + 1) * term.n // pieces) for k in range(pieces)]
    by_rank = [cuts[r * pieces // comm.size : (r + 1) * pieces // comm.size] for r in range(comm.size)]
    found = model.squares(x, term, by_rank[comm.rank])
    mine = torch.cat(found).to(torch.float64).cpu().numpy() if found else np.empty(0)
    everyone: Array = comm.allgather_parts(mine, [sum(c.stop - c.start for c in cuts) for cuts in by_rank])
    bad = int((~np.isfinite(everyone)).sum())
    if bad:
        raise UserError(
            f"{type(model.pde).__name__}.{term.name} is not a number at {bad} of {term.n} candidates for new points; "
            f"make it finite in the whole domain, or use -pinn_resample none"
        )
    return everyone


def residual_density(squared: Array, power: float, offset: float) -> Array:
    """Return p_i proportional to |r_i|^power / mean |r|^power + offset, with sum 1. Not collective.

    Parameters
    ----------
    squared
        |r|^2, shape (n,).
    """
    largest = squared.max()
    if largest == 0.0:
        return np.full(len(squared), 1.0 / len(squared))
    weight = (squared / largest) ** (0.5 * power)  # scaled first: a high power of a small residual would vanish
    density = weight / weight.mean() + offset
    p: Array = density / density.sum()
    return p


def draw(p: Array, n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return n different numbers in 0..len(p)-1, sorted: drawn one after the other by the probabilities p.

    Not collective. Of clocks that ring at random with the rates p, the first n to ring are such a draw. Where fewer
    than n have a rate above 0, the first of the others complete it.

    References
    ----------
    Efraimidis, Spirakis: Weighted random sampling with a reservoir, Inform. Process. Lett. 97 (2006).

    Examples
    --------
    >>> draw(np.array([0.0, 0.5, 0.5]), 2, np.random.default_rng(0)).tolist()
    [1, 2]
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # p = 0 never rings
        rings = -np.log1p(-generator.random(len(p))) / p
    return np.sort(np.argsort(rings, kind="stable")[:n])


def gradient_norms(comm: Communicator, model: Model, terms: Sequence[Term], x: Tensor) -> list[float]:
    """Return |grad l_i| for the mean square l_i of each term's residuals. Collective.

    Raises
    ------
    UserError
        If one is not a number, on every rank.
    """
    norms = []
    for term in terms:
        alone = PinnProblem(comm, model, [replace(term, factor=1.0 / term.n)])
        norms.append(alone.space.norm(alone.gradient(x)))
        if not math.isfinite(norms[-1]):
            raise UserError(f"the gradient of the term {term.name} is not a number; use -pinn_adaptive_weights none")
    return norms


def weighted(terms: Sequence[Term], text: str) -> list[Term]:
    """Return the terms with the weights of `-pinn_weights`, such as "t0_value=100,residual=1". Not collective.

    A weight w makes the term w * mean of its squared residuals; terms that are not named keep theirs.

    Raises
    ------
    OptionsError
        If the text is not name=weight,..., or names what is no term.
    """
    by_name = {term.name: term for term in terms}
    given: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = (word.strip() for word in part.partition("="))
        if name not in by_name:
            near = closest(name, by_name)
            hint = f"; did you mean {near}?" if near else ""
            raise OptionsError(f"-pinn_weights {part}: the loss has the terms {', '.join(by_name)}{hint}")
        weight = _number(number) if equals else math.nan
        if name in given or not (math.isfinite(weight) and weight > 0):
            raise OptionsError(
                f"-pinn_weights {text}: give each term at most once, as name=weight with a weight above 0"
            )
        given[name] = weight
    if text and not given:
        raise OptionsError(f"-pinn_weights {text}: names no term; the loss has the terms {', '.join(by_name)}")
    return [replace(t, factor=given[t.name] / t.n) if t.name in given else t for t in terms]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
