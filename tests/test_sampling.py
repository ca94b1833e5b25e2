"""Samplers: seeds, noise strengths, what they yield, shares of memories, and what they refuse."""
import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import refused, seeded
from numpy.testing import assert_allclose

from amtutorial.data import circle_patterns
from amtutorial.sampling import (
    Euler_Maruyama_sampler,
    matched_gaussian,
    memory_shares,
    moments,
    probability_flow,
    reverse_sde,
    time_grid,
)
from amtutorial.sde import VESDETerms, marginal_logp, marginal_sample, marginal_score

NINE = circle_patterns(9)
LONE = torch.tensor([[0.6, -0.8]]).double()


def score_of(memories, sigma=1.0):
    return partial(marginal_score, patterns=memories, sigma=sigma)


def last(walk):
    for x in walk:
        pass
    return x


def textbook(memories, x, times, generator):
    "Euler-Maruyama's walk (3.2) at σ = 1, with the score (2.4) spelt out; without its last kick."
    for t, s in zip(times[:-1], times[1:]):
        w = torch.softmax((x @ memories.T - memories.square().sum(1) / 2) / t, 1)
        mean = x + (t - s) / t * (w @ memories - x)
        x = mean + (t - s).sqrt() * torch.randn(x.shape, generator=generator)
    return mean


# --- seeds and generators


def sampler(generator, patterns=NINE, sigma=1.0):
    model, sde = score_of(NINE, sigma), VESDETerms(sigma)
    given = dict(device="cpu", patterns=patterns, generator=generator)
    return Euler_Maruyama_sampler(model, sde, 200, 10, **given)


@pytest.mark.parametrize("patterns", [NINE, None])
def test_the_seed_of_the_generator_decides(patterns):
    assert torch.equal(sampler(seeded(1), patterns), sampler(seeded(1), patterns))
    assert not torch.equal(sampler(seeded(1), patterns), sampler(seeded(2), patterns))


@pytest.mark.parametrize("patterns", [NINE, None])
def test_a_generator_leaves_the_global_one_alone_and_none_means_the_global_one(patterns):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        before = torch.get_rng_state()
        private = sampler(seeded(1), patterns)
        assert torch.equal(torch.get_rng_state(), before)
        first = sampler(None, patterns)
        torch.default_generator.manual_seed(5)
        assert torch.equal(sampler(None, patterns), first)
        torch.default_generator.manual_seed(6)
        assert torch.equal(sampler(seeded(1), patterns), private)
        assert not torch.equal(sampler(None, patterns), first)


def test_every_kick_of_the_walk_comes_from_its_generator():
    start, sde = marginal_sample(50, 1.0, NINE, generator=seeded()), VESDETerms(1.0)
    walk = lambda seed: list(reverse_sde(score_of(NINE), sde, start, time_grid(5), seeded(seed)))
    runs = [walk(seed) for seed in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1]))
    for a, b in list(zip(runs[0], runs[2]))[1:-1]:
        assert ((a - b).norm(dim=1) > 0).all() and not torch.equal(a, b)


