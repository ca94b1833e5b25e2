"""The energy of infinitely many memories: digits, gradients, kinds and shapes, refusals."""
import math

import mpmath
import numpy as np
import pytest
import torch
from helpers import none, refused
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import i0, i0e, ive

from amtutorial.circle import energy_am, score_am
from amtutorial.data import circle_patterns
from amtutorial.hopfield import dense_am_energy
from amtutorial.sde import effective_number, marginal_logp, posterior_weights

mpmath.mp.dps = 40
EPS = 2.0**-53 # the relative error of one rounding
BETAS = [1e-3, 0.03, 0.5, 1., 1.0000001, 3.33, 20., 300., 1e4, 1e6, 1e8]
RADII = [0., 1e-12, 1e-6, 1e-3, 0.03, 0.3, 0.7, 0.9, 0.999, 1 - 1e-7, 1., 1 + 1e-9, 1.001, 1.3,
         3., 30., 1e3]
DIRECTIONS = [(1., 0.), (-0.6, 0.8), (math.cos(2.), math.sin(2.))]
STATES = np.array([[R * c, R * s] for R in RADII for c, s in DIRECTIONS])


def radius(x):
    "Distance of a state from the origin with 40 digits; the state is exactly what its floats say."
    return mpmath.sqrt(mpmath.mpf(x[0])**2 + mpmath.mpf(x[1])**2)


def hankel(nu, z):
    "I_nu(z) √(2πz) e^{-z} for large z; the terms fall by a factor of about 2z/k."
    factor = lambda j: -(4 * nu**2 - (2 * j - 1)**2) / (8 * z * j)
    terms = (mpmath.fprod(factor(j) for j in range(1, k + 1)) for k in range(14))
    return mpmath.fsum(terms)


def exact(x, beta):
    "Energy, radial score and I1/I0 with 40 digits."
    R, beta = radius(x), mpmath.mpf(beta)
    z = 2 * beta * R
    if z < 1e4:
        bessel = mpmath.besseli(0, z)
        log_i0, ratio = mpmath.log(bessel), mpmath.besseli(1, z) / bessel
    else:
        log_i0 = z - mpmath.log(2 * mpmath.pi * z) / 2 + mpmath.log(hankel(0, z))
        ratio = hankel(1, z) / hankel(0, z)
    return R**2 + 1 - log_i0 / beta, 2 * (ratio - R), ratio


@pytest.fixture(scope="module")
def digits():
    "For 11 temperatures and 51 states: beta, R, I1/I0, errors of E and score, exact |score|, E."
    rows = []
    for beta in BETAS:
        energies, scores = energy_am(STATES, beta, normalize=False), score_am(STATES, beta)
        for x, energy, score in zip(STATES, energies, scores):
            E, push, ratio = exact(x, beta)
            R = radius(x)
            right = np.array([float(push * mpmath.mpf(c) / R) if R else 0. for c in x])
            off = float(abs(mpmath.mpf(float(energy)) / E - 1))
            error, size = score - right, np.linalg.norm(right)
            rows.append((beta, float(R), float(ratio), off, error, size, float(E)))
    return rows


def test_energy_against_forty_digits(digits):
    none([row[:4] for row in digits if not row[3] < 1e-10])


def test_energy_to_the_digits_that_its_terms_allow(digits):
    # Both terms of (6.5) are positive: nothing cancels in their sum. But R - 1 is a plain
    # difference, wrong by a rounding of R, which moves its square by 2 |R - 1| R EPS; and at small
    # beta i0e is rounded beside 1, which moves -log(i0e)/beta by EPS/beta.
    for beta, R, _, off, _, _, E in digits:
        assert off * E < 16 * EPS * max(E, 1 / beta) + 4 * EPS * abs(R - 1) * R, (beta, R)


def test_score_against_forty_digits(digits):
    none([row[:2] for row in digits if not np.abs(row[4]).max() < 1e-12 * max(1, row[1])])


