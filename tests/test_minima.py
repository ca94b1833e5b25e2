"""Minima and their barriers: toys whose answer is known, (5.3), saddles, refusals, the phases."""
import math
import sys

import numpy as np
import pytest
import torch
from helpers import refused
from numpy.testing import assert_allclose
from scipy.fft import irfft, next_fast_len
from scipy.optimize import brentq
from scipy.special import i0e, ive

from amtutorial.data import circle_patterns, plane_grid
from amtutorial.hopfield import hopfield_energy
from amtutorial.minima import MIN_BARRIER, find_minima, grid_minima
from amtutorial.retrieval import hopfield_update
from amtutorial.sde import effective_number, marginal_logp, marginal_score, posterior_weights

ROW = np.array([-1., 0, 0, -2, 0, 0, -2.5]) # three wells on a plain; the first and last touch
TWO_ROWS = np.stack([ROW, ROW + 1])


def exact_minima(patterns, t, min_barrier=MIN_BARRIER, resolution=241, sigma=1.):
    "Minima of the exact energy on a square grid, moved by an exact mean-shift step."
    X, Y, points = plane_grid(resolution)
    energy = -marginal_logp(points.double(), t, patterns, sigma).reshape(X.shape)
    step = lambda x: x + sigma**2 * t * marginal_score(x, t, patterns, sigma)
    found = find_minima(energy, torch.stack([X, Y], -1).double(), step, min_barrier)
    return found, effective_number(posterior_weights(found.x, t, patterns, sigma))


# barriers on a grid

def test_three_wells_on_a_plain():
    where, barrier = grid_minima(TWO_ROWS)
    assert where.tolist() == [[0, 6], [0, 3], [0, 0]] and barrier.tolist() == [np.inf, 2, 1]


def test_three_wells_around_the_seam():
    where, barrier = grid_minima(TWO_ROWS, wrap=True) # -1 drains into -2.5 around the seam
    assert where.tolist() == [[0, 6], [0, 3]] and barrier.tolist() == [np.inf, 2]


def test_only_the_second_axis_wraps():
    where, barrier = grid_minima(TWO_ROWS.T, wrap=True)
    assert where.tolist() == [[6, 0], [3, 0], [0, 0]] and barrier.tolist() == [np.inf, 2, 1]


@pytest.mark.parametrize("wrap", [False, True])
def test_flat_energy_has_one_minimum(wrap):
    where, barrier = grid_minima(np.zeros((5, 7)), wrap)
    assert len(where) == 1 and barrier.tolist() == [np.inf]


def test_one_point_and_one_row():
    assert grid_minima(np.array([[3.]]))[1].tolist() == [np.inf]
    where, barrier = grid_minima(ROW[None])
    assert where.tolist() == [[0, 6], [0, 3], [0, 0]] and barrier.tolist() == [np.inf, 2, 1]


def test_neighbours_touch_at_corners():
    diagonal = np.array([[-1., 9., 9.], [9., 0., 9.], [9., 9., -2.]]) # the pass is the corner
    where, barrier = grid_minima(diagonal)
    assert where.tolist() == [[2, 2], [0, 0]] and barrier.tolist() == [np.inf, 1]
    where, barrier = grid_minima(diagonal[:, ::-1])
    assert where.tolist() == [[2, 0], [0, 2]] and barrier.tolist() == [np.inf, 1]


@pytest.mark.parametrize("wrap", [False, True])
def test_a_corner_across_the_seam(wrap):
    energy = np.full((2, 5), 9.)
    energy[0, 0], energy[1, 4] = -1, -2 # neighbours by a corner, once the axis is closed
    assert len(grid_minima(energy, wrap)[0]) == (1 if wrap else 2)


def test_staircase_of_a_thousand_pits():
    "Each pit spills into the next one: a chain of 1,001 lakes, and no recursion."
    n = 1001
    row = np.empty(2 * n - 1)
    row[::2] = -np.arange(n) # pits, ever deeper
    row[1::2] = -np.arange(n - 1) + 0.5 # passes, half a unit above the shallower pit
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(400)
    try:
        where, barrier = grid_minima(np.stack([row, row + 0.1]))
    finally:
        sys.setrecursionlimit(limit)
    assert len(where) == n and where[0].tolist() == [0, 2 * n - 2]
    assert barrier[0] == np.inf and np.allclose(barrier[1:], 0.5, rtol=0, atol=1e-12)


