"""Secant matrices against five-line dense gold versions."""

from __future__ import annotations

import math

import pytest
import torch

from ml2hpc import kernels
from ml2hpc.comm import Communicator
from ml2hpc.errors import OptionsError, UserError
from ml2hpc.io.tree import from_image, to_image
from ml2hpc.log import Log
from ml2hpc.problem.transfer import Transfer
from ml2hpc.snes.coarse import CoarseStart
from ml2hpc.snes.dense import DenseInverse
from ml2hpc.snes.limited import CompactLBFGS
from ml2hpc.snes.qn import QuasiNewton
from ml2hpc.snes.secant import Inverse
from ml2hpc.vec import Replicated, Sharded
from tests.snes.problems import matrix, quadratic, rosenbrock, tree, world

N = 9


def pairs(count: int):
    """Secant pairs of a quadratic with gradients at both ends, along random steps."""
    generator = torch.Generator().manual_seed(4)
    a, x = matrix(N), torch.ones(N, dtype=torch.float64)
    for _ in range(count):
        s = torch.randn(N, generator=generator, dtype=torch.float64)
        yield s, a @ s, a @ x, a @ (x + s)
        x = x + s


def space() -> Replicated:
    return Replicated(N, torch.float64)


def dense(
    kind: str, blocks=None, n: int = N, library=None, curvature: float = 0.0, dtype=torch.float64
) -> DenseInverse:
    comm = Communicator.world(Log(), wait="spin").alone()
    return DenseInverse(Replicated(n, dtype), comm, kind, blocks or [slice(0, n)], curvature, library)


def entries(inverse: Inverse) -> torch.Tensor:
    """H by its columns."""
    n = inverse.space.n
    return torch.stack([inverse.apply(e) for e in torch.eye(n, dtype=inverse.space.dtype)])


def two_loop(stored, start, g):
    """Nocedal's recursion from a start matrix, or from a multiple of the identity."""
    q, alphas = g.clone(), []
    for s, y in reversed(stored):
        alphas.append(s @ q / (s @ y))
        q = q - alphas[-1] * y
    q = start @ q if isinstance(start, torch.Tensor) and start.dim() == 2 else start * q
    for (s, y), alpha in zip(stored, reversed(alphas), strict=True):
        q = q + (alpha - y @ q / (s @ y)) * s
    return q


@pytest.mark.parametrize("library", [kernels.load(), None], ids=["compiled", "torch"])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 11, 35])
@pytest.mark.parametrize("memory", [4, 11])
def test_compact_form_equals_the_recursion(memory, scaled, count, library):
    inverse = CompactLBFGS(space(), memory, scaled=scaled, library=library)
    stored = []
    for s, y, g, g_new in pairs(count):
        inverse.update(s, y, g, g_new, None)
        stored.append((s, y))
    g = torch.linspace(1, 2, N, dtype=torch.float64)
    gamma = stored[-1][0] @ stored[-1][1] / (stored[-1][1] @ stored[-1][1]) if stored and scaled else 1.0
    torch.testing.assert_close(inverse.apply(g), two_loop(stored[-memory:], gamma, g), rtol=1e-11, atol=1e-11)
    assert inverse.pairs == count
    inverse.reset()
    assert torch.equal(inverse.apply(g), g)
    fresh = CompactLBFGS(space(), memory, scaled=scaled, library=library)
    for s, y, g, g_new in pairs(2):  # what else it once held does not matter
        for each in (inverse, fresh):
            each.update(s, y, g, g_new, None)
    assert torch.equal(entries(inverse), entries(fresh))


def gold(h, s, y, b, kind):
    """The update as Al-Baali, Spedicato and Maggioni write it, on a dense matrix."""
    sy, hy = s @ y, h @ y
    yhy = y @ hy
    c, a = yhy / sy, b * (yhy / sy) - 1
    tau = phi = 1.0
    if kind == "ssbfgs":
        tau = min(1.0, 1 / b)
    if kind == "ssbroyden" and a > 1e-14:
        rho = min(1.0, c * (1 - math.sqrt(a / (1 + a))))
        theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
        sigma = (1 + theta * a) ** (1 / (1 - N))
        tau = min(min(1, 1 / b) * sigma, 1 + theta * a) if theta <= 0 else min(1, 1 / b) * min(sigma, 1 / theta)
        phi = (1 - theta) / (1 + a * theta)
    v = math.sqrt(yhy) * (s / sy - hy / yhy)
    return (h - torch.outer(hy, hy) / yhy + phi * torch.outer(v, v)) / tau + torch.outer(s, s) / sy