def test_score_to_the_last_digits_of_what_is_subtracted(digits):
    # The score is 2 (I1/I0 - R) along x. `R - 1` and `I1/I0 - R` are plain differences now, so it
    # must be right to a few roundings of the two numbers that are subtracted (twice the four that
    # i0e and i1e are each good to), and can be no
    # better where they cancel: on the ring at beta = 1e8, where |score| is 5e-9, that is a
    # relative 1e-8. Nobody loses by it. The curvature of the ring is 2, so a state that is itself
    # rounded to EPS moves its own score by 2 EPS; and near the origin at beta = 1, where the
    # score is a cube of R, a beta rounded to EPS moves it by 2 EPS R.
    bound = lambda R, ratio: 16 * EPS * max(R, ratio)
    none([row[:2] for row in digits if not np.linalg.norm(row[4]) <= bound(row[1], row[2])])


def test_score_is_relatively_right_where_nothing_cancels(digits):
    clear = [row for row in digits if row[5] > 1e-6 * max(row[1], row[2])]
    assert len(clear) > 480
    none([row[:2] for row in clear if not np.linalg.norm(row[4]) < 1e-8 * row[5]])


def test_origin_is_at_rest():
    for beta in BETAS:
        assert (score_am(np.zeros((3, 2)), beta) == 0).all()
        assert_allclose(energy_am(np.zeros((1, 2)), beta, normalize=False), 1, rtol=1e-15)


@pytest.mark.parametrize("dtype, beta", [
    (np.float64, 20.), (np.float64, 1e3), (np.float32, 20.), (np.float32, 60.)])
def test_textbook_formula_overflows_and_ours_does_not(dtype, beta):
    R = np.linspace(0.01, 1.5, 150).astype(dtype)
    with np.errstate(all="ignore"):
        textbook = R**2 + 1 - np.log(i0(2 * dtype(beta) * R)) / dtype(beta)
    ours = energy_am(np.stack([R, 0 * R], 1), beta, normalize=False)
    bad = ~np.isfinite(textbook)
    assert np.isfinite(ours).all()
    assert bad.any() == (2 * beta * 1.5 > {np.float64: 713, np.float32: 91.9}[dtype])
    off = np.abs(textbook - ours)[~bad].max()
    assert off < {np.float64: 1e-15, np.float32: 5e-7}[dtype]


def test_score_is_minus_the_gradient():
    g = torch.Generator().manual_seed(5)
    for beta in 0.01, 0.9, 1., 3.33, 20., 1e3, 1e6:
        near = 1e-9 * torch.randn(5, 2, generator=g)
        x = torch.cat([torch.zeros(1, 2), near, torch.randn(60, 2, generator=g)]).double()
        x.requires_grad_()
        gradient, = torch.autograd.grad(energy_am(x, beta, normalize=False).sum(), x)
        assert_allclose(score_am(x, beta).detach(), -gradient, rtol=1e-9, atol=1e-9)


def test_curvature_at_the_origin_by_autograd():
    for beta in 0.5, 1., 2., 1e8:
        x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        rows = [torch.autograd.grad(score_am(x, beta)[0, k], x)[0][0] for k in (0, 1)]
        assert_allclose(torch.stack(rows), 2 * (beta - 1) * np.eye(2), rtol=1e-12, atol=1e-12)
    for beta, sign in (0.99, 1), (1.01, -1):
        push = score_am(np.array([[1e-7, 0.]]), beta)[0, 0] / 1e-7
        assert_allclose(-push, sign * 0.02, atol=1e-9)


@pytest.mark.parametrize("beta, at, most", [
    (500., 1., 1e-14), # z = 1000, where the formula of the score changes
    (50., 2., 1e-12), (3.33, 1 / 6.66, 1e-12), (3.33, 0., 1e-12)])
