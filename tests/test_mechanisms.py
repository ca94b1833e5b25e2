"""A machine of windows against brute force, and random features against loops and draws."""
import math
import numpy as np
import pytest
import torch
from helpers import none, refused
from torch.utils._python_dispatch import TorchDispatchMode
from amtutorial.digits import classify_samples, digit_images
from amtutorial.mechanisms import feature_flow, local_denoiser, sine_moments
from amtutorial.sampling import Euler_Maruyama_sampler, reverse_sde, time_grid
from amtutorial.sde import VESDETerms, marginal_sample, marginal_score

def normal(*shape, seed=0):
    "Standard normal numbers in double precision."
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)

def by_hand(x, t, xi, window, sigma, side):
    "The local score by loops over images and pixels, on images padded with zeros."
    r, score = window // 2, torch.zeros_like(x)
    pad = lambda a: torch.nn.functional.pad(a.reshape(-1, side, side), (r,) * 4)
    padded, stored = pad(x), pad(xi)
    for b in range(len(x)):
        for i in range(side):
            for j in range(side):
                patch = padded[b, i:i + window, j:j + window]
                patches = stored[:, i:i + window, j:j + window]
                off = (patch - patches).square().sum((1, 2))
                w = (-off / (2 * sigma**2 * t[b])).softmax(0)
                pixel = i * side + j
                score[b, pixel] = (w @ xi[:, pixel] - x[b, pixel]) / (sigma**2 * t[b])
    return score

