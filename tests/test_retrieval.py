"""Retrieval: names of the update, fixed points, two memories, and what the reverse SDE samples."""
import math
from collections import deque
import numpy as np
import pytest
import torch
from helpers import refused
from numpy.testing import assert_allclose
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom
from amtutorial.data import circle_patterns
from amtutorial.hopfield import dense_am_energy, hopfield_energy
from amtutorial.retrieval import Retrieval, fixed_points, hopfield_update, retrieve
from amtutorial.sampling import probability_flow, reverse_sde
from amtutorial.sde import VESDETerms, effective_number, marginal_score, posterior_weights

def normal(seed):
    "A source of standard normal doubles."
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)

def close(a, b): # terms below 1e4, each good to 1e-16 of its size
    assert_allclose(a.detach(), b.detach(), rtol=1e-12, atol=1e-11)

unit = torch.nn.functional.normalize

@pytest.mark.parametrize("d", [2, 16, 256])
def test_one_step_three_names(d): # (5.1), (5.2), a time of its own for every state, σ ≠ 1
    randn, sigma = normal(1), 0.8
    xi, t = unit(randn(20, d)), torch.linspace(0.02, 1, 30, dtype=torch.float64)
    x = xi[torch.arange(30) % 20] + sigma * t.sqrt()[:, None] * randn(30, d)
    x.requires_grad_()
    beta = 1 / (sigma**2 * t)
    new = hopfield_update(x, xi, beta)
    close(new, posterior_weights(x, t, xi, sigma) @ xi)
    close(new, x + sigma**2 * t[:, None] * marginal_score(x, t, xi, sigma))
    close(new, x - torch.autograd.grad(hopfield_energy(x, xi, beta).sum(), x)[0])
    attention = torch.nn.functional.scaled_dot_product_attention
    close(hopfield_update(x, xi, 5.), attention(x[None], xi[None], xi[None], scale=5.)[0])

def test_update_by_blocks():
    randn = normal(2)
    many, x = randn(100_000, 2), randn(25, 2)
    close(hopfield_update(x, many, 2.), torch.softmax(2 * x @ many.T, -1) @ many)

def test_update_is_differentiable_across_blocks():
    randn, results = normal(3), []
    xi, x = randn(30_000, 2), randn(12, 2)
    weight = randn(12, 2)
    plain = lambda x, xi, beta: torch.softmax(beta * x @ xi.T, -1) @ xi
    for f in hopfield_update, plain:
        inputs = [a.clone().requires_grad_() for a in (x, xi)]
        results.append(torch.autograd.grad((f(*inputs, 3.) * weight).sum(), inputs))
    for got, want in zip(*results):
        assert_allclose(got, want, rtol=1e-10, atol=1e-12)

@pytest.mark.parametrize("d", [2, 16, 256])
@pytest.mark.parametrize("beta", [0.1, 1., 10., 1000.])
def test_energy_falls_by_half_the_squared_step(d, beta):
    randn = normal(4)
    xi, x = randn(20, d), 2 * randn(50, d)
    for _ in range(5):
        new = hopfield_update(x, xi, beta)
        fall = hopfield_energy(x, xi, beta) - hopfield_energy(new, xi, beta)
        assert (fall >= (x - new).square().sum(-1) / 2 - 1e-10).all() # energies of some hundreds
        x = new

def test_retrieval_restores_memories():
    randn = normal(5)
    xi = unit(randn(50, 64))
    found = retrieve(xi + 0.05 * randn(50, 64), xi, beta=50.)
    assert isinstance(found, Retrieval) and found.converged.all()
    assert (found.x - xi).norm(dim=-1).max() < 1e-6
    assert (hopfield_update(found.x, xi, 50.) - found.x).norm(dim=-1).max() <= 1e-8
    mixed = retrieve(torch.cat([xi[:1], randn(1, 64)]), xi, beta=50.)
    assert mixed.steps[0] < mixed.steps[1] # each row goes its own way
    alone = retrieve(mixed.x[1:], xi, 50.).x[0]
    assert torch.allclose(mixed.x[1], alone, rtol=0, atol=1e-6)

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("K, d", [(9, 2), (40, 16), (100_000, 2)]) # the last in blocks
def test_retrieve_iterates_the_update(K, d, dtype): # which checks and converts at every step
    randn = normal(12)
    xi = unit(randn(K, d)).to(dtype)
    x = (xi[:7] + 0.3 * randn(7, d)).to(dtype)
    found = retrieve(x, xi, 6., 1e-6, 40)
    step = lambda x: hopfield_update(x, xi, 6.)
    wanted = fixed_points(step, x.double(), 1e-6, 40)
    assert found.x.dtype == dtype and (found.steps == wanted.steps).all()
    assert (found.converged == wanted.converged).all()
    assert_allclose(found.x, wanted.x.to(dtype), rtol=1e-12, atol=1e-11)