def test_no_kink(beta, at, most):
    # second differences of a smooth function: spacing² = 4e-16 times its second derivative
    r = at + np.linspace(-1e-6, 1e-6, 101)
    along = score_am(np.stack([r, 0 * r], 1), beta)[:, 0]
    assert np.abs(np.diff(along, 2)).max() < most


def test_arrows_point_to_the_ring():
    line = np.linspace(-1.5, 1.5, 100)
    x = np.stack(np.meshgrid(line, line, indexing="ij"), -1)
    score, R = score_am(x, 20.), np.linalg.norm(x, axis=-1)
    outward = (score * x).sum(-1)
    assert (outward[R < 0.987] > 0).all() and (outward[R > 0.988] < 0).all()
    energy = energy_am(x, 20.)
    assert abs(R[np.unravel_index(energy.argmin(), energy.shape)] - 0.9873) < 0.02
    assert energy[50, 50] > 0.7


def test_kinds_and_shapes():
    grid = np.random.default_rng(0).normal(size=(4, 5, 2))
    stack = grid.transpose(0, 2, 1)
    E, S = energy_am(grid, 20.), score_am(grid, 20.)
    assert E.shape == (4, 5) and S.shape == (4, 5, 2) and E.min() == 0
    assert isinstance(E, np.ndarray) and isinstance(S, np.ndarray)
    assert (energy_am(stack, 20.) == E).all()
    assert (score_am(stack, 20.) == S.transpose(0, 2, 1)).all()
    assert (score_am(grid.reshape(-1, 2), 20.) == S.reshape(-1, 2)).all()
    assert energy_am(torch.zeros(2, 2, 2), 1.).shape == (2, 2)
    ambiguous = np.random.default_rng(1).normal(size=(3, 2, 2)) # the last axis holds coordinates
    assert (energy_am(ambiguous, 3.)[1] == energy_am(ambiguous[1], 3., False)
            - energy_am(ambiguous, 3., False).min()).all()
    given = grid.copy()
    energy_am(grid, 20.)
    score_am(grid, 20.)
    assert (grid == given).all()


def test_precision_of_the_input_is_kept():
    grid = np.random.default_rng(0).normal(size=(4, 5, 2))
    T = torch.tensor(grid, dtype=torch.float32)
    assert energy_am(T, 20.).dtype == score_am(T, 20.).dtype == torch.float32
    assert energy_am(grid.astype(np.float32), 20.).dtype == np.float32
    assert energy_am(T.double(), 20.).dtype == torch.float64
    assert_allclose(energy_am(T, 1e8).numpy(), energy_am(grid, 1e8), rtol=1e-5, atol=1e-6)
    assert_allclose(score_am(T, 1e8).numpy(), score_am(grid, 1e8), rtol=1e-5, atol=1e-6)


def test_normalize_and_epsilon():
    x = np.random.default_rng(2).normal(size=(30, 2))
    free, shifted = energy_am(x, 5., normalize=False), energy_am(x, 5.)
    assert_allclose(free - free.min(), shifted, rtol=0, atol=1e-15)
    assert free.min() > 0.1 and shifted.min() == 0
    assert (score_am(x, 5., epsilon=0.3) == score_am(x, 5.)).all()
    assert (score_am(x, 5.) != score_am(x, 6.)).any()


def test_refusals():
    x = np.zeros((4, 5, 2))
    for flat in np.zeros((3, 4)), [1., 2.]:
        assert refused(energy_am, flat, 1.).startswith("ValueError: samples must have shape")
    assert refused(energy_am, x, 0.) == "ValueError: beta must be finite and above 0, not 0"
    assert refused(score_am, x, "cold").startswith("TypeError: beta must be a number")
    assert refused(score_am, x, [1., 2.]).startswith("TypeError: beta must be one number")
    assert refused(score_am, [[math.nan, 0.]], 1.).startswith("ValueError: samples must be finite")
    assert refused(score_am, "ring", 1.).startswith("TypeError: samples")