def test_barrier_is_to_a_deeper_minimum_not_to_the_next():
    row = np.array([-1., 0.5, -0.5, 3., -4.]) # -0.5 leaves at once, -1 must climb the high pass
    where, barrier = grid_minima(np.stack([row, row + 1]))
    assert where[:, 1].tolist() == [4, 0, 2] and barrier.tolist() == [np.inf, 4, 1]


def test_against_a_plain_flood():
    "Random landscapes: the same barriers as flooding level by level, and any input is left alone."
    rng = np.random.default_rng(3)
    for wrap in False, True:
        e = rng.normal(size=(7, 9))
        given = e.copy()
        where, barrier = grid_minima(e, wrap)
        assert (e == given).all()
        assert (np.diff(e[tuple(where.T)]) > 0).all() # deepest first
        for (i, j), b in zip(where[1:], barrier[1:]):
            assert_allclose(b, plain_barrier(e, i, j, wrap), rtol=0, atol=1e-12)


def plain_barrier(e, i, j, wrap):
    "The lowest level at which what is connected to (i, j) holds a deeper point, minus e[i, j]."
    for level in np.sort(e[e >= e[i, j]]):
        seen, todo = {(i, j)}, [(i, j)]
        while todo:
            a, b = todo.pop()
            near = [(a + s, b + u) for s in (-1, 0, 1) for u in (-1, 0, 1)]
            near = [(p, q % e.shape[1]) if wrap else (p, q) for p, q in near]
            inside = [q for q in near if 0 <= q[0] < e.shape[0] and 0 <= q[1] < e.shape[1]]
            new = {q for q in inside if q not in seen and e[q] <= level}
            seen |= new
            todo += new
        if min(e[q] for q in seen) < e[i, j]:
            return level - e[i, j]
    return np.inf


def test_double_well():
    "(x² - 1)² + y² + 0.1 x; heights are right to curvature times spacing squared, 0.002."
    axis = np.linspace(-1.5, 1.5, 151)
    X, Y = np.meshgrid(axis, axis, indexing="ij")
    well = lambda x, y=0.: (x**2 - 1)**2 + y**2 + 0.1 * x
    left, top, right = np.sort(np.roots([4, 0, -4, 0.1]).real) # dE/dx = 4x³ - 4x + 0.1
    found = find_minima(well(X, Y), np.stack([X, Y], -1))
    assert_allclose(found.x[:, 0], [left, right], rtol=0, atol=0.01)
    assert_allclose(found.x[:, 1], 0, atol=1e-12)
    assert found.barrier[0] == math.inf
    assert_allclose(found.barrier[1], well(top) - well(right), rtol=0, atol=0.004)
    assert found.curvature is None and found.converged is None


@pytest.mark.parametrize("t, sigma", [(0.3, 1.), (0.075, 2.), (0.15, 1.)])
def test_barrier_of_two_memories(t, sigma):
    "U(0) - U(y) with y = a tanh(ay/σ²t), equation (5.3)."
    pair, v = circle_patterns(2).double(), sigma**2 * t
    axis, middle = pair[0] - pair[1], pair.mean(0)
    a = axis.norm().item() / 2
    y = brentq(lambda y: y - a * math.tanh(a * y / v), 0.1, a)
    at = torch.stack([middle, middle + y / (2 * a) * axis])
    logp = marginal_logp(at, t, pair, sigma)
    exact = (logp[1] - logp[0]).item()
    X, Y, points = plane_grid(201)
    energy = -marginal_logp(points.double(), t, pair, sigma).reshape(X.shape)
    _, barrier = grid_minima(energy)
    # half the squared spacing times a curvature below 1/(σ²t), at both ends
    assert len(barrier) == 2 and abs(barrier[1] - exact) < (3 / 200)**2 / v
    found, _ = exact_minima(pair, t, sigma=sigma)
    assert_allclose((found.x - middle).norm(dim=1), y, rtol=0, atol=1e-5)


# the finder