@pytest.mark.parametrize("library", [kernels.load(), None], ids=["compiled", "torch"])
@pytest.mark.parametrize("kind", ["bfgs", "ssbfgs", "ssbroyden"])
def test_dense_updates_equal_the_gold_version(kind, library):
    """Steps s = -lambda H g on a quadratic, so that s'Bs = -lambda s'g."""
    inverse = dense(kind, library=library)
    a = matrix(N)
    x = torch.ones(N, dtype=torch.float64)
    h = None
    for step in (0.001, 0.7, 1.3, 0.4, 1.0, 0.9, 0.8):
        g = a @ x
        s = -step * inverse.apply(g)
        y = a @ s
        if h is None:
            h, b = torch.eye(N, dtype=torch.float64) * (s @ y) / (y @ y), 1.0
        else:
            b = float(-step * (s @ g) / (s @ y))
        inverse.update(s, y, g, a @ (x + s), step)
        h = gold(h, s, y, b, kind)
        x = x + s
        torch.testing.assert_close(entries(inverse), h, rtol=1e-9, atol=1e-9)
        g = a @ x
        torch.testing.assert_close(inverse.apply(g), h @ g, rtol=1e-9, atol=1e-9)
    assert torch.linalg.eigvalsh(h).min() > 0


@pytest.mark.parametrize("kind", ["bfgs", "ssbfgs", "ssbroyden"])
def test_the_last_secant_equation_holds(kind):
    """H y = s for every member of the family: the scaling does not touch the newest pair."""
    inverse = dense(kind)
    for s, y, g, g_new in pairs(5):
        inverse.update(s, y, g, g_new, None)
        torch.testing.assert_close(inverse.apply(y), s, rtol=1e-9, atol=1e-9)


def test_the_known_product_is_used_only_for_the_same_vector():
    inverse = dense("bfgs")
    for s, y, g, g_new in pairs(3):
        inverse.update(s, y, g, g_new, None)
    torch.testing.assert_close(inverse.apply(g_new), entries(inverse) @ g_new, rtol=1e-9, atol=1e-9)
    other = torch.ones(N, dtype=torch.float64)
    torch.testing.assert_close(inverse.apply(other), entries(inverse) @ other, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("memory", "factor"), [(0, 0.1), (3, 0.2)])
@pytest.mark.parametrize("kind", ["lbfgs", "bfgs", "ssbfgs", "ssbroyden"])
def test_quasi_newton_is_superlinear(comm, kind, memory, factor):
    """Once near the minimum the gradient falls by more than 10 per step on average, without exact searches.

    By more than 5 where the first trial is learnt: it takes a few steps to come back to the full one.
    """
    m = "-snes_qn_m 30" if kind == "lbfgs" else ""
    options = f"-snes_qn_type {kind} {m} -snes_linesearch_memory {memory} -snes_rtol 1e-10 -snes_max_it 200"
    solver = tree(f"-snes_type qn {options}", rosenbrock(world(comm)))
    norms = []

    def note(s, point, norm, update):
        norms.append(norm)
        return s.reason

    solver.observe = note
    solver.solve(torch.full((6,), 0.8, dtype=torch.float64))
    assert len(norms) < 60
    assert (norms[-1] / norms[-5]) ** 0.25 < factor


@pytest.mark.parametrize(
    ("options", "scaled"),
    [
        ("-snes_linesearch_type wolfe", True),
        ("-snes_linesearch_type bt", True),
        ("-snes_qn_type bfgs -snes_linesearch_type bt", True),
        ("-snes_qn_scale_type none -snes_linesearch_type bt", False),
        ("-snes_linesearch_type cp", False),
        ("-snes_linesearch_type secant", False),
        ("-snes_qn_type bfgs -snes_linesearch_type ncglinear", False),
    ],
)
def test_the_first_direction_is_cut_where_the_search_does_not_measure_it(comm, options, scaled):
    solver = tree(f"-snes_type qn {options}", quadratic(world(comm)))
    x = torch.linspace(-1, 1.5, 8, dtype=torch.float64)
    point = solver.point(x, *solver.gradient(x))
    length = float(point.g.abs().sum())
    assert length > 2.0
    assert isinstance(solver.method, QuasiNewton)
    torch.testing.assert_close(solver.method.direction(solver, point), point.g / (length if scaled else 1.0))


