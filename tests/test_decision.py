"""When it is decided: three averages of posterior weights, against closed forms and identities."""
import math
import numpy as np
import pytest
import torch
from helpers import none, refused
from amtutorial.data import circle_patterns
from amtutorial.decision import agreement, effective_dimension, open_nats
from amtutorial.sde import marginal_sample, marginal_score, posterior_weights

ALL = agreement, open_nats, effective_dimension
Z, WEIGHT = np.polynomial.hermite_e.hermegauss(200)
WEIGHT = WEIGHT / WEIGHT.sum()

def states(seed):
    "The generator of the states, kept apart from generators that users seed alike."
    return torch.Generator().manual_seed(seed ^ 2**31)

def within(found, exact):
    "Whether (mean, standard error) lies within five errors of the exact value."
    return abs(found[0] - exact) < 5 * found[1]

def pair_moments(ratio):
    "E Σw², E H(w) and d_eff of two memories at v = ratio · a², by quadrature over (8.2)."
    m = np.tanh(1 / ratio + Z / math.sqrt(ratio)) # of states that came from the first memory
    p = np.clip((1 + m) / 2, 1e-300, 1 - 1e-16)
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    return (1 + WEIGHT @ m) / 2, WEIGHT @ entropy, WEIGHT @ (1 - m**2) / ratio

@pytest.mark.parametrize("ratio", [0.3, 1., 4.])
@pytest.mark.parametrize("sigma", [0.9, 3.])
def test_two_memories_by_quadrature(ratio, sigma):
    "In any dimension, with any σ, only v / a² counts."
    d, a = 3, 0.4
    xi = torch.zeros(2, d, dtype=torch.float64)
    xi[0, 1], xi[1, 1] = a + 7, -a + 7 # far from the origin
    t = ratio * a**2 / sigma**2
    for f, exact in zip(ALL, pair_moments(ratio)):
        assert within(f(t, xi, sigma, n=40_000, seed=5), exact), f.__name__

def test_alone_and_identical():
    "One memory is certain; copies of one memory cannot be told apart."
    for K in 1, 5:
        xi = torch.full((K, 2), 0.3)
        for f, exact in zip(ALL, (1 / K, math.log(K), 0.)):
            mean, error = f(0.2, xi)
            assert abs(mean - exact) < 1e-12 and error < 1e-12

def test_units():
    "Memories and σ in other units: the same answers."
    nine = circle_patterns(9).double()
    for f in ALL:
        a, b = f(0.1, nine, 1.), f(0.1, 1000 * nine + 5, 1000.)
        assert np.allclose(a, b, rtol=1e-9), f.__name__

def test_time_and_sigma_enter_as_their_product():
    nine = circle_patterns(9)
    for f in ALL:
        assert np.allclose(f(0.4, nine, 0.5), f(0.1, nine, 1.), rtol=1e-9)

def test_dimension_is_divergence_and_squared_score():
    "d_eff = d + v E ∇·s (autograd) = d - v E|s|² (by parts)."
    xi, t, n = circle_patterns(9).double(), 0.1, 20_000
    mean, error = effective_dimension(t, xi, n=n)
    x = marginal_sample(n, t, xi, generator=states(0)).requires_grad_()
    score = marginal_score(x, t, xi)
    rows = [torch.autograd.grad(score[:, i].sum(), x, retain_graph=True)[0][:, i] for i in (0, 1)]
    assert abs(2 + t * sum(rows).mean().item() - mean) < 1e-9 # the same states
    by_parts = 2 - t * score.square().sum(1)
    bar = by_parts.std().item() / math.sqrt(n)
    assert abs(by_parts.mean().item() - mean) < 5 * math.hypot(bar, error)

def test_dimension_is_slope_of_the_information():
    "-2 dI/d log v by differences of E H with the same draws (equation 8.6)."
    xi, h = circle_patterns(50).double(), 0.05
    for t in 0.3, 0.01:
        up, down = (open_nats(t * math.exp(s * h), xi, n=40_000)[0] for s in (1, -1))
        mean, error = effective_dimension(t, xi, n=40_000)
        assert abs((up - down) / h - mean) < 5 * error + h**2

def test_dimension_of_a_sphere_in_ten():
    "4,000 memories on a sphere, turned into ten dimensions: two, up to curvature and 1 / N_eff."
    g = torch.Generator().manual_seed(0)
    ball = torch.randn(4000, 3, generator=g, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(10, 3, generator=g, dtype=torch.float64))[0]
    v = 0.03
    xi = torch.nn.functional.normalize(ball) @ turned.T
    mean, error = effective_dimension(v, xi, n=2000)
    within_reach = 4000 * v / 2 # on the sphere: 4πv of its area 4π, halved as for a Gaussian
    assert abs(mean - 2) < 2 * v + 4 / within_reach + 5 * error