@pytest.mark.parametrize("window", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("sigma", [1., 3.])
def test_windows_by_hand(window, sigma):
    side, xi = 4, normal(6, 16)
    x, t = normal(5, 16, seed=1), torch.linspace(0.01, 0.9, 5, dtype=torch.float64)
    found = local_denoiser(xi, window, sigma)(x, t)
    assert torch.allclose(found, by_hand(x, t, xi, window, sigma, side), rtol=1e-9, atol=1e-9)

def test_place_matters():
    "One patch, at two places of two images: a pixel takes what the memories show at its own place."
    xi = torch.zeros(2, 9, dtype=torch.float64)
    xi[0, 0], xi[1, 8] = 1., 1.
    mean = xi[:1] + 1e-3 * local_denoiser(xi, 1)(xi[:1], 1e-3)
    assert torch.allclose(mean, xi[:1], atol=1e-9)
    mean = mean + 1e-3 * local_denoiser(xi, 3)(mean.roll(1, 1), 1e-3) # shifted: nobody stored it
    assert not torch.allclose(mean, xi[:1].roll(1, 1), atol=1e-2)

@pytest.mark.parametrize("sigma", [1., 8.])
def test_everything_in_the_window(sigma):
    xi = normal(20, 64)
    for t in 1e-4, 0.02, 1.:
        x = marginal_sample(30, t, xi, sigma, torch.Generator().manual_seed(3))
        exact = marginal_score(x, t, xi, sigma)
        for window in 15, 21:
            assert torch.allclose(local_denoiser(xi, window, sigma)(x, t), exact, rtol=1e-6)

def test_a_pixel_alone():
    "With a window of one, each pixel has the score of its own values."
    xi, x = normal(7, 9), normal(4, 9, seed=1)
    found = local_denoiser(xi, 1, 2.)(x, 0.1)
    alone = [marginal_score(x[:, i:i + 1], 0.1, xi[:, i:i + 1], 2.) for i in range(9)]
    assert torch.allclose(found, torch.cat(alone, 1))

def test_forms_of_time_and_memories():
    xi, x = normal(5, 9).float(), normal(4, 9, seed=1).float()
    score = local_denoiser(xi, 3, 2.)
    wanted = score(x, 0.3)
    for t in torch.tensor(0.3), torch.full((4,), 0.3), torch.tensor(0.3, dtype=torch.float64):
        assert torch.allclose(score(x, t), wanted) and score(x, t).dtype == torch.float32
    for kind in xi.tolist(), xi.numpy(), xi.clone().requires_grad_():
        found = local_denoiser(kind, 3, 2.)(x, 0.3)
        assert torch.equal(found, wanted) and not found.requires_grad

def test_blocks_change_nothing():
    "More points than one block takes give what each gives alone."
    xi, x = normal(500, 16), normal(400, 16, seed=1)
    score = local_denoiser(xi, 3)
    assert torch.allclose(score(x, 0.2), torch.cat([score(row[None], 0.2) for row in x]))

def test_units():
    xi, x = normal(6, 16), normal(3, 16, seed=1)
    found = local_denoiser(1000 * xi, 3, 1000.)(1000 * x, 0.2)
    assert torch.allclose(found * 1000, local_denoiser(xi, 3)(x, 0.2))

def test_sampler():
    "The book's sampler runs on it; with a window over everything it gives memories back."
    xi = normal(5, 9).float()
    for window, recalled in (1, False), (5, True):
        g = torch.Generator().manual_seed(0)
        score = local_denoiser(xi, window, 5.)
        options = dict(device="cpu", patterns=xi, generator=g)
        x = Euler_Maruyama_sampler(score, VESDETerms(5.), 200, **options)
        near = torch.cdist(x, xi).min(1)[0] < 0.1
        assert near.all() if recalled else near.float().mean() < 0.1

def test_sampling_of_digits():
    """64 digits, windows of 7: the share of recall is the same (to four standard errors of 200
    draws) with three times the steps, and down to a hundredth of the last time. Stopped at
    t = 1e-3 and denoised, it is lower: neighbouring pixels still disagree then."""
    xi, sde, shares = digit_images(0)[0][:64], VESDETerms(8.), {}
    score = local_denoiser(xi, 7, sde.sigma)
    share = lambda x: classify_samples(x, xi).memorized.double().mean().item()
    for steps, eps in (50, 1e-5), (150, 1e-5), (150, 1e-7):
        times, g = time_grid(steps, eps), torch.Generator().manual_seed(1009)
        states = list(reverse_sde(score, sde, marginal_sample(200, 1., xi, 8., g), times, g))
        k = int((times > 1e-3).sum())
        early = states[k] + sde.marginal_prob_std(times[k])**2 * score(states[k], times[k])
        shares[steps, eps] = share(states[-1])
        assert share(early) < shares[steps, eps] - 0.05
    assert max(shares.values()) - min(shares.values()) < 4 * math.sqrt(2 * 0.7 * 0.3 / 200)

def test_recall_is_no_generalization():
    "The exact score of 256 points: no loss on them, and a loss far above 1 on others."
    v, points = 0.01, normal(256, 32)
    for clean, least, most in (points, 0., 5e-3), (normal(256, 32, seed=1), 50., 200.):
        z = normal(256, 32, seed=2)
        recall = math.sqrt(v) * marginal_score(clean + math.sqrt(v) * z, v, points)
        assert least <= (recall + z).square().mean() < most

def quadrature(f, W, x, v):
    "Means of f(phases, z) over the noise in two dimensions, by Gauss-Hermite nodes."
    nodes, weight = np.polynomial.hermite_e.hermegauss(40)
    nodes, weight = torch.tensor(nodes), torch.tensor(weight / weight.sum())
    z = torch.cartesian_prod(nodes, nodes)
    w = torch.cartesian_prod(weight, weight).prod(1)
    return sum(f(((row + math.sqrt(v) * z) @ W.T).sin(), z, w) for row in x) / len(x)

@pytest.mark.parametrize("v", [0.01, 0.7])
def test_moments_by_quadrature(v):
    W, x = normal(5, 2), normal(6, 2, seed=1)
    U, V = sine_moments(W, v, x)
    assert torch.allclose(U, quadrature(lambda s, z, w: (w[:, None] * s).T @ s, W, x, v), atol=1e-9)
    assert torch.allclose(V, quadrature(lambda s, z, w: (w[:, None] * z).T @ s, W, x, v), atol=1e-9)
    U, V = sine_moments(W, v) # fresh points: zero and noise of variance 1 + v
    zero, spread = torch.zeros(1, 2, dtype=torch.float64), 1 + v
    squares = quadrature(lambda s, z, w: (w[:, None] * s).T @ s, W, zero, spread)
    cross = quadrature(lambda s, z, w: (w[:, None] * z).T @ s, W, zero, spread)
    assert torch.allclose(U, squares, atol=1e-9)
    assert torch.allclose(V, math.sqrt(v / spread) * cross, atol=1e-9)

def test_fresh_points_are_the_limit_of_many():
    W, x = normal(6, 3), normal(200_000, 3, seed=1)
    for many, all_of_them in zip(sine_moments(W, 0.1, x), sine_moments(W, 0.1)):
        assert (many - all_of_them).abs().max() < 5 / math.sqrt(200_000)

def test_flow_is_gradient_descent():
    "The formula against a loop of small steps on the loss, by autograd."
    W, x, v, p = normal(12, 3), normal(8, 3, seed=1), 0.2, 12
    U, V = sine_moments(W, v, x)
    M, step, flow = torch.zeros(3, 12, dtype=torch.float64), 0.005, feature_flow(x, W, v, [6., 20.])
    loss = lambda M: 1 + (M @ U @ M.T + 2 * M @ V.T).trace() / 3
    for k in range(1, 4001):
        M.requires_grad_()
        slope, = torch.autograd.grad(loss(M), M)
        M = M.detach() - step * 3 / p * slope
        for i, tau in enumerate((6., 20.)):
            if k == round(tau / step):
                assert torch.allclose(M, flow.weights(tau), atol=5e-3 * M.abs().max().item())
                assert abs(loss(M) - flow.train[i]) < 3e-4
    assert k == 4000 and flow.train[1] < flow.train[0] < 1

def test_losses_are_those_of_the_weights():
    "Training loss by its moments, test loss by fresh draws."
    W, x, v = 1.5 * normal(40, 4) / 2, normal(10, 4, seed=1), 0.3
    taus = torch.tensor([1., 100., 1e4])
    flow, (U, V) = feature_flow(x, W, v, taus), sine_moments(W, v, x)
    clean, z = normal(200_000, 4, seed=2), normal(200_000, 4, seed=3)
    features = ((clean + math.sqrt(v) * z) @ W.T).sin()
    for i, tau in enumerate(taus.tolist()):
        M = flow.weights(tau)
        train = 1 + (M @ U @ M.T + 2 * M @ V.T).trace() / 4
        assert abs(train - flow.train[i]) < 1e-9
        misses = (features @ M.T + z).square().mean(1)
        bar = misses.std() / math.sqrt(len(misses))
        assert abs(misses.mean() - flow.test[i]) < 5 * bar

def test_ends_of_time():
    "At first nothing is learned; for ever means least squares; the training loss only falls."
    W, x, v = normal(20, 3), normal(30, 3, seed=1), 0.5
    taus = [1e-12, *np.logspace(-3, 8, 60), math.inf]
    flow, (U, V) = feature_flow(x, W, v, taus), sine_moments(W, v, x)
    assert abs(flow.train[0] - 1) < 1e-9 and abs(flow.test[0] - 1) < 1e-9
    assert (flow.train.diff() < 1e-12).all() and (flow.rates > 0).all()
    assert torch.allclose(flow.weights(math.inf), -torch.linalg.solve(U, V.T).T, rtol=1e-4)
    assert torch.allclose(flow.rates, 2 / 20 * torch.linalg.eigvalsh(U), rtol=1e-6)

def test_much_data_generalizes_for_ever():
    "Beyond many points the losses on old and new points are one, just above the optimum."
    W, v = 1.5 * normal(60, 4) / 2, 0.1
    flow = feature_flow(normal(40_000, 4, seed=1), W, v, [math.inf])
    assert abs(flow.train - flow.test) < 2e-3
    assert 1 / (1 + v) < flow.test < 1 / (1 + v) + 5e-3

def test_refusals():
    xi, W = normal(4, 16), normal(6, 3)
    faults = []
    for name, f, args in (
            ("images", local_denoiser, (normal(4, 15), 3)), ("images", local_denoiser, (xi, 4)),
            ("window", local_denoiser, (xi, 0)), ("window", local_denoiser, (xi, 3.)),
            ("sigma", local_denoiser, (xi, 3, 0.)), ("patterns", local_denoiser, ([1., 2.], 3)),
            ("v", sine_moments, (W, 0.)), ("points", sine_moments, (W, 0.1, xi)),
            ("points", feature_flow, (xi, W, 0.1, [1.])), ("v", feature_flow, (W, W, -1., [1.])),
            ("times", feature_flow, (W, W, 0.1, [0.])), ("times", feature_flow, (W, W, 0.1, 3.)),
            ("times", feature_flow, (W, W, 0.1, [math.nan]))):
        message = refused(f, *args)
        if name not in message.split(":")[1].split()[0] or "\n" in message:
            faults.append((f.__name__, name, message))
    none(faults)

def test_pull_of_two_equations():
    "(16.7): the pull on fresh points over time, for two noises, to a tenth (n / p is an eighth)."
    d, p, n, omega = 32, 1024, 128, 1.5
    W, x = omega * normal(p, d) / math.sqrt(d), normal(n, d, seed=1)
    c = math.exp(-omega**2) * (math.sinh(omega**2) - omega**2)
    q = math.exp(-omega**2) * omega**2 / d
    for v in 0.01, 0.0025:
        weights, V_new = feature_flow(x, W, v, [1.]).weights, sine_moments(W, v)[1]
        G = torch.tensor([[-2 * q * (1 + v), 2 * q], [2 * c / n, -2 * c / n]]).double()
        for tau in 30., 128., 256., 512.:
            grown = torch.linalg.matrix_exp(G * tau) - torch.eye(2)
            A, _ = torch.linalg.solve(G, grown[:, 0] * 2 * q * math.sqrt(v))
            pull = -(weights(tau) * V_new).sum() / d / math.sqrt(v)
            assert abs(pull / A - 1) < 0.1, (v, tau, pull, A)

def test_memory_is_bounded():
    "All distances in all windows, of 400 points to 500 memories, would be three million numbers."
    class Largest(TorchDispatchMode):
        size = 0
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            self.size = max(self.size, out.numel() if isinstance(out, torch.Tensor) else 0)
            return out
    score, x = local_denoiser(normal(500, 16), 3), normal(400, 16, seed=1)
    with Largest() as seen:
        score(x, 0.2)
    assert 2**16 < seen.size <= 2**18

def test_features_that_stand_twice():
    "Their matrix is singular, and rounding makes some eigenvalues negative: they never learn."
    W, points = normal(6, 3), normal(20, 3, seed=1)
    once, twice = (feature_flow(points, a, 0.1, [math.inf]) for a in (W, torch.cat([W, W])))
    assert torch.allclose(once.train, twice.train) and torch.allclose(once.test, twice.test)