def test_the_flow_draws_no_random_numbers():
    start, sde = marginal_sample(50, 1.0, NINE, generator=seeded()), VESDETerms(1.0)
    before = torch.get_rng_state()
    first = last(probability_flow(score_of(NINE), sde, start, time_grid(5)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(last(probability_flow(score_of(NINE), sde, start, time_grid(5))), first)


# --- one memory, where the answer is known


@pytest.mark.parametrize("sigma", [1.0, 0.4, 2.5])
def test_ancestral_steps_are_exact_for_one_memory(sigma):
    "Three coarse steps: mean and variance to five standard errors, the denoised state to rounding."
    n, sde, g = 100_000, VESDETerms(sigma), seeded()
    times = torch.tensor([1.0, 0.5, 0.2, 0.05]).double()
    start = marginal_sample(n, 1.0, LONE, sigma, g)
    states = list(reverse_sde(score_of(LONE, sigma), sde, start, times, g))
    assert len(states) == 5 and torch.equal(states[0], start)
    for x, t in zip(states[:-1], times.tolist()):
        v = sigma**2 * t
        assert ((x - LONE).mean(0).abs() < 5 * math.sqrt(v / n)).all()
        assert ((x - LONE).var(0) / v - 1).abs().max() < 5 * math.sqrt(2 / n)
    assert_allclose(states[-1], LONE.expand_as(start), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [1.0, 0.4, 2.5])
def test_the_flow_of_one_memory_shrinks_like_the_root_of_time_to_second_order(sigma):
    "Heun's error falls with the square of the step: by at least 3.5 when the steps are doubled."
    start, sde = torch.tensor([[2.0, 1.0]]).double(), VESDETerms(sigma)

    def error(n):
        times = time_grid(n, 0.01).double()
        *_, end, clean = probability_flow(score_of(LONE, sigma), sde, start, times)
        assert_allclose(clean, LONE, rtol=0, atol=1e-12)
        return (end - (LONE + 0.1 * (start - LONE))).norm().item()

    a, b, c = error(20), error(40), error(80)
    assert a / b > 3.5 and b / c > 3.5 and c < 1e-3


# --- what the walks yield


@pytest.mark.parametrize("walk", [reverse_sde, probability_flow])
@pytest.mark.parametrize("sigma, eps", [(1.0, 0.1), (0.7, 0.1), (2.0, 0.02)])
def test_the_last_state_is_the_posterior_mean_of_the_one_before(walk, sigma, eps):
    "Also far from t = 1e-5, where the two are a long way apart."
    memories, sde = NINE.double(), VESDETerms(sigma)
    start = marginal_sample(100, 1.0, memories, sigma, seeded())
    states = list(walk(score_of(memories, sigma), sde, start, time_grid(7, eps).double()))
    assert len(states) == 9 and torch.equal(states[0], start)
    x = states[-2]
    distance2 = (x[:, None] - memories).square().sum(-1)
    t = time_grid(7, eps)[-1].double()
    mean = torch.softmax(-distance2 / (2 * sigma**2 * t), 1) @ memories
    assert_allclose(states[-1], mean, rtol=0, atol=1e-10)
    assert (states[-1] - x).norm(dim=1).mean() > 0.05


@pytest.mark.parametrize("walk", [reverse_sde, probability_flow])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_walks_keep_shape_and_precision_and_leave_their_start_alone(walk, dtype):
    memories = NINE.to(dtype)
    start = marginal_sample(30, 1.0, memories, generator=seeded())
    kept = start.clone()
    for x in walk(score_of(memories), VESDETerms(1.0), start, time_grid(5).to(dtype)):
        assert x.shape == (30, 2) and x.dtype == dtype
    assert torch.equal(start, kept)


@pytest.mark.parametrize("sigma", [1.0, 0.5, 2.0])
def test_both_walks_carry_the_exact_density_on_the_way(sigma):
    "The total variance at σ²t = 0.15 σ², against that of memories plus noise."
    n, sde, score = 8000, VESDETerms(sigma), score_of(NINE, sigma)
    start, times = marginal_sample(n, 1.0, NINE, sigma, seeded()), time_grid(50, 0.15)
    exact = (NINE.var(0, correction=0) + sigma**2 * 0.15).sum().item()
    *_, noisy, _ = reverse_sde(score, sde, start, times, seeded(1))
    *_, smooth, _ = probability_flow(score, sde, start, times)
    for x in noisy, smooth:
        assert abs(x.var(0).sum().item() / exact - 1) < 5 / math.sqrt(n)


# --- the grid of times


@pytest.mark.parametrize("n, eps", [(1, 1e-5), (50, 1e-5), (7, 0.3)])
def test_the_grid_is_even_in_the_fifth_root_and_ends_where_it_should(n, eps):
    times = time_grid(n, eps)
    assert times.shape == (n + 1,) and times.dtype == torch.float32 and times[0] == 1
    assert_allclose(times[-1], eps, rtol=1e-6)
    steps = times.double().pow(0.2).diff()
    assert_allclose(steps, torch.full_like(steps, (eps**0.2 - 1) / n), rtol=1e-4)


def test_the_grid_and_the_walks_refuse_impossible_times():
    for bad in 0, -1, 2.5, True, "5":
        assert "num_steps" in refused(time_grid, bad)
    for bad in 0.0, 1.0, -0.1, 2.0, math.nan:
        assert "eps, the last time, must lie in (0, 1)" in refused(time_grid, 5, bad)
    rising, level, flat = [0.5, 1.0], [1.0, 1.0, 0.5], [[1.0, 0.5]]
    for bad in [1.0], rising, [1.0, 0.0], [2.0, 1.0], level, flat, [1.0, math.nan]:
        for walk in reverse_sde, probability_flow:
            walk = walk(score_of(NINE), VESDETerms(1.0), NINE, torch.tensor(bad))
            assert "times must be at least two numbers in (0, 1]" in refused(next, walk)


# --- the sampler


class Recorder(torch.nn.Module):
    "A score that pulls nowhere, in any dimension, and keeps the states that it is asked about."

    def __init__(self, d):
        super().__init__()
        self.input_dim, self.seen = d, []
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        self.seen.append((x, t))
        return 0 * x * self.unused


@pytest.mark.parametrize("sigma, d", [(1.0, 2), (0.25, 2), (3.0, 5)])
def test_without_memories_the_start_is_normal_with_the_strength_of_the_noise(sigma, d):
    model, n = Recorder(d), 20_000
    x = Euler_Maruyama_sampler(model, VESDETerms(sigma), n, 2, generator=seeded())
    start, t = model.seen[0]
    assert start.shape == x.shape == (n, d) and t == 1
    assert (start.mean(0).abs() < 5 * sigma / math.sqrt(n)).all()
    assert ((start.var(0) / sigma**2 - 1).abs() < 5 * math.sqrt(2 / n)).all()
    assert not x.requires_grad and len(model.seen) == 3


@pytest.mark.parametrize("sigma", [1.0, 0.25, 3.0])
def test_with_memories_the_start_is_their_noised_density(sigma):
    model, n = Recorder(2), 20_000
    Euler_Maruyama_sampler(model, VESDETerms(sigma), n, 2, patterns=NINE, generator=seeded())
    start = model.seen[0][0]
    var = NINE.var(0, correction=0) + sigma**2
    assert ((start.mean(0) - NINE.mean(0)).abs() < 5 * (var / n).sqrt()).all()
    assert ((start.var(0) / var - 1).abs() < 5 * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_samples_at_other_noise_strengths_land_on_memories_in_their_shares(sigma):
    "At twice the noise the bias of a step shows first, so this takes two hundred."
    given = dict(device="cpu", patterns=NINE, generator=seeded(1))
    x = Euler_Maruyama_sampler(score_of(NINE, sigma), VESDETerms(sigma), 5000, 200, **given)
    r = memory_shares(x, NINE)
    assert r["p_value"] > 1e-6 and r["distance"] < 0.003


def test_number_and_end_of_the_steps_are_those_asked_for():
    model = Recorder(2)
    Euler_Maruyama_sampler(model, VESDETerms(1.0), 3, 4, eps=0.25, generator=seeded())
    assert_allclose([t.item() for _, t in model.seen], time_grid(4, 0.25), rtol=1e-6)


def test_the_sampler_takes_memories_in_any_form_and_its_samples_are_float32():
    for form in NINE.tolist(), NINE.numpy(), NINE.double():
        assert sampler(seeded(), form).dtype == torch.float32
        assert_allclose(sampler(seeded(), form), sampler(seeded()), atol=1e-6)


@pytest.mark.parametrize(
    "bad, word",
    [
        (dict(batch_size=0), "batch_size"),
        (dict(batch_size=2.5), "batch_size"),
        (dict(num_steps=0), "num_steps"),
        (dict(eps=0.0), "eps"),
        (dict(eps=1.0), "eps"),
        (dict(device="abacus"), "abacus"),
        (dict(patterns=[1.0, 2.0]), "patterns"),
        (dict(patterns=[[math.nan, 0.0]]), "patterns"),
    ],
)
def test_the_sampler_refuses_impossible_requests(bad, word):
    given = dict(device="cpu") | bad
    assert word in refused(Euler_Maruyama_sampler, score_of(NINE), VESDETerms(1.0), **given)


# --- the matched Gaussian


def informed(memories, sigma=1.0):
    score = score_of(memories, sigma)
    score.data_mean, score.data_cov = moments(memories)
    return score


@pytest.mark.parametrize("K, d", [(1, 2), (2, 3), (9, 2), (40, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_those_of_numpy(K, d, dtype):
    "Also far from the origin, where the mean of squares minus the square of the mean fails."
    memories = 100 + torch.randn(K, d, generator=seeded(), dtype=dtype)
    mean, cov = moments(memories)
    assert mean.shape == (d,) and cov.shape == (d, d) and mean.dtype == cov.dtype == dtype
    exact = memories.double().numpy()
    digits = torch.finfo(dtype).eps # of numbers near 100: their means, then products of size one
    assert_allclose(mean, exact.mean(0), rtol=4 * digits)
    wanted = np.cov(exact.T, bias=True).reshape(d, d)
    assert_allclose(cov, wanted, rtol=0, atol=5 * 100 * digits)
    assert torch.equal(cov, cov.T)


def line(K, d):
    "Memories on one line through the plane or space: their covariance is singular."
    return torch.linspace(-1, 1, K)[:, None] * torch.linspace(0.1, 1, d)


@pytest.mark.parametrize("sigma", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize(
    "memories", [torch.tensor([[0.6, -0.8]]), line(2, 2), line(7, 5), torch.eye(64)[:10]]
)
def test_the_matched_gaussian_has_the_moments_of_the_noised_memories(memories, sigma):
    "One memory, two, collinear ones, ten in 64 dimensions: singular covariances, tiny noise."
    q = matched_gaussian(informed(memories), VESDETerms(sigma), memories)
    d, exact = memories.shape[1], memories.double().numpy()
    wanted = np.cov(exact.T, bias=True).reshape(d, d) + sigma**2 * np.eye(d)
    assert q.mean.dtype == q.covariance_matrix.dtype == torch.float64
    assert_allclose(q.mean, exact.mean(0), atol=1e-7)
    assert_allclose(q.covariance_matrix, wanted, rtol=1e-6, atol=1e-6) # float32 moments
    # no direction is narrower than the noise, but for the rounding of doubles of size one
    assert torch.linalg.eigvalsh(q.covariance_matrix)[0] > sigma**2 * (1 - 1e-6) - 1e-14
    assert torch.isfinite(q.log_prob(memories.double())).all()


@pytest.mark.parametrize("sigma", [1.0, 1e-3])
def test_for_one_memory_the_matched_gaussian_is_the_density_itself(sigma):
    x = LONE + sigma * torch.randn(50, 2, generator=seeded()).double()
    q = matched_gaussian(informed(LONE), VESDETerms(sigma), x)
    assert_allclose(q.log_prob(x), marginal_logp(x, 1.0, LONE, sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma, d", [(1.0, 2), (1e-4, 64), (3.0, 5)])
def test_who_knows_no_moments_gets_the_normal_distribution_of_the_noise(sigma, d):
    q = matched_gaussian(lambda x, t: -x, VESDETerms(sigma), torch.zeros(3, d))
    assert_allclose(q.mean, torch.zeros(d))
    assert_allclose(q.covariance_matrix, sigma**2 * torch.eye(d).double(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_matched_gaussian_is_double_on_the_device_of_its_points(dtype):
    knows = informed(NINE.to(dtype))
    q = matched_gaussian(knows, VESDETerms(1.0), torch.zeros(4, 2, dtype=dtype))
    assert q.mean.device.type == "cpu" and q.mean.dtype == torch.float64
    assert knows.data_mean.dtype == dtype


class Knowing(Recorder):
    "The same, with moments as buffers, as a trained `ScoreNet` has them."

    def __init__(self, memories):
        super().__init__(memories.shape[1])
        mean, cov = moments(memories)
        self.register_buffer("data_mean", mean)
        self.register_buffer("data_cov", cov)


@pytest.mark.parametrize("sigma", [1.0, 0.25])
@pytest.mark.parametrize("memories", [NINE, 3 + line(2, 2), 2 * torch.eye(5)[:3]])
def test_the_sampler_of_a_network_starts_with_the_mean_and_covariance_of_p_1(memories, sigma):
    model, n = Knowing(memories), 40_000
    Euler_Maruyama_sampler(model, VESDETerms(sigma), n, 1, generator=seeded())
    start = model.seen[0][0]
    cov = np.cov(memories.double().numpy().T, bias=True) + sigma**2 * np.eye(memories.shape[1])
    cov = torch.as_tensor(cov)
    var = cov.diagonal()
    assert start.dtype == torch.float32
    assert ((start.mean(0) - memories.mean(0)).abs() < 5 * (var / n).sqrt()).all()
    error = ((var[:, None] * var + cov**2) / n).sqrt() # of a Gaussian's
    assert ((start.T.cov() - cov).abs() < 5 * error).all()


def test_the_seed_decides_the_matched_start_and_memories_overrule_it():
    def start(seed, patterns=None):
        model = Knowing(NINE)
        given = dict(patterns=patterns, generator=seeded(seed))
        Euler_Maruyama_sampler(model, VESDETerms(1.0), 100, 1, **given)
        return model.seen[0][0]

    assert torch.equal(start(1), start(1)) and not torch.equal(start(1), start(2))
    assert torch.equal(start(1, NINE), marginal_sample(100, 1.0, NINE, generator=seeded(1)))


def test_a_matched_start_mends_the_shares_of_nine_memories():
    "Total variation 0.067 from N(0, σ²I), 0.0014 matched; floor 0.007, its scatter 0.002."
    g, sde = seeded(3), VESDETerms(1.0)
    given = dict(device="cpu", generator=g)
    found = {}
    for name, model in dict(matched=informed(NINE), normal=score_of(NINE)).items():
        x = Euler_Maruyama_sampler(model, sde, 20_000, 100, **given)
        found[name] = memory_shares(x, NINE)["total_variation"]
    assert found["matched"] < 0.007 + 5 * 0.002 + 0.005 # the steps' bias, and its own
    assert found["normal"] > 0.067 - 5 * 0.002 - 0.004


# --- shares


@pytest.mark.parametrize("memories", [NINE, circle_patterns(60)])
def test_a_perfect_sampler_scatters_about_the_floor(memories):
    "Its mean total variation is (3.6), and its scatter √((π/2 - 1)/M) of that."
    n, trials, g = 3000, 300, seeded()
    K = len(memories)
    draws = [memories[torch.randint(K, (n,), generator=g)] for _ in range(trials)]
    results = [memory_shares(x, memories) for x in draws]
    tv = torch.tensor([r["total_variation"] for r in results])
    floor, M = results[0]["floor"], len(results[0]["shares"])
    scatter = floor * math.sqrt((math.pi / 2 - 1) / M)
    # each share is normal only up to a relative 1/np
    assert abs(tv.mean() - floor) < 5 * scatter / math.sqrt(trials) + floor * M / n
    assert 0.7 < tv.std() / scatter < 1.4 # shares that sum to one are not quite independent


def test_shares_are_known_counts():
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    counts = torch.tensor([5, 2, 0, 3])
    samples = square.repeat_interleave(counts, 0) * 1.25
    r = memory_shares(samples, square)
    assert_allclose(r["shares"], [0.5, 0.2, 0, 0.3], rtol=1e-6)
    assert_allclose(r["expected"], [0.25] * 4, rtol=1e-6)
    assert_allclose(r["total_variation"], 0.3, rtol=1e-6) # (0.25 + 0.05 + 0.25 + 0.05) / 2
    assert_allclose(r["distance"], 0.25, rtol=1e-6)
    assert_allclose(r["floor"], 2 * math.sqrt(2 * 0.25 * 0.75 / (10 * math.pi)), rtol=1e-6)
    # chi-squared of 5.2 with 3 degrees of freedom, by the closed form for three
    tail = math.erfc(math.sqrt(2.6)) + math.sqrt(4 * 2.6 / math.pi) * math.exp(-2.6)
    assert_allclose(r["p_value"], tail, rtol=1e-5)


def test_memories_that_are_practically_equal_count_once_with_their_joint_share():
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.001]])
    r = memory_shares(pair, pair)
    assert len(r["shares"]) == 2
    assert_allclose(sorted(r["expected"].tolist()), [1 / 3, 2 / 3], rtol=1e-6)
    assert r["total_variation"] < 1e-6 and r["p_value"] > 0.999 and r["distance"] < 1e-6
    assert len(memory_shares(NINE, NINE)["shares"]) == 8


def test_one_memory_has_all_the_share():
    r = memory_shares(torch.zeros(5, 3), torch.ones(1, 3))
    assert r["shares"].tolist() == [1.0] and r["total_variation"] == 0 and r["p_value"] == 1
    assert_allclose(r["distance"], math.sqrt(3), rtol=1e-6)


def test_shares_take_arrays_and_refuse_what_is_no_sample():
    assert_allclose(memory_shares(NINE.numpy(), np.asarray(NINE))["distance"], 0, atol=1e-7)
    for bad in NINE[0], torch.zeros(4, 3), torch.full((2, 2), math.nan), "nine":
        assert "samples" in refused(memory_shares, bad, NINE)
    assert "patterns" in refused(memory_shares, NINE, NINE[0])


def test_three_ways_to_walk_give_each_memory_its_share():
    "20,000 samples of the exact score, by the chi-squared test, and each on a memory."
    n, sde, g = 20_000, VESDETerms(1.0), seeded(2) # 150 steps: a bias of 0.002, floor 0.007
    even = torch.linspace(1, 1e-5, 1001)
    for K in 2, 9:
        memories = circle_patterns(K)
        score, start = score_of(memories), marginal_sample(n, 1.0, memories, generator=g)
        results = {
            "ancestral": last(reverse_sde(score, sde, start, time_grid(150), g)),
            "flow": last(probability_flow(score, sde, start, time_grid(50))),
            "textbook": textbook(memories, start, even, g),
        }
        for name, x in results.items():
            r = memory_shares(x, memories)
            assert r["p_value"] > 1e-6 and r["distance"] < 0.003, (K, name, r)


def test_shares_in_a_chain_of_memories():
    "A sample counts for the group of its nearest memory, not for the nearest centre of a group."
    chain = torch.tensor([[0.0015 * i, 0.0] for i in range(11)])  # one group, its centre at 0.0075
    next_to_it = torch.tensor([[0.018, 0.0]])  # 0.003 beyond the end of the chain
    xi = torch.cat([chain, next_to_it, torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])])
    found = memory_shares(xi, xi)
    assert len(found["shares"]) == 6 and found["total_variation"] < 1e-6
    end = memory_shares(chain[-1:], xi)
    assert end["shares"].argmax() == end["expected"].argmax()


def test_memories_that_no_sample_ends_on_have_no_share():
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for i in range(4):
        shares = memory_shares(corners[i : i + 1], corners)["shares"]
        assert shares.tolist() == [float(j == i) for j in range(4)]


def test_a_covariance_that_rounding_made_negative():
    "Of memories on a line: what is below zero counts as zero."
    score = lambda x, t: x
    score.data_mean, score.data_cov = torch.zeros(2), torch.diag(torch.tensor([1.0, -1e-6]))
    found = matched_gaussian(score, VESDETerms(1e-4), torch.zeros(1, 2)).covariance_matrix
    assert_allclose(found, [[1 + 1e-8, 0], [0, 1e-8]], rtol=1e-6, atol=1e-15)
