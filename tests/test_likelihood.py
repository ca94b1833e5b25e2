"""Divergences, likelihoods and energies against automatic differentiation and the exact density."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from helpers import none, refused
from numpy.testing import assert_allclose
from scipy.integrate import solve_ivp

from amtutorial.data import circle_patterns, plane_grid
from amtutorial.likelihood import (
    compute_laplacian,
    energy_error,
    ode_likelihood_with_laplacian,
    score_and_divergence,
    to_energy,
)
from amtutorial.scorenet import ScoreNet
from amtutorial.sde import VESDETerms, marginal_logp, marginal_score

NINE = circle_patterns(9).double()
EXACT = partial(marginal_score, patterns=NINE)
SDE = VESDETerms(1.0)
likelihood = partial(ode_likelihood_with_laplacian, device="cpu")


def double(t):
    return torch.tensor(t, dtype=torch.float64)


def network(d, readout, sigma=1.0, seed=0):
    "A double-precision network with weights off their initial values (a new LayerNorm has ones)."
    g = torch.Generator().manual_seed(seed)
    std = VESDETerms(sigma).marginal_prob_std
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ScoreNet(d, marginal_prob_std=std, readout=readout).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return model


def near_the_minimum(points, t, sigma=1.0, within=6):
    "Those points whose exact energy is within 6 nats of the lowest, and their log-densities."
    logp = marginal_logp(points.double(), t, NINE, sigma)
    near = logp > logp.max() - within
    return points.double()[near], logp[near]


# Energies


def test_energies_of_known_log_likelihoods():
    logp = torch.tensor([-3.0, -1.0, -2.0])
    assert to_energy(logp).tolist() == [2.0, 0.0, 1.0]
    assert to_energy(logp, normalize=False).tolist() == [3.0, 1.0, 2.0]
    assert "at least one value" in refused(to_energy, torch.zeros(0))


def test_energy_error_by_hand():
    exact = torch.tensor([0.0, 1.0, 2.0, 9.0])
    assert energy_error(exact + 5, exact) == 0
    # the last point is 9 nats up, so three count, of which one is off by a half
    assert abs(energy_error([0.0, 1.0, 2.5, 0.0], exact) - 0.5 / math.sqrt(3)) < 1e-6
    assert energy_error([0.0, 1.0, 2.5, 0.0], exact, within=1.5) == 0
    assert "one shape" in refused(energy_error, torch.zeros(3), exact)
    assert "finite" in refused(energy_error, [0.0, math.nan, 1.0, 1.0], exact)
    assert "finite" in refused(energy_error, exact, [0.0, math.inf, 1.0, 1.0])
    assert "within" in refused(energy_error, exact, exact, within=0.0)
    refused(energy_error, [], [])


# Divergences


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("d", [1, 5])
@pytest.mark.parametrize("one_time", [False, True])
@pytest.mark.parametrize("sigma", [1.0, 1.7])
def test_divergence_of_a_network_is_the_trace_of_the_jacobian(readout, d, one_time, sigma):
    "The full Jacobian by automatic differentiation; exact, and along random directions."
    model, g = network(d, readout, sigma), torch.Generator().manual_seed(1)
    x = torch.randn(20, d, generator=g, dtype=torch.float64)
    t = double(0.3) if one_time else 0.1 + 0.9 * torch.rand(20, generator=g).double()
    J = torch.autograd.functional.jacobian(lambda y: model(y, t).sum(0), x)  # (d, 20, d)
    J = J.transpose(0, 1)  # (20, i, j): points do not mix
    score, divergence = score_and_divergence(model, x, t)
    close = partial(assert_allclose, rtol=1e-10, atol=1e-10)
    close(score, model(x, t).detach())
    close(divergence, torch.einsum("bii->b", J))
    v = torch.randint(2, (3, 20, d), generator=g).double() * 2 - 1
    score, estimate = score_and_divergence(model, x, t, v)
    close(score, model(x, t).detach())
    close(estimate, torch.einsum("pbi,bij,pbj->b", v, J, v) / 3)
    assert all(p.grad is None for p in model.parameters()) and not score.requires_grad


@pytest.mark.parametrize("sigma", [1.0, 0.6])
def test_divergence_of_the_exact_score(sigma):
    "Its closed form: (tr Cov of the memories under the posterior / σ²t - d) / σ²t."
    x, t = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double(), 0.3
    variance = sigma**2 * t
    w = torch.softmax(-torch.cdist(x, NINE).square() / (2 * variance), 1)
    spread = (w * NINE.square().sum(1)).sum(1) - (w @ NINE).square().sum(1)
    found = compute_laplacian(partial(EXACT, sigma=sigma), x, double(t))
    assert_allclose(found, (spread / variance - 2) / variance, rtol=0, atol=1e-10)


def test_divergence_of_a_constant_and_under_modes():
    "A score without a gradient has none; no_grad and inference mode change nothing."
    x, t = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)), torch.tensor(0.3)
    score, divergence = score_and_divergence(lambda x, t: torch.ones_like(x), x, t)
    assert (score == 1).all() and (divergence == 0).all()
    nine = circle_patterns(9)
    exact = partial(marginal_score, patterns=nine)
    expected = compute_laplacian(exact, x, t)
    with torch.no_grad():
        assert torch.equal(compute_laplacian(exact, x, t), expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(compute_laplacian(exact, x, t), expected)
        assert torch.equal(compute_laplacian(exact, x.clone(), t), expected)
        logp = likelihood(x.clone(), exact, SDE, eps=0.3, patterns=nine)
    assert torch.equal(logp, likelihood(x, exact, SDE, eps=0.3, patterns=nine))
    assert not expected.requires_grad and not x.requires_grad


def test_threads_do_not_disturb_each_other():
    "Four threads at once, on a function and on a network, give what each gives alone."
    model, t = network(2, True), double(0.2)
    parts = torch.randn(40, 50, 2, generator=torch.Generator().manual_seed(0)).double().unbind()
    for f in EXACT, model, lambda x, t: model(x, t):
        alone = [compute_laplacian(f, x, t).detach() for x in parts]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda x: compute_laplacian(f, x, t).detach(), parts))
        for a, b in zip(alone, together):
            assert_allclose(a, b, rtol=1e-12, atol=1e-12)


# In many dimensions


@pytest.fixture(scope="module")
def in_40():
    "Six memories, so close that they compete, the score, three points."
    g = torch.Generator().manual_seed(0)
    many = 0.25 * torch.randn(6, 40, generator=g, dtype=torch.float64)
    x = many[:3] + torch.randn(3, 40, generator=g, dtype=torch.float64)
    return many, partial(marginal_score, patterns=many), x, g


def test_random_directions_are_unbiased(in_40):
    "The mean over 4,000 directions, to five of its standard errors, which they themselves tell."
    _, score, x, g = in_40
    v, t = torch.randint(2, (4000, 3, 40), generator=g).double() * 2 - 1, double(0.8)
    rows = x.repeat(4000, 1)  # a direction for each row
    each = score_and_divergence(score, rows, t, v.view(1, 12_000, 40))[1].view(4000, 3)
    gap = each.mean(0) - compute_laplacian(score, x, t)
    assert (gap.abs() <= 5 * each.std(0) / math.sqrt(4000) + 1e-9).all()
    assert each.std(0).max() > 0
    together = score_and_divergence(score, x, t, v[:100])[1]
    assert_allclose(together, each[:100].mean(0), rtol=1e-10)


def test_likelihood_with_random_directions(in_40):
    "Directions are kept along each path; over 64 repetitions the mean is right to five errors."
    many, score, x, _ = in_40
    x = x[:1].expand(64, -1)
    logp = likelihood(x, score, SDE, eps=0.5, patterns=many, probes=1, steps=20)
    error = logp - marginal_logp(x, 0.5, many)
    assert abs(error.mean()) < 5 * error.std() / 8 and error.std() > 1e-3
    exact = likelihood(x[:1], score, SDE, eps=0.5, patterns=many, probes=None, steps=20)
    assert abs(exact - marginal_logp(x[:1], 0.5, many)) > 1e-6  # 40 > 32: directions after all


def test_how_many_directions_and_which(in_40):
    "Up to 32 dimensions every axis; beyond, 16 directions, which follow from the seed."
    many, score, x, _ = in_40
    args = dict(sde=SDE, eps=0.5, patterns=many, steps=4)
    default = likelihood(x, score, **args)
    assert torch.equal(default, likelihood(x, score, **args, probes=16, seed=0))
    assert torch.equal(likelihood(x, score, **args, seed=5), likelihood(x, score, **args, seed=5))
    assert not torch.equal(default, likelihood(x, score, **args, seed=5))
    assert not torch.equal(default, likelihood(x, score, **args, probes=17))
    few, args["patterns"] = many[:, :32], many[:, :32]
    in_32 = partial(marginal_score, patterns=few)
    exact = likelihood(x[:, :32], in_32, **args)
    assert torch.equal(exact, likelihood(x[:, :32], in_32, **args, seed=5))
    assert_allclose(exact, marginal_logp(x[:, :32], 0.5, few), atol=1e-3)


# Likelihoods


@pytest.mark.parametrize("sigma", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("t", [0.15, 0.05, 0.01])
def test_the_exact_score_gives_the_exact_density(sigma, t):
    """Ten steps for each unit of log t: to 1e-3 nats at every point of a grid within 6 nats of the
    minimum. Beyond, points may sit so close to a watershed that fixed steps cut the corner."""
    near, truth = near_the_minimum(plane_grid(24)[2], t, sigma)
    assert len(near) > 40
    score, steps = partial(EXACT, sigma=sigma), math.ceil(-10 * math.log(t))
    logp = likelihood(near, score, VESDETerms(sigma), eps=t, patterns=NINE, steps=steps)
    assert (logp - truth).abs().max() < 1e-3


def test_half_the_step_leaves_a_sixteenth():
    "A method of third order would leave an eighth; twelve is asked for."
    near, truth = near_the_minimum(plane_grid(24)[2], 0.15)
    follow = lambda n: likelihood(near, EXACT, SDE, eps=0.15, patterns=NINE, steps=n)
    errors = [(follow(n) - truth).square().mean().sqrt().item() for n in (8, 16, 32)]
    assert all(a > 12 * b for a, b in zip(errors, errors[1:])), errors
    assert errors[-1] < 1e-6


def test_an_adaptive_solver_agrees():
    "The textbook way: points and log-densities stacked into one long vector, in t."
    few = plane_grid(24)[2][::37].double()
    n = few.numel()

    def stacked(t, y):
        score, divergence = score_and_divergence(EXACT, torch.tensor(y[:n]).view(-1, 2), double(t))
        return -0.5 * torch.cat([score.ravel(), divergence]).numpy()

    begin = torch.cat([few.ravel(), torch.zeros(len(few))]).numpy()
    solved = torch.tensor(solve_ivp(stacked, (0.15, 1), begin, rtol=1e-8, atol=1e-8).y[:, -1])
    textbook = solved[n:] + marginal_logp(solved[:n].view(-1, 2), 1.0, NINE)
    ours = likelihood(few, EXACT, SDE, eps=0.15, patterns=NINE, steps=40)
    assert_allclose(ours, textbook, rtol=0, atol=1e-5)


def test_one_memory_by_hand():
    "A distance grows like √t; a wrong end tilts the energy (exercise 11.1)."
    x, xi, t, sigma = plane_grid(8)[2].double(), NINE[:1], 0.15, 1.3
    follow = partial(
        likelihood, x, partial(marginal_score, patterns=xi, sigma=sigma), VESDETerms(sigma), eps=t
    )
    right, wrong = follow(patterns=xi, steps=20), follow(steps=20)
    assert_allclose(right, marginal_logp(x, t, xi, sigma), atol=1e-6)
    tilt = (x - xi) @ xi[0] / math.sqrt(t) + 0.5 * xi.square().sum()
    assert_allclose(right - wrong, tilt / sigma**2, atol=1e-6)


def test_at_the_last_time_the_density_is_known():
    x = plane_grid(8)[2]
    logp = likelihood(x, EXACT, SDE, eps=1.0, patterns=NINE)
    assert_allclose(logp, marginal_logp(x, 1.0, NINE), atol=1e-6)
    gauss = -x.square().sum(1) / (2 * 0.49) - math.log(2 * math.pi * 0.49)
    assert_allclose(likelihood(x, EXACT, VESDETerms(0.7), eps=1.0), gauss, rtol=1e-5, atol=1e-5)


def told(score, mean, cov):
    "The same score, which knows the mean and covariance of its data."
    knows = partial(score)
    knows.data_mean, knows.data_cov = torch.as_tensor(mean), torch.as_tensor(cov)
    return knows


MEAN, COV = [0.3, -0.2], [[0.5, 0.1], [0.1, 0.4]]


@pytest.mark.parametrize("sigma", [1.0, 0.7])
@pytest.mark.parametrize("readout", [False, True])
def test_the_end_without_memories(sigma, readout):
    """At t = 1 nothing is left but the end: the matched Gaussian of a network that knows its data,
    or of a function with the attributes; N(0, σ²I) for both without. Memories overrule it."""
    x, sde, eye = plane_grid(8)[2].double(), VESDETerms(sigma), torch.eye(2).double()
    gauss = lambda mean, cov: torch.distributions.MultivariateNormal(double(mean), cov).log_prob(x)
    matched, plain = gauss(MEAN, double(COV) + sigma**2 * eye), gauss([0.0, 0.0], sigma**2 * eye)
    model, score = network(2, readout, sigma), partial(EXACT, sigma=sigma)
    at_the_end = lambda f, **options: likelihood(x, f, sde, eps=1.0, **options)
    close = partial(assert_allclose, rtol=1e-6, atol=1e-6)  # moments in single precision
    close(at_the_end(model), plain)  # untrained: both moments are zero
    close(at_the_end(score), plain)
    model.data_mean, model.data_cov = torch.tensor(MEAN), torch.tensor(COV)
    close(at_the_end(model), matched)
    close(at_the_end(told(score, MEAN, COV)), matched)
    close(at_the_end(lambda x, t: model(x, t)), plain)
    exact = marginal_logp(x, 1.0, NINE, sigma)
    for f in model, told(score, MEAN, COV):
        close(at_the_end(f, patterns=NINE), exact)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_end_takes_any_precision(kind):
    "Network and moments of either kind: the result has the network's, to single rounding."
    model, x = network(2, True).to(kind), plane_grid(8)[2]
    expected = likelihood(x, told(network(2, True), MEAN, COV), SDE, eps=0.5)
    for moments in torch.float32, torch.float64:
        model.data_mean, model.data_cov = torch.tensor(MEAN).to(moments), torch.tensor(COV).to(kind)
        logp = likelihood(x, model, SDE, eps=0.5)
        assert logp.dtype == kind
        assert_allclose(logp, expected, rtol=1e-3, atol=1e-3)


def test_one_memory_needs_no_more_than_its_moments():
    "For one memory the matched Gaussian is p_1 itself: mean at the memory, no covariance."
    x, xi = plane_grid(8)[2].double(), NINE[:1]
    one = told(partial(marginal_score, patterns=xi), xi[0], torch.zeros(2, 2))
    logp = likelihood(x, one, SDE, eps=0.15, steps=20)
    assert_allclose(logp, marginal_logp(x, 0.15, xi), atol=1e-6)


@pytest.mark.parametrize("t, steps", [(0.9, 3), (0.15, 3), (0.05, 5), (0.01, 9), (1e-5, 23)])
def test_default_steps(t, steps):
    "Two for each unit of log t, at least three; four looks at the score in each."
    looks = []

    def score(x, t):
        looks.append(t.item())
        return marginal_score(x, t, NINE)

    x = plane_grid(4)[2].double()
    logp = likelihood(x, score, SDE, eps=t, patterns=NINE)
    assert len(looks) == 4 * steps
    assert abs(looks[0] / t - 1) < 1e-12 and max(looks) <= 1
    assert abs(looks[-1] - 1) < 1e-12
    assert torch.equal(logp, likelihood(x, EXACT, SDE, eps=t, patterns=NINE, steps=steps))


def test_networks_in_any_precision_and_points_of_any_kind():
    "Points take the network's type; lists and arrays are as good as tensors; blocks do not show."
    model = network(2, True).float()
    x = plane_grid(40)[2]  # two blocks
    logp = likelihood(x, model, SDE, eps=0.15, patterns=circle_patterns(9))
    assert logp.dtype == torch.float32 and logp.shape == (1600,)
    for same in x.double(), x.numpy(), x.tolist():
        assert torch.equal(logp, likelihood(same, model, SDE, eps=0.15, patterns=NINE.float()))
    one_by_one = [likelihood(p, model, SDE, eps=0.15, patterns=NINE.float()) for p in x.split(400)]
    assert_allclose(logp, torch.cat(one_by_one), rtol=1e-3, atol=1e-3)  # single precision
    assert likelihood(x[:3], model.double(), SDE, eps=0.15).dtype == torch.float64


@pytest.mark.parametrize("readout", [False, True])
def test_a_flow_loses_no_probability(readout):
    "Whatever the network: the density of even an untrained one integrates to one."
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = ScoreNet(2, marginal_prob_std=SDE.marginal_prob_std, readout=readout)
    wide = plane_grid(61, 7.5)[2]  # points 0.25 apart
    for cov in torch.zeros(2, 2), torch.tensor(COV):
        model.data_cov = cov
        logp = likelihood(wide, model, SDE, eps=0.3, steps=6)
        assert abs(0.25**2 * logp.exp().sum() - 1) < 2e-3


def test_refusals():
    points = plane_grid(4)[2]
    good = dict(x=points, score_model=EXACT, sde=SDE, eps=0.15, patterns=NINE)
    bad = [
        (dict(eps=0.0), "eps must lie in (0, 1], not 0"),
        (dict(eps=2.0), "eps must lie in (0, 1], not 2"),
        (dict(steps=0), "steps must be at least 1, not 0"),
        (dict(steps=2.5), "steps must be a whole number"),
        (dict(probes=0), "probes must be at least 1"),
        (dict(patterns=[[0.0, 0.0, 0.0]]), "x must have 3 coordinates on its last axis"),
        (dict(x=torch.zeros(5)), "x must have shape (B, d)"),
        (dict(x=[[math.nan, 0.0]]), "1 of its 2 values are NaN or infinite"),
        (dict(x=torch.zeros(0, 2)), "at least one point"),
        (dict(score_model=network(3, True), patterns=None), "x must have 3 coordinates"),
    ]
    said = [(change, part, refused(likelihood, **(good | change))) for change, part in bad]
    none([f"{change}: {text!r} lacks {part!r}" for change, part, text in said if part not in text])
    assert "not available" in refused(
        ode_likelihood_with_laplacian, points, EXACT, SDE, "cuda:99", 0.15
    )


def test_blocks_draw_directions_of_their_own():
    "The same point in two blocks of 1024: each has directions from the next seed."
    many = torch.eye(3, dtype=torch.float64)
    x = torch.ones(2048, 3, dtype=torch.float64)
    options = dict(eps=0.7, patterns=many, probes=1, steps=1)
    score = partial(marginal_score, patterns=many)
    first, second = likelihood(x, score, SDE, **options, seed=5).split(1024)
    assert not torch.equal(first, second)
    assert torch.equal(second, likelihood(x[1024:], score, SDE, **options, seed=6))