def test_update_of_unequal_norms_is_not_the_denoiser():
    xi = torch.tensor([[1., 0.], [2., 1.]]).double()
    x, beta = torch.tensor([[0.9, 0.1]]).double(), 4.
    attention, denoiser = torch.softmax(beta * x @ xi.T, 1), posterior_weights(x, 1 / beta, xi)
    close(hopfield_update(x, xi, beta), attention @ xi)
    close(denoiser, torch.softmax(beta * x @ xi.T - beta * xi.square().sum(1) / 2, 1))
    assert attention[0, 0] < 0.05 and denoiser[0, 0] > 0.95

def test_rows_that_run_out_of_steps_are_marked():
    randn = normal(6)
    one = retrieve(randn(6, 64), unit(randn(50, 64)), beta=2., max_steps=1)
    assert not one.converged.any() and (one.steps == 1).all()
    halve = fixed_points(lambda x: x / 2, torch.tensor([[1.], [1e-9], [1e9]]), 1e-3, 20)
    assert halve.converged.tolist() == [True, True, False]
    assert halve.steps.tolist() == [10, 1, 20] # a step of 2**-10 is the first below 1e-3
    lost = fixed_points(lambda x: x * float("nan"), torch.ones(2, 2), max_steps=3)
    assert not lost.converged.any() # NaN has not converged
    loose = retrieve(randn(6, 64), unit(randn(50, 64)), 20., tol=0.1)
    assert loose.converged.all()

def test_inputs_are_kept():
    start = torch.ones(3, 2)
    found = fixed_points(lambda x: x / 2, start)
    assert (start == 1).all() and found.converged.all()
    found = retrieve(np.zeros((4, 5, 2), np.float32), [[1., 0.], [0., 1.]], 1.)
    assert found.x.shape == (4, 5, 2) and found.x.dtype == torch.float32
    assert found.converged.shape == found.steps.shape == (4, 5)
    single = retrieve([0.9, 0.1], torch.eye(2), 10.)
    assert single.x.shape == (2,) and single.converged.shape == ()
    assert not retrieve(torch.ones(2, 2, requires_grad=True), torch.eye(2), 1.).x.requires_grad

def test_refusals():
    xi = unit(normal(7)(50, 64))
    wanted = "must be finite and above 0, not"
    assert refused(retrieve, xi, xi, -1.) == f"ValueError: beta {wanted} -1"
    assert refused(retrieve, xi, xi, 1., tol=0) == f"ValueError: tol {wanted} 0"
    message = refused(retrieve, xi, xi, 1., max_steps=0)
    assert message == "ValueError: max_steps must be at least 1, not 0"
    message = refused(retrieve, xi[:, :3], xi, 1.)
    assert message == "ValueError: x must have 64 coordinates on its last axis, not shape (50, 3)"
    assert "one number" in refused(retrieve, xi, xi, torch.ones(50))
    assert "beta" in refused(hopfield_update, xi, xi, 0.)
    assert "finite" in refused(fixed_points, lambda x: x, xi / 0)
    for f in (retrieve, hopfield_update):
        assert "patterns" in refused(f, xi, xi[0], 1.)

@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.98, 1., 1.02, 1.1, 2.]) # σ²t / a²
def test_two_memories(ratio): # (5.3); the mean is off the origin, and the norms are equal
    pair = circle_patterns(2).double()
    middle, a = pair.mean(0), (pair[0] - pair[1]).norm().item() / 2
    axis = (pair[0] - pair[1]) / (2 * a)
    found = retrieve((middle + 0.1 * a * axis)[None], pair, beta=1 / (ratio * a**2))
    y = ((found.x[0] - middle) @ axis).item()
    assert found.converged.item() == (ratio != 1)
    if ratio < 1:
        assert abs(y - a * math.tanh(y / (a * ratio))) < 1e-7 and y > 0.01 * a
        m, n_eff = y / a, effective_number(posterior_weights(found.x, ratio * a**2, pair))
        assert abs(n_eff - 2 / (1 + m**2)) < 1e-6
    if ratio > 1:
        assert abs(y) < 1e-5

