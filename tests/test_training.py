"""Batches, losses, the loop, its error, and the trained networks."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import refused, seeded
from numpy.testing import assert_allclose
from scipy.stats import chi2
from torch.utils.data import DataLoader, TensorDataset

import amtutorial.training as training
from amtutorial.cache import cache_dir
from amtutorial.data import CircleDataset, circle_patterns, create_subset
from amtutorial.likelihood import ode_likelihood_with_laplacian
from amtutorial.sampling import Euler_Maruyama_sampler, memory_shares
from amtutorial.scorenet import ScoreNet
from amtutorial.sde import T_MIN, VESDETerms, marginal_sample, marginal_score
from amtutorial.training import (
    loss_fn,
    noisy_batch,
    score_error,
    stratified_times,
    train_loop,
    trained_model,
    update_ema,
)

SDE = VESDETerms(1.0)
STD = SDE.marginal_prob_std
NINE = circle_patterns(9)


def flat(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def short(seed=4, steps=3, **options):
    options = dict(vesde=SDE, device="cpu") | options
    return train_loop(options.pop("patterns", NINE), iterations=steps, seed=seed, **options)


zero = lambda x, t: torch.zeros_like(x)


# Times


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_one_time_in_each_slice(eps):
    t = stratified_times(1000, eps, seeded())
    place = 1000 * (1 - t.log() / math.log(eps)) - torch.arange(1000)  # where in its slice
    assert (place > -0.01).all() and (place < 1.01).all()
    assert abs(place.mean() - 0.5) < 5 / math.sqrt(12 * 1000)


def test_several_sets_of_times():
    t = stratified_times((50, 32), generator=seeded())
    assert t.shape == (50, 32) and (t.diff(dim=1) > 0).all()
    assert len(set(t[:, 0].tolist())) == 50
    one, same, other = (stratified_times(8, generator=seeded(i)) for i in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_times_refused():
    assert refused(stratified_times, 0) == "ValueError: n must be at least 1, not 0"
    wanted = "ValueError: eps, the smallest time, must lie in (0, 1), not 2.0"
    assert refused(stratified_times, 3, 2.0) == wanted
    assert refused(stratified_times, (4, 0)) and refused(stratified_times, 2.5)


# Batches


@pytest.mark.parametrize("sigma", [1.0, 0.5])
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_a_batch_is_equation_10_4(sigma, eps):
    "Draws: the noise is found again in the point. Means: the exact score, times σ√t."
    std_of = VESDETerms(sigma).marginal_prob_std
    x = NINE[torch.randint(9, (500,), generator=seeded())].double()
    xt, t, std, target, weight = noisy_batch(x, std_of, eps, generator=seeded(1))
    assert_allclose(std[:, 0], sigma * t.sqrt(), rtol=1e-12)
    assert_allclose(x - std * target, xt, rtol=0, atol=1e-12)
    assert_allclose(weight[:, 0], t * math.log(1 / eps) / (1 - eps), rtol=1e-12)
    known = dict(patterns=NINE.double(), generator=seeded(1))
    yt, s, _, mean, _ = noisy_batch(x, std_of, eps, **known)
    assert torch.equal(xt, yt) and torch.equal(t, s)
    exact = marginal_score(xt, t, NINE.double(), sigma)
    assert_allclose(mean, std * exact, rtol=1e-6, atol=1e-6)  # (mean - x)/std cancels digits


def test_noise_of_a_batch_is_normal():
    x = torch.zeros(100_000, 1)
    _, _, _, target, _ = noisy_batch(x, STD, generator=seeded())
    assert abs(target.mean()) < 5 / math.sqrt(1e5)
    assert abs(target.square().mean() - 1) < 5 * math.sqrt(2 / 1e5)


def test_shapes_of_a_batch():
    x = NINE[torch.randint(9, (50, 32, 8))]
    xt, t, std, target, weight = noisy_batch(x, STD, patterns=NINE)
    assert xt.shape == target.shape == (50, 32, 8, 2)
    assert t.shape == (50, 32, 1) and std.shape == weight.shape == (50, 32, 1, 1)
    wanted = "must have shape (B, d) or (..., T, M, d), with the d of the patterns"
    assert wanted in refused(noisy_batch, torch.zeros(4), STD)
    assert wanted in refused(noisy_batch, torch.zeros(4, 3), STD, patterns=NINE)


# The loss


def plain_loss(score, x, generator, eps=1e-5):
    "Equation 10.3 with uniform times, as plainly as it can be written."
    t = eps + (1 - eps) * torch.rand(len(x), generator=generator)
    std = t.sqrt()[:, None]
    z = torch.randn(x.shape, generator=generator)
    return (std * score(x + std * z, t) + z).square().mean()


def test_three_estimates_of_one_loss():
    "For half the score: 200 batches of 512 each, whose scatter tells what the means may differ by."
    exact = lambda x, t: marginal_score(x, t, NINE)
    half, g = lambda x, t: 0.5 * exact(x, t), seeded()
    floor = plain_loss(exact, NINE[torch.randint(9, (400_000,), generator=g)], g)

    def batches(loss):
        batch = lambda: NINE[torch.randint(9, (512,), generator=g)]
        values = torch.stack([loss(batch()) for _ in range(200)])
        return values.mean().item(), values.std().item()

    plain = batches(lambda x: plain_loss(half, x, g))
    draws = batches(lambda x: loss_fn(half, x, STD, generator=g))
    means = batches(lambda x: loss_fn(half, x, STD, patterns=NINE, generator=g))
    error_of = lambda *scatters: 5 * math.hypot(*scatters) / math.sqrt(200)
    assert abs(plain[0] - draws[0]) < error_of(plain[1], draws[1])
    assert abs(draws[0] - means[0] - floor) < error_of(draws[1], means[1]) + 4 * 0.003
    assert means[1] < plain[1] < draws[1]  # log-times do not make the value steadier


def test_the_loss_of_the_exact_score_on_means_is_zero():
    exact = lambda x, t: marginal_score(x, t.expand(x.shape[:-1]), NINE, 2.0)
    std_of, g = VESDETerms(2.0).marginal_prob_std, seeded()
    x = NINE[torch.randint(9, (32, 8), generator=g)]
    assert loss_fn(exact, x, std_of, patterns=NINE, generator=g) < 1e-9
    assert loss_fn(exact, x, std_of, 1e-3, generator=g) > 0.01


def test_the_loss_as_a_sum():
    model, x = ScoreNet(marginal_prob_std=STD, readout=True), NINE
    xt, t, std, target, weight = noisy_batch(x, STD, generator=seeded(3))
    with torch.no_grad():
        expected = sum(weight * (std * model(xt, t) - target) ** 2).sum() / x.numel()
        assert_allclose(loss_fn(model, x, STD, generator=seeded(3)), expected, rtol=1e-5)


# The average


@pytest.mark.parametrize("decay", [0.75, 0.0])
def test_update_ema(decay):
    a, b = (ScoreNet(marginal_prob_std=STD) for _ in range(2))
    expected = decay * flat(a) + (1 - decay) * flat(b)
    update_ema(a, b, decay)
    assert_allclose(flat(a), expected, rtol=0, atol=1e-6)
    for bad in 1.0, -0.1:
        assert refused(update_ema, a, b, bad) == f"ValueError: decay must lie in [0, 1), not {bad}"


def test_update_ema_leaves_frozen_weights_alone():
    a, b = (ScoreNet(marginal_prob_std=STD) for _ in range(2))
    b.output.bias.requires_grad_(False)
    before = copy.deepcopy(a)
    update_ema(a, b, 0.5)
    assert torch.equal(a.output.bias, before.output.bias)
    assert not torch.equal(a.output.weight, before.output.weight)


# The loop


def test_the_loop_step_by_step():
    "Ten steps written out on the same batches; in ten, only rounding has had time to grow."
    torch.manual_seed(0)
    plain, g = ScoreNet(marginal_prob_std=STD, readout=True), seeded()
    optimizer = torch.optim.Adam(plain.parameters(), lr=2e-2, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-2, total_steps=20, pct_start=0.1, cycle_momentum=False
    )
    x = NINE[torch.randint(9, (10, 32, 8), generator=g)]
    for xt, t, s, target, weight in zip(*noisy_batch(x, STD, patterns=NINE, generator=g)):
        optimizer.zero_grad()
        (weight * (s * plain(xt, t) - target).square()).mean().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    ours, other = short(0, 10), short(1, 10)
    gap, moved = ((flat(ours) - flat(m)).abs().max() for m in (plain, other))
    assert gap < 1e-3 and moved > 0.1


def test_the_seed_decides():
    model = short(4)
    assert torch.equal(flat(model), flat(short(4)))
    assert not torch.equal(flat(model), flat(short(5)))
    torch.manual_seed(0)
    first = short(None)
    torch.manual_seed(0)
    assert torch.equal(flat(first), flat(short(None)))
    assert not torch.equal(flat(first), flat(short(None)))
    assert not model.training and all(p.requires_grad for p in model.parameters())


def test_every_option_counts():
    "Each gives another network: rate, times, draws, targets, form, steps, noise strength."
    changes = dict(lr=1e-2), dict(times=16), dict(draws=4), dict(exact_targets=False)
    changes += dict(readout=False), dict(steps=4), dict(vesde=VESDETerms(2.0))
    seen = [flat(short(**options)) for options in ({}, *changes)]
    for i, a in enumerate(seen):
        assert all(not torch.equal(a, b) for b in seen[:i])
    assert not short(readout=False).readout and short().readout


def test_batches_made_ahead():
    "Fifty steps at a time or fewer for large points: all steps, each with a batch of its own."
    for d, steps in (2, 120), (3000, 5):
        patterns = torch.randn(4, d)
        batches = list(training._batches(patterns, SDE, T_MIN, steps, 32, 8, True, 0))
        assert len(batches) == steps and all(b[0].shape == (32, 8, d) for b in batches)
        firsts = [b[0][0, 0, 0].item() for b in batches]
        assert len(set(firsts)) == steps
    again = list(training._batches(patterns, SDE, T_MIN, 5, 32, 8, True, 0))
    assert torch.equal(again[0][0], batches[0][0])


@pytest.mark.parametrize("d", [1, 2, 5])
def test_training_fills_in_the_moments(d):
    "Mean and covariance of the memories, over K of them and not K - 1."
    patterns = torch.randn(7, d, generator=seeded()).double() + 2
    model = short(patterns=patterns)
    assert_allclose(model.data_mean, patterns.mean(0), rtol=0, atol=1e-6)
    cov = np.cov(patterns.numpy().T, bias=True).reshape(d, d)
    assert_allclose(model.data_cov, cov, rtol=0, atol=1e-6)
    assert model.data_mean.dtype == model.data_cov.dtype == torch.float32


def test_the_moments_are_kept_and_used(tmp_path, monkeypatch):
    """Trained, then from the cache, then saved by the page's way: the same moments. By default the
    sampler starts, and the likelihood ends, on a Gaussian with them; a function has none."""
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(tmp_path))
    first, again = (trained_model(NINE, iterations=3, device="cpu") for _ in range(2))
    torch.save(first.state_dict(), tmp_path / "model.pth")
    loaded = ScoreNet(marginal_prob_std=STD)
    loaded.load_state_dict(torch.load(tmp_path / "model.pth"))
    forgets = lambda x, t: first(x, t)
    sample = lambda m: Euler_Maruyama_sampler(m, SDE, 20, device="cpu", generator=seeded())
    logp = lambda m: ode_likelihood_with_laplacian(NINE, m, SDE, "cpu", 0.15)
    for model in again, loaded:
        assert torch.equal(model.data_mean, first.data_mean) and first.data_mean.any()
        assert torch.equal(model.data_cov, first.data_cov)
        assert torch.equal(sample(model), sample(first)) and torch.equal(logp(model), logp(first))
    assert not torch.equal(sample(forgets), sample(first))
    assert (logp(forgets) - logp(first)).abs().max() > 0.01


def test_memories_in_any_form():
    "A loader in batches, a subset, arrays of either precision, lists: the same network."
    expected = flat(short())
    subset = create_subset(CircleDataset(60_000, seed=9), 9, 9)
    kinds = DataLoader(subset, batch_size=2, shuffle=True), subset, NINE.double(), NINE.numpy()
    kinds += NINE.tolist(), TensorDataset(NINE), NINE.numpy().astype(np.float64)
    kinds += (NINE.clone().requires_grad_(),)
    for kind in kinds:
        assert torch.equal(flat(short(patterns=kind)), expected)


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.random.fork_rng(devices=[]),
    ],
    ids=["no_grad", "inference_mode", "autocast", "plain"],
)
def test_the_mode_of_the_caller_does_not_matter(mode, tmp_path, monkeypatch):
    "Trained or loaded from the cache, in any mode: the same network, which can be trained on."
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(tmp_path))
    expected = flat(short(9))
    for _ in range(2):  # trained, then loaded
        with mode():
            models = short(9), trained_model(NINE, iterations=3, device="cpu")
        for model in models:
            assert torch.equal(flat(model), expected)
            loss_fn(model, NINE, STD).backward()


def test_double_precision_as_default():
    "Training is in single precision whatever the default is, and the default stays."
    torch.set_default_dtype(torch.float64)
    try:
        model = short()
        assert torch.get_default_dtype() == torch.float64
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert math.isfinite(score_error(model, NINE, n=100))
    finally:
        torch.set_default_dtype(torch.float32)


def test_nothing_global_changes():
    threads, grad, state = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_rng_state()
    short()
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)
    patterns = NINE.clone()
    short(patterns=patterns)
    assert torch.equal(patterns, NINE)


def test_the_loop_refuses():
    for name in "iterations", "log_freq", "times", "draws":
        assert name in refused(train_loop, NINE, SDE, device="cpu", **{name: 0})
    assert "lr" in refused(train_loop, NINE, SDE, lr=0.0)
    assert "not available" in refused(train_loop, NINE, SDE, device="cuda:99")
    assert "patterns" in refused(train_loop, torch.zeros(0, 2), SDE)
    assert "patterns" in refused(train_loop, [[1.0, math.nan]], SDE)
    assert "seed" in refused(train_loop, NINE, SDE, seed=-1)


@pytest.mark.parametrize("readout, lr, steps", [(True, 2e-2, 200), (False, 1e-2, 800)])
def test_one_memory_is_learned(readout, lr, steps):
    "A straight line as score; less than a thousandth of the answer zero's error 2 is left."
    one = torch.tensor([[0.6, -0.8]])
    model = short(0, steps, patterns=one, lr=lr, readout=readout)
    assert score_error(model, one) < 1e-3 * 2


# The error


def test_score_error_of_known_scores():
    "The exact score has none; the answer zero has E|z|² = d, known to √(2d/20,000), five allowed."
    exact = lambda x, t: marginal_score(x, t, NINE)
    assert score_error(exact, NINE) == 0
    for d in 1, 2, 16:
        error = score_error(zero, torch.ones(1, d), sigma=2.0)
        assert abs(error - d) < 5 * math.sqrt(2 * d / 20_000)
    few, some, many = (score_error(zero, circle_patterns(K)) for K in (2, 9, 1000))
    assert many < some < few < 2


def test_score_error_by_hand():
    "A score that is off by a constant vector c: E σ²t |c|² = σ²|c|²/2, and σ²t|c|² at one time."
    off = lambda x, t: marginal_score(x, t, NINE, 2.0) + torch.tensor([0.3, -0.4])
    assert_allclose(score_error(off, NINE, 2.0), 4 * 0.25 / 2, rtol=0.03)
    assert_allclose(score_error(off, NINE, 2.0, n=100, t=0.2), 4 * 0.25 * 0.2, rtol=1e-4)
    assert score_error(off, NINE, 2.0, n=50) != score_error(off, NINE, 2.0, n=50, seed=1)
    assert score_error(off, NINE, 2.0, n=50) == score_error(off, NINE, 2.0, n=50)


def test_score_error_takes_any_precision():
    "Memories in double precision draw other noise: 500 points know the error to a tenth or so."
    model, double = short(), NINE.numpy().astype(np.float64)
    expected = score_error(model, NINE, n=500)
    assert_allclose(score_error(model, double, n=500), expected, rtol=0.5)
    assert_allclose(score_error(model.double(), NINE, n=500), expected, rtol=1e-3)


def test_score_error_refuses():
    for t in 0, -1, 2, "x", [0.1, 0.2]:
        assert "t must" in refused(score_error, zero, NINE, t=t)
    assert "n must" in refused(score_error, zero, NINE, n=0)
    assert "seed" in refused(score_error, zero, NINE, seed=-1)


# Trained networks


def test_trained_models_are_kept_apart(tmp_path, monkeypatch):
    "Each setting has a file of its own; a second call loads, and gives the same answers."
    monkeypatch.setenv("AMTUTORIAL_CACHE", str(tmp_path))
    fetch = lambda patterns=None, **options: trained_model(
        NINE if patterns is None else patterns, iterations=3, device="cpu", **options
    )
    first, x, t = fetch(), torch.randn(5, 2), torch.rand(5)
    (path,) = cache_dir().glob("*.safetensors")
    stamp = path.stat().st_mtime_ns
    with torch.no_grad():
        assert torch.equal(fetch()(x, t), first(x, t)) and path.stat().st_mtime_ns == stamp
        assert torch.equal(fetch(cache=False)(x, t), first(x, t))
    fetch(seed=10)
    fetch(sigma=2.0)
    fetch(NINE[:8])
    trained_model(NINE, iterations=4, device="cpu")
    assert len(list(tmp_path.glob("*.safetensors"))) == 5 and not list(tmp_path.glob("*.part"))
    assert not first.training


def test_trained_model_is_the_loop_with_seed_9():
    model = trained_model(NINE, iterations=3, device="cpu", cache=False)
    assert torch.equal(flat(model), flat(short(9, 3)))


def test_trained_model_refuses():
    assert "sigma" in refused(trained_model, NINE, 0.0)
    assert "iterations" in refused(trained_model, NINE, iterations=0)
    assert "seed" in refused(trained_model, NINE, seed=-1)
    assert "patterns" in refused(trained_model, torch.zeros(3))


# Samples of trained networks


def euler_maruyama(model, x, times, g):
    "The textbook walk; returns the mean of the last step."
    with torch.no_grad():
        for t, s in zip(times[:-1], times[1:]):
            mean = x + (t - s) * model(x, t)
            x = mean + (t - s).sqrt() * torch.randn(x.shape, generator=g)
    return mean


@pytest.mark.parametrize("K, n", [(2, 1500), (9, 1500), (1000, 500)])
def test_fifty_steps_give_what_two_thousand_textbook_steps_give(K, n):
    """The same shares by the chi-squared test for two samples, and no farther from a memory.

    With a thousand memories the test of shares has no power (one sample for two memories), so 500
    samples do, and instead both distances must agree, which scatter by 1/sqrt(500) of themselves.
    With nine, one sample in forty ends between two memories, up to 0.09 from both: the two means
    are known to 0.05 sqrt(1/40/1500) = 2e-4 each.
    """
    memories, g = circle_patterns(K), seeded(4)
    model = trained_model(memories, device="cpu")
    x = Euler_Maruyama_sampler(model, SDE, n, device="cpu", patterns=memories, generator=seeded(3))
    start = marginal_sample(n, 1.0, memories, generator=g)
    y = euler_maruyama(model, start, torch.linspace(1, T_MIN, 2001), g)
    fast, slow = memory_shares(x, memories), memory_shares(y, memories)
    a, b = n * fast["shares"], n * slow["shares"]
    seen = a + b > 0
    statistic = ((a - b).square() / (a + b))[seen].sum().item()
    assert chi2.sf(statistic, seen.sum().item() - 1) > 0.001
    if K == 2:
        assert fast["distance"] <= slow["distance"]
    elif K == 9:
        assert fast["distance"] <= slow["distance"] + 5 * math.sqrt(2) * 2e-4
    else:
        assert abs(fast["distance"] / slow["distance"] - 1) < 5 * math.sqrt(2 / n)


def test_one_step_too_many_throws_samples_of_accurate_networks():
    "The page's extra step of 0.001 at t = 1e-5: 99 kicks of 0.04, less where memories are near."
    model, g, grid = trained_model(NINE, device="cpu"), seeded(), torch.linspace(1, T_MIN, 1000)
    page = torch.cat([grid, grid[-1:] - (grid[0] - grid[1])])
    y = euler_maruyama(model, marginal_sample(200, 1.0, NINE, generator=g), page, g)
    assert memory_shares(y, NINE)["distance"] > 2


def test_sizes_of_the_network():
    "`network` reaches the layers, and the trained network keeps its moments."
    sizes = dict(num_layers=3, hidden_dim=24, embed_dim=8)
    model = train_loop(circle_patterns(9), SDE, 3, device="cpu", seed=0, network=sizes)
    assert model.input_proj.weight.shape == (24, 10) and len(model.hidden) == 5
    assert torch.allclose(model.data_mean, circle_patterns(9).mean(0))
    assert "num_layers" in refused(
        train_loop, circle_patterns(9), SDE, 3, network=dict(num_layers=1))


def test_constant_rate_and_average_by_hand():
    "With `average`: Adam at a constant rate, and an average that forgets its first steps."
    xi, lr, decay, steps = circle_patterns(9), 1e-2, 0.95, 20
    model = train_loop(xi, SDE, steps, lr, "cpu", seed=4, average=decay)
    live = training._new_network(xi, SDE, 4, readout=True)
    kept = [p.detach().clone() for p in live.parameters()]
    adam = torch.optim.Adam(live.parameters(), lr, betas=(0.9, 0.95))
    batches = training._batches(xi, SDE, T_MIN, steps, 32, 8, True, 4)
    for i, (x, t, std, target, weight) in enumerate(batches, 1):
        adam.zero_grad()
        (weight * (std * live(x, t) - target).square()).mean().backward()
        torch.nn.utils.clip_grad_norm_(live.parameters(), 10.)
        adam.step()
        a = min(decay, i / (i + 10))
        kept = [a * k + (1 - a) * p.detach() for k, p in zip(kept, live.parameters())]
    for mine, by_hand in zip(model.parameters(), kept):
        # twenty steps of 0.01; sums in another order, in another version of PyTorch
        assert torch.allclose(mine, by_hand, rtol=1e-3, atol=1e-3)


# Arguments away from their defaults


def test_each_of_several_sets_has_one_time_in_each_slice():
    t = stratified_times((50, 32), 1e-3, seeded())
    place = 32 * (1 - t.log() / math.log(1e-3)) - torch.arange(32)
    assert (place > -0.01).all() and (place < 1.01).all()


def test_the_smallest_time_reaches_batch_and_loss():
    "With eps = 1/2 all times lie above it; the loss of the answer zero is its batch's."
    x = NINE.repeat(500, 1)
    _, t, _, target, weight = noisy_batch(x, STD, 0.5, generator=seeded())
    assert 0.5 <= t.min() < 0.51 and t.max() <= 1
    loss = loss_fn(zero, x, STD, 0.5, generator=seeded())
    assert_allclose(loss, (weight * target.square()).mean(), rtol=1e-6)
    assert loss != loss_fn(zero, x, STD, generator=seeded())


def test_the_loss_is_shown_as_often_as_asked(monkeypatch):
    shown = []
    plain = training.tqdm

    def watched(*args, **options):
        bar = plain(*args, **options)
        monkeypatch.setattr(bar, "set_postfix", lambda **said: shown.append(said["loss"]))
        return bar

    monkeypatch.setattr(training, "tqdm", watched)
    short(steps=7, log_freq=3)
    assert len(shown) == 2 and all(float(loss) > 0 for loss in shown)