@pytest.mark.parametrize("width", [0.1, 0.01])
def test_delta_density_integrates_to_one(width):
    "Equation (6.1) with a normal density of y² - 1 in place of the delta function."
    bell = lambda u: math.exp(-u**2 / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
    ring = lambda r: bell(r**2 - 1) / math.pi * 2 * math.pi * r
    points = [1 - 4 * width, 1, 1 + 4 * width]
    mass, _ = quad(ring, 0, 2, points=points, limit=200, epsabs=1e-12)
    assert abs(mass - 1) < 1e-10


def test_integral_is_a_bessel_function():
    "Equation (6.2), with the factor exp(-β(R-1)²) taken out of both sides."
    angles = np.arange(4096) * 2 * np.pi / 4096
    for beta in 0.01, 1., 3.33, 20., 1e3:
        for R in 0., 0.3, 1., 2.:
            distance = (R - np.cos(angles + 0.7))**2 + np.sin(angles + 0.7)**2
            average = np.exp(-beta * (distance - (R - 1)**2)).mean()
            assert_allclose(average, i0e(2 * beta * R), rtol=1e-11)


def test_density_of_the_ring():
    "Equation (6.3): normalised in nats by log(β/π), and the limit of the density (2.3)."
    for sigma, t in (1., 0.15), (1.7, 0.15), (1., 0.02):
        beta = 1 / (2 * sigma**2 * t)
        at = lambda R: energy_am(np.array([[R, 0.]]), beta, normalize=False)[0]
        density = lambda R: beta / math.pi * math.exp(-beta * at(R)) * 2 * math.pi * R
        assert abs(quad(density, 0, 12, points=[1, 2, 4], epsabs=1e-12)[0] - 1) < 1e-9
        turn = torch.arange(4096, dtype=torch.float64) * 2 * math.pi / 4096
        ring = torch.stack([turn.cos(), turn.sin()], 1)
        g = torch.Generator().manual_seed(4)
        x = torch.randn(20, 2, generator=g, dtype=torch.float64)
        nats = beta * energy_am(x, beta, normalize=False) - math.log(beta / math.pi)
        assert_allclose(-marginal_logp(x, t, ring, sigma), nats, rtol=0, atol=1e-12)


def test_cold_limit():
    "Equation (6.4): the term after the correction is -1/(16 β²)."
    for beta in 1 / 0.3, 20., 1e3, 1e6:
        gap = energy_am(np.array([[1., 0.]]), beta, normalize=False)[0]
        assert abs(gap - math.log(4 * math.pi * beta) / (2 * beta)) < 1 / (10 * beta**2)


def test_neumann_and_fourier_series():
    "Neumann's sum, which closes (6.9), and the series (6.8) on states away from the circle."
    m = np.arange(-200, 201)
    fraction = lambda m, z: ive(m, z) / i0e(z)
    for z in 0.3, 3., 30.:
        assert_allclose((fraction(m, z)**2).sum(), i0e(2 * z) / i0e(z)**2, rtol=1e-12)
    nine = circle_patterns(9).double()
    nine = nine / nine.norm(dim=1, keepdim=True)
    phi = torch.atan2(nine[:, 1], nine[:, 0]).numpy()
    g = torch.Generator().manual_seed(5)
    x = torch.randn(30, 2, generator=g, dtype=torch.float64)
    R, angle = x.norm(dim=1).numpy()[:, None], torch.atan2(x[:, 1], x[:, 0]).numpy()[:, None]
    c = np.exp(-1j * np.outer(m, phi)).mean(1)
    for beta in 0.5, 3.33, 20.:
        series = (fraction(m, 2 * beta * R) * c * np.exp(1j * m * angle)).sum(1)
        E = dense_am_energy(x, nine, beta) + math.log(9) / beta
        direct = torch.exp(-beta * (E - energy_am(x, beta, normalize=False))).numpy()
        assert np.abs(series.imag).max() < 1e-12
        assert_allclose(series.real, direct, rtol=0, atol=1e-12) # terms of at most one


def test_spread_of_random_memories():
    "Equation (6.9); the tolerance is five standard errors, plus where the log is not yet linear."
    rng, draws = np.random.default_rng(6), 1000
    for K in 4, 8, 16, 32, 64, 128, 512, 2048, 8192:
        cosine = np.cos(rng.uniform(0, 2 * np.pi, (draws, K)))
        for beta, R in (1 / 0.3, 1.), (20., 1.), (1 / 0.3, 0.5):
            bumps = np.exp(2 * beta * R * (cosine - 1)).mean(1) / i0e(2 * beta * R)
            growth = i0e(4 * beta * R) / i0e(2 * beta * R)**2
            spread = math.sqrt(growth - 1) / (beta * math.sqrt(K))
            if growth / K < 0.1:
                off = abs(np.std(np.log(bumps) / beta) / spread - 1)
                assert off < 5 / math.sqrt(2 * draws) + growth / K, (K, beta, R)


def test_evenly_spaced_memories():
    "Equation (6.10) with its next orders, and a fall that is faster than any exponential."
    beta, leading = 1 / 0.3, {}
    turn = torch.linspace(0, 2 * math.pi, 97, dtype=torch.float64)
    x = torch.stack([turn.cos(), turn.sin()], 1)
    wave = lambda K: 2 / beta * ive(K, 2 * beta) / i0e(2 * beta)
    for K in range(2, 25):
        at = torch.arange(K, dtype=torch.float64) * 2 * math.pi / K
        memories = torch.stack([at.cos(), at.sin()], 1)
        E = dense_am_energy(x, memories, beta) + math.log(K) / beta
        error = (E - energy_am(x, beta, normalize=False)).numpy()
        leading[K] = wave(K)
        if K >= 5: # the square of the leading order times β/2 = 1.7, and I_2K; then rounding
            next_order = 2 * wave(K)**2 + wave(2 * K) * 1.01 + 4e-15
            assert np.abs(error + wave(K) * np.cos(K * turn.numpy())).max() < next_order, K
        if K == 16:
            assert round(math.log10(np.abs(error).max())) == -7
    ratios = np.array([leading[K + 1] / leading[K] for K in range(2, 24)])
    assert (np.diff(ratios) < 0).all()


def test_effective_number_around_the_circle():
    "Equation (6.11) for evenly spaced memories, and N_eff from cosines as the library has it."
    turn = torch.linspace(0, 6, 50, dtype=torch.float64)
    x = torch.stack([turn.cos(), turn.sin()], 1)
    for K, v in (512, 0.15), (1024, 1e-3):
        at = torch.arange(K, dtype=torch.float64) * 2 * math.pi / K
        memories = torch.stack([at.cos(), at.sin()], 1)
        n_eff = effective_number(posterior_weights(x, v, memories))
        cosine = torch.cos(turn[:, None] - at)
        assert_allclose(n_eff, effective_number(torch.softmax(cosine / v, -1)), rtol=1e-9)
        assert_allclose(n_eff, K * i0e(1 / v)**2 / i0e(2 / v), rtol=1e-9)
        assert abs(n_eff[0] / (K * math.sqrt(v / math.pi)) - 1) < 0.1


def test_cubic_term_near_the_origin():
    "Equation (6.7): the push is 2(β-1)R - β³R³, and what is left is a constant times R⁵."
    R = np.array([0.01, 0.02, 0.04])
    push = score_am(np.stack([R, 0 * R], 1), 1.5)[:, 0]
    left = push - (2 * 0.5 * R - 1.5**3 * R**3)
    assert_allclose(left / R**5, left[0] / R[0]**5, rtol=5e-3)
    assert_allclose(push, 2 * 0.5 * R - 1.5**3 * R**3, rtol=2e-5)


def test_where_the_circle_breaks():
    "Noise at which the median of N_eff falls to 16 and to 2: within 4% and 30% of (6.11)."
    around = np.linspace(0, 2 * np.pi, 256, endpoint=False) + 0.01

    def crossing(angles, N):
        cosine = torch.from_numpy(np.cos(around[:, None] - angles))
        n_eff = lambda u: effective_number(torch.softmax(cosine / math.exp(u), 1)).median().item()
        return math.exp(brentq(lambda u: n_eff(u) - N, math.log(1e-6), 0, xtol=1e-3))

    Ks, rng = [32, 64, 128, 256, 512, 1024], np.random.default_rng(7)
    share = lambda v: i0e(1 / v)**2 / i0e(2 / v)
    for N, off in (2, 0.3), (16, 0.04):
        draws = [[crossing(rng.uniform(0, 2 * np.pi, K), N) for _ in range(4)] for K in Ks]
        even = [crossing(np.arange(K) * 2 * np.pi / K, N) for K in Ks]
        line = np.array([brentq(lambda v: K * share(v) - N, 1e-7, 5) for K in Ks])
        assert np.abs(np.stack([np.mean(draws, 1), even]) / line - 1).max() < off, N
        if N == 16:
            assert abs(even[-1] / line[-1] - 1) < 0.02


def test_learned_beside_exact():
    "Bumps on a lattice, fitted to noised states, come near the exact energy at its temperature."
    thousand, t, n = circle_patterns(1000).double(), 0.15, 20_000
    g = torch.Generator().manual_seed(7)
    x0 = thousand[torch.randint(1000, (n,), generator=g)]
    xt = x0 + math.sqrt(t) * torch.randn(n, 2, generator=g, dtype=torch.float64)
    lattice = torch.linspace(-2.4, 2.4, 13, dtype=torch.float64)
    centres, width2 = torch.cartesian_prod(lattice, lattice), 0.25

    def features(x):
        off = x[:, None] - centres
        bump = torch.exp(-off.square().sum(-1) / (2 * width2))
        gradient = torch.cat([-(off / width2 * bump[..., None]).mT, x[..., None]], -1)
        return torch.cat([bump, x.square().sum(-1, keepdim=True) / 2], -1), gradient

    A, b = features(xt)[1].reshape(2 * n, -1), ((xt - x0) / t).reshape(-1)
    ridge = 2 * torch.eye(A.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(A.T @ A + ridge, A.T @ b)
    axis = torch.linspace(-1.5, 1.5, 100, dtype=torch.float64)
    points, beta = torch.cartesian_prod(axis, axis), 1 / (2 * t)
    landscapes = [features(points)[0] @ weights, -marginal_logp(points, t, thousand),
                  beta * energy_am(points, beta), 20 * energy_am(points, 20.)]
    near = landscapes[1] - landscapes[1].min() < 6
    learned, finite, infinite, cold = (U - U[near].mean() for U in landscapes)
    rms = lambda u, v: (u - v)[near].square().mean().sqrt().item()
    spread = math.sqrt((i0e(4 * beta) / i0e(2 * beta)**2 - 1) / 1000) # (6.9) in nats
    assert rms(learned, finite) < 0.3 and rms(finite, infinite) < 4 * spread
    assert rms(learned, cold) > 10 * rms(learned, infinite)


def test_printed_and_colour_bar_numbers_of_the_page():
    "What three of the slips rest on: zeros of their own, one colour bar, the docstring's sign."
    axis = torch.linspace(-1.5, 1.5, 100, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    nine = circle_patterns(9).double()
    at_memories = -marginal_logp(nine, 0.15, nine).min()
    assert at_memories + marginal_logp(grid, 0.15, nine).max() > 0.01
    span = lambda K: np.ptp(marginal_logp(grid, 0.15, circle_patterns(K).double()).numpy())
    assert [round(float(span(K)), 1) for K in (2, 9, 1000)] == [17.7, 7.6, 4.7]
    assert round(score_am(np.array([[0.5, 0.]]), 1 / 0.3)[0, 0], 4) == 0.6638