@pytest.mark.parametrize("sign", [1, -1])
def test_both_branches_of_the_pitchfork(sign): # eleven noises, against the roots of (5.3)
    pair = circle_patterns(2).double()
    middle, a = pair.mean(0), (pair[0] - pair[1]).norm().item() / 2
    axis = (pair[0] - pair[1]) / (2 * a)
    for ratio in 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.96, 1.1, 1.3, 1.5:
        found = retrieve((middle + sign * 0.5 * a * axis)[None], pair, 1 / (ratio * a**2))
        y = ((found.x[0] - middle) @ axis).item() / a
        root = brentq(lambda u: u - math.tanh(u / ratio), 1e-3, 1) if ratio < 1 else 0
        assert abs(y - sign * root) < 1e-6, ratio

@pytest.mark.parametrize("beta", [0.1, 1., 5.]) # DenseAM
def test_curvature_at_the_midpoint(beta): # (5.3)
    pair = circle_patterns(2).double()
    pair = pair - pair.mean(0)
    a = pair[0].norm()
    hessian = torch.func.hessian(lambda x: dense_am_energy(x[None], pair, beta)[0])(0 * pair[0])
    assert abs(pair[0] @ hessian @ pair[0] / a**2 - (2 - 4 * beta * a**2)) < 1e-12

@pytest.mark.parametrize("strength", [1.1, 2., 4., 8., 12.]) # Hopfield β in units of 1/a²
def test_gap_between_minimum_and_memory(strength):
    pair = circle_patterns(2).double()
    pair = pair - pair.mean(0)
    a = pair[0].norm().item()
    m = brentq(lambda u: u - math.tanh(strength * u), 1e-3, 1)
    x = retrieve(pair[:1], pair, strength / a**2).x
    gap = (x - pair[:1]).norm().item() / a
    n_eff = effective_number(posterior_weights(x, a**2 / strength, pair)).item()
    assert abs(gap - (1 - m)) < 1e-6 and abs(n_eff - 2 / (1 + m**2)) < 1e-6 and gap > 0
    assert strength < 4 or abs(gap / (2 * math.exp(-2 * strength)) - 1) < 0.01

def potts(m, K): # (5.6)
    return math.log((K - 1) * m / (1 - m)) / (m - (1 - m) / (K - 1))

@pytest.mark.parametrize("K", [3, 10, 30, 158])
def test_orthonormal_memories_vanish_with_a_jump(K):
    fold = minimize_scalar(potts, bounds=(1 / K, 1), args=(K,), method="bounded")
    xi = torch.eye(K).double()
    held, lost = (retrieve(xi[:1], xi, fold.fun * r, max_steps=5000) for r in (1.001, 0.999))
    assert held.converged and lost.converged
    m = held.x.max().item()
    assert fold.x < m < fold.x + 0.05 # next to the fold, 0.001 away: the root of 0.001
    assert abs(potts(m, K) / (1.001 * fold.fun) - 1) < 1e-6
    assert_allclose(lost.x, torch.full((1, K), 1 / K), rtol=0, atol=1e-6)

@pytest.mark.parametrize("beta, most", [(6., 30), (8., 158)])
def test_number_of_orthonormal_memories_is_sharp(beta, most):
    m = np.linspace(0.5, 1, 10_001)[:-1]
    room = lambda K: (np.exp(beta * (m - (1 - m) / (K - 1))) * (1 - m) / m).max() - (K - 1)
    assert room(most) > 0 > room(most + 1)
    for K in most, most + 1:
        xi = torch.eye(K)
        assert (retrieve(xi[:1], xi, beta, max_steps=5000).x.max() > 0.5) == (K == most)

@pytest.mark.parametrize("K", [3, 10, 30])
def test_mixture_and_memories_are_both_minima(K): # as deep as each other at Wu's transition
    beta, xi = 2 * (K - 1) / (K - 2) * math.log(K - 1), torch.eye(K).double()
    middle = xi.mean(0, keepdim=True)
    memory = retrieve(xi[:1], xi, beta).x
    assert memory.max() > 0.6 and abs(memory.max() - (K - 1) / K) < 1e-6
    gap = hopfield_energy(memory, xi, beta) - hopfield_energy(middle, xi, beta)
    assert abs(gap) < 1e-9
    nudged = middle + 1e-3 * xi[:1]
    assert (retrieve(nudged, xi, 0.98 * K, max_steps=5000).x - middle).norm() < 1e-5
    assert (retrieve(nudged, xi, 1.02 * K, max_steps=5000).x - middle).norm() > 0.1