def test_step_none_stays_on_the_grid():
    X, Y, points = plane_grid(61)
    nine = circle_patterns(9).double()
    energy = -marginal_logp(points.double(), 0.15, nine).reshape(X.shape)
    grid = torch.stack([X, Y], -1).double()
    free = find_minima(energy, grid)
    assert free.curvature is None and free.converged is None
    assert all((grid.reshape(-1, 2) == x).all(1).any() for x in free.x)
    moved = find_minima(energy, grid, lambda x: hopfield_update(x, nine, 1 / 0.15))
    assert_allclose(free.barrier, moved.barrier)
    assert ((free.x - moved.x).norm(dim=1) < 0.05).all() and not (free.x == moved.x).all()


def test_a_saddle_is_pushed_off():
    pair, t = torch.tensor([[-1., 0.], [1., 0.]], dtype=torch.float64), 0.3
    grid = torch.stack(torch.meshgrid(3 * torch.arange(-1., 2), torch.arange(-1., 2),
                                      indexing="ij"), -1).double()
    energy = -marginal_logp(grid, t, pair) # the grid's lowest point is the saddle at the origin
    step = lambda x: hopfield_update(x, pair, 1 / t)
    assert (find_minima(energy, grid).x == 0).all()
    found = find_minima(energy, grid, step)
    y = brentq(lambda y: y - math.tanh(y / t), 0.1, 1)
    assert_allclose(found.x.abs(), [[y, 0.]], rtol=0, atol=1e-5)
    assert found.curvature.item() > 0 and found.converged.item()


def test_curvature_is_the_hessian():
    nine, t = circle_patterns(9).double(), 0.15
    found, _ = exact_minima(nine, t)
    for x, curvature in zip(found.x, found.curvature):
        U = lambda x: t * hopfield_energy(x[None], nine, 1 / t)[0] / t
        hessian = torch.autograd.functional.hessian(U, x)
        assert_allclose(torch.linalg.eigvalsh(hessian)[0], curvature, rtol=0, atol=1e-5)


def test_min_barrier_off_its_default():
    nine = circle_patterns(9).double()
    assert MIN_BARRIER == 0.3
    count = lambda t, b: len(exact_minima(nine, t, b, 201)[1])
    assert [count(0.15, b) for b in (0.1, 0.3, 0.5, 1.)] == [3, 3, 3, 1]
    assert [count(0.05, b) for b in (0.1, 0.3, 0.5, 1.)] == [5, 4, 3, 3]
    assert [count(0.01, b) for b in (1e-3, 0.1, 0.3, 0.5, 1.)] == [7, 7, 5, 5, 5]
    thousand = exact_minima(circle_patterns(1000).double(), 0.15, 1e-3, 201)[0].barrier
    assert [(thousand >= b).sum().item() for b in (1e-3, 0.1, 0.3, 0.5, 1.)] == [4, 1, 1, 1, 1]
    kept = exact_minima(nine, 0.05, 0.1, 201)[0].barrier
    assert (kept >= 0.1).all() and ((kept < 0.3).sum() == 1)


def test_wrap_off_its_default():
    points = np.stack(np.meshgrid([0., 1.], np.arange(7.), indexing="ij"), -1)
    open_, closed = find_minima(TWO_ROWS, points), find_minima(TWO_ROWS, points, wrap=True)
    assert open_.x.tolist() == [[0, 6], [0, 3], [0, 0]] and closed.x.tolist() == [[0, 6], [0, 3]]
    assert find_minima(TWO_ROWS, points, min_barrier=1.5).x.tolist() == [[0, 6], [0, 3]]


def test_tol_and_max_steps():
    nine = circle_patterns(9).double()
    X, Y, points = plane_grid(61)
    energy = -marginal_logp(points.double(), 0.15, nine).reshape(X.shape)
    grid, step = torch.stack([X, Y], -1).double(), lambda x: hopfield_update(x, nine, 1 / 0.15)
    short = find_minima(energy, grid, step, max_steps=1)
    assert not short.converged.all() and find_minima(energy, grid, step).converged.all()
    far, near = (find_minima(energy, grid, step, tol=tol).x for tol in (1e-2, 1e-10))
    best = find_minima(energy, grid, step, tol=1e-13).x
    assert (far - best).norm() > 1e-4 > 1e-8 > (near - best).norm()