@pytest.mark.parametrize("kind", ["lbfgs", "bfgs", "ssbfgs", "ssbroyden"])
def test_exact_searches_on_a_quadratic_end_after_n_steps(comm, kind):
    """Every update of the Broyden family generates conjugate directions; the secant search is exact here."""
    search = "-snes_linesearch_type cp -snes_linesearch_max_it 3 -snes_linesearch_maxlambda 1e9"
    solver = tree(f"-snes_type qn -snes_qn_type {kind} {search} -snes_rtol 1e-9", quadratic(world(comm)))
    solver.solve(torch.linspace(-1, 1.5, 8, dtype=torch.float64))
    assert solver.iteration <= 9  # one more for the change of the start matrix after the first pair


def test_products_are_right_where_steps_are_short_against_the_iterate():
    """s = x+ - x carries the rounding of x: H g must not be rebuilt from it."""
    inverse = dense("ssbroyden")
    a, x = matrix(N), torch.full((N,), 1e6, dtype=torch.float64)
    minimum = x + 1e-3 * torch.linspace(1, 2, N, dtype=torch.float64)
    for _ in range(8):
        g = a @ (x - minimum)
        step = 0.5
        new = x - step * inverse.apply(g)
        s, y = new - x, a @ (new - minimum) - g
        inverse.update(s, y, g, g + y, step)
        assert (inverse.apply(y) - s).norm() < 1e-7 * s.norm()
        x = new


def test_a_pair_that_costs_definiteness_starts_anew():
    inverse = dense("bfgs")
    for s, y, g, g_new in pairs(3):
        inverse.update(s, y, g, g_new, None)
    inverse._matrix.set_identity(0, -1.0)
    s, y, g, g_new = next(pairs(1))
    inverse.update(s, y, g, g_new, None)
    assert inverse.pairs == 0
    assert torch.equal(inverse.apply(g), g)


# ---- dense: one pass, blocks, ranks, restarts ------------------------------------------------------------------------


def descent(inverse, a, steps: int, x=None):
    """Minimise x'Ax/2 by steps x - 0.6 H g, yielding the arguments of each update."""
    n = inverse.space.n
    x = torch.linspace(1, 2, n, dtype=inverse.space.dtype) if x is None else x
    g = a @ x
    y = inverse.apply(g)
    for _ in range(steps):
        step = 0.6 if inverse.pairs else 1e-3
        new = x - step * y
        g_new = a @ new
        yield new - x, g_new - g, g, g_new, step if inverse.pairs else None
        x, g = new, g_new
        y = inverse.apply(g)


@pytest.mark.parametrize("kind", ["bfgs", "ssbfgs", "ssbroyden"])
def test_a_step_makes_one_pass_over_the_matrix(kind, monkeypatch):
    inverse = dense(kind)
    passes = []
    product = inverse._matrix.product

    def counted(g):
        passes.append(1)
        return product(g)

    monkeypatch.setattr(inverse._matrix, "product", counted)
    for arguments in descent(inverse, matrix(N), 8):
        inverse.update(*arguments)
    assert len(passes) == 7  # none for the first pair: there H is a number times I


@pytest.mark.parametrize("kind", ["bfgs", "ssbroyden"])
def test_blocks_of_a_separable_problem_learn_by_themselves(kind):
    """As one inverse for each block does that sees nothing of the others."""
    blocks = [slice(0, 4), slice(4, N)]
    a = torch.block_diag(matrix(4), 10 * matrix(N - 4))
    together = dense(kind, blocks)
    apart = [dense(kind, n=b.stop - b.start) for b in blocks]
    for s, y, g, g_new, step in descent(together, a, 12):
        for single, b in zip(apart, blocks, strict=True):
            single.update(s[b], y[b], g[b], g_new[b], step)
        together.update(s, y, g, g_new, step)
    h = entries(together)
    for single, b in zip(apart, blocks, strict=True):
        torch.testing.assert_close(h[b, b], entries(single), rtol=1e-8, atol=1e-8)
    assert (h[blocks[0], blocks[1]] == 0).all()