def best_rate(K, d, q): # (5.5)
    h, H = np.arange(d + 1), binom(d, 0.5)
    return (binom(d, q).pmf(h) * (H.sf(h - 1)**K - H.sf(h)**K) / (K * H.pmf(h))).sum()

@pytest.mark.parametrize("K, d, q", [(1, 32, 0.1), (3, 6, 0.3), (12, 8, 0.1), (40, 10, 0.25)])
def test_best_rate_sums_over_ties(K, d, q):
    h, H = np.arange(d + 1), binom(d, 0.5)
    ties = np.arange(K)[:, None]
    share = binom.pmf(ties, K - 1, H.pmf(h) / (H.pmf(h) + H.sf(h))) / (1 + ties)
    nearest = (H.pmf(h) + H.sf(h))**(K - 1) # none of the others is nearer
    assert abs((binom(d, q).pmf(h) * nearest * share.sum(0)).sum() - best_rate(K, d, q)) < 1e-9

@pytest.mark.parametrize("K, wanted", [(2048, 0.94), (8192, 0.887)])
def test_cold_network_finds_the_nearest_pattern(K, wanted):
    generator, d, rates = torch.Generator().manual_seed(13), 32, []
    for _ in range(6):
        xi = torch.randn(K, d, generator=generator).sign() / math.sqrt(d)
        x = xi[:80].where(torch.rand(80, d, generator=generator) >= 0.1, -xi[:80])
        x = x + 1e-3 * torch.randn(x.shape, generator=generator) # breaks ties
        ends = retrieve(x, xi, 64., 1e-5, 100).x
        rates.append(((ends @ xi.T).argmax(1) == torch.arange(80)).double().mean())
    best = best_rate(K, d, 0.1)
    assert abs(best - wanted) < 0.01
    assert abs(np.mean(rates) - best) < 5 * math.sqrt(best * (1 - best) / 480) + 0.01

SDE = VESDETerms(1.)

def score_of(xi):
    return lambda x, t: (torch.softmax(x @ xi.mT / t, -1) @ xi - x) / t

def ladder(t, ratio):
    end = min(0.005, t / 4) # colder than chapter 5: two patterns may be near each other
    steps = math.ceil(math.log(t / end) / math.log(ratio))
    return torch.from_numpy(np.geomspace(t, end, 1 + steps))

def test_score_for_stacks_is_the_exact_score():
    randn = normal(8)
    x, xi = randn(3, 4, 16), unit(randn(3, 5, 16), dim=-1)
    for i in range(3):
        close(score_of(xi)(x, 0.3)[i], marginal_score(x[i], 0.3, xi[i]))

@pytest.fixture(scope="module")
def ambiguous():
    "Twelve sign patterns in 32 dimensions, and a cue that is a mixture of four."
    randn = normal(9)
    xi = randn(12, 32).sign() / math.sqrt(32)
    return xi, unit(xi[:4].mean(0) + 0.025 * randn(32), dim=0)

@pytest.mark.parametrize("K", [4, 32, 256])
@pytest.mark.parametrize("beta", [2., 8., 32.])
def test_three_ways_of_recall(K, beta): # the flow is no worse, and sure cues end at their mode
    generator, d = torch.Generator().manual_seed(14), 32
    xi = torch.randn(8, K, d, generator=generator).sign() / math.sqrt(d)
    truth = torch.randint(K, (8, 40), generator=generator)
    x = xi.gather(1, truth[..., None].expand(-1, -1, d))
    x = x.where(torch.rand(x.shape, generator=generator) >= 0.25, -x)
    x = x + 1e-3 * torch.randn(x.shape, generator=generator)
    times = ladder(1 / beta, 1.05)
    hopfield = torch.stack([retrieve(a, b, beta, 1e-6, 5000).x for a, b in zip(x, xi)])
    *_, sde = reverse_sde(score_of(xi), SDE, x, times, generator)
    *_, flow = probability_flow(score_of(xi), SDE, x, times)
    rates, ends = {}, {"hopfield": (hopfield, beta), "sde": (sde, 200), "flow": (flow, 200)}
    weight, mode = torch.softmax(beta * x @ xi.mT, -1).max(-1)
    for way, (end, cold) in ends.items():
        w = torch.softmax(cold * end @ xi.mT, -1)
        memory = effective_number(w) < 1.5
        rates[way] = (memory & (w.argmax(-1) == truth)).double().mean(1)
        sure = (memory & (w.argmax(-1) == mode))[weight > 0.999]
        assert len(sure) == 0 or sure.double().mean() > 0.98
    bar = math.hypot(rates["flow"].std(), rates["hopfield"].std()) / math.sqrt(8)
    assert rates["flow"].mean() > rates["hopfield"].mean() - 5 * bar - 0.01

