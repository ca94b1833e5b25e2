"""Identities that hold for any memories, dimension, unit, noise and precision.

Each tolerance is an argument, not a trial: u is half the spacing of numbers just above one, and
`World` says how far rounding can move an exponent, log p, weights, their mean, the score. Where
a transformation is exact in floating point (a power of two), the answer must be the same, digit by
digit.
"""

import math
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from scipy.sparse.csgraph import connected_components
from scipy.special import ive
from helpers import seeded

from amtutorial.circle import energy_am, score_am
from amtutorial.data import (
    cartesian_to_polar,
    create_subset,
    generate_circle_data,
    merge_patterns,
    plane_grid,
)
from amtutorial.decision import agreement, effective_dimension, open_nats
from amtutorial.hopfield import dense_am_energy, diffusion_energy, hopfield_energy
from amtutorial.likelihood import energy_error, score_and_divergence, to_energy
from amtutorial.minima import find_minima, grid_minima
from amtutorial.retrieval import fixed_points, hopfield_update, retrieve
from amtutorial.sampling import (
    Euler_Maruyama_sampler,
    matched_gaussian,
    memory_shares,
    moments,
    probability_flow,
    reverse_sde,
    time_grid,
)
from amtutorial.sde import (
    VESDETerms,
    effective_number,
    marginal_logp,
    marginal_sample,
    marginal_score,
    posterior_mean,
    posterior_weights,
    squared_distances,
)
from amtutorial.training import score_error, train_loop