def test_kinds_of_input():
    pair = circle_patterns(2).double()
    X, Y, points = plane_grid(41)
    energy = -marginal_logp(points.double(), 0.15, pair).reshape(X.shape)
    grid = torch.stack([X, Y], -1)
    a = find_minima(energy, grid.double())
    b = find_minima(energy.numpy(), grid.double().numpy())
    c = find_minima(energy.tolist(), grid.tolist())
    assert (a.x == b.x).all() and (a.barrier == b.barrier).all() and a.x.dtype == torch.float64
    assert_allclose(a.x, c.x, rtol=0, atol=1e-6)
    single = find_minima(energy, grid, lambda x: hopfield_update(x, pair, 1 / 0.15))
    assert single.x.dtype == single.barrier.dtype == torch.float32


def test_refusals():
    for bad, shape in ([1., 2.], "(2,)"), ([[]], "(1, 0)"), ([[math.nan, 0.]], "(1, 2)"):
        assert refused(grid_minima, bad) == (
            f"ValueError: energy must be a finite (n, m) array, not of shape {shape}")
    points = np.zeros((2, 7, 2))
    wanted = "ValueError: points must have shape (2, 7, 2), not (7, 2, 2)"
    assert refused(find_minima, TWO_ROWS, points.transpose(1, 0, 2)) == wanted
    assert refused(find_minima, TWO_ROWS, np.zeros((2, 7, 3))).startswith("ValueError: points")
    assert refused(find_minima, TWO_ROWS, points, None, 0.) == (
        "ValueError: min_barrier must be finite and above 0, not 0")
    assert refused(find_minima, TWO_ROWS, points, None, "low").startswith("TypeError: min_barrier")
    assert refused(find_minima, TWO_ROWS, points * math.nan).startswith("ValueError: points")
    step = lambda x: x
    assert refused(find_minima, TWO_ROWS, points, step, tol=0.).startswith("ValueError: tol")
    assert refused(find_minima, TWO_ROWS, points, step, max_steps=0.5).startswith("TypeError")


# the minima that the book talks about

def test_training_sets_of_the_page():
    found, n_eff = exact_minima(circle_patterns(2).double(), 0.15)
    assert len(n_eff) == 2 and n_eff.max() < 1.01
    nine = circle_patterns(9).double()
    found, n_eff = exact_minima(nine, 0.15, resolution=301)
    distance = torch.cdist(found.x, nine).amin(1)
    assert found.converged.all() and (found.curvature > 0).all()
    assert [round(n, 1) for n in n_eff.tolist()] == [4.1, 2., 1.]
    assert [round(r, 2) for r in distance.tolist()] == [0.08, 0.13, 0.01]
    assert [round(b, 2) for b in found.barrier.tolist()] == [math.inf, 0.56, 0.51]
    thousand = circle_patterns(1000).double()
    found, n_eff = exact_minima(thousand, 0.15, 1e-3, 181)
    assert found.converged.all() and (found.curvature > 0).all()
    assert (found.barrier[1:] < 0.1).all() and len(n_eff) == 4 and n_eff.min() > 200
    assert torch.cdist(found.x, thousand).amin(1).max() < 0.1


def test_nine_memories_without_noise():
    nine = circle_patterns(9).double()
    found, n_eff = exact_minima(nine, 1e-3, resolution=301)
    distance = torch.cdist(found.x, nine).amin(1)
    assert found.converged.all() and (found.curvature > 0).all()
    assert len(n_eff) == 8 and ((n_eff < 1.5) | (distance < 1e-3)).all()


