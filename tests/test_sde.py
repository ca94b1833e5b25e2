"""The noise process and the exact density, score and weights of noised memories."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.func import grad, hessian, jacrev, vmap

from amtutorial.circle import energy_am, score_am
from amtutorial.core import by_rows
from amtutorial.data import circle_patterns, plane_grid
from amtutorial.hopfield import dense_am_energy, diffusion_energy, hopfield_energy
from amtutorial.retrieval import hopfield_update
from amtutorial.sde import (
    T_MIN,
    VESDETerms,
    effective_number,
    marginal_logp,
    marginal_sample,
    marginal_score,
    posterior_mean,
    posterior_weights,
    squared_distances,
)
from helpers import refused

nine = circle_patterns(9).double()


def draws(seed, *shape):
    "Normal numbers of double precision."
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def times(seed, *shape):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=g, dtype=torch.float64)


# The process


def test_terms():
    sde = VESDETerms(2.)
    assert_allclose(sde.marginal_prob_std(0.25), 1., rtol=0, atol=1e-6)
    assert torch.equal(sde.diffusion_coeff(torch.rand(3)), torch.full((3,), 2.))
    t = times(0, 5)
    product = 2 * sde.inverse_temperature(t) * sde.marginal_prob_std(t)**2  # 2 β σ² t = 1
    assert_allclose(product, torch.ones(5), rtol=0, atol=1e-12)
    assert_allclose(sde.inverse_temperature(0.15), 1 / 1.2, rtol=0, atol=1e-6)
    assert T_MIN == 1e-5


def test_terms_keep_kind_and_place():
    "Numbers and integers become float32; tensors keep their precision and their gradient."
    sde = VESDETerms(0.7, "cpu")
    assert sde.device == torch.device("cpu")
    assert sde.marginal_prob_std(1).dtype == sde.diffusion_coeff(1).dtype == torch.float32
    assert sde.marginal_prob_std(torch.tensor([1, 1])).dtype == torch.float32
    t = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
    std = sde.marginal_prob_std(t)
    assert std.dtype == torch.float64
    std.backward()
    assert_allclose(t.grad, [0.7], rtol=1e-12)  # d σ√t / dt = σ / 2√t
    assert sde.marginal_prob_std([0.04, 1.]).shape == (2,)


def test_bad_terms_are_refused():
    assert refused(VESDETerms, 0.) == "ValueError: sigma_max must be finite and above 0, not 0"
    message = refused(VESDETerms, 1., "abacus")
    assert message.startswith("ValueError: device 'abacus' is not available here; available: cpu")
    sde = VESDETerms(2.)
    message = refused(sde.marginal_prob_std, -1)
    assert message == "ValueError: t must be at least 0, not -1.0"
    assert refused(sde.diffusion_coeff, -0.1).startswith("ValueError: t must be at least 0")


def test_walks_have_the_variance_of_the_solution():
    "20,000 paths in 100 steps; the variance of n normal numbers has relative deviation √(2/n)."
    g = torch.Generator().manual_seed(0)
    sde, n, steps, start = VESDETerms(2.), 20_000, 100, circle_patterns(9)[3]
    dw = torch.randn(steps, n, 2, generator=g) / math.sqrt(steps)
    paths = start + sde.diffusion_coeff(0.5) * dw.cumsum(0)
    for t in 0.04, 0.25, 1.:
        var = (paths[round(t * steps) - 1] - start).square().mean().item()
        exact = sde.marginal_prob_std(t).item()**2
        assert abs(var / exact - 1) < 4 * math.sqrt(2 / (2 * n))


# Distances and blocks


@pytest.mark.parametrize("d", [1, 2, 8, 9, 300])
def test_squared_distances(d):
    x, xi = draws(d, 7, d), draws(d + 1, 5, d)
    plain = (x[:, None] - xi).square().sum(-1)
    assert_allclose(squared_distances(x, xi), plain, rtol=0, atol=1e-10)
    assert (squared_distances(xi, xi) >= 0).all()


def test_blocks_of_rows_change_nothing():
    x, xi = draws(2, 1000, 2).float(), draws(3, 50, 2).float()
    blocks = by_rows(lambda a: squared_distances(a, xi), xi, x, limit=333)
    assert torch.equal(blocks, squared_distances(x, xi))


@pytest.mark.parametrize("d", [2, 20])
def test_many_memories_and_points(d):
    "What is computed in blocks is what single points give, with the same gradients."
    K = 3000
    xi, x, t = draws(4, K, d), draws(5, 700, d), 0.01 + 0.99 * times(6, 700)
    some = [0, 42, 43, 349, 699]  # 42 | 43 is the end of a block of 2^17 // K rows when d is 2
    logp, score = marginal_logp(x, t, xi, 0.8), marginal_score(x, t, xi, 0.8)
    for i in some:
        one = x[i:i + 1], t[i:i + 1], xi, 0.8
        assert_allclose(logp[i], marginal_logp(*one)[0], rtol=0, atol=1e-10)
        assert_allclose(score[i], marginal_score(*one)[0], rtol=1e-10, atol=1e-10)
    moving = x.clone().requires_grad_()
    gradient, = torch.autograd.grad(marginal_logp(moving, t, xi, 0.8).sum(), moving)
    assert (gradient - score).norm() < 1e-12 * score.norm()


# The density


def integral(t, patterns, sigma):
    """Trapezoidal rule: with half a standard deviation between points its error is of order
    exp(-8π²) = 1e-34, and a margin of eight standard deviations leaves 1e-15 outside. So the
    tolerance of 1e-12 below is rounding alone."""
    s = sigma * math.sqrt(t)
    lo, hi = patterns.min(0).values - 8 * s, patterns.max(0).values + 8 * s
    ends = zip(lo.tolist(), hi.tolist())
    axes = [torch.arange(a, b + s / 2, s / 2, dtype=torch.float64) for a, b in ends]
    points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    return (marginal_logp(points, t, patterns, sigma).exp().sum() * (s / 2)**len(axes)).item()


@pytest.mark.parametrize("sigma", [0.5, 1., 2.])
@pytest.mark.parametrize("t", [0.15, 0.05, 0.01])
def test_density_integrates_to_one(sigma, t):
    assert_allclose(integral(t, nine, sigma), 1, rtol=0, atol=1e-12)


def test_density_integrates_to_one_in_one_and_three_dimensions():
    line = torch.tensor([[-1.], [0.3], [2.]]).double()
    assert_allclose(integral(0.15, line, 1.), 1, rtol=0, atol=1e-12)
    assert_allclose(integral(0.3, draws(7, 4, 3), 1.), 1, rtol=0, atol=1e-12)


def test_density_obeys_the_diffusion_equation():
    def p(x, t):
        return marginal_logp(x[None], t, nine, 0.7)[0].exp()

    for i in range(5):
        x, t = draws(8 + i, 2), 0.1 + 0.9 * times(20 + i)
        laplacian = torch.func.hessian(p, 0)(x, t).trace()
        in_time = torch.func.grad(p, 1)(x, t)
        assert_allclose(in_time, 0.5 * 0.7**2 * laplacian, rtol=0, atol=1e-9)


def test_density_of_one_memory_is_a_normal_density():
    x, mean = draws(9, 6, 3), draws(10, 1, 3)
    normal = torch.distributions.Normal(mean, 0.7 * math.sqrt(0.3))
    assert_allclose(marginal_logp(x, 0.3, mean, 0.7), normal.log_prob(x).sum(1), rtol=1e-12)


@pytest.mark.parametrize("d", [2, 64, 784])
@pytest.mark.parametrize("t", [1e-1, 1e-3, 1e-5])
def test_single_precision_near_twins(d, t):
    """Beyond 8 dimensions the squares are multiplied out and nearly cancel; single precision has
    6e-8 of |x|² to offer, which the division by σ²t magnifies: a few roundings of the terms."""
    xi, twin, noise = draws(d, 50, d), draws(d + 1, 50, d), draws(d + 2, 50, d)
    twins = torch.cat([xi, xi + math.sqrt(t / d) * twin]).float()
    x = (xi + math.sqrt(t) * noise).float()
    exact = marginal_logp(x.double(), t, twins.double())
    error = (marginal_logp(x, t, twins) - exact).abs().max().item()
    size = x.double().square().sum(1).max().item() / t if d > 8 else 8 * d * math.log(1 / t)
    assert error < 8 * 2**-24 * size


# Score and weights


@pytest.mark.parametrize("d", [2, 16, 256])
def test_score_is_the_gradient(d):
    "In double precision and with another time for every point; only rounding may differ."
    xi, x, t = draws(d, 20, d), draws(d + 1, 30, d).requires_grad_(), 0.01 + 0.99 * times(d, 30)
    gradient, = torch.autograd.grad(marginal_logp(x, t, xi, 0.8).sum(), x)
    score = marginal_score(x, t, xi, 0.8)
    assert (gradient - score).norm() < 1e-12 * score.norm()


def test_posterior_mean_is_the_read_out():
    "Score, weights and posterior mean are one statement (Tweedie's formula), with sigma off 1."
    x, t, xi = draws(11, 30, 4), 0.01 + 0.99 * times(12, 30), draws(13, 20, 4)
    v = (0.8**2 * t)[:, None]
    mean = posterior_mean(x, v, xi)
    assert_allclose(posterior_weights(x, t, xi, 0.8) @ xi, mean, rtol=0, atol=1e-12)
    assert_allclose(x + v * marginal_score(x, t, xi, 0.8), mean, rtol=0, atol=1e-12)


def test_every_form_of_points_gives_the_same():
    X, Y, points = plane_grid(20)
    on_grid = torch.stack([X, Y], -1)
    score, weights = marginal_score(on_grid, 0.15, nine), posterior_weights(on_grid, 0.15, nine)
    assert score.shape == (20, 20, 2) and weights.shape == (20, 20, 9)
    assert_allclose(weights.sum(-1), torch.ones(20, 20), rtol=0, atol=1e-6)
    logp = marginal_logp(on_grid, 0.15, nine).ravel()
    other = marginal_logp(points.numpy(), torch.full((400,), 0.15), nine.tolist())
    assert_allclose(logp, other, rtol=0, atol=1e-6)
    assert_allclose(marginal_logp(points.tolist(), 0.15, nine), logp, rtol=0, atol=1e-6)
    double = marginal_score(points.double(), 0.15, nine)
    assert_allclose(marginal_score(points, 0.15, nine), double, rtol=0, atol=1e-4)
    by_grid = marginal_logp(on_grid, torch.full((20, 20), 0.15), nine).ravel()
    assert_allclose(by_grid, logp, rtol=0, atol=1e-6)
    assert marginal_logp(points[0], 0.15, nine).shape == ()
    assert marginal_logp(points, 0.15, nine).dtype == torch.float32


def test_bad_input_is_refused():
    points = plane_grid(20)[2]
    finite = "ValueError: sigma must be finite and above 0, not -1"
    for message, f, *args in [
        ("ValueError: t must lie in (0, 1], not 0", marginal_logp, points, 0., nine),
        ("ValueError: t must lie in (0, 1], not 1.5", marginal_logp, points, 1.5, nine),
        ("ValueError: t must lie in (0, 1], not nan", marginal_logp, points, math.nan, nine),
        (finite, marginal_logp, points, 0.1, nine, -1.),
        ("ValueError: x must have 2 coordinates on its last axis, not shape (3, 4)",
         marginal_score, torch.zeros(3, 4), 0.1, nine),
        ("ValueError: x must be finite, but 1 of its 2 values are NaN or infinite",
         marginal_score, [[0., math.nan]], 0.1, nine),
        ("ValueError: t of shape (7,) does not fit points of shape (400, 2)",
         marginal_score, points, torch.full((7,), 0.5), nine),
        ("ValueError: patterns must hold at least one point",
         marginal_score, points, 0.1, torch.zeros(0, 2)),
        ("TypeError: t must be a number or a tensor of numbers",
         posterior_weights, points, "now", nine),
    ]:
        assert refused(f, *args).startswith(message)


def test_effective_number():
    w = torch.tensor([[1., 0, 0, 0], [.5, .5, 0, 0], [.25, .25, .25, .25]])
    assert_allclose(effective_number(w), torch.tensor([1., 2., 4.]), rtol=0, atol=1e-6)

    def at_first_memory(t, sigma=1.):
        return effective_number(posterior_weights(nine[:1], t, nine, sigma)).item()

    assert abs(at_first_memory(1., 100.) - 9) < 1e-3  # all memories in much noise
    assert abs(at_first_memory(1e-4) - 1) < 1e-3  # one in little
    for t, n in [(1., 7.22), (0.15, 3.66), (0.05, 2.15), (0.01, 1.38)]:
        assert round(at_first_memory(t), 2) == n


# The far end


@pytest.mark.parametrize("sigma", [1., 2.])
@pytest.mark.parametrize("K", [2, 9, 1000])
def test_the_far_end(sigma, K):
    """Mean and variances of 100,000 draws to five standard errors, and the divergence from the
    Gaussian, whose exact value (by quadrature in chapter 2) the draws meet to five of theirs."""
    kl = {2: (0.226, 0.040), 9: (0.158, 0.026), 1000: (0.097, 0.007)}[K]
    n, xi = 100_000, circle_patterns(K).double()
    x = marginal_sample(n, 1., xi, sigma, torch.Generator().manual_seed(K))
    mean, var = xi.mean(0), xi.var(0, correction=0) + sigma**2
    assert ((x.mean(0) - mean).abs() < 5 * (var / n).sqrt()).all()
    assert ((x.var(0) - var).abs() < 5 * math.sqrt(2 / n) * var).all()
    x = x[:n if K < 100 else 20_000]  # a thousand memories: fewer, to be done in a second
    normal = torch.distributions.Normal(0., sigma).log_prob(x).sum(1)
    gain = marginal_logp(x, 1., xi, sigma) - normal
    error = 5 * gain.std().item() / math.sqrt(len(x))
    assert abs(gain.mean().item() - kl[int(sigma) - 1]) < error + 0.0005


def test_sample_at_an_intermediate_time():
    "Around its own memory each draw has variance σ²t."
    xi = torch.tensor([[0., 0., 0.], [100., 0., 0.]]).double()
    x = marginal_sample(20_000, 0.3, xi, 2., torch.Generator().manual_seed(1))
    right = x[:, 0] > 50
    assert abs(right.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(20_000)
    var = (x - xi[right.long()]).square().mean().item()
    assert abs(var / 1.2 - 1) < 5 * math.sqrt(2 / 60_000)


def test_sample_follows_its_generator():
    draw = lambda seed: marginal_sample(5, 0.2, nine, 0.5, torch.Generator().manual_seed(seed))
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    before = torch.get_rng_state()
    draw(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert draw(1).dtype == torch.float64
    assert marginal_sample(3, 1, np.zeros((2, 4), "f4")).shape == (3, 4)


def test_bad_samples_are_refused():
    assert refused(marginal_sample, 0, 0.1, nine).startswith("ValueError: n must be at least 1")
    assert refused(marginal_sample, 5, 0., nine).startswith("ValueError: t must lie in (0, 1]")
    assert refused(marginal_sample, 5, 2., nine).startswith("ValueError: t must lie in (0, 1]")
    assert "sigma must be finite and above 0" in refused(marginal_sample, 5, 0.1, nine, 0.)
    assert "patterns" in refused(marginal_sample, 5, 0.1, "nine")


# Transformed functions


def density(x, t, xi):
    return marginal_logp(x, t, xi, 0.7)


def test_closed_forms_under_torch_func():
    "Derivatives point by point, by points, times and memories (pytorch 92033)."
    x, t, xi = draws(50, 4, 2), 0.1 + 0.9 * times(51, 4), draws(52, 3, 2)
    score = vmap(grad(density), (0, 0, None))(x, t, xi)
    assert_allclose(score, marginal_score(x, t, xi, 0.7), rtol=0, atol=1e-12)
    by_score = vmap(jacrev(lambda y: marginal_score(y, 0.5, xi)))(x)
    assert_allclose(vmap(hessian(marginal_logp), (0, None, None))(x, 0.5, xi), by_score, atol=1e-12)
    stacks = draws(53, 5, 3, 2)
    each = torch.stack([density(x, t, one) for one in stacks])
    assert_allclose(vmap(density, (None, None, 0))(x, t, stacks), each, rtol=0, atol=1e-12)
    weights = vmap(lambda y: posterior_weights(y, 0.5, xi))(x)
    assert_allclose(weights, posterior_weights(x, 0.5, xi), rtol=0, atol=1e-14)
    slope = vmap(grad(density, 1), (0, 0, None))(x, t, xi)
    h = 1e-6
    secant = (density(x, t + h, xi) - density(x, t - h, xi)) / (2 * h)
    assert_allclose(slope, secant, rtol=1e-6, atol=1e-6)


def test_energies_under_torch_func():
    "The same for the energies and the update, and for β (pytorch 92033)."
    x, xi, beta = draws(54, 4, 2), draws(55, 3, 2), 0.5 + times(56, 4)
    for f in hopfield_energy, dense_am_energy, hopfield_update:
        each = torch.stack([f(a, xi, b) for a, b in zip(x, beta)])
        assert_allclose(vmap(f, (0, None, 0))(x, xi, beta), each, rtol=0, atol=1e-12)
    force = vmap(grad(diffusion_energy), (0, None, None))(x, 0.3, xi) # -∇E = 2σ²t · score
    assert_allclose(-force / 0.6, marginal_score(x, 0.3, xi), rtol=0, atol=1e-12)
    ring = lambda y: energy_am(y[None], 2., normalize=False).sum()
    assert_allclose(-vmap(grad(ring))(x), score_am(x, 2.), rtol=0, atol=1e-12)


def test_noise_that_no_number_holds_is_refused():
    "A variance that overflows, or vanishes in the precision of the points."
    x = torch.zeros(1, 2)
    for sigma in 1e200, 1e-200:
        for f in marginal_logp, marginal_score, posterior_weights, diffusion_energy:
            message = refused(f, x, 0.5, nine, sigma)
            assert message.startswith("ValueError: sigma² must be finite and above 0, not ")
        assert refused(VESDETerms, sigma).startswith("ValueError: sigma_max² must be finite")
    message = refused(marginal_score, x, 0.5, nine, 1e-30)
    assert message.startswith("ValueError: sigma² t, in the precision of x, must be finite and abo")
    assert marginal_score(x.double(), 0.5, nine, 1e-30).isfinite().all()


# Kinds that are rare


def test_whole_numbers_as_times():
    "A tensor of integers is a time like any: σ is no integer."
    sde, t = VESDETerms(0.5), torch.tensor([0, 1])
    assert sde.diffusion_coeff(t).tolist() == [0.5, 0.5]
    assert sde.marginal_prob_std(t).tolist() == [0, 0.5]
    assert sde.inverse_temperature(t[1:]).tolist() == [2]


def test_distances_far_from_the_origin_keep_their_digits():
    "In 16 dimensions, around 1000, in single precision: as if they were around zero."
    x, xi = (1000 + draws(seed, n, 16).float() for seed, n in ((61, 20), (62, 30)))
    wanted = torch.cdist(x.double(), xi.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert_allclose(squared_distances(x, xi), wanted.square(), rtol=1e-5)