def test_a_block_leaves_out_a_pair_without_curvature_and_starts_from_its_first_good_one():
    blocks = [slice(0, 4), slice(4, N)]
    inverse = dense("bfgs", blocks, curvature=1e-12)
    s = torch.ones(N, dtype=torch.float64)
    y = torch.cat([3.0 * s[:4], -0.25 * s[4:]])
    g = torch.linspace(1, 2, N, dtype=torch.float64)
    inverse.update(s, y, g, g + y, None)
    whole = float(s @ y / (y @ y))
    torch.testing.assert_close(entries(inverse)[4:, 4:], whole * torch.eye(5, dtype=torch.float64), rtol=1e-12, atol=0)
    before = entries(inverse)[:4, :4]
    y = torch.cat([-s[:4], 5 * s[4:]])
    inverse.update(s, y, g, g + y, None)
    after = entries(inverse)
    assert torch.equal(after[:4, :4], before)
    # The pair is along (1, ..., 1): B = 5 I from its own scale, not the scale of the first block's.
    torch.testing.assert_close(after[4:, 4:], 0.2 * torch.eye(5, dtype=torch.float64), rtol=1e-12, atol=1e-15)
    assert inverse.pairs == 2


def test_a_block_that_loses_definiteness_starts_anew_and_the_others_stay():
    blocks = [slice(0, 4), slice(4, N)]
    inverse = dense("ssbroyden", blocks)
    for arguments in descent(inverse, matrix(N), 4):
        inverse.update(*arguments)
    inverse.apply(torch.ones(N, dtype=torch.float64))  # nothing is pending
    inverse._matrix.set_identity(1, -1.0)
    s = torch.linspace(1, 2, N, dtype=torch.float64)
    y = 4 * s
    inverse.update(s, y, s - y, s, None)
    assert inverse.pairs > 0
    h = entries(inverse)
    torch.testing.assert_close(h[4:, 4:], 0.25 * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(h[:4, :4] @ y[:4], s[:4], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["bfgs", "ssbfgs", "ssbroyden"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("library", [kernels.load(), None], ids=["compiled", "torch"])
def test_the_matrix_stays_definite_in_floating_point(kind, dtype, library):
    """To the end of a badly scaled descent, where steps are round-off."""
    inverse = dense(kind, n=40, dtype=dtype, library=library)
    a = torch.diag(torch.logspace(-3, 3, 40, dtype=torch.float64)).to(dtype)
    for s, y, g, g_new, step in descent(inverse, a, 150):
        if float(s @ y) > 1e-12 * float(s.norm() * y.norm()):
            inverse.update(s, y, g, g_new, step)
            assert float(g_new @ inverse.apply(g_new)) >= 0
        if float(g_new.norm()) < 1e4 * torch.finfo(dtype).tiny:
            break
    if inverse.pairs:
        h = entries(inverse).double()
        assert torch.linalg.eigvalsh((h + h.T) / 2).min() > -10 * torch.finfo(dtype).eps * h.norm()


@pytest.mark.parametrize("kind", ["lbfgs", "ssbroyden"])
def test_a_changed_objective_keeps_the_matrix_and_forgets_products(kind):
    inverse = CompactLBFGS(space(), 5, scaled=True, library=kernels.load()) if kind == "lbfgs" else dense(kind)
    for arguments in descent(inverse, matrix(N), 6):
        inverse.update(*arguments)
    g = arguments[3]
    before = inverse.apply(g.clone())
    inverse.apply(g)
    inverse.retarget()
    g *= 2.0  # the same tensor, other numbers: a product kept for it would be wrong
    torch.testing.assert_close(inverse.apply(g), 2 * before, rtol=1e-10, atol=1e-10)


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("library", [kernels.load(), None], ids=["compiled", "torch"])
@pytest.mark.parametrize("blocks", [[slice(0, 400)], [slice(0, 250), slice(250, 260), slice(260, 400)]])
def test_iterates_have_the_same_bits_on_any_ranks_sharded_or_not_and_after_a_restart(comm, blocks, library):
    n = 400
    c = world(comm)
    a = torch.logspace(0, 2, n, dtype=torch.float64)

    def make(on, vectors):
        return DenseInverse(vectors, on, "ssbroyden", blocks, 1e-12, library)

    def go(inverse, x, g, steps):
        """From x with the residual g, parts of vectors all of them; return where it ends."""
        scale = inverse.space.local(a)
        for _ in range(steps):
            step = 0.6 if inverse.pairs else 1e-3
            new = x - step * inverse.apply(g)
            g_new = scale * new
            inverse.update(new - x, g_new - g, g, g_new, step if inverse.pairs else None)
            x, g = new, g_new
        return x, g

    whole, cut = Replicated(n, torch.float64), Sharded(c, n, torch.float64)
    x = torch.linspace(1, 2, n, dtype=torch.float64)
    straight = make(c.alone(), whole)
    half = go(straight, x, a * x, 5)
    ends = [half, go(straight, half[0], half[1], 5)]
    for vectors in (whole, cut):
        first = make(c, vectors)
        x_local, g_local = go(first, vectors.local(x).clone(), vectors.local(a * x).clone(), 5)
        assert torch.equal(vectors.gather(x_local), ends[0][0])
        state = first.state()
        state = from_image(comm.bcast(to_image(state, "state") if c.rank == 0 else None), "state")
        for on, others in ((c, whole), (c, cut), (c.alone(), whole)):
            second = make(on, others)
            second.load(state)
            x_half, g_half = (others.local(vectors.gather(v)).clone() for v in (x_local, g_local))
            second.recognise(g_half)
            end, _ = go(second, x_half, g_half, 5)
            assert torch.equal(others.gather(end), ends[1][0])


def test_a_state_of_other_blocks_is_refused():
    inverse = dense("bfgs")
    with pytest.raises(UserError, match="blocks"):
        dense("bfgs", [slice(0, 4), slice(4, N)]).load(inverse.state())


# ---- limited memory --------------------------------------------------------------------------------------------------


def test_the_limited_memory_makes_two_passes_a_step(monkeypatch):
    inverse = CompactLBFGS(space(), 5, scaled=True, library=kernels.load())
    passes = {"products": 0, "combination": 0}
    for name in passes:
        monkeypatch.setattr(inverse._rows, name, counted(passes, name, getattr(inverse._rows, name)))
    for arguments in descent(inverse, matrix(N), 8):
        inverse.update(*arguments)
    assert passes == {"products": 8, "combination": 8}
    stored = list(pairs(12))
    inverse.reset()
    for s, y, g, g_new in stored:
        inverse.update(s, y, g, g_new, None)
        assert torch.equal(inverse.apply(g_new), inverse.apply(g_new.clone()))


def counted(passes, name, function):
    def call(*arguments):
        passes[name] += 1
        return function(*arguments)

    return call


@pytest.mark.parametrize("library", [kernels.load(), None], ids=["compiled", "torch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_room_for_all_pairs_the_limited_memory_is_bfgs(dtype, library):
    inverse = CompactLBFGS(Replicated(N, dtype), 8, scaled=False, library=library)
    h, bound = torch.eye(N, dtype=torch.float64), 1e4 * torch.finfo(dtype).eps
    for s, y, g, g_new in pairs(8):
        inverse.update(s.to(dtype), y.to(dtype), g.to(dtype), g_new.to(dtype), None)
        h = gold(h, s, y, 1.0, "bfgs")
        found = entries(inverse)
        assert found.dtype == dtype
        assert (found.double() - h).norm() <= bound * h.norm()


@pytest.mark.parametrize("library", [kernels.load(), None], ids=["compiled", "torch"])
def test_errors_in_the_triangle_cost_neither_symmetry_nor_definiteness(library):
    inverse = CompactLBFGS(space(), 4, scaled=True, library=library)
    for s, y, g, g_new in pairs(6):
        inverse.update(s, y, g, g_new, None)
    before = entries(inverse)
    inverse._middle.inverse *= torch.linspace(0.5, 2.0, 16, dtype=torch.float64).view(4, 4)
    h = entries(inverse)
    assert (h - before).norm() > 0.1 * before.norm()
    torch.testing.assert_close(h, h.T, rtol=0, atol=1e-13 * float(h.norm()))
    assert torch.linalg.eigvalsh(h).min() > 0


def quadratic_end(inverse, a, x, steps):
    """Where steps x - 0.6 H g on x'diag(a)x/2 end; x is this rank's part."""
    scale = inverse.space.local(a)
    for _ in range(steps):
        new = x - (0.6 if inverse.pairs else 1e-3) * inverse.apply(scale * x)
        inverse.update(new - x, scale * (new - x), scale * x, scale * new, None)
        x = new
    return x


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("library", [kernels.load(), None], ids=["compiled", "torch"])
def test_shards_of_the_limited_memory_go_where_the_whole_goes_and_on_after_a_restart(comm, library):
    n, c = 400, world(comm)
    a, x = torch.logspace(0, 2, n, dtype=torch.float64), torch.linspace(1, 2, n, dtype=torch.float64)
    whole, cut = Replicated(n, torch.float64), Sharded(c, n, torch.float64)
    ends = {}
    for vectors in (whole, cut):
        first = CompactLBFGS(vectors, 7, scaled=True, library=library)
        half = quadratic_end(first, a, vectors.local(x), 11)
        state = first.state()
        state = from_image(comm.bcast(to_image(state, "state") if c.rank == 0 else None), "state")
        end = quadratic_end(first, a, half, 11)
        second = CompactLBFGS(vectors, 7, scaled=True, library=library)
        second.load(state)
        assert torch.equal(quadratic_end(second, a, half, 11), end)
        ends[vectors] = vectors.gather(end)
    torch.testing.assert_close(ends[cut], ends[whole], rtol=1e-10, atol=1e-10)


# ---- the type --------------------------------------------------------------------------------------------------------


def test_blocks_are_named_where_trees_are_compared(comm):
    layers = tree("-snes_type qn -snes_qn_type ssbroyden -snes_qn_blocks layers", rosenbrock(world(comm)))
    assert layers.brief() == "qn(ssbroyden, layers)"
    assert "dense inverse in 3 diagonal blocks, by layers: 9 numbers over all ranks" in layers.view()
    whole = tree("-snes_type qn -snes_qn_type ssbroyden", rosenbrock(world(comm)))
    assert whole.brief() == "qn(ssbroyden)"
    with pytest.raises(OptionsError, match="lbfgs keeps no matrix"):
        tree("-snes_type qn -snes_qn_blocks layers", rosenbrock(world(comm)))


@pytest.mark.parametrize("kind", ["lbfgs", "ssbroyden"])
def test_a_type_bound_to_another_problem_goes_on_with_what_it_knows(comm, kind):
    """From the minimum of L to that of 1.1 L + <slope, x> in fewer iterations than from nothing."""
    options = f"-snes_type qn -snes_qn_type {kind} -snes_qn_m 30 -snes_rtol 1e-9 -snes_stol 0"
    x = torch.full((6,), 0.8, dtype=torch.float64)
    solver = tree(options, rosenbrock(world(comm)))
    end = solver.solve(x).x
    shifted = rosenbrock(world(comm)).shift(torch.full((6,), 1e-2, dtype=torch.float64))
    solver.problem = shifted
    method = solver.method
    assert isinstance(method, QuasiNewton)
    method.rebind(solver)
    solver.solve(end)
    learnt = solver.iteration
    fresh = tree(options, shifted)
    fresh.solve(end)
    assert learnt < 0.7 * fresh.iteration


@pytest.mark.parametrize(("memory", "finer", "count"), [(5, 5, 3), (5, 5, 8), (5, 3, 8), (3, 5, 8)])
def test_lifted_pairs_give_the_recursion_with_interpolated_pairs(memory, finer, count):
    """s_f = I s, y_f = I (I' I)^-1 y for interpolation by constants, of which the newest are kept."""

    def prolong(e: torch.Tensor) -> torch.Tensor:
        return e.repeat_interleave(2)

    coarse = CompactLBFGS(space(), memory, scaled=True, library=kernels.load())
    fine = CompactLBFGS(Replicated(2 * N, torch.float64), finer, scaled=True, library=kernels.load())
    seen = []
    for s, y, g, g_new in pairs(count):
        coarse.update(s, y, g, g_new, None)
        seen.append((prolong(s), prolong(y) / 2))
    fine.lift(coarse, prolong, torch.full((N,), 2.0, dtype=torch.float64))
    kept = seen[-min(memory, finer, count) :]
    s, y = kept[-1]
    g = torch.linspace(-1, 2, 2 * N, dtype=torch.float64)
    torch.testing.assert_close(fine.apply(g), two_loop(kept, s @ y / (y @ y), g), rtol=1e-10, atol=1e-12)
    # It learns on: the next pair takes the place of the oldest, as if all had been learnt here.
    s, y = prolong(torch.ones(N, dtype=torch.float64)), torch.linspace(1, 2, 2 * N, dtype=torch.float64)
    fine.update(s, y, g - y, g, None)
    kept = [*kept, (s, y)][-finer:]
    torch.testing.assert_close(fine.apply(g), two_loop(kept, s @ y / (y @ y), g), rtol=1e-10, atol=1e-12)


class Constants(Transfer):
    """Interpolation by constants, each of them twice, but for the first unknown."""

    def prolong(self, e: torch.Tensor) -> torch.Tensor:
        return torch.cat([e[:1], e[1:].repeat_interleave(2)])

    def restrict(self, g: torch.Tensor) -> torch.Tensor:
        return torch.cat([g[:1], g[1:].view(-1, 2).sum(1)])

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:1], x[1::2]])


@pytest.mark.parametrize("library", [kernels.load(), None], ids=["compiled", "torch"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 8])
def test_a_coarser_inverse_is_where_limited_memory_starts(count, library):
    """H_0 = I H_c I' + gamma (1 - I M^-1 I'), gamma from what the newest pair has outside of the range of I."""
    coarse, n, memory = dense("ssbroyden"), 2 * N - 1, 4
    for s, y, g, g_new in pairs(6):
        coarse.update(s, y, g, g_new, None)
        assert coarse.scale == pytest.approx(float(s @ y / (y @ y)), rel=1e-9)
    read = dense("ssbroyden")
    read.load(coarse.state())
    assert read.scale == coarse.scale
    masses = torch.tensor([1.0] + [2.0] * (N - 1), dtype=torch.float64)
    fine = CompactLBFGS(Replicated(n, torch.float64), memory, scaled=True, library=library)
    fine.start = CoarseStart(fine.space, coarse, Constants(), masses, 0.3)
    assert (fine.blank, fine.pairs, fine.scale) == (False, 0, 0.3)
    interpolation = torch.stack([Constants().prolong(e) for e in torch.eye(N, dtype=torch.float64)], 1)
    rest = torch.eye(n, dtype=torch.float64) - interpolation @ torch.diag(1 / masses) @ interpolation.T
    stored, gamma, generator = [], 0.3, torch.Generator().manual_seed(5)
    a, x = matrix(n), torch.ones(n, dtype=torch.float64)
    for k in range(count):
        s = torch.randn(n, generator=generator, dtype=torch.float64)
        s = interpolation @ Constants().project(s) if k == 1 else s  # nothing outside: gamma stays
        fine.update(s, a @ s, a @ x, a @ (x + s), None)
        stored.append((s, a @ s))
        x = x + s
        if k != 1:
            s, y = rest @ s, rest @ (a @ s)
            gamma = float(s @ y / (y @ y)) if s @ y > 0 else gamma
    if count:
        assert fine.scale == pytest.approx(float(stored[-1][0] @ stored[-1][1] / (stored[-1][1] @ stored[-1][1])))
        assert gamma != 0.3
    h = interpolation @ entries(coarse) @ interpolation.T + gamma * rest
    for g in (a @ x, torch.linspace(-1, 2, n, dtype=torch.float64)):
        torch.testing.assert_close(fine.apply(g), two_loop(stored[-memory:], h, g), rtol=1e-10, atol=1e-11)
    whole = entries(fine)
    assert float((whole - whole.T).abs().max()) < 1e-12 * float(whole.abs().max())
    assert float(torch.linalg.eigvalsh(whole).min()) > 0
    # What has been forgotten there leaves the scale; what is forgotten here leaves nothing.
    coarse.reset()
    torch.testing.assert_close(fine.apply(g), two_loop(stored[-memory:], gamma, g), rtol=1e-10, atol=1e-11)
    fine.reset()
    assert fine.blank and torch.equal(fine.apply(g), g)