def polar(angles, t):
    "The density (7.3) on a polar grid: energy in nats cut at 30, points, and the energy at R = 0."
    s = math.sqrt(t)
    R = np.arange(max(0, 1 - 5 * s), 1 + 3.1 * s, s / 2)[:, None]
    size = next_fast_len(int(17 / s) + 16, real=True)
    m, turn = np.arange(size // 2 + 1), np.arange(size) * 2 * np.pi / size
    c = np.exp(-1j * np.outer(m, angles)).mean(1)
    density = irfft(ive(m, R / t) * np.exp(-(R - 1)**2 / (2 * t)) * c, size) * size
    points = np.stack([R * np.cos(turn), R * np.sin(turn)], -1)
    energy = -np.log(np.maximum(density / density.max(), math.exp(-30)))
    return energy, torch.from_numpy(points), 1 / (2 * t) + math.log(density.max())


def test_fourier_series_of_the_density():
    nine = circle_patterns(9).double()
    nine = nine / nine.norm(dim=1, keepdim=True)
    energy, points, centre = polar(torch.atan2(nine[:, 1], nine[:, 0]).numpy(), 0.15)
    exact = -marginal_logp(points, 0.15, nine).numpy()
    low = exact - exact.min() < 29
    # some roundings of the highest density, at a density e^{-U}: 1e-10 of a nat at 10 nats
    off = np.abs(energy - (exact - exact.min()))[low]
    assert (off < 1e-14 * np.exp(exact - exact.min())[low]).all()
    at_zero = -marginal_logp(torch.zeros(1, 2).double(), 0.15, nine).item() - exact.min()
    assert abs(centre - at_zero) < 1e-12
    found = find_minima(energy, points, lambda x: hopfield_update(x, nine, 1 / 0.15), wrap=True)
    n_eff = effective_number(posterior_weights(found.x, 0.15, nine))
    assert [round(n, 1) for n in n_eff.tolist()] == [4.1, 2., 1.]


def test_one_valley_holds_the_share_of_the_full_circle():
    "N_eff / K in the valley of many memories: (6.11), or more, as it lies where they are dense."
    rng = np.random.default_rng(8)
    for K in 256, 1024:
        for t in 0.15, 0.4, 0.8:
            full, shares = i0e(1 / t)**2 / i0e(2 / t), []
            for angles in rng.uniform(0, 2 * np.pi, (4, K)):
                energy, points, _ = polar(angles, t)
                xi = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1))
                step = lambda x: hopfield_update(x, xi, 1 / t)
                found = find_minima(energy, points, step, wrap=True, tol=1e-5)
                assert found.converged.all() and (found.curvature > 0).all()
                n_eff = effective_number(posterior_weights(found.x, t, xi))
                if len(n_eff) == 1:
                    shares.append(n_eff.item() / K)
            assert shares and 0.9 < np.mean(shares) / full < 2, (K, t)


def test_every_counted_minimum_of_a_sweep_is_one():
    "From 2 to 1,024 memories and over three decades of noise: at rest, and of positive curvature."
    rng = np.random.default_rng(8)
    for K in 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512, 1024:
        angles = rng.uniform(0, 2 * np.pi, K)
        xi = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1))
        for t in np.geomspace(4e-4, 0.8, 9):
            energy, points, centre = polar(angles, t)
            step = lambda x: hopfield_update(x, xi, 1 / t)
            found = find_minima(energy, points, step, wrap=True, tol=1e-5)
            assert found.converged.all() and (found.curvature > 0).all(), (K, t)
            on_grid = find_minima(energy, points, wrap=True)
            assert_allclose(on_grid.barrier, found.barrier)
            n_eff = effective_number(posterior_weights(found.x, t, xi))
            if K == 1024 and 0.05 < t < 0.25: # a circle: one valley, and a hill inside it
                assert len(n_eff) == 1 and centre - energy.min(0).max() > MIN_BARRIER
            if K >= 16 and t > 0.5: # one valley, without a hill
                assert len(n_eff) == 1 and n_eff > 4
                assert centre - energy.min(0).max() < MIN_BARRIER


def hill_inside(energy):
    "As in chapter 7: upside down, with a sea around it, the hills are lakes."
    upside_down = np.pad(-energy, ((0, 1), (0, 0)), constant_values=-40)
    return grid_minima(upside_down, wrap=True)[1][1:].max(initial=0)


def test_hill_inside_is_that_of_the_full_circle():
    "Sixty-four even memories are the full circle: the hill is E(0) - E(ring), in nats."
    angles = np.arange(64) * 2 * np.pi / 64
    R = np.linspace(0, 1.5, 3001)
    for t in 0.05, 0.15, 0.3, 0.45, 0.55:
        energy = polar(angles, t)[0]
        U = (R - 1)**2 / (2 * t) - np.log(i0e(R / t))
        exact = U[0] - U.min()
        # the rim lies up to a quarter of √t beside a row: U'' h²/2 = 1/32 of a nat
        assert 0 <= exact - hill_inside(energy) < 1 / 32 + 1e-6
    assert hill_inside(energy) == 0 # t = 0.55: the ring has closed