settings.register_profile("quick", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("quick")

# Worlds: memories, points near and far, noise; twelve decades of each


def normal(g, *shape):
    return torch.randn(*shape, generator=g, dtype=torch.float64)


MEMORIES = {  # K of them in d dimensions, of size one
    "cloud": normal,
    "copies": lambda g, K, d: normal(g, 3, d)[torch.randint(3, (K,), generator=g)],
    "line": lambda g, K, d: normal(g, K, 1) * normal(g, 1, d),
    "sphere": lambda g, K, d: torch.nn.functional.normalize(normal(g, K, d)),
    "lattice": lambda g, K, d: torch.randint(-1, 2, (K, d), generator=g).double(),
    "twins": lambda g, K, d: normal(g, 1, d) + 1e-4 * normal(g, K, d),
    "far away": lambda g, K, d: 100 + normal(g, K, d),
}


def some_points(g, xi, std):
    "On a memory, beside one, in the middle, between two, and far outside."
    K, d = xi.shape
    size = (xi - xi.mean(0)).norm(dim=1).max()
    return torch.stack([
        xi[0], xi[-1] + std * normal(g, d), xi.mean(0), (xi[0] + xi[K // 2]) / 2,
        xi[K // 3] + (size + std) * normal(g, d) / math.sqrt(d), xi[0] + 10 * size * normal(g, d)])


@dataclass
class World:
    x: torch.Tensor
    xi: torch.Tensor
    t: float
    sigma: float
    kind: str
    unit: float

    def __post_init__(self):
        x, xi = self.x.double(), self.xi.double()
        self.K, self.d = xi.shape
        self.v = self.sigma * self.sigma * self.t
        self.u = torch.finfo(self.x.dtype).eps / 2
        centre = xi.mean(0)
        self.spread = (xi - centre).norm(dim=1).max().item()  # of memories
        self.reach = (x - centre).norm(dim=1) + self.spread  # of points to memories, at most
        self.size = xi.norm(dim=1).max().item()  # of the numbers that stand for memories
        self.sizes = x.norm(dim=1) + self.size

    @property
    def given(self):
        return self.x, self.t, self.xi, self.sigma

    def exponent(self, moved=0.):
        """Error of an exponent D²/2v: d products and 8 roundings more of (|x| + |ξ|)², measured
        from the centre, as without it they do not cancel; and D moved by rounding of inputs."""
        rounding = (self.d + 8) * self.u * self.reach**2
        return (rounding + 2 * self.reach * moved + moved**2) / (2 * self.v)

    def logp(self, moved=0.):
        """A log-sum-exp moves no more than its largest exponent does; its K terms, and the sum of
        exponent, log K and d/2 log 2πv, are rounded."""
        terms = self.reach**2 / (2 * self.v) + math.log(self.K)
        terms = terms + self.d / 2 * (abs(math.log(2 * math.pi * self.v)) + 1)
        return self.exponent(moved) + self.u * (2 * self.K + 4 + 4 * terms)

    def weights(self, moved=0.):
        "Sum of the errors of weights: relative to each, so at most 2, and roundings of their sum."
        return torch.expm1(2 * self.exponent(moved)).clamp(max=2) + (2 * self.K + 6) * self.u

    def mean(self, moved=0.):
        "Errors of weights times distances from the centre; K products of numbers as they are."
        return self.weights(moved) * self.spread + 2 * (self.K + 4) * self.u * self.size

    def score(self, moved=0.):
        "The difference of mean and point, over v."
        points = 2 * moved + 4 * self.u * (self.sizes + self.reach)
        return (self.mean(moved) + points) / self.v

    def gradient(self):
        """Autograd divides by the sum of weights through its logarithm, rounded as an exponent is:
        all differences of point and memory grow or shrink alike."""
        return self.score() + torch.expm1(2 * self.exponent()) * self.reach / self.v


PLAIN = "donot_use_mm_for_euclid_dist"
BOTH = st.sampled_from([torch.float32, torch.float64])
SEEDS = st.integers(0, 2**32 - 1)


def decades(low, high):
    return st.floats(low, high).map(lambda p: 10.**p)


@st.composite
def worlds(draw, d=64, K=500, dtype=BOTH, noise=(-9, 3), kinds=tuple(MEMORIES)):
    "σ²t from 1e-9 to 1e3 in units of the memories' size²; units and t over twelve decades, too."
    g, kind, kept = seeded(draw(SEEDS)), draw(st.sampled_from(kinds)), draw(dtype)
    d, K, unit = draw(st.integers(1, d)), draw(st.integers(1, K)), draw(decades(-6, 6))
    t, ratio = draw(decades(-12, 0)), draw(decades(*noise))
    xi = unit * MEMORIES[kind](g, K, d)
    x = some_points(g, xi, unit * math.sqrt(ratio))
    return World(x.to(kept), xi.to(kept), t, unit * math.sqrt(ratio / t), kind, unit)


DOUBLE = st.just(torch.float64)


def within(a, b, tolerance):
    "Whether rows of a and b, or numbers, differ by no more than their tolerance."
    off = (torch.as_tensor(a).double() - torch.as_tensor(b).double()).detach()
    off = off.norm(dim=-1) if off.ndim > 1 else off.abs()
    tolerance = torch.as_tensor(tolerance, dtype=torch.float64)
    assert (off <= tolerance).all(), f"off by {(off / tolerance).max().item():.3g} tolerances"


def same(a, b):
    "Whether all digits agree, but for numbers so near the smallest that they have lost some."
    small = torch.finfo(a.dtype).smallest_normal * 2**40
    return a.dtype == b.dtype and ((a == b) | ((a.abs() < small) & (b.abs() < small))).all()


def gradient_of(f, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


def turn(g, d):
    "A random orthogonal matrix; Householder's leaves d^1.5 roundings at most."
    return torch.linalg.qr(normal(g, d, d))[0]


# The density and its score


@given(worlds(), SEEDS)
def test_a_turn_changes_nothing(w, seed):
    "A turned point is rounded: √d of the row's d products in double, once in its own precision."
    q = turn(seeded(seed), w.d)
    x, xi = ((a.double() @ q).to(a) for a in (w.x, w.xi))
    moved = (w.u + 3 * w.d**1.5 * 2**-53) * w.sizes
    there = x, w.t, xi, w.sigma
    within(marginal_logp(*there), marginal_logp(*w.given), 2 * w.logp(moved))
    turned = marginal_score(*w.given).double() @ q
    within(marginal_score(*there), turned, 2 * w.score(moved))


@given(worlds(), SEEDS)
def test_a_shift_changes_nothing(w, seed):
    shift = w.unit * 10 * normal(seeded(seed), w.d)
    there = World(*((a.double() + shift).to(a) for a in (w.x, w.xi)), w.t, w.sigma, w.kind, w.unit)
    moved = w.u * there.sizes
    for f, tolerance in (marginal_logp, World.logp), (marginal_score, World.score):
        within(f(*there.given), f(*w.given), tolerance(w, moved) + tolerance(there, moved))


@given(worlds(), st.integers(-30, 30))
def test_other_units_change_nothing(w, power):
    "Powers of two are exact, so every digit stays; only log p is shifted by d log a."
    a = 2.**power
    there = a * w.x, w.t, a * w.xi, a * w.sigma
    assert same(posterior_weights(*there), posterior_weights(*w.given))
    v = w.t * w.sigma**2  # read-outs, that much nearer to the smallest numbers, are behind scores
    assert same(v * a * marginal_score(*there), v * marginal_score(*w.given))
    shifted = marginal_logp(*there).double() + w.d * math.log(a)
    size = w.d * abs(math.log(a))  # of which logarithm, product, difference and sum are rounded
    within(shifted, marginal_logp(*w.given), 2 * w.logp() + 4 * w.u * size)


@given(worlds())
def test_only_the_noise_variance_counts(w):
    "A quarter of the time at twice the noise: exact, in every digit."
    for f in marginal_logp, marginal_score, posterior_weights:
        assert same(f(*w.given), f(w.x, w.t / 4, w.xi, 2 * w.sigma))


@given(worlds(K=100), st.integers(1, 5), SEEDS)
def test_order_and_repetition_of_memories(w, copies, seed):
    "Each memory as often as every other, in any order: the same density."
    shuffled = w.xi.repeat(copies, 1)[torch.randperm(w.K * copies, generator=seeded(seed))]
    there = World(w.x, shuffled, w.t, w.sigma, w.kind, w.unit)
    for f, tolerance in (marginal_logp, World.logp), (marginal_score, World.score):
        within(f(*there.given), f(*w.given), tolerance(w) + tolerance(there))


@given(worlds(K=100), st.floats(0, 1))
def test_two_sets_of_memories_mix(w, where):
    "p of all memories is the average of p of the two halves, by their numbers."
    cut = min(max(1, int(where * w.K)), w.K - 1)
    assume(cut)
    log_p = lambda xi: marginal_logp(w.x, w.t, xi, w.sigma)
    two = w.xi.split([cut, w.K - cut])
    parts = torch.stack([log_p(xi) + math.log(len(xi) / w.K) for xi in two])
    halves = [World(w.x, xi, w.t, w.sigma, w.kind, w.unit) for xi in two]
    tolerance = w.logp() + torch.maximum(*(h.logp() for h in halves))
    within(log_p(w.xi), parts.logsumexp(0), tolerance)


@given(worlds(), SEEDS)
def test_a_coordinate_that_tells_nothing(w, seed):
    "All memories alike in one more coordinate: a normal factor, also from 8 dimensions to 9."
    z = w.unit * normal(seeded(seed), 6, 1).to(w.x)
    more = World(torch.cat([w.x, z], 1), torch.cat([w.xi, 0 * w.xi[:, :1]], 1), w.t, w.sigma, "", 1)
    factor = -z[:, 0].double()**2 / (2 * w.v) - math.log(2 * math.pi * w.v) / 2
    wanted = marginal_logp(*w.given).double() + factor
    within(marginal_logp(*more.given), wanted, w.logp() + more.logp())


@given(worlds(), st.integers(0, 499))
def test_the_same_answer_alone_and_in_company(w, seed):
    "A time of its own for every point, and blocks of points, change no more than rounding."
    t = w.t * (0.1 + 0.9 * torch.rand(6, generator=seeded(seed)).double())
    for f, tolerance in (marginal_logp, World.logp), (marginal_score, World.score):
        many = f(w.x, t, w.xi, w.sigma)
        for i in 0, 5:
            one = World(w.x[i:i + 1], w.xi, t[i].item(), w.sigma, w.kind, w.unit)
            within(many[i:i + 1], f(*one.given), 2 * tolerance(one))


def by_long_double(w):
    "log p, weights and mean by differences and 64 bits, where the machine has them."
    x, xi = w.x.numpy().astype(np.longdouble), w.xi.numpy().astype(np.longdouble)
    z = -((x[:, None] - xi)**2).sum(-1) / (2 * np.longdouble(w.v))
    top = z.max(1, keepdims=True)
    e = np.exp(z - top)
    norm = math.log(w.K) + w.d / 2 * math.log(2 * math.pi * w.v)
    mean = e @ xi / e.sum(1, keepdims=True)
    logp = np.log(e.sum(1)) + top[:, 0] - norm
    return (torch.from_numpy(a.astype(float)) for a in (logp, e / e.sum(1, keepdims=True), mean))


@given(worlds())
def test_against_more_digits(w):
    logp, weights, mean = by_long_double(w)
    within(marginal_logp(*w.given), logp, w.logp())
    off = (posterior_weights(*w.given) - weights).abs().sum(1)
    within(off, 0 * off, w.weights())
    v = w.x.new_full((6, 1), w.v)
    within(posterior_mean(w.x, v, w.xi), mean, w.mean())
    within(marginal_score(*w.given), (mean - w.x) / w.v, w.score())


@given(worlds())
def test_score_is_the_gradient_of_log_p(w):
    gradient = gradient_of(lambda x: marginal_logp(x, w.t, w.xi, w.sigma), w.x)
    within(gradient, marginal_score(*w.given), w.score() + w.gradient())


@given(worlds(d=12, K=60))
def test_divergence_is_the_trace_of_the_covariance(w):
    "∇·s = (tr Cov / v - d) / v, Cov that of the posterior weights: the derivative of the mean."
    v = w.x.new_full((6, 1), w.v)
    time = torch.tensor(w.t, dtype=torch.float64)
    score, divergence = score_and_divergence(
        lambda y, s: marginal_score(y, s, w.xi, w.sigma), w.x, time)
    weights = posterior_weights(*w.given).double()
    xi = w.xi.double()
    off = (weights @ xi)[:, None] - xi
    wanted = ((weights * off.square().sum(-1)).sum(1) / w.v - w.d) / w.v
    within(score, marginal_score(*w.given), 0)
    # a weight's error moves the trace by spread² / v², as (ξ - mean) (ξ - x) / v in the derivative
    # is at most spread · reach / v, from sums of K and of d products
    large = 2 * w.spread * w.reach + w.spread * w.size
    tolerance = (3 * w.weights() + 4 * (w.d + w.K) * w.u) * large / w.v**2
    within(divergence, wanted, tolerance + 8 * w.d * w.u / w.v)
    within(posterior_mean(w.x, v, w.xi), weights @ xi, 2 * w.mean())


@given(worlds())
def test_weights_read_out_the_posterior_mean(w):
    "Weights, mean and score are one statement (Tweedie's formula)."
    weights = posterior_weights(*w.given)
    within(weights.double() @ w.xi.double(), w.x + w.v * marginal_score(*w.given).double(),
           2 * w.mean() + w.v * w.score())


@given(worlds())
def test_weights_are_probabilities_of_so_many_memories(w):
    "None below zero; the sum one, N_eff from 1 to K, to the rounding of K terms."
    weights = posterior_weights(*w.given)
    assert (weights >= 0).all()
    within(weights.double().sum(1), torch.ones(6), (w.K + 2) * w.u)
    n = effective_number(weights).double()
    slack = 1 + 4 * (w.K + 2) * w.u
    assert (n >= 1 / slack).all() and (n <= w.K * slack).all()


@given(worlds(), SEEDS)
def test_posterior_mean_lies_in_the_convex_hull(w, seed):
    "No direction in which it lies further out than every memory."
    directions = torch.nn.functional.normalize(normal(seeded(seed), 20, w.d))
    mean = posterior_mean(w.x, w.x.new_full((6, 1), w.v), w.xi).double()
    outside = mean @ directions.T - (w.xi.double() @ directions.T).amax(0)
    assert (outside <= (2 * w.K + w.d + 8) * w.u * w.size).all()


@given(worlds())
def test_log_p_lies_between_the_nearest_memory_alone_and_all_in_one_place(w):
    "max/K ≤ mean ≤ max, of the K normal densities."
    nearest = -torch.cdist(w.x.double(), w.xi.double(), compute_mode=PLAIN).amin(1)**2 / (2 * w.v)
    top = nearest - w.d / 2 * math.log(2 * math.pi * w.v)
    logp = marginal_logp(*w.given).double()
    assert (logp <= top + w.logp()).all() and (logp >= top - math.log(w.K) - w.logp()).all()


@given(worlds(dtype=DOUBLE, noise=(-16, -12), kinds=("cloud", "copies", "lattice", "sphere")))
def test_without_noise_the_nearest_memory_alone(w):
    "The others are out by D²/2v; its copies share, equally where distances are differences."
    distance = torch.cdist(w.x, w.xi, compute_mode=PLAIN).square()
    nearest = distance.argmin(1)
    alike = (w.xi == w.xi[nearest][:, None]).all(2)
    gap = distance - distance.amin(1, keepdim=True)
    out = gap > 4 * w.v * (60 + w.exponent()[:, None])  # e^-120 of the nearest
    assume((out | alike).all())
    weights, alike = posterior_weights(*w.given), alike.double()
    within((weights * alike).sum(1), torch.ones(6), (w.K + 4) * w.u)
    if w.d <= 8:
        within(weights, alike / alike.sum(1, keepdim=True), (w.K + 4) * w.u)


@given(worlds(noise=(4, 12)))
def test_much_noise_makes_all_memories_equal(w):
    "Exponents differ by reach · spread / v: so much, relatively, do weights differ from 1/K."
    differ = w.reach * w.spread / w.v + w.spread**2 / w.v + 2 * w.exponent()
    assume((differ < 0.5).all())
    tolerance = torch.expm1(2 * differ) + (2 * w.K + 6) * w.u
    weights = posterior_weights(*w.given).double()
    within(w.K * weights.amax(1), torch.ones(6), tolerance)
    within(w.K * weights.amin(1), torch.ones(6), tolerance)
    within(weights @ w.xi.double(), w.xi.double().mean(0).expand(6, -1),
           tolerance * w.spread + 4 * (w.K + 4) * w.u * w.size)


@given(worlds(d=2, K=12, dtype=DOUBLE, noise=(-3, 3), kinds=("cloud", "copies", "line", "lattice")))
def test_density_has_mass_one(w):
    """Trapezoidal rule, half a standard deviation between points: its error is of order e^-8π²
    = 1e-34, a margin of eight leaves 1e-15 outside. So only log p's rounding counts."""
    std = math.sqrt(w.v)
    low, high = w.xi.amin(0) - 8 * std, w.xi.amax(0) + 8 * std
    n = ((high - low) / (std / 2)).ceil().long() + 1
    assume(n.prod() < 200_000)
    axes = [a + std / 2 * torch.arange(m, dtype=torch.float64) for a, m in zip(low, n.tolist())]
    points = torch.cartesian_prod(*axes).reshape(-1, w.d)
    mass = marginal_logp(points, w.t, w.xi, w.sigma).exp().sum() * (std / 2)**w.d
    grid = World(points, w.xi, w.t, w.sigma, w.kind, w.unit)
    assert abs(mass - 1) < 1e-14 + 2 * grid.logp().max()


@given(worlds(K=1))
def test_one_memory_is_a_normal_distribution(w):
    x, mean = w.x.double(), w.xi.double()
    exact = torch.distributions.Normal(mean, math.sqrt(w.v)).log_prob(x).sum(1)
    within(marginal_logp(*w.given), exact, 2 * w.logp())
    within(marginal_score(*w.given), (mean - x) / w.v, w.score())
    assert (posterior_weights(*w.given) == 1).all()


@given(worlds(), st.integers(2, 5))
def test_effective_number_counts_copies(w, copies):
    "So many copies of all memories count so many times."
    weights = posterior_weights(*w.given)
    many = weights.repeat(1, copies) / copies
    ratio = effective_number(many).double() / (copies * effective_number(weights).double())
    within(ratio, torch.ones(6), 4 * (copies * w.K + 4) * w.u)


@given(worlds())
def test_squared_distances_do_not_depend_on_the_formula(w):
    plain = torch.cdist(w.x.double(), w.xi.double(), compute_mode=PLAIN).square()
    found = squared_distances(w.x, w.xi)
    assert (found >= 0).all()
    off = (found - plain).abs().amax(1)
    within(off, 0 * off, (w.d + 8) * w.u * w.reach**2)


@given(decades(-6, 6), decades(-12, 0), BOTH)
def test_terms_of_the_noise_process(sigma, t, dtype):
    "2 β_t σ²t = 1 and g = σ: five roundings."
    sde, u = VESDETerms(sigma), torch.finfo(dtype).eps / 2
    t = torch.tensor(t, dtype=dtype)
    std, beta = sde.marginal_prob_std(t).double(), sde.inverse_temperature(t).double()
    assert abs(2 * beta * std**2 - 1) <= 8 * u
    assert abs(sde.diffusion_coeff(t).double() * t.double().sqrt() / std - 1) <= 8 * u


# Energies: any β, from 1e-9 to 1e9 over the square of the memories' unit; always in double


@st.composite
def networks(draw, **limits):
    "A world with β in place of noise; energies are computed in double, whatever comes."
    w = draw(worlds(noise=(0, 0), **limits))
    beta = 10.**draw(st.floats(-9, 9)) / w.unit**2
    return w, beta


def energy_error_of(w, beta):
    "Errors of E: of x·ξ and |x|², sums of d; of log K / β; handing it back in its own precision."
    double, top = 2**-53, w.sizes**2
    rounding = (w.d + 10) * top + (2 * w.K + 4 + 4 * math.log(w.K)) / beta
    return double * rounding + w.u * (2 * top + math.log(w.K) / beta)


@given(networks(), SEEDS)
def test_energies_under_turns_and_other_units(case, seed):
    "Turned: rounded once in the points' precision. In units of a power of two: every digit stays."
    w, beta = case
    q = turn(seeded(seed), w.d)
    x, xi = ((a.double() @ q).to(a) for a in (w.x, w.xi))
    moved = (w.u + 3 * w.d**1.5 * 2**-53) * w.sizes
    for f in hopfield_energy, dense_am_energy:
        tolerance = 2 * energy_error_of(w, beta) + 4 * moved * w.sizes
        within(f(x, xi, beta), f(w.x, w.xi, beta), tolerance)
        assert same(f(4 * w.x, 4 * w.xi, beta / 16), 16 * f(w.x, w.xi, beta))


@given(networks())
def test_energies_between_their_limits(case):
    """For any β: max ≤ β⁻¹ log Σ exp(β ·) ≤ max + log K / β, of x·ξ and of -D². So for β → ∞ only
    the nearest counts; times β, for β → 0, all count alike."""
    w, beta = case
    x, xi = w.x.double(), w.xi.double()
    tolerance = 2 * energy_error_of(w, beta)
    for f, top in [
        (hopfield_energy, x.square().sum(1) / 2 - (x @ xi.T).amax(1)),
        (dense_am_energy, torch.cdist(x, xi, compute_mode=PLAIN).square().amin(1)),
    ]:
        found = f(w.x, w.xi, beta).double()
        assert (found <= top + tolerance).all()
        assert (found >= top - math.log(w.K) / beta - tolerance).all()


@given(networks(dtype=DOUBLE))
def test_energies_at_no_temperature_difference(case):
    "β → 0: E + log K / β is |x|²/2 - x·mean, or the mean squared distance, but for β Var / 2."
    w, beta = case
    x, xi = w.x, w.xi
    for f, exponent, rest in [
        (hopfield_energy, x @ xi.T, x.square().sum(1) / 2),
        (dense_am_energy, -torch.cdist(x, xi, compute_mode=PLAIN).square(), 0 * x[:, 0]),
    ]:
        mean = exponent.mean(1)
        far = (exponent - mean[:, None]).abs().amax(1)
        small = beta * far < 0.5
        # log mean e^y of y with mean 0 and |y| ≤ 1/2 lies between 0 and the mean of y²
        gap = f(x, xi, beta) + math.log(w.K) / beta - (rest - mean)
        bound = beta * far**2 + 2 * energy_error_of(w, beta)
        assert (gap.abs() <= bound)[small].all()


@given(networks(), st.floats(1, 1000))
def test_energies_rise_with_beta(case, factor):
    "β⁻¹ log Σ exp(β ·) is the log of a norm of order β: it falls."
    w, beta = case
    tolerance = energy_error_of(w, beta) + energy_error_of(w, factor * beta)
    for f in hopfield_energy, dense_am_energy:
        rise = f(w.x, w.xi, factor * beta).double() - f(w.x, w.xi, beta).double()
        assert (rise >= -tolerance).all()


@given(worlds())
def test_log_p_is_minus_beta_times_the_diffusion_energy(w):
    "Up to log K + d/2 log 2πσ²t (4.5); E is good to its own rounding, times β in nats."
    constant = math.log(w.K) + w.d / 2 * math.log(2 * math.pi * w.v)
    energy = diffusion_energy(*w.given).double()
    nats = energy / (2 * w.v) + constant
    handed = w.u * (w.reach**2 / (2 * w.v) + math.log(w.K))
    within(-marginal_logp(*w.given).double(), nats, 2 * w.logp() + 2 * handed)


@given(networks(kinds=("sphere",)))
def test_on_equal_norms_both_energies_are_one(case):
    "E^AM(x; β/2) = 2 E^MHN(x; β) + |ξ|² (4.12); norms are equal but for the memories' rounding."
    w, beta = case
    xi = w.xi.double()
    norms = xi.square().sum(1)
    uneven = (norms - norms.mean()).abs().max()
    tolerance = 4 * energy_error_of(w, beta / 2) + 2 * uneven
    both = 2 * hopfield_energy(w.x, w.xi, beta).double() + norms.mean()
    within(dense_am_energy(w.x, w.xi, beta / 2), both, tolerance)


@given(networks())
def test_forces_are_minus_the_gradients_of_energies(case):
    """Update minus state, and 2σ²t times the score. Weights are good to twice the error of their
    exponents, in double; the force is handed back in the points' precision."""
    w, beta = case
    double = World(w.x.double(), w.xi.double(), 1., math.sqrt(1 / beta), w.kind, w.unit)
    # exponents β x·ξ are rounded where they are, those of distances about the centre
    of_products = 2 * (w.d + 8) * 2**-53 * beta * w.sizes**2
    # autograd takes the logarithm of the sum, rounded like an exponent, for the sum of weights
    for force, energy, exponent in [
        (hopfield_update(w.x, w.xi, beta) - w.x, hopfield_energy, of_products),
        (marginal_score(double.x, 1., double.xi, double.sigma) * 2 / beta,
         lambda x, xi, b: dense_am_energy(x, xi, b / 2), double.exponent()),
    ]:
        rounding = 16 * (w.K + w.d + 8) * 2**-53 * w.sizes + 8 * w.u * w.sizes
        grad = gradient_of(lambda x: energy(x, w.xi, beta), w.x)
        within(-grad, force, 2 * torch.expm1(4 * exponent) * w.sizes + rounding)


@given(networks())
def test_updates_stay_in_the_convex_hull(case):
    "For each direction and state; the update is a sum of K products in double."
    w, beta = case
    directions = torch.nn.functional.normalize(normal(seeded(w.K), 20, w.d))
    new = hopfield_update(w.x, w.xi, beta).double()
    outside = new @ directions.T - (w.xi.double() @ directions.T).amax(0)
    assert (outside <= ((2 * w.K + w.d + 8) * 2**-53 + w.u) * w.size).all()


@given(networks())
def test_every_update_lowers_the_energy_by_half_its_square(case):
    "E(x) - E(x') ≥ |x - x'|²/2: the sum's logarithm is convex. In double, as energies are."
    w, beta = case
    x = w.x.double()
    error = energy_error_of(World(x, w.xi.double(), 1., 1., w.kind, w.unit), beta)
    for _ in range(3):
        new = hopfield_update(x, w.xi, beta)
        fall = hopfield_energy(x, w.xi, beta) - hopfield_energy(new, w.xi, beta)
        # the new state is rounded, too: K products of size |ξ|, where the energy is as steep as
        # the next step is long
        steep = (w.K + 8) * 2**-53 * w.size * w.sizes
        assert (fall - (x - new).square().sum(1) / 2 >= -4 * error - 4 * steep).all()
        x = new


@given(networks(K=100))
def test_recall_lowers_the_energy_and_rests(case):
    """In the hull, not above the cue, and a further step no longer than the last one, times the
    update's largest slope: β spread²."""
    w, beta = case
    tol = 1e-9 * w.unit
    found = retrieve(w.x.double(), w.xi, beta, tol, 300)
    error = energy_error_of(World(w.x.double(), w.xi.double(), 1., 1., w.kind, w.unit), beta)
    fall = hopfield_energy(w.x.double(), w.xi, beta) - hopfield_energy(found.x, w.xi, beta)
    steep = (w.K + 8) * 2**-53 * w.size * w.sizes
    assert (fall >= -4 * found.steps * (error + steep)).all()
    assert ((found.steps >= 1) & (found.steps <= 300)).all()
    assert (found.converged | (found.steps == 300)).all()
    again = (hopfield_update(found.x, w.xi, beta) - found.x).norm(dim=1)
    of_products = 2 * (w.d + 8) * 2**-53 * beta * w.sizes**2
    size = torch.expm1(4 * of_products).clamp(max=2) * w.spread + 4 * (w.K + 8) * 2**-53 * w.size
    slope = max(1., beta * w.spread**2)
    assert (again <= slope * tol + 2 * size)[found.converged].all()


@given(networks(K=100), st.integers(-20, 20))
def test_recall_in_other_units(case, power):
    "A power of two: the same steps, every digit the same. One state alone: the same, too."
    w, beta = case
    a, tol = 2.**power, 1e-7 * w.unit
    here = retrieve(w.x, w.xi, beta, tol, 50)
    there = retrieve(a * w.x, a * w.xi, beta / a**2, a * tol, 50)
    assert same(there.x, a * here.x) and torch.equal(there.steps, here.steps)
    assert torch.equal(there.converged, here.converged)


@given(networks(K=1))
def test_one_memory_is_recalled_in_two_steps(case):
    "Whatever the cue; the second step finds that there is none to take."
    w, beta = case
    found = retrieve(w.x, w.xi, beta, 1e-9 * w.unit)
    assert torch.equal(found.x, w.xi.expand(6, -1)) and found.converged.all()
    assert (found.steps <= 2).all()


@given(st.floats(-0.99, 0.99), decades(-6, 6), st.integers(1, 64), SEEDS)
def test_fixed_points_of_a_contraction(slope, unit, d, seed):
    "x → c + slope (x - c) stops within tol |slope| / (1 - |slope|) of c, in the steps it needs."
    g = seeded(seed)
    c, x = unit * normal(g, d), unit * normal(g, 5, d)
    tol = 1e-6 * unit
    found = fixed_points(lambda x: c + slope * (x - c), x, tol, 5000)
    assert found.converged.all()
    rounding = 8 * 2**-53 * (c.norm() + x.norm()) / (1 - abs(slope))
    within(found.x, c.expand(5, -1), tol * abs(slope) / (1 - abs(slope)) + rounding)
    first = (1 - slope) * (x - c).norm(dim=1)  # the k-th step is so long, times |slope|^(k-1)
    needed = torch.log(first / tol) / -math.log(max(abs(slope), 1e-300)) + 1
    assert (found.steps <= needed.ceil().clamp_min(1) + 1).all()


# The circle


@st.composite
def rings(draw):
    g = seeded(draw(SEEDS))
    angle, R = 2 * math.pi * torch.rand(20, generator=g).double(), draw(decades(-6, 3))
    R = R * torch.rand(20, generator=g).double()
    return torch.stack([R * angle.cos(), R * angle.sin()], 1), draw(decades(-6, 6))


def ring_error(x, beta):
    "(R-1)², and the logarithm of a Bessel function, below one for small z, divided by β."
    R = x.norm(dim=1)
    return 40 * 2**-53 * ((R + 1)**2 + (1 + torch.log1p(2 * beta * R)) / beta)


@given(rings(), SEEDS)
def test_the_ring_looks_alike_from_everywhere(ring, seed):
    "Turned states: R moves by some roundings, the energy by its slope, at most 2 R + 2, times it."
    x, beta = ring
    q = turn(seeded(seed), 2)
    off = 30 * 2**-53 * x.norm(dim=1)
    slope = 2 * x.norm(dim=1) + 2
    tolerance = 2 * ring_error(x, beta) + off * slope
    within(energy_am(x @ q, beta, False), energy_am(x, beta, False), tolerance)
    steep = off * (2 + 2 * beta) + 80 * 2**-53 * slope  # |∇∇E| ≤ 2 + 2β
    within(score_am(x @ q, beta), score_am(x, beta) @ q, steep)
    R, score = x.norm(dim=1, keepdim=True), score_am(x, beta)
    across = (score[:, 0] * x[:, 1] - score[:, 1] * x[:, 0]).abs()
    within(across, 0 * across, 4 * 2**-53 * score.norm(dim=1) * R[:, 0])  # straight in or out


@given(rings(), st.floats(1, 1000))
def test_the_ring_lies_between_its_limits(ring, factor):
    """Between the nearest point's (R-1)² (β → ∞) and the mean R² + 1 (β → 0), and falling in β:
    a mean of order -β of squared distances."""
    x, beta = ring
    R, error = x.norm(dim=1), ring_error(x, beta)
    energy = energy_am(x, beta, False)
    assert ((R - 1)**2 <= energy + error).all() and (energy <= R**2 + 1 + error).all()
    colder = energy_am(x, factor * beta, False)
    assert (colder <= energy + error + ring_error(x, factor * beta)).all()
    shifted = energy_am(x, beta)
    assert shifted.min() == 0
    within(shifted, energy - energy.min(), 0)


@given(rings())
def test_score_of_the_ring_is_minus_the_gradient(ring):
    "β of the autograd's terms is log i0e over β; the ratio of Bessel functions is good to some u."
    x, beta = ring
    grad = gradient_of(lambda y: energy_am(y, beta, False), x)
    within(-grad, score_am(x, beta), 80 * 2**-53 * (x.norm(dim=1) + 1))


@given(st.floats(0.01, 40), st.integers(150, 400), SEEDS)
def test_many_even_memories_are_the_ring(beta, K, seed):
    """The energy and force of K even memories differ from the ring's by 2 I_K(z) / I_0(z) at most,
    z = 2βR (6.10), plus rounding."""
    g = seeded(seed)
    x = 1.5 * torch.rand(20, 2, generator=g).double() / math.sqrt(2)
    angle = 2 * math.pi * torch.arange(K, dtype=torch.float64) / K
    xi = torch.stack([angle.cos(), angle.sin()], 1)
    z = (2 * beta * x.norm(dim=1)).numpy()
    ripple = torch.from_numpy(4 * ive(K, z) / ive(0, z))
    even = dense_am_energy(x, xi, beta) + math.log(K) / beta
    rounding = 2**-53 * (40 * 6.25 + (2 * K + 40 + 8 * math.log(K)) / beta)
    within(even, energy_am(x, beta, False), ripple / beta + rounding)
    score = marginal_score(x, 1., xi, math.sqrt(1 / (2 * beta))) / beta
    # derivatives of cos Kφ and I_K: K/R times the ripple
    steep = 2 * K * ripple / (beta * x.norm(dim=1))
    within(score, score_am(x, beta), steep + 2**-53 * (8 * K + 60) * (1 + 6.25 * beta) * 4)


# Samplers: the noise is transformed as the memories are


class Rotated:
    "`torch.randn` with every row turned by an orthogonal matrix."

    def __init__(self, q):
        self.q, self.plain = q, torch.randn

    def __call__(self, *args, **kwargs):
        z = self.plain(*args, **kwargs)
        return (z.double() @ self.q).to(z)


@st.composite
def walks(draw, least):
    "Memories in double, σ over twelve decades in their units, and a few falling times."
    w = draw(worlds(K=50, dtype=DOUBLE, noise=(0, 0)))
    eps = draw(decades(-5, -0.05))
    steps = draw(st.integers(1, 8))
    wide = max(w.spread, 1e-6 * w.unit)
    sigma = wide * math.sqrt(draw(decades(*least)) / (eps if least[0] > -3 else 1))
    return w, sigma, time_grid(steps, eps).double(), draw(SEEDS)


def walk_of(kind, xi, sigma, times, seed):
    "All states of a walk from the exact density, with the exact score."
    g, sde = seeded(seed), VESDETerms(sigma)
    score = lambda x, t: marginal_score(x, t, xi, sigma)
    x = marginal_sample(4, 1., xi, sigma, g)
    walk = reverse_sde(score, sde, x, times, g) if kind else probability_flow(score, sde, x, times)
    return torch.stack(list(walk))


@given(walks((-8, 8)), st.integers(-30, 30), st.booleans())
def test_samplers_in_other_units(case, power, kind):
    "Memories and σ times a power of two: every digit of every state the same."
    w, sigma, times, seed = case
    a = 2.**power
    here, there = (walk_of(kind, b * w.xi, b * sigma, times, seed) for b in (1., a))
    assert same(there, a * here)


@given(walks((-1, 4)), st.booleans())
def test_samplers_turn_and_move_with_their_memories(case, kind):
    """Rounding of a step: that of a mean and of the states. A step stretches differences by
    max(1, L)'s power, L = spread²/v the largest slope of the posterior mean."""
    w, sigma, times, seed = case
    g = seeded(seed)
    q, shift = turn(g, w.d), 10 * w.unit * normal(g, w.d)
    here = walk_of(kind, w.xi, sigma, times, seed)
    with patch.object(torch, "randn", Rotated(q)):
        there = walk_of(kind, w.xi @ q + shift, sigma, times, seed)
    v = sigma**2 * times
    slope = (w.spread**2 / v[1:]).clamp_min(1)
    stretch = (slope * (v[:-1] / v[1:]).log()).sum().exp() * slope[-1]
    assume(stretch < 1e6)
    worst = World(here.reshape(-1, w.d), w.xi, times[-1].item(), sigma, w.kind, w.unit)
    large = worst.sizes.max() + shift.norm()
    moved = (1 + 4 * w.d**1.5) * 2**-53 * large
    step = worst.mean(moved).max() + 2 * moved + 16 * 2**-53 * large
    within((here @ q + shift).reshape(-1, w.d), there.reshape(-1, w.d),
           4 * len(times) * stretch * step)


@given(walks((-8, 8)), st.booleans())
def test_walks_end_in_the_convex_hull(case, kind):
    "Their last state is a posterior mean: x + v · score, which rounds numbers of the size of x."
    w, sigma, times, seed = case
    states = walk_of(kind, w.xi, sigma, times, seed)
    assert states.shape == (len(times) + 1, 4, w.d) and states.isfinite().all()
    directions = torch.nn.functional.normalize(normal(seeded(seed), 20, w.d))
    outside = states[-1] @ directions.T - (w.xi @ directions.T).amax(0)
    size = states[-2].norm(dim=1, keepdim=True) + w.size
    assert (outside <= (2 * w.K + w.d + 16) * 2**-53 * size).all()


@given(walks((-8, 8)))
def test_neighbours_on_a_walk_do_not_meet(case):
    "The flow of each state does not depend on the company: one alone goes the same way."
    w, sigma, times, seed = case
    score = lambda x, t: marginal_score(x, t, w.xi, sigma)
    x = marginal_sample(4, 1., w.xi, sigma, seeded(seed))
    flow = lambda x: torch.stack(list(probability_flow(score, VESDETerms(sigma), x, times)))
    v = sigma**2 * times
    slope = (w.spread**2 / v[1:]).clamp_min(1)
    stretch = (slope * (v[:-1] / v[1:]).log()).sum().exp() * slope[-1]
    assume(stretch < 1e6)
    together, alone = flow(x), torch.cat([flow(x[i:i + 1]) for i in range(4)], 1)
    worst = World(together.reshape(-1, w.d), w.xi, times[-1].item(), sigma, w.kind, w.unit)
    step = worst.mean().max() + 16 * 2**-53 * worst.sizes.max()
    within(together.reshape(-1, w.d), alone.reshape(-1, w.d), 4 * len(times) * stretch * step)


@given(worlds(K=20, d=8, noise=(-4, 4)), st.integers(-10, 10), st.booleans())
def test_the_sampler_in_other_units(w, power, knows):
    "With the exact start or the matched Gaussian's: a power of two changes no digit."
    def samples(a):
        xi, sigma = a * w.xi.float(), a * w.sigma * math.sqrt(w.t)
        score = partial(marginal_score, patterns=xi, sigma=sigma)
        score.input_dim = w.d
        score.data_mean, score.data_cov = moments(xi)
        start = dict(patterns=xi) if knows else {}
        return Euler_Maruyama_sampler(
            score, VESDETerms(sigma), 5, 4, "cpu", 1e-3, generator=seeded(w.K), **start)
    assert same(samples(2.**power), 2.**power * samples(1.))


@given(st.integers(1, 1000), decades(-12, -0.01), st.integers(2, 5))
def test_grids_of_times_nest(n, eps, finer):
    "From 1 down to eps, even in the fifth root, and every time of a grid is on each finer one."
    times, fine = time_grid(n, eps), time_grid(finer * n, eps)
    assert times[0] == 1 and (times.diff() < 0).all() and len(times) == n + 1
    # in double, linspace and eps**0.2 are good to some roundings, of numbers up to one
    root = 2**-24 + 5 * 8 * 2**-53 / times.double().pow(0.2)
    within(fine[::finer].double() / times, torch.ones(n + 1), 2 * root)
    even = torch.linspace(1, eps**0.2, n + 1, dtype=torch.float64)**5
    within(times.double() / even, torch.ones(n + 1), root)
    assert abs(times[-1] / eps - 1) <= root[-1]


# What samples tell


@given(worlds(d=8, K=40, kinds=("cloud", "copies", "lattice", "sphere", "line")), SEEDS)
def test_shares_are_shares(w, seed):
    "They sum to one, in any order of samples and memories; memories as samples miss none."
    g = seeded(seed)
    xi = w.xi / w.unit
    x = xi[torch.randint(w.K, (60,), generator=g)] + 0.3 * normal(g, 60, w.d).to(xi)
    found = memory_shares(x, xi)
    one = (w.K + 60) * 2**-23  # shares are single precision
    assert abs(found["shares"].sum() - 1) < one and abs(found["expected"].sum() - 1) < one
    assert 0 <= found["total_variation"] <= 1 + one and 0 <= found["p_value"] <= 1
    other = memory_shares(x[torch.randperm(60, generator=g)], xi[torch.randperm(w.K, generator=g)])
    assert torch.equal(*(r["shares"].sort().values for r in (found, other)))
    for name in "total_variation", "p_value", "distance", "floor":
        assert abs(found[name] - other[name]) <= 1e3 * one * max(1, found[name])
    themselves = memory_shares(xi, xi)
    assert themselves["distance"] == 0
    assert themselves["total_variation"] < one and themselves["p_value"] > 1 - 1e-3


@given(worlds(d=8, K=60, dtype=DOUBLE), decades(-5, 1), st.integers(-20, 20), SEEDS)
def test_merging_memories(w, distance, power, seed):
    "Groups of single linkage; the centre of all stays; units, order and copies do not matter."
    distance = distance * w.unit
    places, share = merge_patterns(w.xi, distance)
    tolerance = 4 * (w.K + 4) * w.u * w.size
    within(share @ places, w.xi.mean(0), tolerance)
    within(share.sum()[None], torch.ones(1), (w.K + 4) * w.u)
    apart = torch.cdist(w.xi, w.xi, compute_mode=PLAIN)
    assume(((apart / distance - 1).abs() > 1e-12).all())  # no pair on the edge
    assert len(places) == connected_components((apart <= distance).numpy())[0]
    a = 2.**power
    scaled = merge_patterns(a * w.xi, a * distance)
    assert torch.equal(scaled[0], a * places) and torch.equal(scaled[1], share)
    order = torch.randperm(2 * w.K, generator=seeded(seed))
    again, same = merge_patterns(w.xi.repeat(2, 1)[order], distance)
    assert len(again) == len(places)
    within(same.sort().values, share.sort().values, 4 * w.u)
    nearest = torch.cdist(again, places, compute_mode=PLAIN).amin(1)
    assert (nearest <= 2 * tolerance).all()
    assert len(merge_patterns(w.xi, 2 * distance)[0]) <= len(places)


@given(worlds(K=100), SEEDS)
def test_moments_move_with_the_memories(w, seed):
    "Mean and covariance of turned and shifted memories; means of K, products of differences."
    q = turn(seeded(seed), w.d)
    shift = 10 * w.unit * normal(seeded(seed), w.d)
    mean, cov = (m.double() for m in moments(w.xi))
    xi = (w.xi.double() @ q + shift).to(w.xi)
    there, turned = (m.double() for m in moments(xi))
    # each entry of a mean is off by K roundings of its size
    off = math.sqrt(w.d) * (w.K + 4 + 3 * w.d**1.5) * w.u * (w.size + shift.norm())
    within(there[None], (mean @ q + shift)[None], 2 * off)
    error = 4 * off * (w.spread + off) + 2 * w.d * (w.K + w.d) * w.u * w.spread**2
    within(turned, q.T @ cov @ q, error)
    assert torch.equal(*(moments(w.xi)[1], moments(w.xi)[1].T))
    assert torch.linalg.eigvalsh(cov)[0] >= -error


@given(worlds(K=100, dtype=DOUBLE, noise=(-4, 4)))
def test_the_matched_gaussian_has_the_moments_of_the_density(w):
    "Mean and covariance of the memories, plus noise; eigenvectors are good to d roundings."
    mean, cov = moments(w.xi)
    sigma = w.sigma * math.sqrt(w.t)
    score = partial(marginal_score, patterns=w.xi, sigma=sigma)
    score.data_mean, score.data_cov = mean, cov
    q = matched_gaussian(score, VESDETerms(sigma), w.xi)
    error = 16 * w.d**1.5 * 2**-53 * (w.spread**2 + sigma**2)
    within(q.mean[None], mean[None], 0)
    within(q.covariance_matrix, cov + sigma**2 * torch.eye(w.d).double(), error)
    if w.K == 1:
        there = World(w.x, w.xi, 1., sigma, w.kind, w.unit)
        within(q.log_prob(w.x), marginal_logp(w.x, 1., w.xi, sigma), 40 * w.d * there.logp())


# Decisions


@given(worlds(d=16, K=40), st.integers(-20, 20))
def test_decisions_within_their_bounds_and_in_any_unit(w, power):
    "1/K ≤ E Σw² ≤ 1, 0 ≤ E H ≤ log K, E Σw² ≥ exp(-E H) (Jensen, twice); and powers of two."
    given = w.t, w.xi, w.sigma
    sure, nats, size = (f(*given, n=50)[0] for f in (agreement, open_nats, effective_dimension))
    u = 2**-53 * (4 * w.K + 16)
    assert 1 / w.K - u <= sure <= 1 + u and -u <= nats <= math.log(w.K) + u * (1 + math.log(w.K))
    assert sure >= math.exp(-nats) - 2 * u and size >= 0
    there = w.t, 2.**power * w.xi, 2.**power * w.sigma
    for f, value in (agreement, sure), (open_nats, nats), (effective_dimension, size):
        assert f(*there, n=50)[0] == value


@given(worlds(d=16, K=12, dtype=DOUBLE), st.integers(2, 4))
def test_copies_cannot_be_told_apart(w, copies):
    "Each memory so many times over, one after the other: the weights of each are so many parts."
    v = w.sigma**2 * w.t
    x = marginal_sample(50, w.t, w.xi, w.sigma, seeded())
    plain = posterior_weights(x, w.t, w.xi, w.sigma)
    many = posterior_weights(x, w.t, w.xi.repeat_interleave(copies, 0), w.sigma)
    there = World(x, w.xi, w.t, w.sigma, w.kind, w.unit)
    off = (many.reshape(50, w.K, copies) - plain[..., None] / copies).abs().sum((1, 2))
    within(off, 0 * off, 4 * there.weights())
    entropy = lambda p: torch.special.entr(p).sum(1)
    # -p log p moves by |log p| per unit of p: weights below e^-60 count for nothing
    within(entropy(many), entropy(plain) + math.log(copies),
           4 * there.weights() * 60 + 64 * w.K * copies * math.exp(-60) + 4 * w.K * w.u)
    assert v > 0


# Maps: minima, energies, grids


@st.composite
def maps(draw):
    "Energies of all sizes on a grid, no two alike, or few levels with many ties."
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(SEEDS))
    return rng.permutation(shape[0] * shape[1]).reshape(shape).astype(float)


@given(maps(), st.booleans(), st.integers(-20, 20), st.integers(0, 11))
def test_minima_of_a_map_in_other_forms(e, wrap, power, shift):
    "Upside down, mirrored, rolled around, in other units, with a constant: the same minima."
    where, barrier = grid_minima(e, wrap)
    heights = lambda e, where: e[tuple(where.T)].tolist()
    found = heights(e, where), barrier.tolist()
    assert barrier[0] == math.inf and (barrier > 0).all() and e.min() == found[0][0]
    assert found[0] == sorted(found[0]) and len(set(found[0])) == len(found[0])
    a, moved = 2.**power, np.roll(e, shift, 1) if wrap else e.T
    mirrored = (e[::-1], 1, 0), (e[:, ::-1], 1, 0), (moved, 1, 0)
    for other, unit, off in (a * e + 7 * a, a, 7), *mirrored:
        there, climb = grid_minima(other, wrap)
        assert heights(other, there) == [unit * (h + off) for h in found[0]]
        assert climb.tolist() == [unit * b for b in found[1]]


@given(maps(), st.booleans())
def test_every_minimum_is_lower_than_its_neighbours_and_no_other_is(e, wrap):
    "Counted by hand, with eight neighbours."
    n, m = e.shape
    padded = np.pad(e, 1, constant_values=np.inf)
    if wrap:
        padded[1:-1, 0], padded[1:-1, -1] = e[:, -1], e[:, 0]
    around = [padded[1 + i:1 + i + n, 1 + j:1 + j + m] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    lowest = np.min(around, 0) == e
    found = np.zeros_like(lowest)
    found[tuple(grid_minima(e, wrap)[0].T)] = True
    assert (found == lowest).all()
    assert len(grid_minima(e.round(-1), wrap)[1]) >= 1  # many ties


@given(st.integers(1, 6), decades(-3, 0.5), st.integers(-20, 20), SEEDS)
def test_minima_in_other_units(K, v, power, seed):
    "A map and its grid times a power of two: the same minima, of the same barriers."
    xi, a = normal(seeded(seed), K, 2), 2.**power
    X, Y, points = plane_grid(21, 4)
    grid = torch.stack([X, Y], -1).double()
    energy = -marginal_logp(grid, 1., xi, math.sqrt(v))
    for step in None, lambda b: lambda x: hopfield_update(x, b * xi, 1 / (b * b * v)):
        here, there = (find_minima(energy, b * grid, step and step(b), tol=b * 1e-6, max_steps=50)
                       for b in (1., a))
        assert same(there.x, a * here.x) and torch.equal(there.barrier, here.barrier)
        assert (here.barrier[1:] >= 0.3).all() and here.barrier[0] == math.inf


@given(worlds(d=3, K=20, noise=(-2, 2)), st.integers(-8, 8))
def test_energies_of_a_map_and_their_error(w, shift):
    "A constant is no error; the lowest is zero; the error is symmetric in sign and scales."
    logp = marginal_logp(*w.given).double()
    energy = to_energy(logp)
    assert energy.min() == 0 and torch.equal(to_energy(logp, False), -logp)
    rounding = 8 * 2**-53 * (logp.abs().max() + abs(shift) + 1)
    within(to_energy(logp + shift), energy, rounding)
    assert energy_error(energy + shift, energy) <= rounding
    low = energy <= 6
    bump = low.double() * torch.arange(6)
    wanted = (bump - (energy + bump).min())[low].square().mean().sqrt()
    assert abs(energy_error(energy + bump, energy) - wanted) <= rounding


@given(st.integers(1, 500), decades(-6, 6), SEEDS)
def test_circles_of_any_radius(n, radius, seed):
    "Points have the radius, and are those of the unit circle times it; polar coordinates return."
    points = generate_circle_data(n, radius, seed)
    unit = generate_circle_data(n, 1, seed)
    assert (points == radius * unit).all() and points.shape == (n, 2)
    R, angle = cartesian_to_polar(points)
    assert (abs(R / radius - 1) <= 4 * 2**-53).all() and (abs(angle) <= math.pi).all()
    back = np.stack([R * np.cos(angle), R * np.sin(angle)], 1)
    assert (np.linalg.norm(back - points, axis=1) <= 8 * 2**-53 * radius).all()


@given(st.integers(1, 300), st.integers(1, 300), SEEDS)
def test_subsets_grow_with_their_size(a, b, seed):
    "Without replacement, each within the next larger one."
    n = 300
    few, many = (create_subset(range(n), k, seed).indices for k in sorted((a, b)))
    assert len(set(many)) == len(many) == max(a, b) and few == many[:len(few)]
    assert min(many) >= 0 and max(many) < n


@given(st.integers(1, 60), decades(-6, 6))
def test_grids_of_the_plane_are_even(n, bound):
    "Symmetric about the origin, in steps of 2 bound / (n - 1), to a few roundings in single."
    X, Y, points = plane_grid(n, bound)
    assert torch.equal(X, Y.T) and torch.equal(points, torch.stack([X.ravel(), Y.ravel()], 1))
    axis = X[:, 0].double()
    even = torch.linspace(-1, 1, n, dtype=torch.float64) * bound
    within(axis, even, 4 * 2**-24 * bound)
    within(axis, -axis.flip(0) if n > 1 else even, 4 * 2**-24 * bound)


# The whole chain


@pytest.mark.parametrize("d", [1, 3, 10])
def test_whole_chain_in_any_dimension(d):
    "Two distant memories in d dimensions: learned in 300 steps, sampled, each getting its share."
    xi = torch.stack([torch.ones(d), -torch.ones(d)]) / math.sqrt(d)
    sde, g = VESDETerms(2.0), torch.Generator().manual_seed(0)
    model = train_loop(xi, sde, 300, seed=0, device="cpu")
    assert score_error(model, xi, 2.0) < 0.1 * d
    with torch.no_grad():
        *_, x = reverse_sde(model, sde, marginal_sample(500, 1.0, xi, 2.0, g), time_grid(60), g)
    assert memory_shares(x, xi)["p_value"] > 1e-4


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_models_move(device):
    "A network trained anywhere gives the same scores here, to rounding of scores of order ten."
    xi = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    model = train_loop(xi, VESDETerms(1.0, device), 5, seed=0, device=device)
    x, t = torch.randn(20, 2), 0.1 + 0.9 * torch.rand(20)
    with torch.no_grad():
        there = model(x.to(device), t.to(device)).cpu()
    with torch.no_grad():
        torch.testing.assert_close(model.cpu()(x, t), there, rtol=1e-4, atol=1e-4)