def test_bounds():
    "1/K ≤ E Σw² ≤ 1, 0 ≤ E H ≤ log K, 0 ≤ d_eff ≤ d: from no noise at all to much."
    for K, d in (2, 1), (9, 2), (100, 12):
        xi = torch.randn(K, d, generator=torch.Generator().manual_seed(K))
        for sigma in 1e-4, 0.3, 1e4:
            low = 1 / K, 0., 0.
            high = 1., math.log(K), d
            for f, lo, hi in zip(ALL, low, high):
                mean, error = f(1., xi, sigma, n=500)
                assert lo - 1e-9 <= mean <= hi + 1e-9 + 5 * error
    assert agreement(1., xi, 1e4, n=500)[0] < 1.001 / 100
    assert agreement(1., xi, 1e-4, n=500)[0] > 1 - 1e-9
    assert open_nats(1., xi, 1e-4, n=500)[0] < 1e-9

def test_blocks_change_nothing():
    "A table too large for one block gives what plain tensors give."
    xi, n, t = circle_patterns(3000).double(), 300, 0.01
    x = marginal_sample(n, t, xi, generator=states(4))
    w = posterior_weights(x, t, xi)
    mean = w @ xi
    spread = (w * torch.cdist(mean, xi).square()).sum(1)
    by_hand = w.square().sum(1), torch.special.entr(w).sum(1), spread / t
    for f, values in zip(ALL, by_hand):
        found = f(t, xi, n=n, seed=4)
        wanted = values.mean().item(), values.std().item() / math.sqrt(n)
        assert np.allclose(found, wanted, rtol=1e-9)

def test_standard_error_is_the_scatter_of_seeds():
    nine = circle_patterns(9)
    for f in ALL:
        runs = np.array([f(0.05, nine, n=400, seed=s) for s in range(200)])
        assert abs(runs[:, 0].std() / runs[:, 1].mean() - 1) < 5 / math.sqrt(2 * 200)

def test_seeds():
    "The same seed, the same numbers; another seed, others; the global generator stays as it is."
    nine = circle_patterns(9)
    before = torch.random.get_rng_state()
    for f in ALL:
        assert f(0.1, nine) == f(0.1, nine) == f(0.1, nine, seed=0) != f(0.1, nine, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())

def test_states_share_no_random_numbers_with_memories():
    "Memories drawn with the seed of the states: noise made of their entries would find them."
    K, d, n = 2000, 16, 4096
    g = torch.Generator().manual_seed(0)
    xi = torch.randn(K, d, generator=g, dtype=torch.float64)
    same, other = (open_nats(1., xi, n=n, seed=seed) for seed in (0, 1))
    assert abs(same[0] - other[0]) < 5 * math.hypot(same[1], other[1])
    shared = np.intersect1d(torch.randn(n, d, generator=states(0), dtype=torch.float64), xi)
    assert len(shared) == 0

def test_tiny_noise_in_many_dimensions():
    "What rounding leaves of a distance is not a dimension, however small the noise."
    xi = 7 + torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    for sigma in 1e-3, 1e-6, 1e-12:
        assert effective_dimension(1., xi, sigma, n=100) == (0., 0.)
        assert agreement(1., xi, sigma, n=100) == (1., 0.)

def test_any_kind_of_memories():
    "Lists, arrays, integers, tensors that need gradients: one answer."
    nine = circle_patterns(9)
    for f in ALL:
        kinds = nine.tolist(), nine.numpy(), nine.clone().requires_grad_(), nine.double()
        assert len({f(0.1, xi) for xi in kinds}) == 1
    assert agreement(0.5, [[0, 1], [1, 0]]) == agreement(0.5, [[0., 1.], [1., 0.]])

def test_refusals():
    nine, faults = circle_patterns(9), []
    bad = {
        "n": dict(n=1), "n ": dict(n=2.5), "seed": dict(seed=-1), "sigma": dict(sigma=0.),
        "t": dict(t=0.), "t ": dict(t=1.5), "patterns": dict(patterns=[1., 2.]),
        "patterns ": dict(patterns=[[math.nan, 0.]]), "sigma ": dict(sigma=1e-200),
        "sigma  ": dict(sigma=1e200), "t  ": dict(t=[0.1, 0.2])}
    for f in ALL:
        for name, change in bad.items():
            message = refused(f, **dict(dict(t=0.1, patterns=nine), **change))
            if name.strip() not in message.split(":")[1].split()[0]:
                faults.append((f.__name__, name, message))
    none(faults)