def test_one_valley_is_seldom_a_circle_when_memories_are_few():
    "Shares at σ²t = 0.35 (73%, 97%, 99.7%, with a hill in 1%, 7%, 20%): five errors and 0.05."
    rng, n = np.random.default_rng(3), 200
    for K, valley, ring in (8, 0.73, 0.01), (16, 0.97, 0.07), (32, 0.997, 0.20):
        valleys, hills = 0, 0
        for angles in rng.uniform(0, 2 * np.pi, (n, K)):
            energy, points, _ = polar(angles, 0.35)
            x = find_minima(energy, points, wrap=True).x
            xi = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1))
            n_eff = effective_number(posterior_weights(x, 0.35, xi))
            if len(n_eff) == 1 and n_eff[0] > 4:
                valleys += 1
                hills += hill_inside(energy) > 0
        for k, of, p in (valleys, n, valley), (hills, valleys, ring):
            assert abs(k / of - p) < 5 * math.sqrt(p * (1 - p) / of) + 0.05, (K, k, of)


def test_nine_even_memories_are_a_ring_and_no_mixtures():
    "(6.10): the climb 4 I_K / I_0 is 0.3 nats at σ²t = 0.064, with N_eff = 1.1; then a ring."
    for K in 9, 100:
        t = brentq(lambda t: 4 * ive(K, 1 / t) / i0e(1 / t) - 0.3, 1e-4, 0.5)
        angles = torch.arange(2 * K, dtype=torch.float64) * math.pi / K # memories, and half-way
        states = torch.stack([angles.cos(), angles.sin()], 1)
        memories = states[::2]
        n_eff = effective_number(posterior_weights(memories[:1], t, memories)).item()
        bottom, top = -marginal_logp(states[:2], t, memories)
        assert abs(top - bottom - 0.3) < 0.01 and n_eff < 1.5
    energy, points, _ = polar(np.arange(9) * 2 * np.pi / 9, 0.15)
    assert len(find_minima(energy, points, wrap=True).x) == 1
    assert 1.4 < hill_inside(energy) < 1.7


def test_minima_that_walk_to_one_place_count_once():
    "Two dents of a map, but a step under which everything comes to rest at one point: one minimum."
    X, Y, points = plane_grid(61)
    energy = -torch.logsumexp(
        torch.stack([-8 * ((X - a) ** 2 + Y**2) for a in (-0.7, 0.7)]), 0
    )
    grid = torch.stack([X, Y], -1)
    assert len(find_minima(energy, grid).x) == 2
    found = find_minima(energy, grid, lambda x: 0.5 * x)
    assert len(found.x) == len(found.barrier) == 1 and found.x.norm() < 1e-4


# moved from where the grid says to where the step rests

def bowl_on_a_grid(*centers, n=31):
    "A grid, and the least of a few bowls on it, each a little less deep than the one before."
    X, Y, points = plane_grid(n)
    points = points.double()
    bowls = [(points - torch.tensor(c)).square().sum(1) + 0.01 * i for i, c in enumerate(centers)]
    return torch.stack(bowls).amin(0).reshape(n, n), points.reshape(n, n, 2)


@pytest.mark.parametrize("angle", [20., 45., -45.])
def test_a_saddle_is_left_along_its_own_direction(angle):
    "At rest between two states that lie aslant: at tanh 2u = u on one axis, and 0 on the other."
    u = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))]).double()
    def step(x):
        along = x @ u
        return along.mul(2).tanh()[:, None] * u + 0.5 * (x - along[:, None] * u)
    found = find_minima(*bowl_on_a_grid((0., 0.)), step)
    rest = brentq(lambda r: math.tanh(2 * r) - r, 0.5, 1)
    assert_allclose((found.x @ u).abs(), [rest], atol=1e-5)
    assert found.converged.all() and (found.curvature > 0).all()


def test_of_minima_that_meet_the_deeper_stays():
    "Two bowls with a pass between them, and a step that leads from both to one place."
    energy, points = bowl_on_a_grid((-0.8, 0.), (0.8, 0.))
    assert len(find_minima(energy, points).x) == 2
    found = find_minima(energy, points, lambda x: 0.5 * x)
    assert found.barrier.tolist() == [math.inf] and found.x.abs().max() < 1e-5