@pytest.mark.parametrize("beta", [3., 10., 30.])
def test_sde_samples_the_posterior(ambiguous, beta): # (5.4); Hopfield finds this mode
    xi, cue = ambiguous
    n, generator = 6000, torch.Generator().manual_seed(10)
    w = posterior_weights(cue, 1 / beta, xi)
    cues, patterns = cue.float().expand(n, 32), xi.float()
    walk = reverse_sde(score_of(patterns), SDE, cues, ladder(1 / beta, 1.02), generator)
    overlap = deque(walk, maxlen=1)[0] @ patterns.T
    share = torch.bincount(overlap.argmax(-1), minlength=12) / n
    z = (share - w) / (w * (1 - w) / n + 1e-12).sqrt()
    assert z[w > 1e-3].abs().max() < 4.5
    assert overlap.max(-1).values.min() > 0.999 # every walk ends at a memory
    if beta == 30:
        assert (retrieve(cue, xi, 30.).x @ xi.T).argmax() == w.argmax()

def test_flow_finds_a_memory_with_few_large_steps(ambiguous):
    xi, cue = ambiguous
    ends = [deque(probability_flow(score_of(xi), SDE, cue[None], ladder(1 / 3, r)), maxlen=1)[0]
            for r in (1.1, 1.005)]
    assert_allclose(*ends, rtol=0, atol=1e-3)
    assert (ends[0] @ xi.T).max() > 0.999

def test_price_of_sampling(): # at β* = d/2 log((1-q)/q) the weights are the true probabilities
    generator, d = torch.Generator().manual_seed(30), 32
    xi = torch.randn(100, 32, d, generator=generator, dtype=torch.float64).sign() / math.sqrt(d)
    truth = torch.randint(32, (100, 40, 1), generator=generator)
    x = xi.gather(1, truth.expand(-1, -1, d))
    x = x.where(torch.rand(x.shape, generator=generator) >= 0.25, -x)
    w = torch.softmax(d / 2 * math.log(3) * x @ xi.mT, -1) # β* with q = 1/4
    sampled = w.gather(2, truth).mean().item()
    decided = ((x @ xi.mT).argmax(-1, keepdim=True) == truth).double().mean().item()
    sampler, best = w.square().sum(-1).mean().item(), w.max(-1).values.mean().item()
    # five standard errors of 4,000 cues: 5 * 0.5 / sqrt(4000) = 0.04 at most
    assert abs(sampled - sampler) < 0.04 and abs(decided - best) < 0.04
    assert best - sampler > 0.04

@pytest.mark.parametrize("damage", [0.10, 0.25, 0.40, 0.45, "mask"])
@pytest.mark.parametrize("K", [4, 32, 256])
def test_nearest_pattern_is_the_best_decision(K, damage): # as in the experiment of chapter 5
    generator, d = torch.Generator().manual_seed(31), 32
    xi = torch.randn(8, K, d, generator=generator).sign() / math.sqrt(d)
    truth = torch.randint(K, (8, 40), generator=generator)
    x = xi.gather(1, truth[..., None].expand(-1, -1, d))
    u = torch.rand(x.shape, generator=generator)
    if damage == "mask": # the candidates are the patterns that match all visible entries
        x, beta = torch.where(u.argsort(-1) < d // 2, 0., x), 1e6
    else:
        x, beta = x.where(u >= damage, -x), d / 2 * math.log((1 - damage) / damage)
    best = torch.softmax(beta * (x @ xi.mT * d).double().round() / d, -1).max(-1).values.mean()
    x = x + 1e-3 * torch.randn(x.shape, generator=generator) # breaks ties
    nearest = ((x @ xi.mT).argmax(-1) == truth).double().mean()
    assert abs(nearest - best) < 5 * math.sqrt(0.25 / 320)


def test_where_an_iteration_starts_is_left_alone():
    "Also where states come in the form in which they are computed."
    for start in torch.ones(3, 2), torch.ones(3, 2, dtype=torch.float64):
        found = fixed_points(lambda x: x / 2, start, max_steps=3)
        assert (start == 1).all() and (found.x == 1 / 8).all()
